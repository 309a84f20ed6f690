//! What comes out of an attack.

use super::health::Health;
use super::logits::{argmax, cross_entropy};

/// Everything that came of an attack. All vectors are indexed by sample, in the order of the images given.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Clean images as attacked, `[N, C, H, W]`; k/255 exactly where bytes are delivered.
    pub clean: Vec<f32>,
    /// Largest distance by which an image given moved when it was snapped to k/255 (0 when all were on the grid).
    pub snapped: f32,
    /// What is delivered, `[N, C, H, W]`.
    pub adversarial: Vec<f32>,
    /// `[N]`
    pub labels: Vec<i64>,
    /// `[N]`, −1 for none
    pub targets: Vec<i64>,
    /// `[N, K]` of the clean images
    pub clean_logits: Vec<f32>,
    /// `[N, K]` of what is delivered
    pub adversarial_logits: Vec<f32>,
    /// `[N, K]` of the float iterate before it was rounded: of the first restart whose float iterate succeeds, else of
    /// the delivered one; equals `adversarial_logits` when floats are delivered
    pub float_logits: Vec<f32>,
    /// Right when clean.
    pub clean_correct: Vec<bool>,
    /// Right when clean and, when targeted, target ≠ label.
    pub attacked: Vec<bool>,
    /// Attacked, and what is delivered is classified as the target (untargeted: not as the label).
    pub success: Vec<bool>,
    /// The same for the float iterate.
    pub success_float: Vec<bool>,
    /// Cross-entropy of what is delivered on the target (untargeted: on the label).
    pub loss: Vec<f32>,
    /// max |delivered − clean|
    pub linf: Vec<f32>,
    /// Euclidean length of delivered − clean
    pub l2: Vec<f32>,
    /// Pixels whose gradient had no sign, added up over all steps of all restarts.
    pub zero_gradients: Vec<u64>,
    /// The one perturbation that was put on all attacked images, `[C, H, W]` (`uap`); of the float iterate, before
    /// rounding.
    pub perturbation: Option<Vec<f32>>,
    /// Which attempt is delivered (restarts, those of the first class that `apgd-t` or `fab-t` aims at first); 0 for a
    /// sample that was left alone.
    pub restart: Vec<u32>,
    /// Steps taken, of all restarts together; 0 for a sample that was left alone.
    pub steps_taken: Vec<u64>,
    /// Healthy, or where NaN or infinity arose.
    pub health: Vec<Health>,
    /// eps that 8 bits can deliver: floor(255·eps)/255; eps itself in L2 and when floats are delivered. That of
    /// [`Attack::eps`](super::Attack::eps), even where samples have radii of their own
    /// ([`Attack::each`](super::Attack::each)).
    pub effective_eps: f32,
}

impl Outcome {
    /// Number of samples (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True for an empty batch.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Share of samples that are right when clean *and* still right as delivered. One in which NaN or infinity arose
    /// counts as neither turned nor robust.
    pub fn robust_accuracy(&self) -> f64 {
        self.share_right(&self.adversarial_logits)
    }

    /// The same for the float iterate, which is what papers report.
    pub fn robust_accuracy_float(&self) -> f64 {
        self.share_right(&self.float_logits)
    }

    fn share_right(&self, logits: &[f32]) -> f64 {
        let right = (0..self.len()).filter(|&i| self.is_still_right(i, logits)).count();
        right as f64 / self.len().max(1) as f64
    }

    /// Whether sample `i` was right when clean, and is by `logits` of all samples.
    pub(crate) fn is_still_right(&self, i: usize, logits: &[f32]) -> bool {
        let k = logits.len() / self.len().max(1);
        let right = || argmax(&logits[i * k..(i + 1) * k]) as i64 == self.labels[i];
        // What NaN arose in is not known to be right, whatever is delivered for it.
        self.clean_correct[i] && self.health[i].is_healthy() && right()
    }

    /// Steps taken, added up over all samples: the work that was done.
    pub fn sample_steps(&self) -> u64 {
        self.steps_taken.iter().sum()
    }

    /// Puts the clean image, and what the network says of it, in the place of whatever was made of each sample that is
    /// marked in [`Outcome::health`], and withholds success from it: [`Attack::least`](super::Attack::least) may have
    /// turned it at a radius, and met NaN at a smaller one. Where the pixels lie on the device
    /// ([`Attack::run_buffers`](super::Attack::run_buffers)) there are none here to replace: whoever has the buffers
    /// copies the clean image over.
    pub fn withhold_unhealthy(&mut self) {
        let n = self.len().max(1);
        let (one, k) = (self.clean.len() / n, self.clean_logits.len() / n);
        for i in (0..self.len()).filter(|&i| !self.health[i].is_healthy()) {
            let (pixels, row) = (i * one..(i + 1) * one, i * k..(i + 1) * k);
            self.adversarial[pixels.clone()].copy_from_slice(&self.clean[pixels]);
            for moved in [&mut self.linf, &mut self.l2] {
                moved.get_mut(i).into_iter().for_each(|moved| *moved = 0.0);
            }
            self.adversarial_logits[row.clone()].copy_from_slice(&self.clean_logits[row.clone()]);
            self.float_logits[row.clone()].copy_from_slice(&self.clean_logits[row.clone()]);
            let class = if self.targets[i] < 0 { self.labels[i] } else { self.targets[i] };
            self.loss[i] = cross_entropy(&self.clean_logits[row], class as usize);
            (self.success[i], self.success_float[i]) = (false, false);
        }
    }

    /// Index and mark of the first sample in which NaN or infinity arose.
    pub fn first_unhealthy(&self) -> Option<(usize, Health)> {
        self.health.iter().copied().enumerate().find(|(_, h)| !h.is_healthy())
    }
}
