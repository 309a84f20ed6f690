//! Networks that have what no other network has, beside `every_kind_of_layer`.

use crate::common::{Rng, conv, linear, random_model};
use signstep::model::{Dims, Layer, Model, Shortcut};
use signstep::weights;

/// A layer that fast arithmetic computes in its own way, with tiles over the edge and channels that are no whole group.
pub fn for_fast_arithmetic() -> Model {
    let layers = vec![conv("a", 3, 129, 1, 1, 0), conv("b", 129, 131, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool];
    random_model(&mut Rng::new(13), Dims::new(3, 7, 8), [layers, vec![linear("z", 131, 3)]].concat())
}

/// Batch norm with the statistics of the batch, before a ReLU and before a sum.
pub fn in_training_mode() -> Model {
    let mut rng = Rng::new(12);
    let norm = |name: &str| Layer::BatchNorm { name: name.into(), channels: 7, eps: 1e-5 };
    let body = vec![conv("b", 7, 7, 3, 1, 1), norm("bn2")];
    let layers = vec![
        conv("a", 3, 7, 3, 1, 1),
        norm("bn1"),
        Layer::Relu,
        Layer::Residual { body, shortcut: Shortcut::Identity },
        Layer::Relu,
        Layer::GlobalAvgPool,
        linear("z", 7, 3),
    ];
    let mut tensors = weights::Tensors::new();
    let mut fill = |name: &str, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| 0.1 + rng.unit()).collect();
        tensors.insert(name.into(), (shape.to_vec(), values));
    };
    for (name, shape) in [("a", vec![7, 3, 3, 3]), ("b", vec![7, 7, 3, 3]), ("z", vec![3, 7])] {
        fill(&format!("{name}.weight"), &shape);
        fill(&format!("{name}.bias"), &shape[..1]);
    }
    for name in ["bn1", "bn2"] {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            fill(&format!("{name}.{part}"), &[7]);
        }
    }
    weights::from_layers_training(layers, Dims::new(3, 13, 11), tensors).unwrap()
}
