//! One perturbation for all images (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), found by steps along the sign of the sum of
//! all gradients, as Shafahi et al. 2020 (arXiv:1811.11304) find it.
//!
//! First it is fitted to all images together ([`Attack::fit`]), then it is put on each and delivered like any attack's images.
//! Here alone do images depend on each other. Gradients are added up in the order of the samples, so how these are cut into
//! chunks and batches changes no bit; which samples there are does.

use super::logits::argmax;
use super::run::{check_images, check_labels, look_at_clean};
use super::{Attack, Engine, Health, Logits, Loss, Sample, Targets};
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

/// A perturbation to be fitted to samples, which have one radius and one step size.
#[derive(Clone, Copy, Debug)]
pub struct Fit<'a> {
    /// `[N]`: class, direction, eps and step size count. The sum climbs the loss of those that ascend, and descends that of the
    /// others.
    pub samples: &'a [Sample],
    /// What is followed.
    pub loss: Loss,
    /// Steps of the perturbation.
    pub steps: u32,
    /// Smallest and largest value of a pixel.
    pub bounds: (f32, f32),
}

impl Fit<'_> {
    /// What an engine with a network of `classes` checks, but for what each sample must be.
    pub(crate) fn check(&self, classes: usize) -> Result<()> {
        let Some(first) = self.samples.first() else { return Ok(()) };
        for (i, s) in self.samples.iter().enumerate() {
            self.loss.check(classes, s.direction < 0.0)?;
            if s.eps.to_bits() != first.eps.to_bits() || s.step_size.to_bits() != first.step_size.to_bits() {
                return Err(Error::Usage(format!("sample {i}: one perturbation has one eps and one step size")));
            }
        }
        Ok(())
    }
}

/// Where the clean images of a fit come from: `[n, C, H, W]` of the samples of a range. Asked again in every step, unless all
/// fit on the device at once.
pub type Source<'a> = dyn FnMut(Range<usize>) -> Result<Vec<f32>> + 'a;

/// One perturbation for all images, and what fitting it met in each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Perturbation {
    /// `[C, H, W]`, pixel units; no value larger than eps.
    pub values: Vec<f32>,
    /// `[N]`: steps that the sample took part in. Empty, as the two below, where the samples are not those it was fitted to.
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

/// The samples that a perturbation is fitted to, and what is known of all.
#[derive(Debug, Default)]
pub(crate) struct Entrants {
    /// Their places among all samples, in rising order.
    pub(crate) rows: Vec<usize>,
    pub(crate) samples: Vec<Sample>,
    /// Of all samples, when clean.
    health: Vec<Health>,
}

impl Attack {
    /// Fits the perturbation of `uap` to images that are read a part at a time: `images` gives those of a range of samples, is
    /// asked for all of them first (at most `held` at a time), and again in each step for those that take part, unless these fit
    /// on the device at once. It must give the same whenever it is asked, and must not run the engine.
    ///
    /// Those that are attacked take part: right when clean (or [`Attack::attack_all`]), and not at their target already. What
    /// comes out is delivered by [`Attack::perturbation`], which [`Attack::run`] does by itself.
    ///
    /// # Errors
    /// As [`Attack::run_with`], those of `images`, and [`Error::Usage`] for another method.
    pub fn fit(
        &self,
        engine: &dyn Engine,
        labels: &[i64],
        held: usize,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        self.validate()?;
        if !self.method.shares_perturbation() {
            return Err(Error::Usage(format!("{} has no perturbation to fit", self.method.name())));
        }
        let model = engine.model();
        let one = model.input.len();
        check_labels(model, labels)?;
        let mut entrants = Entrants::default();
        for first in (0..labels.len()).step_by(held.max(1)) {
            let range = first..labels.len().min(first + held.max(1));
            let given = images(range.clone())?;
            check_images(model, &given, range.len())?;
            self.check_pixels(&given, one, first)?;
            let seen = look_at_clean(engine, &self.as_attacked(&given).0, progress)?;
            self.enter(&mut entrants, model, labels, range, &seen)?;
        }
        let Entrants { rows, samples, .. } = &entrants;
        let mut clean = |range: Range<usize>| -> Result<Vec<f32>> {
            let mut all = Vec::with_capacity(range.len() * one);
            for run in runs(&rows[range]) {
                all.extend(self.as_attacked(&images(run)?).0);
            }
            Ok(all)
        };
        let fitted = engine.fit(&self.fit_of(samples), &mut clean, progress)?;
        Ok(entrants.spread(fitted))
    }

    /// Adds to `entrants` those of the samples of `range` that take part; `seen` is what the network says of them when clean.
    pub(crate) fn enter(
        &self,
        entrants: &mut Entrants,
        model: &Model,
        labels: &[i64],
        range: Range<usize>,
        seen: &Logits,
    ) -> Result<()> {
        let mut part = self.clone().first_id(self.first_id.wrapping_add(range.start as u64));
        if let Targets::Classes(classes) = &self.targets {
            if classes.len() != labels.len() {
                return Err(Error::data("targets", format!("{} for {} samples", classes.len(), labels.len())));
            }
            part.targets = Targets::Classes(classes[range.clone()].to_vec());
        }
        let (k, labels) = (model.logits(), &labels[range.clone()]);
        let targets = part.resolve(labels, &seen.logits, k)?;
        for (i, row) in range.enumerate() {
            entrants.health.push(seen.health[i]);
            // A sample that is no sound image has no gradient to add.
            let is_sound = seen.health[i].is_healthy();
            let is_right = argmax(&seen.logits[i * k..(i + 1) * k]) as i64 == labels[i];
            if is_sound && (is_right || self.attack_all) && targets[i] != labels[i] {
                entrants.rows.push(row);
                entrants.samples.push(part.sample(i, labels[i], targets[i], None, 0));
            }
        }
        Ok(())
    }

    /// All steps of a perturbation.
    pub(crate) fn fit_of<'a>(&self, samples: &'a [Sample]) -> Fit<'a> {
        Fit { samples, loss: self.loss, steps: self.steps, bounds: self.engine_bounds() }
    }

    /// Whether a perturbation that was given can be put on images of so many values.
    pub(crate) fn check_perturbation(&self, len: usize) -> Result<()> {
        let Some(given) = &self.perturbation else { return Ok(()) };
        let fail = |detail: String| Err(Error::data("perturbation", detail));
        if given.values.len() != len {
            return fail(format!("{} values, but an image has {len}", given.values.len()));
        }
        match given.values.iter().position(|d| d.is_nan() || d.abs() > self.eps) {
            Some(i) => fail(format!("value {i} is {}, outside of eps {}", given.values[i], self.eps)),
            None => Ok(()),
        }
    }
}

impl Entrants {
    /// What was met in those that took part, among all samples.
    pub(crate) fn spread(&self, fitted: Perturbation) -> Perturbation {
        let mut all = Perturbation::zero(0, self.health.len());
        all.health.clone_from(&self.health);
        for (at, &row) in self.rows.iter().enumerate() {
            let (steps, zeros, health) = fitted.met(at);
            (all.steps_taken[row], all.zero_gradients[row]) = (steps, zeros);
            all.health[row].0 |= health.0;
        }
        Perturbation { values: fitted.values, ..all }
    }
}

/// Rows that follow each other, put together.
pub(crate) fn runs(rows: &[usize]) -> Vec<Range<usize>> {
    rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[0] + run.len()).collect()
}
