//! `Math::Fast`: Winograd's convolution against its naive twin by bits, against the f64 reference by tolerance, chosen by shape and
//! device alone.

mod common;

use common::*;
use signstep::attack::{Attack, Engine, Targets, argmax};
use signstep::kernel::Grid;
use signstep::model::{Dims, Layer};
use signstep::plan::{Family, Math, Tile};
use signstep::{Model, Network, Options, Plan, Reference, Target, Variant};

/// Channels and sides: whole tiles, tiles over the edge, one tile, blocks that are no multiple of a group, a lone last block.
const SHAPES: [(usize, usize, usize, usize); 3] = [(64, 64, 8, 8), (66, 69, 7, 7), (128, 129, 4, 4)];

fn with(model: &Model, math: Math, variant: Variant) -> Network {
    Network::with_options(gpu(), model.clone(), &Options { math, variant, ..Options::default() }).unwrap()
}

/// Layers and directions in which it is used.
fn uses(net: &Network) -> usize {
    let plan = net.plan();
    let entries = plan.forward.iter().chain(&plan.backward).map(|d| d.kernel.entry);
    entries.filter(|e| e.ends_with("winograd") || e.ends_with("winograd_products")).count()
}

/// Whether fast arithmetic is known for the adapter of these tests: a software adapter with subgroups and textures.
fn is_offered() -> bool {
    let target = Target::of(gpu()).unwrap();
    target.is_software && target.subgroup >= 8 && target.storage == signstep::Storage::Texture
}

/// A ReLU behind a convolution, then a block whose end takes on a residual, so that both passes meet every epilogue.
fn model(rng: &mut Rng, (c, k, h, w): (usize, usize, usize, usize)) -> Model {
    let block = residual(vec![conv("b", k, k, 3, 1, 1)], 0);
    let layers = vec![conv("a", c, k, 3, 1, 1), Layer::Relu, block, Layer::Relu, conv("e", k, c, 3, 1, 1)];
    let layers = [layers, vec![Layer::GlobalAvgPool, linear("z", c, 3)]].concat();
    random_model(rng, Dims::new(c, h, w), layers)
}

#[test]
fn every_kernel_gives_the_bits_of_its_twin_and_is_near_the_reference() {
    let mut rng = Rng::new(21);
    // One shape: the naive kernels compile for a minute.
    let shape = SHAPES[0];
    let model = model(&mut rng, shape);
    let n = 3;
    let images = rng.images(n * model.input.len());
    let naive = with(&model, Math::Fast, Variant::Naive);
    if !is_offered() {
        assert_eq!(uses(&naive), 0);
        return;
    }
    assert_eq!(uses(&naive), 6, "{shape:?}");
    let z = naive.logits(&images).unwrap();
    let g = naive.input_gradient(&images, &[0, 1, 2]).unwrap();
    assert!(z.health.iter().chain(&g.health).all(|h| h.is_healthy()), "{shape:?}");
    assert!(g.gradient.iter().any(|v| *v != 0.0));
    for variant in [Variant::Fast, Variant::Only(Tile::new(Family::Register, 2, 4))] {
        let fast = with(&model, Math::Fast, variant);
        assert_eq!(uses(&fast), 6);
        let what = format!("{shape:?} {variant}");
        assert_bits(&what, &fast.logits(&images).unwrap().logits, &z.logits);
        assert_bits(&what, &fast.input_gradient(&images, &[0, 1, 2]).unwrap().gradient, &g.gradient);
    }
    // A layer's error is some 1e-6 of its values: its transforms multiply roundings by up to a hundred. The f32 kernels meet
    // 1e-4 of the largest logit with room to spare; ten times the error of theirs stays within it.
    let reference = Reference::new(model.clone()).unwrap();
    assert_close(&format!("{shape:?}"), &z.logits, &reference.logits_f64(&images).unwrap(), 1e-5, 1e-4);
    // A ReLU that decides otherwise than in f64 would cost more than all roundings together. With this seed none does, and what
    // is left is the roundings of three layers, as below where there is no ReLU.
    let want = reference.input_gradient_f64(&images, &[0, 1, 2]).unwrap();
    let error = relative_l2(&g.gradient, &want);
    let direct = with(&model, Math::F32, Variant::Fast);
    assert_eq!(uses(&direct), 0);
    let other = relative_l2(&direct.input_gradient(&images, &[0, 1, 2]).unwrap().gradient, &want);
    println!("{shape:?}: gradient off by {error:.1e}, in f32 by {other:.1e}");
    assert!(error <= 1e-5, "{shape:?}: gradient off by {error:e}");
}

/// Without a ReLU nothing is decided, and only roundings are left.
#[test]
fn without_a_relu_only_roundings_are_left() {
    let mut rng = Rng::new(22);
    for (c, k, h, w) in SHAPES {
        let layers = vec![conv("a", c, k, 3, 1, 1), conv("b", k, c, 3, 1, 1), Layer::GlobalAvgPool, linear("z", c, 3)];
        let model = random_model(&mut rng, Dims::new(c, h, w), layers);
        let images = rng.images(2 * model.input.len());
        let net = with(&model, Math::Fast, Variant::Fast);
        assert_eq!(uses(&net), if is_offered() { 4 } else { 0 });
        let want = Reference::new(model).unwrap().input_gradient_f64(&images, &[0, 2]).unwrap();
        let error = relative_l2(&net.input_gradient(&images, &[0, 2]).unwrap().gradient, &want);
        // Roundings of 6e-8, some ten of them one after the other, multiplied by what the transforms cost: about ten.
        assert!(error <= 1e-5, "({c}, {k}, {h}, {w}): off by {error:e}");
    }
}

