//! Losses of one sample and their gradients with respect to its logits, in f64: summed over the batch, so no 1/N.

use crate::attack::{Loss, Sample};

/// The loss that a sample follows, and its seed.
pub(super) fn follow(loss: Loss, z: &[f64], sample: &Sample) -> (f64, Vec<f64>) {
    let (class, label) = (sample.class as usize, sample.label as usize);
    match loss {
        Loss::CrossEntropy => cross_entropy(z, class),
        Loss::Margin => margin(z, class),
        Loss::Dlr if sample.direction < 0.0 => ratio(z, (label, class), 0.5),
        Loss::Dlr => ratio(z, (best_but(z, label), label), 1.0),
        Loss::Difference => difference(z, class, label),
    }
}

/// Cross-entropy (natural logarithm) of one sample, and its gradient softmax(z) − onehot(class): summed over the batch,
/// so no 1/N.
pub(super) fn cross_entropy(logits: &[f64], class: usize) -> (f64, Vec<f64>) {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut seed: Vec<f64> = logits.iter().map(|z| (z - highest).exp()).collect();
    let sum: f64 = seed.iter().sum();
    seed.iter_mut().for_each(|v| *v /= sum);
    seed[class] -= 1.0;
    (sum.ln() + highest - logits[class], seed)
}

/// The highest logit but that of `class`, the first of equals.
fn best_but(z: &[f64], class: usize) -> usize {
    let others = (0..z.len()).filter(|k| *k != class);
    others.reduce(|a, b| if z[b] > z[a] { b } else { a }).unwrap_or(class)
}

/// The highest other logit minus that of the class.
fn margin(z: &[f64], class: usize) -> (f64, Vec<f64>) {
    let rival = best_but(z, class);
    let mut seed = vec![0.0; z.len()];
    seed[rival] += 1.0;
    seed[class] -= 1.0;
    (z[rival] - z[class], seed)
}

/// The logit of the class minus that of the label.
fn difference(z: &[f64], class: usize, label: usize) -> (f64, Vec<f64>) {
    let mut seed = vec![0.0; z.len()];
    seed[class] += 1.0;
    seed[label] -= 1.0;
    (z[class] - z[label], seed)
}

/// (z_plus − z_minus) / (z1 − third·z3 − (1 − third)·z4 + 1e-12), z1 ≥ z2 ≥ … being the logits in order.
fn ratio(z: &[f64], (plus, minus): (usize, usize), third: f64) -> (f64, Vec<f64>) {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
    let fourth = if third < 1.0 { z[order[3]] } else { 0.0 };
    let below = z[order[0]] - third * z[order[2]] - (1.0 - third) * fourth + 1e-12;
    let loss = (z[plus] - z[minus]) / below;
    let mut seed = vec![0.0; z.len()];
    seed[plus] += 1.0 / below;
    seed[minus] -= 1.0 / below;
    seed[order[0]] -= loss / below;
    seed[order[2]] += third * loss / below;
    if third < 1.0 {
        seed[order[3]] += (1.0 - third) * loss / below;
    }
    (loss, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of every loss, for labels and targets in any order of the logits.
    #[test]
    fn every_seed_is_the_slope_of_its_loss() {
        let z = [0.3, -1.2, 2.5, 0.9, -0.4, 1.7];
        for loss in Loss::ALL {
            for (label, class, direction) in [(2, 2, 1.0), (0, 0, 1.0), (2, 5, -1.0), (1, 2, -1.0), (3, 4, -1.0)] {
                let sample = Sample { class, direction, label, ..Sample::default() };
                let (_, seed) = follow(loss, &z, &sample);
                for k in 0..z.len() {
                    let at = |h: f64| {
                        let mut moved = z;
                        moved[k] += h;
                        follow(loss, &moved, &sample).0
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    assert!((slope - seed[k]).abs() < 1e-8, "{loss:?} {sample:?}, logit {k}: {slope}, {}", seed[k]);
                }
            }
        }
    }

    #[test]
    fn cross_entropy_is_that_of_equals_and_does_not_overflow() {
        let (loss, seed) = cross_entropy(&[0.0, 0.0, 0.0, 0.0], 2);
        assert!((loss - 4.0_f64.ln()).abs() < 1e-15 && seed == [0.25, 0.25, -0.75, 0.25]);
        assert!(cross_entropy(&[1e300, 0.0], 1).0 == 1e300);
    }
}
