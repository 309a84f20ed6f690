//! The folder for what can be found out again (tunings, what adapters answered, pipelines where they are kept), and the
//! files of text in it: what a file holds for in its first line, then the checksum of the rest, then the rest. A file
//! that holds for something else, or that is broken, is as good as none.

use crate::data;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Largest file of text that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Where it is: `SIGNSTEP_CACHE`, else the folder for such things on this system.
pub(super) fn folder() -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home =
        || dir("HOME").map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }));
    dir("SIGNSTEP_CACHE").or_else(|| {
        let caches = if cfg!(windows) { dir("LOCALAPPDATA") } else { dir("XDG_CACHE_HOME").or_else(home) };
        Some(caches?.join("signstep"))
    })
}

/// Puts a file in its place whole.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes, |part| std::fs::rename(part, path))
}

/// Whether [`replace`] would do; a file that is there already must be one that can be read, for what it holds is kept.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    beside(path, b"", |part| {
        std::fs::remove_file(part)?;
        match path.symlink_metadata() {
            Ok(there) if there.is_file() => std::fs::File::open(path).map(drop),
            Ok(_) => Err(std::io::Error::other("not a file")),
            Err(_) => Ok(()),
        }
    })
}

/// Writes beside a path; what is still there where `then` fails goes.
fn beside(path: &Path, bytes: &[u8], then: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let written = std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| then(&part));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&part);
        Error::Output { place: path.display().to_string(), detail: e.to_string() }
    })
}

/// What a file of text keeps for `key`.
pub(super) fn kept<T: FromStr>(path: &Path, key: &str) -> Option<T> {
    let text = String::from_utf8(data::read(path, MAX_BYTES).ok()?).ok()?;
    let (_, rest) = text.split_once('\n').filter(|(first, _)| *first == key)?;
    let (sum, rest) = rest.split_once('\n')?;
    (data::sha256([rest.as_bytes()]) == sum).then(|| rest.parse().ok())?
}

/// A file of text with its checksum.
pub(super) fn sealed(key: &str, rest: &str) -> String {
    format!("{key}\n{}\n{rest}", data::sha256([rest.as_bytes()]))
}
