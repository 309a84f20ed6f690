//! NaN and infinity at random places of random batches: in images, in weights, in activations, in gradients. What they arise in
//! is marked, every time; its neighbours have the bits that they have without it.

mod common;

use common::{Rng, affine, conv, gpu, linear, random_model, residual};
use signstep::attack::{Engine, Health};
use signstep::model::{Dims, Layer, Model, Params};
use signstep::weights::{Tensors, from_layers};
use signstep::{Attack, Network, Norm, Outcome};

const DIMS: Dims = Dims::new(2, 7, 6);
const CLASSES: usize = 4;
const POISONS: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn model() -> Model {
    let layers = vec![
        conv("a", 2, 6, 3, 1, 1),
        Layer::Relu,
        Layer::MaxPool { size: 2, stride: 2, padding: 0 },
        // What it stops on the way round is marked as well.
        residual(vec![affine("n", 6), Layer::Relu, conv("d", 6, 6, 3, 1, 1)], 0),
        affine("m", 6),
        Layer::Relu,
        residual(vec![conv("b", 6, 6, 3, 1, 1), Layer::Relu, conv("c", 6, 6, 3, 1, 1)], 0),
        Layer::Relu,
        Layer::GlobalAvgPool,
        linear("z", 6, CLASSES),
    ];
    random_model(&mut Rng::new(3), DIMS, layers)
}

/// All that became of a sample, in bits.
fn fate(out: &Outcome, i: usize) -> Vec<u64> {
    let row = |values: &[f32]| {
        let one = values.len() / out.len();
        values[i * one..(i + 1) * one].iter().map(|v| u64::from(v.to_bits())).collect::<Vec<_>>()
    };
    let floats =
        [&out.adversarial, &out.adversarial_logits, &out.float_logits, &out.clean_logits, &out.loss, &out.linf];
    let mut all: Vec<u64> = floats.into_iter().flat_map(|values| row(values)).collect();
    all.extend([out.zero_gradients[i], out.steps_taken[i], u64::from(out.health[i].0), u64::from(out.success[i])]);
    all
}

/// Some of `n`, one at least, and not all of several.
fn chosen(rng: &mut Rng, n: usize) -> Vec<bool> {
    let mut marks: Vec<bool> = (0..n).map(|_| rng.range(0, 3) == 0).collect();
    marks[rng.range(0, n - 1)] = true;
    if n > 1 && marks.iter().all(|m| *m) {
        marks[rng.range(0, n - 1)] = false;
    }
    marks
}

fn unhealthy(health: &[Health]) -> Vec<bool> {
    health.iter().map(|h| !h.is_healthy()).collect()
}

#[test]
fn images() {
    let net = Network::new(gpu(), model()).unwrap();
    let one = DIMS.len();
    let attacks = [
        Attack::ifgsm(0.2).steps(2).untargeted(),
        Attack::pgd(Norm::Linf, 0.2).steps(2).restarts(2).untargeted(),
        Attack::pgd(Norm::L2, 0.5).steps(2).targets(signstep::Targets::Next),
        Attack::new(signstep::Method::Mifgsm, Norm::Linf, 0.2).steps(2).untargeted(),
        Attack::new(signstep::Method::Apgd, Norm::Linf, 0.2).steps(3).untargeted(),
    ];
    let (mut trials, mut neighbours) = (0, 0);
    for trial in 0..420_u64 {
        let mut rng = Rng::new(1000 + trial);
        let attack = attacks[trial as usize % attacks.len()].clone().seed(trial);
        let n = rng.range(1, 7);
        let images = rng.images(n * one);
        let labels: Vec<i64> =
            net.logits(&images).unwrap().logits.chunks(CLASSES).map(|z| signstep::attack::argmax(z) as i64).collect();
        let marks = chosen(&mut rng, n);
        let mut poisoned = images.clone();
        // Infinity is no pixel: where there are bounds it is refused before anything runs.
        let bounded = rng.range(0, 1) == 0;
        let attack = if bounded { attack } else { attack.bounds(None).quantise(false) };
        for i in (0..n).filter(|&i| marks[i]) {
            for _ in 0..rng.range(1, 3) {
                poisoned[i * one + rng.range(0, one - 1)] = if bounded { f32::NAN } else { POISONS[rng.range(0, 2)] };
            }
        }
        let whole = attack.run(&net, &images, &labels).unwrap();
        let out = attack.run(&net, &poisoned, &labels).unwrap();
        assert_eq!(unhealthy(&out.health), marks, "trial {trial}");
        for (i, &marked) in marks.iter().enumerate() {
            if marked {
                assert!(!out.success[i] && !out.success_float[i], "trial {trial}: sample {i} has succeeded");
                assert_eq!((out.linf[i], out.l2[i]), (0.0, 0.0), "trial {trial}: sample {i} was moved");
            } else {
                assert_eq!(fate(&out, i), fate(&whole, i), "trial {trial}: neighbour {i}");
                neighbours += 1;
            }
        }
        trials += 1;
    }
    println!("images: {trials} trials, {neighbours} neighbours, no miss");
}

