//! What layers must be for the engine to run them: where each may stand, and how large it may be.

use super::fold::Norms;
use crate::error::{Error, Result};
use crate::model::{Conv2d, Dims, Layer, Linear, MAX_VALUES, Shortcut};

/// Refuses a shape that no sample has.
pub(crate) fn check_size(place: &str, d: Dims) -> Result<()> {
    let len = d.c.checked_mul(d.h).and_then(|n| n.checked_mul(d.w));
    match len {
        Some(n) if n > 0 && n <= MAX_VALUES => Ok(()),
        _ => Err(Error::model(place, format!("{d}: every side must be 1 or more, and at most {MAX_VALUES} values"))),
    }
}

/// Checks what [`Layer::output`] does not: sizes, order, and where a layer may stand.
pub(crate) fn check_layers(layers: &[Layer], input: Dims, norms: Norms, outermost: bool) -> Result<Dims> {
    let mut x = input;
    for (i, layer) in layers.iter().enumerate() {
        let after_conv = i > 0 && matches!(layers[i - 1], Layer::Conv2d(_));
        match layer {
            Layer::Normalise { .. } if i > 0 || !outermost => {
                return Err(Error::model(layer.label(), "only supported as the first layer"));
            }
            Layer::BatchNorm { .. } if norms == Norms::Apart && !after_conv => {
                let detail = "in training mode batch norm is only supported right after a convolution";
                return Err(Error::model(layer.label(), detail));
            }
            Layer::Residual { body, shortcut } => {
                if matches!(shortcut, Shortcut::Subsample { added } if *added > MAX_VALUES) {
                    return Err(Error::model(layer.label(), "too many added channels"));
                }
                let end = body.iter().rev().find(|l| !matches!(l, Layer::BatchNorm { .. }));
                if !matches!(end, Some(Layer::Conv2d(_))) {
                    return Err(Error::model(layer.label(), "the body must end with a convolution"));
                }
                check_layers(body, x, norms, false)?;
                if let Shortcut::Projection(layers) = shortcut {
                    let behind = layers.iter().skip(1).filter(|l| matches!(l, Layer::BatchNorm { .. })).count();
                    if !matches!(layers.first(), Some(Layer::Conv2d(_)))
                        || layers.len() > 2
                        || behind + 1 != layers.len()
                    {
                        let detail = "a projection must be one convolution, with a batch norm behind it or none";
                        return Err(Error::model(layer.label(), detail));
                    }
                    check_layers(layers, x, norms, false)?;
                }
            }
            // Guards the products in `Layer::output` and in the shapes of weights.
            Layer::Conv2d(Conv2d { inputs, outputs, .. })
                if inputs.checked_mul(*outputs).is_none_or(|n| n > MAX_VALUES / 49) =>
            {
                return Err(Error::model(layer.label(), "the weights are too large"));
            }
            Layer::Linear(Linear { inputs, outputs, .. })
                if inputs.checked_mul(*outputs).is_none_or(|n| n > MAX_VALUES) =>
            {
                return Err(Error::model(layer.label(), "the weights are too large"));
            }
            _ => {}
        }
        x = layer.output(x)?;
        check_size(&layer.label(), x)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::super::made::{conv, message, norm, tensors};
    use super::super::names::{Tensors, expected};
    use super::super::{from_layers, from_layers_training};
    use super::*;

    #[test]
    fn layers_that_the_engine_does_not_have_are_refused_by_name() {
        let input = Dims::new(8, 1, 1);
        let refused = |layers: Vec<Layer>| {
            let tensors = expected(&layers).map(|_| tensors(&layers)).unwrap_or_default();
            message(from_layers(layers, input, tensors))
        };
        for layers in [
            vec![conv("c", 8, 8), Layer::Relu, norm("b", 8)],
            vec![conv("c", 8, 8), norm("d", 8), norm("b", 8)],
            vec![norm("b", 8)],
        ] {
            let tensors = tensors(&layers);
            let training = message(from_layers_training(layers, input, tensors));
            assert!(training.contains("b: in training mode batch norm is only supported right after"), "{training}");
        }
        assert!(refused(vec![conv("c", 8, 8), conv("c", 8, 8)]).contains("c.weight: two layers"));
        assert!(refused(vec![conv("c", 7, 8)]).contains("c: takes 7 channels"));
        assert!(refused(vec![conv("c", 8, 1)]).contains("K at least 2"));
        let late = Layer::Normalise { mean: vec![0.0; 8], std: vec![1.0; 8] };
        assert!(refused(vec![conv("c", 8, 8), late]).contains("normalise: only supported as the first"));
        // What a kernel multiplies by is a number of f32's.
        for (mean, std) in [(1e300, 1.0), (f64::NAN, 1.0), (0.0, 0.0), (0.0, 1e-40), (0.0, 1e39)] {
            let normalise = Layer::Normalise { mean: vec![mean; 8], std: vec![std; 8] };
            assert!(refused(vec![normalise, conv("c", 8, 8)]).contains("normalise: means must be finite"));
        }
        let residual = |body| Layer::Residual { body, shortcut: Shortcut::Identity };
        assert!(refused(vec![residual(vec![conv("c", 8, 8), Layer::Relu])]).contains("must end with a convolution"));
        assert!(refused(vec![norm("b", 7)]).contains("b: 7 channels"));
        assert!(refused(vec![residual(vec![])]).contains("must end with a convolution"));
        let huge = vec![conv("c", 8, usize::MAX / 4)];
        assert!(message(from_layers(huge, input, Tensors::new())).contains("too large"));
        let short = Tensors::from([("c.weight".into(), (vec![8, 8, 1, 1], vec![0.0; 63]))]);
        assert!(message(from_layers(vec![conv("c", 8, 8)], input, short)).contains("c.weight: 63 values"));
        assert!(message(from_layers(vec![], Dims::new(0, 1, 1), Tensors::new())).contains("input: 0×1×1"));
    }
}
