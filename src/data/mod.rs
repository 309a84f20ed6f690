//! Data sets in, tensors out. The only part of the library that touches files; each file here knows one format.
//!
//! Files are read into memory and checked before anything is allocated from what they claim. Errors name the file and the
//! record or sample.

mod cifar;
mod digits;
mod targets;
mod tensors;
mod write;

pub use digits::digits;
pub use targets::read_targets;
pub use write::{View, write_safetensors};

use crate::attack::snap;
use crate::error::{Error, Result};
use crate::model::Dims;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Labelled images.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// `[N, C, H, W]`, each value in [0, 1]; bytes are exactly `k as f32 / 255.0`. Floats are kept as they are.
    pub images: Vec<f32>,
    /// Shape of one image.
    pub dims: Dims,
    /// `[N]`, zero or more.
    pub labels: Vec<i64>,
    /// Names of the classes; empty when the data have none.
    pub classes: Vec<String>,
    /// Where the data come from, for reports: the path as given, or `embedded digits`.
    pub source: String,
    /// SHA-256 of the files read, one after the other, in hexadecimal. A limit does not change it.
    pub sha256: String,
    /// Largest distance of a value to the nearest k/255: how far an attack that delivers bytes moves the clean images.
    pub snapped: f32,
}

impl Dataset {
    /// Number of images (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when there are no images; never for a data set that [`load`] gives.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Reads a data set, at most its first `limit` images, as what it looks like: a folder with `test_batch.bin` (or
/// `data_batch_*.bin`) or a `.bin` file is CIFAR-10 in binary; `.safetensors` holds `images` and `labels`.
///
/// # Errors
/// [`Error::Data`] naming the file and the record or sample; [`Error::Usage`] for a limit of 0.
pub fn load(path: &Path, limit: Option<usize>) -> Result<Dataset> {
    if limit == Some(0) {
        return Err(Error::Usage("the limit must be one or more images".into()));
    }
    let limit = limit.unwrap_or(usize::MAX);
    let place = path.display().to_string();
    let kind = std::fs::metadata(path).map_err(|e| Error::data(&place, e.to_string()))?;
    if kind.is_dir() {
        return cifar::folder(path, limit);
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "bin" => cifar::file(path, limit),
        "safetensors" => tensors::read(&place, &read(path)?, limit),
        _ => Err(Error::data(
            place,
            "unknown kind of data: CIFAR-10 binary (a folder or a .bin file) and .safetensors are read",
        )),
    }
}

/// Labelled images that are read piece by piece.
#[derive(Debug)]
pub struct Source {
    /// Shape of one image.
    pub dims: Dims,
    /// `[N]`, zero or more; all of them, for they are small.
    pub labels: Vec<i64>,
    /// Names of the classes; empty when the data have none.
    pub classes: Vec<String>,
    /// Where the data come from, for reports: the path as given, or `embedded digits`.
    pub name: String,
    /// SHA-256 of the files read, in hexadecimal. A limit does not change it.
    pub sha256: String,
    images: Vec<f32>,
}

impl Source {
    /// Number of images (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when there are no images; never for a source that [`open`] gives.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images of the samples in `range`, `[n, C, H, W]`, each value in [0, 1]; bytes are exactly `k as f32 / 255.0`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file, and the record or sample.
    pub fn images(&mut self, range: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let one = self.dims.len();
        Ok(self.images[range.start * one..range.end * one].to_vec())
    }
}

impl From<Dataset> for Source {
    fn from(d: Dataset) -> Self {
        Source { dims: d.dims, labels: d.labels, classes: d.classes, name: d.source, sha256: d.sha256, images: d.images }
    }
}

/// Opens a data set of which at most the first `limit` images will be read, as what it looks like.
///
/// # Errors
/// As [`load`].
pub fn open(path: &Path, limit: Option<usize>) -> Result<Source> {
    load(path, limit).map(Source::from)
}

/// The bytes of a regular file. Never a mapping: a file that shrinks underneath would be undefined behaviour.
fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::data(path.display().to_string(), e.to_string());
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::data(path.display().to_string(), "not a regular file"));
    }
    std::fs::read(path).map_err(fail)
}

/// SHA-256 of byte strings, one after the other, in hexadecimal.
fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes to the values that are delivered for them.
fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.iter().map(|byte| f32::from(*byte) / 255.0)
}

/// Largest distance to the nearest k/255.
fn distance_to_bytes(images: &[f32]) -> f32 {
    // In pieces: `snap` makes a copy.
    images.chunks(1 << 16).map(|piece| snap(piece).1).fold(0.0, f32::max)
}
