//! The rules beyond the sign step: the kernels against their f32 twins by bits, the losses against the f64 reference, and the
//! promises that hold for all of them, alone and in batches, in one call and in several.

mod common;

use common::*;
use signstep::attack::{
    Attack, Engine, Fit, Health, Iterated, Job, Loss, Method, Norm, Own, Rule, Sample, State, Trail, budget_l2,
    quantise_l2,
};
use signstep::kernel::{Dispatch, run_alone};
use signstep::model::{Dims, Layer};
use signstep::reference::Walk;
use signstep::{Error, Model, Network, Options, Plan, Reference, Target, Targets, weights};

const RULES: [Rule; 6] =
    [Rule::Sign, Rule::Momentum, Rule::Lookahead, Rule::L2, Rule::Apgd(Norm::Linf), Rule::Apgd(Norm::L2)];

fn digits() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn data(n: usize) -> (Vec<f32>, Vec<i64>) {
    let t = safetensors::SafeTensors::deserialize(include_bytes!("../weights/digits.safetensors")).unwrap();
    let images = t.tensor("images").unwrap().data()[..n * 64].iter().map(|k| f32::from(*k) / 255.0).collect();
    let labels = t.tensor("labels").unwrap().data().chunks_exact(8).take(n);
    (images, labels.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
}

/// Samples that differ in everything: two of three targeted, radii, steps, momentum, starts, schedules.
fn sample(id: usize, label: i64, rule: Rule, steps: u32) -> Sample {
    let in_l2 = matches!(rule, Rule::L2 | Rule::Apgd(Norm::L2));
    let eps = if in_l2 { 0.4 + 0.3 * (id % 5) as f32 } else { (20 + 13 * (id % 6)) as f32 / 255.0 };
    let label = label as u32;
    let targeted = !id.is_multiple_of(3);
    let class = if targeted { (label + 1 + id as u32 % 9) % 10 } else { label };
    let step_size = match rule {
        Rule::Apgd(_) => 2.0 * eps,
        _ => eps / (2.0 + (id % 3) as f32),
    };
    Sample {
        class,
        id: id as u32,
        restart: (id / 4) as u32,
        start: u32::from(id % 2 == 1),
        eps,
        step_size,
        direction: if targeted { -1.0 } else { 1.0 },
        label,
        aimed: u32::from(targeted && id.is_multiple_of(2)),
        momentum: [1.0, 0.9, 0.5, 0.0][id % 4],
        steps,
        ..Sample::default()
    }
}

fn samples(labels: &[i64], rule: Rule, steps: u32) -> Vec<Sample> {
    labels.iter().enumerate().map(|(i, y)| sample(i, *y, rule, steps)).collect()
}

fn iterate(engine: &dyn Engine, job: &Job<'_>) -> Iterated {
    engine.iterate(job, &mut |_| true).unwrap()
}

/// Step by step: the twin is given the gradients and losses that the network has at the twin's own points, and must be where
/// the network is, by bits, after every step.
#[test]
fn every_rule_takes_the_steps_of_its_twin() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(8);
    const STEPS: u32 = 24;
    for rule in RULES {
        for loss in Loss::ALL {
            let samples = samples(&labels, rule, STEPS);
            let job = Job { rule, loss, seed: 11, ..Job::new(&images, &samples, 1) };
            // Where they begin is compared elsewhere: a trail of no steps.
            let start = start_of(rule, &images, &samples);
            let begun: Vec<State> = samples.iter().map(State::begin).collect();
            let memory = vec![0.0; slots(rule) * images.len()];
            let mut trail = Trail { x: start.clone(), memory, states: begun };
            let mut walks: Vec<Walk<'_>> = samples
                .iter()
                .zip(images.chunks(64))
                .zip(start.chunks(64))
                .map(|((s, x0), x)| Walk::new(rule, *s, (0.0, 1.0), x0, x.to_vec()))
                .collect();
            for step in 0..STEPS {
                let at: Vec<f32> = walks.iter().flat_map(|w| w.point().to_vec()).collect();
                let seen = net.loss_gradient(&at, &samples, loss).unwrap();
                let predicted = predictions(&net, &at);
                for (i, walk) in walks.iter_mut().enumerate() {
                    walk.step(&seen.gradient[i * 64..(i + 1) * 64], seen.loss[i], predicted[i]);
                }
                let goes_on = step + 1 < STEPS || is_apgd(rule);
                let out = iterate(&net, &Job { from: Some(&trail), goes_on, ..job });
                let what = format!("{rule:?} {loss:?}, step {step}");
                let candidates: Vec<f32> = walks.iter().flat_map(|w| w.candidate().to_vec()).collect();
                assert_bits(&what, &out.images, &candidates);
                let Some(next) = out.trail else { continue };
                let points: Vec<f32> = walks.iter().flat_map(|w| w.point().to_vec()).collect();
                assert_bits(&format!("{what}, x"), &next.x, &points);
                if slots(rule) > 0 {
                    for (i, (state, walk)) in next.states.iter().zip(&walks).enumerate() {
                        assert_eq!(state, walk.state(), "{what}: state of sample {i}");
                    }
                }
                trail = next;
            }
            if is_apgd(rule) {
                // The last look, and what is delivered.
                let at: Vec<f32> = walks.iter().flat_map(|w| w.point().to_vec()).collect();
                let seen = net.loss_gradient(&at, &samples, loss).unwrap();
                let predicted = predictions(&net, &at);
                for (i, walk) in walks.iter_mut().enumerate() {
                    walk.step(&seen.gradient[i * 64..(i + 1) * 64], seen.loss[i], predicted[i]);
                }
                let out = iterate(&net, &Job { from: Some(&trail), steps: 0, ..job });
                let points: Vec<f32> = walks.iter().flat_map(|w| w.point().to_vec()).collect();
                assert_bits(&format!("{rule:?} {loss:?}, delivered"), &out.images, &points);
            }
        }
    }
}

