//! `signstep bench`

mod baseline;
mod kernels;
mod language;
mod peers;
mod results;
mod shape;
mod steps;
mod tell;

use super::apart;
use super::engine::{DeviceArgs, Place};
use super::flags::{bytes, positive};
use super::tell::{answer, bar, complain, counted, warn};
use crate::coop;
use crate::data;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Storage};
use crate::plan::{Math, Target, Tuning};
use crate::trial::Clock;
use clap::{Args, ValueEnum};
use peers::Peers;
use results::{Results, write};
use std::fs;
use std::path::{Path, PathBuf};

/// Rounds apart by more than this, from the tenth to the ninetieth of a hundred, are no one clock.
const DRIFT: f64 = 1.15;

pub(super) const HELP: &str = "\
Without an argument, kernels and whole steps. What is of kernels alone (--kernel, --shape, --variant, --storage, --samples, --dump) means
kernels, what is of steps alone (--network, --model, --batch, --tuned, --dispatches) means steps, and some of each means both.

Times are medians of interleaved rounds on random data: by timestamps of the device, or, on a software adapter, by the CPU time of
this process. Every kernel is checked bit by bit against the naive one before it is timed; with --math coop, by tolerance.

A kernel of your own: write down the naive one with --dump, change it, and time it beside ours:
  signstep bench --kernel conv2d_forward --shape conv3x3s1-16-16-32x32 --variant naive --dump mine
  signstep bench --kernel conv2d_forward --shape conv3x3s1-16-16-32x32 --wgsl mine/….wgsl --entry conv2d_forward
It gets the same bindings and, unless --grid says otherwise, the same workgroups; it must give the same bits, or with --tolerance
be as near. No loop of an invocation should take more than 32,000 rounds.

--baseline compares medians row by row: as they are on hardware; on a software adapter, whose machine is shared, in units of the
fma probe of the same run. That says nothing of short kernels and small batches there, whose time is that of dispatches: name the
rows to compare, and a threshold that two runs of one program keep.

Examples:
  signstep bench
  signstep bench kernels --kernel 'conv2d_*' --shape 'conv3x3s1-*' --format csv --out kernels.csv
  signstep bench steps --network resnet20 --batch 1,64
  signstep bench steps --network resnet20 --batch 16 --dispatches
  signstep bench --save && signstep bench --table
  signstep bench --baseline before.json --fail-over 5%";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Single kernels
    Kernels,
    /// Whole steps of networks
    Steps,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Markdown,
    Csv,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Where {
    Buffer,
    Texture,
    Both,
}

