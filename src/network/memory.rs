//! Memory for one batch, and the plan bound to it.

use super::Network;
use crate::error::Result;
use crate::kernel::{Bound, Dispatch, compile};
use crate::tensor::{Allocated, Kind, Lent, Resource, Stages};
use std::cell::OnceCell;
use std::sync::atomic::Ordering;

/// What the plan's resources lie in.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub constants: &'a [Option<Allocated>],
    pub batch: &'a [Option<Allocated>],
}

impl<'a> Memory<'a> {
    pub fn get(self, id: usize) -> &'a Allocated {
        self.batch[id].as_ref().or(self.constants[id].as_ref()).expect("all are allocated")
    }

    /// What a batch of `n` takes of it.
    pub fn lent(self, id: usize, n: usize, resources: &[Resource], stages: &Stages<usize>) -> Lent<'a> {
        let stage = stages.of(&resources[id].kind).map(|stage| self.get(*stage));
        Lent::new(&resources[id], n as u64, self.get(id), stage)
    }
}

/// Memory, grown to the largest batch so far, and bindings for the batch that ran last.
#[derive(Debug, Default)]
pub(super) struct State {
    pub constants: Vec<Option<Allocated>>,
    pub batch: Vec<Option<Allocated>>,
    pub bound: Option<(usize, BoundPlan)>,
}

#[derive(Debug)]
pub(super) struct BoundPlan {
    pub forward: Vec<Bound>,
    pub backward: Vec<Bound>,
    pub step: Bound,
    pub logits: Bound,
    // What not every run needs is compiled and bound when it is first needed.
    pub start: OnceCell<Bound>,
    pub losses: Vec<OnceCell<Bound>>,
    pub rules: Vec<[OnceCell<Bound>; 3]>,
    pub inspect: OnceCell<Bound>,
    pub inspect_gradient: OnceCell<Bound>,
    pub snap: OnceCell<Bound>,
    pub quantise: OnceCell<Bound>,
    pub quantise_l2: OnceCell<Bound>,
    pub shared: [OnceCell<Bound>; 3],
}

impl Network {
    /// Makes memory and bindings for `n` samples where they are not there.
    pub(super) fn prepare(&self, state: &mut State, n: usize, remembers: bool) -> Result<()> {
        let storage = self.plan.target().storage;
        let memory = self.plan.ids.memory;
        if remembers && self.remembering.load(Ordering::Relaxed) < n {
            // Bindings of rules are made when they are first used, so all of them go.
            state.bound = None;
            if let Some(old) = state.batch.get_mut(memory) {
                *old = None;
            }
            self.remembering.store(0, Ordering::Relaxed);
            // The budget holds both for so many samples, and no more.
            if self.capacity.load(Ordering::Relaxed) > self.remembering_chunk {
                state.batch.clear();
                self.capacity.store(0, Ordering::Relaxed);
            }
        }
        if state.bound.as_ref().is_some_and(|(bound, _)| *bound == n) {
            return Ok(());
        }
        state.bound = None;
        if self.capacity.load(Ordering::Relaxed) < n {
            // The old memory goes first: the two must not stand beside each other.
            state.batch.clear();
            self.capacity.store(0, Ordering::Relaxed);
            self.remembering.store(0, Ordering::Relaxed);
            let allocated = self.gpu.scope("memory for the batch", || {
                let grows = |r: &Resource| r.per_sample > 0 && r.kind != Kind::Memory;
                let all = self.plan.resources.iter();
                all.map(|r| grows(r).then(|| Allocated::new(&self.gpu, r, n as u64, storage)).transpose()).collect()
            });
            state.batch = allocated.map_err(|e| e.needing(self.plan.bytes(n as u64)))?;
            self.capacity.store(n, Ordering::Relaxed);
        }
        if remembers && self.remembering.load(Ordering::Relaxed) < n {
            let resource = &self.plan.resources[memory];
            let allocate = || Allocated::new(&self.gpu, resource, n as u64, storage);
            let allocated = self.gpu.scope("memory for what the attack remembers", allocate);
            let bytes = n as u64 * self.plan.remembered_bytes_per_sample();
            state.batch[memory] = Some(allocated.map_err(|e| e.needing(bytes))?);
            self.remembering.store(n, Ordering::Relaxed);
        }
        let memory = Memory { constants: &state.constants, batch: &state.batch };
        let bind = |d: &Dispatch| self.bind(memory, d, n);
        let all = |list: &[Dispatch]| list.iter().map(bind).collect::<Result<Vec<_>>>();
        let plan = &self.plan;
        compile(&self.gpu, plan.forward.iter().chain(&plan.backward).chain([&plan.step, &plan.logits]))?;
        let bound = self.gpu.scope("binding the plan", || {
            Ok(BoundPlan {
                forward: all(&plan.forward)?,
                backward: all(&plan.backward)?,
                step: bind(&plan.step)?,
                logits: bind(&plan.logits)?,
                start: OnceCell::new(),
                losses: plan.losses.iter().map(|_| OnceCell::new()).collect(),
                rules: plan.rules.iter().map(|_| Default::default()).collect(),
                inspect: OnceCell::new(),
                inspect_gradient: OnceCell::new(),
                snap: OnceCell::new(),
                quantise: OnceCell::new(),
                quantise_l2: OnceCell::new(),
                shared: Default::default(),
            })
        })?;
        state.bound = Some((n, bound));
        Ok(())
    }

    pub(super) fn bind(&self, memory: Memory<'_>, dispatch: &Dispatch, n: usize) -> Result<Bound> {
        dispatch.bind(&self.gpu, n as u32, |id| memory.lent(id, n, &self.plan.resources, &self.plan.stages))
    }
}
