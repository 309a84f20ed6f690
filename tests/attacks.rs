//! What an attack means: direction, ball, targets, 8 bits, success as delivered, repeatability, errors. On the shipped digits
//! and on small random networks; the reference on the CPU is the second opinion.

mod common;

use common::*;
use safetensors::SafeTensors;
use signstep::attack::{
    Engine, Fit, Gradient, Health, Iterated, Job, Logits, Loss, Own, Perturbation, Rung, Sample, Source, argmax,
    budget, quantise,
};
use signstep::model::{Dims, Layer};
use signstep::{
    Attack, Error, Method, Model, Network, Norm, Options, Outcome, Reference, Result, Storage, Targets, Variant,
    weights,
};
use std::cell::RefCell;

fn digits_model() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn digits() -> Network {
    Network::new(gpu(), digits_model()).unwrap()
}

/// The first `n` shipped digits and their labels.
fn data(n: usize) -> (Vec<f32>, Vec<i64>) {
    let t = SafeTensors::deserialize(include_bytes!("../weights/digits.safetensors")).unwrap();
    let images = t.tensor("images").unwrap().data()[..n * 64].iter().map(|k| f32::from(*k) / 255.0).collect();
    let labels = t.tensor("labels").unwrap().data().chunks_exact(8).take(n);
    (images, labels.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
}

/// No ReLU and no pool: the loss is smooth in the image.
fn smooth(rng: &mut Rng) -> Model {
    let input = Dims::new(3, 6, 5);
    let normalise = Layer::Normalise { mean: vec![0.4, 0.5, 0.6], std: vec![0.2, 0.3, 0.25] };
    let layers =
        vec![normalise, conv("a", 3, 7, 3, 1, 1), conv("b", 7, 9, 3, 2, 1), Layer::Flatten, linear("z", 81, 6)];
    random_model(rng, input, layers)
}

/// A bit of everything.
fn mixed(rng: &mut Rng) -> Model {
    let input = Dims::new(3, 9, 10);
    let body = vec![conv("b", 10, 12, 3, 2, 1), Layer::Relu, conv("c", 12, 18, 3, 1, 1)];
    let mut layers = vec![conv("a", 3, 10, 3, 1, 1), Layer::Relu, residual(body, 8), Layer::Relu];
    layers.extend([Layer::MaxPool { size: 2, stride: 1, padding: 0 }, conv("d", 18, 9, 1, 1, 0), Layer::Relu]);
    layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear("z", 9, 5)]);
    random_model(rng, input, layers)
}

/// Labels that the network gives itself, so that every sample is right when clean.
fn own_labels(engine: &dyn Engine, images: &[f32]) -> Vec<i64> {
    let k = engine.model().logits();
    engine.logits(images).unwrap().logits.chunks(k).map(|z| argmax(z) as i64).collect()
}

fn loss(z: &[f32], class: usize) -> f64 {
    let top = z.iter().fold(f64::MIN, |m, v| m.max(f64::from(*v)));
    let sum: f64 = z.iter().map(|v| (f64::from(*v) - top).exp()).sum();
    sum.ln() + top - f64::from(z[class])
}

fn rows<'a>(values: &'a [f32], out: &Outcome) -> std::slice::Chunks<'a, f32> {
    values.chunks(values.len() / out.len())
}

/// Everything that became of one sample, to be compared by bits.
fn fate(out: &Outcome, i: usize) -> impl PartialEq + std::fmt::Debug + use<> {
    let bits = |v: &[f32]| -> Vec<u32> { rows(v, out).nth(i).unwrap().iter().map(|v| v.to_bits()).collect() };
    (
        [&out.clean, &out.adversarial, &out.clean_logits, &out.adversarial_logits, &out.float_logits].map(|v| bits(v)),
        [&out.loss, &out.linf, &out.l2].map(|v| v[i].to_bits()),
        (out.labels[i], out.targets[i], out.zero_gradients[i], out.health[i].0, out.restart[i], out.steps_taken[i]),
        [out.clean_correct[i], out.attacked[i], out.success[i], out.success_float[i]],
    )
}

/// The levels 0 to 255 of values that must be exactly k/255.
fn levels(values: &[f32]) -> Vec<i32> {
    let level = |v: &f32| {
        let k = (f64::from(*v) * 255.0).round();
        assert!((0.0..=255.0).contains(&k) && (k as f32 / 255.0).to_bits() == v.to_bits(), "{v:e} is no k/255");
        k as i32
    };
    values.iter().map(level).collect()
}

#[test]
fn a_small_step_lowers_the_targets_loss_and_raises_the_labels() {
    let mut rng = Rng::new(11);
    let (digit_images, digit_labels) = data(24);
    let mut cases = vec![(digits_model(), digit_images, digit_labels)];
    for _ in 0..3 {
        let model = smooth(&mut rng);
        let images = rng.images(10 * model.input.len());
        let labels = own_labels(&Reference::new(model.clone()).unwrap(), &images);
        cases.push((model, images, labels));
    }
    for (model, images, labels) in cases {
        let net = Network::new(gpu(), model.clone()).unwrap();
        let reference = Reference::new(model).unwrap();
        let eps = 1e-3;
        for targets in [Targets::None, Targets::Next, Targets::Second, Targets::LeastLikely, Targets::Random] {
            for attack in [Attack::fgsm(eps), Attack::ifgsm(eps).steps(4)] {
                // Unbounded: at the edge of [0, 1] a step may do nothing.
                let attack = attack.targets(targets.clone()).quantise(false).bounds(None).attack_all(true);
                let out = attack.run(&net, &images, &labels).unwrap();
                let class: Vec<u32> = (0..out.len())
                    .map(|i| if out.targets[i] < 0 { out.labels[i] } else { out.targets[i] } as u32)
                    .collect();
                let gradient = reference.input_gradient_f64(&images, &class).unwrap();
                let one = images.len() / out.len();
                let mut looked_at = 0;
                for i in 0..out.len() {
                    let k = out.clean_logits.len() / out.len();
                    let before = loss(&out.clean_logits[i * k..(i + 1) * k], class[i] as usize);
                    let after = loss(&out.adversarial_logits[i * k..(i + 1) * k], class[i] as usize);
                    assert!((after - f64::from(out.loss[i])).abs() <= 1e-5 * (1.0 + after), "loss of sample {i}");
                    // To first order the loss moves by eps·‖gradient‖₁; below f32's grain nothing can be said.
                    let steep: f64 = gradient[i * one..(i + 1) * one].iter().map(|g| g.abs()).sum::<f64>() * 1e-3;
                    if steep > 1e-5 * (1.0 + before) {
                        looked_at += 1;
                        let gain = if out.targets[i] < 0 { after - before } else { before - after };
                        assert!(gain > 0.5 * steep, "{targets:?} sample {i}: {before} to {after}, expected {steep}");
                    }
                }
                assert!(3 * looked_at > out.len(), "{targets:?}: {looked_at} samples have a gradient");
            }
        }
    }
}

