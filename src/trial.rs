//! One piece of a plan alone: some of its dispatches, on random data, checked against another kernel's results and
//! timed.
//!
//! What is only read lies there in several copies that take turns, so that no cache serves it twice; what is written
//! lies there once, so that a dispatch waits for the one before it, as in a network.
//!
//! | file | what it is |
//! |---|---|
//! | `trial/clock.rs` | what times it |
//! | `trial/data.rs` | random data |
//! | `trial/compare.rs` | what was written, compared |
//! | `trial/guard.rs` | the same dispatches between canaries |

mod clock;
mod compare;
mod data;
mod guard;

pub use clock::{Clock, Measure};
pub use compare::{Written, compare};
pub(crate) use data::{Scatter, texel_dispatch};
pub use guard::{Guarded, guarded};

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Pipeline, Storage};
use crate::kernel::{Access, Bound, Dispatch, Ready, Recorder};
use crate::tensor::{Allocated, Kind, Lent, Resource, Stages};
use clock::Timestamps;
use data::{fill, run_on_texels};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One measure is at least this much work, in seconds by its clock: far above the resolution of clocks and the cost of a
/// submission.
const MEASURE: f64 = 0.02;

/// Runs in one measure on hardware are at least so many, for a lone one is mostly start and end.
const BACK_TO_BACK: u32 = 20;

/// And at most so many: what is recorded takes memory.
const MOST: u32 = 4096;

/// No submission is planned to be longer, in seconds, where it holds more than one run: watchdogs must stay asleep.
const SUBMISSION: f64 = 0.25;

/// Copies of what is read are at most so many.
const MOST_COPIES: u64 = 64;

/// How a trial is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Samples in the batch.
    pub samples: u32,
    /// What is read lies there in as many copies as come to this many bytes; 0 for one copy.
    pub working_set: u64,
    /// Bytes on the device that all copies together may take; one copy is made even where it takes more.
    pub memory: u64,
}

impl Setup {
    /// One copy of everything, for results and not for times.
    pub fn once(samples: u32) -> Self {
        Setup { samples, working_set: 0, memory: 0 }
    }
}

/// A kernel of someone else's text that stands in for one of ours, with the same bindings.
#[derive(Clone, Debug)]
pub struct Custom(Arc<Pipeline>);

impl Custom {
    /// Compiles `text`, whose entry point takes the place of `dispatch`'s.
    ///
    /// # Errors
    /// [`Error::Data`] with what the compiler says; those of the device.
    pub fn compile(gpu: &Gpu, dispatch: &Dispatch, entry: &str, text: &str) -> Result<Self> {
        match dispatch.pipeline_of(gpu, entry, text) {
            Ok(pipeline) => Ok(Custom(pipeline)),
            Err(Error::Internal(said)) => Err(Error::data(entry, said)),
            Err(e) => Err(e),
        }
    }
}

/// What lies in a buffer, f16 as f32.
fn widened(kind: &Kind, bytes: Vec<u8>) -> Vec<u8> {
    if *kind != Kind::Half {
        return bytes;
    }
    bytes.chunks_exact(2).flat_map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes()).collect()
}

/// Dispatches that run alone, on random data.
#[derive(Debug)]
pub struct Trial {
    gpu: Gpu,
    /// One entry for each copy of what is read: the dispatches, bound.
    copies: Vec<Vec<Bound>>,
    /// What is written: its name, what it holds and where it lies.
    written: Vec<(&'static str, Resource, Allocated)>,
    storage: Storage,
    samples: u32,
    /// The copy whose turn it is.
    turn: Cell<usize>,
}

impl Trial {
    /// Puts `dispatches` of one plan, and those of its `resources` that they bind, on a device. Whoever sees the same
    /// shapes under the same names gets the same random data.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where it does not fit, those of compiling, those of the device.
    pub fn new(gpu: &Gpu, dispatches: &[Dispatch], resources: &[Resource], setup: &Setup) -> Result<Self> {
        Self::build(gpu, dispatches, resources, setup, None)
    }

    /// The same, with a kernel of one's own in place of each dispatch's.
    ///
    /// # Errors
    /// As [`Trial::new`].
    pub fn with_custom(
        gpu: &Gpu,
        dispatches: &[Dispatch],
        resources: &[Resource],
        setup: &Setup,
        custom: &Custom,
    ) -> Result<Self> {
        Self::build(gpu, dispatches, resources, setup, Some(custom))
    }