/// What `bench` can be told.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// What to time
    #[arg(value_enum, value_name = "PART")]
    parts: Vec<Part>,
    /// Kernels by name (a glob); several with commas
    #[arg(long, value_name = "GLOB", value_delimiter = ',', help_heading = "Kernels")]
    kernel: Vec<String>,
    /// Shapes, by a glob or written out as in conv3x3s1-16-32-8x8; several with commas
    #[arg(long, value_name = "GLOB|SHAPE", value_delimiter = ',', help_heading = "Kernels")]
    shape: Vec<String>,
    /// Variants (a glob): naive, fast, and tiles such as register-4x8; several with commas
    #[arg(long, value_name = "GLOB", value_delimiter = ',', help_heading = "Kernels")]
    variant: Vec<String>,
    /// Where activations lie [default: as the adapter does best]
    #[arg(long, value_enum, value_name = "PLACE", help_heading = "Kernels")]
    storage: Option<Where>,
    /// Samples that kernels are timed on, or as many as the device takes at once [default: 16 on a software adapter,
    /// else 512]
    #[arg(long, value_name = "N", help_heading = "Kernels")]
    samples: Option<u32>,
    /// A kernel of your own, in the place of the naive one that --kernel and --shape name
    #[arg(
        long,
        value_name = "FILE",
        requires = "entry",
        requires = "kernel",
        requires = "shape",
        help_heading = "Kernels"
    )]
    wgsl: Option<PathBuf>,
    /// Its entry point
    #[arg(long, value_name = "NAME", requires = "wgsl", help_heading = "Kernels")]
    entry: Option<String>,
    /// Its workgroups for each sample along x and y [default: the naive kernel's]
    #[arg(long, value_name = "X,Y", requires = "wgsl", help_heading = "Kernels")]
    grid: Option<String>,
    /// How far its results may be from the naive kernel's, as a relative L2 distance [default: the same bits]
    #[arg(long, value_name = "R", requires = "wgsl", help_heading = "Kernels")]
    tolerance: Option<f64>,
    /// Write the shaders of the rows to a new folder, as WGSL, SPIR-V, MSL and HLSL, and time nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["wgsl", "save", "baseline", "out", "table"], help_heading = "Kernels")]
    dump: Option<PathBuf>,
    /// Networks known by name (a glob), with random weights; several with commas [default:
    /// digits-cnn,resnet20,resnet18]
    #[arg(long, value_name = "GLOB", value_delimiter = ',', help_heading = "Steps")]
    network: Vec<String>,
    /// Weights of a network (safetensors); may be given several times
    #[arg(long, value_name = "FILE", help_heading = "Steps")]
    model: Vec<PathBuf>,
    /// Batches [default: 1,8,64,512,2048]
    #[arg(long, value_name = "N", value_delimiter = ',', help_heading = "Steps")]
    batch: Vec<usize>,
    /// Time for one network and batch; what would take longer, but for the smallest batch, is left out, or gets fewer
    /// rounds
    #[arg(long, value_name = "S", default_value_t = 60.0, help_heading = "Steps")]
    max_seconds: f64,
    /// Each dispatch of a step alone, too, and what they come to by kernel: where its time goes
    #[arg(long, conflicts_with_all = ["baseline", "table"], help_heading = "Steps")]
    dispatches: bool,
    /// Steps with the tiles that `signstep tune` kept for this device, not with the defaults
    #[arg(long, conflicts_with_all = ["save", "baseline", "table"], help_heading = "Steps")]
    tuned: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Arithmetic: f32, fast, f16, coop, or several with commas, in turns; kernels that are the same in two are timed
    /// once
    #[arg(
        long,
        value_name = "f32|fast|f16|coop",
        value_delimiter = ',',
        default_value = "f32",
        help_heading = "Running"
    )]
    math: Vec<Math>,
    /// Rounds that medians are taken of
    #[arg(long, value_name = "N", default_value_t = 7, help_heading = "Running")]
    rounds: usize,
    /// Largest memory on the device: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G", help_heading = "Running")]
    memory: String,
    /// How results are told
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    /// Write them to a file instead of standard output, in the place of what is there
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Keep them as JSON in a folder, in a file named after the adapter
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "benches/results",
        help_heading = "Output"
    )]
    save: Option<PathBuf>,
    /// Make RESULTS.md beside a folder of such files, of all of them and of those that benches/peers kept, and time
    /// nothing
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "benches/results",
        conflicts_with_all = ["save", "baseline", "out", "wgsl"],
        help_heading = "Output"
    )]
    table: Option<PathBuf>,
    /// Results of an earlier run on the same adapter (JSON): a row that is slower fails
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    baseline: Option<PathBuf>,
    /// By how much slower a row may be
    #[arg(long, value_name = "SHARE", default_value = "5%", requires = "baseline", help_heading = "Output")]
    fail_over: String,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    if let Some(folder) = &args.table {
        return table(folder);
    }
    let (kernels, steps) = parts(args);
    let threshold = baseline::threshold(&args.fail_over)?;
    check(args, kernels)?;
    let memory = bytes("--memory", &args.memory)?;
    let before = args.baseline.as_deref().map(Results::read).transpose()?;
    let own = own(args)?;
    let choice = steps::Choice {
        networks: args.network.clone(),
        models: args.model.clone(),
        batches: batches(args)?,
        maths: each_once(&args.math),
        rounds: args.rounds,
        max_seconds: args.max_seconds,
        dispatches: args.dispatches,
    };
    let models = if steps { steps::networks(&choice)? } else { Vec::new() };
    // A device opened for matrices serves the other arithmetics, too.
    let math = args.math.iter().copied().find(|math| *math == Math::Coop).unwrap_or_default();
    let Place::Gpu(gpu, math) = Place::open(&args.device, math)? else {
        return Err(Error::Usage("--device reference: bench times kernels of a device; the reference has none".into()));
    };
    let bench = kernels::Bench {
        clock: Clock::of(&gpu, &steps::process_time),
        device: Target { coop: (math == Math::Coop).then(|| coop::of(&gpu)).transpose()?, ..Target::of(&gpu)? },
        gpu: &gpu,
        memory,
        tuning: tuning(args, &gpu)?,
    };
    let mut results = Results {
        schema_version: results::SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        device: Place::Gpu(gpu.clone(), math).device(),
        clock: bench.clock.name().into(),
        rounds: args.rounds,
        probes: Vec::new(),
        kernels: Vec::new(),
        steps: Vec::new(),
        dispatches: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(before) = &before {
        baseline::check(before, &results)?;
    }
    if let Some((saved, baseline)) = args.save.as_ref().map(|f| saved(f, &results)).zip(args.baseline.as_ref())
        && apart::same(&saved, baseline)
    {
        let (saved, baseline) = (saved.display(), baseline.display());
        return Err(Error::Usage(format!("--save would put {saved} in the place of --baseline {baseline}")));
    }

    let mut rows = if kernels { kernels::rows(&bench, &row_choice(args, &gpu))? } else { Vec::new() };
    if let Some(folder) = &args.dump {
        let named = kernels::by_name(&rows);
        language::dump(folder, &named)?;
        return answer(&format!(
            "{} written to {}",
            counted(named.len() as u64, "kernel", "kernels"),
            folder.display()
        ));
    }
    if let Some(own) = &own {
        kernels::add_own(&bench, &mut rows, own)?;
    }
    if let Some(said) = args.samples.and_then(|asked| kernels::cut(&rows, asked)) {
        warn(said);
    }
    let wrong = time(&bench, rows, models, &choice, &mut results)?;
    deliver(args, &results)?;
    if !wrong.is_empty() {
        return Err(Error::Internal(format!("{} kernels were not timed: {}", wrong.len(), wrong.join("; "))));
    }
    if let Some(before) = &before {
        complain("note", &baseline::compare(before, &results, threshold)?);
    }
    Ok(())
}

