//! The same networks and the same attack on the CPU, in plain f64 loops: what the GPU is compared with, and what runs
//! where there is no GPU. Readable first; only the steps ([`Walk`]) are f32 and agree with the GPU bit for bit.
//!
//! Imports only `error`, `model`, `attack` and a number of `weights`. Imports run one way; a file imports only from
//! those above it:
//!
//! | file | what it is |
//! |---|---|
//! | `reference/values.rs` | values and sums as the kernels take them |
//! | `reference/normal.rs` | normal numbers as they make them |
//! | `reference/square.rs` | what the Square attack proposes |
//! | `reference/walk.rs` | one sample's way by any rule |
//! | `reference/fab.rs` | the steps of FAB on it |
//! | `reference/loss.rs` | losses and their seeds |
//! | `reference/layers.rs` | each layer's backward beside its forward |
//! | `reference/parallel.rs` | work on many samples, on all cores |
//! | `reference/network.rs` | [`Reference`]: one sample forward and backward |
//! | `reference/shared.rs` | one perturbation for all images |
//! | `reference/training.rs` | a batch in training mode |

mod fab;
mod layers;
mod loss;
mod network;
pub mod normal;
mod parallel;
mod shared;
mod square;
mod training;
mod values;
mod walk;

pub use fab::Way;
pub use network::Reference;
pub use shared::Climb;
pub use training::Training;
pub use values::Sign;
pub use walk::{Walk, random_start, step};

use crate::attack::{
    Engine, Fit, Gradient, Health, Iterated, Job, Logits, Loss, Perturbation, Rule, Sample, Source, Trail,
    check_samples,
};
use crate::error::{Error, Result};
use crate::model::Model;
use network::narrow;
use parallel::parallel;

/// Images that are classified without asking whether to go on.
const UNASKED: usize = 64;

impl Engine for Reference {
    fn model(&self) -> &Model {
        &self.model
    }

    fn logits(&self, images: &[f32]) -> Result<Logits> {
        self.logits_with(images, &mut |_| true)
    }

    fn logits_with(&self, images: &[f32], progress: &mut dyn FnMut(u64) -> bool) -> Result<Logits> {
        let n = self.count(images)?;
        let mut all = Logits { logits: Vec::new(), health: Vec::new() };
        for first in (0..n).step_by(UNASKED) {
            if !progress(0) {
                return Err(Error::Cancelled);
            }
            let count = UNASKED.min(n - first);
            for pass in parallel(count, |i| self.forward(self.image(images, first + i)).forget()) {
                all.logits.extend(narrow(&pass.logits));
                all.health.push(pass.health);
            }
        }
        Ok(all)
    }

    fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient> {
        let n = self.count(images)?;
        check_samples(samples, n, loss, &self.model)?;
        let mut all = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        for (one, _) in parallel(n, |i| self.look(self.image(images, i), &samples[i], (Rule::Sign, loss))) {
            all.gradient.extend(narrow(&one.gradient));
            all.loss.push(one.loss as f32);
            all.health.push(one.health);
        }
        Ok(all)
    }

    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated> {
        let n = self.count(job.x0)?;
        job.check(n, &self.model)?;
        let walk = |i: usize| {
            let (x0, sample) = (self.image(job.x0, i), &job.samples[i]);
            match job.from {
                None => {
                    let start = job.rule.start(x0, self.model.input, sample, job.seed, job.bounds);
                    Walk::new(job.rule, *sample, job.bounds, x0, start)
                }
                Some(trail) => {
                    let (x, memory, states) = trail.part(i..i + 1);
                    Walk::resume(job.rule, *sample, job.bounds, x0, (x, memory, states[0]))
                }
            }
            .in_images_of(self.model.input, job.seed)
        };
        let mut walks: Vec<Walk<'_>> = (0..n).map(walk).collect();
        let mut out =
            Iterated { zero_gradients: vec![0; n], health: vec![Health::default(); n], ..Iterated::default() };
        for _ in 0..job.steps {
            let seen = parallel(n, |i| self.look(walks[i].point(), &job.samples[i], (job.rule, job.loss)));
            for (i, (back, predicted)) in seen.iter().enumerate() {
                let gradient: Vec<f32> = narrow(&back.gradient).collect();
                out.zero_gradients[i] += gradient.iter().map(|g| u32::from(Sign::of(*g) == Sign::Zero)).sum::<u32>();
                walks[i].step(&gradient, back.loss as f32, *predicted);
                out.health[i].0 |= back.health.0;
            }
            if job.rule.looks_twice() {
                let seen = parallel(n, |i| self.glance(walks[i].point(), &job.samples[i], job.loss));
                for (i, (loss, health, predicted)) in seen.into_iter().enumerate() {
                    walks[i].look(loss as f32, predicted);
                    out.health[i].0 |= health.0;
                }
            }
            if !progress(n as u64) {
                return Err(Error::Cancelled);
            }
        }
        if job.rule.looks_at_the_last() && !job.goes_on {
            let seen = parallel(n, |i| self.look(walks[i].point(), &job.samples[i], (job.rule, job.loss)));
            for (i, (back, predicted)) in seen.iter().enumerate() {
                walks[i].step(&vec![0.0; self.model.input.len()], back.loss as f32, *predicted);
                out.health[i].0 |= back.health.0 & !Health::GRADIENT.0;
            }
        }
        let mut trail = Trail::default();
        for walk in &walks {
            out.images.extend_from_slice(walk.candidate());
            let (x, memory, state) = walk.parts();
            trail.x.extend_from_slice(x);
            trail.memory.extend_from_slice(memory);
            trail.states.push(state);
        }
        out.trail = job.goes_on.then_some(trail);
        Ok(out)
    }

