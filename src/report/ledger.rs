//! What becomes of every sample under one attack after the other: who is still right, and what the strongest made of
//! it.

use super::statistics::rate;
use crate::attack::{Attack, Health, Logits, Norm, Outcome, argmax, budget, budget_l2, cross_entropy};
use serde::{Deserialize, Serialize};

/// No attack has turned it.
pub(super) const UNTURNED: i64 = -1;
/// The network is wrong without any attack.
pub(super) const WRONG: i64 = -2;
/// NaN or infinity arose in it under an attack: neither turned nor robust.
pub(super) const MARKED: i64 = -3;

/// One entry a sample, of samples in the order of the data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// True classes.
    pub(super) labels: Vec<i64>,
    /// Index of the first attack that turned it as delivered, [`UNTURNED`], [`WRONG`] or [`MARKED`].
    pub(super) broken_by: Vec<i64>,
    /// The same for the float iterate.
    pub(super) broken_by_float: Vec<i64>,
    /// Cross-entropy on the label: of the clean image, and of what is delivered.
    clean_loss: Vec<f32>,
    pub(super) loss: Vec<f32>,
    /// Distances of what is delivered, and its smallest and largest value.
    pub(super) linf: Vec<f32>,
    pub(super) l2: Vec<f32>,
    range: Vec<(f32, f32)>,
    /// Whether any attack was tried on it, and whether one of them never had a gradient.
    tried: Vec<bool>,
    without_gradient: Vec<bool>,
    /// Delivered images that were not on the grid, or not in the ball.
    unsound: usize,
    /// Where NaN or infinity arose.
    pub(super) health: Vec<Health>,
    snapped: f32,
    /// Rows of clean logits that could be probabilities.
    like_probabilities: usize,
}

/// What one attack did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Samples that were still right, as delivered or in float, before it.
    pub tried: usize,
    /// Of those, turned as delivered; none is counted for two attacks.
    pub turned: usize,
    /// The same for the float iterate.
    pub turned_float: usize,
    /// Gradients taken.
    pub gradients: u64,
    /// Forward passes, those of the gradients and of the check of what is delivered included.
    pub forward_passes: u64,
    /// Samples that never had a gradient: for them the attack says nothing.
    pub samples_without_gradient: usize,
    /// Samples that were not turned, and whose loss is lower than that of the clean image.
    pub samples_whose_loss_fell: usize,
}

impl Tally {
    /// Of two parts of the data together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Tally {
            tried: self.tried + other.tried,
            turned: self.turned + other.turned,
            turned_float: self.turned_float + other.turned_float,
            gradients: self.gradients + other.gradients,
            forward_passes: self.forward_passes + other.forward_passes,
            samples_without_gradient: self.samples_without_gradient + other.samples_without_gradient,
            samples_whose_loss_fell: self.samples_whose_loss_fell + other.samples_whose_loss_fell,
        }
    }
}

/// Why the rates can be believed, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Largest |delivered − clean|.
    pub max_linf: f32,
    /// Largest Euclidean length of delivered − clean.
    pub max_l2: f32,
    /// Smallest value delivered.
    pub delivered_min: f32,
    /// Largest value delivered.
    pub delivered_max: f32,
    /// Largest distance by which a clean image moved when it was rounded to 8 bits.
    pub snapped: f32,
    /// Samples in which NaN or infinity arose; unless it is told to keep going, the program ends with an error at the
    /// first.
    pub nonfinite_samples: usize,
    /// Samples for which one of the attacks never had a gradient.
    pub samples_without_gradient: usize,
    /// Samples that no attack turned, and whose loss every attack left lower than that of the clean image.
    pub samples_whose_loss_fell: usize,
    /// Whether every delivered image was k/255 throughout; `None` where floats are delivered.
    pub eight_bit: Option<bool>,
    /// Delivered images outside of their ball or bounds, or off the grid.
    pub unsound_images: usize,
    /// Whether all rows of clean logits are nonnegative and sum to 1, as what comes out of a softmax does.
    pub logits_look_like_probabilities: bool,
}

