//! The command line: what can be asked for, and how answers and errors are told. Results go to standard output,
//! everything else to standard error.

mod answers;
mod apart;
mod attack;
mod bench;
mod cache;
mod convert;
mod devices;
mod engine;
mod eval;
mod forecast;
mod info;
mod interrupt;
mod merge;
#[cfg(feature = "pipeline-cache")]
mod pipelines;
#[doc(hidden)]
pub mod readers;
mod specs;
mod study;
mod thresholds;
mod tune;
mod tunings;
mod verify;

use crate::data::{Description, Framing};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::{self, DataFacts, ModelFacts, Report};
use crate::{Math, data, weights};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt::Display;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Weights that are used when no others are named.
const DIGITS_CNN: &[u8] = include_bytes!("../../weights/digits-cnn.safetensors");

/// Largest file of weights, in bytes: a billion of them.
const MAX_WEIGHTS: u64 = 4 << 30;

const ENVIRONMENT: &str = "\
Environment:
  WGPU_BACKEND       graphics interfaces to look at: vulkan, metal, dx12, gl (several with commas)
  WGPU_ADAPTER_NAME  part of the name of the device to use, where --device names none
  SIGNSTEP_CACHE     folder for what can be found out again: tunings, what devices do [default: signstep in the folder for caches]";

/// Interfaces to look at.
const BACKEND: &str = "WGPU_BACKEND";

/// Adversarial examples for whole minibatches on any GPU.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "Adversarial examples for whole minibatches on any GPU",
    long_about = "Adversarial examples for whole minibatches on any GPU.\n\n\
        Without a command, `attack` runs on the digits and weights inside the program.",
    after_help = format!("Examples:\n  signstep\n  signstep attack --eps 0.2 --targets next --limit 100\n\n{ENVIRONMENT}")
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn images into adversarial examples
    #[command(after_help = format!(
        "Examples:\n  \
         signstep attack\n  \
         signstep attack --method fgsm --untargeted --eps 0.1 --limit 50 --out fgsm-out\n\n{ENVIRONMENT}"
    ))]
    Attack(Box<AttackArgs>),
    /// Evaluate a network against a list of attacks: an image counts as robust when none of them turns it
    #[command(after_help = format!(
        "Examples:\n  \
         signstep eval --limit 100\n  \
         signstep eval --attacks fgsm,pgd:steps=40:restarts=5,apgd:loss=dlr --eps 0.1 --out evaluated\n  \
         signstep eval --fail-under robust_accuracy=0.45 --time-budget 10m\n\n{ENVIRONMENT}"
    ))]
    Eval(Box<EvalArgs>),
    /// Why isn't iterative targeted FGSM effective on minibatches? Every explanation, run and judged
    #[command(after_help = format!(
        "Examples:\n  \
         signstep study --out studied\n  \
         signstep study --rows 1-7 --json\n  \
         signstep study --model net.safetensors --data cifar10/test_batch.bin --eps 2/255 --out studied\n\n{ENVIRONMENT}"
    ))]
    Study(StudyArgs),
    /// Check a network on labelled images: accuracy, and its logits against those of another program
    #[command(after_help = format!(
        "Examples:\n  \
         signstep verify --model net.safetensors --data cifar10/test_batch.bin\n  \
         signstep verify --model net.safetensors --data data.safetensors --logits torch.safetensors\n\n{ENVIRONMENT}"
    ))]
    Verify(VerifyArgs),
    /// Make one run of the shards of one (attack --shard I/N)
    #[command(after_help = format!(
        "Examples:\n  signstep merge shard-0 shard-1 shard-2 --out whole\n\n{ENVIRONMENT}"
    ))]
    Merge(MergeArgs),
    /// Turn a checkpoint of PyTorch into weights (safetensors), without executing anything in it
    #[command(after_help = convert::HELP)]
    Convert(convert::ConvertArgs),
    /// List the devices that can be used
    #[command(after_help = format!("Examples:\n  signstep devices\n  signstep devices --json -v\n\n{ENVIRONMENT}"))]
    Devices(DevicesArgs),
    /// Find the fastest kernels for a network on this device, and keep them for later runs; results do not depend on them
    #[command(after_help = format!(
        "Examples:\n  signstep tune\n  signstep tune --model net.safetensors --batch 64\n\n{ENVIRONMENT}"
    ))]
    Tune(TuneArgs),
    /// Show a network: layers, shapes, parameters, work and memory
    #[command(after_help = format!("Examples:\n  signstep info\n  signstep info --plan --batch 64\n\n{ENVIRONMENT}"))]
    Info(InfoArgs),
    /// Time the kernels and whole steps on a device, beside what it can do at most
    #[command(after_help = format!("{}\n\n{ENVIRONMENT}", bench::HELP))]
    Bench(Box<bench::BenchArgs>),
}

