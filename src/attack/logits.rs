//! What is read from the logits of one sample. Imports nothing.

/// Index of the highest logit, the lowest index where several are equal.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = i;
        }
    }
    best
}

/// The class with the n-th highest logit among those that are not `class`, equals in the order of their indices.
pub(super) fn nth_but(z: &[f32], class: usize, n: usize) -> usize {
    let mut others: Vec<usize> = (0..z.len()).filter(|k| *k != class).collect();
    others.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
    others[n]
}

/// −log softmax(z)\[class\], in f64 from f32 logits.
pub(crate) fn cross_entropy(z: &[f32], class: usize) -> f32 {
    let top = z.iter().fold(f64::MIN, |m, &z| m.max(f64::from(z)));
    let sum: f64 = z.iter().map(|&z| (f64::from(z) - top).exp()).sum();
    (sum.ln() - (f64::from(z[class]) - top)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_classes_come_first_and_equals_in_their_order() {
        let aims = |class| [0, 1, 2].map(|n| nth_but(&[0.5, 2.0, 0.5, 1.0], class, n));
        assert_eq!((aims(1), aims(0)), ([3, 0, 2], [1, 3, 2]));
    }
}
