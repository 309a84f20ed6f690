//! Data sets in safetensors: `images` (u8 in [0, 255], or floats in [0, 1]; [N, C, H, W]) and `labels` (integers; [N]).
//! Other tensors are ignored. Metadata `classes` (JSON list) names the classes.

use super::{Dataset, distance_to_bytes, from_bytes, sha256};
use crate::error::{Error, Result};
use crate::model::Dims;
use crate::weights;
use safetensors::tensor::{Dtype, TensorView};

/// Reads the bytes of the file `place`.
pub(super) fn read(place: &str, bytes: &[u8], limit: usize) -> Result<Dataset> {
    parse(bytes, limit).map(|set| Dataset { source: place.into(), ..set }).map_err(|e| e.in_file(place))
}

fn parse(bytes: &[u8], limit: usize) -> Result<Dataset> {
    let (file, metadata) = weights::open(bytes).map_err(|detail| Error::data("tensors", detail))?;
    let Ok(images) = file.tensor("images") else {
        let detail = if file.tensor("adversarial").is_ok() {
            "this tensor is missing; the file looks like the output of an attack, with `clean` and `adversarial` instead"
        } else {
            "this tensor is missing"
        };
        return Err(Error::data("images", detail));
    };
    let Ok(labels) = file.tensor("labels") else { return Err(Error::data("labels", "this tensor is missing")) };

    let [n, c, h, w] = *images.shape() else {
        return Err(Error::data("images", format!("shape {:?}, but [N, C, H, W] is expected", images.shape())));
    };
    if images.data().is_empty() {
        return Err(Error::data("images", format!("empty: shape {:?}", images.shape())));
    }
    if labels.shape() != [n] {
        return Err(Error::data("labels", format!("shape {:?}, but there are {n} images", labels.shape())));
    }
    // No overflow: the data hold this many values.
    let dims = Dims::new(c, h, w);
    let mut labels = integers(&labels)?;
    let classes = match metadata.get("classes") {
        Some(text) => weights::class_names(text).map_err(|detail| Error::data("metadata `classes`", detail))?,
        None => Vec::new(),
    };
    if let Some(i) = labels.iter().position(|label| *label < 0) {
        return Err(Error::data("labels", format!("sample {i}: label {} is negative", labels[i])));
    }
    if let Some(i) = labels.iter().position(|label| !classes.is_empty() && *label >= classes.len() as i64) {
        let detail = format!("sample {i}: label {}, but there are {} classes", labels[i], classes.len());
        return Err(Error::data("labels", detail));
    }
    let mut images = pixels(&images, dims)?;
    labels.truncate(limit);
    images.truncate(labels.len() * dims.len());
    let snapped = distance_to_bytes(&images);
    Ok(Dataset { images, dims, labels, classes, source: String::new(), sha256: sha256([bytes]), snapped })
}

fn pixels(view: &TensorView<'_>, dims: Dims) -> Result<Vec<f32>> {
    if view.dtype() == Dtype::U8 {
        return Ok(from_bytes(view.data()).collect());
    }
    let Some(values) = weights::decode(view) else {
        return Err(Error::data("images", format!("{} values; u8 and floats are supported", view.dtype())));
    };
    if let Some(i) = values.iter().position(|v| !(0.0..=1.0).contains(v)) {
        let detail = format!("sample {}: value {} lies outside [0, 1]", i / dims.len(), values[i]);
        return Err(Error::data("images", detail));
    }
    Ok(values)
}

fn integers(view: &TensorView<'_>) -> Result<Vec<i64>> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::U8 => data.iter().map(|b| i64::from(*b)).collect(),
        Dtype::I8 => data.iter().map(|b| i64::from(b.cast_signed())).collect(),
        Dtype::U16 => data.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))).collect(),
        Dtype::I16 => data.as_chunks().0.iter().map(|b| i64::from(i16::from_le_bytes(*b))).collect(),
        Dtype::U32 => data.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        // What does not fit into i64 becomes negative, and is refused as such.
        Dtype::U64 => data.as_chunks().0.iter().map(|b| i64::try_from(u64::from_le_bytes(*b)).unwrap_or(-1)).collect(),
        other => return Err(Error::data("labels", format!("{other} values; only integers are supported"))),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{View, load, write_safetensors};
    use super::*;
    use std::collections::BTreeMap;

    fn read_back(tensors: &[(&str, View<'_>)], classes: Option<&str>, limit: Option<usize>) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata: BTreeMap<String, String> = classes.map(|c| ("classes".into(), c.into())).into_iter().collect();
        write_safetensors(&path, tensors, &metadata).unwrap();
        load(&path, limit)
    }

    fn message(tensors: &[(&str, View<'_>)]) -> String {
        let error = read_back(tensors, None, None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }

    #[test]
    fn bytes_and_floats_are_read() {
        let bytes = [0, 255, 17, 34];
        let set = read_back(
            &[
                ("images", View::u8(&[2, 1, 1, 2], &bytes)),
                ("labels", View::i64(&[2], &[1, 0])),
                ("other", View::u8(&[0], &[])),
            ],
            Some(r#"["zero","one"]"#),
            None,
        )
        .unwrap();
        assert_eq!(set.images, [0.0, 1.0, 17.0 / 255.0, 34.0 / 255.0]);
        assert_eq!((set.dims, set.snapped), (Dims::new(1, 1, 2), 0.0));
        assert_eq!((set.labels, set.classes), (vec![1, 0], vec!["zero".to_string(), "one".to_string()]));

        let floats = [("images", View::f32(&[2, 1, 1, 1], &[0.5, 1.0])), ("labels", View::u8(&[2], &[0, 1]))];
        let set = read_back(&floats, None, Some(1)).unwrap();
        assert_eq!((set.images.as_slice(), set.labels.as_slice()), ([0.5].as_slice(), [0].as_slice()));
        assert!((set.snapped - 0.5 / 255.0).abs() < 1e-7);
    }

    #[test]
    fn bad_tensors_are_refused_by_name_and_sample() {
        let labels = || ("labels", View::i64(&[2], &[0, 1]));
        let images = || ("images", View::u8(&[2, 1, 1, 1], &[0, 1]));
        let bad = |values: &[f32; 2]| message(&[("images", View::f32(&[2, 1, 1, 1], values)), labels()]);
        assert!(bad(&[0.0, f32::NAN]).contains("x.safetensors: images: sample 1: value NaN"));
        assert!(bad(&[f32::INFINITY, 0.0]).contains("sample 0"));
        assert!(bad(&[0.0, 1.0001]).contains("outside [0, 1]"));
        assert!(bad(&[-0.1, 0.0]).contains("outside [0, 1]"));
        assert!(message(&[labels()]).contains("images: this tensor is missing"));
        assert!(message(&[("adversarial", View::f32(&[1], &[0.0])), labels()]).contains("output of an attack"));
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
        assert!(read("x", &bytes, usize::MAX).is_ok());
        for end in 0..bytes.len() {
            assert_eq!(read("x", &bytes[..end], usize::MAX).unwrap_err().exit_code(), 3, "cut at {end}");
        }
    }
}
