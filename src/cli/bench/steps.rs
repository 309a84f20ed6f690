//! Whole steps, forward, backward and sign step, by network and batch: what one step costs, what part of it is no
//! convolution, and how the cost grows with the batch.

use super::kernels::Bench;
use super::results::{DispatchRow, Spread, StepRow};
use super::shape;
use crate::Network;
use crate::attack::{Engine, Job, Sample};
use crate::cli::engine;
use crate::cli::network::Weights;
use crate::error::{Error, Result};
use crate::kernel::Dispatch;
use crate::model::{Model, known};
use crate::plan::{Math, Plan};
use crate::trial::{Clock, Scatter, Setup, Trial};
use glob::Pattern;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Timed unless others are asked for.
const NETWORKS: [&str; 3] = ["digits-cnn", "resnet20", "resnet18"];

/// Steps of one attack that is timed.
const STEPS: u32 = 4;

/// One measure is at least so long, in seconds.
const MEASURE: f64 = 0.1;

/// One measure of a single dispatch, in seconds.
const EACH: f64 = 0.01;

/// No submission of whole steps is made on hardware that is expected to take longer, in seconds.
const SUBMISSION: f64 = 0.5;

pub(super) struct Choice {
    pub networks: Vec<String>,
    pub models: Vec<PathBuf>,
    pub batches: Vec<usize>,
    pub maths: Vec<Math>,
    pub rounds: usize,
    pub max_seconds: f64,
    /// Whether each dispatch is timed alone, too.
    pub dispatches: bool,
}

/// One network on the device, and its rows.
struct Subject {
    net: Network,
    /// Its own.
    name: String,
    start_up: f64,
    rows: Vec<Row>,
}

struct Row {
    batch: usize,
    skipped: Option<String>,
    /// Rounds that the time allows.
    rounds: usize,
    /// Attacks in one measure.
    attacks: u32,
    /// CPU and wall time of one step, in seconds.
    cpu: Vec<f64>,
    wall: Vec<f64>,
    /// Convolutions and everything else, by the clock.
    parts: Vec<(f64, f64)>,
}

/// The networks asked for.
pub(super) fn networks(choice: &Choice) -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for path in &choice.models {
        models.push(Weights::open(Some(path), None)?.model()?);
    }
    let names = known().into_iter().map(|a| a.name).collect::<Vec<_>>();
    let shipped = NETWORKS.map(String::from);
    let wanted = if choice.networks.is_empty() && models.is_empty() { &shipped[..] } else { &choice.networks };
    for glob in wanted {
        let pattern = Pattern::new(glob).map_err(|e| Error::Usage(format!("--network {glob}: {e}")))?;
        let named: Vec<&String> = names.iter().filter(|n| pattern.matches(n)).collect();
        if named.is_empty() {
            return Err(Error::Usage(format!("--network {glob}: there is none; there are {}", names.join(", "))));
        }
        models.extend(named.into_iter().filter_map(|n| shape::network(n)));
    }
    Ok(models)
}

/// CPU time of the process.
pub(super) fn process_time() -> Duration {
    cpu_time::ProcessTime::try_now().map_or(Duration::ZERO, |t| t.as_duration())
}

/// Times every network in every batch. `told` hears of each measure.
pub(super) fn run(
    bench: &Bench<'_>,
    models: Vec<Model>,
    choice: &Choice,
    mut told: impl FnMut(&str, usize),
) -> Result<(Vec<StepRow>, Vec<DispatchRow>)> {
    let mut subjects = Vec::new();
    for (model, &math) in models.iter().flat_map(|m| choice.maths.iter().map(move |math| (m, math))) {
        told(&model.arch, 1);
        let start_up = start_up(bench, model, math)?;
        let net = Network::with_options(bench.gpu, model.clone(), &bench.options(math))?;
        let rows = choice.batches.iter().map(|&batch| Row::new(batch)).collect();
        // Two files may hold networks of one name.
        let one = name(&net);
        let same = subjects.iter().filter(|s: &&Subject| name(&s.net) == one).count();
        let name = if same == 0 { one } else { format!("{one} #{}", same + 1) };
        subjects.push(Subject { net, name, start_up, rows });
    }
    for round in 0..=choice.rounds {
        for subject in &mut subjects {
            subject.round(choice, round, &mut told)?;
        }
    }
    let (mut all, mut dispatches) = (Vec::new(), Vec::new());
    for subject in &mut subjects {
        for row in subject.rows.iter_mut().filter(|r| r.skipped.is_none()) {
            told(&subject.net.model().arch.clone(), row.batch);
            row.parts = parts(bench, &subject.net, row)?;
            if choice.dispatches {
                dispatches.extend(one_by_one(bench, (&subject.net, &subject.name), row.batch, choice.rounds)?);
            }
        }
        all.extend(subject.told(&bench.clock));
    }
    Ok((all, dispatches))
}