    fn fit(
        &self,
        fit: &Fit<'_>,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        self.fit_to(fit, images, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::philox;
    use crate::model::{Conv2d, Dims, Layer, Linear, Shortcut};
    use crate::weights::{Tensors, from_layers};

    fn conv(name: &str, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Layer {
        let padding = kernel / 2;
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: true })
    }

    fn affine(name: &str, channels: usize) -> Layer {
        Layer::Affine { name: name.into(), channels }
    }

    /// Reproducible values in [−0.5, 0.5).
    fn noise(stream: u32, n: usize) -> Vec<f32> {
        (0..n).map(|i| (philox(3, [i as u32, 0, 0, stream])[0] >> 8) as f32 / 16_777_216.0 - 0.5).collect()
    }

    /// Values in [0, 1] that are whole multiples of 2⁻⁸, so that a small power of two can be added exactly.
    fn pixels(n: usize) -> Vec<f32> {
        noise(1000, n).iter().map(|v| ((v + 0.5) * 256.0).floor() / 256.0).collect()
    }

    fn with_noise(layers: Vec<Layer>, input: Dims) -> Reference {
        fn fill<'a>(layers: impl IntoIterator<Item = &'a Layer>, tensors: &mut Tensors) {
            for layer in layers {
                let mut add = |name: String, shape: Vec<usize>, scale: f32| {
                    let values = noise(tensors.len() as u32, shape.iter().product());
                    tensors.insert(name, (shape, values.iter().map(|v| v * scale).collect()));
                };
                match layer {
                    Layer::Conv2d(c) => {
                        let taps = c.inputs * c.kernel * c.kernel;
                        let scale = 4.0 / (taps as f32).sqrt();
                        add(format!("{}.weight", c.name), vec![c.outputs, c.inputs, c.kernel, c.kernel], scale);
                        add(format!("{}.bias", c.name), vec![c.outputs], 0.5);
                    }
                    Layer::Linear(l) => {
                        add(format!("{}.weight", l.name), vec![l.outputs, l.inputs], 4.0 / (l.inputs as f32).sqrt());
                        add(format!("{}.bias", l.name), vec![l.outputs], 0.5);
                    }
                    Layer::Affine { name, channels } => {
                        add(format!("{name}.weight"), vec![*channels], 2.0);
                        add(format!("{name}.bias"), vec![*channels], 0.5);
                    }
                    Layer::Residual { .. } => fill(layer.inner(), tensors),
                    _ => {}
                }
            }
        }
        let mut tensors = Tensors::new();
        fill(&layers, &mut tensors);
        Reference::new(from_layers(layers, input, tensors).unwrap()).unwrap()
    }

    /// Every kind of layer, odd sides, both strides, overlapping windows.
    fn all_layers() -> (Vec<Layer>, Dims) {
        let layers = vec![
            Layer::Normalise { mean: vec![0.4, 0.5, 0.3], std: vec![0.2, 0.25, 0.3] },
            conv("c1", 3, 8, 3, 1),
            Layer::Relu,
            Layer::Residual {
                body: vec![conv("c2", 8, 8, 3, 1), Layer::Relu, conv("c3", 8, 8, 1, 1)],
                shortcut: Shortcut::Identity,
            },
            Layer::Relu,
            Layer::MaxPool { size: 3, stride: 2, padding: 1 },
            Layer::Residual { body: vec![conv("c4", 8, 16, 3, 2)], shortcut: Shortcut::Subsample { added: 8 } },
            Layer::Relu,
            Layer::Residual {
                body: vec![conv("c5", 16, 12, 4, 2)],
                shortcut: Shortcut::Projection(vec![conv("p", 16, 12, 2, 2)]),
            },
            Layer::AvgPool { size: 3, stride: 1, padding: 1 },
            // Pre-activation, alone and at the head of a body.
            affine("n1", 12),
            Layer::Relu,
            Layer::Residual {
                body: vec![affine("n2", 12), Layer::Relu, conv("c6", 12, 12, 3, 1)],
                shortcut: Shortcut::Identity,
            },
            Layer::Relu,
            Layer::MaxPool { size: 2, stride: 1, padding: 0 },
            Layer::GlobalAvgPool,
            Layer::Flatten,
            Layer::Linear(Linear { name: "l1".into(), inputs: 12, outputs: 12, bias: true }),
            Layer::Relu,
            Layer::Linear(Linear { name: "l2".into(), inputs: 12, outputs: 5, bias: true }),
        ];
        (layers, Dims::new(3, 11, 9))
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x = pixels(input.len());
        let h = 1.0 / 131_072.0; // x ± h is exact in f32
        for class in [0, 3] {
            let gradient = net.input_gradient_f64(&x, &[class]).unwrap();
            let scale = gradient.iter().fold(0.0_f64, |a, g| a.max(g.abs()));
            assert!(scale > 1e-3, "the network is dead: {scale}");
            let loss = |x: &[f32]| loss::cross_entropy(&net.logits_f64(x).unwrap(), class as usize).0;
            let mut moved = x.clone();
            for i in 0..x.len() {
                moved[i] = x[i] + h;
                let above = loss(&moved);
                moved[i] = x[i] - h;
                let below = loss(&moved);
                moved[i] = x[i];
                let slope = (above - below) / (2.0 * f64::from(h));
                let difference = (slope - gradient[i]).abs();
                assert!(difference <= 1e-6 * scale, "pixel {i}: slope {slope}, gradient {}", gradient[i]);
            }
        }
    }

    #[test]
    fn a_small_targeted_step_lowers_the_target_loss_and_an_untargeted_one_raises_it() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x0 = pixels(input.len());
        for direction in [1.0, -1.0] {
            let sample = Sample { class: 2, eps: 1e-3, step_size: 1e-3, direction, ..Sample::default() };
            let job = Job::new(&x0, std::slice::from_ref(&sample), 1);
            let out = net.iterate(&job, &mut |_| true).unwrap();
            let loss = |x: &[f32]| net.input_gradient(x, &[2]).unwrap().loss[0];
            assert!((loss(&out.images) - loss(&x0)) * direction > 0.0);
            assert_eq!((out.zero_gradients[0], out.health[0]), (0, Health::default()));
        }
    }

    #[test]
    fn samples_do_not_see_each_other() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let len = input.len();
        let mut x = [pixels(len), pixels(len), noise(7, len).iter().map(|v| v + 0.5).collect()].concat();
        x[len] = f32::NAN;
        let sample = |class| Sample { class, eps: 0.1, step_size: 0.05, direction: -1.0, ..Sample::default() };
        let samples = [sample(0), sample(1), Sample { step_size: 0.0, ..sample(2) }];
        let mut reports = Vec::new();
        let job = Job::new(&x, &samples, 3);
        let all = net
            .iterate(&job, &mut |n| {
                reports.push(n);
                true
            })
            .unwrap();
        assert_eq!(reports, [3, 3, 3]);
        assert!(all.health[0].is_healthy() && all.health[2].is_healthy());
        assert!(all.health[1].0 & Health::ACTIVATION.0 != 0);
        assert_eq!(all.images[2 * len..], x[2 * len..]);
        let alone = net.iterate(&Job { x0: &x[..len], samples: &samples[..1], ..job }, &mut |_| true).unwrap();
        assert_eq!(alone.images, all.images[..len]);
        assert_eq!(net.logits(&x[..len]).unwrap().logits, net.logits(&x[..2 * len]).unwrap().logits[..5]);
    }

    #[test]
    fn requests_that_do_not_fit_are_refused() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x = pixels(input.len());
        assert!(net.logits(&x[1..]).unwrap_err().to_string().contains("3×11×9"));
        assert!(net.logits(&[]).unwrap().logits.is_empty());
        assert!(net.input_gradient(&x, &[5]).unwrap_err().to_string().contains("sample 0: class 5"));
        assert!(net.input_gradient(&x, &[0, 1]).unwrap_err().to_string().contains("2 for 1 images"));
        let samples = &[Sample { eps: 1.0, step_size: 1.0, direction: 1.0, ..Sample::default() }];
        let job = Job::new(&x, samples, 9);
        assert_eq!(net.iterate(&job, &mut |_| false), Err(Error::Cancelled));
        let mut model = net.model().clone();
        model.params.remove("c3");
        assert!(Reference::new(model).unwrap_err().to_string().contains("c3: has no parameters"));
        let mut model = net.model().clone();
        model.layers.push(Layer::BatchNorm { name: "b".into(), channels: 5, eps: 1e-5 });
        assert!(Reference::new(model).unwrap_err().to_string().contains("b: batch norm must be folded"));
    }

    #[test]
    fn overflow_is_marked_where_it_arises() {
        let l = Layer::Linear(Linear { name: "l".into(), inputs: 1, outputs: 2, bias: true });
        let tensors = Tensors::from([
            ("l.weight".into(), (vec![2, 1], vec![f32::MAX, 0.0])),
            ("l.bias".into(), (vec![2], vec![0.0; 2])),
        ]);
        let net = Reference::new(from_layers(vec![l], Dims::new(1, 1, 1), tensors).unwrap()).unwrap();
        let health = |x: f32| net.logits(&[x]).unwrap().health[0];
        assert_eq!((health(1.0), health(2.0)), (Health::default(), Health::LOGITS));
        assert_eq!(health(f32::NAN).0, Health::ACTIVATION.0 | Health::LOGITS.0);
    }
}
