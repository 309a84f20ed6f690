//! The contact sheet: a handful of samples, each clean | perturbation | adversarial, with what the network says of
//! them.

use super::Report;
use super::table::{headline, percent};
use super::tensors::Rows;
use crate::attack::argmax;
use crate::model::Dims;
use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Samples on a sheet.
const SAMPLES: usize = 12;
/// Cards side by side.
const COLUMNS: usize = 3;
/// Side that a picture is brought to, in whole multiples of its pixels.
const SIDE: usize = 128;
const MARGIN: usize = 32;
const GAP: usize = 8;
const FRAME: usize = 4;
const TITLE: usize = 24;
const LINE: usize = 16;

const PAPER: Rgb<u8> = Rgb([250, 250, 247]);
const INK: Rgb<u8> = Rgb([38, 38, 38]);
const FAINT: Rgb<u8> = Rgb([118, 118, 118]);
const GREEN: Rgb<u8> = Rgb([26, 127, 55]);
const RED: Rgb<u8> = Rgb([190, 48, 40]);
const GREY: Rgb<u8> = Rgb([200, 200, 196]);

/// A contact sheet of the samples that [`choose`] chose. `first` is the index of the run's first sample in the whole
/// data set.
pub(super) fn sheet(report: &Report, rows: &Rows, first: usize, dims: Dims) -> RgbImage {
    let samples = rows.index.len();
    let panels = Panels::new(report, rows);
    let (side_w, side_h) = panels.size(dims);
    let columns = COLUMNS.min(samples).max(1);
    let card_w = 3 * side_w + 2 * GAP;
    let card_h = side_h + GAP / 2 + LINE;
    let top = MARGIN + TITLE + 2 * (LINE + GAP) + 2 * GAP + LINE + GAP;
    let lines_of_cards = samples.div_ceil(columns);
    let gutter = MARGIN;
    let lines = [
        format!("{}: {}", report.identity.model.arch, headline(report)),
        summary(report),
        "clean | perturbation | adversarial".to_string(),
    ];
    let text_w = (lines[0].chars().count() * advance(TITLE, FontWeight::Bold))
        .max((lines[1].chars().count() + 24) * advance(LINE, FontWeight::Regular));
    let width = (columns * card_w + (columns - 1) * gutter).max(text_w) + 2 * MARGIN;
    let height = top + lines_of_cards * card_h + lines_of_cards.saturating_sub(1) * (gutter / 2) + MARGIN;
    let mut page = Page(RgbImage::from_pixel(width as u32, height as u32, PAPER));

    let mut y = MARGIN;
    page.text(MARGIN, y, TITLE, FontWeight::Bold, INK, &lines[0]);
    y += TITLE + GAP;
    let end = page.text(MARGIN, y, LINE, FontWeight::Regular, INK, &lines[1]);
    let mut x = end + 3 * GAP;
    for (colour, word) in [(GREEN, "success"), (RED, "held")] {
        page.fill(x, y + 4, 9, 9, colour);
        x = page.text(x + 14, y, LINE, FontWeight::Regular, INK, word) + 2 * GAP;
    }
    y += LINE + GAP;
    let scale = format!(
        "perturbations are drawn {} times as strong, grey is no change; under each picture: what the network sees, how sure it is",
        short(panels.gain)
    );
    let fits = (width - 2 * MARGIN) / advance(LINE, FontWeight::Regular);
    page.text(MARGIN, y, LINE, FontWeight::Regular, FAINT, &cut(&scale, fits));
    for column in 0..columns {
        let x = MARGIN + column * (card_w + gutter);
        for (i, word) in ["clean", "perturbation", "adversarial"].into_iter().enumerate() {
            let x = x + i * (side_w + GAP);
            page.text(
                x,
                top - LINE - FRAME - 3,
                LINE,
                FontWeight::Bold,
                FAINT,
                &cut(word, side_w / advance(LINE, FontWeight::Bold)),
            );
        }
    }
    for sample in 0..samples {
        let x = MARGIN + sample % columns * (card_w + gutter);
        let y = top + sample / columns * (card_h + gutter / 2);
        card(&mut page, &Card { report, rows, first, dims, panels: &panels, sample }, (x, y));
    }
    page.0
}

/// What a card is drawn from.
struct Card<'a> {
    report: &'a Report,
    rows: &'a Rows,
    first: usize,
    dims: Dims,
    panels: &'a Panels,
    /// Which of the rows.
    sample: usize,
}

