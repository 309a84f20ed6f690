//! The output folder. While a run is under way, `parts/` holds what it has so far: `run.json` says which run it is, and
//! each chunk of samples that has ended is one file. When all are there they are joined, everything else is made from
//! them, and all of it is moved into the folder, `report.json` last: a folder with a report is complete, one with
//! `parts/run.json` can be gone on with, and a kill at any moment leaves one of the two.

use super::config::differences;
use super::json::MAX_BYTES;
use super::tensors::{Columns, TensorFile, is_intact, join, slots, with_views};
use super::{Device, Figures, Identity, Report, Timing, curve, pictures, samples, table};
use crate::attack::{Health, Outcome, Perturbation};
use crate::data::{View, hexadecimal, read, sha256, write_file, write_safetensors};
use crate::error::{Error, Result};
use crate::model::Dims;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const REPORT: &str = "report.json";
pub(super) const TENSORS: &str = "adversarial.safetensors";
const MARKDOWN: &str = "report.md";
/// The one perturbation that all images share, where they do. Among the parts it is a part of its own.
const SHARED: &str = "perturbation.safetensors";
const SAMPLES: &str = "samples.csv";
const SHEET: &str = "sheet.png";
const CURVE: &str = "curve.svg";
const IMAGES: &str = "images";
/// All that a complete folder may hold, the report last.
const NAMES: [&str; 8] = [TENSORS, SHARED, SAMPLES, SHEET, CURVE, IMAGES, MARKDOWN, REPORT];

const PARTS: &str = "parts";
/// What a run writes and discards in its folder.
pub(crate) const RUN_NAMES: [&str; 9] = [TENSORS, SHARED, SAMPLES, SHEET, CURVE, IMAGES, MARKDOWN, REPORT, PARTS];
const MANIFEST: &str = "run.json";
const LOCK: &str = "lock";
/// Where the files of a complete folder are made, so that an abandoned one is swept away like any other leftover.
const STAGING: &str = "join";
/// Key of a part's own facts in its metadata.
const FACTS: &str = "part";

/// Which run a folder's parts are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    identity: Identity,
    device: Device,
}

/// Names of what is made from the tensors and the report of a run on images of so many channels.
fn derived(report: &Report, channels: usize) -> Vec<&'static str> {
    let has_images = report.identity.config.delivers_bytes() && matches!(channels, 1 | 3);
    let seldom = [(!report.eps.is_empty(), CURVE), (has_images, IMAGES)];
    let seldom = seldom.into_iter().filter_map(|(is_made, name)| is_made.then_some(name));
    [SAMPLES, SHEET].into_iter().chain(seldom).chain([MARKDOWN]).collect()
}

/// What a complete folder lacks of what was made from its tensors. `images/` counts as lacking where pictures are.
pub fn missing(path: &Path, report: &Report) -> Vec<&'static str> {
    let tensors = TensorFile::open(&path.join(TENSORS)).ok();
    let side =
        |axis: usize| tensors.as_ref().and_then(|file| file.shape("adversarial")?.get(axis).copied()).unwrap_or(0);
    let (rows, channels) = (side(0), side(1));
    let pictures = || fs::read_dir(path.join(IMAGES)).map_or(0, Iterator::count);
    let lacks = |name: &&str| path.join(name).symlink_metadata().is_err() || (*name == IMAGES && pictures() < rows);
    derived(report, channels).into_iter().filter(lacks).collect()
}

/// Whether all tensors are there that a report was written for, to the bit.
fn holds_tensors(path: &Path, report: &Report) -> Result<bool> {
    let names: Vec<&str> = match report.files.get(SHARED) {
        Some(_) => vec![TENSORS, SHARED],
        None => vec![TENSORS],
    };
    if names.iter().any(|name| path.join(name).symlink_metadata().is_err()) {
        return Ok(false);
    }
    for name in names {
        let place = path.join(name);
        if !is_intact(&place, report.files.get(name)).map_err(|e| output(&place, e))? {
            return Err(output(&place, format!("is not the file that {REPORT} was written for; --fresh runs it anew")));
        }
    }
    Ok(true)
}

/// What is known of a chunk of samples that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Which run it is of: the SHA-256 of what decides its bytes.
    run: String,
    /// Its first sample, by index in the whole data set.
    pub first: usize,
    /// The sample after its last.
    pub end: usize,
    /// What came of it.
    pub figures: Figures,
    attack_ms: f64,
    sample_steps: u64,
    /// SHA-256 of all of the above and the values of its tensors.
    sha256: String,
}

