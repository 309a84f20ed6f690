//! `curve.svg`: robust accuracy against eps, of what is delivered with its interval, and in float.

use super::Report;
use super::radii::EpsRow;
use crate::data::write_file;
use crate::error::{Error, Result};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (720, 440);
const DELIVERED: RGBColor = RGBColor(26, 99, 175);
const FLOAT: RGBColor = RGBColor(190, 90, 20);
const FONT: &str = "sans-serif";

/// Draws the radii of a report, of which there are several.
pub(super) fn write(path: &Path, report: &Report) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, report).map_err(|e| Error::Output { place: path.display().to_string(), detail: e.to_string() })?;
    write_file(path, svg.as_bytes())
}

fn draw(svg: &mut String, report: &Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let config = &report.identity.config;
    // In grey levels where distances were written so.
    let in_levels = report.eps.iter().all(|row| row.eps.text.ends_with("/255") || row.eps.value == 0.0);
    let unit = if in_levels { 255.0 } else { 1.0 };
    let mut rows: Vec<&EpsRow> = report.eps.iter().collect();
    rows.sort_by(|a, b| a.eps.value.total_cmp(&b.eps.value));
    let x = |row: &EpsRow| row.eps.value * unit;
    let right = rows.last().map_or(1.0, |row| x(row)).max(1e-9);

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}, {} ({})", report.identity.model.arch, config.method.name(), config.norm.name());
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc(if in_levels { "eps (grey levels of 255)" } else { "eps" })
        .y_desc("robust accuracy, %")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .draw()?;

    let ends = |row: &EpsRow| row.robust_accuracy_95.unwrap_or((0.0, 1.0));
    let upper = rows.iter().map(|row| (x(row), 100.0 * ends(row).1));
    let lower = rows.iter().rev().map(|row| (x(row), 100.0 * ends(row).0));
    let band: Vec<(f64, f64)> = upper.chain(lower).collect();
    chart.draw_series(std::iter::once(Polygon::new(band, DELIVERED.mix(0.15))))?;
    let delivered: Vec<(f64, f64)> =
        rows.iter().map(|row| (x(row), 100.0 * row.statistics.robust_accuracy().unwrap_or(0.0))).collect();
    let float: Vec<(f64, f64)> =
        rows.iter().map(|row| (x(row), 100.0 * row.statistics.robust_accuracy_float().unwrap_or(0.0))).collect();
    let what = if config.delivers_bytes() { "8 bit, with 95 % interval" } else { "delivered, with 95 % interval" };
    // Wider below, to be seen where both are the same.
    for (points, colour, width, label) in [(float, FLOAT, 6, "float"), (delivered, DELIVERED, 2, what)] {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(width)).point_size(3))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .label_font((FONT, 13))
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