/// Seconds from nothing but the weights in memory to the end of the first step: the device opened, the plan made,
/// kernels compiled (by a driver that may have them in a cache of its own), weights uploaded.
fn start_up(bench: &Bench<'_>, model: &Model, math: Math) -> Result<f64> {
    let batch = Batch::new(model.input.len(), 1);
    let start = Instant::now();
    let gpu = engine::open(&crate::Adapter::Index(bench.gpu.summary().index), math)?;
    gpu.set_deadline(bench.gpu.deadline());
    let net = Network::with_options(&gpu, model.clone(), &bench.options(math))?;
    batch.attack(&net, 1)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Random images, and what is done with each.
struct Batch {
    images: Vec<f32>,
    samples: Vec<Sample>,
}

impl Batch {
    fn new(pixels: usize, batch: usize) -> Self {
        let mut scatter = Scatter(batch as u64);
        let pixel = |_| (scatter.signed().abs() * 255.0).round() / 255.0;
        let (eps, step_size) = (8.0 / 255.0, 1.0 / 255.0);
        let sample = Sample { class: 1, eps, step_size, direction: -1.0, ..Sample::default() };
        Batch { images: (0..batch * pixels).map(pixel).collect(), samples: vec![sample; batch] }
    }

    fn attack(&self, net: &Network, steps: u32) -> Result<()> {
        let job = Job::new(&self.images, &self.samples, steps);
        net.iterate(&job, &mut |_| true).map(drop)
    }
}

impl Row {
    fn new(batch: usize) -> Self {
        Row { batch, skipped: None, rounds: 0, attacks: 1, cpu: Vec::new(), wall: Vec::new(), parts: Vec::new() }
    }
}

impl Subject {
    /// Every batch once; round 0 finds out which of them there is time for.
    fn round(&mut self, choice: &Choice, round: usize, told: &mut dyn FnMut(&str, usize)) -> Result<()> {
        let mut each: Option<f64> = None; // seconds for one sample and step, from the batch before
        for row in &mut self.rows {
            if round == 0 {
                let least = each.map(|s| s * row.batch as f64 * f64::from(STEPS));
                if let Some(seconds) = least.filter(|s| *s > choice.max_seconds) {
                    row.skipped = Some(format!("{STEPS} steps would take {seconds:.0} s (--max-seconds)"));
                    continue;
                }
                told(&self.net.model().arch.clone(), row.batch);
                let batch = Batch::new(self.net.model().input.len(), row.batch);
                // The first one compiles, and makes memory for the batch. Where a step is known to take long, it is
                // enough.
                let enough = each.map_or(f64::INFINITY, |_| choice.max_seconds / 4.0);
                let mut step = 0.0;
                for _ in 0..2 {
                    let start = Instant::now();
                    batch.attack(&self.net, 1)?;
                    step = start.elapsed().as_secs_f64();
                    if step > enough {
                        break;
                    }
                }
                each = Some(step / row.batch as f64);
                let attack = step * f64::from(STEPS);
                row.rounds = ((choice.max_seconds / attack) as usize).clamp(1, choice.rounds);
                row.attacks = ((MEASURE / attack).ceil() as u32).clamp(1, 100);
                continue;
            }
            if row.skipped.is_some() || round > row.rounds {
                continue;
            }
            told(&self.net.model().arch.clone(), row.batch);
            let batch = Batch::new(self.net.model().input.len(), row.batch);
            if row.wall.last().is_none_or(|step| *step < 0.5) {
                // The batch before was another one.
                batch.attack(&self.net, 1)?;
            }
            let (cpu, wall) = (process_time(), Instant::now());
            for _ in 0..row.attacks {
                batch.attack(&self.net, STEPS)?;
            }
            let steps = f64::from(STEPS * row.attacks);
            row.wall.push(wall.elapsed().as_secs_f64() / steps);
            row.cpu.push(process_time().saturating_sub(cpu).as_secs_f64() / steps);
        }
        Ok(())
    }

    fn told(&self, clock: &Clock<'_>) -> Vec<StepRow> {
        let plan = self.net.plan();
        let flops = (plan.flops_forward() + plan.flops_backward()) as f64;
        let mut rows: Vec<StepRow> = self
            .rows
            .iter()
            .map(|row| {
                let spread = |values: &[f64]| (!values.is_empty()).then(|| Spread::of(values));
                let both: Vec<f64> = row.parts.iter().map(|(conv, other)| conv + other).collect();
                let device = if matches!(clock, Clock::Process(_)) { spread(&row.cpu) } else { spread(&both) };
                let shares: Vec<f64> = row.parts.iter().map(|(conv, other)| other / (conv + other)).collect();
                StepRow {
                    network: self.name.clone(),
                    batch: row.batch,
                    skipped: row.skipped.clone(),
                    chunk: row.batch.min(self.net.chunk()),
                    rounds: row.wall.len(),
                    device,
                    wall: spread(&row.wall),
                    other_share: spread(&shares).map(|s| s.median),
                    gflops_per_s: device.map(|d| flops * row.batch as f64 / d.median / 1e9),
                    start_up: self.start_up,
                    bytes_per_sample: plan.bytes_per_sample(),
                    growth: None,
                }
            })
            .collect();
        let each = |r: &StepRow| r.time().map(|t| t.median / r.batch as f64);
        let largest = rows.iter().filter(|r| r.time().is_some()).max_by_key(|r| r.batch).and_then(each);
        for row in &mut rows {
            row.growth = each(row).zip(largest).map(|(one, largest)| one / largest);
        }
        rows
    }
}

/// What a network is called in tables: with its arithmetic, where that is not f32.
fn name(net: &Network) -> String {
    match net.plan().target().math {
        Math::F32 => net.model().arch.clone(),
        other => format!("{}, {other}", net.model().arch),
    }
}

/// The dispatches of a step in their order, on random data, for so many samples.
fn step<'d>(bench: &Bench<'_>, plan: &'d Plan, samples: usize) -> Result<(Vec<&'d Dispatch>, Trial)> {
    let all: Vec<&Dispatch> = plan.forward.iter().chain(&plan.backward).chain([&plan.step]).collect();
    let cloned: Vec<Dispatch> = all.iter().map(|d| (*d).clone()).collect();
    let trial = Trial::new(bench.gpu, &cloned, &plan.resources, &Setup::once(samples as u32))?;
    Ok((all, trial))
}

