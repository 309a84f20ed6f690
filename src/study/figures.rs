//! The two figures: `success.svg`, success against the size of the batch, and `steps.svg`, loss and success by
//! iteration.

use super::lines::{Curve, Line, WATCHED};
use super::report::{Findings, interval, mechanism};
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

const FONT: &str = "sans-serif";
const TEXT: u32 = 20;
const INK: RGBColor = RGBColor(60, 60, 60);
/// Told apart by those who see no red or green, too.
const COLOURS: [RGBColor; 5] =
    [RGBColor(0, 90, 170), RGBColor(213, 94, 0), RGBColor(170, 40, 120), RGBColor(0, 140, 105), RGBColor(120, 100, 60)];

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Names and texts of the figures that a study has numbers for.
///
/// # Errors
/// [`Error::Output`] where they cannot be drawn.
pub(super) fn all(findings: &Findings) -> Result<Vec<(&'static str, String)>> {
    let mut figures = Vec::new();
    let named = |name: &'static str, draw: &dyn Fn(&mut String) -> Drawn| -> Result<(&'static str, String)> {
        let mut svg = String::new();
        draw(&mut svg).map_err(|e| Error::Output { place: name.into(), detail: e.to_string() })?;
        Ok((name, svg))
    };
    if findings.success_by_batch.iter().any(|line| !line.points.is_empty()) {
        figures.push(named("success.svg", &|svg| success(svg, findings))?);
    }
    if !findings.steps.is_empty() {
        figures.push(named("steps.svg", &|svg| steps(svg, findings))?);
    }
    Ok(figures)
}

fn title(findings: &Findings, images: usize) -> String {
    let i = &findings.identity;
    format!("{}, eps {}, {images} images", i.model.arch, i.config.eps.text)
}

fn success(svg: &mut String, findings: &Findings) -> Drawn {
    let lines: Vec<&Line> = findings.success_by_batch.iter().collect();
    let longest = lines.iter().map(|line| line.points.len()).max().unwrap_or(0);
    let right = (longest.max(2) - 1) as f64;
    let root = SVGBackend::with_string(svg, (1160, 620)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Targeted success against the size of the batch ({})", title(findings, findings.samples));
    let below = root.titled(&title, (FONT, 24))?;
    // Batches double from tick to tick.
    let mut chart = ChartBuilder::on(&below)
        .margin(22)
        .margin_right(330)
        .x_label_area_size(58)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..right, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_labels(longest)
        .x_label_formatter(&|x| format!("{}", 1_u64 << (x.round().max(0.0) as u32)))
        .y_labels(6)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("images in a batch")
        .y_desc("images that reach their target, %")
        .light_line_style(WHITE)
        .bold_line_style(INK.mix(0.12))
        .label_style((FONT, TEXT).into_font().color(&INK))
        .axis_desc_style((FONT, TEXT).into_font().color(&INK))
        .draw()?;
    let mut ends = Vec::new();
    for (line, colour) in lines.iter().zip(COLOURS) {
        let at = |i: usize| i as f64;
        let rate = |i: usize| 100.0 * line.points[i].successes as f64 / line.points[i].samples.max(1) as f64;
        let ends_of = |i: usize| interval(line.points[i].successes, line.points[i].samples);
        let n = line.points.len();
        let Some(last) = n.checked_sub(1) else { continue };
        let upper = (0..n).map(|i| (at(i), ends_of(i).1));
        let lower = (0..n).rev().map(|i| (at(i), ends_of(i).0));
        chart.draw_series(std::iter::once(Polygon::new(upper.chain(lower).collect::<Vec<_>>(), colour.mix(0.12))))?;
        let points = (0..n).map(|i| (at(i), rate(i)));
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(3)))?;
        chart.draw_series(points.map(|p| Circle::new(p, 5, colour.filled())))?;
        let text = format!("{}: {:.0} %", mechanism(&line.mechanism), rate(last));
        ends.push((chart.plotting_area().map_coordinate(&(at(last), rate(last))), text, colour));
    }
    let missing = lines.iter().filter_map(|line| line.missing.as_ref().map(|why| (line, why)));
    let missing: Vec<String> =
        missing.flat_map(|(line, why)| [format!("{}:", mechanism(&line.mechanism)), why.clone()]).collect();
    labels(&root, ends)?;
    // Below the names of the lines, a line for what is missing and one for why.
    for (i, text) in missing.iter().enumerate() {
        root.draw(&Text::new(text.clone(), (842, 568 + 22 * i as i32), (FONT, 17).into_font().color(&INK)))?;
    }
    root.present()?;
    Ok(())
}

