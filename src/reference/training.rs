//! The same networks in training mode: batch norm with the statistics of the batch. Layer by layer for the whole batch,
//! for samples are coupled; every other layer is that of [`Reference`], sample by sample.

use super::layers::{Params64, for_each_carried, params64};
use super::loss;
use super::network::{Pass, Reference, Saved};
use super::parallel::parallel;
use crate::attack::{Loss, Sample, check_samples};
use crate::error::{Error, Result};
use crate::model::{Dims, Layer, Model, Shortcut};

/// A network in training mode on the CPU in f64: what [`crate::Training`] is compared with. All images of a call are
/// one batch.
#[derive(Clone, Debug)]
pub struct Training {
    /// Its layers alone are used, never the network as a whole.
    net: Reference,
}

/// What the backward of one layer needs from its forward, for the whole batch.
enum Node {
    /// One for each sample.
    Leaf(Vec<Saved>),
    BatchNorm(Normal),
    Residual {
        dims: Dims,
        out: Dims,
    },
}

/// x̂ of a batch norm, and 1/deviation of each channel.
struct Normal {
    x: Vec<Vec<f64>>,
    inverse: Vec<f64>,
    dims: Dims,
}

impl Training {
    /// Takes a network whose batch norm was kept apart ([`crate::weights::load_training`]).
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer when shapes do not fit or parameters are missing.
    pub fn new(model: Model) -> Result<Self> {
        model.check_training()?;
        let params = params64(&model);
        Ok(Training { net: Reference { model, params } })
    }

    /// The network.
    pub fn model(&self) -> &Model {
        &self.net.model
    }

    /// Logits `[N, K]` of images `[N, C, H, W]`, all of them one batch.
    ///
    /// # Errors
    /// [`Error::Data`] when the length is no multiple of an image, or where a batch norm would have one value a
    /// channel.
    pub fn logits_f64(&self, images: &[f32]) -> Result<Vec<f64>> {
        Ok(self.forward(images, &mut Vec::new())?.concat())
    }

