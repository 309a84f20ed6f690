//! IDX, the format of MNIST: images (unsigned bytes, three axes) and labels (unsigned bytes, one axis) in two files,
//! gzip or not. Numbers are big-endian.

use super::records::{Layout, Records, Values, labels};
use super::stream::{Stream, Survey};
use super::{Source, folder, hexadecimal};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How the names of an images file and of its labels file end; some copies have a dot where others have a hyphen.
const NAMES: [(&str, &str); 2] =
    [("images-idx3-ubyte", "labels-idx1-ubyte"), ("images.idx3-ubyte", "labels.idx1-ubyte")];
/// Unsigned bytes on three axes, and on one.
const IMAGES: [u8; 4] = [0, 0, 8, 3];
const LABELS: [u8; 4] = [0, 0, 8, 1];

/// Whether a file has the name of an images file.
pub(super) fn is_images(path: &Path) -> bool {
    labels_name(path).is_some()
}

/// Name of the file with the labels of these images, without `.gz`.
fn labels_name(images: &Path) -> Option<String> {
    let name = plain_name(images)?;
    NAMES.iter().find_map(|(images, labels)| Some(format!("{}{labels}", name.strip_suffix(images)?)))
}

fn plain_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(".gz").unwrap_or(name))
}

/// The test set of a folder, or the one set that it holds.
pub(super) fn folder(path: &Path, limit: usize) -> Result<Source> {
    let mut files: Vec<PathBuf> = folder::entries(path)?.into_iter().filter(|file| is_images(file)).collect();
    // `x` sorts before `x.gz`, and is the same unpacked.
    files.dedup_by(|b, a| plain_name(a) == plain_name(b));
    if let Some(test) = files.iter().position(|file| plain_name(file).is_some_and(|name| name.starts_with("t10k-"))) {
        files = vec![files.swap_remove(test)];
    }
    match files.as_slice() {
        [one] => file(one, limit),
        _ => {
            let names: Vec<&str> = files.iter().filter_map(|file| plain_name(file)).collect();
            let detail = format!("ambiguous: {}; name one of these files", names.join(", "));
            Err(Error::data(path.display().to_string(), detail))
        }
    }
}

/// An images file; its labels lie beside it.
pub(super) fn file(path: &Path, limit: usize) -> Result<Source> {
    let name = labels_name(path).unwrap_or_default();
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let mut candidates = [path.with_file_name(&name), path.with_file_name(format!("{name}.gz"))];
    if packed {
        candidates.reverse();
    }
    let Some(beside) = candidates.iter().find(|path| path.exists()) else {
        let detail = format!("its labels are missing: `{name}` or `{name}.gz` is looked for beside it");
        return Err(Error::data(path.display().to_string(), detail));
    };

    let mut hash = Sha256::new();
    let mut stream = Stream::open_gzip(path)?;
    let place = stream.place.clone();
    let layout = stream.survey(&mut hash, |survey| {
        magic(&place, survey, IMAGES)?;
        let [n, h, w] = [size(survey)?, size(survey)?, size(survey)?];
        let layout = Layout::new(16, [n, 1, h, w], 0, Values::BYTES).map_err(|detail| Error::data(&place, detail))?;
        layout.survey(&place, survey, |_, _| Ok(()))?;
        Ok(layout)
    })?;
    let mut file = Stream::open_gzip(beside)?;
    let labels_place = file.place.clone();
    let labels = file.survey(&mut hash, |survey| {
        magic(&labels_place, survey, LABELS)?;
        let n = size(survey)?;
        if n != layout.count as u64 {
            let detail = format!("{n} labels, but {place} holds {} images", layout.count);
            return Err(Error::data(&labels_place, detail));
        }
        labels(&labels_place, survey, Values::BYTES, layout.count, limit, 0)
    })?;
    Ok(Source {
        dims: layout.dims,
        labels,
        classes: Vec::new(),
        name: place.clone(),
        sha256: hexadecimal(hash),
        framing: None,
        reader: Box::new(Records { place, stream, layout }),
    })
}

fn magic(place: &str, survey: &mut Survey<'_>, want: [u8; 4]) -> Result<()> {
    let found = survey.header::<4>()?;
    if found == want {
        return Ok(());
    }
    let what = match found {
        IMAGES => "; these are images",
        LABELS => "; these are labels",
        _ => "",
    };
    let [found, want] = [found, want].map(u32::from_be_bytes);
    Err(Error::data(place, format!("magic number {found:08x}, but {want:08x} is expected{what}")))
}