    fn build(
        gpu: &Gpu,
        dispatches: &[Dispatch],
        resources: &[Resource],
        setup: &Setup,
        custom: Option<&Custom>,
    ) -> Result<Self> {
        let n = u64::from(setup.samples);
        let storage = dispatches.first().map_or(gpu.storage(), |d| d.kernel.storage);
        let bound = uses(dispatches)?;
        let size = |id: usize| resources[id].bytes(n, storage).unwrap_or(u64::MAX / 4);
        let sum = |updated: bool| bound.iter().filter(|(_, u)| u.updated == updated).map(|(id, _)| size(*id)).sum();
        let (read, written): (u64, u64) = (sum(false), sum(true));
        let stages = Stages::of_all(bound.iter().filter(|(_, u)| u.updated).map(|(id, _)| &resources[*id]), storage);
        let written = written + stages.iter().filter_map(|stage| stage.bytes(n, storage)).sum::<u64>();
        let wanted = (setup.working_set.div_ceil(read.max(1)) + 1).min(MOST_COPIES);
        let fit = setup.memory.saturating_sub(written) / read.max(1);
        let copies = if setup.working_set == 0 || read == 0 { 1 } else { wanted.min(fit).max(1) };

        let allocate = |updated: bool, seed: u32| -> Result<BTreeMap<usize, Allocated>> {
            let mut memory = BTreeMap::new();
            for (&id, used) in bound.iter().filter(|(_, u)| u.updated == updated) {
                let made = gpu.scope(&resources[id].label, || Allocated::new(gpu, &resources[id], n, storage))?;
                fill(gpu, &resources[id], &made, used.name, storage, setup.samples, seed)?;
                memory.insert(id, made);
            }
            Ok(memory)
        };
        let mut updated = allocate(true, 0)?;
        let stages = stages.try_map(|stage| gpu.scope(&stage.label, || Allocated::new(gpu, &stage, n, storage)))?;
        let ready = dispatches.iter().map(|d| d.ready(gpu, custom.map(|c| c.0.clone()))).collect::<Result<Vec<_>>>()?;
        let mut bounds = Vec::new();
        for copy in 0..copies {
            // Bindings keep alive what they bind.
            let memory = allocate(false, copy as u32)?;
            let bind = |(d, ready): (&Dispatch, &Ready)| {
                d.bind_ready(gpu, setup.samples, ready, |id| {
                    let memory = memory.get(&id).or_else(|| updated.get(&id)).expect("all that is bound is there");
                    Lent::new(&resources[id], n, memory, stages.of(&resources[id].kind))
                })
            };
            bounds.push(gpu.scope("binding a trial", || dispatches.iter().zip(&ready).map(bind).collect())?);
        }
        let written = bound.iter().filter(|(_, u)| u.updated && !u.handed_on);
        let written = written
            .map(|(id, u)| (u.name, resources[*id].clone(), updated.remove(id).expect("allocated above")))
            .collect();
        Ok(Trial { gpu: gpu.clone(), copies: bounds, written, storage, samples: setup.samples, turn: Cell::new(0) })
    }

    /// Runs everything once and gives what was written, but for what a dispatch hands on to a later one: floats before
    /// words, in the order of names.
    ///
    /// # Errors
    /// Those of the device.
    pub fn outputs(&self) -> Result<Vec<Written>> {
        self.submit(1, &|_| true, None)?;
        let mut all = Vec::new();
        for (name, resource, memory) in &self.written {
            let floats = matches!(resource.kind, Kind::Activation | Kind::Half | Kind::Floats);
            let length = resource.bytes(u64::from(self.samples), Storage::Buffer).unwrap_or(0);
            let bytes = match (&resource.kind, self.storage) {
                (Kind::Activation | Kind::Half, Storage::Texture) => self.read_texels(resource, memory)?,
                (kind, _) => widened(kind, self.gpu.read(&[(memory.buffer(), length)])?.remove(0)),
            };
            all.push(Written { name, floats, bytes });
        }
        all.sort_by_key(|w| (!w.floats, w.name));
        Ok(all)
    }

    fn read_texels(&self, resource: &Resource, memory: &Allocated) -> Result<Vec<u8>> {
        let plain = Resource { label: "texels".into(), kind: Kind::Samples, per_sample: resource.per_sample };
        let n = u64::from(self.samples);
        let copy = self.gpu.scope("memory for reading", || Allocated::new(&self.gpu, &plain, n, self.storage))?;
        let dispatch = texel_dispatch("probe_read", "x", resource, self.storage);
        run_on_texels(&self.gpu, &dispatch, resource, 0, self.samples, memory, Some(&copy))?;
        Ok(self.gpu.read(&[(copy.buffer(), plain.bytes(n, self.storage).unwrap_or(0))])?.remove(0))
    }