/// A unit that only a bright pixel opens, with weights so large that what flows through it overflows: forward where the pixel is
/// very bright, else on the way back alone.
fn gated() -> Network {
    let layers = vec![conv("a", 1, 2, 1, 1, 0), Layer::Relu, Layer::Flatten, linear("z", 24, 3)];
    let mut rng = Rng::new(9);
    let mut weight: Vec<f32> = rng.vec(72, |r| 0.3 * r.normal());
    // Values of the second unit come behind those of the first, for each class.
    weight.chunks_mut(24).enumerate().for_each(|(k, w)| w[12..].fill([1e13, -1e13, 5e12][k]));
    let tensors = Tensors::from([
        ("a.weight".into(), (vec![2, 1, 1, 1], vec![1.0, 1e26])),
        ("a.bias".into(), (vec![2], vec![0.1, -1.99e26])),
        ("z.weight".into(), (vec![3, 24], weight)),
        ("z.bias".into(), (vec![3], vec![0.0; 3])),
    ]);
    Network::new(gpu(), from_layers(layers, Dims::new(1, 3, 4), tensors).unwrap()).unwrap()
}

#[test]
fn activations_and_gradients() {
    let net = gated();
    let (mut trials, mut neighbours) = ([0, 0], 0);
    for trial in 0..400_u64 {
        let mut rng = Rng::new(9000 + trial);
        let n = rng.range(1, 9);
        let images = rng.images(n * 12);
        // Class 1 is what the open unit speaks against, so that its loss has a gradient.
        let classes = vec![1; n];
        let marks = chosen(&mut rng, n);
        let forward = rng.range(0, 1) == 0;
        let mut poisoned = images.clone();
        for i in (0..n).filter(|&i| marks[i]) {
            poisoned[i * 12 + rng.range(0, 11)] = if forward { 1e13 } else { 2.0 };
        }
        let (before, after) =
            (net.input_gradient(&images, &classes).unwrap(), net.input_gradient(&poisoned, &classes).unwrap());
        assert_eq!(unhealthy(&after.health), marks, "trial {trial}, forward {forward}");
        let seen = net.logits(&poisoned).unwrap();
        for (i, &marked) in marks.iter().enumerate() {
            if marked {
                // What arises on the way back alone is not seen forward.
                let kind = if forward { Health::ACTIVATION.0 } else { Health::GRADIENT.0 };
                assert!(after.health[i].0 & kind != 0, "trial {trial}: {:?}", after.health[i]);
                assert_eq!(seen.health[i].is_healthy(), !forward, "trial {trial}: logits");
                continue;
            }
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let row = i * 12..(i + 1) * 12;
            assert_eq!(bits(&after.gradient[row.clone()]), bits(&before.gradient[row]), "trial {trial}: neighbour {i}");
            assert_eq!(after.loss[i].to_bits(), before.loss[i].to_bits(), "trial {trial}: neighbour {i}");
            neighbours += 1;
        }
        trials[usize::from(forward)] += 1;
    }
    println!("gradients: {} trials, activations: {}; {neighbours} neighbours, no miss", trials[0], trials[1]);
}

#[test]
fn weights() {
    let sound = model();
    let names: Vec<String> = sound.params.keys().cloned().collect();
    let mut trials = 0;
    for trial in 0..220_u64 {
        let mut rng = Rng::new(77_000 + trial);
        let mut sick = sound.clone();
        let Params { weight, bias } = sick.params.get_mut(&names[rng.range(0, names.len() - 1)]).unwrap();
        let list = if rng.range(0, 4) == 0 { bias } else { weight };
        let at = rng.range(0, list.len() - 1);
        list[at] = POISONS[rng.range(0, 2)];
        let n = rng.range(1, 4);
        let images = rng.images(n * DIMS.len());
        let net = Network::new(gpu(), sick).unwrap();
        let out = Attack::ifgsm(0.2).steps(1).attack_all(true).untargeted().run(&net, &images, &vec![0; n]).unwrap();
        assert!(out.health.iter().all(|h| !h.is_healthy()), "trial {trial}: {:?}", out.health);
        assert!(!out.success.contains(&true), "trial {trial}");
        trials += 1;
    }
    println!("weights: {trials} trials, no miss");
}

#[test]
fn what_is_withheld_is_the_clean_image() {
    let net = Network::new(gpu(), model()).unwrap();
    let mut rng = Rng::new(5);
    let images = rng.images(3 * DIMS.len());
    let labels: Vec<i64> =
        net.logits(&images).unwrap().logits.chunks(CLASSES).map(|z| signstep::attack::argmax(z) as i64).collect();
    let attack = Attack::ifgsm(0.3).untargeted();
    let whole = attack.run(&net, &images, &labels).unwrap();
    let mut out = whole.clone();
    // Even of a sample that looks right it is not known.
    out.adversarial_logits = whole.clean_logits.clone();
    out.float_logits = whole.clean_logits.clone();
    assert_eq!((out.robust_accuracy(), out.robust_accuracy_float()), (1.0, 1.0));
    out.health[1] = Health::LOGITS;
    assert_eq!((out.robust_accuracy(), out.robust_accuracy_float()), (2.0 / 3.0, 2.0 / 3.0));
    let mut out = whole.clone();
    out.health[1] = Health::GRADIENT;
    assert!(whole.success[1] && whole.success_float[1]);
    out.withhold_unhealthy();
    assert!(!out.success[1] && !out.success_float[1], "neither turned nor robust");
    let held = (whole.success.iter().filter(|turned| !**turned).count() as f64) / 3.0;
    assert_eq!((out.robust_accuracy(), whole.robust_accuracy()), (held, held));
    let one = DIMS.len();
    assert_eq!(out.adversarial[one..2 * one], whole.clean[one..2 * one]);
    assert_eq!(out.adversarial_logits[CLASSES..2 * CLASSES], whole.clean_logits[CLASSES..2 * CLASSES]);
    assert_eq!((out.linf[1], out.l2[1]), (0.0, 0.0));
    assert!([0, 2].iter().all(|&i| fate(&out, i) == fate(&whole, i)) && whole.linf[1] > 0.0);
}
