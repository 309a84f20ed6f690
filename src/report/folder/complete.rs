//! A complete folder: what it has to hold, and what of that is there.

use super::disk::output;
use super::names::{CURVE, IMAGES, MARKDOWN, REPORT, SAMPLES, SHARED, SHEET, TENSORS};
use crate::error::Result;
use crate::report::Report;
use crate::report::tensors::{TensorFile, is_intact};
use std::fs;
use std::path::Path;

/// Names of what is made from the tensors and the report of a run on images of so many channels.
pub(super) fn derived(report: &Report, channels: usize) -> Vec<&'static str> {
    let has_images = report.identity.config.delivers_bytes() && matches!(channels, 1 | 3);
    let seldom = [(!report.eps.is_empty(), CURVE), (has_images, IMAGES)];
    let seldom = seldom.into_iter().filter_map(|(is_made, name)| is_made.then_some(name));
    [SAMPLES, SHEET].into_iter().chain(seldom).chain([MARKDOWN]).collect()
}

/// What a complete folder lacks of what was made from its tensors. `images/` counts as lacking where pictures are.
pub fn missing(path: &Path, report: &Report) -> Vec<&'static str> {
    let tensors = TensorFile::open(&path.join(TENSORS)).ok();
    let side =
        |axis: usize| tensors.as_ref().and_then(|file| file.shape("adversarial")?.get(axis).copied()).unwrap_or(0);
    let (rows, channels) = (side(0), side(1));
    let pictures = || fs::read_dir(path.join(IMAGES)).map_or(0, Iterator::count);
    let lacks = |name: &&str| path.join(name).symlink_metadata().is_err() || (*name == IMAGES && pictures() < rows);
    derived(report, channels).into_iter().filter(lacks).collect()
}

/// Whether all tensors are there that a report was written for, to the bit.
pub(super) fn holds_tensors(path: &Path, report: &Report) -> Result<bool> {
    let names: Vec<&str> = match report.files.get(SHARED) {
        Some(_) => vec![TENSORS, SHARED],
        None => vec![TENSORS],
    };
    if names.iter().any(|name| path.join(name).symlink_metadata().is_err()) {
        return Ok(false);
    }
    for name in names {
        let place = path.join(name);
        if !is_intact(&place, report.files.get(name)).map_err(|e| output(&place, e))? {
            return Err(output(&place, format!("is not the file that {REPORT} was written for; --fresh runs it anew")));
        }
    }
    Ok(true)
}
