//! Networks as data: layers, the shapes between them, and the parameters that go with them. No GPU here.
//!
//! A [`Model`] is what weights are loaded into: [`Layer`]s in order, with batch norm already folded into the
//! convolution before it (but for training mode), and one [`Params`] for each layer that has any. Both the engine and
//! the CPU reference read it.

mod families;
mod networks;

pub use families::{FAMILIES, Shapes, families, is_family, preact_resnet, wide_resnet, with_classes_of};
pub use networks::{Shortcuts, digits_cnn, known, lenet5, resnet, resnet18};

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;

/// Shape of one sample: channels, height, width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Channels.
    pub c: usize,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
    pub w: usize,
}

impl Dims {
    /// Channels, height, width.
    pub const fn new(c: usize, h: usize, w: usize) -> Self {
        Dims { c, h, w }
    }

    /// Values in one sample.
    pub const fn len(&self) -> usize {
        // Of shapes that no memory holds no product may wrap round.
        self.c.saturating_mul(self.h).saturating_mul(self.w)
    }

    /// True when a side is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.c, self.h, self.w)
    }
}

/// A square two-dimensional convolution (cross-correlation, as every framework means it), zero padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2d {
    /// Name of the tensors: `NAME.weight` `[outputs, inputs, kernel, kernel]`, `NAME.bias` `[outputs]`.
    pub name: String,
    /// Channels read (C).
    pub inputs: usize,
    /// Channels written (K).
    pub outputs: usize,
    /// Side of the kernel: 1 to 7.
    pub kernel: usize,
    /// 1 to 4; the gradient of 3 and 4 runs on the naive kernel.
    pub stride: usize,
    /// Zeros added on each side: 0 to 16.
    pub padding: usize,
    /// Whether the checkpoint has `NAME.bias`. After folding every convolution has one.
    pub bias: bool,
}

/// A fully connected layer over the flattened sample in (channel, row, column) order.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Name of the tensors: `NAME.weight` `[outputs, inputs]`, `NAME.bias` `[outputs]`.
    pub name: String,
    /// Values read.
    pub inputs: usize,
    /// Values written.
    pub outputs: usize,
    /// Whether the checkpoint has `NAME.bias`. Once it is loaded every linear layer has one.
    pub bias: bool,
}

/// What is added to the body of a residual block.
#[derive(Clone, Debug, PartialEq)]
pub enum Shortcut {
    /// The input itself.
    Identity,
    /// Every second pixel in both directions; `added` new channels, zero, half of them before and half after the old
    /// ones (option A of He et al. 2015, as the common PyTorch port has it).
    Subsample {
        /// New channels, a multiple of eight.
        added: usize,
    },
    /// A convolution of the input, and its batch norm if it has one (option B, the projection).
    Projection(Vec<Layer>),
}

/// Added to the variance of a batch norm of PyTorch, unless a program says otherwise; of every known network.
pub const BATCH_NORM_EPS: f64 = 1e-5;

/// One layer. `Residual` holds layers of its own; everything else is a leaf.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// (x − mean) / std, per channel. First, if at all: eps is counted in pixels of [0, 1].
    Normalise {
        /// Per channel.
        mean: Vec<f64>,
        /// Per channel, positive.
        std: Vec<f64>,
    },
    /// Convolution.
    Conv2d(Conv2d),
    /// Batch norm: `NAME.weight`, `.bias`, `.running_mean`, `.running_var`, all `[channels]`. In evaluation mode it is
    /// folded into the convolution before it when weights are loaded, or becomes a [`Layer::Affine`] where none is right
    /// before it; in training mode ([`crate::Training`]) it is a layer that takes mean and variance of the batch.
    BatchNorm {
        /// Name of the tensors.
        name: String,
        /// Channels.
        channels: usize,
        /// Added to the variance, 0 or more: [`BATCH_NORM_EPS`] in PyTorch, unless a program says otherwise.
        eps: f64,
    },
    /// a·x + b, per channel: `NAME.weight` a, `NAME.bias` b, both `[channels]`.
    Affine {
        /// Name of the tensors.
        name: String,
        /// Channels.
        channels: usize,
    },
    /// max(x, 0), with derivative 0 at 0.
    Relu,
    /// Maximum over windows of `size`×`size`, the first one (row by row) where several are equal.
    MaxPool {
        /// Side of the window: 1 to 15.
        size: usize,
        /// Distance between windows: 1 to 255.
        stride: usize,
        /// Pixels added on each side that are never the maximum, at most half a window.
        padding: usize,
    },
    /// Mean over windows of `size`×`size`, the zeros added on each side counted in (PyTorch's default).
    AvgPool {
        /// Side of the window: 1 to 255.
        size: usize,
        /// Distance between windows: 1 to 255.
        stride: usize,
        /// Zeros added on each side, at most half a window.
        padding: usize,
    },
    /// Mean over all pixels of a channel.
    GlobalAvgPool,
    /// (C, H, W) → (C·H·W, 1, 1).
    Flatten,
    /// Fully connected.
    Linear(Linear),
    /// body(x) + shortcut(x).
    Residual {
        /// Begins with a convolution or a batch norm, ends with a convolution (and its batch norm).
        body: Vec<Layer>,
        /// What is added.
        shortcut: Shortcut,
    },
}

