//! One perturbation for all images: fitted over as many chunks as it takes, and put on images. It and the sum of
//! gradients stay on the device from one chunk to the next.

use super::chunk::Chunk;
use super::{Network, append};
use crate::attack::{Engine, Fit, Health, Perturbation, Sample};
use crate::error::{Error, Result};
use crate::ops::quantise::OUTSIDE;
use crate::ops::shared::MOST;
use std::ops::Range;

impl Network {
    /// As [`Engine::fit`], with `load` putting the clean images of a range of samples into x0.
    pub(super) fn fit_to(
        &self,
        fit: &Fit<'_>,
        load: &mut dyn FnMut(&Chunk<'_>, Range<usize>) -> Result<()>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        let (n, len) = (fit.samples.len(), self.model().input.len());
        fit.check(self.model())?;
        let mut out = Perturbation::zero(len, n);
        if n == 0 || fit.steps == 0 {
            return Ok(out);
        }
        let chunks = n.div_ceil(self.chunk.min(MOST));
        let size = n.div_ceil(chunks);
        // One chunk stays where it is for all steps; several take turns in each.
        let (turns, steps) = if chunks == 1 { (1, fit.steps) } else { (fit.steps, 1) };
        // Nobody else may run in between: the sum is the network's own memory.
        let mut running = self.lock(progress)?;
        for turn in 0..turns {
            for first in (0..n).step_by(size) {
                let range = first..n.min(first + size);
                let chunk = self.ready(&mut running.state, range.len(), false)?;
                if turn == 0 && first == 0 {
                    chunk.write(self.plan.ids.perturbation, &out.values)?;
                    chunk.write(self.plan.ids.sum, &out.values)?;
                }
                chunk.reset()?;
                load(&chunk, range.clone())?;
                chunk.write(self.plan.ids.samples, &fit.samples[range.clone()])?;
                chunk.write(self.plan.ids.health, &out.health[range.clone()])?;
                chunk.write_bounds(fit.bounds, 0)?;
                chunk.climb(fit, steps, range.end == n, progress)?;
                let (mut zeros, mut health): (Vec<u32>, Vec<Health>) = (Vec::new(), Vec::new());
                let [a, b] = chunk.read([self.plan.ids.zero_gradients, self.plan.ids.health])?;
                append(&mut zeros, &a);
                append(&mut health, &b);
                for (i, (zeros, health)) in range.clone().zip(zeros.into_iter().zip(health)) {
                    out.steps_taken[i] += u64::from(steps);
                    out.zero_gradients[i] += u64::from(zeros);
                    out.health[i] = Health(health.0 & !OUTSIDE);
                }
                if turn + 1 == turns && range.end == n {
                    let [values] = chunk.read([self.plan.ids.perturbation])?;
                    out.values.clear();
                    append(&mut out.values, &values);
                }
            }
        }
        Ok(out)
    }
}

impl Chunk<'_> {
    /// Adds this chunk's gradients to the sum, and where it is the last one (`ends`) takes the step; so often.
    fn climb(&self, fit: &Fit<'_>, steps: u32, ends: bool, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let (plan, [apply, sum, step]) = (&self.net.plan, &self.bound.shared);
        let sum = self.seldom(sum, &plan.shared.sum)?;
        let mut one = vec![self.seldom(apply, &plan.shared.apply)?];
        one.extend(self.forward().chain([self.loss(fit.loss)?]).chain(self.backward().skip(1)));
        one.push(self.seldom(&self.bound.inspect_gradient, &plan.pixels.inspect_gradient)?);
        one.push(sum);
        if ends {
            one.push(self.seldom(step, &plan.shared.step)?);
        }
        self.run((0..steps).flat_map(|_| one.iter().copied()), sum.1, |steps| {
            if progress(steps * self.n as u64) { Ok(()) } else { Err(Error::Cancelled) }
        })
    }

    /// x <- the clean images with a perturbation on them.
    pub(super) fn share(&self, perturbation: &Perturbation, samples: &[Sample], bounds: (f32, f32)) -> Result<()> {
        let plan = &self.net.plan;
        self.write(plan.ids.samples, samples)?;
        self.write(plan.ids.perturbation, &perturbation.values)?;
        self.write_bounds(bounds, 0)?;
        self.run([self.seldom(&self.bound.shared[0], &plan.shared.apply)?].into_iter(), &plan.shared.apply, |_| Ok(()))
    }
}
