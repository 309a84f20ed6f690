//! One perturbation for all images (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), found by steps along the sign of
//! the sum of all gradients, as Shafahi et al. 2020 (arXiv:1811.11304) find it.
//!
//! First it is fitted to all images together ([`Attack::fit`]), then it is put on each and delivered like any attack's
//! images. Here alone do images depend on each other. Gradients are added up in the order of the samples, so how these
//! are cut into chunks and batches changes no bit; which samples there are does.

use super::check::{check_images, check_labels};
use super::clean::look_at_clean;
use super::engine::{Engine, Logits};
use super::health::Health;
use super::logits::argmax;
use super::perturbation::{Perturbation, Source};
use super::sample::Sample;
use super::settings::Attack;
use super::targets::Targets;
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

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
    /// Fits the perturbation of `uap` to images that are read a part at a time: `images` gives those of a range of
    /// samples, is asked for all of them first (at most `held` at a time), and again in each step for those that take
    /// part, unless these fit on the device at once. It must give the same whenever it is asked, and must not run the
    /// engine.
    ///
    /// Those that are attacked take part: right when clean (or [`Attack::attack_all`]), and not at their target
    /// already. What comes out is delivered by [`Attack::perturbation`], which [`Attack::run`] does by itself.
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
        self.check_steps(model)?;
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

    /// Adds to `entrants` those of the samples of `range` that take part; `seen` is what the network says of them when
    /// clean.
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
        let targets = part.targets_of(labels, &seen.logits, k)?;
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
