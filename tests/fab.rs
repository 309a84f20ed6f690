//! FAB: its ways to a plane against those of its authors, its kernels against their f32 twin by bits, and what a whole attack
//! promises.

mod common;

use common::*;
use safetensors::SafeTensors;
use signstep::attack::{Attack, Engine, Job, Loss, Method, Norm, Rule, Sample, State, Trail};
use signstep::model::{Dims, Layer};
use signstep::reference::{Walk, Way};
use signstep::{Model, Network, Options, Reference, Targets, weights};

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

fn digits() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn data(n: usize) -> (Vec<f32>, Vec<i64>) {
    let tensors = SafeTensors::deserialize(include_bytes!("../weights/digits.safetensors")).unwrap();
    let images = tensors.tensor("images").unwrap().data()[..n * 64].iter().map(|b| f32::from(*b) / 255.0).collect();
    let labels = tensors.tensor("labels").unwrap();
    let bytes = labels.data().len() / labels.shape()[0];
    (images, labels.data().chunks_exact(bytes).take(n).map(|b| i64::from(b[0])).collect())
}

/// Samples that differ in class, radius, start and in what is a success.
fn samples(labels: &[i64], norm: Norm, steps: u32) -> Vec<Sample> {
    let sample = |(i, y): (usize, &i64)| Sample {
        class: (*y as u32 + 1 + i as u32 % 9) % 10,
        id: i as u32,
        restart: 1,
        start: u32::from(i % 2 == 1),
        eps: if norm == Norm::L2 { 0.3 + 0.3 * (i % 5) as f32 } else { 0.04 + 0.07 * (i % 5) as f32 },
        direction: -1.0,
        label: *y as u32,
        aimed: u32::from(i % 3 == 2),
        steps,
        ..Sample::default()
    };
    labels.iter().enumerate().map(sample).collect()
}

fn job<'a>(norm: Norm, images: &'a [f32], samples: &'a [Sample], steps: u32) -> Job<'a> {
    Job { rule: Rule::Fab(norm), loss: Loss::Difference, seed: 5, ..Job::new(images, samples, steps) }
}

fn size(norm: Norm, x: &[f32], x0: &[f32]) -> f64 {
    let moves = x.iter().zip(x0).map(|(x, x0)| (f64::from(*x) - f64::from(*x0)).abs());
    if norm == Norm::L2 { moves.map(|d| d * d).sum::<f64>().sqrt() } else { moves.fold(0.0, f64::max) }
}

/// f32 sums of up to 300 products against float64: values within 2e-6 of at most 1 where the plane is reached well within the box.
/// Near the box's far corner only small |w| are left to move, and a rounding of the sum moves them far: there what is compared is
/// where the way leads.
#[test]
fn ways_to_a_plane_are_the_authors() {
    let golden = SafeTensors::deserialize(include_bytes!("golden/fab.safetensors")).unwrap();
    let floats = |name: String| -> Vec<f32> { bytemuck::pod_collect_to_vec(golden.tensor(&name).unwrap().data()) };
    for (case, len) in [("small", 7), ("large", 300)] {
        let [x, w, height] = ["x", "w", "height"].map(|part| floats(format!("{case}.{part}")));
        for norm in NORMS {
            let want: Vec<f64> =
                bytemuck::pod_collect_to_vec(golden.tensor(&format!("{case}.{}", norm.name())).unwrap().data());
            let mut worst = (0.0_f64, 0.0_f64);
            for (i, height) in height.iter().enumerate() {
                let row = i * len..(i + 1) * len;
                let (x, w, want) = (&x[row.clone()], &w[row.clone()], &want[row]);
                let way = Way::to_plane(norm, x, w, *height, (0.0, 1.0));
                let got: Vec<f32> = (0..len).map(|i| way.at(i)).collect();
                let wide: Vec<f64> = got.iter().map(|d| f64::from(*d)).collect();
                let apart = |f: &dyn Fn(&[f64]) -> f64| (f(&wide) - f(want)).abs();
                let fall = |d: &[f64]| d.iter().zip(w).map(|(d, w)| d * f64::from(*w)).sum();
                worst.0 = worst.0.max(apart(&fall) / f64::from(height.abs()));
                worst.1 = wide.iter().zip(want).fold(worst.1, |m, (a, b)| m.max((a - b).abs()));
                assert!(x.iter().zip(&got).all(|(x, d)| (0.0..=1.0).contains(&(x + d))));
            }
            println!("{case} {norm:?}: where the way leads {:e}, values {:e}", worst.0, worst.1);
            assert!(worst.0 < 1e-6 && worst.1 < 2e-5, "{case} {norm:?}: {worst:?}");
        }
    }
}

