//! Counts, maxima and sums of an outcome: those of two parts of a run make those of both.

use crate::attack::Outcome;
use serde::{Deserialize, Serialize};

/// Counts of an outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// All of them.
    pub samples: usize,
    /// Right when clean.
    pub clean_correct: usize,
    /// Right when clean and, when targeted, with a target that is not the label.
    pub attacked: usize,
    /// Attacked with success, as delivered.
    pub successes: usize,
    /// The same for the float iterate.
    pub successes_float: usize,
    /// Right when clean and still right as delivered.
    pub robust: usize,
    /// The same for the float iterate.
    pub robust_float: usize,
    /// Largest |delivered − clean|.
    pub max_perturbation: f32,
    /// Largest Euclidean length of delivered − clean; 0 in reports that were written before it was measured.
    #[serde(default)]
    pub max_l2: f32,
    /// Largest distance by which a clean image moved when it was rounded to 8 bits.
    pub snapped: f32,
    /// Pixels without a sign, added up over all steps of all samples that were stepped.
    pub zero_gradient_pixels: u64,
    /// Stepped samples that never had a gradient at all: for them the attack says nothing.
    pub samples_without_gradient: usize,
    /// Samples in which NaN or infinity arose.
    pub nonfinite_samples: usize,
}

impl Statistics {
    /// Counts.
    pub fn new(o: &Outcome) -> Self {
        Self::of(o, 0..o.len())
    }

    /// Counts of some of the rows.
    pub fn of(o: &Outcome, rows: impl Iterator<Item = usize> + Clone) -> Self {
        let count = |flags: &[bool]| rows.clone().filter(|i| flags[*i]).count();
        let still_right = |logits: &[f32]| rows.clone().filter(|i| o.is_still_right(*i, logits)).count();
        let pixels = (o.clean.len() / o.len().max(1)) as u64;
        let without = |i: &usize| o.steps_taken[*i] > 0 && o.zero_gradients[*i] >= pixels * o.steps_taken[*i];
        Statistics {
            samples: rows.clone().count(),
            clean_correct: count(&o.clean_correct),
            attacked: count(&o.attacked),
            successes: count(&o.success),
            successes_float: count(&o.success_float),
            robust: still_right(&o.adversarial_logits),
            robust_float: still_right(&o.float_logits),
            max_perturbation: rows.clone().map(|i| o.linf[i]).fold(0.0, f32::max),
            max_l2: rows.clone().map(|i| o.l2[i]).fold(0.0, f32::max),
            snapped: o.snapped,
            zero_gradient_pixels: rows.clone().map(|i| o.zero_gradients[i]).sum(),
            samples_without_gradient: rows.clone().filter(without).count(),
            nonfinite_samples: rows.filter(|i| !o.health[*i].is_healthy()).count(),
        }
    }

    /// Counts that are of some of the samples.
    pub(super) fn parts(&self) -> [usize; 8] {
        let Statistics { clean_correct, attacked, successes, successes_float, .. } = *self;
        let Statistics { robust, robust_float, samples_without_gradient, nonfinite_samples, .. } = *self;
        [
            clean_correct,
            attacked,
            successes,
            successes_float,
            robust,
            robust_float,
            samples_without_gradient,
            nonfinite_samples,
        ]
    }

    /// Those of two parts together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Statistics {
            samples: self.samples + other.samples,
            clean_correct: self.clean_correct + other.clean_correct,
            attacked: self.attacked + other.attacked,
            successes: self.successes + other.successes,
            successes_float: self.successes_float + other.successes_float,
            robust: self.robust + other.robust,
            robust_float: self.robust_float + other.robust_float,
            max_perturbation: self.max_perturbation.max(other.max_perturbation),
            max_l2: self.max_l2.max(other.max_l2),
            snapped: self.snapped.max(other.snapped),
            zero_gradient_pixels: self.zero_gradient_pixels.saturating_add(other.zero_gradient_pixels),
            samples_without_gradient: self.samples_without_gradient + other.samples_without_gradient,
            nonfinite_samples: self.nonfinite_samples + other.nonfinite_samples,
        }
    }

    /// Right when clean, over all samples.
    pub fn clean_accuracy(&self) -> Option<f64> {
        rate(self.clean_correct, self.samples)
    }

    /// Successes over attacked samples, as delivered; `None` when none was attacked.
    pub fn success_rate(&self) -> Option<f64> {
        rate(self.successes, self.attacked)
    }

    /// The same for the float iterate.
    pub fn success_rate_float(&self) -> Option<f64> {
        rate(self.successes_float, self.attacked)
    }

    /// Right when clean and still right as delivered, over all samples.
    pub fn robust_accuracy(&self) -> Option<f64> {
        rate(self.robust, self.samples)
    }

    /// The same for the float iterate.
    pub fn robust_accuracy_float(&self) -> Option<f64> {
        rate(self.robust_float, self.samples)
    }
}

