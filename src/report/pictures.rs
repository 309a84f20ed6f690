//! Pictures of a run: every delivered image, and the contact sheet.

use super::tensors::{Rows, TensorFile};
use super::{Report, sheet};
use crate::error::{Error, Result};
use crate::model::Dims;
use image::{GrayImage, RgbImage};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Pixels that are read at once.
const BLOCK: usize = 1 << 22;

/// Writes the delivered images of `ids`, each named by its index in the whole data set, and by the place of its radius
/// where a sample has `each` rows.
pub(super) fn images(
    folder: &Path,
    tensors: &mut TensorFile,
    ids: Range<usize>,
    dims: Dims,
    each: usize,
) -> Result<()> {
    fs::create_dir(folder).map_err(|e| fail(folder, &e))?;
    let one = dims.len().max(1);
    let block = (BLOCK / one).max(1);
    let all = ids.len() * each;
    for start in (0..all).step_by(block) {
        let pixels = tensors.f32("adversarial", start..(start + block).min(all))?;
        for (i, image) in pixels.chunks_exact(one).enumerate() {
            let (id, radius) = (ids.start + (start + i) / each, (start + i) % each);
            let name = if each == 1 { format!("{id:06}.png") } else { format!("{id:06}-{radius}.png") };
            let path = folder.join(name);
            let byte = |c: usize, x: u32, y: u32| {
                let at = (c * dims.h + y as usize) * dims.w + x as usize;
                (image[at] * 255.0).round() as u8
            };
            let (w, h) = (dims.w as u32, dims.h as u32);
            let saved = if dims.c == 1 {
                GrayImage::from_fn(w, h, |x, y| image::Luma([byte(0, x, y)])).save(&path)
            } else {
                RgbImage::from_fn(w, h, |x, y| image::Rgb([byte(0, x, y), byte(1, x, y), byte(2, x, y)])).save(&path)
            };
            saved.map_err(|e| fail(&path, &e))?;
        }
    }
    Ok(())
}

/// Whether a picture of a run has this name.
pub(super) fn is_named(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some(stem) = name.strip_suffix(".png") else { return false };
    let (id, radius) = stem.split_once('-').unwrap_or((stem, "0"));
    id.len() >= 6 && number(id) && number(radius)
}

/// Writes the contact sheet, of the largest radius where there are several.
pub(super) fn sheet(
    path: &Path,
    report: &Report,
    tensors: &mut TensorFile,
    ids: Range<usize>,
    dims: Dims,
) -> Result<()> {
    let (each, largest) = (report.identity.config.rows_each(), report.identity.config.largest());
    let all = 0..ids.len() * each;
    let attacked = strided(&tensors.flags("attacked", all.clone())?, largest, each);
    let success = strided(&tensors.flags("success", all.clone())?, largest, each);
    let labels = strided(&tensors.i64("labels", all)?, largest, each);
    let chosen = sheet::choose(&attacked, &success, &labels);
    let mut rows = Rows::read(tensors, &chosen.iter().map(|i| i * each + largest).collect::<Vec<_>>())?;
    rows.index = chosen;
    sheet::sheet(report, &rows, ids.start, dims).save(path).map_err(|e| fail(path, &e))
}

/// Every `each`-th value, from `first` on.
fn strided<T: Copy>(values: &[T], first: usize, each: usize) -> Vec<T> {
    values.iter().skip(first).step_by(each).copied().collect()
}

fn fail(path: &Path, detail: &dyn std::fmt::Display) -> Error {
    Error::Output { place: path.display().to_string(), detail: detail.to_string() }
}
