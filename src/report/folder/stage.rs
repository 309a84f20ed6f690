//! The files of a complete folder, made out of sight and then moved into it.

use super::complete::derived;
use super::disk::{output, remove};
use super::names::{CURVE, IMAGES, MARKDOWN, REPORT, SAMPLES, SHARED, SHEET, TENSORS};
use super::run::Run;
use crate::attack::Perturbation;
use crate::data::{View, sha256, write_file, write_safetensors};
use crate::error::{Error, Result};
use crate::report::tensors::{TensorFile, join, slots};
use crate::report::{Report, curve, pictures, samples, table};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes all files of the folder from `files`, which hold the samples of the run in order, in `staging`, where nobody
/// looks for them; gives the report, which now knows their hashes, and their names, the report's last.
pub(super) fn stage(
    staging: &Path,
    files: &[PathBuf],
    mut report: Report,
    shared: Option<&Perturbation>,
    run: &Run,
) -> Result<(Report, Vec<&'static str>)> {
    let range = report.identity.range();
    let samples = report.statistics.samples;
    if samples != range.len() {
        return Err(Error::Internal(format!("{samples} of {} samples were attacked", range.len())));
    }
    fs::create_dir(staging).map_err(|e| output(staging, e))?;
    let tensors = staging.join(TENSORS);
    let slots = slots(range.len(), run.dims, run.classes, &report.identity.config);
    report.files.insert(TENSORS.to_string(), join(&tensors, files, &slots)?);

    let mut tensors = TensorFile::open(&tensors)?;
    samples::write(&staging.join(SAMPLES), &mut tensors, range.clone(), &report.identity.config)?;
    pictures::sheet(&staging.join(SHEET), &report, &mut tensors, range.clone(), run.dims)?;
    let mut names = vec![TENSORS];
    if let Some(perturbation) = shared {
        let path = staging.join(SHARED);
        let view = View::f32(&[run.dims.c, run.dims.h, run.dims.w], &perturbation.values);
        write_safetensors(&path, &[("perturbation", view)], &BTreeMap::new())?;
        let bytes = fs::read(&path).map_err(|e| output(&path, e))?;
        report.files.insert(SHARED.to_string(), sha256([&bytes[..]]));
        names.push(SHARED);
    }
    let derived = derived(&report, run.dims.c);
    if derived.contains(&CURVE) {
        curve::write(&staging.join(CURVE), &report)?;
    }
    if derived.contains(&IMAGES) {
        pictures::images(&staging.join(IMAGES), &mut tensors, range, run.dims, report.identity.config.rows_each())?;
    }
    write_file(&staging.join(MARKDOWN), format!("{}\n", table::markdown(&report)).as_bytes())?;
    write_file(&staging.join(REPORT), format!("{}\n", report.json()).as_bytes())?;
    names.extend(derived);
    names.push(REPORT);
    Ok((report, names))
}

/// Moves what was staged into the folder, one after the other.
pub(super) fn publish(staging: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let (from, to) = (staging.join(name), folder.join(name));
        // What an interrupted process had moved already; the parts are still there to make it from.
        remove(&to)?;
        fs::rename(&from, &to).map_err(|e| output(&to, e))?;
    }
    Ok(())
}