pub(super) fn rate(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The interval that holds the true rate with 95 % confidence when `part` of `whole` were seen (Wilson 1927): it stays
/// within [0, 1], and has a width where all or none were seen.
pub fn wilson(part: usize, whole: usize) -> Option<(f64, f64)> {
    let z = 1.959_963_984_540_054_f64;
    let n = whole as f64;
    let p = rate(part, whole)?;
    let centre = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // At the ends the two parts are equal, but for their rounding.
    let low = if part == 0 { 0.0 } else { ((centre - spread) / scale).max(0.0) };
    let high = if part == whole { 1.0 } else { ((centre + spread) / scale).min(1.0) };
    Some((low, high))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::attack::Health;
    use crate::model::Dims;

    /// Four samples of two classes: turned, held, wrong when clean, turned in float only.
    pub(crate) fn outcome(dims: Dims) -> Outcome {
        let len = dims.len();
        let clean = vec![51.0 / 255.0; 4 * len];
        let mut adversarial = clean.clone();
        adversarial[0] = 53.0 / 255.0;
        Outcome {
            clean,
            snapped: 0.0,
            adversarial,
            labels: vec![0, 1, 0, 1],
            targets: vec![1, 0, 1, 0],
            clean_logits: vec![2.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            adversarial_logits: vec![0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            float_logits: vec![0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0],
            clean_correct: vec![true, true, false, true],
            attacked: vec![true, true, false, true],
            success: vec![true, false, false, false],
            success_float: vec![true, false, false, true],
            loss: vec![0.3; 4],
            linf: vec![2.0 / 255.0, 0.0, 0.0, 0.0],
            l2: vec![2.0 / 255.0, 0.0, 0.0, 0.0],
            zero_gradients: vec![1, 10 * len as u64, 0, 0],
            restart: vec![0; 4],
            steps_taken: vec![10, 10, 0, 10],
            health: vec![Health::default(); 4],
            effective_eps: 2.0 / 255.0,
            perturbation: None,
        }
    }

    #[test]
    fn statistics_tell_delivered_from_float_and_attacked_from_all() {
        let s = Statistics::new(&outcome(Dims::new(1, 2, 3)));
        assert_eq!((s.samples, s.clean_correct, s.attacked, s.successes, s.successes_float), (4, 3, 3, 1, 2));
        assert_eq!(s.success_rate(), Some(1.0 / 3.0));
        assert_eq!(s.success_rate_float(), Some(2.0 / 3.0));
        assert_eq!((s.robust, s.robust_float), (2, 1));
        assert_eq!(s.clean_accuracy(), Some(0.75));
        assert_eq!((s.robust_accuracy(), s.robust_accuracy_float()), (Some(0.5), Some(0.25)));
        // The sample that is wrong when clean was not stepped.
        assert_eq!((s.zero_gradient_pixels, s.samples_without_gradient), (61, 1));
        assert_eq!((s.max_perturbation, s.max_l2), (2.0 / 255.0, 2.0 / 255.0));
    }

    /// With `attack_all` an image that was wrong may come out right, and NaN may lie behind logits that say the label.
    #[test]
    fn robust_is_only_what_was_right_and_is_sound() {
        let mut o = outcome(Dims::new(1, 2, 3));
        o.snapped = 0.001;
        (o.adversarial_logits[4], o.float_logits[4]) = (2.0, 2.0);
        assert_eq!((Statistics::new(&o).robust, Statistics::new(&o).robust_float), (2, 1));
        o.health[1] = Health::GRADIENT;
        let s = Statistics::new(&o);
        assert_eq!((s.robust, s.robust_float, s.nonfinite_samples, s.snapped), (1, 0, 1, 0.001));
        assert_eq!(s.plus(s).nonfinite_samples, 2);
    }

    #[test]
    fn statistics_of_parts_add_up_and_maxima_stay() {
        let one = Statistics::new(&outcome(Dims::new(1, 2, 3)));
        let other = Statistics { max_perturbation: 0.5, max_l2: 0.75, snapped: 0.25, ..one };
        let both = one.plus(other);
        assert_eq!((both.samples, both.clean_correct, both.attacked, both.successes), (8, 6, 6, 2));
        assert_eq!((both.successes_float, both.robust, both.robust_float), (4, 4, 2));
        assert_eq!((both.zero_gradient_pixels, both.samples_without_gradient), (122, 2));
        assert_eq!((both.max_perturbation, both.max_l2, both.snapped), (0.5, 0.75, 0.25));
        assert_eq!(both, other.plus(one));
        assert_eq!(Statistics::default().plus(one), one);
    }

    #[test]
    fn no_rate_without_attacked_samples() {
        let mut o = outcome(Dims::new(1, 1, 1));
        o.attacked = vec![false; 4];
        assert_eq!(Statistics::new(&o).success_rate(), None);
    }

    #[test]
    fn wilson_gives_the_intervals_of_the_tables() {
        let close = |(lo, hi): (f64, f64), want: (f64, f64)| (lo - want.0).abs() < 5e-5 && (hi - want.1).abs() < 5e-5;
        // statsmodels.stats.proportion.proportion_confint(method="wilson")
        assert!(close(wilson(9179, 10_000).unwrap(), (0.9124, 0.9231)));
        assert!(close(wilson(0, 10).unwrap(), (0.0, 0.2775)));
        assert!(close(wilson(10, 10).unwrap(), (0.7225, 1.0)));
        assert!(close(wilson(1, 2).unwrap(), (0.0945, 0.9055)));
        // Whatever rounding makes of the two parts: of 10 and of 25 it leaves less than 1, of 3 and of 6 more than 0.
        for n in 1..200 {
            assert_eq!((wilson(0, n).unwrap().0, wilson(n, n).unwrap().1), (0.0, 1.0), "{n}");
        }
        assert_eq!(wilson(0, 0), None);
    }
}