fn is_apgd(rule: Rule) -> bool {
    matches!(rule, Rule::Apgd(_))
}

fn slots(rule: Rule) -> usize {
    match rule {
        Rule::Momentum => 1,
        Rule::Lookahead => 2,
        Rule::Apgd(_) => 4,
        _ => 0,
    }
}

fn predictions(net: &Network, images: &[f32]) -> Vec<u32> {
    let z = net.logits(images).unwrap().logits;
    z.chunks(10).map(|z| signstep::attack::argmax(z) as u32).collect()
}

/// Somewhere in each sample's ball, other than where its own start would be.
fn start_of(rule: Rule, images: &[f32], samples: &[Sample]) -> Vec<f32> {
    let mut rng = Rng::new(17);
    let scale = if matches!(rule, Rule::L2 | Rule::Apgd(Norm::L2)) { 0.05 } else { 1.0 };
    images
        .iter()
        .enumerate()
        .map(|(i, x)| (x + scale * samples[i / 64].eps * (2.0 * rng.unit() - 1.0)).clamp(0.0, 1.0))
        .collect()
}

/// Runs one rule's step alone on the device, on whatever a gradient can be; gives x, memory, states, zero counts and marks.
fn step_alone(
    plan: &Plan,
    rule: Rule,
    len: usize,
    input: &Alone<'_>,
) -> (Vec<f32>, Vec<f32>, Vec<State>, [Vec<u32>; 2]) {
    let dispatch: &Dispatch = &plan.rules.iter().find(|s| s.rule == rule).unwrap().step;
    let id = |name: &str| dispatch.bindings.iter().find(|(n, _)| *n == name).map(|(_, id)| *id);
    let n = input.samples.len();
    let mut data = vec![
        (id("bounds").unwrap(), bytemuck::cast_slice(&[0.0_f32, 1.0, 0.0, 0.0]).to_vec()),
        (id("samples").unwrap(), bytemuck::cast_slice(input.samples).to_vec()),
        (id("x0").unwrap(), bytemuck::cast_slice(input.x0).to_vec()),
        (id("x").unwrap(), bytemuck::cast_slice(input.x).to_vec()),
        (id("dx").unwrap(), bytemuck::cast_slice(input.dx).to_vec()),
    ];
    if let (Some(memory), Some(states)) = (id("memory"), id("states")) {
        data.push((memory, bytemuck::cast_slice(input.memory).to_vec()));
        data.push((states, bytemuck::cast_slice(input.states).to_vec()));
    }
    let read = |name: &str| -> Vec<u8> {
        let Some(id) = id(name) else { return Vec::new() };
        run_alone(gpu(), dispatch, &plan.resources, n as u32, &data, id).unwrap()
    };
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(&read(name)) };
    let memory = floats("memory").into_iter().take(n * slots(rule) * len).collect();
    let states = bytemuck::pod_collect_to_vec(&read("states"));
    let words = ["zero_gradients", "health"].map(|name| bytemuck::pod_collect_to_vec(&read(name)));
    (floats("x"), memory, states, words)
}

struct Alone<'a> {
    samples: &'a [Sample],
    x0: &'a [f32],
    x: &'a [f32],
    dx: &'a [f32],
    memory: &'a [f32],
    states: &'a [State],
}