#[test]
fn iterates_stay_in_the_ball_and_the_ball_binds() {
    let (images, labels) = data(20);
    let net = digits();
    for (eps, step) in [(1e-6_f32, 1e-3_f32), (0.5 / 255.0, 1.0), (8.0 / 255.0, 2.0 / 255.0), (0.3, 0.29), (2.0, 0.7)] {
        let attack = Attack::ifgsm(eps).step_size(step).steps(10).quantise(false).attack_all(true);
        let out = attack.run(&net, &images, &labels).unwrap();
        let (mut low, mut high) = (0, 0);
        for (x, x0) in out.adversarial.iter().zip(&images) {
            let (lo, hi) = ((x0 - eps).max(0.0), (x0 + eps).min(1.0));
            assert!(lo <= *x && *x <= hi, "{x:e} outside of {lo:e} to {hi:e}");
            low += usize::from(*x == lo && lo < *x0);
            high += usize::from(*x == hi && *x0 < hi);
        }
        assert!(low > 100 && high > 100, "eps {eps}: {low} and {high} pixels at the edge");
        assert!(out.linf.iter().all(|d| *d <= eps * (1.0 + 1e-6) + 6e-8), "{:?}", out.linf);
        assert_eq!(out.effective_eps, eps);
    }
}

#[test]
fn no_radius_is_the_identity() {
    let (images, labels) = data(20);
    for quantise in [true, false] {
        for targets in [Targets::None, Targets::Random] {
            let attack = Attack::ifgsm(0.0).step_size(0.1).targets(targets).quantise(quantise);
            let out = attack.run(&digits(), &images, &labels).unwrap();
            assert_bits("eps 0", &out.adversarial, &images);
            assert_bits("eps 0", &out.adversarial_logits, &out.clean_logits);
            assert!(out.linf.iter().chain(&out.l2).all(|d| *d == 0.0));
            assert!(!out.success.contains(&true) && out.attacked.contains(&true));
            assert_eq!(out.robust_accuracy(), out.clean_correct.iter().filter(|c| **c).count() as f64 / 20.0);
        }
    }
}

#[test]
fn targets_are_what_they_are_called() {
    let (images, labels) = data(30);
    let net = digits();
    let run = |targets| Attack::fgsm(0.1).targets(targets).run(&net, &images, &labels).unwrap();
    assert_eq!(run(Targets::None).targets, [-1; 30]);
    let out = run(Targets::Next);
    assert!((0..30).all(|i| out.targets[i] == (labels[i] + 1) % 10));
    for (targets, sign) in [(Targets::Second, 1.0), (Targets::LeastLikely, -1.0)] {
        let out = run(targets);
        for (i, z) in rows(&out.clean_logits, &out).enumerate() {
            let t = out.targets[i] as usize;
            assert_ne!(t as i64, labels[i]);
            for c in (0..10).filter(|c| *c as i64 != labels[i] && *c != t) {
                let (a, b) = (sign * z[t], sign * z[c]);
                assert!(a > b || (a == b && t < c), "sample {i}: {t} rather than {c} of {z:?}");
            }
        }
    }
    let out = run(Targets::Random);
    assert!((0..30).all(|i| (0..10).contains(&out.targets[i]) && out.targets[i] != labels[i]));
    let (one, listed) = (run(Targets::Class(3)), run(Targets::Classes(vec![3; 30])));
    assert_eq!(one, listed);
    assert!((0..30).all(|i| one.targets[i] == 3 && (labels[i] != 3 || !one.attacked[i])) && labels.contains(&3));
    let beyond = Attack::fgsm(0.1).targets(Targets::Class(10)).run(&net, &images, &labels).unwrap_err();
    assert!(beyond.to_string().contains("class 10 with 10 classes"), "{beyond}");
    let mut seen: Vec<i64> = out.targets.clone();
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() >= 7, "{seen:?}");
}

/// Pixels without bounds, and weights near the largest number: what is right when clean may become infinite on the way.
#[test]
fn what_becomes_infinite_under_an_attack_is_marked_and_no_success() {
    let n = 200;
    let net = |weights: &[(&str, &[f32], &[f32])]| Network::new(gpu(), chain(weights)).unwrap();
    // 0 and 1.5e38·x − 1.5e38: another class from 1 on, infinite from 2.27 on, and below −1.27.
    let steep = net(&[("z", &[0.0, 1.5e38], &[0.0, -1.5e38])]);
    let attack = Attack::pgd(Norm::Linf, 3.0).steps(1).step_size(0.0).seed(1).bounds(None);
    let out = attack.clone().restarts(2).run(&steep, &vec![0.0; n], &vec![0; n]).unwrap();
    let first = attack.run(&steep, &vec![0.0; n], &vec![0; n]).unwrap();
    let mut seen = [0; 3];
    for i in 0..n {
        let (x, sick) = (first.adversarial[i], !out.health[i].is_healthy());
        assert!(out.clean_correct[i] && !(sick && (out.success[i] || out.success_float[i])), "sample {i} at {x}");
        if !first.health[i].is_healthy() {
            assert!(!(-1.26..2.26).contains(&x) && !first.success[i], "sample {i} at {x}");
            // The first attempt is the last.
            assert_eq!((out.restart[i], out.steps_taken[i]), (0, 1));
            seen[0] += usize::from(x > 2.26);
        } else if first.success[i] {
            assert!((0.99..2.28).contains(&x), "sample {i} at {x}");
            seen[1] += 1;
        } else if sick {
            // What was sound before is delivered, though the logits of the other may look like a success.
            assert_eq!((out.adversarial[i].to_bits(), out.restart[i]), (x.to_bits(), 0), "sample {i}");
            seen[2] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n > 5), "{seen:?}");

    // Logits stay small, but not their gradient: 1e20 · 1e20.
    let long = net(&[("a", &[1e20], &[0.0]), ("z", &[0.0, 1e20], &[2.0, 0.0])]);
    let out = Attack::fgsm(0.1).loss(Loss::Margin).bounds(None).run(&long, &[0.0], &[0]).unwrap();
    assert_eq!((out.health[0], out.success[0], out.adversarial[0]), (Health::GRADIENT, false, 0.0));
    // A search remembers what it met at a radius that it does not deliver.
    let rungs = [(3.0, 2.9), (3.1, 1.5)].map(|(eps, step_size)| Rung { eps, step_size });
    let attack = Attack::fgsm(1.0).loss(Loss::Margin).bounds(None);
    let least = attack.least(&steep, &[0.0], &[0], &rungs, &mut |_| true).unwrap();
    assert_eq!((least.rungs, least.outcome.adversarial), (vec![Some(1)], vec![1.5]));
    assert!(!least.outcome.health[0].is_healthy());
    // What was met when a perturbation was fitted stays known when it is put on.
    let out = Attack::uap(0.1).loss(Loss::Margin).bounds(None).run(&long, &[0.0], &[0]).unwrap();
    assert_eq!((out.health[0], out.success[0], out.adversarial[0]), (Health::GRADIENT, false, 0.0));
}

/// An engine that writes down what each sample was told.
struct Overheard(Network, RefCell<Vec<Vec<Sample>>>);

impl Engine for Overheard {
    fn model(&self) -> &Model {
        self.0.model()
    }

    fn logits(&self, images: &[f32]) -> Result<Logits> {
        self.0.logits(images)
    }

    fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient> {
        self.0.loss_gradient(images, samples, loss)
    }

    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated> {
        self.1.borrow_mut().push(job.samples.to_vec());
        self.0.iterate(job, progress)
    }

    fn fit(&self, fit: &Fit, images: &mut Source, progress: &mut dyn FnMut(u64) -> bool) -> Result<Perturbation> {
        Engine::fit(&self.0, fit, images, progress)
    }
}

