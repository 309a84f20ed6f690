//! CIFAR-10 in its binary format: records of one label byte and 3,072 bytes (red, green and blue plane, 32×32).

use super::{Dataset, from_bytes, read, sha256};
use crate::error::{Error, Result};
use crate::model::Dims;
use std::path::Path;

const DIMS: Dims = Dims::new(3, 32, 32);
const RECORD: usize = 1 + DIMS.len();
const CLASSES: usize = 10;

/// The test batch of a folder; the training batches in order where there is none.
pub(super) fn folder(path: &Path, limit: usize) -> Result<Dataset> {
    let mut files = vec![path.join("test_batch.bin")];
    if !files[0].exists() {
        files = (1..=5).map(|i| path.join(format!("data_batch_{i}.bin"))).filter(|file| file.exists()).collect();
    }
    if files.is_empty() {
        let detail =
            "no known data set in this folder: `test_batch.bin` or `data_batch_1.bin` (CIFAR-10) is looked for";
        return Err(Error::data(path.display().to_string(), detail));
    }
    let files: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
    batches(&path.display().to_string(), &files, limit)
}

pub(super) fn file(path: &Path, limit: usize) -> Result<Dataset> {
    batches(&path.display().to_string(), &[path], limit)
}

fn batches(source: &str, files: &[&Path], limit: usize) -> Result<Dataset> {
    let contents = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
    let mut set = Dataset {
        images: Vec::new(),
        dims: DIMS,
        labels: Vec::new(),
        classes: class_names(files[0])?,
        source: source.into(),
        sha256: sha256(contents.iter().map(Vec::as_slice)),
        snapped: 0.0,
    };
    for (file, bytes) in files.iter().zip(&contents) {
        let place = file.display();
        if bytes.is_empty() || bytes.len() % RECORD != 0 {
            let detail = format!("{} bytes are no whole number of records of {RECORD} bytes", bytes.len());
            return Err(Error::data(place.to_string(), detail));
        }
        let records = bytes.len() / RECORD;
        // All labels are checked, also those beyond the limit: a file is sound or it is not.
        if let Some(i) = (0..records).find(|i| usize::from(bytes[i * RECORD]) >= CLASSES) {
            let detail = format!("label {} of {CLASSES} classes: not CIFAR-10", bytes[i * RECORD]);
            return Err(Error::data(format!("{place}: record {i}"), detail));
        }
        for record in bytes.chunks_exact(RECORD).take(limit - set.labels.len()) {
            set.labels.push(i64::from(record[0]));
            set.images.extend(from_bytes(&record[1..]));
        }
    }
    Ok(set)
}

/// Names in `batches.meta.txt` beside a batch; none when there is no such file.
fn class_names(batch: &Path) -> Result<Vec<String>> {
    let path = batch.with_file_name("batches.meta.txt");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let fail = |detail: String| Err(Error::data(path.display().to_string(), detail));
    let Ok(text) = String::from_utf8(read(&path)?) else { return fail("not UTF-8".into()) };
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if names.len() != CLASSES || names.iter().any(|name| name.chars().any(char::is_control)) {
        return fail(format!("{} names; {CLASSES} printable ones are expected", names.len()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    fn record(label: u8, value: u8) -> Vec<u8> {
        let mut record = vec![value; RECORD];
        record[0] = label;
        record
    }

    fn message(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path, None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }

    #[test]
    fn a_file_is_read_and_limited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [record(3, 255), record(9, 0), record(0, 17)].concat()).unwrap();
        let all = load(&path, None).unwrap();
        assert_eq!((all.labels.as_slice(), all.dims, all.classes.len()), ([3, 9, 0].as_slice(), DIMS, 0));
        assert_eq!((all.images[0], all.images[3072], all.images[2 * 3072]), (1.0, 0.0, 17.0 / 255.0));
        assert_eq!((all.images.len(), all.snapped), (3 * 3072, 0.0));
        let two = load(&path, Some(2)).unwrap();
        assert_eq!((two.len(), two.images.len(), &two.sha256), (2, 2 * 3072, &all.sha256));
        assert_eq!(load(&path, Some(0)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_folder_prefers_the_test_batch_and_joins_training_batches() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(load(folder.path(), None).unwrap_err().to_string().contains("test_batch.bin"));
        std::fs::write(at("data_batch_2.bin"), record(2, 0)).unwrap();
        std::fs::write(at("data_batch_1.bin"), record(1, 0)).unwrap();
        assert_eq!(load(folder.path(), None).unwrap().labels, [1, 2]);
        assert_eq!(load(folder.path(), Some(1)).unwrap().labels, [1]);
        std::fs::write(at("test_batch.bin"), record(7, 0)).unwrap();
        std::fs::write(at("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        let set = load(folder.path(), None).unwrap();
        assert_eq!((set.labels.as_slice(), set.classes[7].as_str()), ([7].as_slice(), "h"));
        std::fs::write(at("batches.meta.txt"), "a\nb\n").unwrap();
        assert!(load(folder.path(), None).unwrap_err().to_string().contains("2 names"));
    }

    #[test]
    fn bad_files_are_refused_by_name_and_record() {
        assert!(message(&[]).contains("x.bin: 0 bytes"));
        assert!(message(&record(0, 0)[1..]).contains("3072 bytes"));
        let label = message(&[record(0, 0), record(10, 0)].concat());
        assert!(label.contains("x.bin: record 1: label 10"), "{label}");
        assert!(load(Path::new("nowhere.bin"), None).unwrap_err().to_string().contains("nowhere.bin"));
    }
}
