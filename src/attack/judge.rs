//! The judge of a run: which attempt of each sample is delivered, and which samples are tried again.

use super::health::Health;
use super::logits::{argmax, cross_entropy};
use super::pixels::{Tried, Verdict};

/// Keeps, for each row, the best attempt so far.
pub(super) struct Judge<'a> {
    k: usize,
    labels: &'a [i64],
    pub(super) targets: Vec<i64>,
    pub(super) attacked: Vec<bool>,
    /// Which attempt is under way.
    pub(super) attempt: u32,
    pub(super) adversarial_logits: Vec<f32>,
    pub(super) float_logits: Vec<f32>,
    pub(super) loss: Vec<f32>,
    pub(super) zero_gradients: Vec<u64>,
    pub(super) attempts: Vec<u32>,
    pub(super) steps_taken: Vec<u64>,
    float_success: Vec<bool>,
    pub(super) health: Vec<Health>,
    /// Rows for which another attempt is worth while.
    pub(super) still_open: Vec<usize>,
}

impl<'a> Judge<'a> {
    /// Before the first attempt, when the clean images are what would be delivered: they come as their logits, `[N,
    /// k]`, and whether each is right.
    pub(super) fn new(
        k: usize,
        labels: &'a [i64],
        targets: Vec<i64>,
        (logits, is_right): (&[f32], &[bool]),
        health: Vec<Health>,
    ) -> Self {
        let n = labels.len();
        let mut judge = Judge {
            k,
            labels,
            attempt: 0,
            attacked: (0..n).map(|i| is_right[i] && targets[i] != labels[i]).collect(),
            adversarial_logits: logits.to_vec(),
            float_logits: logits.to_vec(),
            loss: Vec::new(),
            zero_gradients: vec![0; n],
            attempts: vec![0; n],
            steps_taken: vec![0; n],
            float_success: vec![false; n],
            health,
            still_open: Vec::new(),
            targets,
        };
        judge.loss = (0..n).map(|i| cross_entropy(&logits[i * k..(i + 1) * k], judge.goal(i))).collect();
        judge
    }

    /// The class whose cross-entropy tells attempts that fail apart.
    fn goal(&self, i: usize) -> usize {
        (if self.targets[i] < 0 { self.labels[i] } else { self.targets[i] }) as usize
    }
}

impl Verdict for Judge<'_> {
    fn is_hit(&self, i: usize, logits: &[f32]) -> bool {
        let predicted = argmax(logits) as i64;
        self.attacked[i] && if self.targets[i] < 0 { predicted != self.labels[i] } else { predicted == self.targets[i] }
    }

    fn judge(&mut self, i: usize, tried: Tried<'_>) -> bool {
        let row = i * self.k..(i + 1) * self.k;
        self.steps_taken[i] += u64::from(tried.steps);
        self.zero_gradients[i] += tried.zero_gradients;
        self.health[i].0 |= tried.health.0;
        let success = self.health[i].is_healthy() && self.is_hit(i, tried.rounded);
        let after = cross_entropy(tried.rounded, self.goal(i));
        let is_higher = if self.targets[i] < 0 { after > self.loss[i] } else { after < self.loss[i] };
        let keep = self.attempt == 0 || success || is_higher;
        let float_hit = self.is_hit(i, tried.float);
        if !self.float_success[i] && (float_hit || keep) {
            self.float_logits[row.clone()].copy_from_slice(tried.float);
            self.float_success[i] = float_hit;
        }
        if keep {
            self.adversarial_logits[row].copy_from_slice(tried.rounded);
            (self.loss[i], self.attempts[i]) = (after, self.attempt);
        }
        if !success && self.health[i].is_healthy() {
            self.still_open.push(i);
        }
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
