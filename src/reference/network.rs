//! A network in f64, one sample at a time: from an image to its logits, and back to the gradient of a loss.

use super::layers::{
    Memory, Params64, affine, affine_backward, avg_pool, avg_pool_backward, conv, conv_backward, for_each_carried,
    linear, linear_backward, max_pool, max_pool_backward, mean_pool, mean_pool_backward, normalise, normalise_backward,
    params64, relu, relu_backward,
};
use super::loss;
use super::parallel::parallel;
use crate::attack::{Health, Loss, Rule, Sample, argmax, check_samples};
use crate::error::{Error, Result};
use crate::model::{Dims, Layer, Model, Shortcut};
use std::collections::BTreeMap;

/// A network that runs on the CPU in f64. Samples are independent: they are spread over all cores.
#[derive(Clone, Debug)]
pub struct Reference {
    pub(super) model: Model,
    pub(super) params: BTreeMap<String, Params64>,
}

impl Reference {
    /// Takes a network whose batch norm is folded, as [`crate::weights`] makes them.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer when shapes do not fit or parameters are missing; [`Error::Usage`] where batch
    /// norm is left, which is training mode ([`Training`](super::Training)).
    pub fn new(model: Model) -> Result<Self> {
        model.check()?;
        let params = params64(&model);
        Ok(Reference { model, params })
    }

    /// Logits `[N, K]` of images `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::Data`] when the length is no multiple of an image.
    pub fn logits_f64(&self, images: &[f32]) -> Result<Vec<f64>> {
        let n = self.count(images)?;
        Ok(parallel(n, |i| self.forward(self.image(images, i)).logits).concat())
    }

    /// Gradient `[N, C, H, W]` of each sample's cross-entropy on its class with respect to its image.
    ///
    /// # Errors
    /// [`Error::Data`] when the length is no multiple of an image, or a class is out of range.
    pub fn input_gradient_f64(&self, images: &[f32], classes: &[u32]) -> Result<Vec<f64>> {
        let n = self.count(images)?;
        let samples: Vec<Sample> = classes.iter().map(|&class| Sample { class, ..Sample::default() }).collect();
        check_samples(&samples, n, Loss::CrossEntropy, &self.model)?;
        Ok(parallel(n, |i| self.backward(self.forward(self.image(images, i)), classes[i]).gradient).concat())
    }

