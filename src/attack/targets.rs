//! Targets: which class each sample is led to.

use super::random::random_target;
use crate::error::{Error, Result};

/// What the attack aims at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Untargeted: any class but the label.
    None,
    /// Uniform over the classes that are not the label, by the sample's own random number.
    Random,
    /// (label + 1) mod K.
    Next,
    /// The class, not the label, with the lowest clean logit; ties to the lowest index.
    LeastLikely,
    /// The class, not the label, with the highest clean logit; ties to the lowest index.
    Second,
    /// One class for all. Samples of that class are not attacked.
    Class(usize),
    /// One class a sample; −1 attacks that sample untargeted.
    Classes(Vec<i64>),
}

impl Targets {
    /// The target class of each sample among `k` classes, −1 for none. `logits` are those of the clean images; `seed`,
    /// and the `id` of a sample, are what random classes follow.
    pub(super) fn resolve(
        &self,
        labels: &[i64],
        logits: &[f32],
        k: usize,
        seed: u64,
        id: impl Fn(usize) -> u64,
    ) -> Result<Vec<i64>> {
        if k < 2 && *self != Targets::None {
            return Err(Error::data("targets", "a network with one class has nothing to aim at"));
        }
        let z = |i: usize| &logits[i * k..(i + 1) * k];
        // The first class, not the label, that no other one beats.
        let best = |i: usize, beats: fn(f32, f32) -> bool| {
            let others = (0..k).filter(|&c| c as i64 != labels[i]);
            others.reduce(|a, b| if beats(z(i)[b], z(i)[a]) { b } else { a }).expect("two classes or more") as i64
        };
        let each = |f: &dyn Fn(usize) -> i64| (0..labels.len()).map(f).collect();
        Ok(match self {
            Targets::None => vec![-1; labels.len()],
            Targets::Next => each(&|i| (labels[i] + 1) % k as i64),
            Targets::Random => each(&|i| i64::from(random_target(seed, id(i), labels[i] as u32, k as u32))),
            Targets::Second => each(&|i| best(i, |b, a| b > a)),
            Targets::LeastLikely => each(&|i| best(i, |b, a| b < a)),
            Targets::Class(class) => {
                if *class >= k {
                    return Err(Error::data("targets", format!("class {class} with {k} classes")));
                }
                vec![*class as i64; labels.len()]
            }
            Targets::Classes(classes) => {
                if classes.len() != labels.len() {
                    let detail = format!("{} for {} samples", classes.len(), labels.len());
                    return Err(Error::data("targets", detail));
                }
                if let Some(i) = classes.iter().position(|&t| t < -1 || t >= k as i64) {
                    let detail = format!("target {} with {k} classes (−1 for none)", classes[i]);
                    return Err(Error::data(format!("sample {i}"), detail));
                }
                classes.clone()
            }
        })
    }
}
