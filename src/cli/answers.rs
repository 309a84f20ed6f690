//! What an adapter answered when it was asked about its habits, kept for the next start of the program: a file for each
//! adapter and driver beside the tunings. Whatever is wrong with it, the adapter is asked again, and nobody need hear
//! of it.

use super::cache::{folder, kept, replace, sealed};
use crate::error::Result;
use crate::habits::Answers;
use crate::{Gpu, kernel, tune};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// The file of a device, and what it holds for: the device, and this very program, for the libraries in it turn shaders
/// into what drivers run. None where there is no folder, or the program cannot be told from another.
fn file(gpu: &Gpu) -> Option<(PathBuf, String)> {
    let device = tune::key(gpu);
    let program = std::env::current_exe().and_then(std::fs::metadata).ok()?;
    let built = program.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let key = format!("{device}, program of {} bytes, {built}", program.len());
    Some((folder()?.join(format!("habits-{:016x}.txt", kernel::hash(device.as_bytes()))), key))
}

/// Sees to it that a device's answers are known: kept ones, or else it is asked.
pub(super) fn known(gpu: &Gpu) -> Result<()> {
    let kept: Option<Answers> = file(gpu).and_then(|(path, key)| kept(&path, &key));
    if kept.is_some_and(|answers| answers.recall(gpu)) { Ok(()) } else { ask(gpu) }
}

/// Asks a device, and keeps what it answers. That nothing can be written is no error: it is asked again.
pub(super) fn ask(gpu: &Gpu) -> Result<()> {
    let answers = Answers::of(gpu)?;
    if let Some((path, key)) = file(gpu) {
        let _ = replace(&path, sealed(&key, &answers.to_string()).as_bytes());
    }
    Ok(())
}