/// Words at the ends of lines, moved apart where they would lie on each other.
fn labels(root: &DrawingArea<SVGBackend<'_>, Shift>, mut ends: Vec<((i32, i32), String, RGBColor)>) -> Drawn {
    const APART: i32 = 26;
    ends.sort_by_key(|((_, y), ..)| *y);
    let mut lowest = i32::MIN;
    for ((_, y), ..) in &mut ends {
        *y = (*y).max(lowest.saturating_add(APART));
        lowest = *y;
    }
    // What was pushed below the picture goes up again.
    let (_, height) = root.dim_in_pixel();
    let mut highest = height as i32 - 82;
    for ((_, y), ..) in ends.iter_mut().rev() {
        *y = (*y).min(highest);
        highest = *y - APART;
    }
    for ((x, y), text, colour) in ends {
        root.draw(&Text::new(text, (x + 12, y - 9), (FONT, TEXT).into_font().color(&colour)))?;
    }
    Ok(())
}

fn steps(svg: &mut String, findings: &Findings) -> Drawn {
    let root = SVGBackend::with_string(svg, (1160, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("How the iterative attack converges ({})", title(findings, findings.samples.min(WATCHED)));
    let root = root.titled(&title, (FONT, 24))?;
    let curves = &findings.steps;
    let right = curves.iter().map(|c| c.loss.len()).max().unwrap_or(2).max(2) as f64 - 1.0;
    let top = curves.iter().flat_map(|c| &c.loss).copied().fold(0.1, f64::max) * 1.05;
    let panels = root.split_evenly((1, 2));
    let loss = |c: &Curve| c.loss.clone();
    let success = |c: &Curve| c.success_rate.iter().map(|r| 100.0 * r).collect::<Vec<f64>>();
    type Values<'a> = &'a dyn Fn(&Curve) -> Vec<f64>;
    let parts: [(&str, f64, Values<'_>); 2] =
        [("mean loss on the targets", top, &loss), ("images that reach their target, %", 100.0, &success)];
    for ((what, top, values), panel) in parts.into_iter().zip(panels) {
        let mut chart = ChartBuilder::on(&panel)
            .margin(18)
            .x_label_area_size(58)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..right, 0.0..top)?;
        chart
            .configure_mesh()
            .x_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_labels(6)
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_desc("iteration")
            .y_desc(what)
            .light_line_style(WHITE)
            .bold_line_style(INK.mix(0.12))
            .label_style((FONT, TEXT).into_font().color(&INK))
            .axis_desc_style((FONT, TEXT).into_font().color(&INK))
            .draw()?;
        for (curve, colour) in curves.iter().zip(COLOURS) {
            let points: Vec<(f64, f64)> = values(curve).into_iter().enumerate().map(|(t, v)| (t as f64, v)).collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(3)))?
                .label(curve.schedule.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 24, y)], colour.stroke_width(3)));
            chart.draw_series(points.into_iter().map(|p| Circle::new(p, 5, colour.filled())))?;
        }
        let place =
            if what.starts_with("mean") { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::LowerRight };
        chart
            .configure_series_labels()
            .label_font((FONT, 18).into_font().color(&INK))
            .legend_area_size(32)
            .position(place)
            .background_style(WHITE.mix(0.85))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
