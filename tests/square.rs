//! The Square attack: the kernel against its f32 twin by bits, query by query; alone, in batches and in parts; inside the ball;
//! and what it turns.

mod common;

use common::*;
use signstep::attack::{Engine, Job, Loss, Method, Rule, Sample, State, Trail};
use signstep::model::{Dims, Layer};
use signstep::reference::Walk;
use signstep::{Attack, Error, Model, Network, Norm, Options, Reference, Targets, weights};

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

fn digits() -> Model {
    weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap()
}

fn data(n: usize) -> (Vec<f32>, Vec<i64>) {
    let mut source = signstep::data::digits().unwrap();
    (source.images(0..n).unwrap(), source.labels[..n].to_vec())
}

/// Samples that differ in everything: two of three targeted, radii, starts, restarts.
fn samples(norm: Norm, labels: &[i64], classes: u32, steps: u32) -> Vec<Sample> {
    let one = |(id, label): (usize, &i64)| {
        let label = *label as u32;
        let targeted = id % 3 == 1;
        Sample {
            class: if targeted { (label + 1 + id as u32 % (classes - 1)) % classes } else { label },
            id: id as u32,
            restart: (id / 4) as u32,
            start: u32::from(id % 4 != 3),
            eps: match norm {
                Norm::Linf => (10 + 9 * (id % 5)) as f32 / 255.0,
                _ => 0.3 + 0.2 * (id % 5) as f32,
            },
            direction: if targeted { -1.0 } else { 1.0 },
            label,
            aimed: u32::from(targeted && id.is_multiple_of(2)),
            steps,
            stretch: if id % 5 == 2 { 2 * steps } else { steps },
            ..Sample::default()
        }
    };
    labels.iter().enumerate().map(one).collect()
}

/// Runs query by query, the twin beside it with the losses and predictions that the network had; gives what is delivered.
fn beside_its_twin(net: &Network, what: &str, images: &[f32], job: Job<'_>) -> (Vec<f32>, Vec<State>) {
    let (input, one) = (net.model().input, net.model().input.len());
    let steps = job.samples[0].steps;
    let mut walks: Vec<Walk<'_>> = job
        .samples
        .iter()
        .zip(images.chunks(one))
        .map(|(s, x0)| {
            let start = job.rule.start(x0, input, s, job.seed, job.bounds);
            Walk::new(job.rule, *s, job.bounds, x0, start).in_images_of(input, job.seed)
        })
        .collect();
    let mut trail: Option<Trail> = None;
    for step in 0..steps {
        let what = format!("{what}, query {step}");
        let out = net.iterate(&Job { steps: 1, from: trail.as_ref(), goes_on: true, ..job }, &mut |_| true).unwrap();
        let next = out.trail.unwrap();
        for (i, walk) in walks.iter_mut().enumerate() {
            let seen = next.states[i];
            let best = walk.state().best;
            let had_found = walk.state().found != 0;
            walk.step(&[], seen.loss, seen.predicted);
            assert_eq!(&seen, walk.state(), "{what}: state of sample {i}");
            assert_bits(&format!("{what}: proposal of sample {i}"), &next.x[i * one..(i + 1) * one], walk.point());
            assert_bits(
                &format!("{what}: memory of sample {i}"),
                &next.memory[i * one..(i + 1) * one],
                walk.candidate(),
            );
            assert_bits(&format!("{what}: image of sample {i}"), &out.images[i * one..(i + 1) * one], walk.candidate());
            assert!(step == 0 || seen.found != 0 || seen.best >= best, "{what}: sample {i} became worse");
            assert!(!had_found || seen.found != 0, "{what}: a success of sample {i} was lost");
        }
        trail = Some(next);
    }
    // The last look.
    let last = net.iterate(&Job { steps: 0, from: trail.as_ref(), ..job }, &mut |_| true).unwrap();
    let states = walks.iter().map(|w| *w.state()).collect();
    for (i, walk) in walks.iter().enumerate() {
        // What the twin would deliver is the best before the look, or what was looked at.
        let delivered = &last.images[i * one..(i + 1) * one];
        let is = |image: &[f32]| delivered.iter().zip(image).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(is(walk.candidate()) || is(walk.point()), "{what}: sample {i} delivers another image");
    }
    (last.images, states)
}

