//! The output folder: looked at before a run starts, written only when it has ended, complete or not at all.

use super::{Config, Run, json, sheet, tensors};
use crate::error::{Error, Result};
use image::{GrayImage, RgbImage};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const REPORT: &str = "report.json";
const TENSORS: &str = "adversarial.safetensors";
const SHEET: &str = "sheet.png";
const IMAGES: &str = "images";

/// A folder that may be written to.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Checks, before anything expensive happens, that results may go to `path`: that it can be written, and holds
    /// nothing of another run. Leaves no trace.
    ///
    /// # Errors
    /// [`Error::Output`] when it cannot be written, or when its report is of another configuration, model or data.
    pub fn check(
        path: &Path,
        config: &Config,
        math: &str,
        model_sha256: &str,
        data_sha256: &str,
        samples: usize,
    ) -> Result<Self> {
        let folder = Folder { path: path.to_path_buf() };
        let report = path.join(REPORT);
        match fs::read(&report) {
            Ok(bytes) => {
                let earlier: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                if !json::same_run(&earlier, config, math, model_sha256, data_sha256, samples) {
                    return Err(output(path, "holds the results of another run; choose another folder with --out"));
                }
            }
            Err(e) if report.symlink_metadata().is_ok() => return Err(output(&report, e)),
            Err(_) => {}
        }
        // Only trying tells whether a folder can be written: permissions, quotas and read-only mounts all count.
        Staging::new(path)?;
        Ok(folder)
    }

    /// Writes everything: under temporary names first, then renamed, `report.json` last. Returns the names written.
    ///
    /// # Errors
    /// [`Error::Output`]; then nothing half-written stays.
    pub fn write(&self, run: &Run<'_>) -> Result<Vec<&'static str>> {
        let mut staging = Staging::new(&self.path)?;
        let dims = run.model.input;
        tensors::write(&staging.dir.join(TENSORS), run)?;
        let page = sheet(run);
        save(&staging.dir.join(SHEET), |p| page.save(p))?;
        let mut names = vec![TENSORS, SHEET];
        if run.delivers_bytes() && matches!(dims.c, 1 | 3) {
            let folder = staging.dir.join(IMAGES);
            fs::create_dir(&folder).map_err(|e| output(&folder, e))?;
            for (i, image) in run.outcome.adversarial.chunks_exact(dims.len().max(1)).enumerate() {
                let path = folder.join(format!("{i:06}.png"));
                let byte = |c: usize, x: u32, y: u32| {
                    let at = (c * dims.h + y as usize) * dims.w + x as usize;
                    (image[at] * 255.0).round() as u8
                };
                let (w, h) = (dims.w as u32, dims.h as u32);
                if dims.c == 1 {
                    let picture = GrayImage::from_fn(w, h, |x, y| image::Luma([byte(0, x, y)]));
                    save(&path, |p| picture.save(p))?;
                } else {
                    let pixel = |x, y| image::Rgb([byte(0, x, y), byte(1, x, y), byte(2, x, y)]);
                    let picture = RgbImage::from_fn(w, h, pixel);
                    save(&path, |p| picture.save(p))?;
                }
            }
            names.push(IMAGES);
        }
        let text = serde_json::to_string_pretty(&json::report(run)).map_err(|e| Error::Internal(e.to_string()))?;
        staging.file(REPORT, format!("{text}\n").as_bytes())?;
        names.push(REPORT);
        staging.publish(&names)?;
        Ok(names)
    }
}

/// A folder inside the output folder that holds what is being written. Dropped, it takes with it everything that was
/// not published, and the folders that were made for it.
struct Staging {
    /// The output folder.
    target: PathBuf,
    /// The folder inside it.
    dir: PathBuf,
    /// Folders that were not there before, outermost first.
    made: Vec<PathBuf>,
}

impl Staging {
    fn new(target: &Path) -> Result<Self> {
        let mut made: Vec<PathBuf> = target
            .ancestors()
            .filter(|p| !p.as_os_str().is_empty() && p.symlink_metadata().is_err())
            .map(Path::to_path_buf)
            .collect();
        made.reverse();
        let dir = target.join(format!(".signstep-{}", std::process::id()));
        let staging = Staging { target: target.to_path_buf(), dir, made };
        fs::create_dir_all(target).map_err(|e| output(target, e))?;
        fs::create_dir(&staging.dir).map_err(|e| output(&staging.dir, e))?;
        Ok(staging)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|e| output(&self.target.join(name), e))
    }

    /// Renames what is there into the output folder, `report.json` last: it is what tells that a run is complete, so an
    /// earlier one goes first. When a rename fails, the folder is put back as it was.
    fn publish(&mut self, names: &[&str]) -> Result<()> {
        let retired = self.dir.join("retired");
        fs::create_dir(&retired).map_err(|e| output(&retired, e))?;
        let mut moves = Vec::new();
        for name in [REPORT, TENSORS, SHEET, IMAGES] {
            let old = self.target.join(name);
            if old.symlink_metadata().is_ok() {
                moves.push((old, retired.join(name)));
            }
        }
        moves.extend(names.iter().map(|name| (self.dir.join(name), self.target.join(name))));
        for (done, (from, to)) in moves.iter().enumerate() {
            if let Err(e) = fs::rename(from, to) {
                for (from, to) in moves[..done].iter().rev() {
                    let _ = fs::rename(to, from);
                }
                return Err(output(to, e));
            }
        }
        self.made.clear();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing better can be done about a failure here, and the error that led here matters more.
        let _ = fs::remove_dir_all(&self.dir);
        for made in self.made.iter().rev() {
            let _ = fs::remove_dir(made);
        }
    }
}

fn save(path: &Path, write: impl FnOnce(&Path) -> image::ImageResult<()>) -> Result<()> {
    write(path).map_err(|e| output(path, e))
}

fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, with_run};
    use super::*;
    use crate::model::Dims;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_written_whole_again_for_the_same_run_and_refused_for_another() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let check = |c: &Config| Folder::check(&path, c, "f64", "aa", "bb", 4);
        let folder = check(&config()).unwrap();
        assert!(names(temp.path()).is_empty(), "a check leaves no trace");
        for _ in 0..2 {
            with_run(Dims::new(1, 2, 2), |run| folder.write(run)).unwrap();
            assert_eq!(names(&path), [TENSORS, IMAGES, REPORT, SHEET]);
            assert_eq!(names(&path.join(IMAGES)).len(), 4);
            assert!(check(&config()).is_ok());
        }
        let other = Config { steps: 11, ..config() };
        assert_eq!(check(&other).unwrap_err().exit_code(), 8);
        fs::write(path.join(REPORT), "not json").unwrap();
        assert_eq!(check(&config()).unwrap_err().exit_code(), 8);
    }

    #[test]
    fn a_path_below_a_file_is_an_error_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "x").unwrap();
        let error = Folder::check(&temp.path().join("file/out"), &config(), "f64", "aa", "bb", 4).unwrap_err();
        assert_eq!(error.exit_code(), 8);
        assert_eq!(names(temp.path()), ["file"]);
    }

    #[test]
    fn an_abandoned_run_leaves_an_earlier_one_as_it_was() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(REPORT), "earlier").unwrap();
        let staging = Staging::new(temp.path()).unwrap();
        staging.file(REPORT, b"later").unwrap();
        drop(staging);
        assert_eq!(names(temp.path()), [REPORT]);
        assert_eq!(fs::read(temp.path().join(REPORT)).unwrap(), b"earlier");
    }
}