fn size(survey: &mut Survey<'_>) -> Result<u64> {
    Ok(u64::from(u32::from_be_bytes(survey.header()?)))
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::model::Dims;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs;
    use std::io::Write;

    fn images(n: u32, h: u32, w: u32, values: &[u8]) -> Vec<u8> {
        [&IMAGES[..], &n.to_be_bytes(), &h.to_be_bytes(), &w.to_be_bytes(), values].concat()
    }

    fn labels_file(n: u32, values: &[u8]) -> Vec<u8> {
        [&LABELS[..], &n.to_be_bytes(), values].concat()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A folder with three images of 2×2.
    fn three(name: &str, label: u8) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, name, label);
        folder
    }

    fn write(folder: &tempfile::TempDir, name: &str, label: u8) {
        let pixels: Vec<u8> = (0..12).map(|i| i * 20).collect();
        fs::write(folder.path().join(format!("{name}-images-idx3-ubyte")), images(3, 2, 2, &pixels)).unwrap();
        fs::write(folder.path().join(format!("{name}-labels-idx1-ubyte")), labels_file(3, &[label, 1, 2])).unwrap();
    }

    fn refused(path: &Path) -> String {
        let error = open(path, None).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    #[test]
    fn a_pair_is_read_by_folder_and_by_file_packed_or_not() {
        let folder = three("train", 9);
        let mut set = open(folder.path(), None).unwrap();
        let want: Vec<f32> = (0..12_u8).map(|i| f32::from(i * 20) / 255.0).collect();
        assert_eq!((set.labels.as_slice(), set.dims, set.classes.len()), ([9, 1, 2].as_slice(), Dims::new(1, 2, 2), 0));
        assert_eq!(set.all().unwrap(), want);
        assert_eq!(set.images(1..2).unwrap(), want[4..8]);

        let (at, name) = (folder.path(), "train-images-idx3-ubyte");
        let bytes = [name, "train-labels-idx1-ubyte"].map(|name| fs::read(at.join(name)).unwrap());
        let hash: String = Sha256::digest(bytes.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(set.sha256, hash);
        let limited = open(&at.join(name), Some(2)).unwrap();
        assert_eq!((limited.labels.as_slice(), &limited.sha256), ([9, 1].as_slice(), &hash));

        fs::write(at.join("train-images-idx3-ubyte.gz"), packed(&bytes[0])).unwrap();
        fs::remove_file(at.join(name)).unwrap();
        let mut set = open(at, None).unwrap();
        for range in [2..3, 0..3, 1..2, 0..1, 0..0] {
            assert_eq!(set.images(range.clone()).unwrap(), want[4 * range.start..4 * range.end]);
        }
        // Of labels in both forms those that are packed as the images are; of images in both forms one set.
        fs::write(at.join("train-labels-idx1-ubyte.gz"), packed(&labels_file(3, &[7, 1, 2]))).unwrap();
        assert_eq!(open(at, None).unwrap().labels[0], 7);
        fs::write(at.join(name), &bytes[0]).unwrap();
        assert_eq!(open(at, None).unwrap().labels[0], 9);
        for twin in [name, "train-labels-idx1-ubyte.gz"] {
            fs::remove_file(at.join(twin)).unwrap();
        }
        // Unpacked by something that kept the name.
        fs::write(at.join("train-images-idx3-ubyte.gz"), &bytes[0]).unwrap();
        assert_eq!(open(at, None).unwrap().all().unwrap(), want);
    }

    #[test]
    fn the_test_set_is_preferred_and_anything_else_must_be_named() {
        let folder = three("train", 0);
        write(&folder, "t10k", 5);
        assert_eq!(open(folder.path(), None).unwrap().labels[0], 5);
        assert_eq!(open(&folder.path().join("train-images-idx3-ubyte"), None).unwrap().labels[0], 0);
        let folder = three("train", 0);
        write(&folder, "valid", 5);
        let message = refused(folder.path());
        assert!(message.contains("train-images-idx3-ubyte, valid-images-idx3-ubyte"), "{message}");
    }

    #[test]
    fn files_cut_anywhere_and_headers_that_lie_are_refused() {
        let folder = three("a", 0);
        let [pixels, classes] = ["a-images-idx3-ubyte", "a-labels-idx1-ubyte"].map(|name| folder.path().join(name));
        for file in [&pixels, &classes] {
            let bytes = fs::read(file).unwrap();
            for end in 0..bytes.len() {
                fs::write(file, &bytes[..end]).unwrap();
                assert!(refused(folder.path()).contains(file.to_str().unwrap()), "cut at {end}");
            }
            fs::write(file, [&bytes[..], &[0]].concat()).unwrap();
            assert!(refused(folder.path()).contains("longer than its header says"));
            fs::write(file, &bytes).unwrap();
        }
        let try_images = |bytes: Vec<u8>| {
            fs::write(&pixels, bytes).unwrap();
            refused(folder.path())
        };
        assert!(try_images(images(1 << 24, 1, 1, &[0])).contains("sample 1 is cut off"));
        assert!(try_images(images(u32::MAX, 1, 1, &[0])).contains("at most 16777216"));
        assert!(try_images(images(1, u32::MAX, u32::MAX, &[0])).contains("at most"));
        assert!(try_images(images(1, 2048, 2048, &[0])).contains("sample 0 is cut off"));
        assert!(try_images(images(0, 2, 2, &[])).contains("empty"));
        assert!(try_images(images(1, 0, 2, &[])).contains("empty"));
        assert!(try_images(images(2, 2, 2, &[0; 8])).contains("3 labels, but"));
        assert!(try_images(labels_file(3, &[0, 1, 2])).contains("these are labels"));
        assert!(try_images(b"\x89PNG\r\n".to_vec()).contains("magic number"));
        fs::remove_file(&classes).unwrap();
        assert!(try_images(images(1, 1, 1, &[0])).contains("`a-labels-idx1-ubyte`"));
    }
}
