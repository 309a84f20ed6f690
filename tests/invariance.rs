//! Batch invariance, by bits: a sample's logits, gradient and ten-step image are the same alone, at every place of any
//! batch, beside any neighbours (NaN included), and however the batch is cut.

mod common;

use common::*;
use signstep::attack::{Engine, Job, Sample};
use signstep::model::{Dims, Layer, known};
use signstep::{Math, Model, Network, Options, weights};

/// Batch sizes, the largest last, and how an attack on them is cut.
struct Sizes {
    batches: &'static [usize],
    cuts: &'static [usize],
    steps: u32,
}

const FULL: Sizes = Sizes { batches: &[2, 3, 7, 16, 33], cuts: &[5, 16, 32], steps: 10 };
/// For networks that are too deep for a software driver to go through everything.
const SHORT: Sizes = Sizes { batches: &[2, 3, 7], cuts: &[3], steps: 2 };
const SHORTEST: Sizes = Sizes { batches: &[2, 3, 7], cuts: &[], steps: 1 };

fn digits() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn resnet() -> Model {
    weights::load(include_bytes!("golden/resnet20-random.weights.safetensors")).unwrap()
}

/// What a sample comes to.
#[derive(Clone, PartialEq)]
struct Fate {
    logits: Vec<u32>,
    gradient: Vec<u32>,
    attacked: Vec<u32>,
    zero_gradients: u32,
    healthy: bool,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every other sample is targeted; eps and step size differ from sample to sample; two of three start at random.
fn sample(id: usize, classes: usize) -> Sample {
    Sample {
        class: (id % classes) as u32,
        eps: (4 + id % 9) as f32 / 255.0,
        step_size: (1 + id % 3) as f32 / 255.0,
        direction: if id.is_multiple_of(2) { -1.0 } else { 1.0 },
        id: id as u32,
        restart: (id / 7) as u32,
        start: u32::from(!id.is_multiple_of(3)),
        ..Sample::default()
    }
}

/// The fates of a batch; `ids` say which sample stands where, `steps` how far the attack goes.
fn run(net: &Network, images: &[f32], ids: &[usize], steps: u32) -> Vec<Fate> {
    let (one, k) = (net.model().input.len(), net.model().logits());
    let samples: Vec<Sample> = ids.iter().map(|&id| sample(id, k)).collect();
    let classes: Vec<u32> = samples.iter().map(|s| s.class).collect();
    let logits = net.logits(images).unwrap();
    let gradient = net.input_gradient(images, &classes).unwrap();
    let job = Job { seed: 5, ..Job::new(images, &samples, steps) };
    let moved = net.iterate(&job, &mut |_| true).unwrap();
    (0..ids.len())
        .map(|i| Fate {
            logits: bits(&logits.logits[i * k..(i + 1) * k]),
            gradient: bits(&gradient.gradient[i * one..(i + 1) * one]),
            attacked: bits(&moved.images[i * one..(i + 1) * one]),
            zero_gradients: moved.zero_gradients[i],
            healthy: [logits.health[i], gradient.health[i], moved.health[i]].iter().all(|h| h.is_healthy()),
        })
        .collect()
}

fn check(what: &str, net: &Network, alone: &[Fate], images: &[f32], ids: &[usize], steps: u32) {
    let got = run(net, images, ids, steps);
    for (place, (&id, fate)) in ids.iter().zip(&got).enumerate() {
        let one = net.model().input.len();
        if images[place * one].is_nan() {
            assert!(!fate.healthy, "{what}: the NaN at place {place} went unnoticed");
            continue;
        }
        let n = ids.len();
        assert!(fate.healthy, "{what}: sample {id} at place {place} of {n} is marked");
        assert!(fate.logits == alone[id].logits, "{what}: logits of sample {id} at place {place} of {n}");
        assert!(fate.gradient == alone[id].gradient, "{what}: gradient of sample {id} at place {place} of {n}");
        assert!(fate.attacked == alone[id].attacked, "{what}: image of sample {id} at place {place} of {n}");
        assert_eq!(fate.zero_gradients, alone[id].zero_gradients, "{what}: zero gradients of sample {id}");
    }
}

fn invariance(name: &str, model: &Model, sizes: &Sizes) {
    invariance_in(Math::F32, name, model, sizes);
}

fn invariance_in(math: Math, name: &str, model: &Model, sizes: &Sizes) {
    let Sizes { batches, cuts, steps } = *sizes;
    let gpu = gpu();
    let net = Network::with_options(gpu, model.clone(), &Options { math, ..Options::default() }).unwrap();
    let one = model.input.len();
    let all = batches[batches.len() - 1];
    let short = sizes.steps < FULL.steps;
    let images = Rng::new(3).images(all * one);
    let image = |id: usize| &images[id * one..(id + 1) * one];
    let alone: Vec<Fate> = (0..all).map(|id| run(&net, image(id), &[id], steps).remove(0)).collect();
    assert!(alone.iter().all(|f| f.healthy && f.gradient.iter().any(|g| g << 1 != 0)), "{name}: gradients to compare");

    for &n in batches {
        // Random neighbours: over the batches every sample stands at many places.
        let ids: Vec<usize> = (0..n).map(|i| (i * 5 + n) % all).collect();
        let batch: Vec<f32> = ids.iter().flat_map(|&id| image(id).to_vec()).collect();
        if short {
            // NaN to the left and right of some, sound neighbours of others, in one batch.
            let mut poisoned = batch.clone();
            (0..n).filter(|i| i % 4 == n % 2).for_each(|i| poisoned[i * one..(i + 1) * one].fill(f32::NAN));
            check(&format!("{name}, NaN around"), &net, &alone, &poisoned, &ids, steps);
            continue;
        }
        check(&format!("{name}, neighbours"), &net, &alone, &batch, &ids, steps);
        // NaN to the left and right, at every place in turn.
        for parity in 0..2 {
            let mut poisoned = batch.clone();
            (0..n).filter(|i| i % 2 == parity).for_each(|i| poisoned[i * one..(i + 1) * one].fill(f32::NAN));
            check(&format!("{name}, NaN around"), &net, &alone, &poisoned, &ids, steps);
        }
        // All the others NaN.
        for place in [0, n / 2, n - 1] {
            let mut poisoned = vec![f32::NAN; n * one];
            poisoned[place * one..(place + 1) * one].copy_from_slice(image(ids[place]));
            check(&format!("{name}, all others NaN"), &net, &alone, &poisoned, &ids, steps);
        }
    }

    let ids: Vec<usize> = (0..all).collect();
    for &batch in cuts {
        let options = Options { math, batch: Some(batch), ..Options::default() };
        let cut = Network::with_options(gpu, model.clone(), &options).unwrap();
        assert!(cut.chunk() <= batch);
        check(&format!("{name}, cut by {batch}"), &cut, &alone, &images, &ids, steps);
    }
}

#[test]
fn digits_cnn() {
    invariance("digits-cnn", &digits(), &FULL);
}

#[test]
fn resnet20() {
    invariance("resnet20", &resnet(), &FULL);
}

/// Batch norm that is a layer, before sums and behind them.
#[test]
fn activations_first() {
    invariance("wrn-16-1", &seeded::seeded("wrn-16-1"), &SHORT);
}

/// Fast arithmetic, where the device has it: two tiles to an image, so that a subgroup's tiles are of several samples, and a batch's
/// last group is of none.
#[test]
fn fast_arithmetic() {
    let block = residual(vec![conv("b", 128, 128, 3, 1, 1), Layer::Relu, conv("c", 128, 128, 3, 1, 1)], 0);
    let layers = vec![conv("a", 3, 128, 3, 1, 1), Layer::Relu, block, Layer::Relu];
    let layers = [layers, vec![Layer::GlobalAvgPool, linear("z", 128, 5)]].concat();
    let model = random_model(&mut Rng::new(8), Dims::new(3, 4, 8), layers);
    invariance_in(Math::Fast, "fast arithmetic", &model, &FULL);
    // Images so large that a batch of seven goes through in two parts.
    let block = residual(vec![conv("b", 64, 64, 3, 1, 1)], 0);
    let layers = vec![conv("a", 3, 64, 1, 1, 0), Layer::Relu, block, Layer::Relu, Layer::GlobalAvgPool];
    let model = random_model(&mut Rng::new(9), Dims::new(3, 32, 30), [layers, vec![linear("z", 64, 5)]].concat());
    let net = Network::with_options(gpu(), model.clone(), &Options { math: Math::Fast, ..Options::default() }).unwrap();
    assert!(!net.plan().is_fast() || net.plan().dispatches().any(|d| d.grid.parts(7).count() == 2));
    invariance_in(Math::Fast, "fast arithmetic in parts", &model, &SHORT);
}

/// Activations of f16: sums are those of f32, and each sample has a power of two of its own.
#[test]
fn activations_of_f16() {
    invariance_in(Math::F16, "digits-cnn in f16", &digits(), &FULL);
}

/// Every other network, with the weights of its formula.
#[test]
fn every_known_network() {
    let others =
        known().into_iter().map(|a| a.name).filter(|name| !["digits-cnn", "resnet20"].contains(&name.as_str()));
    for name in others.chain(["wrn-16-1".to_string()]) {
        let start = std::time::Instant::now();
        let model = seeded::seeded(&name);
        let sizes = if model.parameters() > 5_000_000 { SHORTEST } else { SHORT };
        invariance(&name, &model, &sizes);
        println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    }
}