impl Part {
    /// The hash that the part must carry; `feed` hands over its tensors' bytes.
    fn seal(&self, feed: impl FnOnce(&mut Sha256) -> Result<()>) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(super::json_text(&Part { sha256: String::new(), ..self.clone() }));
        feed(&mut hash)?;
        Ok(hexadecimal(hash))
    }

    fn file(&self) -> String {
        format!("{}-{}.safetensors", self.first, self.end)
    }
}

/// What is known of a perturbation that has been fitted: as [`Part`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FittedFacts {
    run: String,
    fit_ms: f64,
    sha256: String,
}

/// A perturbation, and how long it took to find.
#[derive(Clone, Debug)]
struct Fitted {
    perturbation: Perturbation,
    facts: FittedFacts,
}

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
    manifest: Manifest,
    run: String,
    dims: Dims,
    classes: usize,
    parts: Vec<Part>,
    fitted: Option<Fitted>,
    /// Folders that were not there before, outermost first.
    made: Vec<PathBuf>,
    lock: Option<File>,
}

impl Folder {
    /// Opens `path` for a run of networks that take `dims` and give `classes` logits, and sweeps away what an interrupted
    /// process left in it. With `fresh`, results that are there are discarded, whatever run they are of.
    ///
    /// # Errors
    /// [`Error::Output`] when it cannot be written, holds another run or files that are of no run, or is being written by
    /// another process. Then it is as it was.
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
        let run = sha256([super::json_text(&key).as_bytes()]);
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