/// The network.
#[derive(Args, Debug)]
struct NetworkArgs {
    /// Weights (safetensors) [default: digits-cnn, inside the program]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    model: Option<PathBuf>,
    /// Layers of the network whose weights they are, one of your own (TOML) [default: the network, among those known, that the
    /// tensors tell]
    #[arg(long, value_name = "FILE.toml", help_heading = "Input")]
    arch: Option<PathBuf>,
}

/// The images.
#[derive(Args, Debug)]
struct DataArgs {
    /// Images and labels: a folder of PNG or JPEG pictures (class/file, or with labels.csv), of IDX files (MNIST, gzipped or
    /// not), of CIFAR-10 batches or of NumPy arrays; a .safetensors with `images` and `labels`
    /// [default: the 450 held-out digits inside the program]
    #[arg(long, value_name = "PATH", help_heading = "Input")]
    data: Option<PathBuf>,
    /// Resize pictures so that the shorter side has N pixels, to the byte as torchvision does it (bilinear, antialiased)
    #[arg(long, value_name = "N", help_heading = "Input")]
    resize: Option<u32>,
    /// Cut a square of N×N pixels out of the middle of pictures, resized ones where they are
    #[arg(long, value_name = "N", help_heading = "Input")]
    crop: Option<u32>,
}

/// What a command runs on.
#[derive(Args, Debug)]
struct DeviceArgs {
    /// Device: part of its name, its index in `signstep devices`, or reference (CPU, f64, slow; `tune` has no use for it)
    #[arg(long, value_name = "NAME|INDEX|reference", help_heading = "Running")]
    device: Option<String>,
    /// Give up where one submission, of about a quarter of a second, takes the device longer than this (30s, 5m): exit code 6
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration, help_heading = "Running")]
    deadline: Duration,
}

/// What a command runs on, and how it computes there.
#[derive(Args, Debug)]
struct PlaceArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Arithmetic: f32, where every sum has one order whatever the device; fast, whatever is fastest on this one, with other roundings;
    /// f16, activations kept in half the memory
    #[arg(long, value_name = "f32|fast|f16|coop", default_value_t, help_heading = "Running")]
    math: Math,
}