#[test]
fn the_kernel_proposes_what_its_twin_proposes() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(12);
    const STEPS: u32 = 48;
    for norm in NORMS {
        for loss in [Loss::Margin, Loss::CrossEntropy] {
            let samples = samples(norm, &labels, 10, STEPS);
            let job = Job { rule: Rule::Square(norm), loss, seed: 11, ..Job::new(&images, &samples, STEPS) };
            let what = format!("{norm:?} {loss:?}");
            let (one_by_one, states) = beside_its_twin(&net, &what, &images, job);
            let whole = net.iterate(&job, &mut |_| true).unwrap();
            assert_bits(&format!("{what}: in one call"), &whole.images, &one_by_one);
            assert_eq!(whole.zero_gradients, [0; 12], "{what}: no gradient is looked at");
            // Otherwise little was compared.
            let found = states.iter().filter(|s| s.found != 0).count();
            assert!((1..12).contains(&found), "{what}: {found} of 12 found");
        }
    }
}

/// Colours, sides that differ, more channels than a word and than four words have bits, one pixel.
#[test]
fn images_of_any_shape() {
    for (c, h, w) in [(3, 9, 14), (40, 5, 6), (150, 3, 4), (300, 1, 2), (1, 1, 1), (2, 33, 17), (1, 20, 21)] {
        let input = Dims::new(c, h, w);
        let layers = vec![Layer::Flatten, linear("z", input.len(), 4)];
        let net = Network::new(gpu(), random_model(&mut Rng::new(5), input, layers)).unwrap();
        let images = Rng::new(6).images(5 * input.len());
        let labels = [0, 1, 2, 3, 0];
        for norm in NORMS {
            let samples = samples(norm, &labels, 4, 30);
            let job =
                Job { rule: Rule::Square(norm), loss: Loss::Margin, seed: 1 << 40, ..Job::new(&images, &samples, 30) };
            beside_its_twin(&net, &format!("{norm:?} {input}"), &images, job);
        }
    }
}

#[test]
fn nothing_depends_on_neighbours_or_on_where_a_call_ends() {
    let net = Network::new(gpu(), digits()).unwrap();
    let cut = Network::with_options(gpu(), digits(), &Options { batch: Some(4), ..Options::default() }).unwrap();
    let (images, labels) = data(9);
    const STEPS: u32 = 40;
    for norm in NORMS {
        let samples = samples(norm, &labels, 10, STEPS);
        let job = Job { rule: Rule::Square(norm), loss: Loss::Margin, seed: 3, ..Job::new(&images, &samples, STEPS) };
        let run = |net: &Network, job: &Job<'_>| net.iterate(job, &mut |_| true).unwrap().images;
        let whole = run(&net, &job);
        assert_bits(&format!("{norm:?}, cut"), &run(&cut, &job), &whole);
        let one = |v: &'_ [f32], i: usize| v[i * 64..(i + 1) * 64].to_vec();
        for (i, sample) in samples.iter().enumerate() {
            let (x0, sample) = (one(&images, i), [*sample]);
            assert_bits(
                &format!("{norm:?}, {i} alone"),
                &run(&net, &Job { x0: &x0, samples: &sample, ..job }),
                &one(&whole, i),
            );
        }
        // Elsewhere, beside NaN.
        let mut order: Vec<usize> = (0..9).map(|i| (i * 5 + 4) % 9).collect();
        order.extend([2, 7]);
        let mut x0: Vec<f32> = order.iter().flat_map(|&i| one(&images, i)).collect();
        let moved: Vec<Sample> = order.iter().map(|&i| samples[i]).collect();
        for place in [0, 3, 5] {
            x0[place * 64..(place + 1) * 64].fill(f32::NAN);
        }
        let got = run(&net, &Job { x0: &x0, samples: &moved, ..job });
        for (place, &i) in order.iter().enumerate().filter(|(place, _)| ![0, 3, 5].contains(place)) {
            assert_bits(&format!("{norm:?}, {i} at place {place}"), &one(&got, place), &one(&whole, i));
        }
        // In two calls.
        let first = net.iterate(&Job { steps: 17, goes_on: true, ..job }, &mut |_| true).unwrap().trail.unwrap();
        let rest = Job { steps: STEPS - 17, from: Some(&first), ..job };
        assert_bits(&format!("{norm:?}, in two calls"), &run(&net, &rest), &whole);
    }
}

