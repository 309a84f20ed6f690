//! The output folder. While a run is under way, `parts/` holds what it has so far: `run.json` says which run it is, and
//! each chunk of samples that has ended is one file. When all are there they are joined, everything else is made from
//! them, and all of it is moved into the folder, `report.json` last: a folder with a report is complete, one with
//! `parts/run.json` can be gone on with, and a kill at any moment leaves one of the two.
//!
//! | file | what it is |
//! |---|---|
//! | `folder/names.rs` | what files are called |
//! | `folder/disk.rs` | files locked, swept away, removed, and named in errors |
//! | `folder/complete.rs` | what a complete folder has to hold, and what of that is there |
//! | `folder/run.rs` | the run that parts are of |
//! | `folder/part.rs` | a part, read and written |
//! | `folder/fitted.rs` | the perturbation that all images share, likewise |
//! | `folder/stage.rs` | the files of a complete folder, made and moved into it |

mod complete;
mod disk;
mod fitted;
mod names;
mod part;
mod run;
mod stage;

pub use complete::missing;
pub use part::Part;

pub(crate) use names::RUN_NAMES;
pub(super) use names::{REPORT, TENSORS};

use super::config::differences;
use super::json::MAX_BYTES;
use super::{Device, Figures, Identity, Report, Timing, json_text};
use crate::attack::{Outcome, Perturbation};
use crate::data::{read, sha256, write_file};
use crate::error::Result;
use crate::model::Dims;
use complete::holds_tensors;
use disk::{foreign, foreign_picture, is_barely_begun, lock, output, remove, sweep};
use fitted::Fitted;
use names::{IMAGES, LOCK, MANIFEST, NAMES, PARTS, SHARED, STAGING};
use part::range;
use run::{Manifest, Run};
use stage::{publish, stage};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder that has been looked at.
#[derive(Debug)]
pub enum Opened {
    /// It holds all results of this very run already.
    Complete(Box<Report>),
    /// It is this run's to write, and no other process's.
    Ready(Box<Folder>),
}

/// The folder of a run that is under way.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    run: Run,
    parts: Vec<Part>,
    fitted: Option<Fitted>,
    /// Folders that were not there before, outermost first.
    made: Vec<PathBuf>,
    lock: Option<File>,
}

