//! ResNet-20 on real CIFAR-10 images, beside torchattacks and foolbox on the same weights (`tests/oracle/cifar_attacks.py`
//! wrote down what they came to). Needs the CIFAR-10 files (see `tests/data.rs`), so it is run by name (`--ignored`).
//!
//! SIGNSTEP_IMAGES sets how many images are attacked: 1,000 are the whole comparison, 500 the default, for time.

#![cfg(feature = "cli")]

mod common;

use signstep::attack::{Engine, argmax};
use signstep::{Attack, Network, Outcome, Targets, data, weights};
use std::path::PathBuf;

struct Setting {
    net: Network,
    images: Vec<f32>,
    labels: Vec<i64>,
    oracle: serde_json::Value,
}

fn setting() -> Setting {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let data = std::env::var_os("SIGNSTEP_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    let mut set = data::open(&data.join("cifar10/test_batch.bin"), Some(1000)).unwrap();
    let model = weights::load(include_bytes!("../weights/resnet20-cifar10.safetensors")).unwrap();
    let oracle = serde_json::from_str(include_str!("oracle/cifar_resnet20.json")).unwrap();
    Setting { net: Network::new(common::gpu(), model).unwrap(), images: set.all().unwrap(), labels: set.labels, oracle }
}

fn integers(v: &serde_json::Value) -> Vec<i64> {
    v.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

impl Setting {
    fn count() -> usize {
        std::env::var("SIGNSTEP_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(500).min(1000)
    }

    fn attack(&self, levels: f32, step: f32, targets: Targets) -> Outcome {
        let n = Self::count();
        let one = self.images.len() / self.labels.len();
        let attack = Attack::ifgsm(levels / 255.0).step_size(step / 255.0).steps(10).targets(targets);
        attack.run(&self.net, &self.images[..n * one], &self.labels[..n]).unwrap()
    }

    /// The predictions that a library's attack ended with, in these images: (robust accuracy, targeted success).
    fn oracle_rates(&self, library: &str, eps: &str, kind: &str) -> (f64, f64) {
        let n = Self::count();
        let row = self.oracle["results"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["library"].as_str().unwrap().starts_with(library) && r["eps"] == eps && r["targets"] == kind)
            .unwrap_or_else(|| panic!("no row of {library} for {eps}, {kind}"));
        let after: Vec<i64> = row["predictions"].as_str().unwrap().bytes().map(|b| i64::from(b - b'0')).collect();
        let clean = integers(&self.oracle["clean_predictions"]);
        let targets = integers(&self.oracle["random_targets"]);
        let right: Vec<usize> = (0..n).filter(|&i| clean[i] == self.labels[i]).collect();
        let still = right.iter().filter(|&&i| after[i] == self.labels[i]).count();
        let hits = right.iter().filter(|&&i| after[i] == targets[i]).count();
        (still as f64 / n as f64, hits as f64 / right.len() as f64)
    }

    /// The targets that the libraries were given, drawn once.
    fn targets(&self) -> Targets {
        Targets::Classes(integers(&self.oracle["random_targets"])[..Self::count()].to_vec())
    }
}

fn targeted_success_float(out: &Outcome) -> f64 {
    let count = |v: &[bool]| v.iter().filter(|x| **x).count() as f64;
    count(&out.success_float) / count(&out.attacked)
}

#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn clean_predictions_equal_pytorch_image_by_image() {
    let s = setting();
    let k = s.net.model().logits();
    let z = s.net.logits(&s.images).unwrap().logits;
    let ours: Vec<i64> = z.chunks(k).map(|z| argmax(z) as i64).collect();
    assert_eq!(ours, integers(&s.oracle["clean_predictions"]));
    assert_eq!(s.labels, integers(&s.oracle["labels"]));
}

#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn eight_levels_turn_nearly_everything() {
    let s = setting();
    let out = s.attack(8.0, 2.0, Targets::None);
    println!("8/255 untargeted: robust accuracy {:.2} %", 100.0 * out.robust_accuracy());
    assert!(out.robust_accuracy() < 0.01 && out.robust_accuracy_float() < 0.01);
    let out = s.attack(8.0, 2.0, s.targets());
    let count = |v: &[bool]| v.iter().filter(|x| **x).count() as f64;
    let delivered = count(&out.success) / count(&out.attacked);
    println!("8/255 targeted: success {:.2} %, float {:.2} %", 100.0 * delivered, 100.0 * targeted_success_float(&out));
    assert!(delivered > 0.95 && targeted_success_float(&out) > 0.95);
}

/// Within one point of both libraries, in float as they measure.
#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn small_budgets_come_to_what_torchattacks_and_foolbox_come_to() {
    let s = setting();
    for (levels, eps) in [(1.0, "1/255"), (2.0, "2/255")] {
        let untargeted = s.attack(levels, levels / 4.0, Targets::None).robust_accuracy_float();
        let targeted = targeted_success_float(&s.attack(levels, levels / 4.0, s.targets()));
        for library in ["torchattacks", "foolbox"] {
            let robust = s.oracle_rates(library, eps, "none").0;
            let hits = s.oracle_rates(library, eps, "random").1;
            println!(
                "{eps}: robust accuracy {:.2} % ({library} {:.2} %), targeted success {:.2} % ({:.2} %)",
                100.0 * untargeted,
                100.0 * robust,
                100.0 * targeted,
                100.0 * hits
            );
            assert!((untargeted - robust).abs() <= 0.01, "{eps} untargeted, {library}");
            assert!((targeted - hits).abs() <= 0.01, "{eps} targeted, {library}");
        }
    }
}
