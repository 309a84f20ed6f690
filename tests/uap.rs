//! One perturbation for all images: kernels against their f32 twin by bits, sums in the samples' order however they are cut,
//! poisoned neighbours, and the same algorithm in PyTorch, step by step (`oracle/uap.py`).

mod common;

use common::*;
use serde_json::Value;
use signstep::attack::{Attack, Engine, Fit, Health, Job, Loss, Perturbation, Sample, argmax, put_on};
use signstep::kernel::{Dispatch, run_alone};
use signstep::model::{Dims, Layer};
use signstep::reference::{Climb, Sign};
use signstep::{Error, Model, Network, Options, Outcome, Plan, Reference, Target, Targets, weights};
use std::ops::Range;

const EPS: f32 = 0.3;
const STEP: f32 = 0.075;

fn digits() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn data(n: usize) -> (Vec<f32>, Vec<i64>) {
    let t = safetensors::SafeTensors::deserialize(include_bytes!("../weights/digits.safetensors")).unwrap();
    let images = t.tensor("images").unwrap().data()[..n * 64].iter().map(|k| f32::from(*k) / 255.0).collect();
    let labels = t.tensor("labels").unwrap().data().chunks_exact(8).take(n);
    (images, labels.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
}

fn cut(batch: usize) -> Network {
    let options = Options { batch: Some(batch), ..Options::default() };
    Network::with_options(gpu(), digits(), &options).unwrap()
}

/// Every third aims at another class and descends.
fn samples(labels: &[i64]) -> Vec<Sample> {
    let one = |(i, &y): (usize, &i64)| {
        let aimed = i % 3 == 2;
        let class = if aimed { (y as u32 + 1) % 10 } else { y as u32 };
        let direction = if aimed { -1.0 } else { 1.0 };
        Sample { class, label: y as u32, direction, eps: EPS, step_size: STEP, ..Sample::default() }
    };
    labels.iter().enumerate().map(one).collect()
}

fn fit(engine: &dyn Engine, images: &[f32], fit: &Fit<'_>) -> Perturbation {
    let mut source = |r: Range<usize>| Ok(images[r.start * 64..r.end * 64].to_vec());
    engine.fit(fit, &mut source, &mut |_| true).unwrap()
}

fn of<'a>(samples: &'a [Sample], loss: Loss, steps: u32) -> Fit<'a> {
    Fit { samples, loss, steps, bounds: (0.0, 1.0) }
}

/// The twin is given the network's gradients at its own perturbation, and must be where the network is after every step.
#[test]
fn the_perturbation_takes_the_steps_of_its_twin() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(90);
    let samples = samples(&labels);
    for loss in [Loss::CrossEntropy, Loss::Margin, Loss::Dlr] {
        let mut climb = Climb::new(vec![0.0; 64]);
        for steps in 1..=7 {
            let at: Vec<f32> = images.chunks(64).flat_map(|x0| put_on(x0, climb.perturbation(), (0.0, 1.0))).collect();
            let seen = net.loss_gradient(&at, &samples, loss).unwrap();
            seen.gradient.chunks(64).zip(&samples).for_each(|(g, s)| climb.add(g, s));
            climb.step(EPS, STEP);
            let out = fit(&net, &images, &of(&samples, loss, steps));
            assert_bits(&format!("{loss:?}, step {steps}"), &out.values, climb.perturbation());
            assert_eq!(out.steps_taken, vec![u64::from(steps); 90]);
        }
        assert!(climb.perturbation().iter().any(|d| d.abs() == EPS), "{loss:?}: the ball never binds");
    }
}

