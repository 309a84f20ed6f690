//! One perturbation for all images, bit for bit that of `shaders/shared.wgsl`.

use super::network::{Reference, narrow};
use super::parallel::parallel;
use super::values::{Sign, flushed, sound};
use crate::attack::{Engine, Fit, Perturbation, Rule, Sample, Source, put_on};
use crate::error::{Error, Result};

/// A perturbation on its way, and the sum of gradients that it follows next.
#[derive(Clone, Debug, PartialEq)]
pub struct Climb {
    perturbation: Vec<f32>,
    sum: Vec<f32>,
}

impl Climb {
    /// From a perturbation on; zero before the first step.
    pub fn new(perturbation: Vec<f32>) -> Self {
        let sum = vec![0.0; perturbation.len()];
        Climb { perturbation, sum }
    }

    /// Where it is.
    pub fn perturbation(&self) -> &[f32] {
        &self.perturbation
    }

    /// What it follows next.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// Adds the gradient of the next sample, of one in which neither NaN nor infinity arose.
    pub fn add(&mut self, gradient: &[f32], sample: &Sample) {
        for (sum, &g) in self.sum.iter_mut().zip(gradient) {
            let next = flushed(*sum + if sample.direction > 0.0 { sound(g) } else { -sound(g) });
            // What would overflow the sum is left out.
            if next.is_finite() {
                *sum = next;
            }
        }
    }

    /// One step along the sign of the sum, within the ball; a new sum begins.
    pub fn step(&mut self, eps: f32, step_size: f32) {
        for (d, sum) in self.perturbation.iter_mut().zip(&mut self.sum) {
            let step = match Sign::of(*sum) {
                Sign::Plus => step_size,
                Sign::Minus => -step_size,
                Sign::Zero | Sign::Broken => 0.0,
            };
            *d = flushed(*d + step).max(-eps).min(eps);
            *sum = 0.0;
        }
    }
}

/// Samples that are looked at together: their gradients wait in memory for their turn in the sum.
const TOGETHER: usize = 64;

impl Reference {
    pub(super) fn fit_to(
        &self,
        fit: &Fit<'_>,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        let (n, len) = (fit.samples.len(), self.model().input.len());
        fit.check(self.model())?;
        let mut out = Perturbation::zero(len, n);
        let Some(first) = fit.samples.first() else { return Ok(out) };
        let mut climb = Climb::new(vec![0.0; len]);
        for _ in 0..fit.steps {
            for from in (0..n).step_by(TOGETHER) {
                let range = from..n.min(from + TOGETHER);
                let x0 = images(range.clone())?;
                if x0.len() != range.len() * len {
                    return Err(Error::data("images", format!("{} values for {} images", x0.len(), range.len())));
                }
                let seen = parallel(range.len(), |at| {
                    let x = put_on(self.image(&x0, at), climb.perturbation(), fit.bounds);
                    self.look(&x, &fit.samples[from + at], (Rule::Sign, fit.loss)).0
                });
                for (i, back) in range.clone().zip(seen) {
                    out.steps_taken[i] += 1;
                    out.health[i].0 |= back.health.0;
                    if out.health[i].is_healthy() {
                        let gradient: Vec<f32> = narrow(&back.gradient).collect();
                        let zeros = gradient.iter().filter(|g| Sign::of(**g) == Sign::Zero).count();
                        out.zero_gradients[i] += zeros as u64;
                        climb.add(&gradient, &fit.samples[i]);
                    }
                }
                if !progress(range.len() as u64) {
                    return Err(Error::Cancelled);
                }
            }
            climb.step(first.eps, first.step_size);
        }
        out.values = climb.perturbation;
        Ok(out)
    }
}