impl Ledger {
    /// Adds the next samples: clean images `[n, …]` with their logits `[n, K]`; `snapped` is how far one moved at most.
    /// One in which NaN or infinity arose already is not right.
    pub fn open(&mut self, labels: &[i64], images: &[f32], seen: &Logits, snapped: f32) {
        let logits = &seen.logits;
        let (one, k) = (images.len() / labels.len().max(1), logits.len() / labels.len().max(1));
        for (i, &label) in labels.iter().enumerate() {
            let z = &logits[i * k..(i + 1) * k];
            let is_right = seen.health[i].is_healthy() && argmax(z) as i64 == label;
            let state = if is_right { UNTURNED } else { WRONG };
            self.health.push(seen.health[i]);
            let loss = cross_entropy(z, label as usize);
            self.labels.push(label);
            self.broken_by.push(state);
            self.broken_by_float.push(state);
            self.clean_loss.push(loss);
            self.loss.push(loss);
            self.range.push(extent(&images[i * one..(i + 1) * one]));
            self.like_probabilities += usize::from(could_be_probabilities(z));
        }
        let n = self.labels.len();
        self.linf.resize(n, 0.0);
        self.l2.resize(n, 0.0);
        self.tried.resize(n, false);
        self.without_gradient.resize(n, false);
        self.snapped = self.snapped.max(snapped);
    }

    /// Samples that are right, as delivered or in float: the next attack has something to gain.
    pub fn survivors(&self) -> Vec<usize> {
        let stands = |i: &usize| self.broken_by[*i] == UNTURNED || self.broken_by_float[*i] == UNTURNED;
        (0..self.labels.len()).filter(stands).collect()
    }