#[test]
fn gradients_of_any_bits_and_images_of_any_length() {
    let mut rng = Rng::new(23);
    for len in [1, 63, 255, 257, 3072] {
        let input = Dims::new(len, 1, 1);
        let model = random_model(&mut Rng::new(0), input, vec![Layer::Flatten, linear("z", len, 2)]);
        let plan = Plan::new(&model, &Target::default()).unwrap();
        for rule in RULES.into_iter().filter(|r| *r != Rule::Sign) {
            const STEPS: u32 = 4;
            // The gradients of five samples: normal, tiny, huge, all zero, any bits at all.
            let labels = [0_i64, 1, 0, 1, 0];
            let samples: Vec<Sample> = samples(&labels, rule, STEPS)
                .into_iter()
                .map(|s| Sample { class: s.class % 2, label: s.label % 2, ..s })
                .collect();
            let x0 = rng.images(5 * len);
            let mut x = x0.clone();
            let mut memory = vec![0.0; 5 * slots(rule) * len];
            let mut states: Vec<State> = samples.iter().map(State::begin).collect();
            let mut walks: Vec<Walk<'_>> = samples
                .iter()
                .zip(x0.chunks(len))
                .map(|(s, x0)| Walk::new(rule, *s, (0.0, 1.0), x0, x0.to_vec()))
                .collect();
            for step in 0..=STEPS {
                if step == STEPS && !is_apgd(rule) {
                    break;
                }
                let dx: Vec<f32> = (0..5 * len)
                    .map(|i| match i / len {
                        0 => rng.normal(),
                        1 => rng.normal() * 1e-36,
                        2 => rng.normal() * 1e37,
                        3 => 0.0,
                        _ => f32::from_bits(rng.word()),
                    })
                    .collect();
                let (loss, predicted) = (rng.normal(), u32::from(rng.unit() < 0.5));
                for state in &mut states {
                    (state.loss, state.predicted) = (loss, predicted);
                }
                let alone = Alone { samples: &samples, x0: &x0, x: &x, dx: &dx, memory: &memory, states: &states };
                let (new_x, new_memory, new_states, [zeros, health]) = step_alone(&plan, rule, len, &alone);
                for (i, walk) in walks.iter_mut().enumerate() {
                    let gradient = &dx[i * len..(i + 1) * len];
                    walk.step(gradient, loss, predicted);
                    let what = format!("{rule:?}, {len} values, step {step}, sample {i}");
                    assert_bits(&what, &new_x[i * len..(i + 1) * len], walk.point());
                    let exponent = |g: &f32| (g.to_bits() >> 23) & 255;
                    if step < STEPS {
                        let zero = gradient.iter().filter(|g| exponent(g) == 0).count();
                        assert_eq!(zeros[i] as usize, zero, "{what}: zero gradients");
                        let broken = gradient.iter().any(|g| exponent(g) == 255);
                        assert_eq!(health[i], if broken { Health::GRADIENT.0 } else { 0 }, "{what}: health");
                    }
                    if slots(rule) > 0 {
                        assert_eq!(&new_states[i], walk.state(), "{what}: state");
                    }
                }
                x = new_x;
                memory = new_memory;
                if slots(rule) > 0 {
                    states = new_states;
                }
            }
        }
    }
}

#[test]
fn losses_and_their_gradients_are_the_references() {
    let (images, labels) = data(64);
    let net = Network::new(gpu(), digits()).unwrap();
    let reference = Reference::new(digits()).unwrap();
    let samples = samples(&labels, Rule::Sign, 1);
    for loss in Loss::ALL {
        let got = net.loss_gradient(&images, &samples, loss).unwrap();
        let want = reference.loss_gradient(&images, &samples, loss).unwrap();
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        // A few roundings of logits of size ten; where the loss is a difference of logits it is as exact as they are.
        assert_close(&format!("{loss:?}"), &got.loss, &wide(&want.loss), 2e-5, 1e-5);
        // A DLR of 1 is constant: its gradient is zero but for roundings.
        let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let far = |(g, w): (&[f32], &[f32])| {
            let d: Vec<f32> = g.iter().zip(w).map(|(g, w)| g - w).collect();
            norm(&d) / norm(w).max(1e-3)
        };
        let mut worst: Vec<f64> = got.gradient.chunks(64).zip(want.gradient.chunks(64)).map(far).collect();
        worst.sort_by(f64::total_cmp);
        // One ReLU that decides otherwise in f32 may cost one sample more.
        assert!(worst[62] < 1e-4 && worst[63] < 1e-2, "{loss:?}: {:?}", &worst[60..]);
    }
}