    /// How long one run of all dispatches takes, as the mean of `runs` in one submission.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time(&self, clock: &Clock<'_>, runs: u32) -> Result<Measure> {
        self.time_of(clock, runs, &|_| true)
    }

    /// The same for those dispatches that `which` names by their place.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time_of(&self, clock: &Clock<'_>, runs: u32, which: &dyn Fn(usize) -> bool) -> Result<Measure> {
        let measure = self.submit(runs.max(1), which, Some(clock))?;
        let each = f64::from(runs.max(1));
        Ok(Measure { time: measure.time / each, wall: measure.wall / each })
    }

    /// How many runs make one measure: enough that it is no matter of the clock's resolution. Compiles and warms up.
    ///
    /// # Errors
    /// Those of the device.
    pub fn runs(&self, clock: &Clock<'_>) -> Result<u32> {
        self.time(clock, 1)?;
        let least = if matches!(clock, Clock::Process(_)) { 1 } else { BACK_TO_BACK };
        let mut runs = 1;
        for _ in 0..6 {
            let Measure { time, wall } = self.time(clock, runs)?;
            let most = ((SUBMISSION / wall.max(1e-9)) as u32).clamp(1, MOST);
            let wanted = ((MEASURE / time.max(1e-9)).ceil() as u32).max(least).min(most);
            if wanted <= runs.saturating_add(runs / 4) {
                break;
            }
            // A lone run's time is mostly the submission: step by step.
            runs = wanted.min(runs * 16);
        }
        Ok(runs)
    }

    /// Records, submits and waits; times are of the whole submission.
    fn submit(&self, runs: u32, which: &dyn Fn(usize) -> bool, clock: Option<&Clock<'_>>) -> Result<Measure> {
        let gpu = &self.gpu;
        let timestamps = matches!(clock, Some(Clock::Timestamps)).then(|| Timestamps::new(gpu)).transpose()?;
        let mut measure = gpu.scope("a trial", || {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            // One pass, unless copies part it.
            let parted = self.copies[0].iter().any(Bound::is_staged);
            let stamps = |begin, end| timestamps.as_ref().map(|stamps| stamps.writes(begin, end));
            let mut recorder = Recorder::new(&mut encoder, stamps(true, !parted));
            for _ in 0..runs {
                let turn = self.turn.replace((self.turn.get() + 1) % self.copies.len());
                for (_, bound) in self.copies[turn].iter().enumerate().filter(|(i, _)| which(*i)) {
                    recorder.dispatch(bound);
                }
                recorder.parts();
            }
            recorder.end(stamps(false, true).filter(|_| parted));
            if let Some(timestamps) = &timestamps {
                timestamps.resolve(&mut encoder);
            }
            let commands = encoder.finish();
            let process = || if let Some(Clock::Process(now)) = clock { now() } else { Duration::ZERO };
            let (before, start) = (process(), Instant::now());
            gpu.wait(gpu.queue().submit([commands]))?;
            let (wall, spent) = (start.elapsed().as_secs_f64(), process().saturating_sub(before).as_secs_f64());
            Ok(Measure { time: if let Some(Clock::Process(_)) = clock { spent } else { wall }, wall })
        })?;
        if let Some(timestamps) = &timestamps {
            measure.time = timestamps.seconds(gpu)?;
        }
        Ok(measure)
    }
}

/// How one resource is used by a list of dispatches.
pub(crate) struct Used {
    /// Its first name.
    name: &'static str,
    /// Whether any of them writes it.
    updated: bool,
    /// Whether one of them reads what another one wrote before it.
    pub handed_on: bool,
}

/// What `dispatches` bind.
pub(crate) fn uses(dispatches: &[Dispatch]) -> Result<BTreeMap<usize, Used>> {
    let mut all: BTreeMap<usize, Used> = BTreeMap::new();
    for d in dispatches {
        let source = d.kernel.source()?;
        for (name, access) in &source.bindings {
            let Some((name, id)) = d.bindings.iter().find(|(n, _)| n == name) else { continue };
            let updated = matches!(access, Access::ActivationWrite | Access::StorageUpdate);
            let used = all.entry(*id).or_insert(Used { name, updated: false, handed_on: false });
            used.handed_on |= used.updated && !updated;
            used.updated |= updated;
        }
    }
    Ok(all)
}