/// Runs one kernel on `data`, and reads what it binds to `name`.
fn alone(plan: &Plan, d: &Dispatch, n: usize, data: &[(&str, Vec<u8>)], name: &str) -> Vec<u8> {
    let id = |name: &str| d.bindings.iter().find(|(n, _)| *n == name).expect("a binding").1;
    let data: Vec<_> = data.iter().map(|(name, bytes)| (id(name), bytes.clone())).collect();
    run_alone(gpu(), d, &plan.resources, n as u32, &data, id(name)).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Gradients of every kind, in images of any length: the sum is that of one sample after the other, in f32, by bits; so is the
/// step, and so are the images. Another order of the sum, pairs first for one, has other bits.
#[test]
fn kernels_have_the_bits_of_their_twin() {
    let mut rng = Rng::new(5);
    for (c, h, w) in [(1, 1, 1), (1, 8, 8), (3, 5, 7), (3, 32, 32)] {
        let input = Dims::new(c, h, w);
        let len = input.len();
        let model = random_model(&mut rng, input, vec![Layer::Flatten, linear("z", len, 3)]);
        let plan = Plan::new(&model, &Target::of(gpu()).unwrap()).unwrap();
        let n = 37;
        let special =
            [0.0, -0.0, 1e-40, -1e-39, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 1e-38];
        let dx = rng.vec(n * len, |r| match r.range(0, 9) {
            0 => special[r.range(0, special.len() - 1)],
            1 => f32::from_bits(r.word()),
            _ => r.normal(),
        });
        let health: Vec<u32> = (0..n).map(|i| if i % 9 == 4 { 1 << (i % 3) } else { (i as u32 % 2) << 31 }).collect();
        let samples: Vec<Sample> = (0..n)
            .map(|i| Sample { direction: [1.0, -1.0][i % 5 / 4], eps: EPS, step_size: STEP, ..Sample::default() })
            .collect();
        let before = rng.vec(len, |r| (r.normal() * 0.2).clamp(-EPS, EPS));
        let mut climb = Climb::new(before.clone());
        let mut zeros = vec![0_u32; n];
        for (i, g) in dx.chunks(len).enumerate().filter(|(i, _)| health[*i] & 7 == 0) {
            climb.add(g, &samples[i]);
            zeros[i] = g.iter().filter(|g| Sign::of(**g) == Sign::Zero).count() as u32;
        }
        let given = [("samples", bytes(&samples)), ("dx", bytes(&dx)), ("health", bytes(&health))];
        let sum = floats(&alone(&plan, &plan.shared.sum, n, &given, "sum"));
        assert_bits(&format!("{input}: sum"), &sum, climb.sum());
        let counted = alone(&plan, &plan.shared.sum, n, &given, "zero_gradients");
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(&counted), zeros, "{input}");

        // Of signs and nothing else.
        let mut sums = sum.clone();
        sums.iter_mut().zip([0.0, -0.0, 1e-41, -1e-41, 1e-30, -1e30]).for_each(|(s, v)| *s = v);
        let mut climb = Climb::new(before.clone());
        climb.add(&sums, &samples[0]);
        let given = [("samples", bytes(&samples)), ("sum", bytes(&sums)), ("perturbation", bytes(&before))];
        let after = floats(&alone(&plan, &plan.shared.step, n, &given, "perturbation"));
        climb.step(EPS, STEP);
        assert_bits(&format!("{input}: step"), &after, climb.perturbation());
        assert_bits("a new sum", &floats(&alone(&plan, &plan.shared.step, n, &given, "sum")), &vec![0.0; len]);

        let mut x0 = rng.images(n * len);
        let last = x0.len() - 1;
        (x0[0], x0[last]) = (f32::NAN, f32::INFINITY);
        let bounds = [0.1_f32.to_bits(), 0.9_f32.to_bits(), 0, 0];
        let given = [("bounds", bytes(&bounds)), ("x0", bytes(&x0)), ("perturbation", bytes(&after))];
        let x = floats(&alone(&plan, &plan.shared.apply, n, &given, "x"));
        let want: Vec<f32> = x0.chunks(len).flat_map(|x0| put_on(x0, &after, (0.1, 0.9))).collect();
        assert!(x[0].is_nan() && want[0].is_nan(), "{input}: NaN became {}", x[0]);
        assert_bits(&format!("{input}: images"), &x[1..], &want[1..]);
    }
}