/// Step by step, from places of the ball that differ: the twin is given the gradients, losses and classes that the network has at
/// the twin's own points, and must be where the network is, by bits, with what it remembers.
#[test]
fn every_step_is_that_of_the_twin() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(9);
    const STEPS: u32 = 100;
    for norm in NORMS {
        let samples = samples(&labels, norm, STEPS);
        let mut rng = Rng::new(3);
        let start: Vec<f32> = (0..images.len())
            .map(|i| (images[i] + 0.05 * samples[i / 64].start as f32 * rng.normal()).clamp(0.0, 1.0))
            .collect();
        let job = job(norm, &images, &samples, 1);
        let mut trail = Trail {
            x: start.clone(),
            memory: vec![0.0; images.len()],
            states: samples.iter().map(State::begin).collect(),
        };
        let rows = || samples.iter().zip(images.chunks(64)).zip(start.chunks(64));
        let mut walks: Vec<Walk<'_>> =
            rows().map(|((s, x0), x)| Walk::new(job.rule, *s, (0.0, 1.0), x0, x.to_vec())).collect();
        let seen = |walks: &[Walk<'_>]| {
            let at: Vec<f32> = walks.iter().flat_map(|w| w.point().to_vec()).collect();
            let z = net.logits(&at).unwrap().logits;
            let predicted: Vec<u32> = z.chunks(10).map(|z| signstep::attack::argmax(z) as u32).collect();
            (net.loss_gradient(&at, &samples, Loss::Difference).unwrap(), predicted)
        };
        for step in 0..STEPS {
            let (before, predicted) = seen(&walks);
            for (i, walk) in walks.iter_mut().enumerate() {
                walk.step(&before.gradient[i * 64..(i + 1) * 64], before.loss[i], predicted[i]);
            }
            let (after, predicted) = seen(&walks);
            for (i, walk) in walks.iter_mut().enumerate() {
                walk.look(after.loss[i], predicted[i]);
            }
            let out = net.iterate(&Job { from: Some(&trail), goes_on: true, ..job }, &mut |_| true).unwrap();
            let what = format!("{norm:?}, step {step}");
            let all = |of: &dyn Fn(&Walk<'_>) -> Vec<f32>| walks.iter().flat_map(of).collect::<Vec<f32>>();
            trail = out.trail.unwrap();
            assert_bits(&what, &trail.x, &all(&|w| w.point().to_vec()));
            assert_bits(&format!("{what}, nearest"), &out.images, &all(&|w| w.candidate().to_vec()));
            assert_bits(&format!("{what}, memory"), &trail.memory, &out.images);
            for (i, (state, walk)) in trail.states.iter().zip(&walks).enumerate() {
                assert_eq!(state, walk.state(), "{what}: state of sample {i}");
            }
            assert!(out.health.iter().all(|h| h.is_healthy()));
        }
        let found = trail.states.iter().filter(|s| s.found == 1).count();
        assert!(found >= 8, "{norm:?}: only {found} of 9 ever succeed");
    }
}

