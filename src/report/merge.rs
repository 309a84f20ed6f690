//! Shards of one run, made into the run that was never divided.

use super::config::differences;
use super::folder::{REPORT, TENSORS};
use super::recount::disagreement;
use super::tensors::{is_intact, slots};
use super::{Device, Figures, Folder, Identity, Opened, Report, TensorFile, Timing};
use crate::error::{Error, Result};
use crate::model::Dims;
use std::path::{Path, PathBuf};

/// What is read of a shard.
pub(crate) const MERGED: [&str; 2] = [REPORT, TENSORS];

/// Joins the complete folders of all shards of one run, in any order, into the folder `out`: the same bytes as those of
/// the run without shards, but for times, devices and paths. Shards may come from several devices; the report lists
/// them. Gives the names of what was written, none where `out` was complete already.
///
/// # Errors
/// [`Error::Data`] naming a folder that is no complete shard, is damaged, is of another run, or whose report says
/// another thing than its tensors, and a shard that is missing or there twice; [`Error::Output`] as [`Folder::open`].
pub fn merge(folders: &[PathBuf], out: &Path, fresh: bool) -> Result<(Report, Vec<&'static str>)> {
    let mut shards = folders.iter().map(|f| Ok((f.as_path(), read(f)?))).collect::<Result<Vec<_>>>()?;
    shards.sort_by_key(|(_, report)| report.identity.shard.map(|s| s.index));
    let Some((first_folder, first)) = shards.first() else { return Err(Error::Usage("no folders to merge".into())) };
    let (whole, shape) = (unsharded(first), shape(first_folder)?);
    let count = first.identity.shard.map_or(0, |s| s.count);
    for (folder, report) in &shards {
        let differ = differences(&whole.key(None), &unsharded(report).key(None));
        let other_count = report.identity.shard.is_none_or(|s| s.count != count);
        if !differ.is_empty() || other_count || self::shape(folder)? != shape {
            let differ =
                if differ.is_empty() { "the number of shards or their shape".into() } else { differ.join(", ") };
            let detail = format!("is of another run than {}: {differ}", first_folder.display());
            return Err(Error::data(folder.display().to_string(), detail));
        }
    }
    for index in 0..count {
        let same: Vec<String> = shards
            .iter()
            .filter(|(_, r)| r.identity.shard.is_some_and(|s| s.index == index))
            .map(|(folder, _)| folder.display().to_string())
            .collect();
        match &same[..] {
            [_] => {}
            [] => return Err(Error::data(format!("shard {index} of {count}"), "is missing")),
            _ => {
                return Err(Error::data(
                    format!("shard {index} of {count}"),
                    format!("is there twice: {}", same.join(", ")),
                ));
            }
        }
    }
    for (folder, report) in &shards {
        intact(folder, report)?;
        agrees(folder, report, shape)?;
    }

    let mut devices: Vec<Device> = Vec::new();
    for device in shards.iter().flat_map(|(_, r)| r.all_devices()) {
        if !devices.contains(device) {
            devices.push(device.clone());
        }
    }
    let figures = shards.iter().fold(Figures::default(), |sum, (_, r)| sum.plus(r.figures()));
    let samples = figures.whole.samples;
    let timing = shards.iter().fold(Timing::default(), |sum, (_, r)| sum.plus(r.timing, samples));
    let gpu_bytes = shards.iter().filter_map(|(_, r)| r.gpu_bytes).max();
    let files: Vec<PathBuf> = shards.iter().map(|(folder, _)| folder.join(TENSORS)).collect();
    let (dims, classes) = shape;
    match Folder::open(out, whole.clone(), devices[0].clone(), dims, classes, fresh)? {
        Opened::Complete(report) => Ok((*report, Vec::new())),
        Opened::Ready(folder) => folder.complete(&files, Report::new(whole, figures, devices, timing, gpu_bytes)),
    }
}

/// The report of a folder that holds a complete shard.
fn read(folder: &Path) -> Result<Report> {
    let fail = |detail: &str| Err(Error::data(folder.display().to_string(), detail));
    if !folder.join(REPORT).exists() {
        return fail(if folder.join("parts").exists() {
            "this shard has not ended; the command that began it goes on with it"
        } else {
            "holds no report.json: not the folder of a run"
        });
    }
    let report = Report::read(&folder.join(REPORT))?;
    if report.identity.shard.is_none() {
        return fail("holds a whole run, not a shard (--shard I/N)");
    }
    let rows = TensorFile::open(&folder.join(TENSORS))?.shape("clean").and_then(|shape| shape.first().copied());
    if rows != report.statistics.samples.checked_mul(report.identity.config.rows_each()) {
        return fail("its report does not count what its tensors hold");
    }
    Ok(report)
}

fn unsharded(report: &Report) -> Identity {
    Identity { shard: None, ..report.identity.clone() }
}

/// Shape of an image, and the number of logits.
fn shape(folder: &Path) -> Result<(Dims, usize)> {
    let path = folder.join(TENSORS);
    let file = TensorFile::open(&path)?;
    match (file.shape("clean"), file.shape("clean_logits")) {
        (Some(&[_, c, h, w]), Some(&[_, classes])) => Ok((Dims::new(c, h, w), classes)),
        _ => Err(Error::data(path.display().to_string(), "not the tensors of a run")),
    }
}

/// Checks that the tensors are those that the report was written for.
fn intact(folder: &Path, report: &Report) -> Result<()> {
    let path = folder.join(TENSORS);
    let fail = |detail: String| Error::data(path.display().to_string(), detail);
    match is_intact(&path, report.files.get(TENSORS)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(fail("is not the file that its report was written for".into())),
        Err(e) => Err(fail(e.to_string())),
    }
}

/// Checks that the report says what the tensors come to, as far as that can be counted.
fn agrees(folder: &Path, report: &Report, (dims, classes): (Dims, usize)) -> Result<()> {
    let fail = |detail: String| Err(Error::data(folder.display().to_string(), detail));
    let mut tensors = TensorFile::open(&folder.join(TENSORS))?;
    let mut found = tensors.slots();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if classes == 0 || found != slots(report.statistics.samples, dims, classes, &report.identity.config) {
        return fail("its tensors are not those of such a run".into());
    }
    disagreement(report, &mut tensors, classes)?.map_or(Ok(()), fail)
}
