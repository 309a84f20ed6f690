//! A network on the device: weights uploaded once, memory for one batch, and the loop that replays the plan.

mod buffers;

use crate::attack::{Engine, Gradient, Health, Iterated, Job, Logits, Sample};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Bound, Dispatch};
use crate::model::{Dims, Layer, Model};
use crate::plan::{Plan, Target, Tuning, Variant};
use crate::tensor::{Allocated, Kind};
use crate::weights::Tensors;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// What a network may take on the device unless told otherwise.
const DEFAULT_MEMORY: u64 = 1 << 30;

/// Work in one submission, in floating-point operations: well under a second on the slowest adapters, so that watchdogs
/// stay asleep and progress can be told.
const SUBMISSION_FLOPS: u64 = 20_000_000_000;

/// Dispatches in one submission: small networks take many steps in it, and what is recorded takes memory.
const SUBMISSION_DISPATCHES: u64 = 8192;

/// How a network is put on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where activations lie; `None` leaves it to the adapter.
    pub storage: Option<Storage>,
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
            variant: Variant::default(),
            tuning: Tuning::default(),
            memory: DEFAULT_MEMORY,
            batch: None,
        }
    }
}

/// A network on a GPU. `Send` and `Sync`: any thread may run it, and runs take turns.
///
/// A progress callback is called in the middle of a run. Where it asks the same network for anything that runs, it gets
/// [`Error::Usage`], for the run it would wait for is its own; another network, and the plain questions ([`Network::plan`],
/// [`Network::gpu_bytes`], …) are free to it. A callback that panics leaves the network usable.
#[derive(Debug)]
pub struct Network {
    gpu: Gpu,
    model: Model,
    plan: Plan,
    chunk: usize,
    state: Mutex<State>,
    /// The thread whose run it is.
    running: Mutex<Option<ThreadId>>,
    /// The largest batch that there is memory for.
    capacity: AtomicUsize,
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
    inspect: OnceCell<Bound>,
    inspect_gradient: OnceCell<Bound>,
    snap: OnceCell<Bound>,
    quantise: OnceCell<Bound>,
}

