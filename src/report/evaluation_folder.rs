//! Where an evaluation is written: `eval.safetensors`, then `eval.json`, each whole or not there. Images that would be
//! delivered lie in a scratch file meanwhile, for memory may not hold them.

use super::config::differences;
use super::tensors::is_intact;
use super::{EvalIdentity, Evaluation, Ledger, TensorFile};
use crate::data::{Slot, View, stream_safetensors, sweep_scratch, write_file};
use crate::error::{Error, Result};
use crate::model::Dims;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const REPORT: &str = "eval.json";
const TENSORS: &str = "eval.safetensors";
const SCRATCH: &str = ".eval.images.tmp";
/// What an evaluation writes and discards in its folder.
pub(crate) const EVALUATION_NAMES: [&str; 3] = [REPORT, TENSORS, SCRATCH];
/// Key of the metadata by which a tensor file is known as ours.
const MARK: &str = "evaluation";

/// A folder that has been looked at.
#[derive(Debug)]
pub enum EvalOpened {
    /// It holds all results of this very evaluation already.
    Complete(Box<Evaluation>),
    /// It is this evaluation's to write.
    Ready(Box<EvalFolder>),
}

/// The folder of an evaluation that is under way.
#[derive(Debug)]
pub struct EvalFolder {
    path: PathBuf,
    dims: Dims,
    scratch: Option<File>,
    /// Folders that were not there before, outermost first.
    made: Vec<PathBuf>,
}