/// Each dispatch of a step alone, again and again, what it leaves on the stage copied; in rounds.
fn one_by_one(
    bench: &Bench<'_>,
    (net, name): (&Network, &str),
    batch: usize,
    rounds: usize,
) -> Result<Vec<DispatchRow>> {
    let plan = net.plan();
    let n = batch.min(net.chunk());
    let (dispatches, trial) = step(bench, plan, n)?;
    let time = |i: usize, runs: u32| trial.time_of(&bench.clock, runs, &|j| j == i);
    // The first time compiles, the second tells how many make a measure.
    let runs = (0..dispatches.len()).map(|i| {
        time(i, 1)?;
        Ok(((EACH / time(i, 1)?.wall) as u32).clamp(1, 256))
    });
    let runs = runs.collect::<Result<Vec<u32>>>()?;
    let mut times = vec![Vec::new(); dispatches.len()];
    for _ in 0..rounds {
        for (i, times) in times.iter_mut().enumerate() {
            times.push(time(i, runs[i])?.time);
        }
    }
    let times: Vec<Spread> = times.iter().map(|t| Spread::of(t)).collect();
    let step: f64 = times.iter().map(|t| t.median).sum();
    let row = |(place, (d, time)): (usize, (&&Dispatch, &Spread))| DispatchRow {
        network: name.to_string(),
        samples: n,
        place,
        kernel: d.kernel.entry.into(),
        layer: d.layer.clone(),
        time: *time,
        share: time.median / step,
        gflops_per_s: (d.flops > 0).then(|| d.flops as f64 * n as f64 / time.median / 1e9),
    };
    Ok(dispatches.iter().zip(&times).enumerate().map(row).collect())
}

/// Convolutions and everything else of a step, by the clock, each group of dispatches alone and on random data.
fn parts(bench: &Bench<'_>, net: &Network, row: &Row) -> Result<Vec<(f64, f64)>> {
    let step = Spread::of(&row.wall).median;
    let software = matches!(bench.clock, Clock::Process(_));
    if !software && step > SUBMISSION {
        return Ok(Vec::new());
    }
    let n = row.batch.min(net.chunk());
    let (dispatches, trial) = self::step(bench, net.plan(), n)?;
    let conv = |i: usize| dispatches[i].kernel.entry.starts_with("conv2d");
    // Hardware: many steps back to back; a software adapter's CPU time needs no more than a few hundredths of a second.
    let runs = ((0.05 / step) as u32).clamp(1, 20);
    let measures = if step > 1.0 { 1 } else { 3 };
    if step < 1.0 {
        trial.time(&bench.clock, 1)?;
    }
    let each = row.batch as f64 / n as f64;
    (0..measures)
        .map(|_| {
            let a = trial.time_of(&bench.clock, runs, &conv)?.time;
            let b = trial.time_of(&bench.clock, runs, &|i| !conv(i))?.time;
            Ok((a * each, b * each))
        })
        .collect()
}
