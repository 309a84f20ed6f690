//! Tensors become parameters. Each layer takes its own; batch norm is folded, in f64, into the convolution before it,
//! or stays a layer for training mode.

use super::names::Tensors;
use crate::error::{Error, Result};
use crate::model::{Layer, Params, Shortcut};
use std::collections::BTreeMap;

/// What becomes of batch norm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Part of the convolution before it, with its running statistics.
    Folded,
    /// A layer, for the statistics of a batch.
    Apart,
}

/// Moves tensors into `params`, and every batch norm that is to be folded into the convolution before it.
pub(super) fn take_params(
    layers: Vec<Layer>,
    tensors: &mut Tensors,
    params: &mut BTreeMap<String, Params>,
    norms: Norms,
) -> Result<Vec<Layer>> {
    let mut folded: Vec<Layer> = Vec::new();
    let mut rest = layers.into_iter().peekable();
    while let Some(layer) = rest.next() {
        let mut take = |name: &str, part: &str| {
            let name = format!("{name}.{part}");
            tensors.remove(&name).map(|(_, values)| values).ok_or_else(|| Error::model(name, "this tensor is missing"))
        };
        match layer {
            Layer::Conv2d(mut conv) => {
                let mut p = Params { weight: take(&conv.name, "weight")?, bias: vec![0.0; conv.outputs] };
                if conv.bias {
                    p.bias = take(&conv.name, "bias")?;
                }
                conv.bias = true;
                let to_fold = |l: &Layer| norms == Norms::Folded && matches!(l, Layer::BatchNorm { .. });
                if let Some(Layer::BatchNorm { name, eps, .. }) = rest.next_if(to_fold) {
                    BatchNorm::take(&name, &mut take)?.fold_into(&mut p, eps);
                    if let Some(k) = not_finite(&p) {
                        let detail = format!("output {k} of {} is not finite once this is folded into it", conv.name);
                        return Err(Error::model(name, detail));
                    }
                }
                params.insert(conv.name.clone(), p);
                folded.push(Layer::Conv2d(conv));
            }
            // With nothing to fold it into it is a layer of its own.
            Layer::BatchNorm { name, channels, eps } if norms == Norms::Folded => {
                let mut p = Params { weight: vec![1.0; channels], bias: vec![0.0; channels] };
                BatchNorm::take(&name, &mut take)?.fold_into(&mut p, eps);
                if let Some(k) = not_finite(&p) {
                    return Err(Error::model(name, format!("channel {k} is not finite")));
                }
                params.insert(name.clone(), p);
                folded.push(Layer::Affine { name, channels });
            }
            Layer::Affine { name, channels } => {
                let p = Params { weight: take(&name, "weight")?, bias: take(&name, "bias")? };
                params.insert(name.clone(), p);
                folded.push(Layer::Affine { name, channels });
            }
            Layer::BatchNorm { name, channels, eps } => {
                let p = Params { weight: take(&name, "weight")?, bias: take(&name, "bias")? };
                for part in ["running_mean", "running_var"] {
                    take(&name, part)?;
                }
                params.insert(name.clone(), p);
                folded.push(Layer::BatchNorm { name, channels, eps });
            }
            Layer::Linear(mut linear) => {
                let mut p = Params { weight: take(&linear.name, "weight")?, bias: vec![0.0; linear.outputs] };
                if linear.bias {
                    p.bias = take(&linear.name, "bias")?;
                }
                linear.bias = true;
                params.insert(linear.name.clone(), p);
                folded.push(Layer::Linear(linear));
            }
            Layer::Residual { body, shortcut } => {
                let body = take_params(body, tensors, params, norms)?;
                let shortcut = match shortcut {
                    Shortcut::Projection(layers) => Shortcut::Projection(take_params(layers, tensors, params, norms)?),
                    other => other,
                };
                folded.push(Layer::Residual { body, shortcut });
            }
            other => folded.push(other),
        }
    }
    Ok(folded)
}

struct BatchNorm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl BatchNorm {
    /// Its four tensors, with what takes one by its owner's name and its own.
    fn take(name: &str, take: &mut impl FnMut(&str, &str) -> Result<Vec<f32>>) -> Result<Self> {
        Ok(BatchNorm {
            gamma: take(name, "weight")?,
            beta: take(name, "bias")?,
            mean: take(name, "running_mean")?,
            variance: take(name, "running_var")?,
        })
    }

