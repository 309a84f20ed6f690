//! One chunk of a batch: written, run and read.

use super::Network;
use super::memory::{BoundPlan, Memory, State};
use super::run::run;
use crate::attack::{Job, Loss, Sample, State as Kept};
use crate::error::{Error, Result};
use crate::gpu::Storage;
use crate::kernel::{Bound, Dispatch};
use std::cell::OnceCell;

/// One chunk of a batch, ready to run.
pub(super) struct Chunk<'a> {
    pub net: &'a Network,
    pub n: usize,
    pub memory: Memory<'a>,
    pub bound: &'a BoundPlan,
}

impl Network {
    /// A chunk of `n` samples with memory and bindings.
    pub(super) fn ready<'a>(&'a self, state: &'a mut State, n: usize, remembers: bool) -> Result<Chunk<'a>> {
        self.prepare(state, n, remembers)?;
        let State { constants, batch, bound } = &*state;
        let (_, bound) = bound.as_ref().expect("prepared");
        Ok(Chunk { net: self, n, memory: Memory { constants, batch }, bound })
    }
}

impl Chunk<'_> {
    pub fn buffer(&self, id: usize) -> &wgpu::Buffer {
        self.memory.get(id).buffer()
    }

    pub fn write<T: bytemuck::NoUninit>(&self, id: usize, values: &[T]) -> Result<()> {
        self.net.gpu.scope("writing the batch", || {
            self.net.gpu.queue().write_buffer(self.buffer(id), 0, bytemuck::cast_slice(values));
            Ok(())
        })
    }

    pub fn reset(&self) -> Result<()> {
        self.write(self.net.plan.ids.health, &vec![0_u32; self.n])?;
        self.write(self.net.plan.ids.zero_gradients, &vec![0_u32; self.n])
    }

    /// Records and submits `work`, cut into submissions between any two dispatches. `done` is told of each submission
    /// that has ended, by the number of dispatches in it that `counts` names; at most two are under way.
    pub fn run<'b>(
        &self,
        work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>,
        counts: &Dispatch,
        done: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        run(&self.net.gpu, self.n, work, counts, done)
    }

    pub fn forward(&self) -> impl Iterator<Item = (&Bound, &Dispatch)> {
        self.bound.forward.iter().zip(&self.net.plan.forward)
    }

    pub fn backward(&self) -> impl Iterator<Item = (&Bound, &Dispatch)> {
        self.bound.backward.iter().zip(&self.net.plan.backward)
    }

    /// A dispatch that not every run needs, bound at its first use.
    pub fn seldom<'b>(
        &'b self,
        cell: &'b OnceCell<Bound>,
        dispatch: &'b Dispatch,
    ) -> Result<(&'b Bound, &'b Dispatch)> {
        if cell.get().is_none() {
            let bound = self.net.gpu.scope("binding", || self.net.bind(self.memory, dispatch, self.n))?;
            let _ = cell.set(bound);
        }
        Ok((cell.get().expect("set above"), dispatch))
    }

    /// Random starts, where any sample asks for one, and the steps of `job` from x on; x0 is in place, and x where
    /// `from` does not say.
    pub fn steps(
        &self,
        job: &Job<'_>,
        samples: &[Sample],
        from: Option<(&[f32], &[f32], &[Kept])>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let (plan, bound) = (&self.net.plan, self.bound);
        let ids = plan.ids;
        self.write(ids.samples, samples)?;
        self.write_bounds(job.bounds, job.seed)?;
        match from {
            None => self.write(ids.states, &samples.iter().map(Kept::begin).collect::<Vec<_>>())?,
            Some((x, memory, states)) => {
                self.write(ids.x, x)?;
                self.write(ids.states, states)?;
                if !memory.is_empty() {
                    self.write(ids.memory, memory)?;
                }
            }
        }
        let (start, step, look) = match plan.steps_of(job.rule) {
            None => (Some((&bound.start, &plan.start)), self.step(), None),
            Some((i, steps)) => {
                let [start, step, look] = &bound.rules[i];
                let look = steps.look.as_ref().map(|l| self.seldom(look, l)).transpose()?;
                (steps.start.as_ref().map(|s| (start, s)), self.seldom(step, &steps.step)?, look)
            }
        };
        let starts = from.is_none() && samples.iter().any(Sample::starts_at_random);
        let start = start.filter(|_| starts).map(|(cell, dispatch)| self.seldom(cell, dispatch)).transpose()?;
        let loss = self.loss(job.loss)?;
        // What looks at losses alone needs no way back.
        let back = if job.rule.needs_gradients() { usize::MAX } else { 0 };
        let mut one: Vec<_> =
            self.forward().chain([loss]).chain(self.backward().skip(1).take(back)).chain([step]).collect();
        if let Some(look) = look {
            one.extend(self.forward().chain([loss, look]));
        }
        self.run(start.into_iter().chain((0..job.steps).flat_map(|_| one.iter().copied())), step.1, |steps| {
            if progress(steps * self.n as u64) { Ok(()) } else { Err(Error::Cancelled) }
        })?;
        if job.rule.looks_at_the_last() && !job.goes_on {
            self.run(self.forward().chain([loss, step]), &plan.logits, |_| Ok(()))?;
        }
        Ok(())
    }

    /// What stands between the logits and the rest of the backward pass.
    pub fn loss(&self, loss: Loss) -> Result<(&Bound, &Dispatch)> {
        match self.net.plan.losses.iter().position(|(l, _)| *l == loss) {
            None => Ok((&self.bound.backward[0], &self.net.plan.backward[0])),
            Some(i) => self.seldom(&self.bound.losses[i], &self.net.plan.losses[i].1),
        }
    }

    /// WGSL's `Bounds` (`shaders/sample.wgsl`).
    pub fn write_bounds(&self, (lo, hi): (f32, f32), seed: u64) -> Result<()> {
        self.write(self.net.plan.ids.bounds, &[lo.to_bits(), hi.to_bits(), seed as u32, (seed >> 32) as u32])
    }

    pub fn step(&self) -> (&Bound, &Dispatch) {
        (&self.bound.step, &self.net.plan.step)
    }

    pub fn logits(&self) -> (&Bound, &Dispatch) {
        (&self.bound.logits, &self.net.plan.logits)
    }

    /// Reads resources of 4 bytes an element.
    pub fn read<const K: usize>(&self, ids: [usize; K]) -> Result<[Vec<u8>; K]> {
        let size = |id: usize| self.net.plan.resources[id].bytes(self.n as u64, Storage::Buffer).unwrap_or(0);
        let parts: Vec<_> = ids.iter().map(|&id| (self.buffer(id), size(id))).collect();
        let read = self.net.gpu.read(&parts)?;
        Ok(read.try_into().expect("as many as asked for"))
    }
}