        let mut made: Vec<PathBuf> = parts
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty() && p.symlink_metadata().is_err())
            .map(Into::into)
            .collect();
        made.reverse();
        fs::create_dir_all(&parts).map_err(|e| output(&parts, e))?;
        let mut folder = Folder {
            path: path.into(),
            manifest,
            run,
            dims,
            classes,
            parts: Vec::new(),
            fitted: None,
            made,
            lock: None,
        };
        folder.lock = Some(lock(&parts.join(LOCK))?);
        // The manifest first: from here on whatever the folder holds is this run's, or swept away.
        let text = format!("{}\n", super::json_text(&folder.manifest));
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
                    self.fitted = self.fitted(&entry.path());
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
            match self.part(&path, first..end) {
                Some(part) if first == self.next() => self.parts.push(part),
                _ => remove(&path)?,
            }
        }
        Ok(())
    }

    /// Reads a perturbation; `None` unless it is whole and of this run.
    fn fitted(&self, path: &Path) -> Option<Fitted> {
        let n = self.manifest.identity.range().len();
        let mut file = TensorFile::open(path).ok()?;
        let facts: FittedFacts = serde_json::from_str(file.metadata(FACTS)?).ok()?;
        let shape = [self.dims.c, self.dims.h, self.dims.w];
        if file.shape("perturbation")? != shape || file.slots().len() != 3 {
            return None;
        }
        let mut counts = |name: &str| -> Option<Vec<u64>> {
            let all = file.i64(name, 0..n).ok()?;
            (file.shape(name)? == [n]).then(|| all.iter().map(|v| v.cast_unsigned()).collect())
        };
        let (steps_taken, zero_gradients) = (counts("steps_taken")?, counts("zero_gradients")?);
        let values = file.f32("perturbation", 0..self.dims.c).ok()?;
        let health = vec![Health::default(); n];
        let perturbation = Perturbation { values, steps_taken, zero_gradients, health };
        let sealed = with_perturbation(&perturbation, self.dims, |views| facts.seal(views));
        (facts.run == self.run && sealed == facts.sha256).then_some(Fitted { perturbation, facts })
    }

    /// The perturbation that all images share, where one has been fitted.
    pub fn perturbation(&self) -> Option<&Perturbation> {
        self.fitted.as_ref().map(|f| &f.perturbation)
    }

    /// Keeps the perturbation that all images share, fitted without NaN or infinity in any of them.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn keep(&mut self, perturbation: Perturbation, took: Duration) -> Result<()> {
        let mut facts = FittedFacts { run: self.run.clone(), fit_ms: took.as_secs_f64() * 1e3, sha256: String::new() };
        with_perturbation(&perturbation, self.dims, |views| {
            facts.sha256 = facts.seal(views);
            let told = BTreeMap::from([(FACTS.to_string(), super::json_text(&facts))]);
            write_safetensors(&self.path.join(PARTS).join(SHARED), views, &told)
        })?;
        self.fitted = Some(Fitted { perturbation, facts });
        Ok(())
    }

    /// Reads a part to its end; `None` unless it is whole, of this run, and of the samples that its name says.
    fn part(&self, path: &Path, range: Range<usize>) -> Option<Part> {
        let mut file = TensorFile::open(path).ok()?;
        let part: Part = serde_json::from_str(file.metadata(FACTS)?).ok()?;
        let mut found = file.slots();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let fits = part.run == self.run
            && (part.first..part.end) == range
            && range.start < range.end
            && range.end <= self.manifest.identity.range().end
            && part.figures.whole.samples == range.len()
            && found == slots(range.len(), self.dims, self.classes, &self.manifest.identity.config);
        let hash = |hash: &mut Sha256| {
            found.iter().try_for_each(|slot| {
                file.copy(&slot.name, &mut |bytes| {
                    hash.update(bytes);
                    Ok(())
                })
            })
        };
        (fits && part.seal(hash).ok()? == part.sha256).then_some(part)
    }

    /// The parts that are there, from the first sample on without a gap.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The first sample that is still to be attacked, by index in the whole data set.
    pub fn next(&self) -> usize {
        self.parts.last().map_or(self.manifest.identity.range().start, |p| p.end)
    }

    /// Keeps the outcome of the samples that begin at [`Folder::next`]: with several radii the rows of a sample beside each
    /// other. `rungs` says on which rung of the ladder each was turned first; empty where that was not looked for.
    ///
    /// # Errors
    /// [`Error::Output`] naming the file.
    pub fn add(&mut self, outcome: &Outcome, rungs: &[Option<usize>], attack: Duration) -> Result<()> {
        let (first, config) = (self.next(), &self.manifest.identity.config);
        let columns = Columns::new(config, first, outcome, rungs);
        let mut part = Part {
            run: self.run.clone(),
            first,
            end: first + outcome.len() / config.rows_each(),
            figures: Figures::new(config, outcome, rungs),
            attack_ms: attack.as_secs_f64() * 1e3,
            sample_steps: outcome.sample_steps(),
            sha256: String::new(),
        };
        with_views(outcome, &columns, self.dims, |views| {
            part.sha256 = part.seal(|hash| {
                views.iter().for_each(|(_, view)| hash.update(view.bytes()));
                Ok(())
            })?;
            let facts = BTreeMap::from([(FACTS.to_string(), super::json_text(&part))]);
            write_safetensors(&self.path.join(PARTS).join(part.file()), views, &facts)
        })?;
        self.parts.push(part);
        Ok(())
    }

    /// Joins the parts and completes the folder; gives the report, and the names of what was written.
    ///
    /// # Errors
    /// [`Error::Output`], or [`Error::Data`] for a part that has changed meanwhile; the parts stay.
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
        let devices = vec![self.manifest.device.clone()];
        let identity = self.manifest.identity.clone();
        self.complete(&files, Report::new(identity, figures, devices, timing, gpu_bytes))
    }

    /// Makes all files of the folder from `files`, which hold the samples of the run in order.
    pub(super) fn complete(mut self, files: &[PathBuf], report: Report) -> Result<(Report, Vec<&'static str>)> {
        let (report, names) = self.stage(files, report)?;
        self.publish(&names)?;
        self.lock = None;
        self.made.clear();
        sweep(&self.path.join(PARTS));
        Ok((report, names))
    }

    /// Makes the files where nobody looks for them; gives their names, the report's last.
    fn stage(&self, files: &[PathBuf], mut report: Report) -> Result<(Report, Vec<&'static str>)> {
        let range = report.identity.range();
        let samples = report.statistics.samples;
        if samples != range.len() {
            return Err(Error::Internal(format!("{samples} of {} samples were attacked", range.len())));
        }
        let staging = self.path.join(PARTS).join(STAGING);
        fs::create_dir(&staging).map_err(|e| output(&staging, e))?;
        let tensors = staging.join(TENSORS);
        let slots = slots(range.len(), self.dims, self.classes, &report.identity.config);
        report.files.insert(TENSORS.to_string(), join(&tensors, files, &slots)?);

        let mut tensors = TensorFile::open(&tensors)?;
        samples::write(&staging.join(SAMPLES), &mut tensors, range.clone(), &report.identity.config)?;
        pictures::sheet(&staging.join(SHEET), &report, &mut tensors, range.clone(), self.dims)?;
        let mut names = vec![TENSORS];
        if let Some(perturbation) = self.perturbation() {
            let path = staging.join(SHARED);
            let view = View::f32(&[self.dims.c, self.dims.h, self.dims.w], &perturbation.values);
            write_safetensors(&path, &[("perturbation", view)], &BTreeMap::new())?;
            let bytes = fs::read(&path).map_err(|e| output(&path, e))?;
            report.files.insert(SHARED.to_string(), sha256([&bytes[..]]));
            names.push(SHARED);
        }
        let derived = derived(&report, self.dims.c);
        if derived.contains(&CURVE) {
            curve::write(&staging.join(CURVE), &report)?;
        }
        if derived.contains(&IMAGES) {
            pictures::images(
                &staging.join(IMAGES),
                &mut tensors,
                range,
                self.dims,
                report.identity.config.rows_each(),
            )?;
        }
        write_file(&staging.join(MARKDOWN), format!("{}\n", table::markdown(&report)).as_bytes())?;
        write_file(&staging.join(REPORT), format!("{}\n", report.json()).as_bytes())?;
        names.extend(derived);
        names.push(REPORT);
        Ok((report, names))
    }

    /// Moves what was staged into the folder, one after the other.
    fn publish(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let (from, to) = (self.path.join(PARTS).join(STAGING).join(name), self.path.join(name));
            // What an interrupted process had moved already; the parts are still there to make it from.
            remove(&to)?;
            fs::rename(&from, &to).map_err(|e| output(&to, e))?;
        }
        Ok(())
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