/// In parts, alone, at other places, beside NaN, cut into small batches: the same bits.
#[test]
fn nothing_depends_on_neighbours_or_on_where_a_call_ends() {
    let (images, labels) = data(9);
    let net = Network::new(gpu(), digits()).unwrap();
    let options = Options { batch: Some(4), ..Options::default() };
    let cut = Network::with_options(gpu(), digits(), &options).unwrap();
    const STEPS: u32 = 12;
    for (rule, loss) in RULES.into_iter().flat_map(|r| Loss::ALL.map(|l| (r, l))) {
        let all = samples(&labels, rule, STEPS);
        let job = Job { rule, loss, seed: 3, ..Job::new(&images, &all, STEPS) };
        let whole = iterate(&net, &job);
        let what = format!("{rule:?} {loss:?}");
        assert_bits(&format!("{what}, cut"), &iterate(&cut, &job).images, &whole.images);

        let mut trail: Option<Trail> = None;
        let mut zeros = [0; 9];
        let mut parts = Vec::new();
        for (steps, goes_on) in [(3, true), (4, true), (5, false)] {
            let out = iterate(&cut, &Job { steps, goes_on, from: trail.as_ref(), ..job });
            zeros.iter_mut().zip(&out.zero_gradients).for_each(|(z, new)| *z += new);
            (trail, parts) = (out.trail, out.images);
        }
        assert_bits(&format!("{what}, in parts"), &parts, &whole.images);
        assert_eq!(zeros[..], whole.zero_gradients, "{what}, in parts");

        for i in [0, 5, 8] {
            let image = &images[i * 64..(i + 1) * 64];
            let alone = iterate(&net, &Job { x0: image, samples: &all[i..=i], ..job });
            assert_bits(&format!("{what}, sample {i} alone"), &alone.images, &whole.images[i * 64..(i + 1) * 64]);
            let mut beside = vec![f32::NAN; 3 * 64];
            beside[64..128].copy_from_slice(image);
            let three = [all[0], all[i], all[1]];
            let out = iterate(&net, &Job { x0: &beside, samples: &three, ..job });
            assert_bits(&format!("{what}, sample {i} beside NaN"), &out.images[64..128], &alone.images);
            // (A random start may put numbers in the place of NaN; whole attacks look at the clean images.)
            assert!(out.health[1].is_healthy() && !out.health[0].is_healthy());
        }
    }
}

#[test]
fn iterates_stay_in_the_ball_and_within_the_bounds() {
    let (images, labels) = data(16);
    let net = Network::new(gpu(), digits()).unwrap();
    for rule in RULES {
        let all = samples(&labels, rule, 10);
        let out = iterate(&net, &Job { rule, ..Job::new(&images, &all, 10) });
        for (i, s) in all.iter().enumerate() {
            let moves = || {
                out.images[i * 64..(i + 1) * 64]
                    .iter()
                    .zip(&images[i * 64..])
                    .map(|(x, x0)| f64::from(*x) - f64::from(*x0))
            };
            let far = match rule {
                Rule::L2 | Rule::Apgd(Norm::L2) => moves().map(|d| d * d).sum::<f64>().sqrt(),
                _ => moves().fold(0.0, |m: f64, d| m.max(d.abs())),
            };
            assert!(far <= f64::from(s.eps) * (1.0 + 1e-6) + 1e-7, "{rule:?}, sample {i}: {far} for {}", s.eps);
            assert!(far > 0.2 * f64::from(s.eps), "{rule:?}, sample {i} hardly moved: {far} of {}", s.eps);
        }
        assert!(out.images.iter().all(|x| (0.0..=1.0).contains(x)), "{rule:?}: out of bounds");
    }
}

