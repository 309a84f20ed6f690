//! `Math::F16`: activations and gradients kept as f16. Every kernel gives its naive twin's bits there too; what is far from one is scaled on its
//! way back, and what f16 cannot hold marks its sample.

mod common;

use common::*;
use signstep::attack::{Engine, Health};
use signstep::model::{Dims, Layer, Params};
use signstep::plan::{Family, Tile};
use signstep::{Error, Kind, Math, Model, Network, Options, Plan, Reference, Storage, Target, Variant};

fn with(model: &Model, storage: Storage, math: Math, variant: Variant) -> Network {
    let options = Options { storage: Some(storage), math, variant, ..Options::default() };
    Network::with_options(gpu(), model.clone(), &options).unwrap()
}

/// Every layer that keeps anything, or adds to it: with ReLUs, or with as little that decides as a network can have.
fn model(seed: u64, with_relu: bool) -> Model {
    let relu = |layers: &[Layer]| if with_relu { [layers, &[Layer::Relu]].concat() } else { layers.to_vec() };
    let layers = [
        vec![Layer::Normalise { mean: vec![0.4; 3], std: vec![0.25; 3] }],
        relu(&[conv("a", 3, 10, 3, 1, 1)]),
        relu(&[residual([relu(&[conv("b", 10, 10, 3, 1, 1)]), vec![conv("c", 10, 10, 3, 1, 1)]].concat(), 0)]),
        relu(&[affine("n", 10)]),
        vec![Layer::AvgPool { size: 2, stride: 2, padding: 0 }],
        relu(&[residual([relu(&[conv("d", 10, 18, 3, 2, 1)]), vec![conv("e", 18, 18, 3, 1, 1)]].concat(), 8)]),
        vec![Layer::GlobalAvgPool, linear("z", 18, 5)],
    ];
    random_model(&mut Rng::new(seed), Dims::new(3, 18, 14), layers.concat())
}

#[test]
fn every_variant_gives_the_bits_of_its_twin() {
    let model = model(31, true);
    let n = 3;
    let images = Rng::new(32).images(n * model.input.len());
    let mut elsewhere: Option<(Vec<f32>, Vec<f32>)> = None;
    for storage in [Storage::Buffer, Storage::Texture] {
        let naive = with(&model, storage, Math::F16, Variant::Naive);
        let (z, g) = (naive.logits(&images).unwrap(), naive.input_gradient(&images, &[0, 1, 2]).unwrap());
        assert!(z.health.iter().chain(&g.health).all(|h| h.is_healthy()), "{storage:?}");
        // What it is all about: other roundings than in f32.
        let whole = with(&model, storage, Math::F32, Variant::Naive).logits(&images).unwrap().logits;
        assert!(whole.iter().zip(&z.logits).any(|(a, b)| a != b));
        // Rounded by the shader, whatever a texture does with what is stored.
        let (z, g) = (z.logits, g.gradient);
        let (there_z, there_g) = elsewhere.get_or_insert_with(|| (z.clone(), g.clone()));
        assert_bits("in textures as in buffers", &z, there_z);
        assert_bits("in textures as in buffers", &g, there_g);
        let all = Tile::all(&Target { storage, ..Target::of(gpu()).unwrap() });
        let of = |family| all.iter().find(|t| t.family == family).copied().map(Variant::Only);
        let tiles = [Family::Register, Family::Broadcast, Family::Workgroup, Family::Lean].into_iter().filter_map(of);
        for variant in [Variant::Fast].into_iter().chain(tiles) {
            let what = format!("{variant}, {storage:?}");
            let fast = with(&model, storage, Math::F16, variant);
            assert_bits(&what, &fast.logits(&images).unwrap().logits, &z);
            assert_bits(&what, &fast.input_gradient(&images, &[0, 1, 2]).unwrap().gradient, &g);
        }
    }
}

/// A number is rounded by up to 2^-11 of itself wherever it is kept, and roundings of ten layers add up as noise does: some 2e-3. Without a ReLU
/// that decides otherwise, that is all there is.
#[test]
fn what_is_lost_is_roundings() {
    let model = model(33, false);
    let n = 4;
    let images = Rng::new(34).images(n * model.input.len());
    let reference = Reference::new(model.clone()).unwrap();
    let (z, g) =
        (reference.logits_f64(&images).unwrap(), reference.input_gradient_f64(&images, &[0, 1, 2, 3]).unwrap());
    for storage in [Storage::Buffer, Storage::Texture] {
        let net = with(&model, storage, Math::F16, Variant::Fast);
        let logits = relative_l2(&net.logits(&images).unwrap().logits, &z);
        let gradient = relative_l2(&net.input_gradient(&images, &[0, 1, 2, 3]).unwrap().gradient, &g);
        println!("{storage:?}: logits off by {logits:.1e}, gradients by {gradient:.1e}");
        assert!(logits <= 3e-3 && gradient <= 3e-3, "{storage:?}: logits off by {logits:e}, gradients by {gradient:e}");
        assert!(logits >= 1e-5 && gradient >= 1e-5, "{storage:?}: nothing was rounded");
    }
}

