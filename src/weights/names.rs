//! Tensors by name: those that layers ask for, and in what those that were found differ from them.

use crate::error::{Error, Result};
use crate::model::{Conv2d, Layer, Linear, Shapes};
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, BTreeSet};

/// Named tensors: shape, outermost axis first, and values in that order.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Tensors of a file that is open.
pub(super) type Views<'a> = BTreeMap<String, TensorView<'a>>;

/// Names and shapes of the tensors that layers ask for, in their order.
pub(crate) fn expected(layers: &[Layer]) -> Result<Vec<(String, Vec<usize>)>> {
    let mut list = Vec::new();
    collect(layers, &mut list);
    let mut names = BTreeSet::new();
    match list.iter().find(|(name, _)| !names.insert(name)) {
        Some((name, _)) => Err(Error::model(name, "two layers ask for this tensor")),
        None => Ok(list),
    }
}

fn collect<'a>(layers: impl IntoIterator<Item = &'a Layer>, list: &mut Vec<(String, Vec<usize>)>) {
    for layer in layers {
        let mut push = |name: &str, part: &str, shape: Vec<usize>| list.push((format!("{name}.{part}"), shape));
        match layer {
            Layer::Conv2d(Conv2d { name, inputs, outputs, kernel, bias, .. }) => {
                push(name, "weight", vec![*outputs, *inputs, *kernel, *kernel]);
                if *bias {
                    push(name, "bias", vec![*outputs]);
                }
            }
            Layer::Linear(Linear { name, inputs, outputs, bias }) => {
                push(name, "weight", vec![*outputs, *inputs]);
                if *bias {
                    push(name, "bias", vec![*outputs]);
                }
            }
            Layer::Affine { name, channels } => {
                push(name, "weight", vec![*channels]);
                push(name, "bias", vec![*channels]);
            }
            Layer::BatchNorm { name, channels, .. } => {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    push(name, part, vec![*channels]);
                }
            }
            Layer::Residual { .. } => collect(layer.inner(), list),
            Layer::Normalise { .. }
            | Layer::Relu
            | Layer::MaxPool { .. }
            | Layer::AvgPool { .. }
            | Layer::GlobalAvgPool
            | Layer::Flatten => {}
        }
    }
}

/// The first difference between the tensors asked for and those there are.
pub(super) fn difference(expected: &[(String, Vec<usize>)], found: &Shapes) -> Option<Error> {
    for (name, shape) in expected {
        match found.get(name) {
            None => return Some(Error::model(name, "this tensor is missing")),
            Some(other) if other != shape => {
                return Some(Error::model(name, format!("has shape {other:?}, but {shape:?} is expected")));
            }
            Some(_) => {}
        }
    }
    let asked: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let surplus = found.keys().find(|name| !asked.contains(name.as_str()))?;
    Some(Error::model(surplus, "this tensor is left over: no layer asks for it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    /// The layers of a wide ResNet whose names are as the layout has them, written down by hand.
    #[test]
    fn a_wide_resnet_is_what_its_layout_says() {
        let list = expected(&model::wide_resnet(4, 10, 10).layers).unwrap();
        let shape = |name: &str| list.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        for (name, want) in [
            ("conv1.weight", vec![16, 3, 3, 3]),
            ("block1.layer.0.bn1.running_var", vec![16]),
            ("block1.layer.0.convShortcut.weight", vec![160, 16, 1, 1]),
            ("block2.layer.0.conv1.weight", vec![320, 160, 3, 3]),
            ("block3.layer.3.bn2.bias", vec![640]),
            ("bn1.weight", vec![640]),
            ("fc.weight", vec![10, 640]),
        ] {
            assert_eq!(shape(name), Some(want), "{name}");
        }
        assert_eq!(shape("block3.layer.1.convShortcut.weight"), None);
        // 12 blocks of two norms and two convolutions, three projections, a stem, the last norm, the last layer.
        assert_eq!(list.len(), 12 * (2 * 4 + 2) + 3 + 1 + 4 + 2);
        assert_eq!(
            list.iter()
                .filter(|(n, _)| !n.contains("running"))
                .map(|(_, s)| s.iter().product::<usize>())
                .sum::<usize>(),
            36_479_194
        );
    }
}
