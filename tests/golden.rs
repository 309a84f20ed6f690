//! The engine against PyTorch in f64: golden tensors written by `tests/golden/make.py`.

mod common;

use common::*;
use safetensors::SafeTensors;
use signstep::attack::Engine;
use signstep::model::known;
use signstep::{Model, Reference, Storage, Variant, weights};
use std::path::Path;

struct Golden {
    images: Vec<f32>,
    classes: Vec<u32>,
    logits: Vec<f64>,
    loss: Vec<f64>,
    gradient: Vec<f64>,
}

fn values<const B: usize, T>(tensors: &SafeTensors, name: &str, from: fn([u8; B]) -> T) -> Vec<T> {
    let data = tensors.tensor(name).unwrap_or_else(|_| panic!("golden {name}")).data();
    data.chunks_exact(B).map(|b| from(b.try_into().unwrap())).collect()
}

fn golden(bytes: &[u8]) -> Golden {
    let t = SafeTensors::deserialize(bytes).unwrap();
    Golden {
        images: values(&t, "images", f32::from_le_bytes),
        classes: values(&t, "classes", i64::from_le_bytes).into_iter().map(|c| c as u32).collect(),
        logits: values(&t, "logits", f64::from_le_bytes),
        loss: values(&t, "loss", f64::from_le_bytes),
        gradient: values(&t, "input_gradient", f64::from_le_bytes),
    }
}