/// The attack as a whole: inside ball and bounds, never worse than clean, better with more queries, found without gradients.
#[test]
fn what_is_delivered_lies_in_the_ball_and_more_queries_turn_more() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(450);
    for norm in NORMS {
        let eps = if norm == Norm::Linf { 0.2 } else { 1.2 };
        let mut robust = Vec::new();
        for steps in [1, 20, 200] {
            for quantise in [false, true] {
                let attack = Attack::square(norm, eps).steps(steps).quantise(quantise);
                let out = attack.run(&net, &images, &labels).unwrap();
                let (linf, l2) =
                    (out.linf.iter().fold(0.0, |a: f32, b| a.max(*b)), out.l2.iter().fold(0.0, |a: f32, b| a.max(*b)));
                let far = if norm == Norm::Linf { linf } else { l2 };
                assert!(far <= eps * (1.0 + 1e-6) && far > 0.9 * eps, "{norm:?}: {far} of {eps}");
                assert!(out.adversarial.iter().all(|x| (0.0..=1.0).contains(x)));
                assert!(out.zero_gradients.iter().all(|z| *z == 0));
                let clean = out.clean_correct.iter().filter(|c| **c).count() as f64 / 450.0;
                assert!(out.robust_accuracy() <= clean && out.robust_accuracy_float() <= clean);
                if !quantise {
                    robust.push(out.robust_accuracy());
                }
            }
        }
        println!("{norm:?}: robust accuracy {robust:?} after 1, 20 and 200 queries");
        // The first queries of another schedule are other queries, but there are many more of them.
        assert!(robust[0] > robust[1] && robust[1] > robust[2], "{norm:?}: {robust:?}");
    }
}

/// An infinitely sharp step between the image and the classes: gradients say nothing, queries do.
#[test]
fn it_finds_what_gradients_do_not_show() {
    // A ReLU far below zero everywhere near the clean images hides the way from gradients, not from squares as large as these.
    let input = Dims::new(1, 6, 6);
    let layers = vec![Layer::Flatten, linear("a", 36, 1), Layer::Relu, linear("z", 1, 2)];
    let mut model = random_model(&mut Rng::new(2), input, layers);
    let mut set = |name: &str, weight: Vec<f32>, bias: Vec<f32>| {
        let p = model.params.get_mut(name).unwrap();
        (p.weight, p.bias) = (weight, bias);
    };
    set("a", vec![1.0; 36], vec![-20.0]);
    set("z", vec![0.0, 1.0], vec![1.0, 0.0]);
    let net = Network::new(gpu(), model).unwrap();
    let images = vec![0.5; 4 * 36];
    let labels = [0; 4];
    let blind = Attack::pgd(Norm::Linf, 0.3).random_start(false).steps(50).run(&net, &images, &labels).unwrap();
    assert_eq!((blind.robust_accuracy(), blind.zero_gradients[0]), (1.0, 36 * 50));
    let seen = Attack::square(Norm::Linf, 0.3).steps(300).run(&net, &images, &labels).unwrap();
    assert_eq!(seen.robust_accuracy(), 0.0, "{:?}", seen.adversarial_logits);
}

#[test]
fn targets_are_reached_and_restarts_help() {
    let net = Network::new(gpu(), digits()).unwrap();
    let (images, labels) = data(100);
    let attack = |steps| Attack::square(Norm::Linf, 0.3).steps(steps).targets(Targets::Second);
    let hits = |a: Attack| a.run(&net, &images, &labels).unwrap().success.iter().filter(|s| **s).count();
    let (few, many, again) = (hits(attack(10)), hits(attack(200)), hits(attack(10).restarts(4)));
    println!("targeted: {few} of 100 after 10 queries, {many} after 200, {again} after 4 times 10");
    assert!(few < again && few < many && many > 30, "{few} {many} {again}");
}

/// The f64 reference takes the same way for as long as no rounding decides; its starts are the same to the bit.
#[test]
fn the_reference_attacks_alike() {
    let (images, labels) = data(40);
    let reference = Reference::new(digits()).unwrap();
    let net = Network::new(gpu(), digits()).unwrap();
    for norm in NORMS {
        let attack = Attack::square(norm, if norm == Norm::Linf { 0.2 } else { 1.0 }).steps(60).quantise(false);
        let want = attack.run(&reference, &images, &labels).unwrap();
        let got = attack.run(&net, &images, &labels).unwrap();
        let same = got.adversarial.chunks(64).zip(want.adversarial.chunks(64)).filter(|(a, b)| a == b).count();
        println!("{norm:?}: {same} of 40 images are the reference's");
        assert!(norm == Norm::L2 || same >= 36, "{norm:?}: {same} of 40 alike");
        assert!((got.robust_accuracy() - want.robust_accuracy()).abs() < 0.06);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let usage = |a: Attack, word: &str| match a.validate() {
        Err(Error::Usage(why)) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    usage(Attack::square(Norm::Linf, 0.1).step_size(0.1), "step size");
    usage(Attack::square(Norm::Linf, f32::INFINITY), "finite eps");
    assert!(Attack::square(Norm::Linf, 0.1).random_start(false).restarts(3).validate().is_ok());
    assert_eq!("square".parse::<Method>(), Ok(Method::Square));
    assert_eq!((Method::Square.default_steps(), Method::Square.default_loss()), (5000, Loss::Margin));
}
