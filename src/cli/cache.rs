//! The folder for what can be found out again: tunings, and pipelines where they are kept.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

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
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let written = std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&part);
        Error::Output { place: path.display().to_string(), detail: e.to_string() }
    })
}
