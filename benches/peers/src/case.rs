//! What every peer runs: networks, their weights with batch norm folded, images and classes, the same on every machine.

use crate::Result;
use crate::common::{Rng, conv, linear, random_model, seeded};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use signstep::model::{Conv2d, Dims, Layer, Model, Shortcut};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The attack of every peer: L∞ radius and step length, pixel units of [0, 1].
pub const EPS: f32 = 8.0 / 255.0;
pub const STEP_SIZE: f32 = 1.0 / 255.0;

/// The digits that `signstep attack` has inside, with its network: what the cold start is about.
pub const DIGITS: &str = "digits";

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(REPOSITORY).join(path)
}

/// A network and a batch for it.
pub struct Case {
    pub model: Model,
    /// `[N, C, H, W]`
    pub images: Vec<f32>,
    /// `[N]`
    pub classes: Vec<u32>,
}

impl Case {
    /// `resnet20`, `resnet18`, `CxS` (a chain of 3×3 convolutions of C channels on S×S pixels) or [`DIGITS`].
    pub fn new(network: &str, batch: usize) -> Result<Self> {
        if network == DIGITS {
            return digits(batch);
        }
        let model = match (network, network.split_once('x')) {
            ("resnet20", _) => weights("resnet20-cifar10")?,
            ("resnet18", _) => seeded::seeded(network),
            (_, Some((channels, side))) => chain(channels.parse()?, side.parse()?),
            _ => return Err(format!("no network {network}").into()),
        };
        let mut rng = Rng::new(1);
        let images = rng.images(batch * model.input.len());
        let classes = (0..batch).map(|_| rng.range(0, model.logits() - 1) as u32).collect();
        Ok(Case { model, images, classes })
    }

    /// Writes the case for peers in Python: `images`, `classes`, `NAME.weight`, `NAME.bias`; the layers are metadata.
    pub fn write(&self, file: &Path) -> Result<()> {
        let Dims { c, h, w } = self.model.input;
        let n = self.classes.len();
        let mut tensors = BTreeMap::new();
        add_params(&self.model.params, &self.model.layers, &mut tensors);
        tensors.insert("images".into(), (vec![n, c, h, w], bytes(&self.images)));
        let mut views = BTreeMap::new();
        for (name, (shape, data)) in &tensors {
            views.insert(name.clone(), TensorView::new(Dtype::F32, shape.clone(), data)?);
        }
        let classes: Vec<u8> = self.classes.iter().flat_map(|c| i64::from(*c).to_le_bytes()).collect();
        views.insert("classes".into(), TensorView::new(Dtype::I64, vec![n], &classes)?);
        let metadata = HashMap::from([("layers".to_string(), describe(&self.model.layers).to_string())]);
        Ok(std::fs::write(file, safetensors::serialize(views, Some(metadata))?)?)
    }
}

fn weights(name: &str) -> Result<Model> {
    Ok(signstep::weights::load(&std::fs::read(repository(&format!("weights/{name}.safetensors")))?)?)
}

/// Six equal convolutions with their ReLUs, so that loading, pooling and the logits weigh little.
fn chain(channels: usize, side: usize) -> Model {
    let convolution = |i| [conv(&format!("conv{i}"), channels, channels, 3, 1, 1), Layer::Relu];
    let mut layers: Vec<Layer> = (0..6).flat_map(convolution).collect();
    layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear("linear", channels, 10)]);
    random_model(&mut Rng::new(1), Dims::new(channels, side, side), layers)
}

fn digits(batch: usize) -> Result<Case> {
    let file = std::fs::read(repository("weights/digits.safetensors"))?;
    let set = safetensors::SafeTensors::deserialize(&file)?;
    let model = weights("digits-cnn")?;
    let images =
        set.tensor("images")?.data()[..batch * model.input.len()].iter().map(|v| f32::from(*v) / 255.0).collect();
    let classes = set.tensor("labels")?.data().chunks_exact(8).take(batch).map(|label| u32::from(label[0])).collect();
    Ok(Case { model, images, classes })
}

type Bytes = (Vec<usize>, Vec<u8>);

fn add_params<'a>(
    params: &BTreeMap<String, signstep::model::Params>,
    layers: impl IntoIterator<Item = &'a Layer>,
    tensors: &mut BTreeMap<String, Bytes>,
) {
    for layer in layers {
        let (name, shape) = match layer {
            Layer::Conv2d(c) => (&c.name, vec![c.outputs, c.inputs, c.kernel, c.kernel]),
            Layer::Linear(l) => (&l.name, vec![l.outputs, l.inputs]),
            _ => {
                add_params(params, layer.inner(), tensors);
                continue;
            }
        };
        tensors.insert(format!("{name}.bias"), (vec![shape[0]], bytes(&params[name].bias)));
        tensors.insert(format!("{name}.weight"), (shape, bytes(&params[name].weight)));
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Layers as pairs of a kind and what it needs, for `peers.py`.
fn describe(layers: &[Layer]) -> Value {
    let one = |layer: &Layer| match layer {
        Layer::Normalise { mean, std } => json!(["normalise", { "mean": mean, "std": std }]),
        Layer::Conv2d(Conv2d { name, stride, padding, .. }) => {
            json!(["conv2d", { "name": name, "stride": stride, "padding": padding }])
        }
        Layer::BatchNorm { .. } => unreachable!("batch norm is folded when weights are loaded"),
        Layer::Affine { name, .. } => json!(["affine", { "name": name }]),
        Layer::Relu => json!(["relu", {}]),
        Layer::MaxPool { size, stride, padding } => {
            json!(["max_pool", { "size": size, "stride": stride, "padding": padding }])
        }
        Layer::AvgPool { size, stride, padding } => {
            json!(["avg_pool", { "size": size, "stride": stride, "padding": padding }])
        }
        Layer::GlobalAvgPool => json!(["global_avg_pool", {}]),
        Layer::Flatten => json!(["flatten", {}]),
        Layer::Linear(l) => json!(["linear", { "name": l.name }]),
        Layer::Residual { body, shortcut } => {
            let shortcut = match shortcut {
                Shortcut::Identity => json!(["identity", {}]),
                Shortcut::Subsample { added } => json!(["subsample", { "added": added }]),
                Shortcut::Projection(layers) => json!(["projection", { "layers": describe(layers) }]),
            };
            json!(["residual", { "body": describe(body), "shortcut": shortcut }])
        }
    };
    layers.iter().map(one).collect()
}