impl Layer {
    /// What the layer is called in messages and tables.
    pub fn label(&self) -> String {
        match self {
            Layer::Normalise { .. } => "normalise".into(),
            Layer::Conv2d(c) => c.name.clone(),
            Layer::BatchNorm { name, .. } | Layer::Affine { name, .. } => name.clone(),
            Layer::Relu => "relu".into(),
            Layer::MaxPool { size, stride, .. } => format!("max_pool {size}×{size}/{stride}"),
            Layer::AvgPool { size, stride, .. } => format!("avg_pool {size}×{size}/{stride}"),
            Layer::GlobalAvgPool => "global_avg_pool".into(),
            Layer::Flatten => "flatten".into(),
            Layer::Linear(l) => l.name.clone(),
            Layer::Residual { shortcut: Shortcut::Identity, .. } => "residual".into(),
            Layer::Residual { shortcut: Shortcut::Subsample { .. }, .. } => "residual (subsampled)".into(),
            Layer::Residual { shortcut: Shortcut::Projection(_), .. } => "residual (projected)".into(),
        }
    }

    /// The layers inside this one: the body of a residual block, then its projection.
    pub fn inner(&self) -> impl Iterator<Item = &Layer> {
        let (body, projection): (&[Layer], &[Layer]) = match self {
            Layer::Residual { body, shortcut: Shortcut::Projection(layers) } => (body, layers),
            Layer::Residual { body, .. } => (body, &[]),
            _ => (&[], &[]),
        };
        body.iter().chain(projection)
    }