/// All restarts on one class before the next class, the most likely one first.
#[test]
fn classes_are_aimed_at_in_the_order_of_their_logits() {
    let (net, (images, labels)) = (Overheard(digits(), RefCell::default()), data(6));
    for method in [Method::ApgdT, Method::FabT] {
        // Nobody is turned at so small a radius: each attempt is made.
        let attack = Attack::new(method, Norm::Linf, 1e-4).steps(2).restarts(2).classes(3).quantise(false);
        let out = attack.run(&net, &images, &labels).unwrap();
        assert!(out.clean_correct.iter().all(|right| *right) && !out.success.contains(&true));
        let jobs = net.1.take();
        assert_eq!(jobs.len(), 6);
        for (attempt, samples) in jobs.iter().enumerate() {
            for (i, sample) in samples.iter().enumerate() {
                let z = &out.clean_logits[i * 10..(i + 1) * 10];
                let mut others: Vec<usize> = (0..10).filter(|k| *k as i64 != labels[i]).collect();
                others.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
                let told = (sample.class as usize, sample.label as i64, sample.restart as usize, sample.direction);
                assert_eq!(told, (others[attempt / 2], labels[i], attempt, -1.0), "{} {attempt}", method.name());
            }
        }
    }
}

/// Whole levels are what bytes deliver in L∞; a length in L2 is not one of them.
#[test]
fn the_radius_that_is_told_is_the_one_that_can_be_delivered() {
    let (net, (images, labels)) = (digits(), data(1));
    let told = |attack: Attack| attack.steps(1).run(&net, &images, &labels).unwrap().effective_eps;
    assert_eq!(told(Attack::ifgsm(2.5 / 255.0)), 2.0 / 255.0);
    assert_eq!(told(Attack::ifgsm(2.5 / 255.0).quantise(false)), 2.5 / 255.0);
    assert_eq!(told(Attack::pgd(Norm::L2, 0.51)), 0.51);
    // Of ten classes nine can be aimed at.
    let attempts = |classes| Attack::apgd_t(Norm::Linf, 0.1).classes(classes).restarts(2).attempts(10);
    assert_eq!([attempts(3), attempts(9), attempts(10), attempts(1000)], [6, 18, 18, 18]);
}

/// Ten steps in two attempts. A step is a gradient, or a forward pass where there is none; `fab-t` looks where it led, too, others at
/// the last iterate's loss; and each attempt's end is looked at in floats and in bytes.
#[test]
fn what_steps_cost_is_known_of_every_rule() {
    let cost = |attack: Attack| [attack.cost(10, 2), attack.quantise(false).cost(10, 2)];
    assert_eq!(cost(Attack::ifgsm(0.1)), [(10, 14), (10, 12)]);
    assert_eq!(cost(Attack::nifgsm(0.1)), [(10, 14), (10, 12)]);
    assert_eq!(cost(Attack::apgd(Norm::L2, 0.1)), [(10, 16), (10, 14)]);
    assert_eq!(cost(Attack::square(Norm::Linf, 0.1)), [(0, 16), (0, 14)]);
    assert_eq!(cost(Attack::fab_t(Norm::Linf, 0.1)), [(10, 24), (10, 22)]);
}

/// The search of [`Attack::least`], said again: what it delivers is a run of that radius alone, float iterates are those of the largest,
/// and the work is that of all runs.
#[test]
fn the_smallest_radius_is_delivered_as_a_run_of_it_alone() {
    let (n, last) = (40, 6);
    let (images, labels) = data(n);
    // The other one reads a quarter of the pixels: the others have no gradient.
    let layers = vec![conv("a", 1, 12, 1, 2, 0), Layer::Relu, Layer::Flatten, linear("z", 192, 10)];
    let sparse = Network::new(gpu(), random_model(&mut Rng::new(3), Dims::new(1, 8, 8), layers)).unwrap();
    let own = own_labels(&sparse, &images);
    for (net, labels) in [(digits(), labels), (sparse, own)] {
        let targets: Vec<i64> = labels.iter().map(|y| if y % 3 == 0 { -1 } else { (y + 4) % 10 }).collect();
        let attack = Attack::pgd(Norm::Linf, 0.3).steps(3).restarts(2).seed(5).first_id(40);
        let attack = attack.targets(Targets::Classes(targets));
        let rung = |k: usize| Rung { eps: 0.03 * (k + 1) as f32, step_size: 0.011 * (k + 1) as f32 };
        let ladder: Vec<Rung> = (0..=last).map(rung).collect();
        let least = attack.least(&net, &images, &labels, &ladder, &mut |_| true).unwrap();
        let run = |Rung { eps, step_size }: &Rung| {
            let own = (0..n as u64).map(|i| Own { id: 40 + i, eps: *eps, step_size: *step_size });
            attack.clone().each(own.collect()).run(&net, &images, &labels).unwrap()
        };
        let runs: Vec<Outcome> = ladder.iter().map(run).collect();
        for i in 0..n {
            let (mut low, mut high, mut tried) = (0, last, vec![last]);
            while runs[last].success[i] && low < high {
                let middle = usize::midpoint(low, high);
                tried.push(middle);
                if runs[middle].success[i] { high = middle } else { low = middle + 1 }
            }
            assert_eq!(least.rungs[i], runs[last].success[i].then_some(high), "sample {i}");
            let work = |of: fn(&Outcome) -> &[u64]| tried.iter().map(|&k| of(&runs[k])[i]).sum();
            let mut want = runs[high].clone();
            (want.float_logits, want.success_float) =
                (runs[last].float_logits.clone(), runs[last].success_float.clone());
            want.steps_taken[i] = work(|o| &o.steps_taken);
            want.zero_gradients[i] = work(|o| &o.zero_gradients);
            assert_eq!(fate(&least.outcome, i), fate(&want, i), "sample {i}");
        }
        let found = |k: Option<usize>| least.rungs.contains(&k);
        assert!(found(None) && (1..last).any(|k| found(Some(k))), "{:?}", least.rungs);
        assert!(least.outcome.restart.contains(&1) && least.outcome.restart.contains(&0));
    }
}

#[test]
fn ties_go_to_the_lowest_index() {
    let mut rng = Rng::new(1);
    let mut model = random_model(&mut rng, Dims::new(1, 2, 2), vec![Layer::Flatten, linear("z", 4, 4)]);
    let z = model.params.get_mut("z").unwrap();
    z.weight.fill(0.0);
    z.bias.copy_from_slice(&[0.5; 4]);
    let net = Network::new(gpu(), model).unwrap();
    for targets in [Targets::Second, Targets::LeastLikely] {
        let out = Attack::ifgsm(0.1).targets(targets).run(&net, &rng.images(16), &[0, 1, 2, 3]).unwrap();
        assert_eq!(out.targets, [1, 0, 0, 0]);
        assert_eq!(out.clean_correct, [true, false, false, false]);
        // No gradient anywhere: ten steps of four pixels without a sign for the one that is stepped.
        assert_eq!(out.zero_gradients, [40, 0, 0, 0]);
        assert_bits("flat", &out.adversarial, &out.clean);
    }
}

