//! Data sets in safetensors: `images` (u8 in [0, 255], or floats in [0, 1]; `[N, C, H, W]`) and `labels` (integers;
//! `[N]`). Other tensors are ignored. Metadata `classes` (JSON list) names the classes. What an attack or an evaluation
//! left is such a set, too: its `adversarial` images, to see what another network says of them.

use super::records::{Layout, Records, Values, labels};
use super::stream::{Stream, Survey};
use super::{Source, hexadecimal};
use crate::error::{Error, Result};
use crate::weights;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What a run left in its folder, where it came to its end: tensors, and a report beside them.
const OF_RUNS: [[&str; 2]; 2] = [["adversarial.safetensors", "report.json"], ["eval.safetensors", "eval.json"]];

/// The tensors of a run, where `folder` is one of a run.
pub(super) fn of_run(folder: &Path) -> Option<PathBuf> {
    let is_whole = |files: &&[&str; 2]| files.iter().all(|name| folder.join(name).is_file());
    OF_RUNS.iter().find(is_whole).map(|[tensors, _]| folder.join(tensors))
}

pub(super) fn read(mut stream: Stream, limit: usize) -> Result<Source> {
    let (file, length) = (stream.place.clone(), stream.length());
    let place = |what: &str| format!("{file}: {what}");
    let mut hash = Sha256::new();
    let (name, layout, labels, classes) = stream.survey(&mut hash, |survey| {
        let prefix = prefix(survey)?;
        let (tensors, metadata) = weights::describe(&prefix).map_err(|detail| Error::data(place("tensors"), detail))?;
        let start = prefix.len() as u64;
        let whole = start + tensors.data_len() as u64;
        if length.is_some_and(|length| length != whole) {
            let detail = format!("{} bytes, but its header says {whole}", length.unwrap_or_default());
            return Err(Error::data(&file, detail));
        }
        let (name, images, integers) = find(&tensors).map_err(|e| e.in_file(&file))?;
        let values = |info: &TensorInfo| Values { dtype: info.dtype, big_endian: false };
        let begin = |info: &TensorInfo| start + info.data_offsets.0 as u64;
        let fail = |detail| Error::data(place(name), detail);
        let [n, c, h, w] = *images.shape else {
            return Err(fail(format!("shape {:?}, but [N, C, H, W] is expected", images.shape)));
        };
        let shape = [n, c, h, w].map(|side| side as u64);
        let layout = Layout::new(begin(images), shape, 0, values(images)).map_err(fail)?;
        if integers.shape != [n] {
            let detail = format!("shape {:?}, but there are {n} images", integers.shape);
            return Err(Error::data(place("labels"), detail));
        }
        let classes = match metadata.get("classes") {
            Some(text) => weights::class_names(text).map_err(|e| Error::data(place("metadata `classes`"), e))?,
            None => Vec::new(),
        };

        // In whichever order they lie.
        let (mut found, mut at) = (Vec::new(), start);
        for info in if begin(images) < begin(integers) { [images, integers] } else { [integers, images] } {
            survey.skip(begin(info) - at)?;
            if std::ptr::eq(info, images) {
                layout.survey(&place(name), survey, |_, _| Ok(()))?;
            } else {
                found = labels(&place("labels"), survey, values(info), n, limit, classes.len())?;
            }
            at = start + info.data_offsets.1 as u64;
        }
        if survey.skip(whole - at)? < whole - at {
            return Err(Error::data(&file, "truncated"));
        }
        Ok((name, layout, found, classes))
    })?;
    Ok(Source {
        dims: layout.dims,
        labels,
        classes,
        name: file.clone(),
        sha256: hexadecimal(hash),
        framing: None,
        reader: Box::new(Records { place: place(name), stream, layout }),
    })
}

/// The length of the header, and the header.
fn prefix(survey: &mut Survey<'_>) -> Result<Vec<u8>> {
    let (mut prefix, mut header) = (Vec::new(), Vec::new());
    survey.next(8, &mut prefix)?;
    let length = prefix.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    // One that is too long is refused, in the same words, by what parses it.
    survey.next(length.min(weights::MAX_HEADER) as usize, &mut header)?;
    prefix.extend(header);
    Ok(prefix)
}