/// What `attack` can be told. Distances are in pixel units of [0, 1], as decimals or fractions (8/255).
#[derive(Args, Debug)]
struct AttackArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<usize>,
    /// Attack: fgsm, ifgsm, pgd, mifgsm, nifgsm, apgd, apgd-t, fab-t, square, or uap (one perturbation for all images)
    #[arg(long, value_name = "NAME", default_value = "ifgsm", help_heading = "Attack")]
    method: String,
    /// What eps is measured in: linf, the largest change of any pixel value, or l2, the Euclidean length of the change
    #[arg(long, value_name = "NAME", default_value = "linf", help_heading = "Attack")]
    norm: String,
    /// Class to aim at: none (untargeted), random, next, least-likely, second, or a file with one class a line
    /// (-1: none) [default: random; for apgd-t and fab-t: none, they aim at one class after the other; for uap: none]
    #[arg(long, value_name = "RULE|FILE", help_heading = "Attack")]
    targets: Option<String>,
    /// Any class but the label will do: the same as --targets none
    #[arg(long, conflicts_with = "targets", help_heading = "Attack")]
    untargeted: bool,
    /// What is followed: ce (cross-entropy), margin (Carlini & Wagner) or dlr (difference of logits ratio) [default: ce; for
    /// apgd-t: dlr; for square: margin; fab-t follows the difference of two logits]
    #[arg(long, value_name = "NAME", help_heading = "Attack")]
    loss: Option<String>,
    /// Radius in the norm, or inf; several with commas between them, 0 among them, are run at once, with a row for each image
    /// and radius [default: what the weights suggest for linf, else 8/255; for l2: 0.5]
    #[arg(long, value_name = "DISTANCE[,…]", allow_hyphen_values = true, help_heading = "Attack")]
    eps: Option<String>,
    /// Find the smallest radius up to eps that turns each image, by bisection: in whole grey levels, or in l2 and without
    /// 8-bit values in 64ths of eps
    #[arg(long, help_heading = "Attack")]
    min_eps: bool,
    /// Step length [default: 2.5·eps/steps; for fgsm: eps; for mifgsm and nifgsm: eps/steps; for apgd and apgd-t, of the
    /// first step: 2·eps; fab-t and square have none]
    #[arg(
        long,
        visible_aliases = ["alpha", "eps-step"],
        value_name = "DISTANCE",
        allow_hyphen_values = true,
        help_heading = "Attack"
    )]
    step_size: Option<String>,
    /// Number of steps [default: 10; for fgsm: 1; for apgd, apgd-t and fab-t: 100; for square: 5000]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    steps: Option<u32>,
    /// How often an image is tried from another random start, until it is turned (pgd, apgd, apgd-t, fab-t,
    /// square) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    restarts: Option<u32>,
    /// Begin at the clean image (pgd, apgd, apgd-t, square; fab-t does so anyway, but for further restarts)
    #[arg(long, help_heading = "Attack")]
    no_random_start: bool,
    /// Share of the gathered gradient that is kept, from 0 to 1 (mifgsm, nifgsm) [default: 1]
    #[arg(long, value_name = "F", allow_hyphen_values = true, help_heading = "Attack")]
    momentum: Option<f32>,
    /// Stop with an image once it is turned as delivered: looked at after a tenth of the steps, two, four and seven
    #[arg(long, help_heading = "Attack")]
    early_stop: bool,
    /// Smallest and largest pixel value, or none for inputs that are no pixels; files of images hold values in [0, 1] whatever they
    /// are
    #[arg(long, value_name = "LO,HI|none", default_value = "0,1", allow_hyphen_values = true, help_heading = "Attack")]
    bounds: String,
    /// Deliver floats instead of 8-bit values
    #[arg(long, alias = "no-quantise", help_heading = "Attack")]
    no_quantize: bool,
    /// Attack images that the network gets wrong when clean as well
    #[arg(long, help_heading = "Attack")]
    attack_all: bool,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Attack")]
    seed: u64,
    /// Deliver images in which NaN or infinity arises as they were, marked in the tensor `health`, in place of ending with exit
    /// code 7; the others are as they would be without them
    #[arg(long, help_heading = "Attack")]
    keep_going: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Largest number of images in one submission; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N", help_heading = "Running")]
    batch: Option<usize>,
    /// Largest memory for images and activations, on the host and on the device each: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G", help_heading = "Running")]
    memory: String,
    /// Largest number of images between two savings; results do not depend on it [default: what memory holds and half a
    /// minute does]
    #[arg(long, value_name = "N", help_heading = "Running")]
    chunk: Option<usize>,
    /// Run only piece I (from 0) of N of the data, to be joined by `signstep merge`
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    shard: Option<String>,
    /// Folder for the results; an interrupted run that it holds is gone on with
    #[arg(long, value_name = "DIR", default_value = "signstep-out", help_heading = "Output")]
    out: PathBuf,
    /// Discard the results that the folder holds, whatever run they are of
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// What `eval` can be told. What `attack` has as well means the same.
#[derive(Args, Debug)]
struct EvalArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<usize>,
    /// Attacks in their order, with commas between them: a method each, and after colons what it shall differ in (steps,
    /// step-size, restarts, loss, momentum, targets, classes, and of square schedule, the steps over which its squares shrink), as in fgsm,pgd:steps=40:restarts=5,apgd:loss=dlr
    /// [default: apgd:loss=ce,apgd-t; with fewer than 4 classes: apgd:loss=ce,apgd:loss=margin]
    #[arg(long, value_name = "LIST", help_heading = "Attack")]
    attacks: Option<String>,
    /// A list that is known by name, with its own settings
    #[arg(long, value_enum, conflicts_with = "attacks", help_heading = "Attack")]
    suite: Option<specs::Suite>,
    /// What eps is measured in: linf, the largest change of any pixel value, or l2, the Euclidean length of the change
    #[arg(long, value_name = "NAME", default_value = "linf", help_heading = "Attack")]
    norm: String,
    /// Radius in the norm [default: what the weights suggest for linf, else 8/255; for l2: 0.5]
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true, help_heading = "Attack")]
    eps: Option<String>,
    /// Smallest and largest pixel value, or none for inputs that are no pixels; files of images hold values in [0, 1] whatever they
    /// are
    #[arg(long, value_name = "LO,HI|none", default_value = "0,1", allow_hyphen_values = true, help_heading = "Attack")]
    bounds: String,
    /// Deliver floats instead of 8-bit values
    #[arg(long, alias = "no-quantise", help_heading = "Attack")]
    no_quantize: bool,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Attack")]
    seed: u64,
    /// Go on where NaN or infinity arises, in place of ending with exit code 7: an image in which it does is delivered as it was,
    /// marked in the tensor `health`, and counts as neither turned nor robust
    #[arg(long, help_heading = "Attack")]
    keep_going: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Largest number of images in one submission; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N", help_heading = "Running")]
    batch: Option<usize>,
    /// Largest memory for images and activations, on the host and on the device each: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G", help_heading = "Running")]
    memory: String,
    /// Largest number of images in memory at once; results do not depend on it [default: what memory holds]
    #[arg(long, value_name = "N", help_heading = "Running")]
    chunk: Option<usize>,
    /// Do not begin an attack that would end later than this after the start (90s, 10m, 1h 30m); what is left out is said
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Running")]
    time_budget: Option<Duration>,
    /// Exit code 1 where a rate is lower: clean_accuracy, or robust_accuracy (the lower of float and delivered); can be repeated
    #[arg(long, value_name = "RATE=FRACTION", help_heading = "Output")]
    fail_under: Vec<String>,
    /// Folder for eval.json and eval.safetensors [default: none is written]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Discard the evaluation that the folder holds
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// What `study` can be told.
#[derive(Args, Debug)]
struct StudyArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images; of those that are right when clean as many are used as a power of two [default: 640]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Radius in linf [default: what the weights suggest, else 8/255]
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true)]
    eps: Option<String>,
    /// Rows from 0 to 13, ranges of them, and figures, with commas between them: 0,2-4,figures [default: all]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    rows: Option<String>,
    /// Images in row 0, which runs the question's examples on a ResNet-18 [default: 32 as printed; on software adapters 8]
    #[arg(long, value_name = "N")]
    examples: Option<usize>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Largest memory on the device for each network: 512M, 2G, 1GiB; a batch in training mode is never cut
    #[arg(long, value_name = "BYTES", default_value = "4G")]
    memory: String,
    /// Folder for study.md, study.json and the figures [default: none is written]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Discard the study that the folder holds
    #[arg(long)]
    fresh: bool,
    /// Also write study.safetensors: what another program needs to repeat rows 0 to 7
    #[arg(long)]
    tensors: bool,
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
}

