//! The numbers of the figures: success by size of the batch, and loss and success by iteration.

use super::batch::{Batch, Budget, Judged, Run, same_bits};
use super::mistakes::{self, Stop};
use super::rows::Bench;
use crate::attack::Sample;
use crate::error::Result;
use crate::reference;
use serde::{Deserialize, Serialize};

/// The largest batch of the figure.
const LARGEST: usize = 512;

/// Iterations of the second figure.
const ITERATIONS: u32 = 20;

/// The second figure looks at no more images than this.
pub(super) const WATCHED: usize = 128;

/// Success of one mechanism by size of the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// `own`, `training`, `shared`, `first`, `unnormalised`
    pub mechanism: String,
    /// Why there are no points, where there are none.
    pub missing: Option<String>,
    /// In ascending order of batches.
    pub points: Vec<Point>,
}

/// One run of all images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Images in a batch.
    pub batch: usize,
    /// All of them.
    pub samples: usize,
    /// Those that reach their targets.
    pub successes: usize,
    /// Whether the images are those of batches of one, bit for bit.
    pub same_bits: bool,
}

/// How one schedule of step sizes converges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// In words.
    pub schedule: String,
    /// Length of the step into each iterate but the first, `[T]`.
    pub step_sizes: Vec<f32>,
    /// Mean loss of the targets at each iterate, the clean images first, `[T + 1]`.
    pub loss: Vec<f64>,
    /// Share that reaches its target, `[T + 1]`.
    pub success_rate: Vec<f64>,
}

impl Bench<'_> {
    /// Success by size of the batch, 1, 2, 4, …, 512, as far as there are images.
    ///
    /// # Errors
    /// Those of the networks.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let net = self.gradients();
        let (images, budget) = (&self.images, &self.budget);
        let (eps, _) = self.l2();
        let l2 = Budget { eps, step_size: self.rate()?, ..*budget };
        let training = |part: &Batch| match self.training {
            Ok(training) => mistakes::summed(training, part, budget),
            Err(_) => Ok(Run::default()),
        };
        let shared = |part: &Batch| mistakes::shared(&net, part, budget);
        let first = |part: &Batch| mistakes::stop_together(self.engine, &net, part, budget, Stop::First);
        type BySize<'a> = &'a dyn Fn(usize) -> Result<Run>;
        let run: [(&str, Option<&str>, BySize<'_>); 5] = [
            ("own", None, &|size| self.own(images, size)),
            ("training", self.training.err(), &|size| images.each(size, training)),
            ("shared", None, &|size| images.each(size, shared)),
            ("first", None, &|size| images.each(size, first)),
            // Gradients are each image's own: the batch is nothing but the 1/N before them.
            ("unnormalised", None, &|size| mistakes::unnormalised(&net, images, &l2, size)),
        ];
        let mut lines = Vec::new();
        for (mechanism, missing, run) in run {
            let mut line = Line { mechanism: mechanism.into(), missing: missing.map(String::from), points: Vec::new() };
            let mut alone: Option<Vec<f32>> = None;
            let sizes = (0..).map(|power| 1 << power).take_while(|size| *size <= images.len().min(LARGEST));
            for size in sizes.filter(|_| missing.is_none()) {
                (self.tell)(&format!("figure, {mechanism}, batches of {size}"))?;
                let x = run(size)?.x;
                let successes = Judged::new(self.engine, &x, &images.targets)?.successes();
                let same = same_bits(&x, alone.as_ref().unwrap_or(&x));
                line.points.push(Point { batch: size, samples: images.len(), successes, same_bits: same });
                alone.get_or_insert(x);
            }
            lines.push(line);
        }
        Ok(lines)
    }

    /// Loss and success by iteration: constant steps, short and long, and steps that are halved.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn curves(&self) -> Result<Vec<Curve>> {
        let (eps, short) = (self.budget.eps, self.budget.step_size);
        // From the whole radius, halved every third iteration.
        let halving = |t: u32| eps / 2.0_f32.powi((t / 3).min(30) as i32);
        let watched: Vec<usize> = (0..self.images.len().min(WATCHED)).collect();
        let images = self.images.select(&watched);
        let schedules: [(String, &dyn Fn(u32) -> f32); 3] = [
            (format!("constant, {:.2}·eps", short / eps), &|_| short),
            ("constant, eps".into(), &|_| eps),
            ("from eps, halved every third iteration".into(), &halving),
        ];
        let mut curves = Vec::new();
        for (schedule, step_size) in schedules {
            (self.tell)(&format!("figure, steps {schedule}"))?;
            curves.push(self.curve(&images, schedule, step_size)?);
        }
        Ok(curves)
    }

    fn curve(&self, images: &Batch, schedule: String, step_size: &dyn Fn(u32) -> f32) -> Result<Curve> {
        let net = self.gradients();
        let mut x = images.x0.clone();
        let mut curve = Curve { schedule, step_sizes: Vec::new(), loss: Vec::new(), success_rate: Vec::new() };
        for t in 0..=ITERATIONS {
            let judged = Judged::new(self.engine, &x, &images.targets)?;
            curve.loss.push(judged.mean_loss());
            curve.success_rate.push(judged.successes() as f64 / images.len() as f64);
            if t == ITERATIONS {
                break;
            }
            let step_size = step_size(t);
            let sample = Sample { eps: self.budget.eps, step_size, direction: -1.0, ..Sample::default() };
            let g = net(&x, &images.targets)?.gradient;
            for ((x, x0), g) in x.iter_mut().zip(&images.x0).zip(&g) {
                *x = reference::step(*x, *x0, *g, &sample, self.budget.bounds).0;
            }
            curve.step_sizes.push(step_size);
        }
        Ok(curve)
    }
}