#[test]
fn classes_are_taken_as_given() {
    let (images, labels) = data(24);
    let net = digits();
    let attack = Attack::ifgsm(0.3);
    let none = attack.clone().run(&net, &images, &labels).unwrap();
    let next = attack.clone().targets(Targets::Next).run(&net, &images, &labels).unwrap();
    let mut classes: Vec<i64> = labels.iter().map(|y| (y + 1) % 10).collect();
    for i in (0..24).step_by(3) {
        classes[i] = -1;
        classes[i + 1] = labels[i + 1];
    }
    for all in [false, true] {
        let attack = attack.clone().targets(Targets::Classes(classes.clone())).attack_all(all);
        let out = attack.run(&net, &images, &labels).unwrap();
        assert_eq!(out.targets, classes);
        for i in 0..24 {
            match i % 3 {
                0 if none.attacked[i] => assert_eq!(fate(&out, i), fate(&none, i), "untargeted sample {i}"),
                1 => {
                    assert!(!out.attacked[i] && !out.success[i] && !out.success_float[i], "its own label as a target");
                    assert_eq!(out.adversarial[i * 64..(i + 1) * 64], images[i * 64..(i + 1) * 64]);
                }
                2 if next.attacked[i] => assert_eq!(fate(&out, i), fate(&next, i), "targeted sample {i}"),
                _ => {}
            }
        }
    }
}

#[test]
fn what_is_wrong_when_clean_is_left_alone() {
    let (images, truth) = data(20);
    let net = digits();
    let mut labels = truth.clone();
    (0..20).step_by(2).for_each(|i| labels[i] = (labels[i] + 3) % 10);
    for targets in [Targets::None, Targets::Next] {
        let attack = Attack::ifgsm(0.3).targets(targets);
        let out = attack.clone().run(&net, &images, &labels).unwrap();
        let all = attack.attack_all(true).run(&net, &images, &labels).unwrap();
        assert!(out.success.contains(&true));
        for (i, &label) in labels.iter().enumerate() {
            let right = argmax(&out.clean_logits[i * 10..(i + 1) * 10]) as i64 == label;
            assert_eq!((out.clean_correct[i], out.attacked[i]), (right, right));
            assert_eq!((all.clean_correct[i], all.attacked[i]), (right, right));
            if right {
                assert_eq!(fate(&out, i), fate(&all, i));
                continue;
            }
            assert!(!out.success[i] && !out.success_float[i] && !all.success[i] && !all.success_float[i]);
            let pixels = i * 64..(i + 1) * 64;
            assert_bits("left alone", &out.adversarial[pixels.clone()], &images[pixels.clone()]);
            assert_eq!((out.linf[i], out.zero_gradients[i]), (0.0, 0));
            assert!(all.adversarial[pixels.clone()] != images[pixels], "attack_all steps sample {i}");
            assert!(all.linf[i] > 0.1);
        }
        assert!(out.robust_accuracy() <= 0.5 && out.robust_accuracy() == all.robust_accuracy());
    }
}

#[test]
fn delivered_values_are_the_rounded_iterate_within_the_budget() {
    let (mut images, labels) = data(16);
    // Off the grid here and there: they are snapped when they come in.
    images.iter_mut().step_by(7).for_each(|x| *x = (*x + 0.001).min(1.0));
    let net = digits();
    for eps in [0.5 / 255.0, 1.0 / 255.0, 7.9 / 255.0, 8.0 / 255.0, 0.3, 3.0] {
        for targets in [Targets::None, Targets::Next] {
            let attack = Attack::ifgsm(eps).steps(7).targets(targets).attack_all(true);
            let out = attack.clone().run(&net, &images, &labels).unwrap();
            let clean = levels(&out.clean);
            let largest = images.iter().zip(&out.clean).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(out.snapped, largest);
            assert!((0.0009..0.0011).contains(&largest), "{largest}");
            let budget = ((f64::from(eps) * 255.0 + 1e-6).floor() as i32).min(255);
            assert_eq!(out.effective_eps, budget as f32 / 255.0);
            // The same iterates as floats, rounded here.
            let float = attack.quantise(false).run(&net, &out.clean, &labels).unwrap();
            let mut up = 0;
            for ((k, k0), x) in levels(&out.adversarial).into_iter().zip(clean).zip(&float.adversarial) {
                assert!((k - k0).abs() <= budget, "eps {eps}: {k0} became {k}");
                let nearest = (f64::from(*x) * 255.0).round() as i32;
                assert_eq!(k, nearest.clamp((k0 - budget).max(0), (k0 + budget).min(255)), "{x:e} for {k0}");
                up += usize::from(f64::from(k) > f64::from(*x) * 255.0 + 0.1);
            }
            assert!(!(0.02..=1.0).contains(&eps) || up > 10, "eps {eps}: nothing was rounded up");
            assert_bits("float logits", &out.float_logits, &float.adversarial_logits);
            let farthest = out.linf.iter().copied().fold(0.0, f32::max);
            assert!(eps > 1.0 || (farthest * 255.0).round() as i32 == budget, "eps {eps}: {farthest}");
        }
    }
}

#[test]
fn floats_are_delivered_where_bytes_are_not_wanted() {
    let mut rng = Rng::new(5);
    let model = mixed(&mut rng);
    let net = Network::new(gpu(), model.clone()).unwrap();
    let images = rng.vec(6 * model.input.len(), Rng::unit);
    let labels = own_labels(&net, &images);
    let eps = 0.013;
    for (attack, bounds) in [
        (Attack::ifgsm(eps).quantise(false), (0.0, 1.0)),
        (Attack::ifgsm(eps).bounds(None), (f32::MIN, f32::MAX)),
        (Attack::ifgsm(eps).bounds(Some((-0.5, 1.25))), (-0.5, 1.25)),
    ] {
        let out = attack.run(&net, &images, &labels).unwrap();
        let step_size = (2.5 * f64::from(eps) / 10.0) as f32;
        let sample = |y: &i64| Sample { class: *y as u32, eps, step_size, direction: 1.0, ..Sample::default() };
        let samples: Vec<Sample> = labels.iter().map(sample).collect();
        let job = Job { bounds, ..Job::new(&images, &samples, 10) };
        let moved = net.iterate(&job, &mut |_| true).unwrap();
        assert_bits("floats", &out.adversarial, &moved.images);
        assert_bits("nothing is snapped", &out.clean, &images);
        assert_bits("one set of logits", &out.adversarial_logits, &out.float_logits);
        assert_eq!(
            (out.snapped, out.effective_eps, out.zero_gradients),
            (0.0, eps, moved.zero_gradients.iter().map(|z| u64::from(*z)).collect())
        );
        assert_eq!(out.success, out.success_float);
    }
    // Unbounded means unbounded: pixels at the edge go over it.
    let ones = vec![1.0; images.len()];
    let out = Attack::ifgsm(0.1).bounds(None).attack_all(true).run(&net, &ones, &labels).unwrap();
    assert!(out.adversarial.iter().any(|x| *x > 1.05));
}

