//! A network on the device: weights uploaded once, memory for one batch, and the loop that replays the plan.

mod buffers;
mod shared;

use crate::attack::{
    Engine, Fit, Gradient, Health, Iterated, Job, Logits, Loss, Perturbation, Rule, Sample, Source, State as Kept,
    Trail,
};
use crate::coop;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Bound, Dispatch, Recorder};
use crate::model::{Dims, Layer, Model};
use crate::ops::step::LANES;
use crate::plan::{Math, Plan, Target, Tuning, Variant};
use crate::tensor::{Allocated, Kind, Lent, Resource, Stages};
use crate::weights::Tensors;
use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// What a network may take on the device unless told otherwise.
const DEFAULT_MEMORY: u64 = 1 << 30;

/// How long a thread that waits for its turn goes without asking whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(10);

thread_local! {
    /// Networks that this thread is in the middle of running.
    static RUNS: Cell<usize> = const { Cell::new(0) };
}

/// Dispatches in one submission: small networks take many steps in it, and what is recorded takes memory.
const SUBMISSION_DISPATCHES: usize = 8192;

/// How a network is put on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where activations lie; `None` leaves it to the adapter.
    pub storage: Option<Storage>,
    /// Which arithmetic.
    pub math: Math,
    /// Which kernels.
    pub variant: Variant,
    /// Tiles that were measured on this device ([`crate::tune`]). Results do not depend on them.
    pub tuning: Tuning,
    /// Bytes that the network may take on the device, weights and everything that grows with the batch together.
    pub memory: u64,
    /// The largest batch that runs at once; `None` leaves it to memory and limits. Results do not depend on it.
    pub batch: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            storage: None,
            math: Math::default(),
            variant: Variant::default(),
            tuning: Tuning::default(),
            memory: DEFAULT_MEMORY,
            batch: None,
        }
    }
}

/// A network on a GPU. `Send` and `Sync`: any thread may run it, and runs take turns.
///
/// A progress callback is called in the middle of a run, or while its run waits for its turn; then it is told of 0
/// sample-steps, and may stop it there. Where it asks the same network for anything that runs, it gets
/// [`Error::Usage`], for the run it would wait for is its own. Another network is free to it, unless that one is busy:
/// two threads in the middle of two networks that wait for each other's would wait for ever, so that gets
/// [`Error::Usage`] too. Nor may a callback wait for another thread that runs its network, which nothing here can see.
/// The plain questions ([`Network::plan`], [`Network::gpu_bytes`], …) are free to it. A callback that panics leaves the
/// network usable.
#[derive(Debug)]
pub struct Network {
    gpu: Gpu,
    model: Model,
    plan: Plan,
    /// Samples that run at once, at most.
    chunk: usize,
    /// The same for rules that remember images.
    remembering_chunk: usize,
    state: Mutex<State>,
    turn: Turn,
    /// The largest batch that there is memory for.
    capacity: AtomicUsize,
    /// The same for what rules remember.
    remembering: AtomicUsize,
}

/// Memory, grown to the largest batch so far, and bindings for the batch that ran last.
#[derive(Debug, Default)]
struct State {
    constants: Vec<Option<Allocated>>,
    batch: Vec<Option<Allocated>>,
    bound: Option<(usize, BoundPlan)>,
}

#[derive(Debug)]
struct BoundPlan {
    forward: Vec<Bound>,
    backward: Vec<Bound>,
    step: Bound,
    logits: Bound,
    // What not every run needs is compiled and bound when it is first needed.
    start: OnceCell<Bound>,
    losses: Vec<OnceCell<Bound>>,
    rules: Vec<[OnceCell<Bound>; 3]>,
    inspect: OnceCell<Bound>,
    inspect_gradient: OnceCell<Bound>,
    snap: OnceCell<Bound>,
    quantise: OnceCell<Bound>,
    quantise_l2: OnceCell<Bound>,
    shared: [OnceCell<Bound>; 3],
}

