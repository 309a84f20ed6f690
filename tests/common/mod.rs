//! Shared by the integration tests: comparators that reject NaN, random networks, and the device.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod seeded;

use signstep::attack::philox;
use signstep::model::{Conv2d, Dims, Layer, Linear, Model, Params, Shortcut, output};
use signstep::{Adapter, Gpu, Network, Options, Storage, Variant};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The device of this test program. No adapter is a failure, never a skip.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::new(&Adapter::Auto).expect("tests need an adapter: sh tests/with-driver cargo test"))
}

pub fn network(model: &Model, storage: Storage, variant: Variant) -> Network {
    let options = Options { storage: Some(storage), variant, ..Options::default() };
    Network::with_options(gpu(), model.clone(), &options).expect("a plan")
}

/// One of so many cases is tried, where there are many: all of them, unless `SIGNSTEP_TEST_THIN` says otherwise (`tests/each-adapter`).
pub fn thinning() -> usize {
    std::env::var("SIGNSTEP_TEST_THIN").map_or(1, |n| n.parse().expect("SIGNSTEP_TEST_THIN: a number"))
}

/// Cases with their numbers, thinned.
pub fn thinned<T, const N: usize>(cases: [T; N]) -> impl Iterator<Item = (usize, T)> {
    let every = thinning();
    cases.into_iter().enumerate().filter(move |(i, _)| i % every == 0)
}

/// A stream of random numbers, the same on every machine.
pub struct Rng(u64, u32);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed, 0)
    }

    pub fn word(&mut self) -> u32 {
        self.1 += 1;
        philox(self.0, [self.1, 0, 0, 77])[0]
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in [from, to].
    pub fn range(&mut self, from: usize, to: usize) -> usize {
        from + self.word() as usize % (to - from + 1)
    }

    /// Nearly normal, variance 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    pub fn vec(&mut self, n: usize, mut f: impl FnMut(&mut Self) -> f32) -> Vec<f32> {
        (0..n).map(|_| f(self)).collect()
    }

    /// Images on the grid k/255.
    pub fn images(&mut self, n: usize) -> Vec<f32> {
        self.vec(n, |r| r.range(0, 255) as f32 / 255.0)
    }
}

pub fn conv(name: &str, inputs: usize, outputs: usize, kernel: usize, stride: usize, padding: usize) -> Layer {
    Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: true })
}

pub fn affine(name: &str, channels: usize) -> Layer {
    Layer::Affine { name: name.into(), channels }
}

pub fn linear(name: &str, inputs: usize, outputs: usize) -> Layer {
    Layer::Linear(Linear { name: name.into(), inputs, outputs, bias: true })
}

pub fn residual(body: Vec<Layer>, added: usize) -> Layer {
    let shortcut = if added == 0 { Shortcut::Identity } else { Shortcut::Subsample { added } };
    Layer::Residual { body, shortcut }
}

/// A residual block whose shortcut is a convolution.
pub fn projected(body: Vec<Layer>, projection: Layer) -> Layer {
    Layer::Residual { body, shortcut: Shortcut::Projection(vec![projection]) }
}

/// One pixel through fully connected layers of these names, weights and biases.
pub fn chain(weights: &[(&str, &[f32], &[f32])]) -> Model {
    let mut layers = vec![Layer::Flatten];
    layers.extend(weights.iter().map(|(name, weight, bias)| linear(name, weight.len() / bias.len(), bias.len())));
    let given = |(name, weight, bias): &(&str, &[f32], &[f32])| {
        (name.to_string(), Params { weight: weight.to_vec(), bias: bias.to_vec() })
    };
    Model { params: weights.iter().map(given).collect(), ..random_model(&mut Rng::new(0), Dims::new(1, 1, 1), layers) }
}

