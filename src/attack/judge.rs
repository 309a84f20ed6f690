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