/// As [`golden`], in the smaller form of `golden/seeded`, and what the file says of itself.
fn seeded_golden(bytes: &[u8]) -> (Golden, impl Fn(&str) -> String) {
    let t = SafeTensors::deserialize(bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let about = header.metadata().clone().expect("metadata");
    let golden = Golden {
        images: values(&t, "images", |[b]: [u8; 1]| f32::from(b) / 255.0),
        classes: values(&t, "classes", |[b]: [u8; 1]| u32::from(b)),
        logits: values(&t, "logits", f64::from_le_bytes),
        loss: values(&t, "loss", f64::from_le_bytes),
        gradient: values(&t, "input_gradient", |b| f64::from(f32::from_le_bytes(b))),
    };
    (golden, move |key: &str| about.get(key).cloned().unwrap_or_else(|| panic!("metadata {key}")))
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// One ReLU that decides otherwise in f32 costs 3e-3.
const A_MASK_MAY_FLIP: f64 = 1e-2;
/// Where images were chosen so that none does.
const NO_MASK_FLIPS: f64 = 1e-5;

/// Tolerances of the project: logits 1e-5 + 1e-4·|z|; gradient of a sample, relative L2: median 1e-5, worst as given; signs
/// 99.9 % over pixels above 1e-6 of the sample's largest.
fn compare(what: &str, engine: &dyn Engine, g: &Golden, allowed: f64) {
    let n = g.classes.len();
    assert!(n >= 4, "{what}: {n} samples");
    let z = engine.logits(&g.images).unwrap();
    assert_close(&format!("{what}: logits"), &z.logits, &g.logits, 1e-5, 1e-4);
    let got = engine.input_gradient(&g.images, &g.classes).unwrap();
    assert_close(&format!("{what}: loss"), &got.loss, &g.loss, 1e-5, 1e-4);
    assert!(z.health.iter().chain(&got.health).all(|h| h.is_healthy()), "{what}: health");
    let one = got.gradient.len() / n;
    let mut errors = Vec::new();
    let (mut agree, mut pixels) = (0, 0);
    for i in 0..n {
        let (a, b) = (&got.gradient[i * one..(i + 1) * one], &g.gradient[i * one..(i + 1) * one]);
        errors.push(relative_l2(a, b));
        let top = b.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        assert!(top > 0.0, "{what}: sample {i} has no gradient to compare");
        for (a, b) in a.iter().zip(b).filter(|(_, b)| b.abs() > 1e-6 * top) {
            pixels += 1;
            agree += usize::from((f64::from(*a) > 0.0) == (*b > 0.0) && *a != 0.0);
        }
    }
    let worst = errors.iter().copied().fold(0.0, |m, e| if e <= m { m } else { e });
    let signs = agree as f64 / pixels as f64;
    println!(
        "{what}: gradient error median {:.1e}, worst {worst:.1e}; signs {:.3} %",
        median(errors.clone()),
        100.0 * signs
    );
    assert!(median(errors) <= 1e-5, "{what}: median gradient error");
    assert!(worst <= allowed, "{what}: worst gradient error {worst:e}");
    assert!(signs >= 0.999, "{what}: {agree} of {pixels} signs agree");
}

fn everywhere(name: &str, weights: &[u8], golden_bytes: &[u8]) {
    let model: Model = weights::load(weights).unwrap();
    let g = golden(golden_bytes);
    compare(&format!("{name} reference"), &Reference::new(model.clone()).unwrap(), &g, A_MASK_MAY_FLIP);
    for (storage, variant) in [
        (Storage::Texture, Variant::Fast),
        (Storage::Buffer, Variant::Fast),
        (Storage::Texture, Variant::Naive),
        (Storage::Buffer, Variant::Naive),
    ] {
        compare(&format!("{name} {storage:?} {variant:?}"), &network(&model, storage, variant), &g, A_MASK_MAY_FLIP);
    }
}

/// Every network of a family with the weights of its formula.
fn seeded(family: &str) {
    let names: Vec<String> = known().into_iter().map(|a| a.name).filter(|name| family_of(name) == family).collect();
    seeded_networks(names);
}

fn seeded_networks(names: Vec<String>) {
    assert!(!names.is_empty());
    for name in names {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/seeded/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (g, about) = seeded_golden(&bytes);
        assert_eq!(about("arch"), name);
        let weights = seeded::checksum(&seeded::tensors(&seeded::arch(&name).layers));
        assert_eq!(weights, about("weights"), "{name}: other weights than PyTorch's");
        // Rounding takes the branches of f64: nothing excuses a gradient that is off by a mask.
        assert!(about("margin").parse::<f64>().unwrap() > 1.0, "{name}: images too near to a kink");

        let model = seeded::seeded(&name);
        // Naive kernels take their time on a software driver: for large networks one storage is enough, this or that one.
        let (small, projections) = (model.parameters() < 500_000, name.ends_with("-b"));
        let mut ways = vec![(Storage::Texture, Variant::Fast), (Storage::Buffer, Variant::Fast)];
        if small || projections {
            ways.push((Storage::Texture, Variant::Naive));
        }
        if small || !projections {
            ways.push((Storage::Buffer, Variant::Naive));
        }
        for (storage, variant) in ways {
            let what = format!("{name} {storage:?} {variant:?}");
            compare(&what, &network(&model, storage, variant), &g, NO_MASK_FLIPS);
        }
    }
}

/// By what they are made of, and so that tests beside each other take about as long.
fn family_of(name: &str) -> &'static str {
    match name {
        "resnet18" => "wide",
        "resnet110" | "resnet110-b" => "deepest",
        _ if name.ends_with("-b") => "projections",
        _ if name.starts_with("resnet") => "subsampled",
        _ => "small",
    }
}

/// Activations come before convolutions: batch norm at the head of bodies, behind sums, and before both ways of a block.
#[test]
fn seeded_wide_resnet() {
    seeded_networks(vec!["wrn-16-1".into()]);
}

#[test]
fn seeded_small() {
    seeded("small");
}

#[test]
fn seeded_resnets_with_subsampled_shortcuts() {
    seeded("subsampled");
}

#[test]
fn seeded_resnets_with_projections() {
    seeded("projections");
}

#[test]
fn seeded_deepest_resnets() {
    seeded("deepest");
}

#[test]
fn seeded_resnet18() {
    seeded("wide");
}

#[test]
fn digits_cnn_random_weights() {
    everywhere(
        "digits-cnn (random)",
        include_bytes!("golden/digits-cnn-random.weights.safetensors"),
        include_bytes!("golden/digits-cnn-random.safetensors"),
    );
}

#[test]
fn digits_cnn_shipped_weights() {
    let weights = include_bytes!("../weights/digits-cnn.safetensors");
    everywhere("digits-cnn", weights, include_bytes!("golden/digits-cnn.safetensors"));
    let weights = include_bytes!("../weights/digits-cnn-robust.safetensors");
    everywhere("digits-cnn-robust", weights, include_bytes!("golden/digits-cnn-robust.safetensors"));
}

#[test]
fn resnet20_random_weights() {
    everywhere(
        "resnet20 (random)",
        include_bytes!("golden/resnet20-random.weights.safetensors"),
        include_bytes!("golden/resnet20-random.safetensors"),
    );
}

#[test]
fn resnet20_shipped_weights() {
    let weights = include_bytes!("../weights/resnet20-cifar10.safetensors");
    everywhere("resnet20-cifar10", weights, include_bytes!("golden/resnet20-cifar10.safetensors"));
}

#[test]
#[should_panic(expected = "worst gradient error")]
fn one_sample_with_a_wrong_gradient_is_noticed() {
    let model = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let mut g = golden(include_bytes!("golden/digits-cnn.safetensors"));
    // The median does not see it.
    g.gradient[..64].iter_mut().for_each(|v| *v *= 1.02);
    compare("scaled", &Reference::new(model).unwrap(), &g, A_MASK_MAY_FLIP);
}
