//! Readers of files that only the program knows, for tests that feed them anything. No promise goes with them.

use super::{bench, cache};
use crate::error::Result;
use crate::habits::Answers;
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
    cache::kept(path, key).unwrap_or_default()
}

/// What a file says that the device `key` answered; `None` where it is damaged, for another one, or not to be believed.
pub fn answers(path: &Path, key: &str) -> Option<Answers> {
    cache::kept(path, key)
}

/// A file of either kind with its checksum.
pub fn sealed(key: &str, rest: &str) -> String {
    cache::sealed(key, rest)
}
