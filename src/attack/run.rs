//! One run of an attack: clean logits, targets, restarts, and what came out. Where the pixels lie, on the host or on
//! the device, is [`Pixels`]' affair.

use super::check::{check_images, check_labels};
use super::engine::{Engine, Logits};
use super::host::OnHost;
use super::judge::Judge;
use super::logits::{argmax, nth_but};
use super::norm::Norm;
use super::outcome::Outcome;
use super::pixels::{Pixels, Verdict};
use super::quantise::budget;
use super::sample::Sample;
use super::settings::Attack;
use crate::error::Result;
use crate::model::Model;
use std::ops::Range;

impl Attack {
    /// Attacks images `[N, C, H, W]` (pixels, [0, 1] unless the bounds say otherwise) with their true `labels` `[N]`.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) for a configuration that makes no sense,
    /// [`Error::Data`](crate::Error::Data) for lengths, labels or targets that do not fit, and those of the engine. NaN
    /// in an image is no error: the sample is marked in [`Outcome::health`], and its neighbours are as if it were not
    /// there.
    pub fn run(&self, engine: &dyn Engine, images: &[f32], labels: &[i64]) -> Result<Outcome> {
        self.run_with(engine, images, labels, &mut |_| true)
    }

    /// As [`Attack::run`]; `progress` is told how many sample-steps have ended since it was last called, and cancels
    /// the run by answering `false`. It is told of 0 where it is only asked whether to go on: while another thread has
    /// the engine, and before each chunk of images that is classified.
    ///
    /// The total is samples × steps × [`Attack::attempts`] at most, which is the number of restarts, for `apgd-t` and
    /// `fab-t` times that of the classes aimed at: samples that are not attacked take no steps, and a sample that has
    /// succeeded is not tried again.
    ///
    /// # Errors
    /// As [`Attack::run`], and [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn run_with(
        &self,
        engine: &dyn Engine,
        images: &[f32],
        labels: &[i64],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome> {
        self.validate()?;
        let model = engine.model();
        let one = model.input.len();
        check_images(model, images, labels.len())?;
        check_labels(model, labels)?;
        self.check_pixels(images, one, 0)?;
        if self.needs_fit() {
            let mut source = |range: Range<usize>| Ok(images[range.start * one..range.end * one].to_vec());
            let fitted = self.fit(engine, labels, labels.len(), &mut source, progress)?;
            return self.clone().perturbation(fitted).run_with(engine, images, labels, progress);
        }
        let mut pixels = OnHost::new(self, engine, images);
        let mut out = self.run_on(model, &mut pixels, labels, progress)?;
        pixels.hand_over(&mut out);
        Ok(out)
    }

    /// The run itself, all but what needs the pixels: `clean`, `adversarial`, `linf` and `l2` are left empty.
    pub(crate) fn run_on(
        &self,
        model: &Model,
        pixels: &mut dyn Pixels,
        labels: &[i64],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome> {
        let (k, n) = (model.logits(), labels.len());
        let attempts = self.check_run(model, n)?;
        let (Logits { logits: clean_logits, health }, snapped) = pixels.clean(progress)?;
        let targets = self.targets_of(labels, &clean_logits, k)?;
        let is_targeted = self.method.chooses_targets() || targets.iter().any(|t| *t >= 0);
        self.loss.check(k, is_targeted)?;
        let row = |i: usize| i * k..(i + 1) * k;
        let clean_correct: Vec<bool> =
            (0..n).map(|i| health[i].is_healthy() && argmax(&clean_logits[row(i)]) as i64 == labels[i]).collect();
        let mut judge = Judge::new(k, labels, targets, (&clean_logits, &clean_correct), health);

        // Only the rows that still have something to gain are run; what a row becomes does not depend on the others.
        let moves = |i: &usize| judge.attacked[*i] || (self.attack_all && judge.targets[*i] != labels[*i]);
        let mut open: Vec<usize> = (0..n).filter(moves).collect();
        for attempt in 0..attempts {
            if open.is_empty() {
                break;
            }
            let samples: Vec<Sample> = open
                .iter()
                .map(|&i| {
                    let aim = self.method.chooses_targets().then(|| {
                        nth_but(&clean_logits[row(i)], labels[i] as usize, (attempt / self.restarts) as usize)
                    });
                    self.sample(i, labels[i], judge.targets[i], aim, attempt)
                })
                .collect();
            judge.attempt = attempt;
            pixels.attempt(&open, &samples, progress, &mut judge)?;
            open = std::mem::take(&mut judge.still_open);
            open.sort_unstable();
        }

        let success = |logits: &[f32]| {
            (0..n).map(|i| judge.health[i].is_healthy() && judge.is_hit(i, &logits[row(i)])).collect::<Vec<_>>()
        };
        let bytes = self.delivers_bytes() && self.norm == Norm::Linf;
        Ok(Outcome {
            clean: Vec::new(),
            snapped,
            adversarial: Vec::new(),
            linf: Vec::new(),
            l2: Vec::new(),
            success: success(&judge.adversarial_logits),
            success_float: success(&judge.float_logits),
            loss: judge.loss,
            effective_eps: if bytes { budget(self.eps) as f32 / 255.0 } else { self.eps },
            labels: labels.to_vec(),
            targets: judge.targets,
            clean_logits,
            adversarial_logits: judge.adversarial_logits,
            float_logits: judge.float_logits,
            clean_correct,
            attacked: judge.attacked,
            zero_gradients: judge.zero_gradients,
            restart: judge.attempts,
            steps_taken: judge.steps_taken,
            health: judge.health,
            perturbation: self.perturbation.as_ref().map(|p| p.values.clone()),
        })
    }
}
