//! The step kernel against its f32 reference: equal bits over everything a gradient and a pixel can be.

mod common;

use common::*;
use signstep::attack::Sample;
use signstep::kernel::run_alone;
use signstep::model::{Dims, Layer};
use signstep::reference::{Sign, step};
use signstep::{Plan, Target};

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
                samples.push(Sample { class: 0, eps, step_size, direction });
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
                class: 0,
                eps: rng.range(0, 80) as f32 / 255.0,
                step_size: rng.unit() * 0.1,
                direction: if rng.range(0, 1) == 1 { 1.0 } else { -1.0 },
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
