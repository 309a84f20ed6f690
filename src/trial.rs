//! One piece of a plan alone: some of its dispatches, on random data, checked against another kernel's results and
//! timed.
//!
//! What is only read lies there in several copies that take turns, so that no cache serves it twice; what is written
//! lies there once, so that a dispatch waits for the one before it, as in a network.

mod guard;

pub use guard::{Guarded, guarded};

use crate::attack::{Sample, State};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Held, Pipeline, Storage};
use crate::kernel::{Access, Bound, Dispatch, Grid, Kernel, Ready, Recorder, submit};
use crate::tensor::{Allocated, Kind, Lent, Resource, Stages};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One measure is at least this much work, in seconds: far above the resolution of clocks and the cost of a submission.
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

/// Where times come from.
#[derive(Clone, Copy)]
pub enum Clock<'a> {
    /// Timestamps of the device.
    Timestamps,
    /// CPU time of this process so far: where the device is the process.
    Process(&'a dyn Fn() -> Duration),
    /// Wall time, from the submission to its end.
    Wall,
}

impl fmt::Debug for Clock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'a> Clock<'a> {
    /// The best clock for a device: `process` (CPU time of this process) on software adapters, timestamps where there
    /// are some, else wall time.
    pub fn of(gpu: &Gpu, process: &'a dyn Fn() -> Duration) -> Self {
        if gpu.summary().kind == "software" {
            Clock::Process(process)
        } else if gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            Clock::Timestamps
        } else {
            Clock::Wall
        }
    }

    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Clock::Timestamps => "device timestamps",
            Clock::Process(_) => "process CPU time",
            Clock::Wall => "wall time",
        }
    }
}

/// How long one run took, in seconds: a mean over the runs of one submission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// By the clock that was asked for.
    pub time: f64,
    /// From the submission to its end.
    pub wall: f64,
}

/// What lies in a buffer, f16 as f32.
fn widened(kind: &Kind, bytes: Vec<u8>) -> Vec<u8> {
    if *kind != Kind::Half {
        return bytes;
    }
    bytes.chunks_exact(2).flat_map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes()).collect()
}

/// What a kernel wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Name of the binding.
    pub name: &'static str,
    /// Whether the bytes are f32; else they are words of bits.
    pub floats: bool,
    /// All of it, as it lies on the device, but for f16, which is f32 here.
    pub bytes: Vec<u8>,
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
            let wall = self.time(clock, runs)?.wall.max(1e-9);
            let most = ((SUBMISSION / wall) as u32).clamp(1, MOST);
            let wanted = ((MEASURE / wall).ceil() as u32).max(least).min(most);
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

/// Begin and end of a submission's passes, by the device's own clock.
struct Timestamps {
    set: Held<wgpu::QuerySet>,
    buffer: Held<wgpu::Buffer>,
}

impl Timestamps {
    fn new(gpu: &Gpu) -> Result<Self> {
        gpu.scope("timestamps", || {
            let set = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            Ok(Timestamps { set: gpu.hold(set), buffer: gpu.hold(buffer) })
        })
    }

