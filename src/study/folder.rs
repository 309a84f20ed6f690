//! Where a study is written: figures, `study.safetensors` where it was asked for, `study.md`, and `study.json` last.
//! Each file is whole or not there, and a folder with `study.json` is complete.

use super::batch::{Batch, Run};
use super::figures;
use super::report::{Findings, Identity, markdown};
use crate::data::{View, sha256, sweep_scratch, write_file, write_safetensors};
use crate::error::{Error, Result};
use crate::model::Dims;
use crate::report::differences;
use crate::weights::Tensors;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const JSON: &str = "study.json";
const MARKDOWN: &str = "study.md";
const TENSORS: &str = "study.safetensors";
const FIGURES: [&str; 2] = ["success.svg", "steps.svg"];
/// There while a study is under way, so that no other one writes to the folder meanwhile. One that nobody holds is of a
/// study that was killed.
const LOCK: &str = ".study.tmp";
/// What a study writes and discards in its folder.
pub(crate) const NAMES: [&str; 6] = [JSON, MARKDOWN, TENSORS, FIGURES[0], FIGURES[1], LOCK];

/// A folder that has been looked at.
#[derive(Debug)]
pub enum Opened {
    /// It holds this very study already.
    Complete(Box<Findings>),
    /// It is this study's to write.
    Ready(Folder),
}

/// The folder of a study that is under way.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Folders that were not there before, outermost first.
    made: Vec<PathBuf>,
    lock: Option<File>,
}

/// Opens `path` for a study. With `fresh`, one that is there will be replaced, whatever it is of.
///
/// # Errors
/// [`Error::Output`] when it cannot be written, holds another study or files that are of none, or is being written by
/// another process.
pub fn open(path: &Path, identity: &Identity, fresh: bool) -> Result<Opened> {
    let there = |name: &str| path.join(name).symlink_metadata().is_ok();
    let refuse = |why: String| Err(output(path, format!("{why}; choose another folder with --out")));
    if there(JSON) {
        match Findings::read(&path.join(JSON)) {
            Err(e) => return refuse(format!("holds files that are no study of this program ({e})")),
            Ok(earlier) => {
                let differ = differences(&earlier.identity.key(), &identity.key());
                if !differ.is_empty() && !fresh {
                    return refuse(format!("holds another study ({}), which --fresh discards", differ.join(", ")));
                }
                if differ.is_empty() && !fresh && earlier.files.keys().all(|name| there(name)) {
                    return Ok(Opened::Complete(Box::new(earlier)));
                }
            }
        }
    } else if let Some(name) = FIGURES.into_iter().chain([MARKDOWN, TENSORS]).find(|name| there(name))
        && !fresh
        && !there(LOCK)
    {
        return refuse(format!("holds {name} without {JSON}; --fresh replaces it"));
    }
    let missing = |p: &&Path| !p.as_os_str().is_empty() && p.symlink_metadata().is_err();
    let mut made: Vec<PathBuf> = path.ancestors().filter(missing).map(Into::into).collect();
    made.reverse();
    fs::create_dir_all(path).map_err(|e| output(path, e))?;
    let mut folder = Folder { path: path.into(), made, lock: None };
    // What cannot be written is refused before the work.
    let place = path.join(LOCK);
    let lock = File::options().write(true).create(true).truncate(false).open(&place).map_err(|e| output(path, e))?;
    // Not every file system has locks; without one the user must see to it.
    if let Err(fs4::TryLockError::WouldBlock) = fs4::FileExt::try_lock(&lock) {
        return Err(output(path, "another process is writing to this folder"));
    }
    folder.lock = Some(lock);
    sweep_scratch(path, &NAMES);
    Ok(Opened::Ready(folder))
}

impl Drop for Folder {
    /// The lock goes however the study ended, and so do folders that were made for nothing.
    fn drop(&mut self) {
        if self.lock.take().is_some() {
            let _ = fs::remove_file(self.path.join(LOCK));
        }
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
    }
}

/// What another program needs to repeat rows 0 to 7.
#[derive(Debug, Default)]
pub struct Repeatable {
    /// Of row 0's network, by PyTorch's names.
    pub weights: Tensors,
    /// Row 0's images and targets.
    pub examples: Option<(Batch, Dims)>,
    /// Those of rows 1 to 7.
    pub images: Option<(Batch, Dims)>,
    /// Those of row 6.
    pub pair: Option<(Batch, Dims)>,
    /// Where each row's images ended, and their first signs, by its id.
    pub runs: Vec<(String, Run)>,
}