/// The step alone, on whatever a gradient can be: where all of it is zero nothing moves and nothing is NaN, where it is tiny or
/// huge the plane is still found, and what is broken is marked.
#[test]
fn gradients_of_any_size_and_images_of_any_length() {
    use signstep::kernel::run_alone;
    let mut rng = Rng::new(29);
    for len in [1, 63, 257, 3072] {
        let model = random_model(&mut Rng::new(0), Dims::new(len, 1, 1), vec![Layer::Flatten, linear("z", len, 2)]);
        let plan = signstep::Plan::new(&model, &signstep::Target::default()).unwrap();
        for norm in NORMS {
            let dispatch = &plan.rules.iter().find(|s| s.rule == Rule::Fab(norm)).unwrap().step;
            let id = |name: &str| dispatch.bindings.iter().find(|(n, _)| *n == name).unwrap().1;
            let samples: Vec<Sample> =
                samples(&[0, 1, 0, 1, 0, 1], norm, 9).into_iter().map(|s| Sample { class: 1 - s.label, ..s }).collect();
            let n = samples.len();
            let x0 = rng.images(n * len);
            let x: Vec<f32> = x0.iter().map(|x| (x + 0.1 * rng.normal()).clamp(0.0, 1.0)).collect();
            let dx: Vec<f32> = (0..n * len)
                .map(|i| match i / len {
                    0 => rng.normal(),
                    1 => rng.normal() * 1e-30,
                    2 => rng.normal() * 1e37,
                    3 => 0.0,
                    4 => rng.normal() * 1e-42,
                    _ => f32::from_bits(rng.word()),
                })
                .collect();
            let losses = [-0.7_f32, -1e-29, 3e37, 2.0, 1.0, -3.0];
            let states: Vec<State> =
                samples.iter().zip(losses).map(|(s, loss)| State { loss, ..State::begin(s) }).collect();
            let data = vec![
                (id("bounds"), bytemuck::cast_slice(&[0.0_f32, 1.0, 0.0, 0.0]).to_vec()),
                (id("samples"), bytemuck::cast_slice(&samples).to_vec()),
                (id("x0"), bytemuck::cast_slice(&x0).to_vec()),
                (id("x"), bytemuck::cast_slice(&x).to_vec()),
                (id("dx"), bytemuck::cast_slice(&dx).to_vec()),
                (id("states"), bytemuck::cast_slice(&states).to_vec()),
            ];
            let read = |name: &str| run_alone(gpu(), dispatch, &plan.resources, n as u32, &data, id(name)).unwrap();
            let got: Vec<f32> = bytemuck::pod_collect_to_vec(&read("x"));
            let health: Vec<u32> = bytemuck::pod_collect_to_vec(&read("health"));
            let zeros: Vec<u32> = bytemuck::pod_collect_to_vec(&read("zero_gradients"));
            for i in 0..n {
                let row = i * len..(i + 1) * len;
                let (x0, x, dx) = (&x0[row.clone()], &x[row.clone()], &dx[row.clone()]);
                let mut walk = Walk::new(Rule::Fab(norm), samples[i], (0.0, 1.0), x0, x.to_vec());
                walk.step(dx, losses[i], 0);
                let what = format!("{norm:?}, {len} values, sample {i}");
                assert_bits(&what, &got[row.clone()], walk.point());
                assert!(got[row].iter().all(|x| (0.0..=1.0).contains(x)), "{what}: out of bounds");
                let exponent = |g: &f32| (g.to_bits() >> 23) & 255;
                assert_eq!(zeros[i] as usize, dx.iter().filter(|g| exponent(g) == 0).count(), "{what}");
                assert_eq!(health[i], if dx.iter().any(|g| exponent(g) == 255) { 4 } else { 0 }, "{what}");
                if i == 3 || i == 4 {
                    // No direction: only the share of the clean image, a tenth of the way back.
                    let back = |(x, x0): (&f32, &f32)| x0.mul_add(0.1, x * 0.9);
                    let want: Vec<f64> = x.iter().zip(x0).map(back).map(f64::from).collect();
                    assert_close(&what, walk.point(), &want, 1e-6, 0.0);
                }
            }
        }
    }
}