/// Images, by the name that they have, and labels.
fn find(tensors: &Metadata) -> Result<(&'static str, &TensorInfo, &TensorInfo)> {
    let images = ["images", "adversarial"].into_iter().find_map(|name| Some((name, tensors.info(name)?)));
    let Some((name, images)) = images else {
        let mut there: Vec<String> = tensors.tensors().into_keys().filter(|name| name.len() <= 40).collect();
        there.sort();
        there.truncate(8);
        let there = if there.is_empty() { String::new() } else { format!("; there are {}", there.join(", ")) };
        return Err(Error::data("images", format!("this tensor is missing{there}")));
    };
    let Some(labels) = tensors.info("labels") else { return Err(Error::data("labels", "this tensor is missing")) };
    Ok((name, images, labels))
}

#[cfg(test)]
mod tests {
    use super::super::{View, open, write_safetensors};
    use super::*;
    use crate::model::Dims;
    use std::collections::BTreeMap;

    fn read_back(
        tensors: &[(&str, View<'_>)],
        classes: Option<&str>,
        limit: Option<usize>,
    ) -> Result<(Source, Vec<f32>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata: BTreeMap<String, String> = classes.map(|c| ("classes".into(), c.into())).into_iter().collect();
        write_safetensors(&path, tensors, &metadata).unwrap();
        let mut set = open(&path, limit)?;
        let images = set.all()?;
        for i in 0..set.len() {
            let one = set.dims.len();
            assert_eq!(set.images(i..i + 1)?, images[i * one..(i + 1) * one]);
        }
        Ok((set, images))
    }

    fn message(tensors: &[(&str, View<'_>)]) -> String {
        let error = read_back(tensors, None, None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }

    #[test]
    fn bytes_and_floats_are_read() {
        let bytes = [0, 255, 17, 34];
        let (set, images) = read_back(
            &[
                ("images", View::u8(&[2, 1, 1, 2], &bytes)),
                ("labels", View::i64(&[2], &[1, 0])),
                ("other", View::u8(&[0], &[])),
            ],
            Some(r#"["zero","one"]"#),
            None,
        )
        .unwrap();
        assert_eq!(images, [0.0, 1.0, 17.0 / 255.0, 34.0 / 255.0]);
        assert_eq!(set.dims, Dims::new(1, 1, 2));
        assert_eq!((set.labels, set.classes), (vec![1, 0], vec!["zero".to_string(), "one".to_string()]));

        let floats = [("images", View::f32(&[2, 1, 1, 1], &[0.5, 1.0])), ("labels", View::u8(&[2], &[0, 1]))];
        let (set, images) = read_back(&floats, None, Some(1)).unwrap();
        assert_eq!((images.as_slice(), set.labels.as_slice()), ([0.5].as_slice(), [0].as_slice()));
        // Eight bytes a label, so that they lie before the images.
        let floats = [("images", View::f32(&[2, 1, 1, 1], &[0.5, 1.0])), ("labels", View::i64(&[2], &[3, 4]))];
        let (set, images) = read_back(&floats, None, None).unwrap();
        assert_eq!((images.as_slice(), set.labels.as_slice()), ([0.5, 1.0].as_slice(), [3, 4].as_slice()));
    }

    #[test]
    fn what_an_attack_left_is_read() {
        let attacked = [
            ("adversarial", View::f32(&[2, 1, 1, 1], &[0.5, 1.0])),
            ("clean", View::f32(&[2, 1, 1, 1], &[0.0, 0.25])),
            ("labels", View::i64(&[2], &[3, 4])),
        ];
        let (set, images) = read_back(&attacked, None, None).unwrap();
        assert_eq!((images.as_slice(), set.labels.as_slice()), ([0.5, 1.0].as_slice(), [3, 4].as_slice()));
    }

    /// A megabyte is read at a time: samples keep their numbers behind it, and a limit counts from the first.
    #[test]
    fn samples_are_counted_on_from_one_block_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let n = 300_000;
        let read = |pixels: &[f32], labels: &[i64], limit| {
            let tensors = [("images", View::f32(&[n, 1, 1, 1], pixels)), ("labels", View::i64(&[n], labels))];
            write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
            open(&path, limit)
        };
        let (mut pixels, mut labels) = (vec![0.5; n], vec![1; n]);
        (pixels[n - 2], labels[n - 2]) = (0.25, 4);
        let mut set = read(&pixels, &labels, Some(n - 1)).unwrap();
        assert_eq!((set.len(), set.labels[n - 2], set.images(n - 3..n - 1).unwrap()), (n - 1, 4, vec![0.5, 0.25]));
        labels[n - 1] = -1;
        assert!(read(&pixels, &labels, None).unwrap_err().to_string().contains("sample 299999: label -1"));
        (pixels[n - 1], labels[n - 1]) = (2.0, 0);
        assert!(read(&pixels, &labels, None).unwrap_err().to_string().contains("sample 299999: value 2"));
    }

    #[test]
    fn bad_tensors_are_refused_by_name_and_sample() {
        let labels = || ("labels", View::i64(&[2], &[0, 1]));
        let images = || ("images", View::u8(&[2, 1, 1, 1], &[0, 1]));
        let bad = |values: &[f32; 2]| message(&[("images", View::f32(&[2, 1, 1, 1], values)), labels()]);
        assert!(bad(&[0.0, f32::NAN]).contains("x.safetensors: images: sample 1: value NaN"));
        let beyond = [("images", View::f32(&[2, 1, 1, 1], &[0.0, f32::NAN])), labels()];
        assert!(read_back(&beyond, None, Some(1)).is_err(), "beyond the limit too");
        assert!(bad(&[f32::INFINITY, 0.0]).contains("sample 0"));
        assert!(bad(&[0.0, 1.0001]).contains("outside [0, 1]"));
        assert!(bad(&[-0.1, 0.0]).contains("outside [0, 1]"));
        assert!(message(&[labels()]).contains("images: this tensor is missing"));
        assert!(message(&[("x", View::f32(&[1], &[0.0])), labels()]).contains("there are labels, x"));
        assert!(message(&[("adversarial", View::f32(&[1], &[0.0])), labels()]).contains("adversarial: shape [1]"));
        assert!(message(&[images()]).contains("labels: this tensor is missing"));
        assert!(message(&[("images", View::u8(&[2, 1, 1], &[0, 1])), labels()]).contains("[N, C, H, W]"));
        assert!(message(&[("images", View::i64(&[2, 1, 1, 1], &[0, 1])), labels()]).contains("I64 values"));
        assert!(message(&[("images", View::u8(&[0, 1, 1, 1], &[])), labels()]).contains("empty"));
        assert!(message(&[images(), ("labels", View::i64(&[1], &[0]))]).contains("there are 2 images"));
        assert!(message(&[images(), ("labels", View::i64(&[2, 1], &[0, 0]))]).contains("shape [2, 1]"));
        assert!(message(&[images(), ("labels", View::i64(&[2], &[0, -1]))]).contains("sample 1: label -1"));
        assert!(message(&[images(), ("labels", View::f32(&[2], &[0.0, 1.0]))]).contains("only integers"));
        let named = |classes| read_back(&[images(), labels()], Some(classes), None).unwrap_err().to_string();
        assert!(named(r#"["only"]"#).contains("sample 1: label 1, but there are 1 classes"));
        assert!(named("[1]").contains("not a JSON list of strings"));
        assert!(named(r#"["a","b\u001b[2J"]"#).contains("control character"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = [("images", View::u8(&[1, 1, 1, 1], &[9])), ("labels", View::i64(&[1], &[0]))];
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            open(&path, None)
        };
        assert!(read(&bytes).is_ok());
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]).unwrap_err().exit_code(), 3, "cut at {end}");
        }
        assert!(read(&[&bytes[..], &[0]].concat()).unwrap_err().to_string().contains("its header says"));
    }

    #[test]
    fn a_header_that_lies_allocates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let header = r#"{"images":{"dtype":"U8","shape":[1099511627776,1,1,1],"data_offsets":[0,1099511627776]}}"#;
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        let error = open(&path, None).unwrap_err();
        assert!(error.to_string().contains("its header says") && error.exit_code() == 3, "{error}");
        std::fs::write(&path, (1_u64 << 40).to_le_bytes()).unwrap();
        assert!(open(&path, None).unwrap_err().to_string().contains("at most"));
    }
}
