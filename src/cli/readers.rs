//! Readers of files that only the program knows, for tests that feed them anything. No promise goes with them.

use super::{bench, tune};
use crate::data;
use crate::error::Result;
use crate::plan::Tuning;
use std::path::Path;

/// Reads a baseline of `signstep bench`, and holds it against itself.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data) for anything else; [`Error::Usage`](crate::Error::Usage) where it has no rows.
pub fn baseline(path: &Path) -> Result<()> {
    bench::read_baseline(path)
}

/// What a file of tiles says for the device `key`; nothing where it is damaged or for another one.
pub fn tuning(path: &Path, key: &str) -> Tuning {
    tune::kept(path, key).unwrap_or_default()
}

/// A file of tiles with its checksum.
pub fn sealed(key: &str, tiles: &str) -> String {
    format!("{key}\n{}\n{tiles}", data::sha256([tiles.as_bytes()]))
}