/// A model with random weights, scaled so that activations stay near 1.
pub fn random_model(rng: &mut Rng, input: Dims, layers: Vec<Layer>) -> Model {
    fn fill<'a>(rng: &mut Rng, layers: impl IntoIterator<Item = &'a Layer>, params: &mut BTreeMap<String, Params>) {
        for layer in layers {
            let (name, outputs, each) = match layer {
                Layer::Conv2d(c) => (&c.name, c.outputs, c.inputs * c.kernel * c.kernel),
                Layer::Linear(l) => (&l.name, l.outputs, l.inputs),
                Layer::Affine { name, channels } => {
                    // Some gains are negative, none is near zero.
                    let sign = |r: &mut Rng| if r.range(0, 3) == 0 { -1.0 } else { 1.0 };
                    let weight = rng.vec(*channels, |r| sign(r) * (0.6 + 0.8 * r.unit()));
                    let bias = rng.vec(*channels, |r| r.normal() * 0.1);
                    assert!(params.insert(name.clone(), Params { weight, bias }).is_none(), "{name} twice");
                    continue;
                }
                Layer::Residual { .. } => {
                    fill(rng, layer.inner(), params);
                    continue;
                }
                _ => continue,
            };
            let scale = (1.5 / each as f32).sqrt();
            let weight = rng.vec(outputs * each, |r| r.normal() * scale);
            let bias = rng.vec(outputs, |r| r.normal() * 0.1);
            assert!(params.insert(name.clone(), Params { weight, bias }).is_none(), "{name} twice");
        }
    }
    output(&layers, input).expect("shapes that fit");
    let mut params = BTreeMap::new();
    fill(rng, &layers, &mut params);
    Model { arch: "custom".into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None }
}

/// Odd sides, channels that are no whole texels, every kind of layer.
pub fn every_kind_of_layer() -> [Model; 2] {
    let mut rng = Rng::new(11);
    let normalise = Layer::Normalise { mean: vec![0.4; 3], std: vec![0.3; 3] };
    let first = vec![
        normalise,
        conv("a", 3, 7, 3, 1, 1),
        Layer::Relu,
        Layer::MaxPool { size: 3, stride: 2, padding: 1 },
        Layer::Relu,
        residual(vec![conv("b", 7, 7, 3, 1, 1), Layer::Relu, conv("c", 7, 7, 3, 1, 1)], 0),
        Layer::Relu,
        residual(vec![affine("n", 7), Layer::Relu, conv("d", 7, 15, 3, 2, 1), conv("e", 15, 15, 1, 1, 0)], 8),
        affine("m", 15),
        Layer::Relu,
        Layer::MaxPool { size: 2, stride: 2, padding: 0 },
        Layer::GlobalAvgPool,
        linear("z", 15, 5),
    ];
    let second = vec![
        conv("a", 1, 6, 5, 1, 2),
        Layer::Relu,
        Layer::AvgPool { size: 2, stride: 2, padding: 0 },
        projected(vec![conv("b", 6, 9, 3, 2, 1), Layer::Relu, conv("c", 9, 9, 3, 1, 1)], conv("p", 6, 9, 1, 2, 0)),
        Layer::Relu,
        conv("f", 9, 5, 3, 3, 1),
        Layer::Flatten,
        linear("y", 10, 9),
        Layer::Relu,
        linear("z", 9, 3),
    ];
    [random_model(&mut rng, Dims::new(3, 13, 11), first), random_model(&mut rng, Dims::new(1, 9, 15), second)]
}

/// Equal bits everywhere, or a panic that counts and places the differences.
pub fn assert_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let differ: Vec<usize> = (0..got.len()).filter(|&i| got[i].to_bits() != want[i].to_bits()).collect();
    if let Some(&i) = differ.first() {
        panic!(
            "{what}: {} of {} differ in bits, the first at {i}: {:e} and {:e}",
            differ.len(),
            got.len(),
            got[i],
            want[i]
        );
    }
}

/// |got − want| ≤ absolute + relative·|want| everywhere; NaN never passes.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], absolute: f64, relative: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let within = |i: usize| (f64::from(got[i]) - want[i]).abs() <= absolute + relative * want[i].abs();
    let outside: Vec<usize> = (0..got.len()).filter(|&i| !within(i)).collect();
    if let Some(&i) = outside.first() {
        panic!("{what}: {} of {} outside, the first at {i}: {:e} for {:e}", outside.len(), got.len(), got[i], want[i]);
    }
}

/// ‖got − want‖ / ‖want‖; NaN where anything is NaN.
pub fn relative_l2(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |f: &dyn Fn(usize) -> f64| (0..got.len()).map(|i| f(i).powi(2)).sum::<f64>();
    (square(&|i| f64::from(got[i]) - want[i]) / square(&|i| want[i])).sqrt()
}

#[test]
#[should_panic(expected = "1 of 2 outside")]
fn close_rejects_nan() {
    assert_close("test", &[1.0, f32::NAN], &[1.0, 1.0], 1.0, 1.0);
}

#[test]
#[should_panic(expected = "1 of 2 differ")]
fn bits_tell_zeros_apart() {
    assert_bits("test", &[0.0, 1.0], &[-0.0, 1.0]);
}