impl Folder {
    /// Opens `path` for a run of networks that take `dims` and give `classes` logits, and sweeps away what an
    /// interrupted process left in it. With `fresh`, results that are there are discarded, whatever run they are of.
    ///
    /// # Errors
    /// [`crate::Error::Output`] when it cannot be written, holds another run or files that are of no run, or is being
    /// written by another process. Then it is as it was.
    pub fn open(
        path: &Path,
        identity: Identity,
        device: Device,
        dims: Dims,
        classes: usize,
        fresh: bool,
    ) -> Result<Opened> {
        let manifest = Manifest { identity, device };
        let key = manifest.identity.key(Some(&manifest.device));
        let hash = sha256([json_text(&key).as_bytes()]);
        let refuse_other = |earlier: &Identity, device: &Device| match &differences(&earlier.key(Some(device)), &key)[..]
        {
            [] => Ok(()),
            _ if fresh => Ok(()),
            differ => Err(output(
                path,
                format!(
                    "holds another run ({}); choose another folder with --out, or discard it with --fresh",
                    differ.join(", ")
                ),
            )),
        };
        let there = |name: &str| path.join(name).symlink_metadata().is_ok();
        let parts = path.join(PARTS);
        let mut discard = fresh;
        if there(REPORT) {
            let report = Report::read(&path.join(REPORT)).map_err(|e| foreign(path, &e))?;
            refuse_other(&report.identity, &report.device)?;
            if !fresh && holds_tensors(path, &report)? {
                sweep(&parts);
                return Ok(Opened::Complete(Box::new(report)));
            }
            discard = true;
        } else if parts.join(MANIFEST).symlink_metadata().is_ok() {
            let text = read(&parts.join(MANIFEST), MAX_BYTES).map_err(|e| foreign(path, &e))?;
            let earlier: Manifest = serde_json::from_slice(&text).map_err(|e| foreign(&parts.join(MANIFEST), &e))?;
            refuse_other(&earlier.identity, &earlier.device)?;
        } else if let Some(name) = NAMES.iter().find(|name| there(name)) {
            return Err(foreign(path, &format!("{name} is there without a report")));
        } else if !is_barely_begun(&parts) {
            return Err(foreign(path, &format!("{PARTS} is there without {MANIFEST}")));
        }
        if discard && let Some(name) = foreign_picture(&path.join(IMAGES)) {
            let detail = format!("{name} is no picture of the run that is to be discarded; move it away first");
            return Err(output(&path.join(IMAGES), detail));
        }

        let mut made: Vec<PathBuf> = parts
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty() && p.symlink_metadata().is_err())
            .map(Into::into)
            .collect();
        made.reverse();
        fs::create_dir_all(&parts).map_err(|e| output(&parts, e))?;
        let mut folder = Folder {
            path: path.into(),
            run: Run { manifest, sha256: hash, dims, classes },
            parts: Vec::new(),
            fitted: None,
            made,
            lock: None,
        };
        folder.lock = Some(lock(&parts.join(LOCK))?);
        // The manifest first: from here on whatever the folder holds is this run's, or swept away.
        let text = format!("{}\n", json_text(&folder.run.manifest));
        write_file(&parts.join(MANIFEST), text.as_bytes())?;
        if discard {
            for name in NAMES.iter().rev().filter(|name| there(name)) {
                remove(&path.join(name))?;
            }
        }
        folder.take_up(discard)?;
        Ok(Opened::Ready(Box::new(folder)))
    }

    /// Finds the parts that are whole, from the first sample on without a gap, and removes everything else.
    fn take_up(&mut self, discard: bool) -> Result<()> {
        let parts = self.path.join(PARTS);
        let mut found: BTreeMap<(usize, usize), PathBuf> = BTreeMap::new();
        for entry in fs::read_dir(&parts).map_err(|e| output(&parts, e))? {
            let entry = entry.map_err(|e| output(&parts, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match range(&name) {
                _ if name == MANIFEST || name == LOCK => {}
                _ if name == SHARED && !discard => {
                    self.fitted = Fitted::read(&entry.path(), &self.run);
                    if self.fitted.is_none() {
                        remove(&entry.path())?;
                    }
                }
                Some(range) if !discard => {
                    found.insert((range.start, range.end), entry.path());
                }
                _ => remove(&entry.path())?,
            }
        }
        while let Some(((first, end), path)) = found.pop_first() {
            match Part::read(&path, first..end, &self.run) {
                Some(part) if first == self.next() => self.parts.push(part),
                _ => remove(&path)?,
            }
        }
        Ok(())
    }

    /// The perturbation that all images share, where one has been fitted.
    pub fn perturbation(&self) -> Option<&Perturbation> {
        self.fitted.as_ref().map(|f| &f.perturbation)
    }

    /// Keeps the perturbation that all images share, fitted without NaN or infinity in any of them.
    ///
    /// # Errors
    /// [`crate::Error::Output`] naming the file.
    pub fn keep(&mut self, perturbation: Perturbation, took: Duration) -> Result<()> {
        self.fitted = Some(Fitted::write(&self.path.join(PARTS), perturbation, took, &self.run)?);
        Ok(())
    }

    /// The parts that are there, from the first sample on without a gap.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The first sample that is still to be attacked, by index in the whole data set.
    pub fn next(&self) -> usize {
        self.parts.last().map_or(self.run.manifest.identity.range().start, |p| p.end)
    }

    /// Keeps the outcome of the samples that begin at [`Folder::next`]: with several radii the rows of a sample beside
    /// each other. `rungs` says on which rung of the ladder each was turned first; empty where that was not looked for.
    ///
    /// # Errors
    /// [`crate::Error::Output`] naming the file.
    pub fn add(&mut self, outcome: &Outcome, rungs: &[Option<usize>], attack: Duration) -> Result<()> {
        let part = Part::write(&self.path.join(PARTS), self.next(), outcome, rungs, attack, &self.run)?;
        self.parts.push(part);
        Ok(())
    }

    /// Joins the parts and completes the folder; gives the report, and the names of what was written.
    ///
    /// # Errors
    /// [`crate::Error::Output`], or [`crate::Error::Data`] for a part that has changed meanwhile; the parts stay.
    pub fn finish(
        self,
        load: Duration,
        compile: Duration,
        gpu_bytes: Option<u64>,
    ) -> Result<(Report, Vec<&'static str>)> {
        let figures = self.parts.iter().fold(Figures::default(), |sum, part| sum.plus(part.figures.clone()));
        let fit = self.fitted.as_ref().map_or(0.0, |f| f.facts.fit_ms);
        let attack = Duration::from_secs_f64((fit + self.parts.iter().map(|p| p.attack_ms).sum::<f64>()) / 1e3);
        let sample_steps = self.parts.iter().map(|p| p.sample_steps).sum();
        let timing = Timing::new(figures.whole.samples, load, compile, attack, sample_steps);
        let files: Vec<PathBuf> = self.parts.iter().map(|p| self.path.join(PARTS).join(p.file())).collect();
        let devices = vec![self.run.manifest.device.clone()];
        let identity = self.run.manifest.identity.clone();
        self.complete(&files, Report::new(identity, figures, devices, timing, gpu_bytes))
    }

    /// Makes all files of the folder from `files`, which hold the samples of the run in order.
    pub(super) fn complete(mut self, files: &[PathBuf], report: Report) -> Result<(Report, Vec<&'static str>)> {
        let staging = self.path.join(PARTS).join(STAGING);
        let (report, names) = stage(&staging, files, report, self.perturbation(), &self.run)?;
        publish(&staging, &self.path, &names)?;
        self.lock = None;
        self.made.clear();
        sweep(&self.path.join(PARTS));
        Ok((report, names))
    }
}

impl Drop for Folder {
    /// A run that ended without a single part leaves no trace. Nothing better can be done about a failure here, and the
    /// error that led here matters more.
    fn drop(&mut self) {
        let begun = NAMES.iter().any(|name| self.path.join(name).symlink_metadata().is_ok());
        let is_empty = self.parts.is_empty() && self.fitted.is_none();
        if self.lock.take().is_some() && is_empty && !begun {
            sweep(&self.path.join(PARTS));
        }
        if is_empty {
            for made in self.made.iter().rev() {
                let _ = fs::remove_dir(made);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::{device, identity};
    use super::super::statistics::tests::outcome;
    use super::super::{Config, Shard};
    use super::names::{MARKDOWN, SAMPLES, SHEET};
    use super::*;

    const DIMS: Dims = Dims { c: 1, h: 2, w: 2 };

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn open(path: &Path, fresh: bool) -> Result<Opened> {
        Folder::open(path, identity(8), device(), DIMS, 2, fresh)
    }

    fn ready(path: &Path) -> Folder {
        match open(path, false).unwrap() {
            Opened::Ready(folder) => *folder,
            Opened::Complete(_) => panic!("complete"),
        }
    }

    fn add(folder: &mut Folder) {
        folder.add(&outcome(DIMS), &[], Duration::from_millis(250)).unwrap();
    }

    fn finish(folder: Folder) -> Report {
        folder.finish(Duration::ZERO, Duration::ZERO, None).unwrap().0
    }

    #[test]
    fn a_run_goes_on_where_it_was_left_and_is_complete_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        drop(ready(&path));
        assert!(names(temp.path()).is_empty(), "a run without a part leaves no trace");
        let mut folder = ready(&path);
        assert_eq!(folder.next(), 0);
        add(&mut folder);
        drop(folder);
        assert_eq!(names(&path.join(PARTS)), ["0-4.safetensors", LOCK, MANIFEST]);
        let mut folder = ready(&path);
        assert_eq!((folder.next(), folder.parts().len()), (4, 1));
        add(&mut folder);
        let report = finish(folder);
        assert_eq!((report.statistics.samples, report.statistics.successes), (8, 2));
        assert_eq!((report.timing.attack_ms, report.timing.sample_steps), (500.0, 60));
        assert_eq!(names(&path), [TENSORS, IMAGES, REPORT, MARKDOWN, SAMPLES, SHEET]);
        assert_eq!(names(&path.join(IMAGES)).len(), 8);
        let Opened::Complete(again) = open(&path, false).unwrap() else { panic!("not complete") };
        assert_eq!(*again, report);
        assert!(missing(&path, &report).is_empty());
        fs::remove_file(path.join(SAMPLES)).unwrap();
        assert_eq!(missing(&path, &report), [SAMPLES]);
        fs::remove_file(path.join(IMAGES).join("000003.png")).unwrap();
        assert_eq!(missing(&path, &report), [SAMPLES, IMAGES]);
        fs::remove_dir_all(path.join(IMAGES)).unwrap();
        assert_eq!(missing(&path, &report), [SAMPLES, IMAGES]);

        // Other bytes under its name are no result of this run.
        let bytes = fs::read(path.join(TENSORS)).unwrap();
        fs::write(path.join(TENSORS), &bytes[..bytes.len() - 1]).unwrap();
        let error = open(&path, false).unwrap_err();
        assert_eq!(error.exit_code(), 8);
        assert!(error.to_string().contains("is not the file that report.json was written for"), "{error}");

        // Somebody's own pictures among the run's are not swept away with them.
        fs::create_dir_all(path.join(IMAGES)).unwrap();
        for name in ["notes.png", "000001-a.png", "00001.png", "000001.jpg"] {
            let own = path.join(IMAGES).join(name);
            fs::write(&own, "x").unwrap();
            let error = open(&path, true).unwrap_err();
            assert_eq!(error.exit_code(), 8);
            assert!(error.to_string().contains(&format!("images: {name} is no picture of the run")), "{error}");
            assert!(path.join(REPORT).exists() && fs::read(&own).unwrap() == b"x");
            fs::remove_file(own).unwrap();
        }
        fs::write(path.join(IMAGES).join(".DS_Store"), "x").unwrap();

        // Discarded on request, and not before.
        let Opened::Ready(folder) = open(&path, true).unwrap() else { panic!("not fresh") };
        assert_eq!(names(&path), [PARTS]);
        drop(folder);
        assert!(names(&path).is_empty());
    }

    /// A kill between any two moves: the folder is complete, or can be gone on with, and ends the same.
    #[test]
    fn a_folder_is_complete_or_unfinished_after_every_move() {
        let temp = tempfile::tempdir().unwrap();
        let mut whole = ready(&temp.path().join("whole"));
        add(&mut whole);
        add(&mut whole);
        let report = finish(whole);
        let path = temp.path().join("out");
        // All names but the curve's and the perturbation's.
        for moves in 0..NAMES.len() - 1 {
            let mut folder = ready(&path);
            while folder.next() < 8 {
                add(&mut folder);
            }
            let files: Vec<PathBuf> = folder.parts.iter().map(|p| path.join(PARTS).join(p.file())).collect();
            let staging = path.join(PARTS).join(STAGING);
            let (_, names) = stage(&staging, &files, report.clone(), folder.perturbation(), &folder.run).unwrap();
            publish(&staging, &path, &names[..moves]).unwrap();
            drop(folder);
            match open(&path, false).unwrap() {
                Opened::Complete(found) => {
                    assert_eq!(*found, report);
                    assert_eq!(moves, names.len());
                }
                Opened::Ready(folder) => {
                    assert!(moves < names.len());
                    assert_eq!(finish(*folder), report);
                }
            }
            assert_eq!(super::tests::names(&path), super::tests::names(&temp.path().join("whole")), "{moves} moves");
            fs::remove_dir_all(&path).unwrap();
        }
    }

    #[test]
    fn another_run_and_foreign_files_are_refused_and_stay() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        let mut folder = ready(path);
        add(&mut folder);
        let message = open(path, false).unwrap_err().to_string();
        assert!(message.contains("another process"), "{message}");
        drop(folder);
        let other = |change: &dyn Fn(&mut Identity)| {
            let mut other = identity(8);
            change(&mut other);
            let error = Folder::open(path, other, device(), DIMS, 2, false).unwrap_err();
            assert_eq!(error.exit_code(), 8);
            error.to_string()
        };
        let message = other(&|i| i.config = Config { steps: 11, ..i.config.clone() });
        assert!(message.contains("config.steps is 10 there and 11 here"), "{message}");
        assert!(message.contains("--out") && message.contains("--fresh"), "{message}");
        assert!(other(&|i| i.shard = Shard::new(0, 2, 8).ok()).contains("shard"));
        let mut folder = ready(path);
        add(&mut folder);
        finish(folder);
        assert!(other(&|i| i.config.seed = 8).contains("config.seed is 7 there and 8 here"));

        // Whatever bears one of our names without being ours is not touched, not even on request.
        for name in [REPORT, IMAGES, TENSORS, "parts/x", "parts/run.json"] {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir_all(temp.path().join(name).parent().unwrap()).unwrap();
            fs::write(temp.path().join(name), "not json").unwrap();
            for fresh in [false, true] {
                assert_eq!(open(temp.path(), fresh).unwrap_err().exit_code(), 8, "{name}");
            }
            assert_eq!(fs::read(temp.path().join(name)).unwrap(), b"not json");
        }
    }

    #[test]
    fn a_path_below_a_file_is_an_error_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "x").unwrap();
        assert_eq!(open(&temp.path().join("file/out"), false).unwrap_err().exit_code(), 8);
        assert_eq!(names(temp.path()), ["file"]);
    }

    #[test]
    fn only_whole_parts_without_a_gap_are_taken_up() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        let mut folder = ready(path);
        add(&mut folder);
        add(&mut folder);
        drop(folder);
        let part = |name: &str| path.join(PARTS).join(name);
        let whole = fs::read(part("0-4.safetensors")).unwrap();
        fs::write(part(".0-4.safetensors.77.tmp"), "x").unwrap();
        fs::create_dir(part(STAGING)).unwrap();
        fs::write(part("notes.txt"), "x").unwrap();
        assert_eq!(ready(path).next(), 8);
        assert_eq!(names(&path.join(PARTS)), ["0-4.safetensors", "4-8.safetensors", LOCK, MANIFEST]);

        // Every bit of a part counts: a sample of them is turned, in the header and in the values.
        let bits = whole.len() * 8;
        for bit in (0..bits).step_by(bits / 150) {
            let mut broken = whole.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            fs::write(part("0-4.safetensors"), broken).unwrap();
            let folder = ready(path);
            // A blank of the header may become another blank.
            let blank = whole[bit / 8] == b' ';
            assert!(folder.next() == 0 || blank, "bit {bit} of {bits}");
            drop(folder);
            let mut folder = ready(path);
            if folder.next() == 0 {
                add(&mut folder);
                add(&mut folder);
            }
        }
        for end in [0, 7, 100, whole.len() - 1] {
            fs::write(part("0-4.safetensors"), &whole[..end]).unwrap();
            assert_eq!(ready(path).next(), 0, "cut at {end}");
            let mut folder = ready(path);
            add(&mut folder);
            add(&mut folder);
        }
        // The right bytes under another name, and with a gap before them.
        fs::rename(part("4-8.safetensors"), part("4-7.safetensors")).unwrap();
        assert_eq!(ready(path).next(), 4);
        fs::rename(part("0-4.safetensors"), part("4-8.safetensors")).unwrap();
        assert_eq!(ready(path).next(), 0);
    }

    #[test]
    fn a_part_of_another_run_is_not_taken_up() {
        let temp = tempfile::tempdir().unwrap();
        let (one, two) = (temp.path().join("one"), temp.path().join("two"));
        let mut other = identity(8);
        other.config.seed = 8;
        let Opened::Ready(mut folder) = Folder::open(&one, other, device(), DIMS, 2, false).unwrap() else { panic!() };
        add(&mut folder);
        let mut mine = ready(&two);
        add(&mut mine);
        drop(mine);
        let name = "parts/0-4.safetensors";
        fs::copy(one.join(name), two.join(name)).unwrap();
        assert_eq!(ready(&two).next(), 0);
    }
}
