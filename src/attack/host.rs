//! Images in the host's memory, attacked on any engine.

use super::clean::look_at_clean;
use super::engine::{Engine, Iterated, Job, Logits};
use super::health::Health;
use super::norm::Norm;
use super::outcome::Outcome;
use super::perturbation::{Perturbation, put_on};
use super::pixels::{Pixels, Tried, Verdict};
use super::quantise::{quantise, quantise_l2};
use super::rule::Trail;
use super::sample::Sample;
use super::settings::Attack;
use crate::error::{Error, Result};

/// Images in the host's memory, run by any engine.
pub(super) struct OnHost<'a> {
    attack: &'a Attack,
    engine: &'a dyn Engine,
    images: &'a [f32],
    /// As attacked, from [`Pixels::clean`] on.
    clean: Vec<f32>,
    delivered: Vec<f32>,
}

impl Pixels for OnHost<'_> {
    fn clean(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(Logits, f32)> {
        let (clean, snapped) = self.attack.as_attacked(self.images);
        let first = look_at_clean(self.engine, &clean, progress)?;
        self.delivered = clean.clone();
        self.clean = clean;
        Ok((first, snapped))
    }

    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()> {
        if let Some(perturbation) = self.attack.given() {
            return self.share(perturbation, rows, samples, progress, verdict);
        }
        let (one, k) = (self.engine.model().input.len(), self.engine.model().logits());
        // Places in `rows` that are still on their way, and what has become of them so far.
        let mut open: Vec<usize> = (0..rows.len()).collect();
        let mut zero_gradients = vec![0_u64; rows.len()];
        let mut health = vec![Health::default(); rows.len()];
        let mut trail: Option<Trail> = None;
        let stops = self.attack.stops();
        for (at, &end) in stops.iter().enumerate() {
            let x0: Vec<f32> = open.iter().flat_map(|&p| &self.clean[rows[p] * one..][..one]).copied().collect();
            let samples: Vec<Sample> = open.iter().map(|&p| samples[p]).collect();
            let steps = end - at.checked_sub(1).map_or(0, |before| stops[before]);
            let is_last = end == self.attack.steps;
            let job = Job { steps, from: trail.as_ref(), goes_on: !is_last, ..self.attack.job(&x0, &samples) };
            let moved = self.engine.iterate(&job, progress)?;
            let seen = self.see(&moved, &x0, &samples, progress)?;
            let mut left = Vec::new();
            for (place, &p) in open.iter().enumerate() {
                let i = rows[p];
                zero_gradients[p] += u64::from(moved.zero_gradients[place]);
                health[p].0 |= moved.health[place].0 | seen.float.health[place].0 | seen.rounded.health[place].0;
                let z = place * k..(place + 1) * k;
                let rounded = &seen.rounded.logits[z.clone()];
                let may_stop = health[p].is_healthy() && verdict.is_hit(i, rounded);
                if !is_last && !may_stop {
                    left.push(place);
                    continue;
                }
                let float = &seen.float.logits[z];
                let tried = Tried { float, rounded, steps: end, zero_gradients: zero_gradients[p], health: health[p] };
                if verdict.judge(i, tried) {
                    self.delivered[i * one..][..one].copy_from_slice(&seen.images[place * one..][..one]);
                }
            }
            if left.is_empty() {
                break;
            }
            trail = moved.trail.map(|t| t.select(&left));
            open = left.iter().map(|&place| open[place]).collect();
        }
        Ok(())
    }
}

/// Iterates as they would be delivered, and what the network says of them.
struct Seen {
    images: Vec<f32>,
    float: Logits,
    rounded: Logits,
}

impl<'a> OnHost<'a> {
    pub(super) fn new(attack: &'a Attack, engine: &'a dyn Engine, images: &'a [f32]) -> Self {
        OnHost { attack, engine, images, clean: Vec::new(), delivered: Vec::new() }
    }