    /// Shape that leaves the layer when `x` enters it.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer when it cannot take `x`, or is of a kind that the engine does not have.
    pub fn output(&self, x: Dims) -> Result<Dims> {
        let fail = |detail: String| Err(Error::model(self.label(), detail));
        match self {
            Layer::Normalise { mean, std } => {
                if mean.len() != x.c || std.len() != x.c {
                    return fail(format!("{} means and {} deviations for {} channels", mean.len(), std.len(), x.c));
                }
                // Kernels subtract the mean and multiply by the reciprocal, both as f32.
                let is_mean = |v: &f64| (*v as f32).is_finite();
                let is_deviation = |v: &f64| *v > 0.0 && ((1.0 / v) as f32).is_normal();
                if !mean.iter().all(is_mean) || !std.iter().all(is_deviation) {
                    return fail("means must be finite, deviations and their reciprocals finite and positive".into());
                }
                Ok(x)
            }
            Layer::Conv2d(c) => {
                if !(1..=7).contains(&c.kernel) || !(1..=4).contains(&c.stride) || c.padding > 16 {
                    return fail(format!(
                        "kernel {}, stride {}, padding {}: kernels of 1 to 7, strides of 1 to 4, padding of at most 16 are supported",
                        c.kernel, c.stride, c.padding
                    ));
                }
                if c.inputs != x.c || c.outputs == 0 {
                    return fail(format!("takes {} channels and gives {}, but {x} enters", c.inputs, c.outputs));
                }
                let side = |n: usize| n.saturating_add(2 * c.padding).checked_sub(c.kernel).map(|d| d / c.stride + 1);
                match (side(x.h), side(x.w)) {
                    (Some(h), Some(w)) if x.h > 0 && x.w > 0 => Ok(Dims::new(c.outputs, h, w)),
                    _ => fail(format!("kernel {} is larger than the padded input {x}", c.kernel)),
                }
            }
            Layer::BatchNorm { channels, .. } | Layer::Affine { channels, .. } if *channels != x.c => {
                fail(format!("{channels} channels, but {x} enters"))
            }
            Layer::BatchNorm { eps, .. } if !(eps.is_finite() && *eps >= 0.0) => {
                fail(format!("eps {eps} is added to the variance; it must be 0 or more"))
            }
            Layer::BatchNorm { .. } | Layer::Affine { .. } | Layer::Relu => Ok(x),
            Layer::MaxPool { size, stride, padding } | Layer::AvgPool { size, stride, padding } => {
                // A place in a window is one byte; a window of padding alone would have no maximum.
                let largest = if matches!(self, Layer::MaxPool { .. }) { 15 } else { 255 };
                let side = |n: usize| n.saturating_add(2 * padding).checked_sub(*size).map(|d| d / stride + 1);
                let strides = 1..=255;
                if !strides.contains(stride) {
                    return fail(format!("stride {stride}: strides of 1 to {} are supported", strides.end()));
                }
                let sound = (1..=largest).contains(size) && *padding <= size / 2 && !x.is_empty();
                match (sound, sound.then(|| side(x.h)).flatten(), sound.then(|| side(x.w)).flatten()) {
                    (true, Some(h), Some(w)) => Ok(Dims::new(x.c, h, w)),
                    _ => fail(format!(
                        "padding {padding} on {x}: windows of 1 to {largest} that fit are supported, with padding of at most \
                         half a window"
                    )),
                }
            }
            Layer::GlobalAvgPool => Ok(Dims::new(x.c, 1, 1)),
            Layer::Flatten => Ok(Dims::new(x.len(), 1, 1)),
            Layer::Linear(l) => {
                if l.inputs != x.len() || l.outputs == 0 {
                    return fail(format!("takes {} values and gives {}, but {x} enters", l.inputs, l.outputs));
                }
                Ok(Dims::new(l.outputs, 1, 1))
            }
            Layer::Residual { body, shortcut } => {
                let y = output(body, x)?;
                let want = match shortcut {
                    Shortcut::Identity => x,
                    Shortcut::Projection(layers) => output(layers, x)?,
                    Shortcut::Subsample { added } => {
                        if added % 8 != 0 {
                            return fail(format!("{added} added channels: only multiples of eight are supported"));
                        }
                        Dims::new(x.c.saturating_add(*added), x.h.div_ceil(2), x.w.div_ceil(2))
                    }
                };
                if y != want {
                    return fail(format!("the body gives {y}, the shortcut {want}"));
                }
                Ok(y)
            }
        }
    }
}

/// Shape that leaves a sequence of layers when `x` enters it.
///
/// # Errors
/// As [`Layer::output`].
pub fn output(layers: &[Layer], x: Dims) -> Result<Dims> {
    layers.iter().try_fold(x, |x, layer| match layer.output(x)? {
        y if y.len() > MAX_VALUES => {
            Err(Error::model(layer.label(), format!("gives {y}: more than {MAX_VALUES} values of one sample")))
        }
        y => Ok(y),
    })
}

/// The first batch norm among layers, and those inside them.
fn first_norm<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Option<&'a str> {
    layers.into_iter().find_map(|layer| match layer {
        Layer::BatchNorm { name, .. } => Some(name.as_str()),
        _ => layer.inner().find_map(|l| first_norm([l])),
    })
}

/// Most values in one sample of any layer: far beyond what a GPU buffer holds, and no product of sides overflows.
pub(crate) const MAX_VALUES: usize = 1 << 30;

/// Weights of one convolution (`[K, C, R, S]`) or linear layer (`[K, C·H·W]`), outermost axis first, and its bias
/// `[K]`; of a batch norm that was not folded, or an affine layer, its gain and bias, both `[C]`.
#[derive(Clone, Default, PartialEq)]
pub struct Params {
    /// Outputs first.
    pub weight: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
}