/// In parts, alone, beside NaN, cut into small batches: the same bits.
#[test]
fn nothing_depends_on_neighbours_or_on_where_a_call_ends() {
    let (images, labels) = data(9);
    let net = Network::new(gpu(), digits()).unwrap();
    let cut = Network::with_options(gpu(), digits(), &Options { batch: Some(4), ..Options::default() }).unwrap();
    let iterate = |net: &Network, job: &Job<'_>| net.iterate(job, &mut |_| true).unwrap();
    const STEPS: u32 = 12;
    for norm in NORMS {
        let all = samples(&labels, norm, STEPS);
        let job = job(norm, &images, &all, STEPS);
        let whole = iterate(&net, &job);
        assert_bits(&format!("{norm:?}, cut"), &iterate(&cut, &job).images, &whole.images);
        let mut trail: Option<Trail> = None;
        let mut parts = Vec::new();
        for (steps, goes_on) in [(3, true), (4, true), (5, false)] {
            let out = iterate(&cut, &Job { steps, goes_on, from: trail.as_ref(), ..job });
            (trail, parts) = (out.trail, out.images);
        }
        assert_bits(&format!("{norm:?}, in parts"), &parts, &whole.images);
        for i in [0, 5, 8] {
            let image = &images[i * 64..(i + 1) * 64];
            let alone = iterate(&net, &Job { x0: image, samples: &all[i..=i], ..job });
            assert_bits(&format!("{norm:?}, {i} alone"), &alone.images, &whole.images[i * 64..(i + 1) * 64]);
            let mut beside = vec![f32::NAN; 3 * 64];
            beside[64..128].copy_from_slice(image);
            let out = iterate(&net, &Job { x0: &beside, samples: &[all[0], all[i], all[1]], ..job });
            assert_bits(&format!("{norm:?}, {i} beside NaN"), &out.images[64..128], &alone.images);
            assert!(out.health[1].is_healthy() && !out.health[0].is_healthy() && !out.health[2].is_healthy());
        }
        // What is given is in the ball, and the clean image or a success.
        let z = net.logits(&whole.images).unwrap().logits;
        for (i, s) in all.iter().enumerate() {
            let row = i * 64..(i + 1) * 64;
            let (x, x0) = (&whole.images[row.clone()], &images[row]);
            let far = size(norm, x, x0);
            assert!(far <= f64::from(s.eps) + 1e-6, "{norm:?}: sample {i} moved by {far}, eps {}", s.eps);
            let predicted = signstep::attack::argmax(&z[i * 10..(i + 1) * 10]) as u32;
            let succeeds = if s.aimed == 1 { predicted == s.class } else { predicted != s.label };
            assert!(x == x0 || succeeds, "{norm:?}: sample {i} is turned to {predicted}");
        }
    }
}

/// Both engines turn the same images, and what turns one is about as small.
#[test]
fn whole_attacks_agree_with_the_reference() {
    let (images, labels) = data(24);
    let (net, reference) = (Network::new(gpu(), digits()).unwrap(), Reference::new(digits()).unwrap());
    for (norm, eps) in [(Norm::Linf, 0.12), (Norm::L2, 0.8)] {
        let attack = Attack::fab_t(norm, eps).steps(20).classes(2).quantise(false);
        let here = attack.run(&net, &images, &labels).unwrap();
        let there = attack.run(&reference, &images, &labels).unwrap();
        let turned = |o: &signstep::Outcome| o.success.iter().filter(|s| **s).count();
        let apart = here.success.iter().zip(&there.success).filter(|(a, b)| a != b).count();
        assert!(turned(&here) > 4 && apart <= 1, "{norm:?}: {} and {}", turned(&here), turned(&there));
        for i in (0..24).filter(|&i| here.success[i] && there.success[i] && here.restart[i] == there.restart[i]) {
            let [a, b] = [&here, &there].map(|o| size(norm, &o.adversarial[i * 64..][..64], &images[i * 64..][..64]));
            assert!((a - b).abs() < 0.05 * b, "{norm:?}: sample {i} moved by {a} and {b}");
            assert!(a <= f64::from(eps) + 1e-6);
        }
    }
}