    /// What needs the pixels: clean images, delivered ones, and how far these moved.
    pub(super) fn hand_over(self, out: &mut Outcome) {
        let OnHost { clean, delivered, .. } = self;
        let one = self.engine.model().input.len();
        let moves = clean.chunks(one).zip(delivered.chunks(one)).map(|(x0, x)| {
            // What is NaN or infinite was left where it was.
            let move_of = |(x, x0): (&f32, &f32)| if x0.is_finite() { f64::from(*x) - f64::from(*x0) } else { 0.0 };
            let moves = || x.iter().zip(x0).map(move_of);
            (moves().fold(0.0, |m, d| f64::max(m, d.abs())) as f32, moves().map(|d| d * d).sum::<f64>().sqrt() as f32)
        });
        (out.linf, out.l2) = moves.unzip();
        (out.clean, out.adversarial) = (clean, delivered);
    }

    /// Puts one perturbation on the images of `rows`.
    fn share(
        &mut self,
        perturbation: &Perturbation,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()> {
        let (one, k) = (self.engine.model().input.len(), self.engine.model().logits());
        let x0: Vec<f32> = rows.iter().flat_map(|i| &self.clean[i * one..][..one]).copied().collect();
        let bounds = self.attack.engine_bounds();
        let images = x0.chunks(one).flat_map(|x0| put_on(x0, &perturbation.values, bounds)).collect();
        let moved = Iterated { images, ..Iterated::default() };
        let seen = self.see(&moved, &x0, samples, progress)?;
        for (place, &i) in rows.iter().enumerate() {
            let (steps, zero_gradients, health) = perturbation.met(i);
            let [float, rounded] = [&seen.float, &seen.rounded].map(|z| &z.logits[place * k..(place + 1) * k]);
            let health = Health(health.0 | seen.float.health[place].0 | seen.rounded.health[place].0);
            let tried = Tried { float, rounded, steps: steps as u32, zero_gradients, health };
            if verdict.judge(i, tried) {
                self.delivered[i * one..][..one].copy_from_slice(&seen.images[place * one..][..one]);
            }
        }
        Ok(())
    }

    fn see(
        &self,
        moved: &Iterated,
        x0: &[f32],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Seen> {
        let one = self.engine.model().input.len();
        let float = self.engine.logits_with(&moved.images, progress)?;
        if !self.attack.delivers_bytes() {
            return Ok(Seen { images: moved.images.clone(), rounded: float.clone(), float });
        }
        let pairs = moved.images.chunks(one).zip(x0.chunks(one)).zip(samples);
        let images = pairs.map(|((x, x0), s)| self.attack.deliver(x, x0, s)).collect::<Result<Vec<_>>>()?.concat();
        Ok(Seen { rounded: self.engine.logits_with(&images, progress)?, images, float })
    }
}

impl Attack {
    /// Rounds one image to bytes, and checks what came of it: on the grid, inside the ball.
    fn deliver(&self, x: &[f32], x0: &[f32], sample: &Sample) -> Result<Vec<f32>> {
        let moved = |out: &[f32]| out.iter().zip(x0).map(|(d, x0)| ((d - x0).abs() * 255.0).round() as u64).collect();
        let squares = |levels: &[u64]| levels.iter().map(|d| d.saturating_mul(*d)).fold(0, u64::saturating_add);
        let (out, far): (_, bool) = match self.norm {
            Norm::Linf => {
                let out: Vec<f32> = x.iter().zip(x0).map(|(&x, &x0)| quantise(x, x0, sample.levels as i32)).collect();
                let levels: Vec<u64> = moved(&out);
                (out, levels.iter().any(|d| *d > u64::from(sample.levels)))
            }
            Norm::L2 => {
                let out = quantise_l2(x, x0, sample.levels);
                let levels: Vec<u64> = moved(&out);
                (out, sample.levels < u32::MAX && squares(&levels) > u64::from(sample.levels))
            }
        };
        if far {
            return Err(Error::Internal(format!("the image of sample {} was rounded out of its ball", sample.id)));
        }
        Ok(out)
    }
}