impl fmt::Debug for Params {
    /// How many there are: all of them would be megabytes wherever a network is printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({} weights, {} biases)", self.weight.len(), self.bias.len())
    }
}

/// An architecture: the layers as the checkpoint names them, batch norm still apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// `digits-cnn`, `resnet20`, …
    pub name: String,
    /// Shape of one image.
    pub input: Dims,
    /// In order; without [`Layer::Normalise`], which is metadata of the weights.
    pub layers: Vec<Layer>,
}

/// A network with its weights, ready to run: batch norm folded, or a layer for [`crate::Training`]; shapes checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Name of the architecture, or `custom`.
    pub arch: String,
    /// Shape of one image.
    pub input: Dims,
    /// In order, [`Layer::Normalise`] first if the weights ask for it. A [`Layer::BatchNorm`] among them makes this a
    /// network for training mode, which evaluation refuses.
    pub layers: Vec<Layer>,
    /// By the name of the layer.
    pub params: BTreeMap<String, Params>,
    /// Names of the classes, as many as there are logits; empty when the weights have none.
    pub classes: Vec<String>,
    /// The eps that the weights suggest, as they write it (`8/255`, `0.3`).
    pub eps: Option<String>,
    /// The step size that the weights suggest.
    pub step_size: Option<String>,
}

impl Model {
    /// Number of logits (K).
    ///
    /// # Panics
    /// Never for a model made by this crate: its shapes were checked when it was made.
    pub fn logits(&self) -> usize {
        output(&self.layers, self.input).map(|d| d.len()).expect("shapes were checked at load")
    }

    /// Checks what a model that was put together by hand may have wrong: shapes, parameters, batch norm that is left.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer; [`Error::Usage`] for a network in training mode, where samples are coupled.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(name) = first_norm(&self.layers) {
            return Err(Error::Usage(format!(
                "{name}: batch norm must be folded first: here every sample is on its own, but with the statistics of a batch \
                 its neighbours decide too; such a network runs in `Training` alone"
            )));
        }
        self.check_training()
    }

    /// The same where batch norm may be a layer.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer.
    pub(crate) fn check_training(&self) -> Result<()> {
        if self.input.is_empty() {
            return Err(Error::model("input", format!("{}: every side must be 1 or more", self.input)));
        }
        if self.input.len() > MAX_VALUES {
            return Err(Error::model("input", format!("{}: more than {MAX_VALUES} values", self.input)));
        }
        if self.layers.is_empty() {
            return Err(Error::model("layers", "there are none"));
        }
        output(&self.layers, self.input)?;
        self.check_params(self.layers.iter())
    }

    fn check_params<'a>(&self, layers: impl Iterator<Item = &'a Layer>) -> Result<()> {
        for layer in layers {
            self.check_params(layer.inner())?;
            let (name, weights, outputs) = match layer {
                Layer::BatchNorm { name, channels, .. } | Layer::Affine { name, channels } => {
                    (name, *channels, *channels)
                }
                // As large as may be where that overflows: no parameters are as many.
                Layer::Conv2d(c) => {
                    let taps = c.inputs.saturating_mul(c.kernel * c.kernel);
                    (&c.name, c.outputs.saturating_mul(taps), c.outputs)
                }
                Layer::Linear(l) => (&l.name, l.inputs.saturating_mul(l.outputs), l.outputs),
                _ => continue,
            };
            match self.params.get(name) {
                Some(p) if p.weight.len() == weights && p.bias.len() == outputs => {}
                Some(p) => {
                    let found = format!("{} weights and {} biases", p.weight.len(), p.bias.len());
                    return Err(Error::model(name, format!("{found}, but {weights} and {outputs} are expected")));
                }
                None => return Err(Error::model(name, "has no parameters")),
            }
        }
        Ok(())
    }

    /// Number of weights and biases; a folded batch norm has none of its own.
    pub fn parameters(&self) -> usize {
        self.params.values().map(|p| p.weight.len() + p.bias.len()).sum()
    }
}