/// How a run is told on standard output.
#[derive(Args, Debug)]
struct AnswerArgs {
    /// What to print on standard output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    /// Print JSON, as it is written to the folder: the same as --format json
    #[arg(long, conflicts_with = "format", help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Csv,
    Markdown,
}

#[derive(Args, Debug)]
struct MergeArgs {
    /// Folders of all shards of one run, in any order
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// Folder for the whole run
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Discard the results that the folder holds, whatever run they are of
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

#[derive(Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Logits to compare with: a .safetensors with `logits` (f32 or f64, [N, K]), or with that one tensor
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// How far logits may differ: A + R times the largest |logit| of the image
    #[arg(long, value_name = "A,R", default_value = "1e-5,1e-4", requires = "logits")]
    tolerance: String,
    /// Read only the first N images
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Largest number of images in one submission; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Largest memory for images and activations, on the host and on the device each: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G")]
    memory: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show limits and features too, and what adapters do where the standard leaves it open: asked now, whatever is kept
    /// (SIGNSTEP_CACHE)
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Args, Debug)]
struct TuneArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Batch that is timed
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: u32,
}

#[derive(Args, Debug)]
struct InfoArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show the dispatches of a forward and a backward pass
    #[arg(long)]
    plan: bool,
    /// Batch whose memory is shown
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
}