    /// Takes in what the attack with the index `index` made of the samples `rows`; `keep` is given each image that
    /// takes the place of what would have been delivered.
    pub fn add<E>(
        &mut self,
        index: usize,
        attack: &Attack,
        rows: &[usize],
        outcome: &Outcome,
        mut keep: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<Tally, E> {
        let n = rows.len().max(1);
        let (one, k) = (outcome.adversarial.len() / n, outcome.adversarial_logits.len() / n);
        let mut tally = Tally { tried: rows.len(), ..Tally::default() };
        for (place, &i) in rows.iter().enumerate() {
            let z = |logits: &[f32]| argmax(&logits[place * k..(place + 1) * k]) as i64 != self.labels[i];
            let (turned, turned_float) = (z(&outcome.adversarial_logits), z(&outcome.float_logits));
            let pixels = place * one..(place + 1) * one;
            let (clean, image) = (&outcome.clean[pixels.clone()], &outcome.adversarial[pixels]);
            let loss = cross_entropy(&outcome.adversarial_logits[place * k..(place + 1) * k], self.labels[i] as usize);
            self.unsound += usize::from(!is_sound(attack, clean, image));
            let is_healthy = outcome.health[place].is_healthy();
            if is_healthy && turned_float && self.broken_by_float[i] == UNTURNED {
                self.broken_by_float[i] = index as i64;
                tally.turned_float += 1;
            }
            let steps = outcome.steps_taken[place];
            // Where an attempt ended early it was one all the same.
            let attempts = steps.div_ceil(u64::from(attack.step_count()));
            let (gradients, forward_passes) = attack.cost(steps, attempts);
            tally.gradients += gradients;
            // One more for the logits of the clean image.
            tally.forward_passes += forward_passes + 1;
            if gradients > 0 && outcome.zero_gradients[place] >= one as u64 * gradients {
                tally.samples_without_gradient += 1;
                self.without_gradient[i] = true;
            }
            if !is_healthy {
                self.mark(i, outcome.health[place], clean, &mut keep)?;
                continue;
            }
            tally.samples_whose_loss_fell += usize::from(!turned && loss < self.clean_loss[i]);
            if self.broken_by[i] != UNTURNED {
                continue;
            }
            if turned {
                self.broken_by[i] = index as i64;
                tally.turned += 1;
            }
            // Where all fail the highest loss counts, of equals the earliest.
            if turned || !self.tried[i] || loss > self.loss[i] {
                self.loss[i] = loss;
                (self.linf[i], self.l2[i]) = (outcome.linf[place], outcome.l2[place]);
                self.range[i] = extent(image);
                keep(i, image)?;
            }
            self.tried[i] = true;
        }
        Ok(tally)
    }

    /// NaN or infinity arose in a sample: no attack has it any more, and the clean image is delivered unless another
    /// one was turned.
    fn mark<E>(
        &mut self,
        i: usize,
        health: Health,
        clean: &[f32],
        keep: &mut impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.health[i].0 |= health.0;
        if self.broken_by_float[i] == UNTURNED {
            self.broken_by_float[i] = MARKED;
        }
        if self.broken_by[i] == UNTURNED {
            self.broken_by[i] = MARKED;
            self.loss[i] = self.clean_loss[i];
            (self.linf[i], self.l2[i], self.range[i]) = (0.0, 0.0, extent(clean));
            keep(i, clean)?;
        }
        Ok(())
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.labels.len()
    }

    /// Samples that are right when clean.
    pub fn clean_correct(&self) -> usize {
        self.broken_by.iter().filter(|b| **b != WRONG).count()
    }

    /// Samples that are right as delivered, whatever was tried so far.
    pub fn robust(&self) -> usize {
        self.broken_by.iter().filter(|b| **b == UNTURNED).count()
    }

    /// The same for the float iterates.
    pub fn robust_float(&self) -> usize {
        self.broken_by_float.iter().filter(|b| **b == UNTURNED).count()
    }

    /// What speaks for or against the rates; `bytes` when 8-bit values are delivered.
    pub fn evidence(&self, bytes: bool) -> Evidence {
        let most = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        let fell = |i: &usize| self.tried[*i] && self.broken_by[*i] == UNTURNED && self.loss[*i] < self.clean_loss[*i];
        Evidence {
            max_linf: most(&self.linf),
            max_l2: most(&self.l2),
            delivered_min: self.range.iter().map(|r| r.0).fold(f32::INFINITY, f32::min),
            delivered_max: self.range.iter().map(|r| r.1).fold(f32::NEG_INFINITY, f32::max),
            snapped: self.snapped,
            nonfinite_samples: self.health.iter().filter(|h| !h.is_healthy()).count(),
            samples_without_gradient: self.without_gradient.iter().filter(|w| **w).count(),
            samples_whose_loss_fell: (0..self.samples()).filter(fell).count(),
            eight_bit: bytes.then_some(self.unsound == 0),
            unsound_images: self.unsound,
            logits_look_like_probabilities: self.like_probabilities == self.samples() && self.samples() > 0,
        }
    }

    /// Share of the samples, `None` when there are none.
    pub fn share(&self, part: usize) -> Option<f64> {
        rate(part, self.samples())
    }
}

fn extent(image: &[f32]) -> (f32, f32) {
    image.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)))
}

fn could_be_probabilities(z: &[f32]) -> bool {
    z.iter().all(|z| *z >= 0.0) && (z.iter().map(|z| f64::from(*z)).sum::<f64>() - 1.0).abs() < 1e-3
}