/// Random starts on the edge or within the ball; nothing that one sample draws is drawn by another.
#[test]
fn random_starts_are_where_they_should_be() {
    let input = Dims::new(3, 16, 16);
    let len = input.len();
    let model = random_model(&mut Rng::new(0), input, vec![Layer::Flatten, linear("z", len, 2)]);
    let net = Network::new(gpu(), model.clone()).unwrap();
    let reference = Reference::new(model).unwrap();
    // In the middle, where no bound is near.
    let images = vec![0.5; 40 * len];
    for (rule, eps) in [(Rule::Apgd(Norm::Linf), 0.25), (Rule::Apgd(Norm::L2), 2.0), (Rule::L2, 2.0)] {
        let all: Vec<Sample> =
            (0..40).map(|id| Sample { id, start: 1, eps, direction: 1.0, steps: 1, ..Sample::default() }).collect();
        let job = Job { rule, seed: 9, goes_on: true, ..Job::new(&images, &all, 0) };
        let out = iterate(&net, &job);
        let twin = iterate(&reference, &job);
        assert_bits(&format!("{rule:?}"), &out.images, &twin.images);
        let mut far: Vec<f64> = Vec::new();
        for x in out.images.chunks(len) {
            let moves = x.iter().map(|x| f64::from(x - 0.5));
            far.push(match rule {
                Rule::Apgd(Norm::Linf) => moves.fold(0.0, |m: f64, d| m.max(d.abs())),
                _ => moves.map(|d| d * d).sum::<f64>().sqrt(),
            });
        }
        let eps = f64::from(eps);
        if rule == Rule::L2 {
            // In 768 dimensions a uniform point of the ball has a mean distance of 768/769 of the radius.
            let mean = far.iter().sum::<f64>() / 40.0;
            assert!(far.iter().all(|f| *f <= eps * 1.000_001), "{far:?}");
            assert!((mean / eps - 768.0 / 769.0).abs() < 1e-3, "{mean}");
            assert!(far.iter().any(|f| *f < eps * 0.9995), "all on the edge");
        } else {
            assert!(far.iter().all(|f| (f / eps - 1.0).abs() < 2e-6), "{rule:?}: {far:?}");
        }
        let mut firsts: Vec<u32> = out.images.chunks(len).map(|x| x[0].to_bits()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.len() > 35, "{rule:?}: samples share their numbers");
        let signs = out.images.iter().filter(|x| **x > 0.5).count() as f64 / out.images.len() as f64;
        assert!((signs - 0.5).abs() < 0.02, "{rule:?}: {signs} of the moves go up");
    }
}

#[test]
fn rounding_in_l2_stays_in_the_ball_and_loses_little() {
    let mut rng = Rng::new(5);
    let input = Dims::new(3, 20, 20);
    let len = input.len();
    let model = random_model(&mut Rng::new(0), input, vec![Layer::Flatten, linear("z", len, 2)]);
    let plan = Plan::new(&model, &Target::default()).unwrap();
    let dispatch = plan.pixels.quantise_l2.as_ref().unwrap();
    let id = |name: &str| dispatch.bindings.iter().find(|(n, _)| *n == name).unwrap().1;
    let n = 12;
    let x0 = rng.images(n * len);
    let eps: Vec<f32> = (0..n).map(|i| [0.0, 0.02, 0.25, 0.5, 1.0, 8.0][i % 6]).collect();
    let mut x = x0.clone();
    for (i, x) in x.chunks_mut(len).enumerate() {
        let d: Vec<f32> = (0..len).map(|_| rng.normal()).collect();
        let length = d.iter().map(|d| d * d).sum::<f32>().sqrt();
        // On the edge, but where bounds cut it off.
        for (x, d) in x.iter_mut().zip(&d) {
            *x = (*x + d / length * eps[i]).clamp(0.0, 1.0);
        }
    }
    let samples: Vec<Sample> = eps.iter().map(|e| Sample { levels: budget_l2(*e), ..Sample::default() }).collect();
    let bytes = |v: &[f32]| bytemuck::cast_slice(v).to_vec();
    let data =
        vec![(id("samples"), bytemuck::cast_slice(&samples).to_vec()), (id("x0"), bytes(&x0)), (id("x"), bytes(&x))];
    let out = run_alone(gpu(), dispatch, &plan.resources, n as u32, &data, id("x")).unwrap();
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&out);
    for i in 0..n {
        let range = i * len..(i + 1) * len;
        let (x, x0, got) = (&x[range.clone()], &x0[range.clone()], &out[range]);
        let want = quantise_l2(x, x0, samples[i].levels);
        assert_bits(&format!("sample {i}"), got, &want);
        let levels: Vec<f64> = got.iter().zip(x0).map(|(x, x0)| (f64::from(*x) - f64::from(*x0)) * 255.0).collect();
        assert!(levels.iter().all(|l| (l - l.round()).abs() < 1e-4), "sample {i} is off the grid");
        let after = levels.iter().map(|l| l.round().powi(2)).sum::<f64>().sqrt() / 255.0;
        assert!(after <= f64::from(eps[i]) * (1.0 + 1e-5) + 1e-5, "sample {i}: {after} of {}", eps[i]);
        // Rounding toward zero throughout would lose more than that.
        let before = x.iter().zip(x0).map(|(x, x0)| f64::from(x - x0).powi(2)).sum::<f64>().sqrt();
        assert!(eps[i] < 0.25 || after > 0.97 * before, "sample {i}: {after} is left of {before}");
    }
    assert_eq!(budget_l2(0.5), 16_256);
    assert_eq!(budget_l2(1.0 / 255.0), 1);
    assert_eq!(budget_l2(f32::INFINITY), u32::MAX);
}

