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

    /// A sample of each image on which a step takes what it takes in a run: led, where the method chooses among the `k`
    /// classes, to the one behind its label, and begun at the clean image, for a random start is no step.
    #[cfg(feature = "cli")]
    pub(crate) fn probes(&self, labels: &[i64], k: usize) -> Vec<Sample> {
        let aim = |label: i64| self.method.chooses_targets().then(|| (label as usize + 1) % k);
        let probe = |(i, &label): (usize, &i64)| Sample { start: 0, ..self.sample(i, label, -1, aim(label), 0) };
        labels.iter().enumerate().map(probe).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{Loss, Own};

    /// What kernels are told of a sample, from its attack.
    #[test]
    fn a_sample_is_told_what_its_attack_says() {
        let attack = Attack::pgd(Norm::Linf, 8.0 / 255.0).steps(40).restarts(3).first_id(70).loss(Loss::Margin);
        let told = |target: i64, aim: Option<usize>| attack.sample(2, 7, target, aim, 1);
        let plain = told(-1, None);
        assert_eq!((plain.class, plain.label, plain.aimed, plain.direction), (7, 7, 0, 1.0));
        assert_eq!((plain.id, plain.restart, plain.start, plain.levels), (72, 1, 1, 8));
        assert_eq!((plain.steps, plain.stretch), (40, 40));
        // The first class is a target like any other.
        let aimed = told(0, None);
        assert_eq!((aimed.class, aimed.label, aimed.aimed, aimed.direction), (0, 7, 1, -1.0));
        // What a method aims at by itself has succeeded wherever it leaves the label.
        let chosen = told(-1, Some(0));
        assert_eq!((chosen.class, chosen.label, chosen.aimed, chosen.direction), (0, 7, 0, -1.0));
        let square = Attack::square(Norm::Linf, 0.1).steps(20).schedule_over(500);
        assert_eq!((square.sample(0, 1, -1, None, 0).steps, square.sample(0, 1, -1, None, 0).stretch), (20, 500));
        let own = attack.each(vec![Own { id: 9, eps: 2.0 / 255.0, step_size: 0.5 }]);
        let own = own.sample(0, 1, -1, None, 0);
        assert_eq!((own.id, own.eps, own.step_size, own.levels), (9, 2.0 / 255.0, 0.5, 2));
    }

    #[test]
    fn fab_begins_at_the_clean_image_for_every_class_and_at_random_in_further_restarts() {
        let attack = Attack::fab_t(Norm::Linf, 0.1).restarts(3).random_start(true);
        let starts = |attempt: u32| attack.sample(0, 1, -1, Some(2), attempt).start;
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(starts), [0, 1, 1, 0, 1, 1, 0]);
        let pgd = Attack::pgd(Norm::Linf, 0.1).restarts(3);
        assert_eq!([0, 1].map(|attempt| pgd.sample(0, 1, -1, None, attempt).start), [1, 1]);
    }

    #[test]
    fn samples_are_looked_at_after_shares_of_the_steps_and_always_after_the_last() {
        let early = |steps| Attack::ifgsm(0.1).steps(steps).early_stop(true).stops();
        assert_eq!(early(100), [10, 20, 40, 70, 100]);
        assert_eq!((early(7), early(3), early(1)), (vec![1, 2, 3, 5, 7], vec![1, 2, 3], vec![1]));
        assert_eq!(early(u32::MAX).last(), Some(&u32::MAX));
        assert_eq!(Attack::ifgsm(0.1).steps(7).stops(), [7]);
        assert_eq!(Attack::square(Norm::Linf, 0.1).steps(1000).stops(), [20, 50, 100, 200, 400, 700, 1000]);
    }
}
