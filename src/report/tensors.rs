//! The tensors of a run: written for each part, joined on disk, read again by rows. Never more than some rows of them
//! are in memory.

use super::{Config, Ladder};
use crate::attack::{Outcome, argmax};
use crate::data::{Slot, View, hexadecimal, stream_safetensors};
use crate::error::{Error, Result};
use crate::model::Dims;
use crate::weights;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A safetensors file that is read piece by piece.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: BufReader<File>,
    header: Metadata,
    metadata: BTreeMap<String, String>,
    /// Where the data begin.
    start: u64,
}

impl TensorFile {
    /// Reads and checks the header: types, shapes, offsets, and that the file is as long as it says.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |detail: String| Error::data(path.display().to_string(), detail);
        let os = |e: io::Error| fail(e.to_string());
        // Asked before it is opened: opening a pipe waits for whoever writes to it.
        let facts = fs::metadata(path).map_err(os)?;
        if !facts.is_file() {
            return Err(fail("not a regular file".into()));
        }
        let mut file = BufReader::new(File::open(path).map_err(os)?);
        // The length of the header, then the header, as far as there is one; what they hold is judged in one place.
        let mut prefix = Vec::new();
        (&mut file).take(8).read_to_end(&mut prefix).map_err(os)?;
        let length = prefix.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        (&mut file).take(length.min(weights::MAX_HEADER)).read_to_end(&mut prefix).map_err(os)?;
        let (header, metadata) = weights::describe(&prefix).map_err(fail)?;
        let start = prefix.len() as u64;
        let expected = start + header.data_len() as u64;
        if facts.len() != expected {
            return Err(fail(format!("{} bytes, but its header tells of {expected}", facts.len())));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, header, metadata, start })
    }

    /// Names, types and shapes, in no order.
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |(name, info): (String, &TensorInfo)| Slot { name, dtype: info.dtype, shape: info.shape.clone() };
        self.header.tensors().into_iter().map(slot).collect()
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// An entry of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Copies all bytes of a tensor.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the tensor; what `write` answers.
    pub fn copy(&mut self, name: &str, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let info = self.info(name)?;
        let mut left = info.data_offsets.1 - info.data_offsets.0;
        self.seek(info.data_offsets.0 as u64)?;
        let mut block = vec![0; left.min(1 << 20)];
        while left > 0 {
            let n = left.min(block.len());
            self.read(&mut block[..n])?;
            write(&block[..n])?;
            left -= n;
        }
        Ok(())
    }

    /// Rows of a tensor of f32 or f64.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the tensor: missing, of another type, too short.
    pub fn f64(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<f64>> {
        if self.info(name)?.dtype == Dtype::F32 {
            return Ok(self.f32(name, rows)?.into_iter().map(f64::from).collect());
        }
        Ok(self.bytes(name, Dtype::F64, rows)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    /// Rows of a tensor of f32.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn f32(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.bytes(name, Dtype::F32, rows)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Rows of a tensor of i64.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn i64(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<i64>> {
        Ok(self.bytes(name, Dtype::I64, rows)?.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Rows of a tensor of booleans.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn flags(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<bool>> {
        Ok(self.bytes(name, Dtype::BOOL, rows)?.into_iter().map(|b| b != 0).collect())
    }

    /// Whether rows of a tensor of u8 have a mark in them.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn marks(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<bool>> {
        Ok(self.bytes(name, Dtype::U8, rows)?.into_iter().map(|b| b != 0).collect())
    }

    fn bytes(&mut self, name: &str, dtype: Dtype, rows: Range<usize>) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        if info.dtype != dtype {
            return Err(self.fail(&format!("{name}: {} values where {dtype} are expected", info.dtype)));
        }
        let n = info.shape.first().copied().unwrap_or(0);
        if rows.end > n || rows.start > rows.end {
            return Err(self.fail(&format!("{name}: rows {} to {} of {n}", rows.start, rows.end)));
        }
        let one = (info.data_offsets.1 - info.data_offsets.0) / n.max(1);
        self.seek((info.data_offsets.0 + rows.start * one) as u64)?;
        let mut bytes = vec![0; rows.len() * one];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn info(&self, name: &str) -> Result<TensorInfo> {
        self.header.info(name).cloned().ok_or_else(|| self.fail(&format!("{name}: this tensor is missing")))
    }

    fn seek(&mut self, at: u64) -> Result<()> {
        let place = self.start + at;
        self.file.seek(SeekFrom::Start(place)).map(|_| ()).map_err(|e| self.fail(&e.to_string()))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.file.read_exact(into).map_err(|e| self.fail(&e.to_string()))
    }

    fn fail(&self, detail: &str) -> Error {
        Error::data(self.path.display().to_string(), detail)
    }
}

/// Whether a file, read to its end, has this SHA-256.
pub(super) fn is_intact(path: &Path, sha256: Option<&String>) -> io::Result<bool> {
    let (mut hash, mut file, mut block) = (Sha256::new(), File::open(path)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(sha256 == Some(&hexadecimal(hash))),
            n => hash.update(&block[..n]),
        }
    }
}

/// What a row has in some runs only: empty where it has not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Columns {
    /// Index of the sample in the whole data set, where samples have several rows.
    pub sample: Vec<i64>,
    /// Radius, where there are several.
    pub eps: Vec<f32>,
    /// The smallest radius that turns the sample, where that was looked for: infinite where none does, 0 where it is wrong
    /// when clean.
    pub min_eps: Vec<f32>,
    /// Where NaN or infinity arose ([`crate::attack::Health`]), 0 for nowhere, where that is no error.
    pub health: Vec<u8>,
}

impl Columns {
    /// Of the samples of `outcome`, from `first` on; `rungs` says where each was turned first.
    pub(super) fn new(config: &Config, first: usize, outcome: &Outcome, rungs: &[Option<usize>]) -> Self {
        let (each, rows) = (config.rows_each(), outcome.len());
        let many = if config.radii.is_empty() { 0..0 } else { 0..rows };
        let least = |ladder: Ladder| {
            let classes = outcome.clean_logits.len() / rows.max(1);
            let is_right = |row: usize| {
                let predicted = argmax(&outcome.clean_logits[row * classes..][..classes]);
                outcome.attacked[row] || i64::try_from(predicted) == Ok(outcome.labels[row])
            };
            let eps = |(row, rung): (usize, &Option<usize>)| match rung {
                Some(k) => ladder.radius(*k as u32 + 1).value as f32,
                None if is_right(row) => f32::INFINITY,
                None => 0.0,
            };
            rungs.iter().enumerate().map(eps).collect()
        };
        Columns {
            sample: many.clone().map(|row| (first + row / each) as i64).collect(),
            eps: many.map(|row| config.radii[row % each].eps.value as f32).collect(),
            min_eps: config.ladder.map_or_else(Vec::new, least),
            health: if config.keep_going { outcome.health.iter().map(|h| h.0 as u8).collect() } else { Vec::new() },
        }
    }
}

/// The tensors of `n` samples of a run, by name in sorted order.
pub(super) fn slots(n: usize, dims: Dims, classes: usize, config: &Config) -> Vec<Slot> {
    let n = n * config.rows_each();
    let image = vec![n, dims.c, dims.h, dims.w];
    let (one, logits) = (vec![n], vec![n, classes]);
    let (several, least) = (!config.radii.is_empty(), config.ladder.is_some());
    let is_there = |name: &str| match name {
        "eps" | "sample" => several,
        "health" => config.keep_going,
        "min_eps" => least,
        _ => true,
    };
    [
        ("adversarial", Dtype::F32, &image),
        ("adversarial_logits", Dtype::F32, &logits),
        ("attacked", Dtype::BOOL, &one),
        ("clean", Dtype::F32, &image),
        ("clean_logits", Dtype::F32, &logits),
        ("eps", Dtype::F32, &one),
        ("health", Dtype::U8, &one),
        ("l2", Dtype::F32, &one),
        ("labels", Dtype::I64, &one),
        ("linf", Dtype::F32, &one),
        ("loss", Dtype::F32, &one),
        ("min_eps", Dtype::F32, &one),
        ("sample", Dtype::I64, &one),
        ("success", Dtype::BOOL, &one),
        ("targets", Dtype::I64, &one),
    ]
    .into_iter()
    .filter(|(name, ..)| is_there(name))
    .map(|(name, dtype, shape)| Slot { name: name.into(), dtype, shape: shape.clone() })
    .collect()
}

/// Calls `f` with the tensors of an outcome, in the order of [`slots`].
pub(super) fn with_views<T>(o: &Outcome, columns: &Columns, dims: Dims, f: impl FnOnce(&[(&str, View<'_>)]) -> T) -> T {
    let n = o.len();
    let k = o.clean_logits.len() / n.max(1);
    let image = [n, dims.c, dims.h, dims.w];
    let Columns { sample, eps, min_eps, health } = columns;
    let mut views = vec![
        ("adversarial", View::f32(&image, &o.adversarial)),
        ("adversarial_logits", View::f32(&[n, k], &o.adversarial_logits)),
        ("attacked", View::bool(&[n], &o.attacked)),
        ("clean", View::f32(&image, &o.clean)),
        ("clean_logits", View::f32(&[n, k], &o.clean_logits)),
        ("eps", View::f32(&[eps.len()], eps)),
        ("health", View::u8(&[health.len()], health)),
        ("l2", View::f32(&[n], &o.l2)),
        ("labels", View::i64(&[n], &o.labels)),
        ("linf", View::f32(&[n], &o.linf)),
        ("loss", View::f32(&[n], &o.loss)),
        ("min_eps", View::f32(&[min_eps.len()], min_eps)),
        ("sample", View::i64(&[sample.len()], sample)),
        ("success", View::bool(&[n], &o.success)),
        ("targets", View::i64(&[n], &o.targets)),
    ];
    let seldom = |name: &str| matches!(name, "eps" | "health" | "min_eps" | "sample");
    views.retain(|(name, view)| !(seldom(name) && view.bytes().is_empty()));
    f(&views)
}

/// Joins the samples of several files into one, tensor by tensor; gives its SHA-256. The bytes do not depend on how the
/// samples were divided.
pub(super) fn join(path: &Path, files: &[PathBuf], slots: &[Slot]) -> Result<String> {
    stream_safetensors(path, slots, &Default::default(), &mut |slot, out| {
        files.iter().try_for_each(|file| {
            TensorFile::open(file)?.copy(&slot.name, &mut |bytes| {
                out.write_all(bytes)
                    .map_err(|e| Error::Output { place: path.display().to_string(), detail: e.to_string() })
            })
        })
    })
}

/// Some samples of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rows {
    /// Index in the file.
    pub index: Vec<usize>,
    pub clean: Vec<f32>,
    pub adversarial: Vec<f32>,
    pub labels: Vec<i64>,
    pub targets: Vec<i64>,
    pub clean_logits: Vec<f32>,
    pub adversarial_logits: Vec<f32>,
    pub attacked: Vec<bool>,
    pub success: Vec<bool>,
    pub linf: Vec<f32>,
}

impl Rows {
    /// Reads the samples named, in that order.
    pub(super) fn read(file: &mut TensorFile, index: &[usize]) -> Result<Self> {
        let mut rows = Rows { index: index.to_vec(), ..Rows::default() };
        for &i in index {
            let one = i..i + 1;
            rows.clean.extend(file.f32("clean", one.clone())?);
            rows.adversarial.extend(file.f32("adversarial", one.clone())?);
            rows.labels.extend(file.i64("labels", one.clone())?);
            rows.targets.extend(file.i64("targets", one.clone())?);
            rows.clean_logits.extend(file.f32("clean_logits", one.clone())?);
            rows.adversarial_logits.extend(file.f32("adversarial_logits", one.clone())?);
            rows.attacked.extend(file.flags("attacked", one.clone())?);
            rows.success.extend(file.flags("success", one.clone())?);
            rows.linf.extend(file.f32("linf", one)?);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::config;
    use super::super::statistics::tests::outcome;
    use super::*;
    use crate::data::write_safetensors;
    use std::collections::BTreeMap;

    #[test]
    fn joined_files_are_the_file_that_was_never_divided() {
        let folder = tempfile::tempdir().unwrap();
        let dims = Dims::new(1, 2, 3);
        let one = folder.path().join("one.safetensors");
        with_views(&outcome(dims), &Columns::default(), dims, |views| write_safetensors(&one, views, &BTreeMap::new()))
            .unwrap();
        let twice = folder.path().join("twice.safetensors");
        let sha256 = join(&twice, &[one.clone(), one.clone()], &slots(8, dims, 2, &config())).unwrap();
        let again = folder.path().join("again.safetensors");
        join(&again, std::slice::from_ref(&one), &slots(4, dims, 2, &config())).unwrap();
        assert_eq!(fs::read(&again).unwrap(), fs::read(&one).unwrap());
        let hash = crate::data::sha256([fs::read(&twice).unwrap().as_slice()]);
        assert_eq!(hash, sha256);

        let (mut file, mut double) = (TensorFile::open(&one).unwrap(), TensorFile::open(&twice).unwrap());
        let mut sorted = double.slots();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(sorted, slots(8, dims, 2, &config()));
        let mut second = Rows::read(&mut double, &[4, 6]).unwrap();
        second.index = vec![0, 2];
        assert_eq!(second, Rows::read(&mut file, &[0, 2]).unwrap());
        assert_eq!(file.f64("l2", 0..1).unwrap(), [f64::from(2.0_f32 / 255.0)]);
        // Too few samples are noticed, and leave nothing.
        let five = slots(5, dims, 2, &config());
        assert!(join(&folder.path().join("x"), &[one], &five).unwrap_err().to_string().contains("bytes for"));
        assert!(!folder.path().join("x").exists());
    }

    #[test]
    fn rows_and_types_that_are_not_there_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write_safetensors(&path, &[("a", View::f32(&[2, 1], &[1.0, 2.0]))], &BTreeMap::new()).unwrap();
        let mut file = TensorFile::open(&path).unwrap();
        assert_eq!(file.f32("a", 1..2).unwrap(), [2.0]);
        assert!(file.f32("b", 0..1).unwrap_err().to_string().contains("b: this tensor is missing"));
        assert!(file.f32("a", 1..3).unwrap_err().to_string().contains("rows 1 to 3 of 2"));
        assert!(file.i64("a", 0..1).unwrap_err().to_string().contains("F32 values"));
        let bytes = fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            fs::write(&path, &bytes[..end]).unwrap();
            assert_eq!(TensorFile::open(&path).unwrap_err().exit_code(), 3, "cut at {end}");
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert!(TensorFile::open(&path).is_err());
    }
}
