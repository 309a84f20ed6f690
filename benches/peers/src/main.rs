//! The same networks, weights and sign steps on signstep, burn-wgpu, ncnn-Vulkan and PyTorch; one table with ratios.
//!
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- --python python3 --save

mod case;
mod cold;
#[path = "../../../tests/common/mod.rs"]
mod common;
mod contest;
mod engine;
mod on_burn;
#[path = "../../../src/cli/bench/peers.rs"]
mod peers;
mod table;
mod worker;

use case::{Case, DIGITS};
use clap::{Parser, Subcommand};
use cold::ColdStarts;
use contest::{Contest, Kind, Seat, Seated, Setting, Work};
use peers::{Adapter, Peers};
use serde::Serialize;
use signstep::{Gpu, Math};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use worker::Peer;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// signstep beside burn-wgpu, ncnn-Vulkan and PyTorch: the same networks, weights and attack steps, one table with ratios.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Python that has torch, ncnn and safetensors
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Arithmetics of signstep in attack steps, several with commas; f32, which all are checked against, is always one
    #[arg(long, value_name = "f32|fast|f16", value_delimiter = ',', default_value = "f32,fast,f16")]
    math: Vec<Math>,
    /// Where to write every number, with versions, adapter and date
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the same to benches/results, where `signstep bench --table` finds it
    #[arg(long)]
    save: bool,
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
    Adapter,
    Prepare { network: String, batch: usize, file: PathBuf },
    Signstep { network: String, batch: usize, math: Math },
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
        Part::Adapter => {
            let gpu = Gpu::new(&signstep::Adapter::Auto)?;
            let s = gpu.summary();
            let [name, backend, kind, driver] = [&s.name, &s.backend, &s.kind, &s.driver].map(String::clone);
            println!("{}", serde_json::to_string(&Adapter { name, backend, kind, driver })?);
            Ok(())
        }
        Part::Prepare { network, batch, file } => Case::new(&network, batch)?.write(&file),
        Part::Signstep { network, batch, math } => {
            let engine = Case::new(&network, batch).and_then(|case| engine::Engine::new(case, math));
            worker::serve(engine.map(|p| Box::new(p) as Box<dyn Peer>))
        }
        Part::Burn { network, batch, kind } => {
            let burn = Case::new(&network, batch).and_then(|case| on_burn::Burn::new(case, &kind));
            worker::serve(burn.map(|p| Box::new(p) as Box<dyn Peer>))
        }
    }
}

/// Which peer runs what. A software adapter is given one thread, to be compared by CPU time, and all of them; hardware has
/// only the latter.
fn contests(software: bool, maths: &[Math]) -> Vec<Contest> {
    use Kind::{Burn, NcnnCpu, NcnnVulkan, Torch, TorchCuda};
    let own = |maths: &[Math], threads: &[usize]| -> Vec<Seat> {
        let of = |math| threads.iter().map(move |&threads| Seat { kind: Kind::Signstep, threads, math });
        maths.iter().copied().flat_map(of).collect()
    };
    let peers = |own: Vec<Seat>, kinds: &[(Kind, usize)]| -> Vec<Seat> {
        let peers = kinds.iter().map(|&(kind, threads)| Seat { kind, threads, math: Math::F32 });
        own.into_iter().chain(peers).collect()
    };
    let (threads, on_adapter): (&[usize], usize) = if software { (&[0, 1], 1) } else { (&[0], 0) };
    let torch = peers(own(maths, threads), &[(Torch, 1), (Torch, 0), (TorchCuda, 0)]);
    let burn = peers(own(maths, &[on_adapter]), &[(Burn, on_adapter), (Torch, 1)]);
    let ncnn = peers(own(&[Math::F32], &[on_adapter]), &[(NcnnVulkan, on_adapter), (NcnnCpu, 1)]);
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

/// What is kept: what is told, and what it was made of.
#[derive(Serialize)]
struct Kept<'a> {
    #[serde(flatten)]
    told: Peers,
    contests: Vec<Measured<'a>>,
    cold_start: Option<ColdStarts>,
}

#[derive(Serialize)]
struct Measured<'a> {
    title: String,
    contest: &'a Contest,
    outcomes: &'a [Seated],
}

fn compare(arguments: &Arguments) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/run");
    std::fs::create_dir_all(&folder)?;
    // Peers start in another folder. A name without one is left for PATH; links stay, for an environment is one.
    let python = match arguments.python.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::path::absolute(&arguments.python)?,
        _ => arguments.python.clone(),
    };
    let setting = Setting { python, folder, rounds: arguments.rounds.into(), adapter: adapter()? };
    let software = setting.adapter.kind == "software";
    let mut maths = vec![Math::F32];
    maths.extend([Math::Fast, Math::F16].into_iter().filter(|m| arguments.math.contains(m)));
    let load = load_average();
    let mut results = Vec::new();
    for contest in contests(software, &maths) {
        if contest.title().contains(&arguments.only) {
            let outcomes = contest.run(&setting)?;
            results.push((contest, outcomes));
        }
    }
    let cold_start = "cold start".contains(&arguments.only).then(|| cold::cold_starts(&setting)).transpose()?;
    let outcomes = results.iter().flat_map(|(_, outcomes)| outcomes).flatten();
    let who: BTreeSet<String> =
        outcomes.map(|o| format!("{} on {}: {}", o.ready.name, o.ready.device, o.ready.how)).collect();
    let told = Peers {
        schema_version: peers::SCHEMA,
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        cpus: std::thread::available_parallelism()?.get(),
        load_average: [load, load_average()],
        rounds: setting.rounds,
        math: maths.iter().map(Math::to_string).collect(),
        peers: who.into_iter().collect(),
        rows: table::rows(&results, cold_start.as_ref(), software),
        checks: table::checks(&results),
        adapter: setting.adapter,
    };
    println!("{}", told.markdown());
    let name = peers::slug(&told.adapter.name, &told.adapter.backend);
    let kept = case::repository(&format!("benches/results/{}{name}.json", peers::PREFIX));
    let measured = results.iter().map(|(contest, outcomes)| Measured { title: contest.title(), contest, outcomes });
    let all = Kept { told, contests: measured.collect(), cold_start };
    let all = serde_json::to_string_pretty(&all)? + "\n";
    for file in arguments.json.iter().chain(arguments.save.then_some(&kept)) {
        std::fs::write(file, &all).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

/// What the engine runs on: asked of a process that ends, so that this one stays small.
fn adapter() -> Result<Adapter> {
    let told = contest::own_program().args(["worker", "adapter"]).stderr(Stdio::inherit()).output()?;
    serde_json::from_slice(&told.stdout).map_err(|_| "signstep finds no adapter".into())
}

/// Of the last minute, where the system tells it.
fn load_average() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().filter(|l| !l.is_empty()).unwrap_or("unknown").to_string()
}