/// The sum that goes on from chunk to chunk is the sum of all.
#[test]
fn a_sum_goes_on_where_the_chunk_before_left_it() {
    let mut rng = Rng::new(8);
    let plan = Plan::new(&digits(), &Target::of(gpu()).unwrap()).unwrap();
    let (n, len) = (50, 64);
    let dx = rng.vec(n * len, Rng::normal);
    let samples = vec![Sample { direction: 1.0, ..Sample::default() }; n];
    let mut climb = Climb::new(vec![0.0; len]);
    dx.chunks(len).for_each(|g| climb.add(g, &samples[0]));
    for size in [1, 7, 49, 50] {
        let mut sum = vec![0.0_f32; len];
        for part in dx.chunks(size * len) {
            let n = part.len() / len;
            let given = [("samples", bytes(&samples[..n])), ("dx", bytes(part)), ("sum", bytes(&sum))];
            sum = floats(&alone(&plan, &plan.shared.sum, n, &given, "sum"));
        }
        assert_bits(&format!("chunks of {size}"), &sum, climb.sum());
    }
}

/// Whole attacks with any batch and any budget: the same perturbation, images, figures.
#[test]
fn the_batch_changes_no_bit() {
    let (images, labels) = data(150);
    let net = Network::new(gpu(), digits()).unwrap();
    for attack in [
        Attack::uap(EPS),
        Attack::uap(0.2).loss(Loss::Margin).targets(Targets::Next).steps(4),
        Attack::uap(0.2).targets(Targets::Random).seed(3).quantise(false).attack_all(true).steps(3),
    ] {
        let whole = attack.run(&net, &images, &labels).unwrap();
        assert!(whole.success.iter().any(|s| *s), "nothing succeeds");
        for batch in [1, 7, 64] {
            assert_eq!(whole, attack.run(&cut(batch), &images, &labels).unwrap(), "batches of {batch}");
        }
        // Read a part at a time, and delivered a part at a time.
        for held in [1, 40, 150] {
            let mut source = |r: Range<usize>| Ok(images[r.start * 64..r.end * 64].to_vec());
            let fitted = attack.fit(&cut(64), &labels, held, &mut source, &mut |_| true).unwrap();
            assert_bits("perturbation", &fitted.values, whole.perturbation.as_ref().unwrap());
            for (from, to) in [(0, 1), (1, 60), (60, 150)] {
                let part = attack.clone().first_id(from as u64).perturbation(fitted.part(from..to));
                let part = part.run(&net, &images[from * 64..to * 64], &labels[from..to]).unwrap();
                assert_bits("delivered", &part.adversarial, &whole.adversarial[from * 64..to * 64]);
                assert_eq!(part.success, whole.success[from..to]);
                assert_eq!(part.steps_taken, whole.steps_taken[from..to]);
                assert_eq!(part.zero_gradients, whole.zero_gradients[from..to]);
            }
        }
    }
}

/// NaN and infinity in one image add nothing, mark that image, and leave the sum as if it were not there.
#[test]
fn a_poisoned_sample_does_not_poison_the_sum() {
    let (images, labels) = data(30);
    let all = samples(&labels);
    let reference = Reference::new(digits()).unwrap();
    let engines: [&dyn Engine; 3] = [&Network::new(gpu(), digits()).unwrap(), &cut(4), &reference];
    for (at, poison) in [(0, f32::NAN), (13, f32::INFINITY), (29, f32::NAN)] {
        let without = |values: &[f32]| [&values[..at * 64], &values[(at + 1) * 64..]].concat();
        let mut sick = images.clone();
        sick[at * 64..(at + 1) * 64].fill(poison);
        let others: Vec<Sample> = (0..30).filter(|i| *i != at).map(|i| all[i]).collect();
        for engine in engines {
            let out = fit(engine, &sick, &of(&all, Loss::CrossEntropy, 5));
            let clean = fit(engine, &without(&images), &of(&others, Loss::CrossEntropy, 5));
            assert_bits("beside a poisoned sample", &out.values, &clean.values);
            assert!(!out.health[at].is_healthy(), "sample {at} is not marked");
            assert_eq!(out.zero_gradients[at], 0);
            for (i, health) in out.health.iter().enumerate() {
                assert!(i == at || *health == Health::default(), "sample {i}: {health:?}");
            }
        }
    }
    // A whole attack: marked, delivered as it was given, its neighbours as without it.
    let net = Network::new(gpu(), digits()).unwrap();
    let mut sick = images.clone();
    sick[5 * 64] = f32::NAN;
    for attack in [Attack::uap(EPS), Attack::uap(EPS).attack_all(true)] {
        let out = attack.run(&net, &sick, &labels).unwrap();
        let rest = attack.run(&net, &[&images[..320], &images[384..]].concat(), &[&labels[..5], &labels[6..]].concat());
        let rest = rest.unwrap();
        assert_eq!(out.perturbation, rest.perturbation);
        assert_bits("neighbours", &out.adversarial[384..], &rest.adversarial[320..]);
        assert!(!out.health[5].is_healthy() && !out.success[5] && out.steps_taken[5] == 0);
    }
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let n = values.len() as f64;
    values.map(f64::from).sum::<f64>() / n
}