/// Whose turn it is to run.
#[derive(Debug, Default)]
struct Turn {
    /// The thread whose run it is.
    running: Mutex<Option<ThreadId>>,
    ended: Condvar,
}

/// A run under way: the state is this thread's alone.
struct Running<'a> {
    state: MutexGuard<'a, State>,
    turn: &'a Turn,
}

impl Turn {
    fn running(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody runs, and has the run for this thread. `progress` is asked now and then, with nothing held.
    fn take(&self, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let me = std::thread::current().id();
        let mut running = self.running();
        while let Some(thread) = *running {
            if thread == me {
                return Err(Error::Usage("a network cannot be run from the progress callback of its own run".into()));
            }
            if RUNS.get() > 0 {
                let why = "a network that is busy cannot be waited for from the progress callback of another";
                return Err(Error::Usage(why.into()));
            }
            drop(self.ended.wait_timeout(running, PATIENCE).unwrap_or_else(PoisonError::into_inner));
            if !progress(0) {
                return Err(Error::Cancelled);
            }
            running = self.running();
        }
        *running = Some(me);
        RUNS.set(RUNS.get() + 1);
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.turn.running() = None;
        self.turn.ended.notify_one();
        RUNS.set(RUNS.get() - 1);
    }
}

impl Network {
    /// Reads safetensors and puts the network on the device.
    ///
    /// # Errors
    /// [`Error::Model`] for weights that cannot be used, [`Error::OutOfMemory`] where they do not fit.
    pub fn load(gpu: &Gpu, safetensors: &[u8]) -> Result<Self> {
        Self::new(gpu, crate::weights::load(safetensors)?)
    }

    /// Puts a network of one's own on the device: layers, the shape of one image, and tensors by name
    /// ([`crate::weights::from_layers`]).
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn from_layers(gpu: &Gpu, layers: Vec<Layer>, input: Dims, tensors: Tensors) -> Result<Self> {
        Self::new(gpu, crate::weights::from_layers(layers, input, tensors)?)
    }

    /// Puts a model on the device.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn new(gpu: &Gpu, model: Model) -> Result<Self> {
        Self::with_options(gpu, model, &Options::default())
    }

    /// Puts a model on the device as `options` say.
    ///
    /// # Errors
    /// As [`Network::load`].
    pub fn with_options(gpu: &Gpu, model: Model, options: &Options) -> Result<Self> {
        let mut target = Target {
            storage: options.storage.unwrap_or(gpu.storage()),
            math: options.math,
            variant: options.variant,
            tuning: options.tuning.clone(),
            ..Target::of(gpu)?
        };
        if target.math == Math::Coop {
            target.coop = Some(coop::of(gpu)?);
        }
        if target.math.keeps_f16() && !gpu.converts_f16() {
            return Err(Error::Usage(format!(
                "math {}: {} has no conversions to f16 and back",
                target.math,
                gpu.summary().name
            )));
        }
        let plan = Plan::new(&model, &target)?;
        let largest = |rule| -> Result<usize> {
            Ok(plan.largest_batch_of(rule, options.memory)?.min(options.batch.unwrap_or(usize::MAX)).max(1))
        };
        let chunk = largest(Rule::Sign)?;
        // Where a rule's memory does not fit, its runs say so.
        let remembering_chunk = largest(Rule::Momentum).unwrap_or(0);
        let constants = gpu.scope("uploading weights", || {
            plan.resources
                .iter()
                .map(|r| (r.per_sample == 0).then(|| Allocated::new(gpu, r, 1, target.storage)).transpose())
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Network {
            gpu: gpu.clone(),
            model,
            plan,
            chunk,
            remembering_chunk,
            state: Mutex::new(State { constants, ..State::default() }),
            turn: Turn::default(),
            capacity: AtomicUsize::new(0),
            remembering: AtomicUsize::new(0),
        })
    }

    /// The dispatches that run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device it is on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The largest batch that runs at once.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Bytes that the network takes on the device now, weights included.
    pub fn gpu_bytes(&self) -> u64 {
        let [batch, remembered] = [&self.capacity, &self.remembering].map(|n| n.load(Ordering::Relaxed) as u64);
        self.plan.bytes(batch) + remembered * self.plan.remembered_bytes_per_sample()
    }

    /// Waits for its turn to run; `progress` is asked meanwhile whether to go on waiting.
    fn lock(&self, progress: &mut dyn FnMut(u64) -> bool) -> Result<Running<'_>> {
        self.turn.take(progress)?;
        // Whoever had the turn is about to let go of it. Nobody panics between two changes that belong together, so
        // what a panic leaves behind is sound.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Running { state, turn: &self.turn })
    }