#[test]
fn success_is_measured_on_what_is_delivered() {
    let (images, labels) = data(40);
    let net = digits();
    for targets in [Targets::None, Targets::Random, Targets::Second] {
        for eps in [3.0 / 255.0, 0.15, 0.3] {
            let out = Attack::ifgsm(eps).targets(targets.clone()).run(&net, &images, &labels).unwrap();
            assert_bits("clean logits", &out.clean_logits, &net.logits(&images).unwrap().logits);
            assert_bits("logits", &out.adversarial_logits, &net.logits(&out.adversarial).unwrap().logits);
            let hit = |logits: &[f32], i: usize| {
                let class = argmax(&logits[i * 10..(i + 1) * 10]) as i64;
                out.attacked[i] && if out.targets[i] < 0 { class != labels[i] } else { class == out.targets[i] }
            };
            let mut robust = 0;
            for i in 0..40 {
                assert_eq!(out.success[i], hit(&out.adversarial_logits, i), "sample {i}");
                assert_eq!(out.success_float[i], hit(&out.float_logits, i), "sample {i}");
                let still = argmax(&out.adversarial_logits[i * 10..(i + 1) * 10]) as i64 == labels[i];
                robust += usize::from(out.clean_correct[i] && still);
                let moves = out.adversarial[i * 64..(i + 1) * 64].iter().zip(&images[i * 64..(i + 1) * 64]);
                let moves: Vec<f64> = moves.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
                assert_eq!(out.linf[i], moves.iter().fold(0.0, |m: f64, d| m.max(d.abs())) as f32);
                let l2 = moves.iter().map(|d| d * d).sum::<f64>().sqrt();
                assert!((f64::from(out.l2[i]) - l2).abs() < 1e-6 * (1.0 + l2));
            }
            assert_eq!(out.robust_accuracy(), robust as f64 / 40.0);
            if eps == 0.3 && targets == Targets::None {
                let (hits, asked) =
                    (out.success.iter().filter(|s| **s).count(), out.attacked.iter().filter(|a| **a).count());
                assert!(asked >= 36 && hits * 2 > asked, "{hits} of {asked}");
            }
        }
    }
}