/// Whole attacks, with everything switched on, for every method: chunks and neighbours change no bit.
#[test]
fn whole_attacks_do_not_depend_on_the_batch() {
    let (images, labels) = data(20);
    let net = Network::new(gpu(), digits()).unwrap();
    let options = Options { batch: Some(3), ..Options::default() };
    let cut = Network::with_options(gpu(), digits(), &options).unwrap();
    for method in Method::ALL {
        for norm in [Norm::Linf, Norm::L2] {
            // Where all share one perturbation, the batch matters: `uap.rs`.
            if method.shares_perturbation() || (method.has_momentum() && norm == Norm::L2) {
                continue;
            }
            let eps = if norm == Norm::L2 { 0.9 } else { 0.15 };
            let starts = method.can_start_at_random();
            let steps = if method == Method::Fgsm { 1 } else { 7 };
            let attack = Attack::new(method, norm, eps)
                .steps(steps)
                .restarts(if starts { 2 } else { 1 })
                .classes(3)
                .early_stop(true)
                .seed(4);
            let what = format!("{} {}", method.name(), norm.name());
            let whole = attack.run(&net, &images, &labels).unwrap();
            let again = attack.run(&cut, &images, &labels).unwrap();
            assert_eq!(whole, again, "{what}: cut by three");
            for (from, to) in [(0, 1), (1, 8), (8, 20)] {
                let part = attack.clone().first_id(from as u64);
                let part = part.run(&net, &images[from * 64..to * 64], &labels[from..to]).unwrap();
                assert_bits(&what, &part.adversarial, &whole.adversarial[from * 64..to * 64]);
                assert_eq!(part.steps_taken, whole.steps_taken[from..to], "{what}");
                assert_eq!(part.success, whole.success[from..to], "{what}");
            }
            assert!(method == Method::Fgsm || whole.success.iter().any(|s| *s), "{what}: nothing succeeds");
            for (i, success) in whole.success.iter().enumerate() {
                let limit = if norm == Norm::L2 { whole.l2[i] } else { whole.linf[i] };
                assert!(limit <= eps + 1e-6, "{what}: sample {i} moved by {limit}");
                assert!(!success || whole.adversarial_logits[i * 10..][..10] != whole.clean_logits[i * 10..][..10]);
            }
        }
    }
}

/// Stopping early delivers what succeeded when it was looked at, and takes no success away where the way is the same.
#[test]
fn early_stop_saves_steps_and_loses_no_success() {
    let (images, labels) = data(60);
    let net = Network::new(gpu(), digits()).unwrap();
    for attack in [Attack::ifgsm(0.2), Attack::mifgsm(0.2), Attack::apgd(Norm::Linf, 0.2).steps(20)] {
        let attack = attack.seed(2);
        let full = attack.run(&net, &images, &labels).unwrap();
        let early = attack.clone().early_stop(true).run(&net, &images, &labels).unwrap();
        let count = |o: &signstep::Outcome| o.success.iter().filter(|s| **s).count();
        assert!(count(&early) >= count(&full), "{} of {}", count(&early), count(&full));
        assert!(count(&early) > 40 && early.sample_steps() < full.sample_steps());
        for (i, &label) in labels.iter().enumerate() {
            let z = &early.adversarial_logits[i * 10..(i + 1) * 10];
            assert!(!early.success[i] || signstep::attack::argmax(z) as i64 != label);
            if early.steps_taken[i] == full.steps_taken[i] {
                // It took the whole way: then it is the same way.
                assert_bits(
                    "a sample that never stopped",
                    &early.adversarial[i * 64..][..64],
                    &full.adversarial[i * 64..][..64],
                );
            }
        }
    }
}

/// At 25.98 levels a float iterate may succeed where its bytes, 25 levels away at most, do not: only bytes end an attack.
#[test]
fn what_stops_has_succeeded_as_delivered() {
    let (images, labels) = data(450);
    let net = Network::new(gpu(), digits()).unwrap();
    let out = Attack::ifgsm(25.98 / 255.0).early_stop(true).run(&net, &images, &labels).unwrap();
    let stopped: Vec<usize> = (0..450).filter(|&i| out.attacked[i] && out.steps_taken[i] < 10).collect();
    assert!(stopped.len() > 50, "{} stopped", stopped.len());
    assert!(stopped.iter().all(|&i| out.success[i]), "one stopped without a success");
    assert!((0..450).any(|i| out.success_float[i] && !out.success[i]), "no iterate lost its success to rounding");
}