/// Runs what the arguments ask for.
pub fn main() -> ExitCode {
    hush();
    ExitCode::from(run(std::env::args_os()))
}

/// Runs `signstep bench PART` with the arguments that a bench target was given: what `cargo bench` calls.
pub fn bench(part: &str) -> ExitCode {
    // Cargo says `--bench` to all of them.
    let given = std::env::args_os().skip(1).filter(|a| a != "--bench");
    hush();
    ExitCode::from(run(["signstep".into(), "bench".into(), part.into()].into_iter().chain(given)))
}

/// Runs what `arguments` ask for, on this thread; gives the exit code. For tests.
#[doc(hidden)]
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            match e.kind() {
                // Help that nobody reads to its end is no failure.
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => drop(e.print()),
                _ => complain("error", &usage(&e)),
            }
            return u8::try_from(e.exit_code()).unwrap_or(2);
        }
    };
    let result = match cli.command {
        Some(Command::Attack(args)) => attack::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Study(args)) => study::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Info(args)) => info::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Tune(args)) => tune::run(&args),
        None => attack::run(&defaults()),
    };
    #[cfg(feature = "pipeline-cache")]
    pipelines::keep();
    match result {
        Ok(()) => 0,
        Err(e) => {
            let narrowed = std::env::var_os(BACKEND).filter(|_| matches!(e, Error::NoAdapter(_)));
            match narrowed {
                None => complain("error", &e),
                Some(names) => complain("error", &format!("{e} ({})", only_named(&names.to_string_lossy()))),
            }
            e.exit_code()
        }
    }
}

/// What an environment that names graphics interfaces has to do with it that there is no adapter.
fn only_named(names: &str) -> String {
    format!("{BACKEND} is {names:?}: no other interface is looked at; it can name vulkan, metal, dx12 and gl")
}

/// Mesa's layer that chooses between devices looks for a display, and prints an error to standard error where none can
/// be. We choose ourselves: so the program starts itself again without that layer. Where that fails it runs as it is.
#[cfg(all(unix, not(target_os = "macos")))]
fn hush() {
    use std::env::{args_os, current_exe, var_os};
    use std::os::unix::process::CommandExt;
    const SWITCH: &str = "NODEVICE_SELECT";
    let noisy = var_os("XDG_RUNTIME_DIR").is_none() && var_os(SWITCH).is_none();
    if let (true, Ok(program)) = (noisy, current_exe()) {
        // Only returns when it fails.
        let _ = std::process::Command::new(program).args(args_os().skip(1)).env(SWITCH, "1").exec();
    }
}

#[cfg(not(all(unix, not(target_os = "macos"))))]
fn hush() {}

/// The arguments of `signstep attack` without any.
fn defaults() -> AttackArgs {
    /// Only this command's arguments, so that none can be missing.
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        args: AttackArgs,
    }
    Defaults::parse_from(["signstep"]).args
}

/// What the parser of arguments says, without the lines that repeat the help.
fn usage(e: &clap::Error) -> String {
    let text = e.to_string();
    let said = text.split("\nUsage:").next().unwrap_or_default().split("\nFor more information").next();
    let said: Vec<&str> = said.unwrap_or_default().lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    format!("{} (see --help)", said.join(" ").trim_start_matches("error: "))
}

/// One line on standard error, whatever the message holds.
fn complain(kind: &str, message: &dyn Display) {
    let line: Vec<String> = message.to_string().lines().map(|l| printable(l.trim())).collect();
    let _ = writeln!(io::stderr(), "{kind}: {}", line.join(" "));
}

/// Text for a terminal: names out of files must not move its cursor. Lines stay lines.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Something that a user should know before trusting a result.
fn warn(message: impl Display) {
    complain("warning", &message);
}