impl FittedFacts {
    /// The hash that it must carry.
    fn seal(&self, views: &[(&str, View<'_>)]) -> String {
        let told = super::json_text(&FittedFacts { sha256: String::new(), ..self.clone() });
        sha256(std::iter::once(told.as_bytes()).chain(views.iter().map(|(_, view)| view.bytes())))
    }
}

/// Calls `f` with a perturbation and what was met in each sample, as tensors in sorted order.
fn with_perturbation<T>(p: &Perturbation, dims: Dims, f: impl FnOnce(&[(&str, View<'_>)]) -> T) -> T {
    let signed = |all: &[u64]| all.iter().map(|v| v.cast_signed()).collect::<Vec<i64>>();
    let (steps, zeros) = (signed(&p.steps_taken), signed(&p.zero_gradients));
    f(&[
        ("perturbation", View::f32(&[dims.c, dims.h, dims.w], &p.values)),
        ("steps_taken", View::i64(&[steps.len()], &steps)),
        ("zero_gradients", View::i64(&[zeros.len()], &zeros)),
    ])
}

/// The lock is the system's: it goes with the process, however that ends.
fn lock(path: &Path) -> Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(|e| output(path, e))?;
    match fs4::FileExt::try_lock(&file) {
        Err(fs4::TryLockError::WouldBlock) => Err(output(path, "another process is writing to this folder")),
        // Not every file system has locks; without one the user must see to it.
        _ => Ok(file),
    }
}

/// Removes the folder of parts, `run.json` last of its files: as long as anything is there, it says what.
fn sweep(parts: &Path) {
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
fn is_barely_begun(parts: &Path) -> bool {
    let temporary = format!(".{MANIFEST}.");
    match fs::read_dir(parts) {
        Ok(entries) => entries.flatten().all(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name == LOCK || name.starts_with(&temporary)
        }),
        Err(_) => parts.symlink_metadata().is_err(),
    }
}

/// `FIRST-END.safetensors`
fn range(name: &str) -> Option<Range<usize>> {
    let (first, end) = name.strip_suffix(".safetensors")?.split_once('-')?;
    Some(first.parse().ok()?..end.parse().ok()?)
}

/// Removes a file or a folder; one that is not there is no error.
fn remove(path: &Path) -> Result<()> {
    let Ok(facts) = path.symlink_metadata() else { return Ok(()) };
    if facts.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(|e| output(path, e))
}

fn foreign(path: &Path, why: &dyn std::fmt::Display) -> Error {
    output(path, format!("holds files that are no run of this program ({why}); choose another folder with --out"))
}

fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::{device, identity};
    use super::super::statistics::tests::outcome;
    use super::super::{Config, Shard};
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
            let (_, names) = folder.stage(&files, report.clone()).unwrap();
            folder.publish(&names[..moves]).unwrap();
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
