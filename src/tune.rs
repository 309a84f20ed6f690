//! Tiles by measurement: every tile that may suit a device is tried for every shape of a network, on random data. One
//! that gives other bits than the naive kernel is refused, whatever its speed; of the others the fastest is taken where
//! it beats the default clearly. Results of a network therefore never depend on a tuning, only their time does.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::{self, Dispatch, Kernel};
use crate::model::Model;
use crate::plan::{Plan, Target, Tile, Tuning, Variant};
use crate::tensor::Resource;
use crate::trial::{Clock, Setup, Trial, compare};
use std::collections::BTreeMap;

/// Samples on which bits are compared: more than one, so that one sample's trace in another would show.
const CHECKED: u32 = 3;

/// Rounds of measures; candidates take turns.
const ROUNDS: usize = 5;

/// A tile must be so much faster than the default to take its place: less is noise.
const GAIN: f64 = 0.97;

/// What became of one candidate.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Seconds for one run over the batch, the median.
    Time(f64),
    /// Other bits than the naive kernel's: what differs.
    Wrong(String),
    /// It could not be run: why.
    Failed(Error),
}

/// How the tile for one shape was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What the choice depends on.
    pub shape: String,
    /// Candidates, the default first (`None`).
    pub candidates: Vec<(Option<Tile>, Verdict)>,
    /// The tile that is faster than the default, if one is.
    pub best: Option<Tile>,
}

/// Dispatches that compute one thing, and the resources that they bind.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// In order.
    pub dispatches: &'a [Dispatch],
    /// Of the plan that they are of.
    pub resources: &'a [Resource],
}

impl<'a> Work<'a> {
    /// What `plan` does at its site number `i`.
    fn of(plan: &'a Plan, i: usize) -> Self {
        Work { dispatches: plan.at(&plan.sites[i]), resources: &plan.resources }
    }

    fn kernels(&self) -> impl Iterator<Item = &'a Kernel> {
        self.dispatches.iter().map(|d| &d.kernel)
    }
}

/// Tries every tile for every shape of `model`, in batches of `samples`; `tell` hears of each choice, and ends it all
/// by answering `false`.
///
/// # Errors
/// [`Error::Cancelled`], [`Error::Usage`] for a batch of none, [`Error::OutOfMemory`] for a batch beyond the device's
/// limits, [`Error::Internal`] where not even the default gives the naive kernel's bits, those of the device.
pub fn tune(
    gpu: &Gpu,
    model: &Model,
    samples: u32,
    clock: &Clock<'_>,
    tell: &mut dyn FnMut(&Choice) -> bool,
) -> Result<Tuning> {
    let target = Target::of(gpu)?;
    let plan = |variant| Plan::new(model, &Target { variant, ..target.clone() });
    let (naive, default) = (plan(Variant::Naive)?, plan(Variant::Fast)?);
    // Pieces are timed alone, but none is larger alone than in the plan.
    let most = naive.largest_batch(u64::MAX)?.min(default.largest_batch(u64::MAX)?);
    if samples == 0 {
        return Err(Error::Usage("a batch of 0 takes no time".into()));
    }
    if samples as usize > most {
        let limit = format!("the largest batch that fits its limits is {most}");
        let what = format!("a batch of {samples}");
        return Err(Error::OutOfMemory { what, bytes: default.bytes(u64::from(samples)), limit });
    }
    let tried = Tile::all(&target).into_iter().filter(|tile| tile.family.suits(&target));
    let others = tried.map(|tile| Ok((tile, plan(Variant::Only(tile))?)));
    let others = others.collect::<Result<Vec<_>>>()?;
    let mut tiles = BTreeMap::new();
    let mut known = Vec::new();
    for (i, site) in naive.sites.iter().enumerate() {
        if known.contains(&site.shape) {
            continue;
        }
        known.push(site.shape.clone());
        // A tile that cannot serve this shape has left it to the default.
        let mut candidates = vec![(None, Work::of(&default, i))];
        for (tile, plan) in &others {
            let tried = Work::of(plan, i);
            if candidates.iter().all(|(_, other)| !other.kernels().eq(tried.kernels())) {
                candidates.push((Some(*tile), tried));
            }
        }
        let list: Vec<Work<'_>> = candidates.iter().map(|(_, work)| *work).collect();
        let verdicts = judge(gpu, Work::of(&naive, i), &list, samples, clock)?;
        let default = match verdicts.first().cloned() {
            Some(Verdict::Time(default)) => default,
            Some(Verdict::Failed(e)) => return Err(e),
            other => return Err(Error::Internal(format!("{}: the default: {other:?}", site.shape))),
        };
        let timed = candidates.iter().zip(&verdicts).filter_map(|((tile, _), verdict)| match verdict {
            Verdict::Time(t) => Some((*t, *tile)),
            _ => None,
        });
        let fastest = timed.min_by(|a, b| a.0.total_cmp(&b.0)).filter(|(t, _)| *t < GAIN * default);
        let best = fastest.and_then(|(_, tile)| tile);
        let candidates = candidates.iter().map(|(tile, _)| *tile).zip(verdicts).collect();
        if !tell(&Choice { shape: site.shape.clone(), candidates, best }) {
            return Err(Error::Cancelled);
        }
        tiles.extend(best.map(|tile| (site.shape.clone(), tile)));
    }
    Ok(tiles.into_iter().collect())
}

