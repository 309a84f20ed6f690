//! One perturbation for all images: what an engine is asked to fit ([`Fit`]), what comes of it, and how it is put on an
//! image.

use super::health::Health;
use super::loss::Loss;
use super::sample::{Sample, check_moves, check_samples, check_steps};
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

/// A perturbation to be fitted to samples, which have one radius and one step size.
#[derive(Clone, Copy, Debug)]
pub struct Fit<'a> {
    /// `[N]`: class, direction, eps and step size count. The sum climbs the loss of those that ascend, and descends
    /// that of the others.
    pub samples: &'a [Sample],
    /// What is followed.
    pub loss: Loss,
    /// Steps of the perturbation.
    pub steps: u32,
    /// Smallest and largest value of a pixel.
    pub bounds: (f32, f32),
}

impl Fit<'_> {
    /// What an engine checks before it runs.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        check_samples(self.samples, self.samples.len(), self.loss, model)?;
        check_moves(self.samples, self.bounds)?;
        check_steps(self.steps, model)?;
        let Some(first) = self.samples.first() else { return Ok(()) };
        for (i, s) in self.samples.iter().enumerate() {
            if s.eps.to_bits() != first.eps.to_bits() || s.step_size.to_bits() != first.step_size.to_bits() {
                return Err(Error::Usage(format!("sample {i}: one perturbation has one eps and one step size")));
            }
        }
        Ok(())
    }
}

/// Where the clean images of a fit come from: `[n, C, H, W]` of the samples of a range. Asked again in every step,
/// unless all fit on the device at once.
pub type Source<'a> = dyn FnMut(Range<usize>) -> Result<Vec<f32>> + 'a;

/// One perturbation for all images, and what fitting it met in each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Perturbation {
    /// `[C, H, W]`, pixel units; no value larger than eps.
    pub values: Vec<f32>,
    /// `[N]`: steps that the sample took part in. Empty, as the two below, where the samples are not those it was
    /// fitted to.
    pub steps_taken: Vec<u64>,
    /// `[N]`: pixels without a sign, added up over all steps.
    pub zero_gradients: Vec<u64>,
    /// `[N]`: a marked sample added nothing from then on.
    pub health: Vec<Health>,
}

impl From<Vec<f32>> for Perturbation {
    /// For other samples than those it was fitted to.
    fn from(values: Vec<f32>) -> Self {
        Perturbation { values, ..Perturbation::default() }
    }
}

impl Perturbation {
    /// Nothing yet, for `n` samples of images with `len` values.
    pub(crate) fn zero(len: usize, n: usize) -> Self {
        Perturbation {
            values: vec![0.0; len],
            steps_taken: vec![0; n],
            zero_gradients: vec![0; n],
            health: vec![Health::default(); n],
        }
    }

    /// The same for some of the samples.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        fn some<T: Copy>(all: &[T], range: &Range<usize>) -> Vec<T> {
            all.get(range.clone()).unwrap_or_default().to_vec()
        }
        Perturbation {
            values: self.values.clone(),
            steps_taken: some(&self.steps_taken, &range),
            zero_gradients: some(&self.zero_gradients, &range),
            health: some(&self.health, &range),
        }
    }

    /// What fitting it met in sample `i`: steps, pixels without a sign, health.
    pub(crate) fn met(&self, i: usize) -> (u64, u64, Health) {
        let at = |all: &[u64]| all.get(i).copied().unwrap_or(0);
        (at(&self.steps_taken), at(&self.zero_gradients), self.health.get(i).copied().unwrap_or_default())
    }
}

/// The image `x0` with a perturbation on it: each value `x0 + perturbation` within the bounds, in f32 as on the device
/// (`shaders/shared.wgsl`). What is no number stays none.
pub fn put_on(x0: &[f32], perturbation: &[f32], (lo, hi): (f32, f32)) -> Vec<f32> {
    // Devices may flush subnormals.
    let flushed = |v: f32| if v.is_normal() || !v.is_finite() { v } else { 0.0 };
    let one = |(&x, &d): (&f32, &f32)| if x.is_finite() { flushed(x + d).max(lo).min(hi) } else { x };
    x0.iter().zip(perturbation).map(one).collect()
}
