//! burn with its wgpu backend and autodiff, on the same adapter: the network as the engine's own description has it, weights
//! that ask for no gradient.

use crate::Result;
use crate::case::{Case, EPS, STEP_SIZE};
use crate::worker::{Checked, Peer, Ready};
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::module::{conv2d, linear};
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};
use signstep::model::{Layer, Shortcut};
use std::collections::BTreeMap;

pub struct Burn {
    device: Device,
    adapter: String,
    layers: Vec<Layer>,
    convolutions: BTreeMap<String, (Tensor<4>, Tensor<1>)>,
    linears: BTreeMap<String, (Tensor<2>, Tensor<1>)>,
    /// `[N, C, H, W]`
    x0: Tensor<4>,
    /// `[N, 1]`
    classes: Tensor<2, Int>,
}

impl Burn {
    /// On the adapter of that kind, as the engine calls kinds.
    pub fn new(case: Case, kind: &str) -> Result<Self> {
        let kind = match kind {
            "discrete" => DeviceKind::DiscreteGpu(0),
            "integrated" => DeviceKind::IntegratedGpu(0),
            "virtual" => DeviceKind::VirtualGpu(0),
            "software" => DeviceKind::Cpu,
            _ => DeviceKind::DefaultDevice,
        };
        let (device, setup) = Device::wgpu_options().device_kind(kind).init_with_setup()?;
        let Case { model, images, classes } = case;
        let n = classes.len();
        let image = model.input;
        let x0 = Tensor::from_data(TensorData::new(images, [n, image.c, image.h, image.w]), &device);
        let classes: Vec<i32> = classes.into_iter().map(|c| c as i32).collect();
        let mut burn = Burn {
            adapter: setup.adapter.get_info().name,
            layers: model.layers,
            convolutions: BTreeMap::new(),
            linears: BTreeMap::new(),
            x0,
            classes: Tensor::from_data(TensorData::new(classes, [n, 1]), &device),
            device,
        };
        let layers = std::mem::take(&mut burn.layers);
        burn.put(&layers, &model.params);
        burn.layers = layers;
        Ok(burn)
    }

    /// Puts weights on the device.
    fn put<'a>(
        &mut self,
        layers: impl IntoIterator<Item = &'a Layer>,
        params: &BTreeMap<String, signstep::model::Params>,
    ) {
        for layer in layers {
            let bias = |name: &str| {
                let bias = params[name].bias.clone();
                Tensor::from_data(TensorData::new(bias.clone(), [bias.len()]), &self.device)
            };
            match layer {
                Layer::Conv2d(c) => {
                    let shape = [c.outputs, c.inputs, c.kernel, c.kernel];
                    let weight = TensorData::new(params[&c.name].weight.clone(), shape);
                    let weight = Tensor::from_data(weight, &self.device);
                    let bias = bias(&c.name);
                    self.convolutions.insert(c.name.clone(), (weight, bias));
                }
                Layer::Linear(l) => {
                    let weight = TensorData::new(params[&l.name].weight.clone(), [l.outputs, l.inputs]);
                    let weight = Tensor::<2>::from_data(weight, &self.device).transpose();
                    let bias = bias(&l.name);
                    self.linears.insert(l.name.clone(), (weight, bias));
                }
                _ => self.put(layer.inner(), params),
            }
        }
    }

    fn run(&self, layers: &[Layer], x: Tensor<4>) -> Tensor<4> {
        layers.iter().fold(x, |x, layer| self.layer(layer, x))
    }

    fn layer(&self, layer: &Layer, x: Tensor<4>) -> Tensor<4> {
        match layer {
            Layer::Normalise { mean, std } => {
                let row = |values: &[f64]| {
                    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
                    let shape = [1, values.len(), 1, 1];
                    Tensor::<4>::from_data(TensorData::new(values, shape), &x.device())
                };
                let (mean, std) = (row(mean), row(std));
                (x - mean) / std
            }
            Layer::Conv2d(c) => {
                let (weight, bias) = self.convolutions[&c.name].clone();
                let options = ConvOptions::new([c.stride; 2], [c.padding; 2], [1; 2], 1);
                conv2d(x, weight, Some(bias), options)
            }
            Layer::Relu => relu(x),
            Layer::GlobalAvgPool => x.mean_dim(3).mean_dim(2),
            Layer::Flatten => {
                let [n, c, h, w] = x.dims();
                x.reshape([n, c * h * w, 1, 1])
            }
            Layer::Linear(l) => {
                let (weight, bias) = self.linears[&l.name].clone();
                let [n, values, ..] = x.dims();
                linear(x.reshape([n, values]), weight, Some(bias)).reshape([n, l.outputs, 1, 1])
            }
            Layer::Residual { body, shortcut } => self.run(body, x.clone()) + self.shortcut(shortcut, x),
            // A peer that panics has what it said in its row.
            other => panic!("this peer has no {}", other.label()),
        }
    }

    fn shortcut(&self, shortcut: &Shortcut, x: Tensor<4>) -> Tensor<4> {
        match shortcut {
            Shortcut::Identity => x,
            Shortcut::Subsample { added } => {
                let every_second = x.slice(burn::tensor::s![.., .., ..;2, ..;2]);
                let half = (added / 2, added / 2);
                every_second.pad([half, (0, 0), (0, 0)], PadMode::Constant(0.0))
            }
            Shortcut::Projection(layers) => self.run(layers, x),
        }
    }

    fn logits(&self, x: Tensor<4>) -> Tensor<2> {
        let z = self.run(&self.layers, x);
        let [n, k, ..] = z.dims();
        z.reshape([n, k])
    }

    /// Of the summed cross-entropy, which is each sample's own.
    fn gradient(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        let x = x.autodiff().require_grad();
        let loss = log_softmax(self.logits(x.clone()), 1).gather(1, self.classes.clone()).sum().neg();
        x.grad(&loss.backward()).ok_or_else(|| "burn gives no gradient".into())
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|e| format!("{e:?}").into())
}

/// burn's version, which the crate itself does not tell.
fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split_once("name = \"burn\"\nversion = \"").map_or("", |(_, after)| after);
    after.split('"').next().unwrap_or_default()
}

impl Peer for Burn {
    fn ready(&self) -> Ready {
        Ready {
            name: format!("burn {}", version()),
            device: self.adapter.clone(),
            how: "wgpu (WGSL), autodiff, autotune".into(),
        }
    }

    fn check(&mut self) -> Result<Checked> {
        let logits = values(self.logits(self.x0.clone()))?;
        let gradient = Some(values(self.gradient(self.x0.clone())?)?);
        Ok(Checked { logits, gradient, ..Checked::default() })
    }

    fn step(&mut self, steps: u32) -> Result<f32> {
        let lo = (self.x0.clone() - EPS).clamp(0.0, 1.0);
        let hi = (self.x0.clone() + EPS).clamp(0.0, 1.0);
        let mut x = self.x0.clone();
        for _ in 0..steps {
            let step = self.gradient(x.clone())?.sign() * STEP_SIZE;
            x = (x - step).max_pair(lo.clone()).min_pair(hi.clone());
        }
        Ok((x - self.x0.clone()).abs().max().into_scalar())
    }

    fn forward(&mut self, times: u32) -> Result<()> {
        for _ in 0..times {
            values(self.logits(self.x0.clone()))?;
        }
        Ok(())
    }
}