impl EvalFolder {
    /// Opens `path` for an evaluation on images of `dims`. With `fresh`, an evaluation that is there will be replaced,
    /// whatever it is of; one of this identity that is incomplete always is.
    ///
    /// # Errors
    /// [`Error::Output`] when it cannot be written, holds another evaluation, or is being written by another process.
    pub fn open(path: &Path, identity: &EvalIdentity, dims: Dims, fresh: bool) -> Result<EvalOpened> {
        let (report, tensors) = (path.join(REPORT), path.join(TENSORS));
        let refuse = |why: String| Err(output(path, format!("{why}; choose another folder with --out")));
        if report.symlink_metadata().is_ok() {
            let earlier = match Evaluation::read(&report) {
                Ok(earlier) => earlier,
                Err(e) => return refuse(format!("holds files that are no evaluation of this program ({e})")),
            };
            let differ = differences(&earlier.identity.key(), &identity.key());
            if !differ.is_empty() && !fresh {
                let differ = differ.join(", ");
                return refuse(format!("holds another evaluation ({differ}), which --fresh discards"));
            }
            if differ.is_empty() && !fresh && earlier.is_complete && tensors.exists() {
                if !is_intact(&tensors, earlier.files.get(TENSORS)).map_err(|e| output(&tensors, e))? {
                    let detail = format!("is not the file that {REPORT} was written for; --fresh runs it anew");
                    return Err(output(&tensors, detail));
                }
                return Ok(EvalOpened::Complete(Box::new(earlier)));
            }
        } else if tensors.symlink_metadata().is_ok() {
            let ours = TensorFile::open(&tensors).is_ok_and(|file| file.metadata(MARK).is_some());
            if !ours {
                return refuse(format!("holds {TENSORS} without {REPORT}"));
            }
        }
        let mut made: Vec<PathBuf> = path
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty() && p.symlink_metadata().is_err())
            .map(Into::into)
            .collect();
        made.reverse();
        fs::create_dir_all(path).map_err(|e| output(path, e))?;
        let mut folder = EvalFolder { path: path.into(), dims, scratch: None, made };
        let place = path.join(SCRATCH);
        let mut options = File::options();
        let scratch = options.read(true).write(true).create(true).truncate(false).open(&place);
        let scratch = scratch.map_err(|e| output(&place, e))?;
        // Not every file system has locks; without one the user must see to it.
        if let Err(fs4::TryLockError::WouldBlock) = fs4::FileExt::try_lock(&scratch) {
            return Err(output(&place, "another process is writing to this folder"));
        }
        scratch.set_len(0).map_err(|e| output(&place, e))?;
        folder.scratch = Some(scratch);
        sweep_scratch(path, &EVALUATION_NAMES);
        Ok(EvalOpened::Ready(Box::new(folder)))
    }

    /// Keeps images of samples from `first` on as those that would be delivered.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn keep(&mut self, first: usize, images: &[f32]) -> Result<()> {
        let place = self.path.join(SCRATCH);
        let scratch = self.scratch.as_mut().expect("open until it is finished");
        let at = SeekFrom::Start(4 * (first * self.dims.len()) as u64);
        let view = View::f32(&[images.len()], images);
        scratch.seek(at).and_then(|_| scratch.write_all(view.bytes())).map_err(|e| output(&place, e))
    }

    /// Writes tensors and report; gives the report with the files' hashes, and the names of what was written.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn finish(mut self, ledger: &Ledger, mut evaluation: Evaluation) -> Result<(Evaluation, [&'static str; 2])> {
        // An older report would speak of other tensors.
        let report = self.path.join(REPORT);
        if report.exists() {
            fs::remove_file(&report).map_err(|e| output(&report, e))?;
        }
        let sha256 = self.tensors(ledger, evaluation.identity.config.keep_going)?;
        evaluation.files.insert(TENSORS.into(), sha256);
        write_file(&report, format!("{}\n", evaluation.json()).as_bytes())?;
        self.made.clear();
        Ok((evaluation, [TENSORS, REPORT]))
    }

    fn tensors(&mut self, ledger: &Ledger, marked: bool) -> Result<String> {
        let n = ledger.samples();
        let Dims { c, h, w } = self.dims;
        let flags = |turned: &[i64]| turned.iter().map(|b| *b >= 0).collect::<Vec<bool>>();
        let (success, success_float) = (flags(&ledger.broken_by), flags(&ledger.broken_by_float));
        let health: Vec<u8> = ledger.health.iter().map(|h| h.0 as u8).collect();
        let marks = marked.then(|| ("health", Dtype::U8, View::u8(&[n], &health)));
        let small = [
            ("broken_by", Dtype::I64, View::i64(&[n], &ledger.broken_by)),
            ("broken_by_float", Dtype::I64, View::i64(&[n], &ledger.broken_by_float)),
            ("l2", Dtype::F32, View::f32(&[n], &ledger.l2)),
            ("labels", Dtype::I64, View::i64(&[n], &ledger.labels)),
            ("linf", Dtype::F32, View::f32(&[n], &ledger.linf)),
            ("loss", Dtype::F32, View::f32(&[n], &ledger.loss)),
            ("success", Dtype::BOOL, View::bool(&[n], &success)),
            ("success_float", Dtype::BOOL, View::bool(&[n], &success_float)),
        ];
        let small: Vec<_> = small.into_iter().chain(marks).collect();
        let slot = |name: &str, dtype, shape: &[usize]| Slot { name: name.into(), dtype, shape: shape.to_vec() };
        let mut slots: Vec<Slot> = small.iter().map(|(name, dtype, _)| slot(name, *dtype, &[n])).collect();
        slots.push(slot("adversarial", Dtype::F32, &[n, c, h, w]));
        let place = self.path.join(TENSORS);
        let scratch = self.scratch.as_mut().expect("open until it is finished");
        let metadata = BTreeMap::from([(MARK.to_string(), "1".to_string())]);
        stream_safetensors(&place, &slots, &metadata, &mut |slot, out| {
            let fail = |e: std::io::Error| output(&place, e);
            if let Some((_, _, view)) = small.iter().find(|(name, ..)| *name == slot.name) {
                return out.write_all(view.bytes()).map_err(fail);
            }
            scratch.rewind().map_err(fail)?;
            let mut left = 4 * n * c * h * w;
            let mut block = vec![0; left.min(1 << 20)];
            while left > 0 {
                let size = left.min(block.len());
                scratch.read_exact(&mut block[..size]).and_then(|()| out.write_all(&block[..size])).map_err(fail)?;
                left -= size;
            }
            Ok(())
        })
    }
}

impl Drop for EvalFolder {
    /// The scratch file goes however the evaluation ended, and so do folders that were made for nothing.
    fn drop(&mut self) {
        if self.scratch.take().is_some() {
            let _ = fs::remove_file(self.path.join(SCRATCH));
        }
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
    }
}

fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}