    fn writes(&self, begin: bool, end: bool) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: begin.then_some(0),
            end_of_pass_write_index: end.then_some(1),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.set, 0..2, &self.buffer, 0);
    }

    fn seconds(&self, gpu: &Gpu) -> Result<f64> {
        let ticks = bytemuck::pod_collect_to_vec::<u8, u64>(&gpu.read(&[(&self.buffer, 16)])?[0]);
        Ok(ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(gpu.queue().get_timestamp_period()) * 1e-9)
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

/// Numbers that look random, one after the other: splitmix64.
pub(crate) struct Scatter(pub u64);

impl Scatter {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [−1, 1), never zero.
    pub fn signed(&mut self) -> f32 {
        (((self.word() >> 40) | 1) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    }
}

/// Puts random data where a kernel called `name` finds it: texels and gradients in [−1, 1), pixels in [0, 1), sign bits
/// of any kind, places in a pooling window of at least 2×2. Counters and marks begin at zero, as before every run.
fn fill(
    gpu: &Gpu,
    resource: &Resource,
    memory: &Allocated,
    name: &str,
    storage: Storage,
    samples: u32,
    seed: u32,
) -> Result<()> {
    let seed = name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let count = (resource.per_sample * u64::from(samples)) as usize;
    let mut scatter = Scatter(u64::from(seed) << 32);
    let bytes: Vec<u8> = match &resource.kind {
        // What is handed on is written first.
        Kind::Constant(_) | Kind::Texels(_) | Kind::Stage(_) | Kind::Passing(_) => return Ok(()),
        Kind::Activation | Kind::Half => {
            let dispatch = texel_dispatch("probe_fill", "y", resource, storage);
            return run_on_texels(gpu, &dispatch, resource, seed, samples, memory, None);
        }
        Kind::Words if matches!(name, "health" | "zero_gradients") => vec![0; 4 * count],
        Kind::Words => {
            let mask = if name == "argmax" { 0x0303_0303 } else { u32::MAX };
            bytemuck::cast_slice(&(0..count).map(|_| scatter.word() as u32 & mask).collect::<Vec<_>>()).to_vec()
        }
        Kind::Floats | Kind::Memory => {
            let pixels = name != "dx";
            let value = |s: &mut Scatter| if pixels { s.signed().abs() } else { s.signed() };
            bytemuck::cast_slice(&(0..count).map(|_| value(&mut scatter)).collect::<Vec<_>>()).to_vec()
        }
        Kind::Samples => {
            let sample = Sample { eps: 8.0 / 255.0, step_size: 1.0 / 255.0, direction: -1.0, ..Sample::default() };
            let one = |id| Sample { id, start: 1, levels: 8, steps: 10, stretch: 10, ..sample };
            let all: Vec<Sample> = (0..samples).map(one).collect();
            if name == "states" {
                bytemuck::cast_slice(&all.iter().map(State::begin).collect::<Vec<_>>()).to_vec()
            } else {
                bytemuck::cast_slice(&all).to_vec()
            }
        }
        Kind::Uniform => bytemuck::cast_slice(&[0, 1.0_f32.to_bits(), 1, 2]).to_vec(),
        Kind::Whole(values) => vec![0; 4 * *values as usize],
    };
    gpu.scope("random data", || {
        gpu.queue().write_buffer(memory.buffer(), 0, &bytes);
        Ok(())
    })
}

/// A dispatch over all texels of an activation (`shaders/probe.wgsl`).
pub(crate) fn texel_dispatch(entry: &'static str, name: &'static str, texels: &Resource, storage: Storage) -> Dispatch {
    let halves = if texels.kind == Kind::Half { vec![name] } else { Vec::new() };
    Dispatch {
        kernel: Kernel { halves, ..Kernel::new(entry, vec![("WG", 64)], storage) },
        layer: "probe".into(),
        bindings: vec![("params", 0), (name, 1), ("z", 2)],
        grid: Grid::PerSample(texels.per_sample.div_ceil(64) as u32, 1),
        flops: 0,
    }
}

fn run_on_texels(
    gpu: &Gpu,
    dispatch: &Dispatch,
    resource: &Resource,
    seed: u32,
    samples: u32,
    texels: &Allocated,
    plain: Option<&Allocated>,
) -> Result<()> {
    let words = [resource.per_sample as u32, seed, 0, 0];
    let params =
        Resource { label: "params".into(), kind: Kind::Constant(bytemuck::cast_slice(&words).to_vec()), per_sample: 0 };
    let n = u64::from(samples);
    let as_numbers = Resource { kind: Kind::Samples, ..resource.clone() };
    gpu.scope(dispatch.kernel.entry, || {
        let memory = Allocated::new(gpu, &params, 1, dispatch.kernel.storage)?;
        let stages = Stages::of_all(plain.is_none().then_some(resource), dispatch.kernel.storage);
        let stages = stages.try_map(|stage| Allocated::new(gpu, &stage, n, dispatch.kernel.storage))?;
        let bound = dispatch.bind(gpu, samples, |id| match id {
            0 => Lent::new(&params, 1, &memory, None),
            1 => Lent::new(resource, n, texels, stages.of(&resource.kind)),
            _ => Lent::new(&as_numbers, n, plain.unwrap_or(texels), None),
        })?;
        // Whoever uses the texels comes later on the same queue.
        submit(gpu, [&bound]).map(drop)
    })
}

/// How far what one kernel wrote is from what another one wrote: 0 where every bit is the same, else the largest
/// distance of any output. Of floats it is ‖got − want‖ / ‖want‖, of bits the share that differs.
///
/// # Errors
/// What is wrong, in words: NaN or infinity, differences in bits where `tolerance` is none, a distance above it.
pub fn compare(got: &[Written], want: &[Written], tolerance: Option<f64>) -> std::result::Result<f64, String> {
    let mut worst = 0.0_f64;
    if got.len() != want.len() {
        return Err(format!("{} outputs, not {}", got.len(), want.len()));
    }
    for (got, want) in got.iter().zip(want) {
        if got.name != want.name || got.bytes.len() != want.bytes.len() {
            return Err(format!(
                "{} of {} bytes, not {} of {}",
                got.name,
                got.bytes.len(),
                want.name,
                want.bytes.len()
            ));
        }
        let [g, w] = [&got.bytes, &want.bytes].map(|b| bytemuck::pod_collect_to_vec::<u8, u32>(b));
        let differ = g.iter().zip(&w).filter(|(g, w)| g != w).count();
        let float = |word: &u32| f64::from(f32::from_bits(*word));
        if got.floats
            && let Some(at) = g.iter().position(|v| !float(v).is_finite())
        {
            return Err(format!("{}: {} at {at}, where {} is right", got.name, float(&g[at]), float(&w[at])));
        }
        // A kernel marks what is not finite and may store a zero.
        if got.name == "health" && differ > 0 {
            return Err(format!("{differ} samples are marked for NaN or infinity"));
        }
        if differ == 0 {
            continue;
        }
        let first = g.iter().zip(&w).position(|(g, w)| g != w).unwrap_or(0);
        let distance = if got.floats {
            let square = |f: &dyn Fn(usize) -> f64| (0..g.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
            let size = square(&|i| float(&w[i]));
            square(&|i| float(&g[i]) - float(&w[i])) / if size > 0.0 { size } else { 1.0 }
        } else {
            let bits: u64 = g.iter().zip(&w).map(|(g, w)| u64::from((g ^ w).count_ones())).sum();
            bits as f64 / (32 * g.len()) as f64
        };
        let values = if got.floats {
            format!("{:e} for {:e}", float(&g[first]), float(&w[first]))
        } else {
            format!("{:#010x} for {:#010x}", g[first], w[first])
        };
        let told = format!(
            "{}: {differ} of {} differ in bits, the first at {first}, {values}; relative distance {distance:.1e}",
            got.name,
            g.len()
        );
        match tolerance {
            // NaN passes no test.
            Some(t) if distance <= t => worst = worst.max(distance),
            _ => return Err(told),
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(values: &[f32]) -> Vec<Written> {
        vec![Written { name: "y", floats: true, bytes: bytemuck::cast_slice(values).to_vec() }]
    }

    #[test]
    fn a_comparison_sees_one_bit_and_no_nan_passes() {
        let right = written(&[1.0, -2.0, 0.0]);
        assert_eq!(compare(&right, &right, None), Ok(0.0));
        let close = written(&[1.0, -2.0000002, 0.0]);
        assert!(compare(&close, &right, None).unwrap_err().contains("1 of 3 differ"));
        assert!(compare(&close, &right, Some(1e-6)).unwrap() > 0.0);
        assert!(compare(&close, &right, Some(1e-9)).is_err());
        assert!(compare(&written(&[1.0, -2.0, -0.0]), &right, None).is_err());
        assert!(compare(&written(&[1.0, f32::NAN, 0.0]), &right, Some(f64::INFINITY)).is_err());
        assert!(compare(&written(&[1.0]), &right, Some(1.0)).is_err());
        let bits = |word: u32| vec![Written { name: "signs", floats: false, bytes: word.to_ne_bytes().to_vec() }];
        assert!(compare(&bits(0x7f80_0001), &bits(0x7f80_0001), None).is_ok());
        assert_eq!(compare(&bits(1), &bits(0), Some(0.1)), Ok(1.0 / 32.0));
        assert!(compare(&bits(1), &bits(0), Some(0.01)).is_err());
        let health = |mark: u32| vec![Written { name: "health", floats: false, bytes: mark.to_ne_bytes().to_vec() }];
        assert!(compare(&health(1), &health(0), Some(f64::INFINITY)).unwrap_err().contains("NaN"));
    }

    #[test]
    fn scattered_numbers_are_never_zero_and_lie_on_both_sides() {
        let mut scatter = Scatter(1);
        let values: Vec<f32> = (0..1000).map(|_| scatter.signed()).collect();
        assert!(values.iter().all(|v| *v != 0.0 && v.abs() <= 1.0));
        assert!((400..600).contains(&values.iter().filter(|v| **v > 0.0).count()));
    }
}