/// One step from the same start: the images are equal wherever the gradient is not tiny.
#[test]
fn one_step_equals_that_of_the_reference() {
    let mut rng = Rng::new(21);
    let (images, labels) = data(32);
    let mut cases = vec![(digits_model(), images, labels)];
    for _ in 0..4 {
        for model in [smooth(&mut rng), mixed(&mut rng)] {
            let images = rng.images(12 * model.input.len());
            let labels = own_labels(&Reference::new(model.clone()).unwrap(), &images);
            cases.push((model, images, labels));
        }
    }
    for (model, images, labels) in cases {
        let net = Network::new(gpu(), model.clone()).unwrap();
        let reference = Reference::new(model).unwrap();
        for targets in [Targets::None, Targets::Random] {
            let attack = Attack::fgsm(8.0 / 255.0).targets(targets.clone()).quantise(false);
            let got = attack.run(&net, &images, &labels).unwrap();
            let want = attack.run(&reference, &images, &labels).unwrap();
            assert_eq!((&got.targets, &got.attacked), (&want.targets, &want.attacked));
            let class: Vec<u32> =
                got.targets.iter().zip(&labels).map(|(t, y)| if *t < 0 { *y } else { *t } as u32).collect();
            let gradient = reference.input_gradient_f64(&images, &class).unwrap();
            let one = images.len() / labels.len();
            let (mut compared, mut differ, mut other) = (0, 0, 0);
            for i in (0..labels.len()).filter(|i| got.attacked[*i]) {
                let g = &gradient[i * one..(i + 1) * one];
                let top = g.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                assert!(top > 0.0);
                for (j, g) in g.iter().enumerate() {
                    let (a, b) = (got.adversarial[i * one + j], want.adversarial[i * one + j]);
                    if g.abs() > 1e-4 * top {
                        compared += 1;
                        differ += usize::from(a.to_bits() != b.to_bits());
                    } else {
                        other += 1;
                    }
                }
            }
            assert!(compared > 20 * other.max(10), "{compared} compared, {other} tiny");
            // A ReLU or a pool that decides otherwise in f32 turns some signs of that sample; it is rare.
            assert!(differ * 1000 <= compared, "{targets:?}: {differ} of {compared} pixels differ");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_ids_carry_the_random_numbers() {
    let (images, labels) = data(30);
    let net = digits();
    let attack = Attack::ifgsm(0.3).targets(Targets::Random);
    let run = |attack: &Attack, from: usize| attack.run(&net, &images[from * 64..], &labels[from..]).unwrap();
    let first = run(&attack.clone().seed(7), 0);
    assert_eq!(first, run(&attack.clone().seed(7), 0));
    assert_eq!(first, Attack::ifgsm(0.3).targets(Targets::Random).seed(7).run(&digits(), &images, &labels).unwrap());
    let other = run(&attack.clone().seed(8), 0);
    let moved = first.targets.iter().zip(&other.targets).filter(|(a, b)| a != b).count();
    assert!(moved > 15, "{moved} of 30 targets changed with the seed");
    // A part of the data set, told where it begins, is as it is in the whole.
    let part = run(&attack.clone().seed(7).first_id(11), 11);
    (11..30).for_each(|i| assert_eq!(fate(&first, i), fate(&part, i - 11), "sample {i}"));
    assert_ne!(part.targets, run(&attack.clone().seed(7), 11).targets);
    // The last id there is must not overflow.
    run(&attack.first_id(u64::MAX), 0);
}

#[test]
fn order_and_batch_size_change_nothing() {
    let (images, labels) = data(23);
    let classes: Vec<i64> =
        labels.iter().enumerate().map(|(i, y)| if i % 4 == 0 { -1 } else { (y + 4) % 10 }).collect();
    let attack = |classes: Vec<i64>| Attack::ifgsm(0.3).targets(Targets::Classes(classes));
    let whole = attack(classes.clone()).run(&digits(), &images, &labels).unwrap();
    let order: Vec<usize> = (0..23).map(|i| (i * 7 + 3) % 23).collect();
    let shuffled: Vec<f32> = order.iter().flat_map(|i| images[i * 64..(i + 1) * 64].to_vec()).collect();
    let pick = |v: &[i64]| -> Vec<i64> { order.iter().map(|i| v[*i]).collect() };
    let out = attack(pick(&classes)).run(&digits(), &shuffled, &pick(&labels)).unwrap();
    order.iter().enumerate().for_each(|(at, i)| assert_eq!(fate(&out, at), fate(&whole, *i), "sample {i} at {at}"));
    for batch in [1, 2, 7, 22] {
        let options = Options { batch: Some(batch), ..Options::default() };
        let net = Network::with_options(gpu(), digits_model(), &options).unwrap();
        assert_eq!(net.chunk(), batch);
        let cut = attack(classes.clone()).run(&net, &images, &labels).unwrap();
        (0..23).for_each(|i| assert_eq!(fate(&cut, i), fate(&whole, i), "sample {i} by {batch}"));
    }
    let none = Network::with_options(gpu(), digits_model(), &Options { batch: Some(0), ..Options::default() });
    assert_eq!(none.err(), Some(signstep::Error::Usage("a batch of 0 runs nothing".into())));
}

#[test]
fn progress_adds_up_and_can_cancel() {
    let (images, labels) = data(20);
    let options = Options { batch: Some(6), ..Options::default() };
    let net = Network::with_options(gpu(), digits_model(), &options).unwrap();
    let reference = Reference::new(digits_model()).unwrap();
    let attack = Attack::ifgsm(0.2).steps(9);
    let quiet = attack.run(&net, &images, &labels).unwrap();
    let moving = quiet.attacked.iter().filter(|a| **a).count() as u64;
    assert!(moving >= 18);
    for engine in [&net as &dyn Engine, &reference] {
        let mut told = 0;
        let mut count = |n| {
            told += n;
            true
        };
        attack.run_with(engine, &images, &labels, &mut count).unwrap();
        assert_eq!(told, moving * 9);
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            false
        };
        assert_eq!(attack.run_with(engine, &images, &labels, &mut stop).unwrap_err(), Error::Cancelled);
        assert_eq!(calls, 1);
    }
    // A network that was stopped runs as before.
    assert_eq!(attack.run(&net, &images, &labels).unwrap(), quiet);
    let (n, steps) = (2, 1000);
    // Many small submissions add up too.
    let mut told = 0;
    let mut count = |n| {
        told += n;
        true
    };
    let long = Attack::ifgsm(0.2).steps(steps).attack_all(true);
    long.run_with(&net, &images[..n * 64], &labels[..n], &mut count).unwrap();
    assert_eq!(told, n as u64 * u64::from(steps));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (images, labels) = data(4);
    let net = digits();
    let usage = |attack: Attack, word: &str| match attack.run(&net, &images, &labels) {
        Err(Error::Usage(message)) => assert!(message.contains(word), "{message}"),
        other => panic!("{word}: {:?}", other.map(|_| ())),
    };
    for eps in [f32::NAN, -1.0, -f32::MIN_POSITIVE, f32::NEG_INFINITY] {
        usage(Attack::ifgsm(eps), "eps");
        usage(Attack::fgsm(eps), "eps");
    }
    usage(Attack::ifgsm(f32::INFINITY), "step size");
    usage(Attack::fgsm(f32::INFINITY), "step size");
    for step in [f32::NAN, f32::INFINITY, -0.1] {
        usage(Attack::ifgsm(0.1).step_size(step), "step size");
    }
    usage(Attack::ifgsm(0.1).steps(0), "steps");
    usage(Attack::fgsm(0.1).steps(0), "steps");
    usage(Attack::fgsm(0.1).steps(2), "fgsm");
    // As many as one word holds, and one more: cut to a word that would be none at all.
    let classes = Attack::apgd_t(Norm::Linf, 0.1).classes(2).restarts(1 << 31);
    usage(classes, "2147483648 restarts for each of 2 classes");
    for bounds in [(1.0, 0.0), (0.5, 0.5), (f32::NAN, 1.0), (0.0, f32::NAN), (f32::NEG_INFINITY, 1.0)] {
        usage(Attack::ifgsm(0.1).bounds(Some(bounds)), "bounds");
    }
    // A ladder that falls would have the search find anything.
    let ladder = |radii: &[f32]| {
        let rungs: Vec<Rung> = radii.iter().map(|&eps| Rung { eps, step_size: 0.05 }).collect();
        Attack::ifgsm(0.1).least(&net, &images, &labels, &rungs, &mut |_| true)
    };
    for (radii, word) in [(vec![], "without"), (vec![0.3, 0.1], "rise"), (vec![0.1, f32::NAN, 0.3], "rise")] {
        assert!(matches!(ladder(&radii), Err(Error::Usage(m)) if m.contains(word)), "{radii:?}");
    }
    assert!(ladder(&[0.1, 0.1, 0.3]).is_ok());
    let data = |attack: Attack, images: &[f32], labels: &[i64], word: &str| match attack.run(&net, images, labels) {
        Err(Error::Data { place, detail }) => assert!(format!("{place} {detail}").contains(word), "{place}: {detail}"),
        other => panic!("{word}: {:?}", other.map(|_| ())),
    };
    let attack = Attack::ifgsm(0.1);
    data(attack.clone(), &images, &labels[..3], "images");
    data(attack.clone(), &images[1..], &labels, "images");
    data(attack.clone(), &[], &labels, "images");
    data(attack.clone(), &images, &[], "images");
    data(attack.clone(), &images, &[0, 1, 10, 2], "sample 2 label 10");
    data(attack.clone(), &images, &[0, i64::MIN, 1, 2], "sample 1 label");
    data(attack.clone(), &images, &[i64::MAX, 1, 1, 2], "sample 0 label");
    for classes in [vec![], vec![1; 3], vec![1; 5]] {
        data(attack.clone().targets(Targets::Classes(classes)), &images, &labels, "targets");
    }
    for t in [-2, 10, i64::MAX] {
        data(attack.clone().targets(Targets::Classes(vec![-1, t, 0, 0])), &images, &labels, "sample 1 target");
    }
    for value in [-0.01, 1.01, f32::INFINITY] {
        let mut wrong = images.clone();
        wrong[130] = value;
        data(attack.clone(), &wrong, &labels, "sample 2 pixel value");
    }
    assert!(matches!(net.logits(&images[1..]), Err(Error::Data { .. })));
    assert!(matches!(net.input_gradient(&images, &[0, 1, 2]), Err(Error::Data { .. })));
    assert!(matches!(net.input_gradient(&images, &[0, 1, 2, 10]), Err(Error::Data { .. })));
}

#[test]
fn no_samples_are_no_trouble_and_one_class_has_no_target() {
    let reference = Reference::new(digits_model()).unwrap();
    let net = digits();
    for engine in [&net as &dyn Engine, &reference] {
        for targets in [Targets::None, Targets::Random, Targets::Second, Targets::Classes(vec![])] {
            let out = Attack::ifgsm(0.1).targets(targets).run(engine, &[], &[]).unwrap();
            assert!(out.is_empty() && out.adversarial.is_empty() && out.robust_accuracy() == 0.0);
        }
        assert!(engine.logits(&[]).unwrap().logits.is_empty());
        assert!(engine.input_gradient(&[], &[]).unwrap().gradient.is_empty());
    }
    let mut rng = Rng::new(2);
    let single = random_model(&mut rng, Dims::new(1, 2, 3), vec![linear("z", 6, 1)]);
    let net = Network::new(gpu(), single.clone()).unwrap();
    let images = rng.images(12);
    let out = Attack::ifgsm(0.1).run(&net, &images, &[0, 0]).unwrap();
    assert_eq!((out.success.as_slice(), out.robust_accuracy()), (&[false, false][..], 1.0));
    assert_bits("one class has no gradient", &out.adversarial, &images);
    for targets in [Targets::Next, Targets::Random, Targets::Second, Targets::LeastLikely, Targets::Classes(vec![0, 0])]
    {
        let refused = Attack::ifgsm(0.1).targets(targets).run(&net, &images, &[0, 0]);
        assert!(matches!(refused, Err(Error::Data { .. })));
    }
}

#[test]
fn a_poisoned_sample_is_marked_and_harms_nobody() {
    let (images, labels) = data(12);
    let net = digits();
    for poison in [f32::NAN, f32::INFINITY, 3e38] {
        for all in [false, true] {
            for bounds in [None, Some((0.0, 1.0))] {
                if bounds.is_some() && !poison.is_nan() {
                    continue; // refused, being out of bounds
                }
                let attack = Attack::ifgsm(0.3).bounds(bounds).targets(Targets::Next).attack_all(all);
                let whole = attack.run(&net, &images, &labels).unwrap();
                assert!(whole.first_unhealthy().is_none());
                // The first pixel of all is the one that kernels read in place of what lies outside an image.
                for (place, pixel) in [(0, 0), (5, 20), (11, 63)] {
                    let mut poisoned = images.clone();
                    poisoned[place * 64 + pixel] = poison;
                    let out = attack.run(&net, &poisoned, &labels).unwrap();
                    let (at, mark) = out.first_unhealthy().expect("it is marked");
                    assert_eq!(at, place);
                    assert!(mark.describe().contains("NaN or infinite"), "{}", mark.describe());
                    assert!(!out.success[place] && !out.success_float[place] && !out.clean_correct[place]);
                    let rest: Vec<usize> = (0..12).filter(|i| *i != place).collect();
                    rest.iter().for_each(|i| assert_eq!(fate(&out, *i), fate(&whole, *i), "{poison} at {place}, {i}"));
                    // And as if it had not been there at all.
                    let without: Vec<f32> = rest.iter().flat_map(|i| images[i * 64..(i + 1) * 64].to_vec()).collect();
                    let their: Vec<i64> = rest.iter().map(|i| labels[*i]).collect();
                    let alone = attack.run(&net, &without, &their).unwrap();
                    rest.iter()
                        .enumerate()
                        .for_each(|(j, i)| assert_eq!(fate(&alone, j), fate(&out, *i), "sample {i}"));
                }
            }
        }
    }
}

#[test]
fn a_nan_that_no_layer_reads_is_marked_too() {
    let mut rng = Rng::new(8);
    let layers = vec![conv("a", 1, 4, 1, 2, 0), Layer::Relu, Layer::GlobalAvgPool, linear("z", 4, 3)];
    let model = random_model(&mut rng, Dims::new(1, 4, 4), layers);
    let mut images = rng.images(32);
    images[16 + 5] = f32::NAN;
    let net = Network::new(gpu(), model.clone()).unwrap();
    let labels = own_labels(&net, &images);
    for engine in [&net as &dyn Engine, &Reference::new(model).unwrap()] {
        for all in [false, true] {
            let out = Attack::ifgsm(0.3).attack_all(all).run(engine, &images, &labels).unwrap();
            assert_eq!((out.clean_correct, out.health[0].is_healthy()), (vec![true, false], true));
            assert!(!out.health[1].is_healthy() && !out.success[1]);
        }
    }
}

fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|f| **f).count()
}

