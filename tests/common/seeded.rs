//! Weights from a formula, for every network that the engine knows: `tests/golden/seeded.py` says which, and makes the same
//! bits for PyTorch. Nobody has to ship them.

use signstep::Model;
use signstep::attack::philox;
use signstep::model::{Arch, Layer, known, wide_resnet};
use signstep::weights::{self, Tensors};

/// The network of that name.
pub fn arch(name: &str) -> Arch {
    // Of a family that has no end, the one that there is a golden of.
    let all = known().into_iter().chain([wide_resnet(2, 1, 10)]);
    all.into_iter().find(|a| a.name == name).unwrap_or_else(|| panic!("no network {name}"))
}

/// The network of that name with its weights. Those that take colours normalise them.
pub fn seeded(name: &str) -> Model {
    let Arch { input, mut layers, .. } = arch(name);
    let tensors = tensors(&layers);
    if input.c == 3 {
        let (mean, std) = (vec![0.4914, 0.4822, 0.4465], vec![0.2470, 0.2435, 0.2616]);
        layers.insert(0, Layer::Normalise { mean, std });
    }
    weights::from_layers(layers, input, tensors).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// All tensors that the layers ask for.
pub fn tensors<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Tensors {
    let mut found = Tensors::new();
    for layer in layers {
        match layer {
            Layer::Conv2d(c) => {
                add(&mut found, &c.name, "weight", vec![c.outputs, c.inputs, c.kernel, c.kernel]);
                if c.bias {
                    add(&mut found, &c.name, "bias", vec![c.outputs]);
                }
            }
            Layer::BatchNorm { name, channels, .. } => {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    add(&mut found, name, part, vec![*channels]);
                }
            }
            Layer::Linear(l) => {
                add(&mut found, &l.name, "weight", vec![l.outputs, l.inputs]);
                add(&mut found, &l.name, "bias", vec![l.outputs]);
            }
            _ => {}
        }
        found.extend(tensors(layer.inner()));
    }
    found
}

fn add(found: &mut Tensors, owner: &str, part: &str, shape: Vec<usize>) {
    let name = format!("{owner}.{part}");
    let fan_in: usize = shape[1..].iter().product();
    let seed = fnv(&name);
    let value = |i: usize| {
        let u = philox(seed, [i as u32, 0, 0, 99]).map(|r| f64::from(r >> 8) / f64::from(1 << 24));
        let n = (u[0] + u[1] + u[2] + u[3] - 2.0) * 3.0_f64.sqrt();
        let v = match (part, shape.len()) {
            ("running_var", _) => 0.5 + u[0],
            ("weight", 1) => (1.0 + 0.1 * n) * if owner.ends_with(".bn2") { 0.2 } else { 1.0 },
            ("weight", axes) => n * (if axes == 4 { 2.0 } else { 1.0 } / fan_in as f64).sqrt(),
            _ => 0.1 * n,
        };
        v as f32
    };
    let values = (0..shape.iter().product()).map(value).collect();
    assert!(found.insert(name.clone(), (shape, values)).is_none(), "{name} twice");
}

/// Over names and bits, so that weights that differ are told apart from an engine that errs.
pub fn checksum(tensors: &Tensors) -> String {
    let sum = tensors.iter().map(|(name, (_, values))| {
        let bits = values.iter().enumerate().map(|(i, v)| u64::from(v.to_bits()).wrapping_mul(2 * i as u64 + 1));
        bits.fold(0, u64::wrapping_add).wrapping_mul(fnv(name) | 1)
    });
    format!("{:016x}", sum.fold(0, u64::wrapping_add))
}

/// FNV-1a, 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