    /// Gradient `[N, C, H, W]` of the *sum* of all samples' losses with respect to every image, and the losses `[N]`.
    ///
    /// # Errors
    /// As [`Training::logits_f64`]; [`Error::Data`] for samples that do not fit, [`Error::Usage`] where the network has
    /// too few classes for the loss.
    pub fn loss_gradient_f64(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<(Vec<f64>, Vec<f64>)> {
        let n = self.net.count(images)?;
        check_samples(samples, n, loss, self.model())?;
        let mut tape = Vec::new();
        let logits = self.forward(images, &mut tape)?;
        let (losses, seeds) = logits.iter().zip(samples).map(|(z, s)| loss::follow(loss, z, s)).unzip();
        Ok((self.layers_backward(&self.model().layers, seeds, &mut tape).concat(), losses))
    }

    fn forward(&self, images: &[f32], tape: &mut Vec<Node>) -> Result<Vec<Vec<f64>>> {
        let n = self.net.count(images)?;
        let xs = (0..n).map(|i| self.net.image(images, i).iter().copied().map(f64::from).collect()).collect();
        let model = self.model();
        Ok(self.layers_forward(&model.layers, xs, model.input, tape)?.0)
    }

    fn layers_forward(
        &self,
        layers: &[Layer],
        xs: Vec<Vec<f64>>,
        dims: Dims,
        tape: &mut Vec<Node>,
    ) -> Result<(Vec<Vec<f64>>, Dims)> {
        layers.iter().try_fold((xs, dims), |(xs, dims), layer| self.layer_forward(layer, xs, dims, tape))
    }

    fn layers_backward(&self, layers: &[Layer], dys: Vec<Vec<f64>>, tape: &mut Vec<Node>) -> Vec<Vec<f64>> {
        layers.iter().rev().fold(dys, |dys, layer| self.layer_backward(layer, dys, tape))
    }

    fn layer_forward(
        &self,
        layer: &Layer,
        xs: Vec<Vec<f64>>,
        dims: Dims,
        tape: &mut Vec<Node>,
    ) -> Result<(Vec<Vec<f64>>, Dims)> {
        let out = layer.output(dims)?;
        let ys = match layer {
            Layer::BatchNorm { name, eps, .. } => {
                if xs.len() * dims.h * dims.w == 1 {
                    let detail = format!("{name} has one value a channel: there is no variance to divide by");
                    return Err(Error::data("images", detail));
                }
                let (ys, normal) = batch_norm(&self.net.params[name], *eps, &xs, dims);
                tape.push(Node::BatchNorm(normal));
                ys
            }
            Layer::Residual { body, shortcut } => {
                let (mut ys, _) = self.layers_forward(body, xs.clone(), dims, tape)?;
                match shortcut {
                    Shortcut::Projection(layers) => {
                        let (through, _) = self.layers_forward(layers, xs, dims, tape)?;
                        add(&mut ys, &through);
                    }
                    carried => ys.iter_mut().zip(&xs).for_each(|(y, x)| {
                        for_each_carried(carried, dims, out, |from, to| y[to] += x[from]);
                    }),
                }
                tape.push(Node::Residual { dims, out });
                ys
            }
            leaf => {
                let each = parallel(xs.len(), |i| {
                    let mut pass = Pass::default();
                    let (y, _) = self.net.layer_forward(leaf, xs[i].clone(), dims, &mut pass);
                    (y, pass.tape.pop().expect("a leaf pushes one"))
                });
                let (ys, saved) = each.into_iter().unzip();
                tape.push(Node::Leaf(saved));
                ys
            }
        };
        Ok((ys, out))
    }

    fn layer_backward(&self, layer: &Layer, mut dys: Vec<Vec<f64>>, tape: &mut Vec<Node>) -> Vec<Vec<f64>> {
        match (layer, tape.pop().expect("forward pushed one for each layer")) {
            (Layer::BatchNorm { name, .. }, Node::BatchNorm(normal)) => {
                batch_norm_backward(&self.net.params[name], &dys, &normal)
            }
            (Layer::Residual { body, shortcut }, Node::Residual { dims, out }) => {
                let through = match shortcut {
                    Shortcut::Projection(layers) => self.layers_backward(layers, dys.clone(), tape),
                    carried => dys
                        .iter()
                        .map(|dy| {
                            let mut through = vec![0.0; dims.len()];
                            for_each_carried(carried, dims, out, |to, from| through[to] += dy[from]);
                            through
                        })
                        .collect(),
                };
                dys = self.layers_backward(body, dys, tape);
                add(&mut dys, &through);
                dys
            }
            (leaf, Node::Leaf(saved)) => {
                parallel(dys.len(), |i| self.net.layer_backward(leaf, dys[i].clone(), &mut vec![saved[i].clone()]))
            }
            _ => unreachable!("forward pushed its own kind"),
        }
    }
}

fn add(ys: &mut [Vec<f64>], xs: &[Vec<f64>]) {
    ys.iter_mut().flatten().zip(xs.iter().flatten()).for_each(|(y, x)| *y += x);
}

// Batch norm: forward, then the gradient with respect to the input. Values are found by sample and place in it.

/// Mean over the pixels of each channel in all `n` samples.
fn means(n: usize, d: Dims, value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let pixels = d.h * d.w;
    let sum =
        |c: usize| (0..n).map(|i| (c * pixels..(c + 1) * pixels).map(|at| value(i, at)).sum::<f64>()).sum::<f64>();
    (0..d.c).map(|c| sum(c) / (n * pixels) as f64).collect()
}

/// Values of `n` samples; the last argument is the channel.
fn batch(n: usize, d: Dims, value: impl Fn(usize, usize, usize) -> f64) -> Vec<Vec<f64>> {
    let one = |i: usize| (0..d.len()).map(|at| value(i, at, at / (d.h * d.w))).collect();
    (0..n).map(one).collect()
}

fn batch_norm(p: &Params64, eps: f64, x: &[Vec<f64>], d: Dims) -> (Vec<Vec<f64>>, Normal) {
    let n = x.len();
    let mean = means(n, d, |i, at| x[i][at]);
    let variance = means(n, d, |i, at| (x[i][at] - mean[at / (d.h * d.w)]).powi(2));
    let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let x = batch(n, d, |i, at, c| (x[i][at] - mean[c]) * inverse[c]);
    let y = batch(n, d, |i, at, c| p.weight[c] * x[i][at] + p.bias[c]);
    (y, Normal { x, inverse, dims: d })
}

fn batch_norm_backward(p: &Params64, dy: &[Vec<f64>], normal: &Normal) -> Vec<Vec<f64>> {
    let Normal { x, inverse, dims } = normal;
    let mean = means(dy.len(), *dims, |i, at| dy[i][at]);
    let slope = means(dy.len(), *dims, |i, at| dy[i][at] * x[i][at]);
    batch(dy.len(), *dims, |i, at, c| p.weight[c] * inverse[c] * (dy[i][at] - mean[c] - x[i][at] * slope[c]))
}