/// One sample: three pictures, three captions, a frame around the third.
fn card(page: &mut Page, card: &Card<'_>, (x, y): (usize, usize)) {
    let Card { report, rows: o, first, dims, panels, sample } = *card;
    let run = &report.identity;
    let len = dims.len();
    let clean = &o.clean[sample * len..][..len];
    let adversarial = &o.adversarial[sample * len..][..len];
    let (w, h) = panels.size(dims);
    let at = |i: usize| x + i * (w + GAP);
    panels.draw(page, dims, (at(0), y), |i| panels.tone(clean[i]));
    panels.draw(page, dims, (at(1), y), |i| 0.5 + (adversarial[i] - clean[i]) * panels.unit * panels.gain);
    panels.draw(page, dims, (at(2), y), |i| panels.tone(adversarial[i]));
    let colour = match (o.attacked[sample], o.success[sample]) {
        (false, _) => GREY,
        (true, true) => GREEN,
        (true, false) => RED,
    };
    page.frame(at(2), y, w, h, colour);

    let k = o.clean_logits.len() / o.index.len().max(1);
    let says = |logits: &[f32]| {
        let z = &logits[sample * k..][..k];
        let best = argmax(z);
        let sum: f64 = z.iter().map(|v| f64::from(v - z[best]).exp()).sum();
        (best as i64, format!(" ({:.0}%)", 100.0 / sum))
    };
    let fits = w / advance(LINE, FontWeight::Regular);
    let caption = |(class, sure): &(i64, String)| {
        let name = cut(&run.class(*class), fits.saturating_sub(sure.chars().count()));
        format!("{name}{sure}")
    };
    let y = y + h + GAP / 2;
    let clean_says = says(&o.clean_logits);
    let right = clean_says.0 == o.labels[sample];
    page.text(at(0), y, LINE, FontWeight::Regular, if right { INK } else { FAINT }, &caption(&clean_says));
    let id = format!("#{}", first + o.index[sample]);
    let drawn = caption(&clean_says).chars().count() + id.len() + 1;
    if drawn <= fits {
        page.text(at(0) + w - id.len() * advance(LINE, FontWeight::Regular), y, LINE, FontWeight::Regular, GREY, &id);
    }
    page.text(at(1), y, LINE, FontWeight::Regular, FAINT, &cut(&aim(report, o, sample), fits));
    let colour = if o.attacked[sample] { colour } else { FAINT };
    page.text(at(2), y, LINE, FontWeight::Bold, colour, &caption(&says(&o.adversarial_logits)));
}

/// What a sample was aimed at, or why it counts for nothing.
fn aim(report: &Report, rows: &Rows, sample: usize) -> String {
    let (run, label, target) = (&report.identity, rows.labels[sample], rows.targets[sample]);
    match rows.attacked[sample] {
        true if target >= 0 => format!("to {}", run.class(target)),
        true => format!("not {}", run.class(label)),
        // Moved all the same.
        false if run.config.attack_all && target != label => "wrong already".into(),
        false => "not attacked".into(),
    }
}

fn summary(report: &Report) -> String {
    let s = &report.statistics;
    let verb = match report.identity.config.targets.as_str() {
        "none" | "file" => "turned",
        _ => "turned to their targets",
    };
    format!("{} of {} attacked images {verb} ({})", s.successes, s.attacked, percent(s.success_rate()))
}

/// Which samples to show, up to twelve: successes and failures mixed as they are in the whole run, but some of each
/// when there are any, of as many classes as possible, in order; the first samples when none was attacked.
pub(super) fn choose(attacked: &[bool], success: &[bool], labels: &[i64]) -> Vec<usize> {
    let n = labels.len();
    let of = |turned: bool| -> Vec<usize> { (0..n).filter(|&i| attacked[i] && success[i] == turned).collect() };
    let (turned, held) = (of(true), of(false));
    let all = turned.len() + held.len();
    if all == 0 {
        return (0..n.min(SAMPLES)).collect();
    }
    let n = SAMPLES.min(all);
    let share = (n as f64 * held.len() as f64 / all as f64).round() as usize;
    let least = usize::from(!held.is_empty());
    let most = n - usize::from(!turned.is_empty() && n > 1);
    let fails = share.clamp(least, most.max(least)).max(n.saturating_sub(turned.len())).min(held.len());
    let mut chosen = spread(&turned, labels, n - fails);
    chosen.extend(spread(&held, labels, fails));
    chosen.sort_unstable();
    chosen
}