    /// Runs `work` on one chunk after the other, with memory and bindings for its size. `progress` is asked before
    /// each.
    fn each_chunk(
        &self,
        samples: usize,
        progress: &mut dyn FnMut(u64) -> bool,
        work: impl FnMut(&Chunk<'_>, Range<usize>, &mut dyn FnMut(u64) -> bool) -> Result<()>,
    ) -> Result<()> {
        self.each_chunk_of(Rule::Sign, samples, progress, work)
    }

    /// As [`Network::each_chunk`], with memory for what `rule` remembers.
    fn each_chunk_of(
        &self,
        rule: Rule,
        samples: usize,
        progress: &mut dyn FnMut(u64) -> bool,
        mut work: impl FnMut(&Chunk<'_>, Range<usize>, &mut dyn FnMut(u64) -> bool) -> Result<()>,
    ) -> Result<()> {
        let remembers = rule.memory() > 0;
        let most = if remembers { self.remembering_chunk } else { self.chunk };
        if most == 0 {
            let bytes = self.plan.remembered_bytes_per_sample();
            let limit = "memory budget of the network".into();
            return Err(Error::OutOfMemory { what: "what the attack remembers".into(), bytes, limit });
        }
        let mut running = self.lock(progress)?;
        let mut at = 0;
        while at < samples {
            if !progress(0) {
                return Err(Error::Cancelled);
            }
            // No dispatch takes so long that a watchdog wakes, as far as the device's pace is known. Balanced chunks:
            // 10 samples by 8 are 5 and 5, so that the device is never almost idle.
            let (left, most) = (samples - at, most.min(self.gpu.pace().samples(self.plan.largest_dispatch())));
            let n = left.div_ceil(left.div_ceil(most));
            work(&self.ready(&mut running.state, n, remembers)?, at..at + n, progress)?;
            at += n;
        }
        Ok(())
    }

    /// A chunk of `n` samples with memory and bindings.
    fn ready<'a>(&'a self, state: &'a mut State, n: usize, remembers: bool) -> Result<Chunk<'a>> {
        self.prepare(state, n, remembers)?;
        let State { constants, batch, bound } = &*state;
        let (_, bound) = bound.as_ref().expect("prepared");
        Ok(Chunk { net: self, n, memory: Memory { constants, batch }, bound })
    }

    fn prepare(&self, state: &mut State, n: usize, remembers: bool) -> Result<()> {
        let storage = self.plan.target().storage;
        let memory = self.plan.ids.memory;
        if remembers && self.remembering.load(Ordering::Relaxed) < n {
            // Bindings of rules are made when they are first used, so all of them go.
            state.bound = None;
            if let Some(old) = state.batch.get_mut(memory) {
                *old = None;
            }
            self.remembering.store(0, Ordering::Relaxed);
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
        let bound = self.gpu.scope("binding the plan", || {
            Ok(BoundPlan {
                forward: all(&self.plan.forward)?,
                backward: all(&self.plan.backward)?,
                step: bind(&self.plan.step)?,
                logits: bind(&self.plan.logits)?,
                start: OnceCell::new(),
                losses: self.plan.losses.iter().map(|_| OnceCell::new()).collect(),
                rules: self.plan.rules.iter().map(|_| Default::default()).collect(),
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

    fn bind(&self, memory: Memory<'_>, dispatch: &Dispatch, n: usize) -> Result<Bound> {
        dispatch.bind(&self.gpu, n as u32, |id| memory.lent(id, n, &self.plan.resources, &self.plan.stages))
    }

    /// Number of samples in `images`.
    fn samples(&self, images: &[f32]) -> Result<usize> {
        let one = self.model.input.len();
        if !images.len().is_multiple_of(one) {
            let detail = format!("{} values are no whole number of {} images", images.len(), self.model.input);
            return Err(Error::data("images", detail));
        }
        Ok(images.len() / one)
    }

    fn check(&self, samples: &[Sample], n: usize) -> Result<()> {
        if samples.len() != n {
            return Err(Error::data("samples", format!("{} for {n} images", samples.len())));
        }
        samples.iter().enumerate().try_for_each(|(i, s)| s.check(i, self.model.logits()))
    }

    fn is_rule_there(&self, rule: Rule) -> Result<()> {
        if rule == Rule::Sign || self.plan.steps_of(rule).is_some() {
            return Ok(());
        }
        let needs = format!(
            "workgroups of {LANES} invocations, up to 8 storage buffers, and an image of not too many values or tiles"
        );
        Err(Error::Usage(format!("{rule:?} is not there for this network on this device: it needs {needs}")))
    }
}

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

/// One chunk of a batch, ready to run.
struct Chunk<'a> {
    net: &'a Network,
    n: usize,
    memory: Memory<'a>,
    bound: &'a BoundPlan,
}

impl Chunk<'_> {
    fn buffer(&self, id: usize) -> &wgpu::Buffer {
        self.memory.get(id).buffer()
    }

    fn write<T: bytemuck::NoUninit>(&self, id: usize, values: &[T]) -> Result<()> {
        self.net.gpu.scope("writing the batch", || {
            self.net.gpu.queue().write_buffer(self.buffer(id), 0, bytemuck::cast_slice(values));
            Ok(())
        })
    }

    fn reset(&self) -> Result<()> {
        self.write(self.net.plan.ids.health, &vec![0_u32; self.n])?;
        self.write(self.net.plan.ids.zero_gradients, &vec![0_u32; self.n])
    }

    /// Records and submits `work`, cut into submissions between any two dispatches. `done` is told of each submission
    /// that has ended, by the number of dispatches in it that `counts` names; at most two are under way.
    fn run<'b>(
        &self,
        work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>,
        counts: &Dispatch,
        done: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        run(&self.net.gpu, self.n, work, counts, done)
    }

    fn forward(&self) -> impl Iterator<Item = (&Bound, &Dispatch)> {
        self.bound.forward.iter().zip(&self.net.plan.forward)
    }

    fn backward(&self) -> impl Iterator<Item = (&Bound, &Dispatch)> {
        self.bound.backward.iter().zip(&self.net.plan.backward)
    }

    /// A dispatch that not every run needs, bound at its first use.
    fn seldom<'b>(&'b self, cell: &'b OnceCell<Bound>, dispatch: &'b Dispatch) -> Result<(&'b Bound, &'b Dispatch)> {
        if cell.get().is_none() {
            let bound = self.net.gpu.scope("binding", || self.net.bind(self.memory, dispatch, self.n))?;
            let _ = cell.set(bound);
        }
        Ok((cell.get().expect("set above"), dispatch))
    }

    /// Random starts, where any sample asks for one, and the steps of `job` from x on; x0 is in place, and x where
    /// `from` does not say.
    fn steps(
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
    fn loss(&self, loss: Loss) -> Result<(&Bound, &Dispatch)> {
        match self.net.plan.losses.iter().position(|(l, _)| *l == loss) {
            None => Ok((&self.bound.backward[0], &self.net.plan.backward[0])),
            Some(i) => self.seldom(&self.bound.losses[i], &self.net.plan.losses[i].1),
        }
    }

    /// WGSL's `Bounds` (`shaders/sample.wgsl`).
    fn write_bounds(&self, (lo, hi): (f32, f32), seed: u64) -> Result<()> {
        self.write(self.net.plan.ids.bounds, &[lo.to_bits(), hi.to_bits(), seed as u32, (seed >> 32) as u32])
    }

    fn step(&self) -> (&Bound, &Dispatch) {
        (&self.bound.step, &self.net.plan.step)
    }

    fn logits(&self) -> (&Bound, &Dispatch) {
        (&self.bound.logits, &self.net.plan.logits)
    }

    /// Reads resources of 4 bytes an element.
    fn read<const K: usize>(&self, ids: [usize; K]) -> Result<[Vec<u8>; K]> {
        let size = |id: usize| self.net.plan.resources[id].bytes(self.n as u64, Storage::Buffer).unwrap_or(0);
        let parts: Vec<_> = ids.iter().map(|&id| (self.buffer(id), size(id))).collect();
        let read = self.net.gpu.read(&parts)?;
        Ok(read.try_into().expect("as many as asked for"))
    }
}

/// Records and submits `work` for a batch of `n`, as [`Chunk::run`] says.
pub(crate) fn run<'b>(
    gpu: &Gpu,
    n: usize,
    work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>,
    counts: &Dispatch,
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut work = work.peekable();
    let mut under_way: Option<Submission> = None;
    // When the one before had ended, and what the host did between.
    let (mut ended, mut busy) = (Instant::now(), Duration::ZERO);
    let mut end = |submission: Submission| {
        gpu.wait(submission.index)?;
        let now = Instant::now();
        let most = now - submission.start.max(ended);
        gpu.pace().learn(submission.flops, most.saturating_sub(busy), most);
        let told = done(submission.counted);
        (ended, busy) = (now, now.elapsed());
        told
    };
    while work.peek().is_some() {
        let start = Instant::now();
        let (most, mut flops, mut dispatches, mut counted) = (gpu.pace().flops(), 0, 0, 0);
        let index = gpu.scope("running the plan", || {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut recorder = Recorder::new(&mut encoder, None);
            while recorder.waits() || (flops < most && dispatches < SUBMISSION_DISPATCHES) {
                let Some((bound, dispatch)) = work.next() else { break };
                recorder.dispatch(bound);
                flops += dispatch.flops * n as u64;
                dispatches += bound.runs();
                counted += u64::from(std::ptr::eq(dispatch, counts));
            }
            recorder.end(None);
            gpu.submit(encoder)
        })?;
        let submission = Submission { index, start, flops, counted };
        // Where the device has ended already, there is nothing to be gained by looking later.
        let before = if gpu.submits_and_waits() { Some(submission) } else { under_way.replace(submission) };
        before.map_or(Ok(()), &mut end)?;
    }
    under_way.map_or(Ok(()), end)
}

/// Work that the device was given.
struct Submission {
    index: wgpu::SubmissionIndex,
    start: Instant,
    flops: u64,
    counted: u64,
}

pub(crate) fn append<T: bytemuck::AnyBitPattern>(out: &mut Vec<T>, bytes: &[u8]) {
    out.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
}

/// The device marks activations; what is read back, `one` values for each sample, is looked at here.
pub(crate) fn mark(health: &mut [Health], values: &[f32], one: usize, what: Health) {
    for (health, values) in health.iter_mut().zip(values.chunks(one)) {
        if !values.iter().all(|v| v.is_finite()) {
            health.0 |= what.0;
        }
    }
}

impl Engine for Network {
    fn model(&self) -> &Model {
        &self.model
    }

    fn logits(&self, images: &[f32]) -> Result<Logits> {
        self.logits_with(images, &mut |_| true)
    }

    fn logits_with(&self, images: &[f32], progress: &mut dyn FnMut(u64) -> bool) -> Result<Logits> {
        let n = self.samples(images)?;
        let one = self.model.input.len();
        let ids = self.plan.ids;
        let mut out = Logits { logits: Vec::new(), health: Vec::new() };
        self.each_chunk(n, progress, |chunk, range, _| {
            chunk.reset()?;
            chunk.write(ids.x, &images[range.start * one..range.end * one])?;
            chunk.run(chunk.forward().chain([chunk.logits()]), &self.plan.logits, |_| Ok(()))?;
            let [z, health] = chunk.read([ids.logits, ids.health])?;
            append(&mut out.logits, &z);
            append(&mut out.health, &health);
            Ok(())
        })?;
        mark(&mut out.health, &out.logits, self.model.logits(), Health::LOGITS);
        Ok(out)
    }

    fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient> {
        let n = self.samples(images)?;
        self.check(samples, n)?;
        Job { loss, ..Job::new(images, samples, 1) }.check(self.model.logits())?;
        let one = self.model.input.len();
        let ids = self.plan.ids;
        let mut out = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        self.each_chunk(n, &mut |_| true, |chunk, range, _| {
            chunk.reset()?;
            chunk.write(ids.x, &images[range.start * one..range.end * one])?;
            chunk.write(ids.samples, &samples[range])?;
            let seed = chunk.loss(loss)?;
            chunk.run(chunk.forward().chain([seed]).chain(chunk.backward().skip(1)), &self.plan.step, |_| Ok(()))?;
            let [gradient, loss, health] = chunk.read([ids.dx, ids.loss, ids.health])?;
            append(&mut out.gradient, &gradient);
            append(&mut out.loss, &loss);
            append(&mut out.health, &health);
            Ok(())
        })?;
        mark(&mut out.health, &out.gradient, one, Health::GRADIENT);
        Ok(out)
    }

    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated> {
        let n = self.samples(job.x0)?;
        self.check(job.samples, n)?;
        job.check(self.model.logits())?;
        self.is_rule_there(job.rule)?;
        let one = self.model.input.len();
        let slots = job.rule.memory() * one;
        let ids = self.plan.ids;
        let mut out = Iterated::default();
        let mut trail = Trail::default();
        self.each_chunk_of(job.rule, n, progress, |chunk, range, progress| {
            let pixels = &job.x0[range.start * one..range.end * one];
            chunk.reset()?;
            chunk.write(ids.x0, pixels)?;
            if job.from.is_none() {
                chunk.write(ids.x, pixels)?;
            }
            let from = job.from.map(|trail| trail.part(range.clone()));
            chunk.steps(job, &job.samples[range.clone()], from, progress)?;
            let [x, zero_gradients, health] = chunk.read([ids.x, ids.zero_gradients, ids.health])?;
            append(&mut out.zero_gradients, &zero_gradients);
            append(&mut out.health, &health);
            if !job.goes_on {
                append(&mut out.images, &x);
                return Ok(());
            }
            append(&mut trail.x, &x);
            let [states] = chunk.read([ids.states])?;
            append(&mut trail.states, &states);
            if slots > 0 {
                // The buffer is as large as the largest memory of a rule.
                let [memory] = chunk.read([ids.memory])?;
                append(&mut trail.memory, &memory[..4 * range.len() * slots]);
            }
            Ok(())
        })?;
        if job.goes_on {
            for (i, x) in trail.x.chunks(one).enumerate() {
                let memory = &trail.memory[i * slots..(i + 1) * slots];
                out.images.extend_from_slice(job.rule.candidate(x, memory, &trail.states[i]));
            }
            out.trail = Some(trail);
        }
        Ok(out)
    }

    fn fit(
        &self,
        fit: &Fit<'_>,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        let one = self.model.input.len();
        let mut load = |chunk: &Chunk<'_>, range: Range<usize>| {
            let pixels = images(range.clone())?;
            if pixels.len() != range.len() * one {
                return Err(Error::data("images", format!("{} values for {} images", pixels.len(), range.len())));
            }
            chunk.write(self.plan.ids.x0, &pixels)
        };
        self.fit_to(fit, &mut load, progress)
    }
}
