//! Tunings, kept for later commands: a file for each adapter and driver, which says what it holds for and carries a
//! checksum.

use super::cache::{check_writable, folder, kept, replace, sealed};
use super::tell::warn;
use crate::error::{Error, Result};
use crate::plan::Tuning;
use crate::{Gpu, kernel, tune};
use std::path::{Path, PathBuf};

/// The file of a device.
fn file(folder: &Path, gpu: &Gpu) -> PathBuf {
    folder.join(format!("tiles-{:016x}.txt", kernel::hash(tune::key(gpu).as_bytes())))
}

/// What is known of a device; nothing where there is no file. A file that holds for another device, or that is broken,
/// is as good as none: what is in it can be measured again.
pub(super) fn known(gpu: &Gpu) -> Tuning {
    folder().map(|folder| read(&file(&folder, gpu), &tune::key(gpu))).unwrap_or_default()
}

fn read(path: &Path, key: &str) -> Tuning {
    if path.symlink_metadata().is_err() {
        return Tuning::default();
    }
    kept(path, key).unwrap_or_else(|| {
        let why = "not a tuning of this device and version, or damaged, and not used: `signstep tune` makes it anew";
        warn(format!("{}: {why}", path.display()));
        Tuning::default()
    })
}

/// Adds to what is known. The file is put in its place whole.
fn write(path: &Path, key: &str, known: &Tuning, tuning: &Tuning) -> Result<()> {
    let all: Tuning = known.iter().chain(tuning.iter()).map(|(shape, tile)| (shape.to_string(), tile)).collect();
    replace(path, sealed(key, &all.to_string()).as_bytes())
}

/// The folder that they are kept in.
fn place() -> Result<PathBuf> {
    folder().ok_or_else(|| Error::Usage("no folder to keep a tuning in: set SIGNSTEP_CACHE".into()))
}

/// Refuses a file that could not be written, before it is.
pub(super) fn check(gpu: &Gpu) -> Result<()> {
    check_writable(&file(&place()?, gpu))
}

/// Adds to what is known of a device, and gives the file.
pub(super) fn keep(gpu: &Gpu, tuning: &Tuning) -> Result<PathBuf> {
    let (path, key) = (file(&place()?, gpu), tune::key(gpu));
    write(&path, &key, &read(&path, &key), tuning)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Family, Tile};

    #[test]
    fn tunings_are_added_to_and_what_is_broken_is_as_good_as_none() {
        let folder = std::env::temp_dir().join(format!("signstep-tune-{}", std::process::id()));
        let path = folder.join("a/tiles.txt");
        let one: Tuning = [("a".to_string(), Tile::new(Family::Register, 4, 8))].into_iter().collect();
        let two: Tuning = [("b".to_string(), Tile::new(Family::Broadcast, 4, 4))].into_iter().collect();
        write(&path, "device", &Tuning::default(), &one).unwrap();
        assert_eq!(read(&path, "device"), one);
        write(&path, "device", &one, &two).unwrap();
        assert_eq!(read(&path, "device").iter().count(), 2);
        assert!(read(&path, "another device").is_empty());
        let is_refused = || kept::<Tuning>(&path, "device").is_none();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(is_refused(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(is_refused(), "cut at {at}");
        }
        for other in ["device\na: nonsense", "device\n", "", "device"] {
            std::fs::write(&path, other).unwrap();
            assert!(read(&path, "device").is_empty());
        }
        // What is wrong is made anew.
        write(&path, "device", &read(&path, "device"), &one).unwrap();
        assert_eq!(read(&path, "device"), one);
        assert!(write(&folder.join("a/tiles.txt/b"), "device", &one, &two).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