/// Writes an answer and a newline to standard output. A reader that has gone away (`| head`) is no error.
fn answer(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", printable(text)).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Output { place: "standard output".into(), detail: e.to_string() })
        }
        _ => Ok(()),
    }
}

/// Writes JSON as an answer.
fn answer_json(value: &serde_json::Value) -> Result<()> {
    answer(&serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?)
}

/// Weights as they were asked for, and the description of their network if there is one.
struct Weights {
    bytes: Vec<u8>,
    /// What the file is called.
    name: String,
    description: Option<Description>,
}

impl Weights {
    /// Reads a file; without one, the weights inside the program.
    fn open(file: Option<&Path>, arch: Option<&Path>) -> Result<Self> {
        let description = arch.map(Description::open).transpose()?;
        let Some(path) = file else {
            return Ok(Weights { bytes: DIGITS_CNN.to_vec(), name: "digits-cnn".into(), description });
        };
        let name = path.display().to_string();
        let bytes = data::read(path, MAX_WEIGHTS).map_err(|e| match e {
            Error::Data { place, detail } => Error::Model { place, detail },
            other => other,
        })?;
        if data::is_checkpoint(&bytes) {
            let out = path.with_extension("safetensors").display().to_string();
            let detail = format!("this is a checkpoint of PyTorch: signstep convert {name} {out} makes weights of it");
            return Err(Error::Model { place: name, detail });
        }
        Ok(Weights { bytes, name, description })
    }

    /// The network.
    fn model(&self) -> Result<Model> {
        let mut model = match &self.description {
            None => weights::load(&self.bytes),
            Some(description) => weights::load_as(&self.bytes, &description.arch),
        }
        .map_err(|e| e.in_file(&self.name))?;
        if let Some(description) = &self.description
            && model.classes.is_empty()
        {
            model.classes = description.classes.clone();
        }
        Ok(model)
    }

    /// What a report says of it.
    fn facts(&self, model: &Model) -> ModelFacts {
        ModelFacts {
            arch: model.arch.clone(),
            sha256: data::sha256([&self.bytes[..]]),
            parameters: model.parameters(),
            description_sha256: self.description.as_ref().map(|d| d.sha256.clone()),
        }
    }
}

/// A network, and what a report says of it.
fn load_model(args: &NetworkArgs) -> Result<(Model, ModelFacts)> {
    let weights = Weights::open(args.model.as_deref(), args.arch.as_deref())?;
    let model = weights.model()?;
    let facts = weights.facts(&model);
    Ok((model, facts))
}

/// Tells of a run as it was asked for; `written` is told below the table.
fn tell(report: &Report, args: &AnswerArgs, written: &str) -> Result<()> {
    match (args.json, args.format) {
        (true, _) | (_, Format::Json) => answer(&report.json()),
        (_, Format::Table) => answer(&format!("{}\n{written}", report::table(report))),
        (_, Format::Csv) => answer(&report::csv(report)),
        (_, Format::Markdown) => answer(&report::markdown(report)),
    }
}

/// Labelled images, of which at most the first `limit` count.
struct Images {
    source: data::Source,
    /// How many of them.
    samples: usize,
}

impl Images {
    /// What a report says of them, on `model`.
    fn facts(&self, model: &Model) -> DataFacts {
        let source = &self.source;
        DataFacts {
            source: source.name.clone(),
            sha256: source.sha256.clone(),
            samples: self.samples,
            classes: if source.classes.is_empty() { model.classes.clone() } else { source.classes.clone() },
            framing: source.framing.unwrap_or_default(),
        }
    }

    /// Pixels of the samples in `range`, all within the bounds.
    fn pixels(&mut self, range: Range<usize>, bounds: Option<(f32, f32)>) -> Result<Vec<f32>> {
        let first = range.start;
        let pixels = self.source.images(range)?;
        if let Some((lo, hi)) = bounds
            && let Some(i) = pixels.iter().position(|x| *x < lo || *x > hi)
        {
            let sample = first + i / self.source.dims.len();
            let detail =
                format!("pixel value {} of sample {sample} lies outside of the bounds {lo} to {hi}", pixels[i]);
            return Err(Error::Data { place: self.source.name.clone(), detail });
        }
        Ok(pixels)
    }
}