/// FAB looks for the smallest move, not for one that fills the ball.
#[test]
fn moves_are_smaller_than_the_ball() {
    let (images, labels) = data(40);
    let net = Network::new(gpu(), digits()).unwrap();
    let attack = Attack::fab_t(Norm::Linf, 0.3).steps(30).classes(1).quantise(false);
    let out = attack.run(&net, &images, &labels).unwrap();
    let moves: Vec<f32> = (0..40).filter(|&i| out.success[i]).map(|i| out.linf[i]).collect();
    let mean = moves.iter().sum::<f32>() / moves.len() as f32;
    assert!(moves.len() > 30 && mean < 0.2, "{} turned, by {mean} on average", moves.len());
    // With no ball at all everything is turned, and by no more than before.
    let free = Attack::fab_t(Norm::Linf, f32::INFINITY)
        .steps(30)
        .classes(1)
        .quantise(false)
        .run(&net, &images, &labels)
        .unwrap();
    for i in (0..40).filter(|&i| out.success[i]) {
        assert!(free.success[i] && free.linf[i] <= out.linf[i] + 1e-6, "sample {i}: {}", free.linf[i]);
    }
}

/// Further restarts begin elsewhere, and never lose what an earlier one found.
#[test]
fn restarts_begin_halfway_to_the_edge() {
    let (images, labels) = data(30);
    let net = Network::new(gpu(), digits()).unwrap();
    for (norm, eps) in [(Norm::Linf, 0.1), (Norm::L2, 0.6)] {
        let attack = Attack::fab_t(norm, eps).steps(5).classes(2).seed(1);
        let one = attack.run(&net, &images, &labels).unwrap();
        let three = attack.clone().restarts(3).run(&net, &images, &labels).unwrap();
        for i in 0..30 {
            assert!(!one.success[i] || three.success[i], "{norm:?}: restarts lose sample {i}");
        }
        let all: Vec<Sample> = samples(&labels, norm, 5).into_iter().map(|s| Sample { start: 1, ..s }).collect();
        let begun =
            net.iterate(&Job { steps: 0, goes_on: true, ..job(norm, &images, &all, 1) }, &mut |_| true).unwrap();
        for (i, s) in all.iter().enumerate() {
            let row = i * 64..(i + 1) * 64;
            let far = size(norm, &begun.trail.as_ref().unwrap().x[row.clone()], &images[row]);
            let half = 0.5 * f64::from(s.eps);
            assert!(
                far <= half * (1.0 + 1e-5) && far > 0.3 * half,
                "{norm:?}: sample {i} begins {far} away, eps {}",
                s.eps
            );
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let usage = |attack: Attack| attack.validate().unwrap_err().to_string();
    let fab = || Attack::fab_t(Norm::Linf, 0.1);
    assert!(fab().validate().is_ok() && Attack::fab_t(Norm::L2, f32::INFINITY).validate().is_ok());
    assert!(usage(fab().step_size(0.1)).contains("fab-t has no step size"));
    assert!(usage(fab().loss(Loss::CrossEntropy)).contains("fab-t cannot follow the loss ce"));
    assert!(usage(Attack::ifgsm(0.1).loss(Loss::Difference)).contains("ifgsm cannot follow the loss difference"));
    assert!(usage(fab().targets(Targets::Next)).contains("fab-t chooses its targets itself"));
    assert!(usage(fab().classes(0)).contains("one class or more"));
    assert!(usage(fab().restarts(2).random_start(false)).contains("all be the same"));
    assert!(usage(Attack::fab_t(Norm::L2, f32::INFINITY).restarts(2)).contains("finite eps"));
    assert_eq!((Method::FabT.default_steps(), Method::FabT.name()), (100, "fab-t"));
    let message = "nonsense".parse::<Loss>().unwrap_err().to_string();
    assert!(message.contains("dlr") && !message.contains("difference"), "{message}");

    let (images, labels) = data(2);
    let net = Network::new(gpu(), digits()).unwrap();
    let all = samples(&labels, Norm::Linf, 5);
    let wrong = Job { loss: Loss::Dlr, ..job(Norm::Linf, &images, &all, 5) };
    let message = net.iterate(&wrong, &mut |_| true).unwrap_err().to_string();
    assert!(message.contains("follows the difference of two logits"), "{message}");
}
