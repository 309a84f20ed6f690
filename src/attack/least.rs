//! The smallest radius that turns each sample, found by bisection, every sample on its own way down the same ladder.

use super::engine::Engine;
use super::outcome::Outcome;
use super::settings::{Attack, Own};
use super::targets::Targets;
use crate::error::{Error, Result};
use std::cmp::Ordering;

/// A radius and the length of the steps inside it, in pixel units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// Radius of the ball.
    pub eps: f32,
    /// Length of the steps.
    pub step_size: f32,
}

/// What [`Attack::least`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Least {
    /// Of each sample at the smallest radius that turned it; where none did, at the largest. What tells of float
    /// iterates (`float_logits`, `success_float`) is of the largest radius; steps and gradients without a sign are
    /// those of all, and `effective_eps` is of [`Attack::eps`], which no rung looks at.
    pub outcome: Outcome,
    /// Index of that radius in the ladder, `None` where the largest did not turn it.
    pub rungs: Vec<Option<usize>>,
}

/// Where a sample is: it is not turned at `fails` (`None`: not even the smallest was tried), and is at `turns`.
#[derive(Clone, Copy)]
struct Place {
    sample: usize,
    fails: Option<usize>,
    turns: usize,
}

impl Place {
    /// The rung between the two, unless they are neighbours.
    fn next(&self) -> Option<usize> {
        let open = self.fails.map_or(0, |f| f + 1)..self.turns;
        (!open.is_empty()).then(|| usize::midpoint(open.start, open.end))
    }
}

impl Attack {
    /// Runs with the last radius of `ladder` (in rising order), and then searches for the first that turns each sample.
    /// Eps and step size of the attack itself are not used, though they must make sense ([`Attack::validate`]), and
    /// [`Attack::each`] is not looked at. Whatever is found is a success at its radius and was none at the radius
    /// before; where success does not rise with the radius, a smaller one might do as well.
    ///
    /// # Errors
    /// As [`Attack::run_with`]; [`Error::Usage`] for a ladder that is empty or falls.
    pub fn least(
        &self,
        engine: &dyn Engine,
        images: &[f32],
        labels: &[i64],
        ladder: &[Rung],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Least> {
        let one = engine.model().input.len();
        let Some(last) = ladder.len().checked_sub(1) else {
            return Err(Error::Usage("a ladder without a radius".into()));
        };
        // NaN is in no order.
        let falls = |k: &usize| ladder[*k].eps.partial_cmp(&ladder[k + 1].eps).is_none_or(Ordering::is_gt);
        if let Some(k) = (0..last).find(falls) {
            let (eps, next) = (ladder[k].eps, ladder[k + 1].eps);
            return Err(Error::Usage(format!("a ladder must rise, but {next} comes behind {eps}")));
        }
        let mut run = |on: &[(usize, usize)]| -> Result<Outcome> {
            let own = |&(sample, rung): &(usize, usize)| Own {
                id: self.first_id.wrapping_add(sample as u64),
                eps: ladder[rung].eps,
                step_size: ladder[rung].step_size,
            };
            let pick = |images: &[f32]| on.iter().flat_map(|(i, _)| &images[i * one..(i + 1) * one]).copied().collect();
            let targets = match &self.targets {
                Targets::Classes(classes) if classes.len() == labels.len() => {
                    Targets::Classes(on.iter().map(|(i, _)| classes[*i]).collect())
                }
                rule => rule.clone(),
            };
            let attack = self.clone().targets(targets).each(on.iter().map(own).collect());
            let (pixels, labels): (Vec<f32>, Vec<i64>) = (pick(images), on.iter().map(|(i, _)| labels[*i]).collect());
            attack.run_with(engine, &pixels, &labels, &mut *progress)
        };
        if images.len() != labels.len() * one {
            let detail = format!("{} values for {} labels, but an image has {one}", images.len(), labels.len());
            return Err(Error::data("images", detail));
        }
        let all: Vec<(usize, usize)> = (0..labels.len()).map(|i| (i, last)).collect();
        let mut outcome = run(&all)?;
        let mut rungs: Vec<Option<usize>> = outcome.success.iter().map(|turned| turned.then_some(last)).collect();
        let mut open: Vec<Place> = (0..labels.len())
            .filter(|i| rungs[*i].is_some())
            .map(|sample| Place { sample, fails: None, turns: last })
            .collect();
        loop {
            let tries: Vec<(Place, usize)> = open.iter().filter_map(|p| Some((*p, p.next()?))).collect();
            if tries.is_empty() {
                return Ok(Least { outcome, rungs });
            }
            let on: Vec<(usize, usize)> = tries.iter().map(|(place, rung)| (place.sample, *rung)).collect();
            let tried = run(&on)?;
            open.clear();
            for (row, (mut place, rung)) in tries.into_iter().enumerate() {
                outcome.count(place.sample, &tried, row);
                if tried.success[row] {
                    outcome.adopt(place.sample, &tried, row);
                    rungs[place.sample] = Some(rung);
                    place.turns = rung;
                } else {
                    place.fails = Some(rung);
                }
                open.push(place);
            }
        }
    }
}

impl Outcome {
    /// Adds the work that another run did on a sample, which is `row` there.
    fn count(&mut self, sample: usize, other: &Outcome, row: usize) {
        self.zero_gradients[sample] += other.zero_gradients[row];
        self.steps_taken[sample] += other.steps_taken[row];
        self.health[sample].0 |= other.health[row].0;
    }

    /// Takes what another run delivers for a sample.
    fn adopt(&mut self, sample: usize, other: &Outcome, row: usize) {
        fn copy<T: Copy>(into: &mut [T], from: &[T], samples: (usize, usize), at: (usize, usize)) {
            let (n, m) = (into.len() / samples.0, from.len() / samples.1);
            into[at.0 * n..(at.0 + 1) * n].copy_from_slice(&from[at.1 * m..(at.1 + 1) * m]);
        }
        let (samples, at) = ((self.len(), other.len()), (sample, row));
        copy(&mut self.adversarial, &other.adversarial, samples, at);
        copy(&mut self.adversarial_logits, &other.adversarial_logits, samples, at);
        copy(&mut self.success, &other.success, samples, at);
        copy(&mut self.loss, &other.loss, samples, at);
        copy(&mut self.linf, &other.linf, samples, at);
        copy(&mut self.l2, &other.l2, samples, at);
        copy(&mut self.restart, &other.restart, samples, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_ends_between_two_neighbours() {
        for last in 0..40 {
            for first in 0..=last {
                // Rungs from `first` on turn it.
                let mut place = Place { sample: 0, fails: None, turns: last };
                let mut rounds = 0;
                while let Some(rung) = place.next() {
                    if rung >= first {
                        place.turns = rung;
                    } else {
                        place.fails = Some(rung);
                    }
                    rounds += 1;
                }
                assert_eq!((place.turns, place.fails), (first, first.checked_sub(1)), "{first} of {last}");
                assert!(rounds <= usize::BITS - last.leading_zeros(), "{rounds} rounds for {last}");
            }
        }
    }
}