    /// γ·(conv(x) − μ)/√(σ² + eps) + β is a convolution again: one rounding to f32, at the end.
    fn fold_into(&self, p: &mut Params, eps: f64) {
        let taps = p.weight.len() / p.bias.len();
        for (k, filter) in p.weight.chunks_exact_mut(taps).enumerate() {
            let scale = f64::from(self.gamma[k]) / (f64::from(self.variance[k]) + eps).sqrt();
            for w in filter {
                *w = (f64::from(*w) * scale) as f32;
            }
            let shifted = f64::from(p.bias[k]) - f64::from(self.mean[k]);
            p.bias[k] = (shifted * scale + f64::from(self.beta[k])) as f32;
        }
    }
}

/// The first output with a weight or bias that is not finite.
fn not_finite(p: &Params) -> Option<usize> {
    let taps = p.weight.len() / p.bias.len();
    (0..p.bias.len())
        .find(|&k| !p.bias[k].is_finite() || p.weight[k * taps..(k + 1) * taps].iter().any(|w| !w.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::super::from_layers;
    use super::super::made::{conv, message, norm};
    use super::*;
    use crate::model::Dims;

    #[test]
    fn batch_norm_is_folded_as_by_hand() {
        // x = 3: conv gives 6 and −3; (6 − 1)/√(4 + 1e-5)·0.5 + 0.25 and (−3 + 2)/√(0 + 1e-5)·2 − 1.
        let tensors = Tensors::from([
            ("c.weight".into(), (vec![2, 1, 1, 1], vec![2.0, -1.0])),
            ("b.weight".into(), (vec![2], vec![0.5, 2.0])),
            ("b.bias".into(), (vec![2], vec![0.25, -1.0])),
            ("b.running_mean".into(), (vec![2], vec![1.0, -2.0])),
            ("b.running_var".into(), (vec![2], vec![4.0, 0.0])),
        ]);
        let folded = |eps| {
            let norm = Layer::BatchNorm { name: "b".into(), channels: 2, eps };
            from_layers(vec![conv("c", 1, 2), norm], Dims::new(1, 1, 1), tensors.clone())
        };
        for eps in [1e-5, 1e-3, 2.0] {
            let model = folded(eps).unwrap();
            assert_eq!(model.layers.len(), 1);
            let p = &model.params["c"];
            let wanted = [2.5 / (4.0 + eps).sqrt() + 0.25, -2.0 / eps.sqrt() - 1.0];
            for (k, want) in wanted.into_iter().enumerate() {
                let got = 3.0 * f64::from(p.weight[k]) + f64::from(p.bias[k]);
                // Two roundings to f32; the second output is a difference of numbers three times its size.
                assert!((got - want).abs() <= 4.0 * f64::from(f32::EPSILON) * want.abs(), "{got} {want}");
            }
            assert_eq!((model.arch.as_str(), model.parameters()), ("custom", 4));
        }
        // The variance of the second channel is 0.
        assert!(message(folded(0.0)).contains("b: output 1 of c is not finite"));
        for eps in [-1e-5, f64::NAN, f64::INFINITY] {
            assert!(message(folded(eps)).contains("it must be 0 or more"));
        }
    }

    /// γ·(x − μ)/√(σ² + eps) + β where no convolution takes it in: before a ReLU and behind a sum.
    #[test]
    fn batch_norm_alone_becomes_a_gain_and_a_bias() {
        let tensors = Tensors::from([
            ("b.weight".into(), (vec![2], vec![0.5, 2.0])),
            ("b.bias".into(), (vec![2], vec![0.25, -1.0])),
            ("b.running_mean".into(), (vec![2], vec![1.0, -2.0])),
            ("b.running_var".into(), (vec![2], vec![4.0, 0.0])),
        ]);
        let model = from_layers(vec![norm("b", 2)], Dims::new(2, 1, 1), tensors.clone()).unwrap();
        assert_eq!(model.layers, [Layer::Affine { name: "b".into(), channels: 2 }]);
        let scale = [0.5 / 4.00001_f64.sqrt(), 2.0 / 1e-5_f64.sqrt()];
        assert_eq!(model.params["b"].weight, scale.map(|s| s as f32));
        assert_eq!(model.params["b"].bias, [(0.25 - scale[0]) as f32, (2.0 * scale[1] - 1.0) as f32]);
        let mut large = tensors;
        large.get_mut("b.weight").unwrap().1[1] = f32::MAX;
        assert!(
            message(from_layers(vec![norm("b", 2)], Dims::new(2, 1, 1), large)).contains("b: channel 1 is not finite")
        );
    }
}