/// Untargeted it climbs the labels' loss, targeted it descends the targets'; every image moves by one and the same perturbation,
/// no further than eps, and what is delivered is 8 bits within the ball.
#[test]
fn directions_ball_and_delivery() {
    let (images, labels) = data(200);
    let net = Network::new(gpu(), digits()).unwrap();
    let clean = net.logits(&images).unwrap().logits;
    let loss = |logits: &[f32], classes: &[i64]| -> f64 {
        let one = |(z, y): (&[f32], &i64)| {
            let top = z.iter().fold(f32::MIN, |m, z| m.max(*z));
            (z.iter().map(|z| (z - top).exp()).sum::<f32>()).ln() + top - z[*y as usize]
        };
        mean(logits.chunks(10).zip(classes).map(one))
    };
    let away = Attack::uap(0.2).run(&net, &images, &labels).unwrap();
    let aim = vec![3; 200];
    let towards = Attack::uap(0.2).targets(Targets::Classes(aim.clone())).run(&net, &images, &labels).unwrap();
    let (before, after) = (loss(&clean, &labels), loss(&away.adversarial_logits, &labels));
    assert!(after > before + 0.5, "labels' loss from {before} to {after}");
    let (before, after) = (loss(&clean, &aim), loss(&towards.adversarial_logits, &aim));
    assert!(after < before - 1.0, "targets' loss from {before} to {after}");
    for (i, success) in towards.success.iter().enumerate() {
        assert_eq!(*success, towards.attacked[i] && argmax(&towards.adversarial_logits[i * 10..][..10]) == 3);
        assert!(labels[i] != 3 || !towards.attacked[i]);
    }

    for out in [&away, &towards] {
        let d = out.perturbation.as_ref().unwrap();
        assert!(d.iter().all(|d| d.abs() <= 0.2) && d.iter().any(|d| d.abs() == 0.2));
        for i in (0..200).filter(|i| out.attacked[*i]) {
            let x0 = &out.clean[i * 64..][..64];
            for (x, (x0, want)) in out.adversarial[i * 64..][..64].iter().zip(x0.iter().zip(put_on(x0, d, (0.0, 1.0))))
            {
                let k = x * 255.0;
                assert!((k - k.round()).abs() < 1e-4, "{x} is off the grid");
                assert!((x - x0).abs() <= 51.0 / 255.0 + 1e-6 && (x - want).abs() <= 0.5 / 255.0 + 1e-6);
            }
        }
    }
    let floats = Attack::uap(0.2).quantise(false).run(&net, &images, &labels).unwrap();
    assert_eq!(floats.perturbation, away.perturbation);
    for i in (0..200).filter(|i| floats.attacked[*i]) {
        let want = put_on(&images[i * 64..][..64], away.perturbation.as_ref().unwrap(), (0.0, 1.0));
        assert_bits("one perturbation for all", &floats.adversarial[i * 64..][..64], &want);
    }
}

