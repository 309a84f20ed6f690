//! Files: locked against other processes, swept away, removed, and named in errors.

use super::names::{LOCK, MANIFEST};
use crate::error::{Error, Result};
use crate::report::pictures::is_named;
use std::fs::{self, File};
use std::path::Path;

/// The lock is the system's: it goes with the process, however that ends.
pub(super) fn lock(path: &Path) -> Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(|e| output(path, e))?;
    match fs4::FileExt::try_lock(&file) {
        Err(fs4::TryLockError::WouldBlock) => Err(output(path, "another process is writing to this folder")),
        // Not every file system has locks; without one the user must see to it.
        _ => Ok(file),
    }
}

/// Removes the folder of parts, `run.json` last of its files: as long as anything is there, it says what.
pub(super) fn sweep(parts: &Path) {
    // Without it only what a process leaves that could not even write it.
    if !parts.join(MANIFEST).exists() && !is_barely_begun(parts) {
        return;
    }
    let entries = fs::read_dir(parts).into_iter().flatten().flatten().map(|e| e.path());
    for path in entries.filter(|p| !p.ends_with(MANIFEST)) {
        let _ = remove(&path);
    }
    let _ = fs::remove_file(parts.join(MANIFEST));
    let _ = fs::remove_dir(parts);
}

/// True when the folder of parts is not there, or a process was killed before it had written the manifest.
pub(super) fn is_barely_begun(parts: &Path) -> bool {
    let temporary = format!(".{MANIFEST}.");
    match fs::read_dir(parts) {
        Ok(entries) => entries.flatten().all(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name == LOCK || name.starts_with(&temporary)
        }),
        Err(_) => parts.symlink_metadata().is_err(),
    }
}

/// What systems leave in folders that somebody looks into.
const LITTER: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];

/// What lies in a folder of pictures and is none of a run's.
pub(super) fn foreign_picture(images: &Path) -> Option<String> {
    let entries = fs::read_dir(images).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        ((!is_named(&name) && !LITTER.contains(&&*name)) || entry.path().is_dir()).then_some(name)
    };
    entries.filter_map(name).min()
}

/// Removes a file or a folder; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<()> {
    let Ok(facts) = path.symlink_metadata() else { return Ok(()) };
    if facts.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(|e| output(path, e))
}

pub(super) fn foreign(path: &Path, why: &dyn std::fmt::Display) -> Error {
    output(path, format!("holds files that are no run of this program ({why}); choose another folder with --out"))
}

pub(super) fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}
