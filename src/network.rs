//! A network on the device: weights uploaded once, memory for one batch, and the loop that replays the plan.
//!
//! | file | what it is |
//! |---|---|
//! | `network/run.rs` | work cut into submissions, and what is read of its results |
//! | `network/memory.rs` | memory for one batch, and the plan bound to it |
//! | `network/turn.rs` | one thread at a time |
//! | `network/chunk.rs` | one chunk of a batch: written, run and read |
//! | `network/shared.rs` | one perturbation for all images |
//! | `network/buffers.rs` | images in buffers of the host program |

mod buffers;
mod chunk;
mod memory;
mod run;
mod shared;
mod turn;

pub(crate) use memory::Memory;
pub(crate) use run::{append, mark, run};

use crate::attack::{
    Engine, Fit, Gradient, Health, Iterated, Job, Logits, Loss, Perturbation, Rule, Sample, Source, Trail,
    check_samples,
};
use crate::coop;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::model::{Dims, Layer, Model};
use crate::ops::step::LANES;
use crate::plan::{Math, Plan, Target, Tuning, Variant};
use crate::tensor::Allocated;
use crate::weights::Tensors;
use chunk::Chunk;
use memory::State;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use turn::{Running, Turn};

/// What a network may take on the device unless told otherwise.
const DEFAULT_MEMORY: u64 = 1 << 30;

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
    /// The largest batch that runs at once, one or more; `None` leaves it to memory and limits. Results do not depend
    /// on it.
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
    /// As [`Network::load`]; [`Error::Usage`] for a batch of none, and for arithmetic that the device does not have.
    pub fn with_options(gpu: &Gpu, model: Model, options: &Options) -> Result<Self> {
        if options.batch == Some(0) {
            return Err(Error::Usage("a batch of 0 runs nothing".into()));
        }
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
            Ok(plan.largest_batch_of(rule, options.memory)?.min(options.batch.unwrap_or(usize::MAX)))
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
        // Where there is memory for a rule already, logits are taken in as many at a time, and it stays.
        let is_there = self.remembering.load(Ordering::Relaxed) > 0;
        let most = if remembers || is_there { self.remembering_chunk } else { self.chunk };
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

    /// Number of samples in `images`.
    fn samples(&self, images: &[f32]) -> Result<usize> {
        let one = self.model.input.len();
        if !images.len().is_multiple_of(one) {
            let detail = format!("{} values are no whole number of {} images", images.len(), self.model.input);
            return Err(Error::data("images", detail));
        }
        Ok(images.len() / one)
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
        check_samples(samples, n, loss, &self.model)?;
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
        job.check(n, &self.model)?;
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