/// Everything of two outcomes but the seed they were made with.
fn assert_same(what: &str, a: &Outcome, b: &Outcome) {
    assert_eq!(a.len(), b.len());
    (0..a.len()).for_each(|i| assert_eq!(fate(a, i), fate(b, i), "{what}: sample {i}"));
}

#[test]
fn pgd_without_a_random_start_is_ifgsm() {
    let (images, labels) = data(20);
    let net = digits();
    for targets in [Targets::None, Targets::Next] {
        let pgd = Attack::pgd(Norm::Linf, 0.2).random_start(false).targets(targets.clone());
        assert_eq!((pgd.step_count(), pgd.effective_step_size()), (10, Attack::ifgsm(0.2).effective_step_size()));
        let pgd = pgd.run(&net, &images, &labels).unwrap();
        let ifgsm = Attack::ifgsm(0.2).targets(targets).run(&net, &images, &labels).unwrap();
        assert_eq!(pgd, ifgsm);
    }
}

/// What `pgd` does to every sample in one restart, by single steps of the engine: float logits, delivered image and logits.
fn one_restart(
    net: &Network,
    images: &[f32],
    classes: &[i64],
    direction: f32,
    restart: u32,
    eps: f32,
) -> [Vec<f32>; 3] {
    let samples: Vec<Sample> = (0..)
        .zip(classes)
        .map(|(i, &class)| Sample {
            class: class as u32,
            id: 40 + i,
            restart,
            start: 1,
            eps,
            step_size: 0.25 * eps,
            direction,
            ..Sample::default()
        })
        .collect();
    let job = Job { seed: 6, ..Job::new(images, &samples, 10) };
    let moved = net.iterate(&job, &mut |_| true).unwrap().images;
    let levels = budget(eps);
    let delivered: Vec<f32> = moved.iter().zip(images).map(|(x, x0)| quantise(*x, *x0, levels)).collect();
    let z = |images: &[f32]| net.logits(images).unwrap().logits;
    [z(&moved), z(&delivered), delivered]
}

/// The rule that chooses among restarts, written down a second time and followed without skipping anything.
#[test]
fn restarts_are_chosen_as_promised() {
    let (images, labels) = data(60);
    let net = digits();
    let (mut later, mut by_loss, mut float_only) = (0, 0, 0);
    for (eps, targets) in [(0.1, Targets::None), (0.14, Targets::None), (0.12, Targets::Second)] {
        let restarts = 6;
        let attack = Attack::pgd(Norm::Linf, eps).restarts(restarts).targets(targets).seed(6).first_id(40);
        let out = attack.run(&net, &images, &labels).unwrap();
        let untargeted = out.targets[0] < 0;
        let direction = if untargeted { 1.0 } else { -1.0 };
        let classes: Vec<i64> = if untargeted { labels.clone() } else { out.targets.clone() };
        let tries: Vec<[Vec<f32>; 3]> =
            (0..restarts).map(|r| one_restart(&net, &images, &classes, direction, r, eps)).collect();
        for i in 0..60 {
            let z = |values: &'_ [f32]| values[i * 10..(i + 1) * 10].to_vec();
            if !out.attacked[i] {
                assert_eq!((out.restart[i], out.steps_taken[i], out.success[i]), (0, 0, false));
                continue;
            }
            let hit = |z: &[f32]| {
                let class = argmax(z) as i64;
                if untargeted { class != labels[i] } else { class == out.targets[i] }
            };
            let first = (0..restarts as usize).find(|&r| hit(&z(&tries[r][1])));
            let value = |r: usize| f64::from(direction) * loss(&z(&tries[r][1]), classes[i] as usize);
            let chosen = first.unwrap_or_else(|| {
                let best = (0..restarts as usize).fold(0, |best, r| if value(r) > value(best) { r } else { best });
                by_loss += usize::from(best > 0);
                best
            });
            let ran = first.map_or(restarts as usize, |r| r + 1);
            assert_eq!((out.restart[i] as usize, out.success[i]), (chosen, first.is_some()), "sample {i}");
            assert_eq!(out.steps_taken[i], 10 * ran as u64);
            let pixels = i * 64..(i + 1) * 64;
            assert_bits("image", &out.adversarial[pixels.clone()], &tries[chosen][2][pixels]);
            assert_bits("logits", &out.adversarial_logits[i * 10..(i + 1) * 10], &z(&tries[chosen][1]));
            let float = (0..ran).find(|&r| hit(&z(&tries[r][0])));
            assert_eq!(out.success_float[i], float.is_some());
            let float_logits = z(&tries[float.unwrap_or(chosen)][0]);
            assert_bits("float logits", &out.float_logits[i * 10..(i + 1) * 10], &float_logits);
            later += usize::from(first.is_some_and(|r| r > 0));
            float_only += usize::from(float.is_some_and(|r| r != chosen));
        }
    }
    println!("{later} by a later restart, {by_loss} by loss, {float_only} floats of another restart");
    assert!(later > 2 && by_loss > 10, "{later} {by_loss}: the rule was hardly used");
}

#[test]
fn more_restarts_never_lower_success() {
    let (images, labels) = data(50);
    let net = digits();
    let mut totals = Vec::new();
    for targets in [Targets::None, Targets::Random] {
        let mut before: Option<Outcome> = None;
        for restarts in [1, 2, 3, 5, 9] {
            let attack = Attack::pgd(Norm::Linf, 0.12).restarts(restarts).targets(targets.clone()).seed(2);
            assert_eq!(attack.restart_count(), restarts);
            let mut told = 0;
            let mut count_steps = |n| {
                told += n;
                true
            };
            let out = attack.run_with(&net, &images, &labels, &mut count_steps).unwrap();
            assert_eq!(told, out.sample_steps());
            assert!(told <= 50 * 10 * u64::from(restarts));
            if let Some(before) = &before {
                for i in 0..50 {
                    assert!(out.success[i] >= before.success[i] && out.success_float[i] >= before.success_float[i]);
                    if before.success[i] {
                        assert_eq!(fate(&out, i), fate(before, i), "sample {i} had succeeded already");
                    } else {
                        let gain = out.loss[i] - before.loss[i];
                        assert!(out.success[i] || if out.targets[i] < 0 { gain >= 0.0 } else { gain <= 0.0 });
                    }
                }
            }
            totals.push(count(&out.success));
            before = Some(out);
        }
    }
    assert!(totals[4] > totals[0] || totals[9] > totals[5], "restarts changed nothing: {totals:?}");
}

