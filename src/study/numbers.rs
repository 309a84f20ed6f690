//! What is known of one experiment, and of two beside each other.

use super::batch::Judged;
use crate::report::{percent, wilson};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What came of one experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Images.
    pub samples: usize,
    /// Those that are classified as their targets in evaluation mode.
    pub successes: usize,
    /// The one over the other.
    pub success_rate: f64,
    /// Wilson's interval of 95 %.
    pub success_95: (f64, f64),
    /// Mean cross-entropy on the targets before, in evaluation mode.
    pub loss_before: f64,
    /// The same after.
    pub loss_after: f64,
    /// Share of pixel values whose sign in the first step's gradient is another than in the row compared with.
    pub first_signs_differ: Option<f64>,
    /// Share of pixel values that were moved in another direction, after all steps.
    pub signs_differ: Option<f64>,
    /// Whether the images are, bit for bit, those of the row compared with.
    pub same_bits: Option<bool>,
    /// What belongs to this experiment alone, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, f64>,
}

impl Numbers {
    /// Counts hits and means losses.
    pub fn new(before: &Judged, after: &Judged) -> Self {
        let (samples, successes) = (after.hits.len(), after.successes());
        Numbers {
            samples,
            successes,
            success_rate: successes as f64 / samples.max(1) as f64,
            success_95: wilson(successes, samples).unwrap_or((0.0, 1.0)),
            loss_before: before.mean_loss(),
            loss_after: after.mean_loss(),
            ..Numbers::default()
        }
    }

    /// The same with a fact.
    #[must_use]
    pub fn fact(mut self, name: &str, value: f64) -> Self {
        self.facts.insert(name.into(), value);
        self
    }

    /// The rate in words.
    pub(super) fn rate(&self) -> String {
        percent(Some(self.success_rate))
    }
}

/// What an experiment's success is beside that of another one on the same images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The images are the same, bit for bit.
    Same,
    /// The intervals overlap: so many images cannot tell them apart.
    Alike,
    /// Lower, by more than the intervals allow for.
    Worse,
    /// Higher, by more than the intervals allow for.
    Better,
}

impl Effect {
    /// Of `row` beside `base`.
    pub fn of(row: &Numbers, base: &Numbers) -> Self {
        if row.same_bits == Some(true) {
            Effect::Same
        } else if row.success_95.1 < base.success_95.0 {
            Effect::Worse
        } else if row.success_95.0 > base.success_95.1 {
            Effect::Better
        } else {
            Effect::Alike
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// 0 to 13, with a letter where a row has several: `5b`.
    pub id: String,
    /// What was done.
    pub experiment: String,
    /// The row that signs, bits and success are compared with; empty where there is none.
    pub against: String,
    /// What came of it; `None` where it cannot be run.
    #[serde(flatten)]
    pub numbers: Option<Numbers>,
    /// What the numbers say; where there are none, why.
    pub verdict: String,
}

impl Row {
    /// Its number without the letter.
    pub fn number(&self) -> u8 {
        self.id.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse().unwrap_or(u8::MAX)
    }
}

/// A share of pixels, to a hundredth of a percent; what is not zero does not look like it.
pub(super) fn share(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{:.2} %", (100.0 * value).max(0.01)) }
}
