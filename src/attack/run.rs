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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::Loss;

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

    #[test]
    fn pixels_beyond_the_bounds_are_told_by_their_sample_in_the_whole_set() {
        let attack = Attack::ifgsm(0.1);
        let told = |images: &[f32], first| attack.check_pixels(images, 2, first).map_err(|e| e.to_string());
        assert_eq!(told(&[0.0, 1.0, f32::NAN, 0.5], 0), Ok(()));
        assert!(told(&[0.0, 0.5, 0.5, 1.5], 40).unwrap_err().contains("sample 41: pixel value 1.5"));
        assert!(told(&[-0.5, 0.5], 40).unwrap_err().contains("sample 40: pixel value -0.5"));
    }

    #[test]
    fn likely_classes_come_first_and_equals_in_their_order() {
        let aims = |class| [0, 1, 2].map(|n| nth_but(&[0.5, 2.0, 0.5, 1.0], class, n));
        assert_eq!((aims(1), aims(0)), ([3, 0, 2], [1, 3, 2]));
    }

    /// A judge of one sample of three classes, label 0, and logits that say how near the others are.
    fn judge(target: i64) -> Judge<'static> {
        Judge {
            k: 3,
            labels: &[0],
            targets: vec![target],
            attacked: vec![true],
            attempt: 0,
            adversarial_logits: vec![0.0; 3],
            float_logits: vec![0.0; 3],
            loss: vec![0.0],
            zero_gradients: vec![0],
            attempts: vec![0],
            steps_taken: vec![0],
            float_success: vec![false],
            health: vec![Health::default()],
            still_open: Vec::new(),
        }
    }

    /// Whether each attempt is kept, and which logits are there in the end.
    fn judged(target: i64, attempts: &[([f32; 3], Health)]) -> (Vec<bool>, Judge<'static>) {
        let mut judge = judge(target);
        let kept = attempts.iter().zip(0..).map(|((z, health), attempt)| {
            judge.attempt = attempt;
            judge.judge(0, Tried { float: z, rounded: z, steps: 3, zero_gradients: 5, health: *health })
        });
        (kept.collect(), judge)
    }

    const FAR: [f32; 3] = [1.0, 0.0, 0.0];
    const NEAR: [f32; 3] = [1.0, 0.9, 0.9];
    /// The label's loss is lower than with [`NEAR`].
    const TURNED: [f32; 3] = [1.0, 1.1, -9.0];

    #[test]
    fn an_attempt_is_kept_where_it_succeeds_or_comes_nearer() {
        let sound = |z| (z, Health::default());
        let (kept, judge) = judged(-1, &[sound(NEAR), sound(FAR), sound(NEAR), sound(TURNED)]);
        assert!(cross_entropy(&TURNED, 0) < cross_entropy(&NEAR, 0), "a success counts more than a loss");
        assert_eq!((kept, judge.attempts[0]), (vec![true, false, false, true], 3));
        assert_eq!((&judge.adversarial_logits[..], judge.loss[0]), (&TURNED[..], cross_entropy(&TURNED, 0)));
        assert_eq!((judge.steps_taken[0], judge.zero_gradients[0]), (12, 20), "all of them are work");
        assert_eq!(judge.still_open, [0, 0, 0], "one that succeeded is not tried again");
        // With a target its own loss falls.
        let (kept, judge) = judged(2, &[sound(NEAR), sound(FAR), sound(TURNED), sound([1.0, 0.0, 0.95])]);
        assert_eq!((kept, judge.attempts[0]), (vec![true, false, false, true], 3));
    }

    #[test]
    fn an_attempt_that_is_not_sound_is_no_success_and_the_last() {
        let nan = ([f32::NEG_INFINITY, f32::INFINITY, 0.0], Health::LOGITS);
        let (kept, judge) = judged(-1, &[(NEAR, Health::default()), nan]);
        assert_eq!((kept, &judge.adversarial_logits[..], judge.attempts[0]), (vec![true, false], &NEAR[..], 0));
        assert_eq!((judge.health[0], judge.still_open), (Health::LOGITS, vec![0]));
    }
}