/// Wrong when clean: no part in the sum, and delivered as given, unless all are attacked.
#[test]
fn what_is_wrong_when_clean_takes_no_part() {
    let (images, labels) = data(40);
    let net = Network::new(gpu(), digits()).unwrap();
    let mut wrong = labels.clone();
    (0..40).step_by(4).for_each(|i| wrong[i] = (labels[i] + 1) % 10);
    let pick = |keep: &dyn Fn(usize) -> bool| -> (Vec<f32>, Vec<i64>) {
        let rows: Vec<usize> = (0..40).filter(|i| keep(*i)).collect();
        (rows.iter().flat_map(|i| &images[i * 64..][..64]).copied().collect(), rows.iter().map(|i| wrong[*i]).collect())
    };
    let out = Attack::uap(EPS).run(&net, &images, &wrong).unwrap();
    let (right, of_right) = pick(&|i| i % 4 != 0);
    assert_eq!(out.perturbation, Attack::uap(EPS).run(&net, &right, &of_right).unwrap().perturbation);
    for i in 0..40 {
        let same = out.adversarial[i * 64..][..64] == out.clean[i * 64..][..64];
        assert_eq!((same, out.attacked[i], out.steps_taken[i]), (i % 4 == 0, i % 4 != 0, if same { 0 } else { 10 }));
    }
    let all = Attack::uap(EPS).attack_all(true).run(&net, &images, &wrong).unwrap();
    assert_ne!(all.perturbation, out.perturbation);
    assert!(all.adversarial[..64] != all.clean[..64] && !all.success[0]);
    // Nobody to attack: nothing to fit.
    let (left, of_left) = pick(&|i| i % 4 == 0);
    let none = Attack::uap(EPS).run(&net, &left, &of_left).unwrap();
    assert_eq!((none.perturbation, none.adversarial), (Some(vec![0.0; 64]), none.clean));
    let nothing = Attack::uap(EPS).run(&net, &[], &[]).unwrap();
    assert!(nothing.is_empty());
}

/// Classes to aim at are each sample's own, and so is its place in the set. Who is at its target takes no part.
#[test]
fn samples_keep_their_targets_and_places_where_they_are_read_in_parts() {
    let (images, labels) = data(40);
    let net = Network::new(gpu(), digits()).unwrap();
    let target = |i: usize| match i % 4 {
        0 => labels[i],
        1 => -1,
        _ => (labels[i] + (i as i64 % 9) + 1) % 10,
    };
    let attack =
        |rows: &[usize]| Attack::uap(EPS).steps(4).targets(Targets::Classes(rows.iter().map(|i| target(*i)).collect()));
    let all: Vec<usize> = (0..40).collect();
    let whole = attack(&all).run(&net, &images, &labels).unwrap();
    let want = whole.perturbation.as_ref().unwrap();
    let fit = |held: usize, images: &[f32]| {
        let mut source = |r: Range<usize>| Ok(images[r.start * 64..r.end * 64].to_vec());
        attack(&all).fit(&net, &labels, held, &mut source, &mut |_| true)
    };
    for held in [1, 7] {
        assert_bits("perturbation", &fit(held, &images).unwrap().values, want);
    }
    let away: Vec<usize> = all.iter().copied().filter(|i| i % 4 != 0).collect();
    let given: Vec<f32> = away.iter().flat_map(|i| &images[i * 64..][..64]).copied().collect();
    let theirs: Vec<i64> = away.iter().map(|i| labels[*i]).collect();
    let without = attack(&away).run(&net, &given, &theirs).unwrap();
    assert_bits("without those at their targets", without.perturbation.as_ref().unwrap(), want);
    assert!((0..40).step_by(4).all(|i| whole.steps_taken[i] == 0 && !whole.attacked[i]));
    let mut wrong = images.clone();
    wrong[23 * 64 + 5] = 1.5;
    assert!(fit(7, &wrong).unwrap_err().to_string().contains("sample 23: pixel value 1.5"));
}

