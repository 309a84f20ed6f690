//! From settings to what an engine is asked: targets, samples, steps.

use super::engine::Job;
use super::method::Method;
use super::norm::Norm;
use super::perturbation::Fit;
use super::quantise::{budget, budget_l2};
use super::sample::Sample;
use super::settings::Attack;
use crate::error::Result;

impl Attack {
    /// The target class of each sample among `k` classes, −1 for none; `logits` are those of the clean images.
    pub(super) fn targets_of(&self, labels: &[i64], logits: &[f32], k: usize) -> Result<Vec<i64>> {
        self.targets.resolve(labels, logits, k, self.seed, |i| self.own_of(i).id)
    }

    /// What sample `i` has for itself in an attempt; `aim` is the class that the method chose for it.
    pub(super) fn sample(&self, i: usize, label: i64, target: i64, aim: Option<usize>, attempt: u32) -> Sample {
        let own = self.own_of(i);
        let starts_clean = self.method.begins_clean() && attempt.is_multiple_of(self.restarts);
        Sample {
            class: aim.unwrap_or(if target < 0 { label } else { target } as usize) as u32,
            // A data set has fewer than 2^32 samples.
            id: own.id as u32,
            restart: attempt,
            start: u32::from(self.random_start && !starts_clean),
            eps: own.eps,
            step_size: own.step_size,
            direction: if aim.is_some() || target >= 0 { -1.0 } else { 1.0 },
            levels: match self.norm {
                Norm::Linf => budget(own.eps) as u32,
                Norm::L2 => budget_l2(own.eps),
            },
            label: label as u32,
            aimed: u32::from(target >= 0),
            momentum: self.momentum,
            steps: self.steps,
            stretch: self.stretch.unwrap_or(self.steps),
            ..Sample::default()
        }
    }

    /// All steps of an attempt, from the beginning.
    pub(crate) fn job<'a>(&self, x0: &'a [f32], samples: &'a [Sample]) -> Job<'a> {
        Job {
            rule: self.rule(),
            loss: self.loss,
            bounds: self.engine_bounds(),
            seed: self.seed,
            ..Job::new(x0, samples, self.steps)
        }
    }

    /// All steps of a perturbation.
    pub(crate) fn fit_of<'a>(&self, samples: &'a [Sample]) -> Fit<'a> {
        Fit { samples, loss: self.loss, steps: self.steps, bounds: self.engine_bounds() }
    }

    /// The steps after which samples are looked at; the last is the last step.
    pub(super) fn stops(&self) -> Vec<u32> {
        let shares: &[u64] = match self.method {
            // It proposes nothing more for a sample that has succeeded: to stop changes no bit, and saves most of its
            // steps.
            Method::Square => &[2, 5, 10, 20, 40, 70, 100],
            _ if self.early_stop => &[10, 20, 40, 70, 100],
            _ => &[100],
        };
        let mut stops: Vec<u32> = shares.iter().map(|s| (u64::from(self.steps) * s).div_ceil(100) as u32).collect();
        stops.dedup();
        stops
    }
}
