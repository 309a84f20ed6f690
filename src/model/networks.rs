//! The networks that the engine knows by name.

use super::{Arch, Conv2d, Dims, Layer, Linear, Shortcut};

fn conv(name: &str, inputs: usize, outputs: usize, stride: usize, bias: bool) -> Layer {
    Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel: 3, stride, padding: 1, bias })
}

fn norm(name: &str, channels: usize) -> Layer {
    Layer::BatchNorm { name: name.into(), channels }
}

fn linear(name: &str, inputs: usize, outputs: usize) -> Layer {
    Layer::Linear(Linear { name: name.into(), inputs, outputs })
}

/// Every network that weights can be recognised as.
pub fn known() -> Vec<Arch> {
    vec![digits_cnn(), resnet20()]
}

/// A small network for the 8×8 handwritten digits: two convolutions, max-pool, one more convolution, max-pool, two
/// linear layers. 20,730 parameters.
pub fn digits_cnn() -> Arch {
    let pool = Layer::MaxPool { size: 2, stride: 2 };
    Arch {
        name: "digits-cnn".into(),
        input: Dims::new(1, 8, 8),
        layers: vec![
            conv("conv1", 1, 16, 1, true),
            Layer::Relu,
            conv("conv2", 16, 32, 1, true),
            Layer::Relu,
            pool.clone(),
            conv("conv3", 32, 32, 1, true),
            Layer::Relu,
            pool,
            Layer::Flatten,
            linear("linear1", 128, 48),
            Layer::Relu,
            linear("linear2", 48, 10),
        ],
    }
}

/// ResNet-20 for CIFAR (He et al. 2015, section 4.2): three stages of 16, 32 and 64 channels, three blocks each, with
/// parameter-free shortcuts (option A). 0.27 million parameters.
pub fn resnet20() -> Arch {
    let mut layers = vec![conv("conv1", 3, 16, 1, false), norm("bn1", 16), Layer::Relu];
    let mut inputs = 16;
    for (stage, outputs) in [16, 32, 64].into_iter().enumerate() {
        for block in 0..3 {
            let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
            let grows = inputs != outputs;
            let body = vec![
                conv(&name("conv1"), inputs, outputs, if grows { 2 } else { 1 }, false),
                norm(&name("bn1"), outputs),
                Layer::Relu,
                conv(&name("conv2"), outputs, outputs, 1, false),
                norm(&name("bn2"), outputs),
            ];
            let shortcut = if grows { Shortcut::Subsample { added: outputs - inputs } } else { Shortcut::Identity };
            layers.extend([Layer::Residual { body, shortcut }, Layer::Relu]);
            inputs = outputs;
        }
    }
    layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear("linear", 64, 10)]);
    Arch { name: "resnet20".into(), input: Dims::new(3, 32, 32), layers }
}