/// From and to buffers of the device: the bits of slices, however they are cut.
#[test]
fn buffers_give_the_bits_of_slices() {
    use signstep::wgpu::{self, BufferUsages as Usage};
    let (images, labels) = data(50);
    let gpu = gpu();
    let buffer = |usage| {
        let size = 4 * images.len() as u64;
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let (given, made) = (buffer(Usage::COPY_SRC | Usage::COPY_DST), buffer(Usage::COPY_SRC | Usage::COPY_DST));
    gpu.queue().write_buffer(&given, 0, bytemuck::cast_slice(&images));
    let read = || -> Vec<f32> {
        let staging = buffer(Usage::COPY_DST | Usage::MAP_READ);
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&made, 0, &staging, 0, 4 * images.len() as u64);
        gpu.queue().submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |r| r.expect("mapped"));
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("polled");
        let view = staging.get_mapped_range(..).expect("mapped");
        bytemuck::pod_collect_to_vec(&view)
    };
    for attack in [Attack::uap(EPS).steps(6), Attack::uap(0.2).quantise(false).targets(Targets::Next).steps(3)] {
        let slices = attack.run(&Network::new(gpu, digits()).unwrap(), &images, &labels).unwrap();
        for batch in [50, 9] {
            let out = attack.run_buffers(&cut(batch), &given, &labels, &made).unwrap();
            assert_bits("adversarial", &read(), &slices.adversarial);
            let empty = Outcome { clean: vec![], adversarial: vec![], linf: vec![], l2: vec![], ..slices.clone() };
            assert_eq!(out, empty, "batches of {batch}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_cancelling_works() {
    use signstep::wgpu;
    let (images, labels) = data(12);
    let net = Network::new(gpu(), digits()).unwrap();
    let usage = |attack: Attack| attack.run(&net, &images, &labels).unwrap_err().to_string();
    assert!(usage(Attack::uap(0.1).in_norm(signstep::Norm::L2)).contains("uap is for linf alone"));
    assert!(usage(Attack::uap(0.1).early_stop(true)).contains("stop early"));
    assert!(usage(Attack::uap(0.1).restarts(2)).contains("2 restarts"));
    assert!(usage(Attack::uap(0.1).random_start(true)).contains("no random start"));
    let own = signstep::attack::Own { id: 0, eps: 0.1, step_size: 0.1 };
    assert!(usage(Attack::uap(0.1).each(vec![own; 12])).contains("an eps for each image"));
    assert!(usage(Attack::ifgsm(0.1).perturbation(vec![0.0; 64])).contains("takes no perturbation"));
    for (values, word) in [(vec![0.0; 63], "63 values"), (vec![0.2; 64], "outside of eps"), (vec![f32::NAN; 64], "NaN")]
    {
        let error = Attack::uap(0.1).perturbation(values).run(&net, &images, &labels).unwrap_err();
        assert!(matches!(&error, Error::Data { .. }) && error.to_string().contains(word), "{error}");
    }
    let mut source = |r: Range<usize>| Ok(images[r.start * 64..r.end * 64].to_vec());
    let wrong = Attack::ifgsm(0.1).fit(&net, &labels, 5, &mut source, &mut |_| true).unwrap_err();
    assert!(wrong.to_string().contains("no perturbation to fit"), "{wrong}");
    // Before anything runs: stopped at once, it would say that it was cancelled.
    let endless = Attack::uap(0.1).steps(u32::MAX);
    let fitted = endless.fit(&net, &labels, 5, &mut source, &mut |_| false).unwrap_err();
    let run = endless.run_with(&net, &images, &labels, &mut |_| false).unwrap_err();
    let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 12 * 64 * 4, usage, mapped_at_creation: false };
    let [from, to] = [(); 2].map(|()| net.gpu().device().create_buffer(&descriptor));
    let buffers = endless.run_buffers_with(&net, &from, &labels, &to, &mut |_| false).unwrap_err();
    let all = samples(&labels);
    let engines: [&dyn Engine; 2] = [&net, &Reference::new(digits()).unwrap()];
    let by_hand = engines.map(|engine| {
        let fitted = engine.fit(&of(&all, Loss::CrossEntropy, u32::MAX), &mut source, &mut |_| false).unwrap_err();
        [fitted, engine.iterate(&Job::new(&images, &all, u32::MAX), &mut |_| false).unwrap_err()]
    });
    for error in [fitted, run, buffers].iter().chain(by_hand.as_flattened()) {
        assert!(error.to_string().contains("4294967295 steps are more than can be counted"), "{error}");
    }
    let mut all = samples(&labels);
    all[3].eps = 0.1;
    let mut fits = |samples: &[Sample]| net.fit(&of(samples, Loss::CrossEntropy, 1), &mut source, &mut |_| true);
    assert!(fits(&all).unwrap_err().to_string().contains("sample 3: one perturbation"));
    let short = net.fit(&of(&all[..3], Loss::CrossEntropy, 1), &mut |_| Ok(vec![0.5; 64]), &mut |_| true);
    assert!(matches!(short, Err(Error::Data { .. })));
    for net in [net, cut(5)] {
        let mut told = 0;
        let stopped = Attack::uap(0.1).run_with(&net, &images, &labels, &mut |n| {
            told += n;
            n == 0
        });
        assert_eq!((stopped.unwrap_err(), told > 0), (Error::Cancelled, true));
        let mut told = 0;
        let out = Attack::uap(0.1).run_with(&net, &images, &labels, &mut |n| {
            told += n;
            true
        });
        assert_eq!(told, out.unwrap().sample_steps());
    }
}

fn recorded() -> Value {
    serde_json::from_str(include_str!("oracle/uap.json")).unwrap()
}

fn numbers(v: &Value) -> Vec<f32> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// From each of PyTorch's perturbations, the sum of all gradients is PyTorch's within f32's reach, and the next perturbation is
/// the same wherever that sum is far enough from zero to have a sign.
#[test]
fn every_step_is_that_of_pytorch() {
    let case = &recorded()["cases"][0];
    let (images, labels) = data(450);
    let net = Network::new(gpu(), digits()).unwrap();
    let clean = net.logits(&images).unwrap().logits;
    let right: Vec<usize> = (0..450).filter(|&i| argmax(&clean[i * 10..][..10]) as i64 == labels[i]).collect();
    let all: Vec<Sample> =
        right.iter().map(|&i| Sample { class: labels[i] as u32, direction: 1.0, ..Sample::default() }).collect();
    assert_eq!(right.len() as u64, case["attacked"].as_u64().unwrap());
    let mut unsure = 0;
    for step in 0..10 {
        let [from, to] = [step, step + 1].map(|t| numbers(&case["perturbations"][t]));
        let at: Vec<f32> = right.iter().flat_map(|&i| put_on(&images[i * 64..][..64], &from, (0.0, 1.0))).collect();
        let seen = net.loss_gradient(&at, &all, Loss::CrossEntropy).unwrap();
        let mut climb = Climb::new(from);
        seen.gradient.chunks(64).zip(&all).for_each(|(g, s)| climb.add(g, s));
        let want = numbers(&case["sums"][step]);
        let top = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let wide: Vec<f64> = want.iter().map(|v| f64::from(*v)).collect();
        // Both sum 449 gradients in f32.
        assert_close(&format!("step {step}: sum"), climb.sum(), &wide, 1e-5 * f64::from(top), 0.0);
        climb.step(EPS, STEP);
        for (i, (got, to)) in climb.perturbation().iter().zip(&to).enumerate() {
            if want[i].abs() > 1e-5 * top {
                assert!((got - to).abs() <= 1e-6, "step {step}, value {i}: {got} and {to}");
            } else {
                unsure += 1;
            }
        }
    }
    assert!(unsure < 20, "{unsure} sums of 640 are too near zero to tell anything");
}

/// The whole way, on the device and on the CPU: within half a point of PyTorch's success rate in float.
#[test]
fn success_is_that_of_pytorch() {
    let (images, labels) = data(450);
    let net = Network::new(gpu(), digits()).unwrap();
    let reference = Reference::new(digits()).unwrap();
    for (i, case) in recorded()["cases"].as_array().unwrap().iter().enumerate() {
        let targets = case["target"].as_i64().map_or(Targets::None, |t| Targets::Classes(vec![t; 450]));
        let attack =
            Attack::uap(EPS).step_size(STEP).targets(targets).loss(case["loss"].as_str().unwrap().parse().unwrap());
        let engines: &[&dyn Engine] = if i == 0 { &[&net, &reference] } else { &[&net] };
        for engine in engines {
            let out = attack.run(*engine, &images, &labels).unwrap();
            let count = |flags: &[bool]| flags.iter().filter(|f| **f).count() as f64;
            let attacked = count(&out.attacked);
            let [got, want] =
                [count(&out.success_float), case["successes"].as_f64().unwrap()].map(|n| 100.0 * n / attacked);
            println!("{} {}: {got:.1} %, PyTorch {want:.1} %", case["loss"], case["target"]);
            assert_eq!(Some(attacked), case["attacked"].as_f64());
            assert!((got - want).abs() <= 0.5, "{got} and {want}");
        }
    }
}
