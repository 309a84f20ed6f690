//! What tests of weights are made of: files, tensors, layers, and what is said of a model that is refused.

use super::names::{Tensors, expected};
use crate::error::Result;
use crate::model::{Conv2d, Layer, Model};
use std::collections::BTreeMap;

/// A file from a header as text and the bytes behind it.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A sound file of f32 tensors.
pub fn file(metadata: &[(&str, &str)], tensors: &Tensors) -> Vec<u8> {
    let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
    let mut header = serde_json::json!({ "__metadata__": metadata });
    let mut data = Vec::new();
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header[name] = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
    }
    raw(&header.to_string(), &data)
}

/// Tensors of an architecture, every value different and every variance positive.
pub fn tensors(layers: &[Layer]) -> Tensors {
    let mut seed = 0_u32;
    let mut value = || {
        seed += 1;
        (crate::attack::philox(1, [seed, 0, 0, 0])[0] >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let fill = |(name, shape): (String, Vec<usize>)| {
        let offset = if name.ends_with("running_var") { 0.6 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|_| value() + offset).collect();
        (name, (shape, values))
    };
    expected(layers).unwrap().into_iter().map(fill).collect()
}

pub fn conv(name: &str, inputs: usize, outputs: usize) -> Layer {
    Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel: 1, stride: 1, padding: 0, bias: false })
}

pub fn norm(name: &str, channels: usize) -> Layer {
    Layer::BatchNorm { name: name.into(), channels, eps: 1e-5 }
}

pub fn message(result: Result<Model>) -> String {
    // Not `unwrap_err`: it would print every weight.
    let Err(error) = result else { panic!("must be refused") };
    assert_eq!(error.exit_code(), 3);
    error.to_string()
}