/// A run under way: the state is this thread's alone.
struct Running<'a> {
    state: MutexGuard<'a, State>,
    running: &'a Mutex<Option<ThreadId>>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        let target = Target {
            storage: options.storage.unwrap_or(gpu.storage()),
            variant: options.variant,
            tuning: options.tuning.clone(),
            ..Target::of(gpu)?
        };
        let plan = Plan::new(&model, &target)?;
        let chunk = plan.largest_batch(options.memory)?.min(options.batch.unwrap_or(usize::MAX)).max(1);
        let constants = gpu.scope("uploading weights", || {
            let is_constant =
                |r: &crate::tensor::Resource| matches!(r.kind, Kind::Constant(_) | Kind::Texels(_) | Kind::Uniform);
            plan.resources
                .iter()
                .map(|r| is_constant(r).then(|| Allocated::new(gpu, r, 1, target.storage)).transpose())
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Network {
            gpu: gpu.clone(),
            model,
            plan,
            chunk,
            state: Mutex::new(State { constants, ..State::default() }),
            running: Mutex::new(None),
            capacity: AtomicUsize::new(0),
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
        self.plan.bytes(self.capacity.load(Ordering::Relaxed) as u64)
    }

    /// Waits for its turn to run.
    fn lock(&self) -> Result<Running<'_>> {
        let running = || self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let me = std::thread::current().id();
        if *running() == Some(me) {
            return Err(Error::Usage("a network cannot be run from the progress callback of its own run".into()));
        }
        // Nobody panics between two changes that belong together, so what a panic leaves behind is sound.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *running() = Some(me);
        Ok(Running { state, running: &self.running })
    }

    /// Runs `work` on one chunk after the other, with memory and bindings for its size.
    fn each_chunk(&self, samples: usize, mut work: impl FnMut(&Chunk<'_>, Range<usize>) -> Result<()>) -> Result<()> {
        // Balanced chunks: 10 samples by 8 are 5 and 5, so that the device is never almost idle.
        let chunks = samples.div_ceil(self.chunk).max(1);
        let size = samples.div_ceil(chunks);
        let mut running = self.lock()?;
        let state = &mut *running.state;
        let mut at = 0;
        while at < samples {
            let n = size.min(samples - at);
            self.prepare(state, n)?;
            let State { constants, batch, bound } = &*state;
            let (_, bound) = bound.as_ref().expect("prepared");
            work(&Chunk { net: self, n, memory: Memory { constants, batch }, bound }, at..at + n)?;
            at += n;
        }
        Ok(())
    }

    fn prepare(&self, state: &mut State, n: usize) -> Result<()> {
        if state.bound.as_ref().is_some_and(|(bound, _)| *bound == n) {
            return Ok(());
        }
        state.bound = None;
        let storage = self.plan.target().storage;
        if self.capacity.load(Ordering::Relaxed) < n {
            // The old memory goes first: the two must not stand beside each other.
            state.batch.clear();
            self.capacity.store(0, Ordering::Relaxed);
            state.batch = self.gpu.scope("memory for the batch", || {
                let grows = |r: &crate::tensor::Resource| r.per_sample > 0;
                let all = self.plan.resources.iter();
                all.map(|r| grows(r).then(|| Allocated::new(&self.gpu, r, n as u64, storage)).transpose()).collect()
            })?;
            self.capacity.store(n, Ordering::Relaxed);
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
                inspect: OnceCell::new(),
                inspect_gradient: OnceCell::new(),
                snap: OnceCell::new(),
                quantise: OnceCell::new(),
            })
        })?;
        state.bound = Some((n, bound));
        Ok(())
    }

    fn bind(&self, memory: Memory<'_>, dispatch: &Dispatch, n: usize) -> Result<Bound> {
        let bytes = |id: usize| self.plan.resources[id].bytes(n as u64, Storage::Buffer).unwrap_or(0);
        dispatch.bind(&self.gpu, n as u32, |id| (memory.get(id), bytes(id)))
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
}

/// What the plan's resources lie in.
#[derive(Clone, Copy)]
struct Memory<'a> {
    constants: &'a [Option<Allocated>],
    batch: &'a [Option<Allocated>],
}

impl<'a> Memory<'a> {
    fn get(self, id: usize) -> &'a Allocated {
        self.batch[id].as_ref().or(self.constants[id].as_ref()).expect("all are allocated")
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

    /// Records and submits `work`, cut into submissions between any two dispatches. `done` is told of each submission that
    /// has ended, by the number of dispatches in it that `counts` names; at most two are under way.
    fn run<'b>(
        &self,
        work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>,
        counts: &Dispatch,
        mut done: impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let gpu = &self.net.gpu;
        let mut work = work.peekable();
        let mut under_way: Option<(wgpu::SubmissionIndex, u64)> = None;
        while work.peek().is_some() {
            let (mut flops, mut dispatches, mut counted) = (0, 0, 0);
            let submitted = gpu.scope("running the plan", || {
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                {
                    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    while flops < SUBMISSION_FLOPS && dispatches < SUBMISSION_DISPATCHES {
                        let Some((bound, dispatch)) = work.next() else { break };
                        bound.record(&mut pass);
                        flops += dispatch.flops * self.n as u64;
                        dispatches += 1;
                        counted += u64::from(std::ptr::eq(dispatch, counts));
                    }
                }
                Ok(gpu.submit(encoder))
            })?;
            if let Some((before, counted)) = under_way.replace((submitted, counted)) {
                gpu.wait(before)?;
                done(counted)?;
            }
        }
        if let Some((last, counted)) = under_way {
            gpu.wait(last)?;
            done(counted)?;
        }
        Ok(())
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