/// Compares each candidate's bits with those of `twin`, and times those that are right.
///
/// # Errors
/// Where the twin itself does not run, or the device is lost.
pub fn judge(
    gpu: &Gpu,
    twin: Work<'_>,
    candidates: &[Work<'_>],
    samples: u32,
    clock: &Clock<'_>,
) -> Result<Vec<Verdict>> {
    let trial = |work: &Work<'_>, setup: &Setup| Trial::new(gpu, work.dispatches, work.resources, setup);
    let want = trial(&twin, &Setup::once(CHECKED))?.outputs()?;
    let mut verdicts = Vec::new();
    let mut timed = Vec::new();
    for (at, work) in candidates.iter().enumerate() {
        let checked = trial(work, &Setup::once(CHECKED)).and_then(|t| t.outputs());
        let verdict = match checked.map(|got| compare(&got, &want, None)) {
            Err(e) => failed(e)?,
            Ok(Err(differs)) => Verdict::Wrong(differs),
            Ok(Ok(_)) => match trial(work, &Setup::once(samples)).and_then(|t| Ok((t.runs(clock)?, t))) {
                Err(e) => failed(e)?,
                Ok((runs, ready)) => {
                    timed.push((at, runs, ready, Vec::new()));
                    Verdict::Time(f64::INFINITY)
                }
            },
        };
        verdicts.push(verdict);
    }
    for _ in 0..ROUNDS {
        for (_, runs, trial, times) in &mut timed {
            times.push(trial.time(clock, *runs)?.time);
        }
    }
    for (at, _, _, mut times) in timed {
        times.sort_by(f64::total_cmp);
        verdicts[at] = Verdict::Time(times[times.len() / 2]);
    }
    Ok(verdicts)
}

/// A candidate that does not run is passed by; a device that is lost runs none.
fn failed(e: Error) -> Result<Verdict> {
    if matches!(e, Error::DeviceLost(_)) { Err(e) } else { Ok(Verdict::Failed(e)) }
}

/// What a tuning holds for: adapter, driver, where activations lie, this version, and the text of the shaders.
pub fn key(gpu: &Gpu) -> String {
    let s = gpu.summary();
    let (version, shaders) = (env!("CARGO_PKG_VERSION"), kernel::fingerprint());
    format!("signstep {version}, shaders {shaders:016x}, {} {} ({}), {:?}", s.backend, s.name, s.driver, gpu.storage())
        .replace(['\n', '\r'], " ")
}
