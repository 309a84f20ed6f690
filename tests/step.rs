//! The step kernel against its f32 reference: equal bits over everything a gradient and a pixel can be.

mod common;

use common::*;
use signstep::attack::Sample;
use signstep::kernel::run_alone;
use signstep::model::{Dims, Layer};
use signstep::reference::{Sign, random_start, step};
use signstep::{Plan, Storage, Target};

/// Runs `sign_step` for samples of `len` pixels; gives the new x, zero counts and health marks.
fn on_device(len: usize, samples: &[Sample], bounds: (f32, f32), x: &[f32], x0: &[f32], dx: &[f32]) -> [Vec<u32>; 3] {
    let input = Dims::new(len, 1, 1);
    let model = random_model(&mut Rng::new(0), input, vec![Layer::Flatten, linear("z", len, 2)]);
    let plan = Plan::new(&model, &Target::default()).unwrap();
    let id = |name: &str| plan.step.bindings.iter().find(|(n, _)| *n == name).unwrap().1;
    let data = vec![
        (id("bounds"), bytemuck::cast_slice(&[bounds.0, bounds.1, 0.0, 0.0]).to_vec()),
        (id("samples"), bytemuck::cast_slice(samples).to_vec()),
        (id("x0"), bytemuck::cast_slice(x0).to_vec()),
        (id("dx"), bytemuck::cast_slice(dx).to_vec()),
        (id("x"), bytemuck::cast_slice(x).to_vec()),
    ];
    ["x", "zero_gradients", "health"].map(|name| {
        let bytes = run_alone(gpu(), &plan.step, &plan.resources, samples.len() as u32, &data, id(name)).unwrap();
        bytemuck::pod_collect_to_vec(&bytes)
    })
}

fn compare(len: usize, samples: &[Sample], bounds: (f32, f32), x: &[f32], x0: &[f32], dx: &[f32]) {
    let [got, zeros, health] = on_device(len, samples, bounds, x, x0, dx);
    for (n, sample) in samples.iter().enumerate() {
        let (mut zero, mut marked) = (0, 0);
        for i in n * len..(n + 1) * len {
            let (want, sign) = step(x[i], x0[i], dx[i], sample, bounds);
            assert_eq!(
                got[i],
                want.to_bits(),
                "sample {n}, x {:e}, x0 {:e}, gradient {:e} ({:#x}), {sample:?}: {:e} for {want:e}",
                x[i],
                x0[i],
                dx[i],
                dx[i].to_bits(),
                f32::from_bits(got[i])
            );
            zero += u32::from(sign == Sign::Zero);
            marked |= u32::from(sign == Sign::Broken);
        }
        assert_eq!(zeros[n], zero, "zero gradients of sample {n}");
        assert_eq!(health[n], 4 * marked, "health of sample {n}");
    }
}

const GRADIENTS: [f32; 18] = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-40,
    -1e-40,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    1e-20,
    -1e-20,
    1.0,
    -1.0,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    -f32::NAN,
];

#[test]
fn every_gradient_at_every_kind_of_pixel() {
    let mut x0 = Vec::new();
    let mut dx = Vec::new();
    for pixel in [0.0, 1.0, 0.5, 1.0 / 255.0, 254.0 / 255.0, 100.0 / 255.0] {
        for g in GRADIENTS {
            x0.push(pixel);
            dx.push(g);
        }
    }
    let len = x0.len();
    let mut samples = Vec::new();
    for eps in [0.0, 0.5 / 255.0, 8.0 / 255.0, 0.3, f32::INFINITY] {
        for step_size in [0.0, 2.0 / 255.0, 0.75] {
            for direction in [1.0, -1.0] {
                samples.push(Sample { eps, step_size, direction, ..Sample::default() });
            }
        }
    }
    let repeat = |v: &[f32]| v.repeat(samples.len());
    // First from the clean pixel, then from the edge of the ball on either side.
    for moved in [0.0, 1.0, -1.0] {
        let x: Vec<f32> = samples
            .iter()
            .flat_map(|s| x0.iter().map(move |x| if moved == 0.0 { *x } else { (x + moved * s.eps).clamp(0.0, 1.0) }))
            .collect();
        compare(len, &samples, (0.0, 1.0), &x, &repeat(&x0), &repeat(&dx));
    }
    compare(len, &samples, (-2.0, 3.0), &repeat(&x0), &repeat(&x0), &repeat(&dx));
}

