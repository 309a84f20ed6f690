//! What a report says of a run, held against the run's own tensors: whatever can be counted there is.

use super::tensors::TensorFile;
use super::{Config, Ladder, Report, Statistics};
use crate::attack::argmax;
use crate::error::Result;
use std::ops::Range;

/// Rows that are read at once.
const BLOCK: usize = 4096;

/// What the rows at one radius come to.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// Right when clean for certain.
    clean_correct: usize,
    /// Right by their clean logits, but NaN arose in them, maybe in the clean image already.
    maybe_correct: usize,
    attacked: usize,
    successes: usize,
    robust: usize,
    nonfinite_samples: usize,
    max_perturbation: f32,
    max_l2: f32,
}

/// The first figure of `report` that is not what the tensors beside it, of images with so many logits, come to.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data) for tensors that cannot be read.
pub(super) fn disagreement(report: &Report, tensors: &mut TensorFile, classes: usize) -> Result<Option<String>> {
    let config = &report.identity.config;
    let rows = report.statistics.samples * config.rows_each();
    let mut counts = vec![Counts::default(); config.rows_each()];
    let mut rungs = vec![0; config.ladder.map_or(0, |ladder| ladder.rungs as usize)];
    for start in (0..rows).step_by(BLOCK) {
        let block = start..(start + BLOCK).min(rows);
        count(tensors, block.clone(), config, classes, &mut counts)?;
        if let Some(ladder) = &config.ladder {
            let turned = tensors.f32("min_eps", block)?.into_iter().filter(|eps| eps.is_finite());
            for rung in turned.filter_map(|eps| rung(ladder, eps)) {
                rungs[rung] += 1;
            }
        }
    }
    let whole = counts[config.largest()].disagreement(&report.statistics);
    let radii = report.eps.iter().zip(&counts);
    let radii = radii
        .filter_map(|(row, counts)| Some(format!("eps {}: {}", row.eps.text, counts.disagreement(&row.statistics)?)));
    let least = report.min_eps.as_ref().filter(|least| least.counts != rungs);
    let least = least.map(|least| told("min_eps", &format!("{:?}", least.counts), &format!("{rungs:?}")));
    Ok(whole.into_iter().chain(radii).chain(least).next())
}

/// Adds some rows; those of one sample stand beside each other.
fn count(
    tensors: &mut TensorFile,
    rows: Range<usize>,
    config: &Config,
    classes: usize,
    counts: &mut [Counts],
) -> Result<()> {
    let right = |logits: Vec<f32>, labels: &[i64]| -> Vec<bool> {
        logits.chunks(classes).zip(labels).map(|(z, label)| argmax(z) as i64 == *label).collect()
    };
    let labels = tensors.i64("labels", rows.clone())?;
    let clean = right(tensors.f32("clean_logits", rows.clone())?, &labels);
    let delivered = right(tensors.f32("adversarial_logits", rows.clone())?, &labels);
    let (attacked, success) = (tensors.flags("attacked", rows.clone())?, tensors.flags("success", rows.clone())?);
    let (linf, l2) = (tensors.f32("linf", rows.clone())?, tensors.f32("l2", rows.clone())?);
    let marked = if config.keep_going { tensors.marks("health", rows.clone())? } else { vec![false; rows.len()] };
    for (i, row) in rows.enumerate() {
        let sum = &mut counts[row % config.rows_each()];
        // Whoever was attacked was right.
        let is_known = !marked[i] || attacked[i];
        sum.clean_correct += usize::from(clean[i] && is_known);
        sum.maybe_correct += usize::from(clean[i] && !is_known);
        sum.attacked += usize::from(attacked[i]);
        sum.successes += usize::from(success[i]);
        sum.robust += usize::from(clean[i] && delivered[i] && !marked[i]);
        sum.nonfinite_samples += usize::from(marked[i]);
        sum.max_perturbation = sum.max_perturbation.max(linf[i]);
        sum.max_l2 = sum.max_l2.max(l2[i]);
    }
    Ok(())
}

/// The rung of a radius, from 0, if it is one.
fn rung(ladder: &Ladder, eps: f32) -> Option<usize> {
    let k = (f64::from(eps) / ladder.scale * f64::from(ladder.of)).round();
    let k = (1..=ladder.rungs).contains(&(k as u32)).then_some(k as u32)?;
    (ladder.radius(k).value as f32 == eps).then_some(k as usize - 1)
}

impl Counts {
    /// The first figure that is another in `said`.
    fn disagreement(&self, said: &Statistics) -> Option<String> {
        let most = self.clean_correct + self.maybe_correct;
        // Reports did not always have it.
        let max_l2 = if said.max_l2 == 0.0 { 0.0 } else { self.max_l2 };
        let figures = [
            ("clean_correct", said.clean_correct, said.clean_correct.clamp(self.clean_correct, most)),
            ("attacked", said.attacked, self.attacked),
            ("successes", said.successes, self.successes),
            ("robust", said.robust, self.robust),
            ("nonfinite_samples", said.nonfinite_samples, self.nonfinite_samples),
        ];
        let figures = figures.map(|(name, said, found)| (name, said.to_string(), found.to_string()));
        let lengths =
            [("max_perturbation", said.max_perturbation, self.max_perturbation), ("max_l2", said.max_l2, max_l2)];
        let lengths = lengths.map(|(name, said, found)| (name, said.to_string(), found.to_string()));
        let mut all = figures.into_iter().chain(lengths);
        all.find(|(_, said, found)| said != found).map(|(name, said, found)| told(name, &said, &found))
    }
}

fn told(figure: &str, said: &str, found: &str) -> String {
    format!("{figure} is {said} in its report and {found} in its tensors")
}