/// The first `n` samples, none of a class a second time before every class was there once.
fn spread(samples: &[usize], labels: &[i64], n: usize) -> Vec<usize> {
    let mut chosen = Vec::new();
    let mut rest = samples.to_vec();
    while chosen.len() < n && !rest.is_empty() {
        let mut seen = Vec::new();
        rest.retain(|&i| {
            let take = chosen.len() < n && !seen.contains(&labels[i]);
            if take {
                seen.push(labels[i]);
                chosen.push(i);
            }
            !take
        });
    }
    chosen
}

/// How values become tones: the same for all pictures of a sheet.
struct Panels {
    /// Value that is drawn black.
    lo: f32,
    /// 1 / (white − black)
    unit: f32,
    /// How much stronger perturbations are drawn.
    gain: f32,
}

impl Panels {
    fn new(report: &Report, rows: &Rows) -> Self {
        let config = &report.identity.config;
        let shown = || rows.clean.iter().copied();
        let (lo, hi) = config
            .bounds
            .unwrap_or_else(|| shown().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), x| (lo.min(x), hi.max(x))));
        let unit = if hi > lo { 1.0 / (hi - lo) } else { 1.0 };
        // The largest perturbation shown becomes black or white; a little less than eps would say nothing of its size.
        let largest = rows.linf.iter().copied().fold(0.0, f32::max) * unit;
        let eps = config.effective_eps();
        let reach = if eps.is_finite() && eps > 0.0 { eps * unit } else { largest };
        let gain = if reach > 0.0 && reach.is_finite() { (0.5 / reach).max(1.0) } else { 1.0 };
        Panels { lo, unit, gain }
    }

    fn tone(&self, x: f32) -> f32 {
        (x - self.lo) * self.unit
    }

    /// Size of a picture in page pixels: enlarged or reduced by a whole number, so that pixels stay square and sharp.
    fn size(&self, dims: Dims) -> (usize, usize) {
        let (up, down) = zoom(dims);
        (dims.w.div_ceil(down) * up, dims.h.div_ceil(down) * up)
    }

    /// Draws a picture; `tone` gives the value at an index of the sample, 0 black and 1 white. One channel is grey,
    /// three are red, green, blue; of any other number the mean is shown.
    fn draw(&self, page: &mut Page, dims: Dims, (x, y): (usize, usize), tone: impl Fn(usize) -> f32) {
        let (up, down) = zoom(dims);
        let (w, h) = self.size(dims);
        let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0).round() as u8;
        for py in 0..h {
            for px in 0..w {
                let (row, column) = (py / up * down, px / up * down);
                let value = |c: usize| tone((c * dims.h + row) * dims.w + column);
                let colour = if dims.c == 3 {
                    Rgb([byte(value(0)), byte(value(1)), byte(value(2))])
                } else {
                    let grey = byte((0..dims.c).map(value).sum::<f32>() / dims.c.max(1) as f32);
                    Rgb([grey; 3])
                };
                page.set(x + px, y + py, colour);
            }
        }
    }
}

/// Factors by which a picture is enlarged and reduced.
fn zoom(dims: Dims) -> (usize, usize) {
    let side = dims.h.max(dims.w).max(1);
    ((SIDE / side).max(1), side.div_ceil(2 * SIDE))
}

struct Page(RgbImage);

impl Page {
    fn set(&mut self, x: usize, y: usize, colour: Rgb<u8>) {
        if let Some(pixel) = self.0.get_pixel_mut_checked(x as u32, y as u32) {
            *pixel = colour;
        }
    }

    fn fill(&mut self, x: usize, y: usize, w: usize, h: usize, colour: Rgb<u8>) {
        for py in y..y + h {
            for px in x..x + w {
                self.set(px, py, colour);
            }
        }
    }

    /// A frame just outside a picture.
    fn frame(&mut self, x: usize, y: usize, w: usize, h: usize, colour: Rgb<u8>) {
        let (x, y) = (x.saturating_sub(FRAME), y.saturating_sub(FRAME));
        let (w, h) = (w + 2 * FRAME, h + 2 * FRAME);
        self.fill(x, y, w, FRAME, colour);
        self.fill(x, y + h - FRAME, w, FRAME, colour);
        self.fill(x, y, FRAME, h, colour);
        self.fill(x + w - FRAME, y, FRAME, h, colour);
    }

