//! The same networks, weights and sign steps on signstep, burn-wgpu, ncnn-Vulkan and PyTorch; one table with ratios.
//!
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- --python python3 --json peers.json

mod case;
mod cold;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod contest;
mod engine;
mod on_burn;
mod table;
mod worker;

use case::{Case, DIGITS};
use clap::{Parser, Subcommand};
use contest::{Contest, Kind, Seat, Setting, Work};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use worker::{Peer, Ready, Worker};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// signstep beside burn-wgpu, ncnn-Vulkan and PyTorch: the same networks, weights and attack steps, one table with ratios.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Python that has torch, ncnn and safetensors
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Where to write every number, with versions, adapter and date
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Timed rounds; medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only what has this text in its title ("ResNet-20", "forward", "cold start")
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    #[command(subcommand)]
    inner: Option<Inner>,
}

#[derive(Subcommand)]
enum Inner {
    /// What this program starts of itself, a process for each peer
    #[command(hide = true, subcommand)]
    Worker(Part),
}

#[derive(Subcommand)]
enum Part {
    Prepare { network: String, batch: usize, file: PathBuf },
    Signstep { network: String, batch: usize, kind: String },
    Burn { network: String, batch: usize, kind: String },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.inner {
        None => compare(&arguments),
        Some(Inner::Worker(part)) => work(part),
    }
}

fn work(part: Part) -> Result<()> {
    match part {
        Part::Prepare { network, batch, file } => Case::new(&network, batch)?.write(&file),
        Part::Signstep { network, batch, .. } => worker::serve(
            Case::new(&network, batch).and_then(engine::Engine::new).map(|p| Box::new(p) as Box<dyn Peer>),
        ),
        Part::Burn { network, batch, kind } => {
            let burn = Case::new(&network, batch).and_then(|case| on_burn::Burn::new(case, &kind));
            worker::serve(burn.map(|p| Box::new(p) as Box<dyn Peer>))
        }
    }
}

/// Which peer runs what. A software adapter is given one thread, to be compared by CPU time, and all of them; hardware has
/// only the latter.
fn contests(software: bool) -> Vec<Contest> {
    use Kind::{Burn, NcnnCpu, NcnnVulkan, Signstep, Torch, TorchCuda};
    let seats = |kinds: &[(Kind, usize)]| -> Vec<Seat> {
        let seats = kinds.iter().map(|&(kind, threads)| Seat { kind, threads });
        seats.filter(|s| software || s.kind != Signstep || s.threads == 0).collect()
    };
    let torch = seats(&[(Signstep, 0), (Signstep, 1), (Torch, 1), (Torch, 0), (TorchCuda, 0)]);
    let own = if software { (Signstep, 1) } else { (Signstep, 0) };
    let on_adapter = |kind| if software { (kind, 1) } else { (kind, 0) };
    let burn = seats(&[own, on_adapter(Burn), (Torch, 1)]);
    let ncnn = seats(&[own, on_adapter(NcnnVulkan), (NcnnCpu, 1)]);
    let mut contests = Vec::new();
    for (network, batch, seats) in [
        (DIGITS, 64, &torch),
        ("resnet20", 64, &torch),
        ("resnet18", 16, &torch),
        ("resnet20", 8, &burn),
        ("resnet18", 2, &burn),
    ] {
        contests.push(Contest { network, batch, work: Work::Step, seats: seats.clone() });
    }
    for (network, batch) in [("16x32", 16), ("32x16", 16), ("64x8", 16), ("64x32", 4), ("resnet20", 8), ("resnet18", 2)]
    {
        contests.push(Contest { network, batch, work: Work::Forward, seats: ncnn.clone() });
    }
    contests
}

fn compare(arguments: &Arguments) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/run");
    std::fs::create_dir_all(&folder)?;
    let adapter = adapter(&folder)?;
    let kind = adapter.how.rsplit(", ").next().unwrap_or_default().to_string();
    let software = kind == "software";
    let rounds = arguments.rounds.into();
    // Peers start in another folder. A name without one is left for PATH; links stay, for an environment is one.
    let python = match arguments.python.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::path::absolute(&arguments.python)?,
        _ => arguments.python.clone(),
    };
    let setting = Setting { python, folder, rounds, adapter, kind };
    let load = load_average();
    let mut results = Vec::new();
    for contest in contests(software) {
        if contest.title().contains(&arguments.only) {
            let outcomes = contest.run(&setting)?;
            results.push((contest, outcomes));
        }
    }
    let cold = "cold start".contains(&arguments.only).then(|| cold::cold_starts(&setting)).transpose()?;
    let rows = table::rows(&results, cold.as_ref(), software);
    let outcomes = || results.iter().flat_map(|(_, outcomes)| outcomes).flatten();
    let peers: BTreeSet<String> =
        outcomes().map(|o| format!("{} on {}: {}", o.ready.name, o.ready.device, o.ready.how)).collect();
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let loads = [load, load_average()];
    println!("{}\n", table::markdown(&rows));
    println!("{date}; medians of {rounds} interleaved rounds; load average before and after: {}", loads.join(" and "));
    for peer in &peers {
        println!("- {peer}");
    }
    if let Some(file) = &arguments.json {
        let contest = |(contest, outcomes): &(Contest, Vec<_>)| json!({ "title": contest.title(), "contest": contest, "outcomes": outcomes });
        let all = json!({
            "date": date,
            "command": std::env::args().skip(1).collect::<Vec<_>>(),
            "version": env!("CARGO_PKG_VERSION"),
            "adapter": setting.adapter,
            "cpus": std::thread::available_parallelism()?,
            "load_average": loads,
            "rounds": rounds,
            "peers": peers,
            "rows": rows,
            "contests": results.iter().map(contest).collect::<Vec<_>>(),
            "cold_start": cold,
        });
        std::fs::write(file, format!("{all:#}\n")).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

/// What the engine runs on: asked of a process that ends, so that this one stays small.
fn adapter(folder: &Path) -> Result<Ready> {
    let mut command = contest::own_program();
    command.args(["worker", "signstep", "16x32", "1", ""]);
    Ok(Worker::start(command, folder.join("adapter.log"))?.ready.clone())
}

/// Of the last minute, where the system tells it.
fn load_average() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().filter(|l| !l.is_empty()).unwrap_or("unknown").to_string()
}