/// A batch that goes through in parts gives the bits of its samples alone, and marks the one that overflows, in whichever part.
#[test]
fn parts_of_a_batch_give_the_bits_of_samples_alone() {
    let mut rng = Rng::new(24);
    let model = model(&mut rng, (64, 64, 31, 32));
    let one = model.input.len();
    let net = with(&model, Math::Fast, Variant::Fast);
    let parts = net.plan().dispatches().filter_map(|d| match d.grid {
        Grid::Parts { part, .. } => Some(part as usize),
        _ => None,
    });
    let parts: Vec<usize> = parts.collect();
    assert_eq!(parts.len(), if is_offered() { 3 * 6 } else { 0 });
    // Two parts, and a third of one sample.
    let n = 2 * parts.first().copied().unwrap_or(4) + 1;
    assert!(n < 12 && parts.iter().all(|part| *part == parts[0]), "{parts:?}");
    let mut images = rng.images(n * one);
    let overflows = n - 2;
    images[overflows * one..(overflows + 1) * one].fill(f32::MAX / 4.0);
    let classes: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let all = net.input_gradient(&images, &classes).unwrap();
    for (i, image) in images.chunks(one).enumerate() {
        let alone = net.input_gradient(image, &classes[i..=i]).unwrap();
        assert_eq!(all.health[i].is_healthy(), i != overflows, "sample {i}");
        assert_eq!(all.health[i], alone.health[0], "sample {i}");
        if i != overflows {
            assert_bits(&format!("sample {i}"), &all.gradient[i * one..(i + 1) * one], &alone.gradient);
        }
    }
}

/// What is delivered is in bytes, within the budget, and judged as it is delivered.
#[test]
fn what_is_delivered_is_in_bytes_and_judged_so() {
    let mut rng = Rng::new(25);
    let layers = vec![conv("a", 3, 64, 1, 1, 0), Layer::Relu, conv("b", 64, 64, 3, 1, 1), Layer::Relu];
    let layers = [layers, vec![Layer::GlobalAvgPool, linear("z", 64, 5)]].concat();
    let net = with(&random_model(&mut rng, Dims::new(3, 8, 8), layers), Math::Fast, Variant::Fast);
    assert_eq!(uses(&net), if is_offered() { 2 } else { 0 });
    let images = rng.images(9 * net.model().input.len());
    let labels: Vec<i64> = net.logits(&images).unwrap().logits.chunks(5).map(|z| argmax(z) as i64).collect();
    let mut turned = 0;
    for budget in [7, 220] {
        let attack = Attack::ifgsm((budget as f32 + 0.9) / 255.0).steps(5).targets(Targets::None);
        let out = attack.clone().run(&net, &images, &labels).unwrap();
        let float = attack.quantise(false).run(&net, &images, &labels).unwrap();
        let mut up = 0;
        for ((y, clean), x) in out.adversarial.iter().zip(&images).zip(&float.adversarial) {
            let level = |v: f32| (f64::from(v) * 255.0).round() as i32;
            let (k, k0) = (level(*y), level(*clean));
            assert_eq!((k as f32 / 255.0).to_bits(), y.to_bits(), "{y:e} is no k/255");
            assert_eq!(k, level(*x).clamp(k0 - budget, k0 + budget).clamp(0, 255), "{x:e} for {clean:e}");
            up += usize::from(f64::from(k) > f64::from(*x) * 255.0 + 0.1);
        }
        assert!(up > 10, "{up} were rounded up");
        let logits = net.logits(&out.adversarial).unwrap().logits;
        assert_bits("logits", &out.adversarial_logits, &logits);
        for (i, z) in logits.chunks(5).enumerate() {
            assert_eq!(out.success[i], argmax(z) as i64 != labels[i], "sample {i}");
            turned += usize::from(out.success[i]);
        }
    }
    assert!(turned > 0, "none was turned");
}

/// f32 stays what it was, and fast arithmetic is asked of the device's class and the layer's shape alone.
#[test]
fn the_choice_is_of_shape_and_device() {
    let mut rng = Rng::new(23);
    let model = model(&mut rng, SHAPES[0]);
    let lavapipe = Target { is_software: true, subgroup: 8, storage: signstep::Storage::Texture, ..Target::default() };
    let fast = |target: Target| Plan::new(&model, &Target { math: Math::Fast, ..target }).unwrap();
    assert!(fast(lavapipe.clone()).is_fast());
    assert!(!Plan::new(&model, &lavapipe).unwrap().is_fast(), "f32 is the default");
    // Nothing has been measured on hardware: what has not is not offered as faster.
    assert!(!fast(Target::default()).is_fast());
    assert!(!fast(Target { subgroup: 4, ..lavapipe.clone() }).is_fast());
    assert!(!fast(Target { storage: signstep::Storage::Buffer, ..lavapipe.clone() }).is_fast());
    // Few channels, strides, other kernels and odd sides are left to the definition.
    let narrow = random_model(
        &mut rng,
        Dims::new(3, 9, 9),
        vec![
            conv("a", 3, 64, 3, 1, 1),
            // Nine pixels across: tiles reach too far over the edge.
            conv("b", 64, 64, 3, 1, 1),
            conv("c", 64, 64, 3, 2, 1),
            conv("d", 64, 63, 3, 1, 1),
            conv("e", 63, 64, 1, 1, 0),
            Layer::GlobalAvgPool,
        ],
    );
    assert!(!Plan::new(&narrow, &Target { math: Math::Fast, ..lavapipe }).unwrap().is_fast());
}
