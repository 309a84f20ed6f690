//! CIFAR-10 in its binary format: records of one label byte and 3,072 bytes (red, green and blue plane, 32×32).

use super::records::{Layout, Records, Values, check_label};
use super::stream::Stream;
use super::{Reader, Source, hexadecimal, read};
use crate::error::{Error, Result};
use crate::model::Dims;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::{Path, PathBuf};

const DIMS: Dims = Dims::new(3, 32, 32);
const RECORD: u64 = 1 + DIMS.len() as u64;
const CLASSES: usize = 10;
/// Largest file of class names, in bytes.
const MAX_NAMES: u64 = 1 << 16;

/// Files that a folder may hold: test, then training.
pub(super) const BATCHES: [&str; 6] = [
    "test_batch.bin",
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];

/// The test batch of a folder; the training batches in order where there is none.
pub(super) fn folder(path: &Path, limit: usize) -> Result<Source> {
    let mut files: Vec<PathBuf> = BATCHES.iter().map(|name| path.join(name)).filter(|file| file.exists()).collect();
    if files.first().is_some_and(|first| first.ends_with(BATCHES[0])) {
        files.truncate(1);
    }
    batches(&files, limit)
}

pub(super) fn file(path: &Path, limit: usize) -> Result<Source> {
    batches(&[path.to_path_buf()], limit)
}

fn batches(files: &[PathBuf], limit: usize) -> Result<Source> {
    let (mut hash, mut labels, mut batches) = (Sha256::new(), Vec::new(), Vec::new());
    for file in files {
        let mut stream = Stream::open(file)?;
        let place = stream.place.clone();
        let length = stream.length().unwrap_or_default();
        if length == 0 || length % RECORD != 0 {
            return Err(Error::data(place, format!("{length} bytes are no whole number of records of {RECORD} bytes")));
        }
        let shape = [length / RECORD, DIMS.c as u64, DIMS.h as u64, DIMS.w as u64];
        let layout = Layout::new(0, shape, 1, Values::BYTES).map_err(|detail| Error::data(&place, detail))?;
        // All labels are checked, also those beyond the limit: a file is sound or it is not.
        stream.survey(&mut hash, |survey| {
            layout.survey(&place, survey, |i, lead| {
                let label = i64::from(lead[0]);
                if labels.len() < limit {
                    labels.push(label);
                }
                check_label(&place, i, label, CLASSES)
            })
        })?;
        batches.push(Records { place, stream, layout });
    }
    Ok(Source {
        dims: DIMS,
        labels,
        classes: files.first().map_or(Ok(Vec::new()), |first| class_names(first))?,
        name: String::new(),
        sha256: hexadecimal(hash),
        framing: None,
        reader: Box::new(Batches(batches)),
    })
}

/// Batches one after another.
#[derive(Debug)]
struct Batches(Vec<Records>);

impl Reader for Batches {
    fn read(&mut self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let mut first = 0;
        for batch in &mut self.0 {
            let end = first + batch.layout.count;
            let part = range.start.clamp(first, end) - first..range.end.clamp(first, end) - first;
            batch.read(part, out)?;
            first = end;
        }
        Ok(())
    }
}

/// Names in `batches.meta.txt` beside a batch; none when there is no such file.
fn class_names(batch: &Path) -> Result<Vec<String>> {
    let path = batch.with_file_name("batches.meta.txt");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let fail = |detail: String| Err(Error::data(path.display().to_string(), detail));
    let Ok(text) = String::from_utf8(read(&path, MAX_NAMES)?) else { return fail("not UTF-8".into()) };
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if names.len() != CLASSES || names.iter().any(|name| name.chars().any(char::is_control)) {
        return fail(format!("{} names; {CLASSES} printable ones are expected", names.len()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    fn record(label: u8, value: u8) -> Vec<u8> {
        let mut record = vec![value; RECORD as usize];
        record[0] = label;
        record
    }

    fn message(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path, None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }

    #[test]
    fn a_file_is_read_and_limited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [record(3, 255), record(9, 0), record(0, 17)].concat()).unwrap();
        let mut set = open(&path, None).unwrap();
        let all = set.all().unwrap();
        assert_eq!((set.labels.as_slice(), set.dims, set.classes.len()), ([3, 9, 0].as_slice(), DIMS, 0));
        assert_eq!((all[0], all[3072], all[2 * 3072]), (1.0, 0.0, 17.0 / 255.0));
        assert_eq!(all.len(), 3 * 3072);
        let mut two = open(&path, Some(2)).unwrap();
        assert_eq!((two.len(), two.all().unwrap(), &two.sha256), (2, all[..2 * 3072].to_vec(), &set.sha256));
        assert!(two.images(1..3).unwrap_err().to_string().contains("samples 1..3 of 2"));
        assert_eq!(open(&path, Some(0)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_folder_prefers_the_test_batch_and_joins_training_batches() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("data_batch_2.bin"), [record(2, 20), record(3, 30)].concat()).unwrap();
        std::fs::write(at("data_batch_1.bin"), [record(0, 0), record(1, 10)].concat()).unwrap();
        let mut set = open(folder.path(), None).unwrap();
        assert_eq!(set.labels, [0, 1, 2, 3]);
        for range in [0..4, 1..3, 0..2, 2..4, 2..2, 3..4] {
            let firsts: Vec<f32> = set.images(range.clone()).unwrap().iter().step_by(3072).copied().collect();
            assert_eq!(firsts, range.map(|i| 10.0 * i as f32 / 255.0).collect::<Vec<_>>());
        }
        assert_eq!(open(folder.path(), Some(1)).unwrap().labels, [0]);
        std::fs::write(at("test_batch.bin"), record(7, 0)).unwrap();
        std::fs::write(at("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        let set = open(folder.path(), None).unwrap();
        assert_eq!((set.labels.as_slice(), set.classes[7].as_str()), ([7].as_slice(), "h"));
        std::fs::write(at("batches.meta.txt"), "a\nb\n").unwrap();
        assert!(open(folder.path(), None).unwrap_err().to_string().contains("2 names"));
        // They end up in terminals.
        std::fs::write(at("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\n\u{1b}[2J\ni\nj\n").unwrap();
        assert!(open(folder.path(), None).unwrap_err().to_string().contains("printable"));
    }

    #[test]
    fn bad_files_are_refused_by_name_and_record() {
        assert!(message(&[]).contains("x.bin: 0 bytes"));
        assert!(message(&record(0, 0)[1..]).contains("3072 bytes"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        std::fs::write(&path, [record(0, 0), record(10, 0)].concat()).unwrap();
        assert!(open(&path, Some(1)).is_err(), "beyond the limit too");
        let label = message(&[record(0, 0), record(10, 0)].concat());
        assert!(label.contains("x.bin: sample 1: label 10"), "{label}");
        // More than is read at a time.
        let many = [vec![record(0, 0); 699], vec![record(10, 0)]].concat().concat();
        assert!(message(&many).contains("x.bin: sample 699: label 10"));
        assert!(open(Path::new("nowhere.bin"), None).unwrap_err().to_string().contains("nowhere.bin"));
    }
}