    /// Writes a line and gives the x at which it ends. A character that the font lacks becomes a question mark.
    fn text(&mut self, x: usize, y: usize, size: usize, weight: FontWeight, ink: Rgb<u8>, text: &str) -> usize {
        let height = raster(size);
        let mut x = x;
        for c in text.chars() {
            let Some(glyph) = get_raster(c, weight, height).or_else(|| get_raster('?', weight, height)) else {
                continue;
            };
            for (row, line) in glyph.rows().enumerate() {
                for (column, &cover) in line.iter().enumerate() {
                    if let Some(p) = self.0.get_pixel_mut_checked((x + column) as u32, (y + row) as u32) {
                        let mix = |under: u8, over: u8| {
                            let cover = u32::from(cover);
                            ((u32::from(under) * (255 - cover) + u32::from(over) * cover + 127) / 255) as u8
                        };
                        *p = Rgb([mix(p[0], ink[0]), mix(p[1], ink[1]), mix(p[2], ink[2])]);
                    }
                }
            }
            x += glyph.width();
        }
        x
    }
}

fn raster(size: usize) -> RasterHeight {
    if size >= TITLE { RasterHeight::Size24 } else { RasterHeight::Size16 }
}

/// Width of a character.
fn advance(size: usize, weight: FontWeight) -> usize {
    get_raster_width(weight, raster(size))
}

/// The first `n` characters; a full stop at the end says that there were more.
fn cut(text: &str, n: usize) -> String {
    if text.chars().count() <= n {
        return text.to_string();
    }
    let mut short: String = text.chars().take(n.saturating_sub(1)).collect();
    if n > 0 {
        short.push('.');
    }
    short
}

/// A factor with one decimal, none when it has none.
fn short(x: f32) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::report;
    use super::super::statistics::tests::outcome;
    use super::*;

    /// All four samples of the outcome that statistics are tested on.
    fn rows(dims: Dims) -> Rows {
        let o = outcome(dims);
        Rows {
            index: vec![0, 1, 2, 3],
            clean: o.clean,
            adversarial: o.adversarial,
            labels: o.labels,
            targets: o.targets,
            clean_logits: o.clean_logits,
            adversarial_logits: o.adversarial_logits,
            attacked: o.attacked,
            success: o.success,
            linf: o.linf,
        }
    }

    #[test]
    fn any_size_and_number_of_channels_can_be_drawn() {
        for dims in [(1, 8, 8), (3, 32, 32), (3, 5, 7), (1, 1, 1), (3, 300, 200), (3, 600, 64), (2, 4, 4)] {
            let size = Dims::new(dims.0, dims.1, dims.2);
            let page = sheet(&report(), &rows(size), 0, size);
            assert!(page.width() > 300 && page.height() > 100, "{dims:?}");
            assert!(page.width() < 4000 && page.height() < 3000, "{dims:?}");
            let seen = |c: Rgb<u8>| page.pixels().any(|p| *p == c);
            assert!(seen(GREEN) && seen(RED), "{dims:?}: one success, two failures");
        }
    }

    #[test]
    fn a_sheet_mixes_successes_and_failures_and_keeps_their_order() {
        let o = outcome(Dims::new(1, 2, 2));
        assert_eq!(choose(&o.attacked, &o.success, &o.labels), [0, 1, 3]);
        assert_eq!(choose(&[false; 20], &[false; 20], &[0; 20]).len(), SAMPLES);
        assert_eq!(spread(&[0, 1, 2, 3, 4], &[5, 5, 6, 5, 7], 4), [0, 2, 4, 1]);
    }

    #[test]
    fn a_sample_that_was_moved_is_not_told_as_left_alone() {
        let (mut report, mut rows) = (report(), rows(Dims::new(1, 2, 2)));
        (rows.attacked, rows.labels, rows.targets) = (vec![true, true, false, false], vec![0; 4], vec![1, -1, 1, 0]);
        let told = |report: &Report| [0, 1, 2, 3].map(|sample| aim(report, &rows, sample));
        assert_eq!(told(&report), ["to dog", "not cat", "not attacked", "not attacked"]);
        report.identity.config.attack_all = true;
        assert_eq!(told(&report), ["to dog", "not cat", "wrong already", "not attacked"]);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(cut("automobile", 5), "auto.");
        assert_eq!(cut("cat", 5), "cat");
        assert_eq!(cut("cat", 0), "");
        assert_eq!(short(2.0), "2");
        assert_eq!(short(1.68), "1.7");
    }
}