/// Looks at a delivered image anew, whatever made it: k/255 where bytes are delivered, and inside the ball.
fn is_sound(attack: &Attack, clean: &[f32], image: &[f32]) -> bool {
    let eps = attack.eps();
    if attack.delivers_bytes() {
        let level = |x: f32| (x * 255.0).round();
        let on_grid = image.iter().all(|&x| (0.0..=1.0).contains(&x) && x == level(x) / 255.0);
        let moves = image.iter().zip(clean).map(|(&x, &x0)| (level(x) - level(x0)).abs() as u64);
        return on_grid
            && match attack.norm() {
                Norm::Linf => moves.max().unwrap_or(0) <= budget(eps) as u64,
                Norm::L2 => moves.map(|m| m * m).sum::<u64>() <= u64::from(budget_l2(eps)),
            };
    }
    // The clean pixel, the radius and their sum are each rounded to f32.
    let room = |size: f64| size <= f64::from(eps) * (1.0 + 1e-5) + 1e-6;
    let moves = image.iter().zip(clean).map(|(&x, &x0)| (f64::from(x) - f64::from(x0)).abs());
    image.iter().all(|x| x.is_finite())
        && match attack.norm() {
            Norm::Linf => room(moves.fold(0.0, f64::max)),
            Norm::L2 => room(moves.map(|m| m * m).sum::<f64>().sqrt()),
        }
}

#[cfg(test)]
mod tests {
    use super::super::statistics::tests::outcome;
    use super::*;
    use crate::attack::Method;
    use crate::model::Dims;

    const DIMS: Dims = Dims { c: 1, h: 2, w: 3 };

    fn attack() -> Attack {
        Attack::new(Method::Ifgsm, Norm::Linf, 2.0 / 255.0)
    }

    fn seen(logits: &[f32], n: usize) -> Logits {
        Logits { logits: logits.to_vec(), health: vec![Health::default(); n] }
    }