/// Where the network is all but sure, seeds are far below what f16 knows; beside them stands a sample with ordinary ones.
#[test]
fn small_gradients_are_scaled_by_their_own_power_of_two() {
    let mut model = model(35, false);
    // Logits 25 apart: the seeds of class 0 are of e^-25 = 1e-11, the least number of f16 is 6e-8.
    let Params { bias, .. } = model.params.get_mut("z").unwrap();
    bias.copy_from_slice(&[25.0, 0.0, -1.0, 1.0, 0.5]);
    let images = Rng::new(36).images(2 * model.input.len());
    let want = Reference::new(model.clone()).unwrap().input_gradient_f64(&images, &[0, 1]).unwrap();
    let largest = want[..model.input.len()].iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    assert!((1e-15..1e-9).contains(&largest), "{largest:e}: what the test is about");
    for storage in [Storage::Buffer, Storage::Texture] {
        let net = with(&model, storage, Math::F16, Variant::Fast);
        let got = net.input_gradient(&images, &[0, 1]).unwrap();
        assert!(got.health.iter().all(|h| h.is_healthy()));
        for (got, want) in got.gradient.chunks(model.input.len()).zip(want.chunks(model.input.len())) {
            let error = relative_l2(got, want);
            assert!(error <= 3e-3, "{storage:?}: off by {error:e}");
        }
    }
}

#[test]
fn what_f16_cannot_hold_marks_its_sample_and_no_other() {
    let mut model = model(37, true);
    // The first sample's activations are beyond 65,504 behind the first layer, the second one's are not.
    for v in &mut model.params.get_mut("a").unwrap().weight {
        *v *= 4e5;
    }
    for v in &mut model.params.get_mut("c").unwrap().weight {
        *v *= 1e-5;
    }
    let one = model.input.len();
    let bright = Rng::new(38).images(one);
    let dull: Vec<f32> = bright.iter().map(|v| 0.4 + (v - 0.4) * 0.01).collect();
    let both = [&bright[..], &dull[..]].concat();
    for storage in [Storage::Buffer, Storage::Texture] {
        let whole = with(&model, storage, Math::F32, Variant::Fast).logits(&both).unwrap();
        assert!(whole.health.iter().all(|h| h.is_healthy()), "f32 holds both");
        for variant in [Variant::Naive, Variant::Fast] {
            let net = with(&model, storage, Math::F16, variant);
            let got = net.logits(&both).unwrap();
            let marks: Vec<bool> = got.health.iter().map(|h| h.0 & Health::ACTIVATION.0 != 0).collect();
            assert_eq!(marks, [true, false], "{storage:?} {variant}");
            let alone = net.logits(&dull).unwrap();
            assert!(alone.health[0].is_healthy());
            assert_bits("beside what overflows", &got.logits[5..], &alone.logits);
        }
    }
}

#[test]
fn images_seeds_and_sums_stay_f32_and_memory_is_nearly_half() {
    let model = seeded::seeded("resnet20");
    let of = |math, storage| Plan::new(&model, &Target { math, storage, ..Target::default() }).unwrap();
    for storage in [Storage::Buffer, Storage::Texture] {
        let (half, whole) = (of(Math::F16, storage), of(Math::F32, storage));
        let texels = |plan: &Plan, kind: &Kind| -> u64 {
            plan.resources.iter().filter(|r| r.kind == *kind).map(|r| r.per_sample).sum()
        };
        println!("{} bytes a sample, in f32 {}", half.bytes_per_sample(), whole.bytes_per_sample());
        assert_eq!(texels(&whole, &Kind::Half), 0);
        // The image and its gradient take a slot of one block of channels.
        assert!(texels(&half, &Kind::Activation) <= 2 * 32 * 32, "{half}");
        assert!(10 * half.bytes_per_sample() <= 7 * whole.bytes_per_sample());
        assert!(half.is_fast() && !whole.is_fast());
    }
}

/// Matrices (`tests/coop.rs`) are there only for a device that has them and was opened for them, which this one was not.
#[test]
fn a_device_without_matrices_says_so() {
    let model = model(39, true);
    let options = Options { math: Math::Coop, ..Options::default() };
    match Network::with_options(gpu(), model.clone(), &options) {
        Err(Error::Usage(said)) => {
            assert!(said.contains("math coop") && said.contains(&gpu().summary().name), "{said}");
        }
        other => panic!("{other:?}"),
    }
    let plan = Plan::new(&model, &Target { math: Math::Coop, ..Target::default() });
    assert!(matches!(plan, Err(Error::Usage(_))), "{plan:?}");
}
