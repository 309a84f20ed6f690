//! `signstep tune`: finds the fastest tiles for a network on this device and keeps them in a file, which every later
//! command reads.

use super::engine::{DeviceArgs, Place};
use super::flags::positive;
use super::network::{NetworkArgs, load_model};
use super::tell::answer;
use super::tunings;
use crate::error::{Error, Result};
use crate::trial::Clock;
use crate::tune::{self, Choice, Verdict};
use crate::{Math, report};
use clap::Args;
use std::time::Duration;

#[derive(Args, Debug)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Batch that is timed
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: u32,
}

pub(super) fn run(args: &TuneArgs) -> Result<()> {
    positive("--batch", Some(args.batch))?;
    let (model, _) = load_model(&args.network)?;
    let Place::Gpu(gpu, _) = Place::open(&args.device, Math::F32)? else {
        return Err(Error::Usage("the reference has no tiles to choose from".into()));
    };
    // Told before minutes are spent.
    tunings::check(&gpu)?;
    let process = || cpu_time::ProcessTime::try_now().map_or(Duration::ZERO, |t| t.as_duration());
    let clock = Clock::of(&gpu, &process);
    let mut table = report::blank(["shape", "default, ms", "best tile", "ms", "refused"]);
    let tuning = tune::tune(&gpu, &model, args.batch, &clock, &mut |choice| {
        table.add_row(row(choice));
        true
    })?;
    let path = tunings::keep(&gpu, &tuning)?;
    answer(&format!("{}, batch {}, {}\n{table}\n{}", tune::key(&gpu), args.batch, clock.name(), path.display()))
}

/// One shape: how long the default takes, what beats it, and what was refused.
fn row(choice: &Choice) -> [String; 5] {
    let time = |tile| {
        let verdict = choice.candidates.iter().find(|(t, _)| *t == tile).map(|(_, v)| v);
        if let Some(Verdict::Time(t)) = verdict { format!("{:.3}", t * 1e3) } else { String::new() }
    };
    let refused = choice.candidates.iter().filter_map(|(tile, verdict)| match (tile, verdict) {
        (Some(tile), Verdict::Wrong(why)) => Some(format!("{tile}: {why}")),
        (Some(tile), Verdict::Failed(why)) => Some(format!("{tile}: {why}")),
        _ => None,
    });
    let best = choice.best.map(|tile| (tile.to_string(), time(Some(tile))));
    let (tile, faster) = best.unwrap_or(("default".into(), String::new()));
    [choice.shape.clone(), time(None), tile, faster, refused.collect::<Vec<_>>().join("; ")]
}