/// What was kept for the device, where that is asked for.
fn tuning(args: &BenchArgs, gpu: &Gpu) -> Result<Tuning> {
    let tuning = if args.tuned { super::tunings::known(gpu) } else { Tuning::default() };
    if args.tuned && tuning.is_empty() {
        return Err(Error::Usage("--tuned: nothing is kept for this device; `signstep tune` finds it out".into()));
    }
    Ok(tuning)
}

/// Kernels, steps, or both.
fn parts(args: &BenchArgs) -> (bool, bool) {
    if !args.parts.is_empty() {
        return (args.parts.contains(&Part::Kernels), args.parts.contains(&Part::Steps));
    }
    let kernels = !(args.kernel.is_empty() && args.shape.is_empty() && args.variant.is_empty())
        || args.storage.is_some()
        || args.samples.is_some()
        || args.dump.is_some();
    let steps =
        !(args.network.is_empty() && args.model.is_empty() && args.batch.is_empty()) || args.tuned || args.dispatches;
    if kernels == steps { (true, true) } else { (kernels, steps) }
}

fn check(args: &BenchArgs, kernels: bool) -> Result<()> {
    let fail = |said: &str| Err(Error::Usage(said.into()));
    positive("--rounds", Some(args.rounds))?;
    positive("--samples", args.samples)?;
    if args.max_seconds.is_nan() || args.max_seconds <= 0.0 {
        return fail("--max-seconds must be more than zero");
    }
    if args.tolerance.is_some_and(|t| t.is_nan() || t < 0.0) {
        return fail("--tolerance must not be negative");
    }
    if kernels && args.tuned {
        return fail("--tuned is about steps; a tile of a kernel is named with --variant");
    }
    if args.dispatches && !parts(args).1 {
        return fail("--dispatches is about steps, not about kernels");
    }
    if !kernels && (args.wgsl.is_some() || args.dump.is_some()) {
        return fail("--wgsl and --dump are about kernels, not about steps");
    }
    let models = args.model.iter().map(|model| ("--model", model));
    let read = [("--baseline", &args.baseline), ("--wgsl", &args.wgsl)];
    let mut read = read.into_iter().filter_map(|(flag, file)| Some((flag, file.as_ref()?))).chain(models);
    if let Some(out) = &args.out
        && let Some((flag, file)) = read.find(|(_, file)| apart::same(file, out))
    {
        return fail(&format!("--out {} is {flag} {}: choose another file", out.display(), file.display()));
    }
    Ok(())
}

