//! The networks that the engine knows by name.

use super::{Arch, BATCH_NORM_EPS, Conv2d, Dims, Layer, Linear, Shortcut};

fn conv(name: &str, inputs: usize, outputs: usize, stride: usize, bias: bool) -> Layer {
    Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel: 3, stride, padding: 1, bias })
}

pub(super) fn norm(name: &str, channels: usize) -> Layer {
    Layer::BatchNorm { name: name.into(), channels, eps: BATCH_NORM_EPS }
}

pub(super) fn linear(name: &str, inputs: usize, outputs: usize) -> Layer {
    Layer::Linear(Linear { name: name.into(), inputs, outputs, bias: true })
}

pub(super) fn halve() -> Layer {
    Layer::MaxPool { size: 2, stride: 2, padding: 0 }
}

/// What a residual block whose shape changes adds to its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcuts {
    /// Every second pixel, new channels zero: no parameters (option A of He et al. 2015).
    Subsample,
    /// A 1×1 convolution and batch norm, `shortcut.0` and `shortcut.1` (option B).
    Projection,
}

/// Every network that weights can be recognised as.
pub fn known() -> Vec<Arch> {
    let mut known = vec![digits_cnn(), lenet5(), resnet18()];
    for shortcuts in [Shortcuts::Subsample, Shortcuts::Projection] {
        known.extend([3, 5, 7, 9, 18].map(|blocks| resnet(blocks, shortcuts)));
    }
    known
}

/// A small network for the 8×8 handwritten digits: two convolutions, max-pool, one more convolution, max-pool, two
/// linear layers. 20,730 parameters.
pub fn digits_cnn() -> Arch {
    Arch {
        name: "digits-cnn".into(),
        input: Dims::new(1, 8, 8),
        layers: vec![
            conv("conv1", 1, 16, 1, true),
            Layer::Relu,
            conv("conv2", 16, 32, 1, true),
            Layer::Relu,
            halve(),
            conv("conv3", 32, 32, 1, true),
            Layer::Relu,
            halve(),
            Layer::Flatten,
            linear("linear1", 128, 48),
            Layer::Relu,
            linear("linear2", 48, 10),
        ],
    }
}

/// LeNet-5 as robustness papers on MNIST have it: two convolutions, each with a max-pool behind it, and two linear
/// layers. 0.65 million parameters.
pub fn lenet5() -> Arch {
    Arch {
        name: "lenet5".into(),
        input: Dims::new(1, 28, 28),
        layers: vec![
            conv("conv1", 1, 32, 1, true),
            Layer::Relu,
            halve(),
            conv("conv2", 32, 64, 1, true),
            Layer::Relu,
            halve(),
            Layer::Flatten,
            linear("linear1", 3136, 200),
            Layer::Relu,
            linear("linear2", 200, 10),
        ],
    }
}

/// The ResNets for CIFAR (He et al. 2015, section 4.2): three stages of 16, 32 and 64 channels with `blocks` blocks
/// each, 6·blocks + 2 layers deep. `resnet20` to `resnet110` in the paper (3, 5, 7, 9 and 18 blocks), with `-b` behind
/// the name where shortcuts are projections.
pub fn resnet(blocks: usize, shortcuts: Shortcuts) -> Arch {
    let suffix = if shortcuts == Shortcuts::Projection { "-b" } else { "" };
    let stages = [(16, blocks), (32, blocks), (64, blocks)];
    residual(format!("resnet{}{suffix}", 6 * blocks + 2), &stages, shortcuts)
}

/// ResNet-18 for 3×32×32 images: four stages of 64 to 512 channels with two blocks each, a 3×3 convolution in front and
/// no max-pool, projections where the shape changes. 11.2 million parameters.
pub fn resnet18() -> Arch {
    let stages = [(64, 2), (128, 2), (256, 2), (512, 2)];
    residual("resnet18".into(), &stages, Shortcuts::Projection)
}

/// Stages of (channels, blocks), each but the first halving the sides: `conv1`, `bn1`, `layerL.B.convN`,
/// `layerL.B.bnN`, `layerL.B.shortcut.N`, `linear`.
fn residual(name: String, stages: &[(usize, usize)], shortcuts: Shortcuts) -> Arch {
    let mut inputs = stages[0].0;
    let mut layers = vec![conv("conv1", 3, inputs, 1, false), norm("bn1", inputs), Layer::Relu];
    for (stage, &(outputs, blocks)) in stages.iter().enumerate() {
        for block in 0..blocks {
            let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
            let grows = inputs != outputs;
            let stride = if grows { 2 } else { 1 };
            let body = vec![
                conv(&name("conv1"), inputs, outputs, stride, false),
                norm(&name("bn1"), outputs),
                Layer::Relu,
                conv(&name("conv2"), outputs, outputs, 1, false),
                norm(&name("bn2"), outputs),
            ];
            let shortcut = match shortcuts {
                _ if !grows => Shortcut::Identity,
                Shortcuts::Subsample => Shortcut::Subsample { added: outputs - inputs },
                Shortcuts::Projection => {
                    let name = name("shortcut");
                    let one = Conv2d {
                        name: format!("{name}.0"),
                        inputs,
                        outputs,
                        kernel: 1,
                        stride,
                        padding: 0,
                        bias: false,
                    };
                    Shortcut::Projection(vec![Layer::Conv2d(one), norm(&format!("{name}.1"), outputs)])
                }
            };
            layers.extend([Layer::Residual { body, shortcut }, Layer::Relu]);
            inputs = outputs;
        }
    }
    layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear("linear", inputs, 10)]);
    Arch { name, input: Dims::new(3, 32, 32), layers }
}