    fn ledger(o: &Outcome) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.open(&o.labels, &o.clean, &seen(&o.clean_logits, o.labels.len()), 0.0);
        ledger
    }

    fn never(_: usize, _: &[f32]) -> Result<(), ()> {
        Ok(())
    }

    #[test]
    fn a_sample_is_counted_for_the_first_attack_that_turns_it_and_leaves_when_both_kinds_are_turned() {
        let o = outcome(DIMS);
        let mut ledger = ledger(&o);
        assert_eq!((ledger.samples(), ledger.clean_correct(), ledger.survivors()), (4, 3, vec![0, 1, 3]));
        let rows = [0, 1, 2, 3];
        let mut kept = Vec::new();
        let keep = |i: usize, _: &[f32]| -> Result<(), ()> {
            kept.push(i);
            Ok(())
        };
        let tally = ledger.add(0, &attack(), &rows, &o, keep).unwrap();
        // Sample 3 is turned in float alone, and so is tried again.
        assert_eq!((tally.turned, tally.turned_float), (1, 2));
        assert_eq!((ledger.robust(), ledger.robust_float()), (2, 1));
        assert_eq!(ledger.survivors(), [1, 3]);
        assert_eq!((kept, &ledger.broken_by[..]), (vec![0, 1, 3], &[0, UNTURNED, WRONG, UNTURNED][..]));
        let again = ledger.add(1, &attack(), &rows, &o, never).unwrap();
        assert_eq!((again.turned, again.turned_float), (0, 0));
        assert_eq!(ledger.broken_by_float, [0, UNTURNED, WRONG, 0]);
    }

    #[test]
    fn what_is_spent_and_what_had_no_gradient_is_counted() {
        let o = outcome(DIMS);
        let mut ledger = ledger(&o);
        let tally = ledger.add(0, &attack(), &[0, 1, 2, 3], &o, never).unwrap();
        // Three samples of ten steps: each step, the float and the rounded image; and four clean images.
        assert_eq!((tally.gradients, tally.forward_passes), (30, 3 * 12 + 4));
        assert_eq!(tally.samples_without_gradient, 1);
        assert_eq!(ledger.evidence(true).samples_without_gradient, 1);
        let mut sick = o.clone();
        sick.health[1] = Health::LOGITS;
        ledger.add(1, &attack(), &[0, 1, 2, 3], &sick, never).unwrap();
        assert_eq!(ledger.evidence(true).nonfinite_samples, 1);
    }

    #[test]
    fn what_is_marked_is_neither_turned_nor_robust_and_the_clean_image_is_delivered() {
        let o = outcome(DIMS);
        let rows = [0, 1, 2, 3];
        let mut sick = o.clone();
        (sick.health[0], sick.health[1], sick.health[3]) = (Health::GRADIENT, Health::LOGITS, Health::LOGITS);
        let mut ledger = ledger(&o);
        ledger.add(0, &attack(), &rows, &o, never).unwrap();
        let mut kept = Vec::new();
        let tally = ledger
            .add(1, &attack(), &rows, &sick, |i, image| -> Result<(), ()> {
                kept.push((i, image.to_vec()));
                Ok(())
            })
            .unwrap();
        // Sample 0 had been turned before, 3 in float alone; 2 is wrong when clean.
        assert_eq!((tally.turned, tally.turned_float), (0, 0));
        assert_eq!(ledger.broken_by, [0, MARKED, WRONG, MARKED]);
        assert_eq!(ledger.broken_by_float, [0, MARKED, WRONG, 0]);
        assert_eq!((ledger.robust(), ledger.robust_float(), ledger.clean_correct()), (0, 0, 3));
        assert!(ledger.survivors().is_empty());
        let clean = |i: usize| (i, o.clean[i * DIMS.len()..(i + 1) * DIMS.len()].to_vec());
        assert_eq!(kept, [clean(1), clean(3)]);
        assert_eq!((ledger.linf[3], ledger.evidence(true).nonfinite_samples), (0.0, 3));
        // One that is not finite when clean is not right, and no attack gets it.
        let mut ledger = Ledger::default();
        let seen = Logits { health: vec![Health::LOGITS, Health::default()], ..seen(&[1.0, 0.0, 1.0, 0.0], 2) };
        ledger.open(&[0, 0], &[0.0, 1.0], &seen, 0.0);
        assert_eq!((ledger.clean_correct(), ledger.survivors()), (1, vec![1]));
    }

    /// Rounding may turn what the float iterate did not: then the next attack has something to gain still.
    #[test]
    fn what_is_turned_as_delivered_alone_is_tried_again() {
        let mut o = outcome(DIMS);
        o.float_logits.clone_from(&o.clean_logits);
        let mut ledger = ledger(&o);
        ledger.add(0, &attack(), &[0, 1, 2, 3], &o, never).unwrap();
        assert_eq!((ledger.robust(), ledger.robust_float(), ledger.survivors()), (2, 3, vec![0, 1, 3]));
    }

    /// An attempt that ended early was one, and one step without a sign is no attack without a gradient.
    #[test]
    fn what_is_spent_is_counted_where_an_attempt_ends_early_and_some_steps_have_no_gradient() {
        let mut o = outcome(DIMS);
        (o.steps_taken, o.zero_gradients) = (vec![7, 13, 0, 0], vec![DIMS.len() as u64, 0, 0, 0]);
        let mut ledger = ledger(&o);
        let tally = ledger.add(0, &attack(), &[0, 1, 2, 3], &o, never).unwrap();
        // One attempt and two, each of them looked at twice.
        assert_eq!((tally.gradients, tally.forward_passes), (20, 20 + 2 + 2 * 2 + 4));
        assert_eq!((tally.samples_without_gradient, ledger.evidence(true).samples_without_gradient), (0, 0));
    }

    /// One image of three classes, right with a loss of almost ln 3; and what came of it, at one level for all pixels.
    fn one(logits: [f32; 3], level: f32) -> Outcome {
        let (mut o, len) = (outcome(DIMS), DIMS.len());
        (o.clean, o.adversarial) = (vec![51.0 / 255.0; len], vec![level / 255.0; len]);
        (o.labels, o.targets) = (vec![0], vec![-1]);
        (o.clean_logits, o.adversarial_logits, o.float_logits) = (vec![0.1, 0.0, 0.0], logits.into(), logits.into());
        (o.linf, o.l2) = (vec![(level - 51.0) / 255.0], vec![(level - 51.0) / 100.0]);
        (o.steps_taken, o.zero_gradients, o.health) = (vec![10], vec![0], vec![Health::default()]);
        o
    }

    /// Takes in what attacks made of one image; gives the ledger, their tallies, and the level of each image that was
    /// kept.
    fn one_after_the_other(outcomes: &[Outcome]) -> (Ledger, Vec<Tally>, Vec<f32>) {
        let (mut ledger, mut kept) = (ledger(&outcomes[0]), Vec::new());
        let mut add = |(index, o): (usize, &Outcome)| {
            let keep = |_: usize, image: &[f32]| -> Result<(), ()> {
                kept.push((255.0 * image[0]).round());
                Ok(())
            };
            ledger.add(index, &attack(), &[0], o, keep).unwrap()
        };
        let tallies = outcomes.iter().enumerate().map(&mut add).collect();
        (ledger, tallies, kept)
    }

    const WEAK: [f32; 3] = [1.0, 0.9, 0.9];
    const STRONG: [f32; 3] = [1.0, 0.9, 0.99];
    /// Its loss is lower than that of the clean image, for the third class is out of the running.
    const TURNED: [f32; 3] = [1.0, 1.1, -9.0];

    #[test]
    fn of_attacks_that_fail_the_highest_loss_is_delivered_of_equals_the_earliest() {
        let (ledger, _, kept) =
            one_after_the_other(&[one(WEAK, 50.0), one(STRONG, 52.0), one(STRONG, 53.0), one(WEAK, 49.0)]);
        assert_eq!(kept, [50.0, 52.0]);
        let evidence = ledger.evidence(true);
        let level = |x: f32| (255.0 * x).round();
        assert_eq!((level(evidence.delivered_min), level(evidence.delivered_max)), (52.0, 52.0));
        assert_eq!((level(evidence.max_linf), evidence.max_l2), (1.0, 0.01));
    }

    #[test]
    fn what_turns_an_image_is_delivered_whatever_its_loss() {
        let (ledger, tallies, kept) = one_after_the_other(&[one(STRONG, 52.0), one(TURNED, 53.0)]);
        assert_eq!((kept, &ledger.broken_by[..]), (vec![52.0, 53.0], &[1][..]));
        assert_eq!(ledger.loss, [cross_entropy(&TURNED, 0)]);
        // Lower than that of the clean image, but the attack did what it was to do.
        assert!(ledger.loss[0] < ledger.clean_loss[0]);
        assert_eq!((tallies[1].samples_whose_loss_fell, ledger.evidence(true).samples_whose_loss_fell), (0, 0));
    }

    #[test]
    fn a_loss_that_only_falls_is_told() {
        let fell = |logits| {
            let (ledger, tallies, _) = one_after_the_other(&[one(logits, 52.0)]);
            (tallies[0].samples_whose_loss_fell, ledger.evidence(true).samples_whose_loss_fell)
        };
        assert_eq!((fell([1.0, 0.0, 0.0]), fell([1.0, 1.0, 1.0]), fell([0.1, 0.0, 0.0])), ((1, 1), (0, 0), (0, 0)));
    }

    #[test]
    fn tallies_of_parts_add_up() {
        let tally = |k: usize| Tally {
            tried: 9 * k,
            turned: 4 * k,
            turned_float: 5 * k,
            gradients: 70 * k as u64,
            forward_passes: 80 * k as u64,
            samples_without_gradient: 2 * k,
            samples_whose_loss_fell: k,
        };
        assert_eq!(tally(1).plus(tally(2)), tally(3));
    }

    #[test]
    fn what_is_marked_counts_with_its_clean_image() {
        let mut sick = one(STRONG, 53.0);
        sick.health[0] = Health::LOGITS;
        let (ledger, _, kept) = one_after_the_other(&[one(STRONG, 52.0), sick]);
        assert_eq!((kept, ledger.loss[0]), (vec![52.0, 51.0], ledger.clean_loss[0]));
        let evidence = ledger.evidence(true);
        assert_eq!((evidence.delivered_min, evidence.delivered_max), (51.0 / 255.0, 51.0 / 255.0));
        assert_eq!((evidence.max_linf, evidence.max_l2), (0.0, 0.0));
    }

    #[test]
    fn evidence_tells_unsound_images_and_the_largest_move_of_a_clean_one() {
        let (sound, ..) = one_after_the_other(&[one(WEAK, 53.0)]);
        assert_eq!((sound.evidence(true).unsound_images, sound.evidence(true).eight_bit), (0, Some(true)));
        // Two levels are allowed; what an attack does not deliver in the end counts, too.
        let (far, ..) = one_after_the_other(&[one(STRONG, 53.0), one(WEAK, 54.0)]);
        assert_eq!((far.evidence(true).unsound_images, far.evidence(true).eight_bit), (1, Some(false)));
        assert_eq!(far.evidence(false).eight_bit, None);
        let mut ledger = Ledger::default();
        for moved in [0.001, 0.002, 0.0] {
            ledger.open(&[0], &[0.0], &seen(&[1.0, 0.0], 1), moved);
        }
        assert_eq!(ledger.evidence(true).snapped, 0.002);
        assert!(!Ledger::default().evidence(true).logits_look_like_probabilities);
    }

    #[test]
    fn images_off_the_grid_or_out_of_the_ball_are_found() {
        let clean = [10.0 / 255.0; 2];
        let with = |x: f32| [clean[0], x];
        assert!(is_sound(&attack(), &clean, &with(12.0 / 255.0)));
        assert!(!is_sound(&attack(), &clean, &with(13.0 / 255.0)));
        assert!(!is_sound(&attack(), &clean, &with(11.5 / 255.0)));
        assert!(!is_sound(&attack(), &clean, &with(f32::NAN)));
        let floats = attack().quantise(false);
        assert!(is_sound(&floats, &clean, &with(11.5 / 255.0)) && !is_sound(&floats, &clean, &with(12.1 / 255.0)));
        assert!(!is_sound(&floats, &clean, &with(f32::NAN)));
        let l2_floats = Attack::new(Method::Pgd, Norm::L2, 2.0 / 255.0).quantise(false);
        assert!(is_sound(&l2_floats, &clean, &with(11.9 / 255.0)) && !is_sound(&l2_floats, &clean, &[11.9 / 255.0; 2]));
        // A level beyond white, though on the grid and near.
        assert!(!is_sound(&attack(), &[1.0; 2], &[1.0, 256.0 / 255.0]));
        let l2 = Attack::new(Method::Pgd, Norm::L2, 2.0 / 255.0);
        assert!(is_sound(&l2, &clean, &[12.0 / 255.0, clean[1]]) && !is_sound(&l2, &clean, &[12.0 / 255.0; 2]));
    }

    #[test]
    fn a_softmax_given_as_logits_is_noticed() {
        assert!(could_be_probabilities(&[0.2, 0.8, 0.0]));
        assert!(!could_be_probabilities(&[0.2, 0.9, -0.1]) && !could_be_probabilities(&[0.5, 1.5]));
        let mut ledger = Ledger::default();
        ledger.open(&[0, 1], &[0.0, 1.0], &seen(&[1.0, 0.0, 0.5, 0.5], 2), 0.0);
        assert!(ledger.evidence(true).logits_look_like_probabilities);
        ledger.open(&[0], &[0.0], &seen(&[2.0, 0.0], 1), 0.0);
        assert!(!ledger.evidence(true).logits_look_like_probabilities);
    }
}