/// In the order given, none twice.
fn each_once(maths: &[Math]) -> Vec<Math> {
    let first = |(i, math): &(usize, &Math)| !maths[..*i].contains(math);
    maths.iter().enumerate().filter(first).map(|(_, math)| *math).collect()
}

fn batches(args: &BenchArgs) -> Result<Vec<usize>> {
    let mut batches = if args.batch.is_empty() { vec![1, 8, 64, 512, 2048] } else { args.batch.clone() };
    batches.sort_unstable();
    batches.dedup();
    match batches.iter().find(|b| !(1..=1 << 20).contains(*b)) {
        Some(b) => Err(Error::Usage(format!("--batch {b}: one to a million"))),
        None => Ok(batches),
    }
}

/// Reads results, and holds them against themselves.
pub(super) fn read_baseline(file: &Path) -> Result<()> {
    let results = Results::read(file)?;
    // Rows that are NaN are slower than themselves.
    match baseline::compare(&results, &results, 0.0) {
        Err(Error::Threshold(_)) | Ok(_) => Ok(()),
        Err(e) => Err(e),
    }
}

fn own(args: &BenchArgs) -> Result<Option<kernels::Own>> {
    let (Some(file), Some(entry)) = (&args.wgsl, &args.entry) else { return Ok(None) };
    let fail = |detail: String| Error::Data { place: file.display().to_string(), detail };
    let text = String::from_utf8(data::read(file, 1 << 20)?).map_err(|_| fail("not UTF-8 text".into()))?;
    let grid = args.grid.as_ref().map(|text| {
        let number = |t: &str| t.trim().parse::<u32>().ok().filter(|n| (1..=65_535).contains(n));
        let numbers = text.split_once(',').and_then(|(x, y)| Some((number(x)?, number(y)?)));
        numbers.ok_or_else(|| Error::Usage(format!("--grid {text}: not two numbers of workgroups such as 4,1")))
    });
    Ok(Some(kernels::Own {
        file: file.clone(),
        text,
        entry: entry.clone(),
        grid: grid.transpose()?,
        tolerance: args.tolerance,
    }))
}

fn row_choice(args: &BenchArgs, gpu: &Gpu) -> kernels::Choice {
    let storages = match args.storage {
        None => vec![gpu.storage()],
        Some(Where::Buffer) => vec![Storage::Buffer],
        Some(Where::Texture) => vec![Storage::Texture],
        Some(Where::Both) => vec![Storage::Buffer, Storage::Texture],
    };
    let samples = args.samples.unwrap_or(if gpu.summary().kind == "software" { 16 } else { 512 });
    let [kernels, shapes, variants] = [&args.kernel, &args.shape, &args.variant].map(Vec::clone);
    kernels::Choice { kernels, shapes, variants, storages, maths: args.math.clone(), samples }
}