    pub(super) fn image<'a>(&self, images: &'a [f32], i: usize) -> &'a [f32] {
        let len = self.model.input.len();
        &images[i * len..(i + 1) * len]
    }

    pub(super) fn count(&self, images: &[f32]) -> Result<usize> {
        let len = self.model.input.len();
        if !images.len().is_multiple_of(len) {
            let detail = format!("{} values are no whole number of {} images", images.len(), self.model.input);
            return Err(Error::data("images", detail));
        }
        Ok(images.len() / len)
    }

    /// One sample forward, remembering what its gradient needs.
    pub(super) fn forward(&self, image: &[f32]) -> Pass {
        let mut pass = Pass::default();
        let x: Vec<f64> = image.iter().copied().map(f64::from).collect();
        mark(&mut pass.health, &x, Health::ACTIVATION);
        let (last, body) = self.model.layers.split_last().expect("a network has layers");
        let (x, dims) = self.layers_forward(body, x, self.model.input, &mut pass);
        let activations = pass.health;
        pass.logits = self.layer_forward(last, x, dims, &mut pass).0;
        // The last layer's values are the logits, and marked as such.
        pass.health = activations;
        mark(&mut pass.health, &pass.logits, Health::LOGITS);
        pass
    }

    /// One sample backward from its cross-entropy on `class`.
    fn backward(&self, pass: Pass, class: u32) -> Backward {
        self.backward_from(pass, |z| loss::cross_entropy(z, class as usize))
    }

    /// One sample backward from the loss and the seed that `follow` gives for its logits.
    fn backward_from(&self, mut pass: Pass, follow: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> Backward {
        let (loss, seed) = follow(&pass.logits);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        let gradient = self.layers_backward(&self.model.layers, seed, &mut pass.tape);
        mark(&mut pass.health, &gradient, Health::GRADIENT);
        Backward { gradient, loss, health: pass.health }
    }

    /// A sample's loss at an image, its gradient where the rule needs one, and the class predicted there.
    pub(super) fn look(&self, image: &[f32], sample: &Sample, (rule, loss): (Rule, Loss)) -> (Backward, u32) {
        let mut pass = self.forward(image);
        let predicted = argmax(&narrow(&pass.logits).collect::<Vec<f32>>()) as u32;
        if rule.needs_gradients() {
            return (self.backward_from(pass, |z| loss::follow(loss, z, sample)), predicted);
        }
        let (loss, _) = loss::follow(loss, &pass.logits, sample);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        (Backward { gradient: Vec::new(), loss, health: pass.health }, predicted)
    }

    /// The same without the gradient.
    pub(super) fn glance(&self, image: &[f32], sample: &Sample, loss: Loss) -> (f64, Health, u32) {
        let mut pass = self.forward(image);
        let predicted = argmax(&narrow(&pass.logits).collect::<Vec<f32>>()) as u32;
        let (loss, _) = loss::follow(loss, &pass.logits, sample);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        (loss, pass.health, predicted)
    }

    fn layers_forward(&self, layers: &[Layer], x: Vec<f64>, dims: Dims, pass: &mut Pass) -> (Vec<f64>, Dims) {
        layers.iter().fold((x, dims), |(x, dims), layer| self.layer_forward(layer, x, dims, pass))
    }

    fn layers_backward(&self, layers: &[Layer], dy: Vec<f64>, tape: &mut Vec<Saved>) -> Vec<f64> {
        layers.iter().rev().fold(dy, |dy, layer| self.layer_backward(layer, dy, tape))
    }

    pub(super) fn layer_forward(&self, layer: &Layer, x: Vec<f64>, dims: Dims, pass: &mut Pass) -> (Vec<f64>, Dims) {
        let out = layer.output(dims).expect("shapes were checked when the network was made");
        let (y, memory) = match layer {
            Layer::Normalise { mean, std } => (normalise(x, dims, mean, std), Memory::Nothing),
            Layer::Conv2d(c) => (conv(c, &self.params[&c.name], &x, dims, out), Memory::Nothing),
            Layer::Affine { name, .. } => (affine(x, dims, &self.params[name]), Memory::Nothing),
            Layer::Relu => relu(x),
            Layer::MaxPool { size, stride, padding } => max_pool(*size, *stride, *padding, &x, dims, out),
            Layer::AvgPool { size, stride, padding } => {
                (avg_pool(*size, *stride, *padding, &x, dims, out), Memory::Nothing)
            }
            Layer::GlobalAvgPool => (mean_pool(&x, dims), Memory::Nothing),
            Layer::Flatten => (x, Memory::Nothing),
            Layer::Linear(l) => (linear(l, &self.params[&l.name], &x), Memory::Nothing),
            Layer::Residual { body, shortcut } => {
                let (mut y, _) = self.layers_forward(body, x.clone(), dims, pass);
                match shortcut {
                    Shortcut::Projection(layers) => {
                        let (through, _) = self.layers_forward(layers, x, dims, pass);
                        y.iter_mut().zip(through).for_each(|(y, s)| *y += s);
                    }
                    carried => for_each_carried(carried, dims, out, |from, to| y[to] += x[from]),
                }
                (y, Memory::Nothing)
            }
            Layer::BatchNorm { .. } => unreachable!("refused when the network was made"),
        };
        mark(&mut pass.health, &y, Health::ACTIVATION);
        pass.tape.push(Saved { dims, out, memory });
        (y, out)
    }

    pub(super) fn layer_backward(&self, layer: &Layer, mut dy: Vec<f64>, tape: &mut Vec<Saved>) -> Vec<f64> {
        let Saved { dims, out, memory } = tape.pop().expect("forward pushed one for each layer");
        match (layer, memory) {
            (Layer::Normalise { std, .. }, _) => normalise_backward(dy, dims, std),
            (Layer::Conv2d(c), _) => conv_backward(c, &self.params[&c.name], &dy, dims, out),
            (Layer::Affine { name, .. }, _) => affine_backward(dy, dims, &self.params[name]),
            (Layer::Relu, Memory::Signs(signs)) => relu_backward(dy, &signs),
            (Layer::MaxPool { .. }, Memory::Sources(sources)) => max_pool_backward(&dy, &sources, dims),
            (Layer::AvgPool { size, stride, padding }, _) => {
                avg_pool_backward(*size, *stride, *padding, &dy, dims, out)
            }
            (Layer::GlobalAvgPool, _) => mean_pool_backward(&dy, dims),
            (Layer::Linear(l), _) => linear_backward(l, &self.params[&l.name], &dy),
            (Layer::Residual { body, shortcut }, _) => {
                let mut through = vec![0.0; dims.len()];
                match shortcut {
                    Shortcut::Projection(layers) => through = self.layers_backward(layers, dy.clone(), tape),
                    carried => for_each_carried(carried, dims, out, |to, from| through[to] += dy[from]),
                }
                dy = self.layers_backward(body, dy, tape);
                dy.iter_mut().zip(through).for_each(|(d, s)| *d += s);
                dy
            }
            // Flatten; nothing else comes here.
            _ => dy,
        }
    }
}

/// What one sample's forward pass leaves behind.
#[derive(Default)]
pub(super) struct Pass {
    pub logits: Vec<f64>,
    pub tape: Vec<Saved>,
    pub health: Health,
}

impl Pass {
    /// Drops what only a gradient needs.
    pub fn forget(mut self) -> Self {
        self.tape = Vec::new();
        self
    }
}

/// What a sample's backward pass gives.
pub(super) struct Backward {
    pub gradient: Vec<f64>,
    pub loss: f64,
    pub health: Health,
}

/// What the backward of one layer needs from its forward.
#[derive(Clone)]
pub(super) struct Saved {
    pub dims: Dims,
    pub out: Dims,
    pub memory: Memory,
}

/// The engine works in f32, so what f32 cannot hold counts as infinite here too.
fn mark(health: &mut Health, values: &[f64], what: Health) {
    if values.iter().any(|v| !(*v as f32).is_finite()) {
        health.0 |= what.0;
    }
}

/// As the engine gives it.
pub(super) fn narrow(values: &[f64]) -> impl Iterator<Item = f32> + '_ {
    values.iter().map(|v| *v as f32)
}