/// Writes a study, and gives it back with the hashes of its files, and their names.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub fn write(
    mut folder: Folder,
    mut findings: Findings,
    tensors: Option<&Repeatable>,
) -> Result<(Findings, Vec<String>)> {
    let path = folder.path.clone();
    // An older one would speak of other files.
    for name in [JSON, MARKDOWN, TENSORS].into_iter().chain(FIGURES) {
        match fs::remove_file(path.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(output(&path.join(name), e)),
            _ => {}
        }
    }
    let figures = figures::all(&findings)?;
    for (name, svg) in &figures {
        write_file(&path.join(name), svg.as_bytes())?;
        findings.files.insert((*name).into(), sha256([svg.as_bytes()]));
    }
    if let Some(tensors) = tensors {
        tensors.write(&path.join(TENSORS))?;
        let bytes = fs::read(path.join(TENSORS)).map_err(|e| output(&path.join(TENSORS), e))?;
        findings.files.insert(TENSORS.into(), sha256([&bytes[..]]));
    }
    let names: Vec<&str> = figures.iter().map(|(name, _)| *name).collect();
    let text = format!("{}\n", markdown(&findings, &names));
    write_file(&path.join(MARKDOWN), text.as_bytes())?;
    findings.files.insert(MARKDOWN.into(), sha256([text.as_bytes()]));
    write_file(&path.join(JSON), format!("{}\n", findings.json()).as_bytes())?;
    folder.made.clear();
    let written = findings.files.keys().cloned().chain([JSON.to_string()]).collect();
    Ok((findings, written))
}

impl Repeatable {
    /// Names: `weights.NAME`; `examples.images`, `.targets` and `.labels` (−1: none), `rows.` and `pair.` the same;
    /// `ID.images` f32, `ID.first_signs` u8 (0, 1, 2 for −, none, +), and `ID.path` f32 (images before each step) of
    /// runs in training mode.
    fn write(&self, path: &Path) -> Result<()> {
        let mut names: Vec<(String, View<'_>)> = Vec::new();
        for (name, (shape, values)) in &self.weights {
            names.push((format!("weights.{name}"), View::f32(shape, values)));
        }
        let sets = [("examples", &self.examples), ("rows", &self.images), ("pair", &self.pair)];
        let whole = |batch: &Batch| batch.targets.iter().map(|t| i64::from(*t)).collect::<Vec<i64>>();
        let targets: Vec<Vec<i64>> =
            sets.iter().map(|(_, set)| set.as_ref().map_or(Vec::new(), |(b, _)| whole(b))).collect();
        for ((name, set), targets) in sets.iter().zip(&targets) {
            let Some((batch, d)) = set else { continue };
            let n = batch.len();
            names.push((format!("{name}.images"), View::f32(&[n, d.c, d.h, d.w], &batch.x0)));
            names.push((format!("{name}.targets"), View::i64(&[n], targets)));
            names.push((format!("{name}.labels"), View::i64(&[n], &batch.labels)));
        }
        let signs: Vec<Vec<u8>> =
            self.runs.iter().map(|(_, run)| run.first.iter().map(|s| (s + 1) as u8).collect()).collect();
        let paths: Vec<Vec<f32>> = self.runs.iter().map(|(_, run)| run.path.concat()).collect();
        for (((id, run), signs), path) in self.runs.iter().zip(&signs).zip(&paths) {
            names.push((format!("{id}.images"), View::f32(&[run.x.len()], &run.x)));
            if !path.is_empty() {
                names.push((format!("{id}.path"), View::f32(&[run.path.len(), run.x.len()], path)));
            }
            if !signs.is_empty() {
                names.push((format!("{id}.first_signs"), View::u8(&[signs.len()], signs)));
            }
        }
        let views: Vec<(&str, View<'_>)> = names.iter().map(|(name, view)| (name.as_str(), view.clone())).collect();
        write_safetensors(path, &views, &BTreeMap::from([("study".to_string(), "1".to_string())]))
    }
}

fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}