/// Checks, then times in rounds, and gives what is wrong and was left out.
fn time(
    bench: &kernels::Bench<'_>,
    mut rows: Vec<kernels::Row>,
    models: Vec<crate::Model>,
    choice: &steps::Choice,
    results: &mut Results,
) -> Result<Vec<String>> {
    let turns = rows.len() * (choice.rounds + 1) + models.len() * choice.batches.len() * choice.rounds;
    let bar = bar(turns as u64, "{bar:40} {percent:>3} %, {elapsed} so far: {wide_msg}");
    let wrong = kernels::check(bench, &mut rows, |row| {
        bar.set_message(format!("checking {} on {}", row.pass.kernel(), row.shape));
        bar.inc(1);
    })?;
    let mut ceilings = kernels::Ceilings::new(bench, &rows);
    // The first round compiles and finds out how often each has to run.
    for round in 0..choice.rounds {
        ceilings.measure(bench)?;
        for row in &mut rows {
            bar.set_message(format!("round {}: {} on {}", round + 1, row.pass.kernel(), row.shape));
            row.measure(bench)?;
            bar.inc(1);
        }
    }
    results.kernels = kernels::told(&rows, &ceilings);
    if !models.is_empty() {
        (results.steps, results.dispatches) = steps::run(bench, models, choice, |network, batch| {
            bar.set_message(format!("{network}, batch {batch}"));
            bar.inc(1);
        })?;
    }
    bar.finish_and_clear();
    results.probes = ceilings.told();
    let drift = results.probes.iter().find(|p| p.name == "fma").map_or(1.0, |p| p.value.drift());
    if drift.is_nan() || drift > DRIFT {
        results.warnings.push(format!(
            "clocks drift: the fma probe's fast rounds were {drift:.2} times as fast as its slow ones; something else runs, or \
             the clock changes"
        ));
    }
    if bench.clock.name() == "wall time" {
        results.warnings.push("the adapter has no timestamps: times are wall time".into());
    }
    results.warnings.iter().for_each(warn);
    Ok(wrong)
}

/// Tells results where they were asked for.
fn deliver(args: &BenchArgs, results: &Results) -> Result<()> {
    if let Some(folder) = &args.save {
        let path = saved(folder, results);
        write(&path, results.json()?.as_bytes())?;
        complain("note", &format!("saved as {}", path.display()));
    }
    let text = match args.format {
        Format::Text => tell::text(results),
        Format::Markdown => tell::markdown(results, &[]),
        Format::Csv => tell::csv(results),
        Format::Json => results.json()?,
    };
    match &args.out {
        Some(path) => write(path, (text.trim_end().to_string() + "\n").as_bytes()),
        None => answer(text.trim_end()),
    }
}

/// Where results are kept in a folder.
fn saved(folder: &Path, results: &Results) -> PathBuf {
    folder.join(results.slug() + ".json")
}

/// Makes the page of all results in a folder.
fn table(folder: &Path) -> Result<()> {
    let fail = |detail: String| Error::Data { place: folder.display().to_string(), detail };
    let entries = fs::read_dir(folder).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "json"));
    files.sort();
    let of_peers = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(peers::PREFIX));
    let (beside, files): (Vec<_>, Vec<_>) = files.into_iter().partition(of_peers);
    if files.is_empty() {
        return Err(fail("holds no results (*.json): signstep bench --save makes them".into()));
    }
    let all = files.iter().map(|f| Results::read(f)).collect::<Result<Vec<_>>>()?;
    let peers = beside.iter().map(|f| Peers::read(f)).collect::<Result<Vec<_>>>()?;
    if let Some((file, p)) = beside.iter().zip(&peers).find(|(_, p)| !all.iter().any(|r| p.are_of(r))) {
        let detail = format!("no results beside it are of {} ({})", p.adapter.name, p.adapter.backend);
        return Err(Error::Data { place: file.display().to_string(), detail });
    }
    let page = folder.parent().unwrap_or(Path::new("")).join("RESULTS.md");
    write(&page, tell::page(&all, &peers).as_bytes())?;
    answer(&format!("{} in {}", counted(all.len() as u64, "adapter", "adapters"), page.display()))
}