#[test]
fn random_pixels_and_odd_lengths() {
    let mut rng = Rng::new(7);
    for len in [1, 63, 64, 65, 192, 3072] {
        let samples: Vec<Sample> = (0..9)
            .map(|_| Sample {
                eps: rng.range(0, 80) as f32 / 255.0,
                step_size: rng.unit() * 0.1,
                direction: if rng.range(0, 1) == 1 { 1.0 } else { -1.0 },
                ..Sample::default()
            })
            .collect();
        let x0 = rng.images(len * samples.len());
        let x: Vec<f32> = x0
            .iter()
            .enumerate()
            .map(|(i, x)| (x + (rng.unit() - 0.5) * samples[i / len].eps).clamp(0.0, 1.0))
            .collect();
        // Every bit pattern: normals, subnormals, infinities and NaN as they come.
        let dx = rng.vec(x0.len(), |r| f32::from_bits(r.word()));
        compare(len, &samples, (0.0, 1.0), &x, &x0, &dx);
    }
}

/// Runs `random_start` for samples of `len` pixels; gives x, which was 9 everywhere.
fn started_on_device(
    len: usize,
    storage: Storage,
    samples: &[Sample],
    seed: u64,
    bounds: (f32, f32),
    x0: &[f32],
) -> Vec<f32> {
    let input = Dims::new(1, len, 1);
    let model = random_model(&mut Rng::new(0), input, vec![Layer::Flatten, linear("z", len, 2)]);
    let plan = Plan::new(&model, &Target { storage, ..Target::default() }).unwrap();
    let id = |name: &str| plan.start.bindings.iter().find(|(n, _)| *n == name).unwrap().1;
    let words = [bounds.0.to_bits(), bounds.1.to_bits(), seed as u32, (seed >> 32) as u32];
    let data = vec![
        (id("bounds"), bytemuck::cast_slice(&words).to_vec()),
        (id("samples"), bytemuck::cast_slice(samples).to_vec()),
        (id("x0"), bytemuck::cast_slice(x0).to_vec()),
        (id("x"), bytemuck::cast_slice(&vec![9.0_f32; x0.len()]).to_vec()),
    ];
    let bytes = run_alone(gpu(), &plan.start, &plan.resources, samples.len() as u32, &data, id("x")).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

fn starting(id: u32, restart: u32, eps: f32) -> Sample {
    Sample { id, restart, start: 1, eps, ..Sample::default() }
}

#[test]
fn random_starts_have_the_references_bits() {
    let mut rng = Rng::new(17);
    for storage in [Storage::Buffer, Storage::Texture] {
        for len in [1, 2, 3, 4, 5, 63, 64, 65, 255, 257, 3072] {
            for seed in [0, 7, 1 << 32, 0xfedc_ba98_7654_3210, u64::MAX] {
                let epses = [8.0 / 255.0, 0.3, 0.0, 1.0, 1e-30, 1e-37, 1e-45, f32::MIN_POSITIVE, f32::MAX, 100.0];
                let mut samples: Vec<Sample> =
                    epses.iter().map(|&eps| starting(rng.word(), rng.range(0, 9) as u32, eps)).collect();
                samples.push(starting(0, 0, 0.1));
                samples.push(starting(u32::MAX, u32::MAX, 0.1));
                samples.push(Sample { start: 0, ..starting(3, 4, 0.1) });
                let x0 = rng.images(len * samples.len());
                for bounds in [(0.0, 1.0), (f32::MIN, f32::MAX)] {
                    let got = started_on_device(len, storage, &samples, seed, bounds, &x0);
                    for (n, sample) in samples.iter().enumerate() {
                        let row = n * len..(n + 1) * len;
                        if sample.start == 0 {
                            assert!(got[row].iter().all(|x| *x == 9.0), "a sample that asks for none was moved");
                            continue;
                        }
                        let want = random_start(&x0[row.clone()], sample, seed, bounds);
                        assert_bits(&format!("{len} pixels, seed {seed}, {sample:?}"), &got[row.clone()], &want);
                        for (x, x0) in got[row.clone()].iter().zip(&x0[row]) {
                            let (lo, hi) = (bounds.0.max(x0 - sample.eps), bounds.1.min(x0 + sample.eps));
                            assert!(lo <= *x && *x <= hi, "{x:e} outside of {lo:e} to {hi:e}");
                        }
                    }
                }
            }
        }
    }
}

/// u of every start of a sample with one unit of room: x = x0 + 2u − 1.
fn uniform(len: usize, seed: u64, id: u32, restart: u32) -> Vec<f64> {
    let x = started_on_device(len, Storage::Buffer, &[starting(id, restart, 1.0)], seed, (-8.0, 8.0), &vec![0.0; len]);
    x.iter().map(|x| (f64::from(*x) + 1.0) / 2.0).collect()
}

#[test]
fn random_starts_are_uniform_and_every_sample_and_restart_has_its_own() {
    let len = 20_000;
    let mut all: Vec<Vec<f64>> = Vec::new();
    for (seed, id, restart) in [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1 << 31, 0)]
    {
        let u = uniform(len, seed, id, restart);
        assert!(u.iter().all(|u| (0.0..1.0).contains(u) && (u * f64::from(1 << 24)).fract() == 0.0));
        let mean = u.iter().sum::<f64>() / len as f64;
        let variance = u.iter().map(|u| (u - 0.5).powi(2)).sum::<f64>() / len as f64;
        // Five standard deviations of the two estimates: 5·√(1/12/n) and 5·√(1/180/n).
        assert!((mean - 0.5).abs() < 0.0102, "mean {mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.00264, "variance {variance}");
        let (least, most) = u.iter().fold((1.0_f64, 0.0_f64), |(a, b), u| (a.min(*u), b.max(*u)));
        // Each misses with probability (1 − 0.001)^20000 = 2e-9.
        assert!(least < 0.001 && most > 0.999, "{least} to {most}");
        // Twenty drawers of 1,000 each, ± 6 deviations of 31.
        let mut drawers = [0; 20];
        u.iter().for_each(|u| drawers[(u * 20.0) as usize] += 1);
        assert!(drawers.iter().all(|n| (815..1185).contains(n)), "{drawers:?}");
        for other in &all {
            let product = |(a, b): (&f64, &f64)| (a - 0.5) * (b - 0.5) * 12.0;
            let correlation = u.iter().zip(other).map(product).sum::<f64>() / len as f64;
            // Six deviations of 1/√n.
            assert!(correlation.abs() < 0.0425, "correlation {correlation}");
        }
        all.push(u);
    }
}

#[test]
fn eps_and_batch_do_not_enter_the_random_numbers() {
    let len = 65;
    let x0 = vec![0.5; len];
    let alone = |eps: f32| started_on_device(len, Storage::Buffer, &[starting(11, 2, eps)], 3, (0.0, 1.0), &x0);
    // A power of two scales without rounding.
    let half: Vec<f32> = alone(0.25).iter().map(|x| 0.5 + (x - 0.5) / 2.0).collect();
    let exact = alone(0.125).iter().zip(&half).all(|(a, b)| (a - b).abs() <= f32::EPSILON / 2.0);
    assert!(exact, "eps scales the start and changes nothing else");
    let samples: Vec<Sample> = [4, 11, 0, 11, 9].map(|id| starting(id, 2, 0.25)).to_vec();
    let batch = started_on_device(len, Storage::Buffer, &samples, 3, (0.0, 1.0), &vec![0.5; 5 * len]);
    for place in [1, 3] {
        assert_bits("at any place", &batch[place * len..(place + 1) * len], &alone(0.25));
    }
    assert_ne!(batch[..len], batch[len..2 * len]);
}