/// Opens the data asked for, and checks that the network can take the images, and knows their labels.
fn load_images(args: &DataArgs, limit: Option<usize>, model: &Model) -> Result<Images> {
    let framing = Framing { resize: args.resize, crop: args.crop };
    let source: data::Source = match &args.data {
        Some(path) => data::open_framed(path, limit, framing)?,
        None if !framing.is_none() => return Err(Error::Usage(format!("{framing}: pictures are missing (--data)"))),
        None => data::digits()?,
    };
    let samples = limit.unwrap_or(usize::MAX).min(source.len());
    let fail = |detail: String| Err(Error::Data { place: source.name.clone(), detail });
    if samples == 0 {
        return fail("holds no images".into());
    }
    if source.dims != model.input {
        let way_out = match source.framing {
            None => "",
            // No flag changes those.
            Some(_) if source.dims.c != model.input.c => {
                "; pictures keep their channels, one if all of them are grey, else three"
            }
            Some(_) => "; --resize and --crop bring pictures to another size",
        };
        return fail(format!("images are {}, but {} takes {}{way_out}", source.dims, model.arch, model.input));
    }
    let classes = model.logits();
    let labels = &source.labels[..samples];
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| !(0..classes as i64).contains(*l)) {
        return fail(format!("label {label} of sample {i} is none of the {classes} classes of {}", model.arch));
    }
    Ok(Images { source, samples })
}

/// Refuses a count of zero.
fn positive(flag: &str, value: Option<usize>) -> Result<()> {
    if value == Some(0) { Err(Error::Usage(format!("{flag} must be one or more"))) } else { Ok(()) }
}

/// Reads a duration.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("not a duration such as 90s, 10m or 1h 30m ({e})"))
}

/// Reads a number of bytes: `512M`, `2G`, `1GiB` count by 1,024, `1GB` by 1,000.
fn bytes(flag: &str, text: &str) -> Result<u64> {
    let fail = || Error::Usage(format!("{flag} {text}: not a number of bytes such as 512M, 2G or 1GiB"));
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text.trim()[digits.len()..].trim().to_ascii_lowercase();
    let (base, power) = match unit.as_str() {
        "" | "b" => (1, 0),
        _ => {
            let power = "kmgt".find(&unit[..1]).ok_or_else(fail)? as u32 + 1;
            match &unit[1..] {
                "" | "ib" => (1024_u64, power),
                "b" => (1000, power),
                _ => return Err(fail()),
            }
        }
    };
    let number: f64 = digits.parse().map_err(|_| fail())?;
    let value = number * base.pow(power) as f64;
    if value.is_finite() && (1.0..u64::MAX as f64).contains(&value) { Ok(value as u64) } else { Err(fail()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let read = |text: &str| bytes("--memory", text).ok();
        assert_eq!(read("4096"), Some(4096));
        assert_eq!(read("512M"), Some(512 << 20));
        assert_eq!(read("2G"), Some(2 << 30));
        assert_eq!(read("1GiB"), Some(1 << 30));
        assert_eq!(read("1 gib"), Some(1 << 30));
        assert_eq!(read("1.5k"), Some(1536));
        assert_eq!(read("3MB"), Some(3_000_000));
        assert_eq!(read("1T"), Some(1 << 40));
        for bad in
            ["", "G", "0", "-1", "1X", "1GiBs", "1e30", "nan", "inf", "0.1", "1é", "é", "1 2", "18446744073709551616"]
        {
            let error = bytes("--memory", bad).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().starts_with("--memory"), "{bad}");
        }
    }

    #[test]
    fn what_the_parser_says_fits_into_a_line() {
        let said = |line: &str| usage(&Cli::try_parse_from(line.split(' ')).unwrap_err());
        assert!(said("signstep attack --nonsense").starts_with("unexpected argument '--nonsense' found"));
        assert!(said("signstep attack --json --format csv").contains("cannot be used with"));
        assert!(said("signstep merge --out x").contains("DIR"));
        for line in ["signstep attack --nonsense", "signstep merge", "signstep nonsense", "signstep attack --seed x"] {
            let text = said(line);
            assert!(!text.contains('\n') && !text.contains("Usage") && text.ends_with("(see --help)"), "{text}");
        }
    }
}