    /// Random starts, where any sample asks for one, and steps from x on; x0 and x are in place.
    fn steps(
        &self,
        samples: &[Sample],
        steps: u32,
        bounds: (f32, f32),
        seed: u64,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        self.write(self.net.plan.ids.samples, samples)?;
        self.write_bounds(bounds, seed)?;
        let starts = samples.iter().any(Sample::starts_at_random);
        let start = starts.then(|| self.seldom(&self.bound.start, &self.net.plan.start)).transpose()?;
        let steps = (0..steps).flat_map(|_| self.forward().chain(self.backward()).chain([self.step()]));
        self.run(start.into_iter().chain(steps), &self.net.plan.step, |steps| {
            if progress(steps * self.n as u64) { Ok(()) } else { Err(Error::Cancelled) }
        })
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

fn append<T: bytemuck::AnyBitPattern>(out: &mut Vec<T>, bytes: &[u8]) {
    out.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
}

/// The device marks activations; logits are looked at here.
fn mark_logits(health: &mut [Health], logits: &[f32], classes: usize) {
    for (health, z) in health.iter_mut().zip(logits.chunks(classes)) {
        if !z.iter().all(|z| z.is_finite()) {
            health.0 |= Health::LOGITS.0;
        }
    }
}

impl Engine for Network {
    fn model(&self) -> &Model {
        &self.model
    }

    fn logits(&self, images: &[f32]) -> Result<Logits> {
        let n = self.samples(images)?;
        let one = self.model.input.len();
        let ids = self.plan.ids;
        let mut out = Logits { logits: Vec::new(), health: Vec::new() };
        self.each_chunk(n, |chunk, range| {
            chunk.reset()?;
            chunk.write(ids.x, &images[range.start * one..range.end * one])?;
            chunk.run(chunk.forward().chain([chunk.logits()]), &self.plan.logits, |_| Ok(()))?;
            let [z, health] = chunk.read([ids.logits, ids.health])?;
            append(&mut out.logits, &z);
            append(&mut out.health, &health);
            Ok(())
        })?;
        mark_logits(&mut out.health, &out.logits, self.model.logits());
        Ok(out)
    }

    fn input_gradient(&self, images: &[f32], classes: &[u32]) -> Result<Gradient> {
        let n = self.samples(images)?;
        let samples: Vec<Sample> = classes.iter().map(|&class| Sample { class, ..Sample::default() }).collect();
        self.check(&samples, n)?;
        let one = self.model.input.len();
        let ids = self.plan.ids;
        let mut out = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        self.each_chunk(n, |chunk, range| {
            chunk.reset()?;
            chunk.write(ids.x, &images[range.start * one..range.end * one])?;
            chunk.write(ids.samples, &samples[range])?;
            chunk.run(chunk.forward().chain(chunk.backward()), &self.plan.step, |_| Ok(()))?;
            let [gradient, loss, health] = chunk.read([ids.dx, ids.loss, ids.health])?;
            append(&mut out.gradient, &gradient);
            append(&mut out.loss, &loss);
            append(&mut out.health, &health);
            Ok(())
        })?;
        for (health, g) in out.health.iter_mut().zip(out.gradient.chunks(one)) {
            if !g.iter().all(|g| g.is_finite()) {
                health.0 |= Health::GRADIENT.0;
            }
        }
        Ok(out)
    }

    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated> {
        let n = self.samples(job.x0)?;
        self.check(job.samples, n)?;
        let one = self.model.input.len();
        let ids = self.plan.ids;
        let mut out = Iterated { images: Vec::new(), zero_gradients: Vec::new(), health: Vec::new() };
        self.each_chunk(n, |chunk, range| {
            let pixels = &job.x0[range.start * one..range.end * one];
            chunk.reset()?;
            chunk.write(ids.x0, pixels)?;
            chunk.write(ids.x, pixels)?;
            chunk.steps(&job.samples[range], job.steps, job.bounds, job.seed, progress)?;
            let [x, zero_gradients, health] = chunk.read([ids.x, ids.zero_gradients, ids.health])?;
            append(&mut out.images, &x);
            append(&mut out.zero_gradients, &zero_gradients);
            append(&mut out.health, &health);
            Ok(())
        })?;
        Ok(out)
    }
}
