//! A robustness gate: a test that fails when a network's robust accuracy under a given attack falls below a threshold.
//!
//! ```sh
//! cargo run --release --example robustness_gate     # the figures
//! cargo test --release --example robustness_gate    # the gate
//! ```
//!
//! To have one in a repository of your own: `cargo add --dev signstep --no-default-features`, `cargo add --dev safetensors`,
//! copy this file to `tests/robustness_gate.rs` and `robustness-gate.yml`, beside it, to `.github/workflows/`. Then put your
//! own weights, images, attack and thresholds here. The gate says that this attack does not get through more often than it
//! did; it is no proof that no other one does.

use safetensors::{Dtype, SafeTensors};
use signstep::{Adapter, Attack, Gpu, Network, Norm, Outcome};
use std::error::Error;

/// Weights as `signstep attack --model` takes them, and `images` (u8, [N,C,H,W]) and `labels` (i64, [N]).
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/digits-cnn-robust.safetensors");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/digits.safetensors");

/// Of the data, the part that the network was not trained on.
const HELD_OUT: usize = 450;

/// Shares of those samples. Leave some room: another driver may round otherwise, and turn a sample or two.
const CLEAN_ACCURACY: f64 = 0.95;
const ROBUST_ACCURACY: f64 = 0.45;

/// The seed is fixed, so that a run can be repeated.
fn attack() -> Attack {
    Attack::pgd(Norm::Linf, 0.3).steps(20).restarts(3).seed(1)
}

/// What the gate looks at.
#[derive(Debug)]
struct Figures {
    clean: f64,
    /// The lower one of what is delivered in 8 bits and of the floats before: rounding must not pass for a defence.
    robust: f64,
    adapter: String,
}

fn figures(model: &str, attack: &Attack) -> Result<Figures, Box<dyn Error>> {
    let bytes = std::fs::read(DATA)?;
    let data = SafeTensors::deserialize(&bytes)?;
    let (images, labels) = (data.tensor("images")?, data.tensor("labels")?);
    if (images.dtype(), labels.dtype()) != (Dtype::U8, Dtype::I64) || images.shape()[0] < HELD_OUT {
        return Err(format!("{DATA}: {:?} images, {:?} labels", images.dtype(), labels.dtype()).into());
    }
    let one: usize = images.shape()[1..].iter().product();
    let images: Vec<f32> = images.data()[..HELD_OUT * one].iter().map(|k| f32::from(*k) / 255.0).collect();
    let labels = labels.data().as_chunks::<8>().0[..HELD_OUT].iter().map(|b| i64::from_le_bytes(*b));
    let labels: Vec<i64> = labels.collect();

    let gpu = Gpu::new(&Adapter::Auto)?;
    let net = Network::load(&gpu, &std::fs::read(model)?)?;
    let out = attack.run(&net, &images, &labels)?;
    // NaN, or a network without gradients, would pass for robustness.
    if let Some((sample, health)) = out.first_unhealthy() {
        return Err(format!("sample {sample}: {}", health.describe()).into());
    }
    let blind = (0..out.len()).filter(|&i| has_no_gradient(&out, i, one)).count();
    if blind * 100 > out.len() {
        return Err(format!("{blind} samples have no gradient anywhere: the attack says nothing of them").into());
    }
    Ok(Figures {
        clean: out.clean_correct.iter().filter(|right| **right).count() as f64 / out.len() as f64,
        robust: out.robust_accuracy().min(out.robust_accuracy_float()),
        adapter: gpu.summary().name.clone(),
    })
}

fn has_no_gradient(out: &Outcome, i: usize, pixels: usize) -> bool {
    out.steps_taken[i] > 0 && out.zero_gradients[i] >= out.steps_taken[i] * pixels as u64
}

fn main() -> Result<(), Box<dyn Error>> {
    let Figures { clean, robust, adapter } = figures(MODEL, &attack())?;
    println!("{HELD_OUT} samples on {adapter}: clean accuracy {:.1} %, robust {:.1} %", 100.0 * clean, 100.0 * robust);
    println!("the gate asks for {:.1} % and {:.1} %", 100.0 * CLEAN_ACCURACY, 100.0 * ROBUST_ACCURACY);
    Ok(())
}

#[test]
fn accuracy_has_not_fallen() {
    let f = figures(MODEL, &attack()).expect("the attack runs");
    assert!(f.clean >= CLEAN_ACCURACY, "clean accuracy fell below {CLEAN_ACCURACY}: {f:?}");
    assert!(f.robust >= ROBUST_ACCURACY, "robust accuracy fell below {ROBUST_ACCURACY}: {f:?}");
}

/// A gate that lets everything through is none: weights without adversarial training do not pass.
#[test]
fn the_gate_can_close() {
    let undefended = MODEL.replace("-robust", "");
    let f = figures(&undefended, &attack()).expect("the attack runs");
    assert!(f.clean >= CLEAN_ACCURACY && f.robust < ROBUST_ACCURACY, "{f:?}");
}