#[test]
fn samples_have_radii_of_their_own() {
    let (images, labels) = data(12);
    let net = Network::new(gpu(), digits()).unwrap();
    let attack = Attack::pgd(Norm::Linf, 0.3).seed(8);
    let own = |i: usize| Own { id: 100 + i as u64, eps: 0.02 * i as f32, step_size: 0.004 * i as f32 };
    let all = attack.clone().each((0..12).map(own).collect()).run(&net, &images, &labels).unwrap();
    for i in 0..12 {
        let Own { id, eps, step_size } = own(i);
        let one = Attack::pgd(Norm::Linf, eps).step_size(step_size).first_id(id).seed(8);
        let one = one.run(&net, &images[i * 64..(i + 1) * 64], &labels[i..=i]).unwrap();
        assert_bits(&format!("sample {i}"), &all.adversarial[i * 64..(i + 1) * 64], &one.adversarial);
    }
    let wrong = attack.each(vec![own(1)]).run(&net, &images, &labels);
    assert!(
        matches!(wrong, Err(Error::Usage(m)) if m.contains("1 samples have an eps of their own, but there are 12"))
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let usage = |attack: Attack| attack.validate().unwrap_err().to_string();
    assert!(usage(Attack::mifgsm(0.1).in_norm(Norm::L2)).contains("mifgsm is for linf alone"));
    assert!(usage(Attack::nifgsm(0.1).momentum(f32::NAN)).contains("momentum"));
    assert!(usage(Attack::nifgsm(0.1).momentum(-1.0)).contains("momentum"));
    // What is gathered would grow by half in every step, until it is no number and nothing moves.
    assert!(usage(Attack::mifgsm(0.1).momentum(1.5)).contains("momentum"));
    // Its square is beyond f32: the distance from the clean image would be no number, and the image be pulled back to it.
    assert!(usage(Attack::pgd(Norm::L2, 1e20)).contains("1e18"));
    assert!(usage(Attack::pgd(Norm::L2, 0.5).step_size(1e19)).contains("1e18"));
    assert!(
        usage(Attack::ifgsm(0.5).in_norm(Norm::L2).each(vec![Own { id: 0, eps: 1e19, step_size: 0.1 }]))
            .contains("1e18")
    );
    assert!(usage(Attack::apgd_t(Norm::Linf, 0.1).targets(Targets::Next)).contains("chooses its targets itself"));
    assert!(usage(Attack::ifgsm(0.1).loss(Loss::Difference)).contains("ifgsm cannot follow the loss difference"));
    assert!(usage(Attack::fab_t(Norm::Linf, 0.1).loss(Loss::Margin)).contains("fab-t cannot follow the loss margin"));
    assert!(usage(Attack::square(Norm::Linf, f32::INFINITY)).contains("square needs a finite eps"));
    // It proposes at random wherever it begins, so that its restarts are not all the same.
    assert_eq!(Attack::square(Norm::Linf, 0.1).restarts(2).random_start(false).validate(), Ok(()));
    assert!(usage(Attack::apgd_t(Norm::Linf, 0.1).classes(0)).contains("one class or more"));
    assert!(usage(Attack::mifgsm(0.1).random_start(true)).contains("no random start"));
    let own = Own { id: 0, eps: f32::INFINITY, step_size: 0.1 };
    assert!(usage(Attack::ifgsm(0.1).each(vec![own])).contains("sample 0"));

    // Too few classes for DLR.
    for (classes, targeted, enough) in [(2, false, false), (3, false, true), (3, true, false), (4, true, true)] {
        let model = random_model(&mut Rng::new(1), Dims::new(1, 4, 4), vec![Layer::Flatten, linear("z", 16, classes)]);
        let net = Network::new(gpu(), model).unwrap();
        let attack = Attack::ifgsm(0.1).loss(Loss::Dlr);
        let attack = if targeted { attack.targets(Targets::Next) } else { attack };
        match attack.run(&net, &[0.5; 16], &[0]) {
            Ok(_) => assert!(enough, "{classes} classes"),
            Err(e) => assert!(!enough && e.to_string().contains(&format!("the network has {classes}")), "{e}"),
        }
    }
    let (images, labels) = data(2);
    let net = Network::new(gpu(), digits()).unwrap();
    let all = samples(&labels, Rule::Momentum, 5);
    let job = Job { rule: Rule::Momentum, ..Job::new(&images, &all, 3) };
    let fails = |job: Job<'_>| net.iterate(&job, &mut |_| true).unwrap_err().to_string();
    assert!(fails(job).contains("a call to step 3 of 5"));
    assert!(fails(Job { steps: 6, goes_on: true, ..job }).contains("a call to step 6 of 5"));
    let trail = iterate(&net, &Job { goes_on: true, ..job }).trail.unwrap();
    let mut short = trail.clone();
    short.x.truncate(64);
    assert!(
        fails(Job { steps: 2, from: Some(&short), ..job }).contains("a trail of 2 samples for 2, or of another rule")
    );
    assert!(fails(Job { rule: Rule::Lookahead, steps: 2, from: Some(&trail), ..job }).contains("another rule"));
}

/// What would leave the ball or the bounds, or be NaN, is refused by both engines, each sample by its number.
#[test]
fn steps_that_make_no_sense_are_refused() {
    let (images, labels) = data(2);
    let mut sound = samples(&labels, Rule::Sign, 1);
    sound.iter_mut().for_each(|s| s.start = 0);
    let engines: [&dyn Engine; 2] = [&Network::new(gpu(), digits()).unwrap(), &Reference::new(digits()).unwrap()];
    let with = |change: fn(&mut Sample)| {
        let mut all = sound.clone();
        change(&mut all[1]);
        all
    };
    for engine in engines {
        let run = |job: Job<'_>| engine.iterate(&job, &mut |_| true).map(drop);
        let job = Job::new(&images, &sound, 1);
        assert_eq!(run(job), Ok(()));
        for (change, why) in [
            ((|s| s.eps = -1.0) as fn(&mut Sample), "sample 1: eps -1"),
            (|s| s.eps = f32::NAN, "sample 1: eps NaN"),
            (|s| s.step_size = f32::NAN, "sample 1: a step of NaN"),
            (|s| s.step_size = f32::INFINITY, "sample 1: a step of inf"),
            (|s| s.step_size = -0.1, "sample 1: a step of -0.1"),
            (|s| s.direction = 5.0, "sample 1: direction 5"),
            (|s| s.direction = f32::NAN, "sample 1: direction NaN"),
            (|s| s.class = 10, "sample 1: class 10"),
        ] {
            let all = with(change);
            let moved = run(Job { samples: &all, ..job }).unwrap_err().to_string();
            let fit = Fit { samples: &all, loss: Loss::CrossEntropy, steps: 1, bounds: (0.0, 1.0) };
            let fitted = engine.fit(&fit, &mut |_| Ok(images.clone()), &mut |_| true).unwrap_err().to_string();
            assert!(moved.contains(why) && fitted.contains(why), "{moved}; {fitted}");
        }
        for (bounds, why) in [((1.0, 0.0), "bounds 1 to 0"), ((f32::NAN, 1.0), "bounds NaN to 1")] {
            assert!(run(Job { bounds, ..job }).unwrap_err().to_string().contains(why));
        }
        assert!(run(Job { samples: &sound[..1], ..job }).unwrap_err().to_string().contains("1 for 2 images"));
        let still = with(|s| (s.direction, s.eps) = (0.0, f32::INFINITY));
        assert_eq!(run(Job { samples: &still, ..job }), Ok(()), "a sample may stay where it is");
    }
}

/// A trail is the caller's, and its counters may be at the end of their words: there they go round, as the device's do. (Where
/// overflow is checked, as in a build without `--release`, the twin would stop.)
#[test]
fn counters_of_any_size_go_round() {
    let (images, labels) = data(2);
    let (net, twin) = (Network::new(gpu(), digits()).unwrap(), Reference::new(digits()).unwrap());
    for rule in [Rule::Momentum, Rule::Lookahead, Rule::Apgd(Norm::Linf), Rule::Square(Norm::Linf)] {
        let mut all = samples(&labels, rule, u32::MAX);
        all.iter_mut().for_each(|s| s.stretch = 1);
        let slots = if let Rule::Square(_) = rule { 1 } else { slots(rule) };
        let far = State { rises: u32::MAX, since_check: u32::MAX, ..State::begin(&all[0]) };
        let trail = Trail { x: images.clone(), memory: images.repeat(slots), states: vec![far; 2] };
        let ended = Trail { states: vec![State { iteration: u32::MAX, ..far }; 2], ..trail.clone() };
        let from = |trail, steps| Job { rule, steps, from: Some(trail), ..Job::new(&images, &all, 1) };
        let [got, want] = [&net as &dyn Engine, &twin].map(|engine| {
            let job = Job { goes_on: true, ..from(&trail, 2) };
            let states = iterate(engine, &job).trail.unwrap().states;
            states.iter().map(|s| [s.iteration, s.rises, s.since_check, s.period]).collect::<Vec<_>>()
        });
        assert_eq!(got, want, "{rule:?}");
        // All steps are taken, and the last look counts one more.
        for engine in [&net as &dyn Engine, &twin] {
            assert_eq!(iterate(engine, &from(&ended, 0)).images.len(), images.len(), "{rule:?}");
        }
    }
}