#[test]
fn pgd_with_restarts_does_not_see_the_batch() {
    let (images, labels) = data(23);
    let attack = Attack::pgd(Norm::Linf, 0.12).restarts(4).targets(Targets::Random).seed(9).attack_all(true);
    let whole = attack.run(&digits(), &images, &labels).unwrap();
    assert!(whole.restart.iter().any(|r| *r > 0) && whole.success.contains(&true) && whole.success.contains(&false));
    for i in [0, 7, 22] {
        let (image, label) = (&images[i * 64..(i + 1) * 64], &labels[i..=i]);
        let alone = attack.clone().first_id(i as u64).run(&digits(), image, label).unwrap();
        assert_eq!(fate(&alone, 0), fate(&whole, i), "sample {i} alone");
    }
    for batch in [1, 5, 22] {
        let options = Options { batch: Some(batch), ..Options::default() };
        let net = Network::with_options(gpu(), digits_model(), &options).unwrap();
        assert_same(&format!("by {batch}"), &attack.run(&net, &images, &labels).unwrap(), &whole);
    }
    for storage in [Storage::Buffer, Storage::Texture] {
        let net = network(&digits_model(), storage, Variant::Fast);
        let out = attack.run(&net, &images, &labels).unwrap();
        assert_same(&format!("{storage:?}"), &out, &whole);
    }
    // Beside a neighbour full of NaN.
    let mut poisoned = images.clone();
    poisoned[11 * 64..12 * 64].fill(f32::NAN);
    let out = attack.run(&digits(), &poisoned, &labels).unwrap();
    assert!(!out.health[11].is_healthy() && !out.success[11]);
    assert_eq!(out.steps_taken[11], 10, "a sample that is not sound is not tried again");
    (0..23).filter(|i| *i != 11).for_each(|i| assert_eq!(fate(&out, i), fate(&whole, i), "sample {i} beside NaN"));
}

#[test]
fn what_was_wrong_when_clean_runs_every_restart() {
    let (images, mut labels) = data(12);
    labels[4] = (labels[4] + 1) % 10;
    let attack = Attack::pgd(Norm::Linf, 0.3).restarts(3).attack_all(true);
    let out = attack.run(&digits(), &images, &labels).unwrap();
    assert!(!out.success[4] && !out.clean_correct[4]);
    assert_eq!(out.steps_taken[4], 30);
    // Its delivered image has the highest loss of the three: those that follow from fewer restarts have less or the same.
    let losses = [1, 2].map(|n| attack.clone().restarts(n).run(&digits(), &images, &labels).unwrap().loss[4]);
    assert!(losses[0] <= losses[1] && losses[1] <= out.loss[4]);
}

#[test]
fn pgd_runs_on_the_reference_from_the_same_starts() {
    let (images, labels) = data(6);
    let attack = Attack::pgd(Norm::Linf, 0.3).steps(1).step_size(0.0).quantise(false).seed(4);
    let got = attack.run(&digits(), &images, &labels).unwrap();
    let want = attack.run(&Reference::new(digits_model()).unwrap(), &images, &labels).unwrap();
    assert_bits("starts", &got.adversarial, &want.adversarial);
    assert!(got.linf.iter().zip(&got.attacked).all(|(d, a)| !a || (0.2..=0.3 + 1e-6).contains(d)), "{:?}", got.linf);
}

#[test]
fn restarts_and_random_starts_that_make_no_sense_are_refused() {
    let (images, labels) = data(2);
    let usage = |attack: Attack, word: &str| match attack.run(&digits(), &images, &labels) {
        Err(Error::Usage(message)) => assert!(message.contains(word), "{message}"),
        other => panic!("{word}: {:?}", other.map(|_| ())),
    };
    let pgd = || Attack::pgd(Norm::Linf, 0.1);
    usage(pgd().restarts(0), "restarts");
    usage(Attack::ifgsm(0.1).restarts(2), "random start");
    usage(Attack::fgsm(0.1).restarts(2), "random start");
    usage(pgd().random_start(false).restarts(2), "random start");
    usage(Attack::ifgsm(0.1).random_start(true), "ifgsm");
    usage(Attack::fgsm(0.1).random_start(true), "fgsm");
    usage(Attack::pgd(Norm::Linf, f32::INFINITY).step_size(0.1), "finite eps");
    usage(Attack::pgd(Norm::Linf, f32::NAN), "eps");
    usage(pgd().steps(u32::MAX), "steps");
    assert!(Attack::pgd(Norm::Linf, f32::INFINITY).step_size(0.1).random_start(false).validate().is_ok());
    let sample = Sample { start: 1, eps: f32::INFINITY, ..Sample::default() };
    let job = Job::new(&images[..64], std::slice::from_ref(&sample), 1);
    for engine in [&digits() as &dyn Engine, &Reference::new(digits_model()).unwrap()] {
        assert!(matches!(engine.iterate(&job, &mut |_| true), Err(Error::Data { .. })));
    }
    for (name, method) in [("fgsm", Method::Fgsm), ("ifgsm", Method::Ifgsm), ("pgd", Method::Pgd)] {
        assert_eq!((name.parse(), method.name()), (Ok(method), name));
    }
    assert_eq!(("LInf".parse(), Norm::Linf.name()), (Ok(Norm::Linf), "linf"));
    assert!("jsma".parse::<Method>().is_err() && "l1".parse::<Norm>().is_err());
}

/// Where all restarts come to the same loss, the first one counts.
#[test]
fn equal_restarts_leave_the_first() {
    let mut rng = Rng::new(1);
    let mut model = random_model(&mut rng, Dims::new(1, 2, 2), vec![Layer::Flatten, linear("z", 4, 3)]);
    let z = model.params.get_mut("z").unwrap();
    z.weight.fill(0.0);
    z.bias.fill(0.5);
    let (images, labels) = (rng.images(8), [0, 0]);
    for engine in [&Network::new(gpu(), model.clone()).unwrap() as &dyn Engine, &Reference::new(model).unwrap()] {
        for targets in [Targets::None, Targets::Next] {
            let pgd = Attack::pgd(Norm::Linf, 0.3).targets(targets);
            let one = pgd.clone().run(engine, &images, &labels).unwrap();
            let out = pgd.restarts(3).run(engine, &images, &labels).unwrap();
            assert_bits("the first restart's image", &out.adversarial, &one.adversarial);
            assert_eq!(
                (&out.restart, &out.steps_taken, &out.zero_gradients),
                (&vec![0; 2], &vec![30; 2], &vec![120; 2])
            );
            assert!(out.adversarial != out.clean && !out.success[0]);
        }
    }
}

#[test]
fn names_are_printed_as_they_are_read() {
    for method in Method::ALL {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    assert_eq!([Norm::Linf, Norm::L2].map(|n| n.to_string()), ["linf", "l2"]);
    assert_eq!(Loss::ALL.map(|l| l.to_string()), ["ce", "margin", "dlr", "difference"]);
    assert_eq!(format!("{:>5}|{:<5}|", Norm::L2, Loss::Dlr), "   l2|dlr  |");
}
