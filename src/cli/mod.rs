//! The command line: the commands, each with its arguments in a file of its own, and the exit codes that they end with.
//! Results go to standard output, everything else to standard error (`cli/tell.rs`).

mod advice;
mod answers;
mod apart;
mod attack;
mod bench;
mod cache;
mod convert;
mod defaults;
mod devices;
mod engine;
mod eval;
mod flags;
mod forecast;
mod hush;
mod images;
mod info;
mod interrupt;
mod merge;
mod network;
#[cfg(feature = "pipeline-cache")]
mod pipelines;
#[doc(hidden)]
pub mod readers;
mod specs;
mod study;
mod tell;
mod thresholds;
mod tune;
mod tunings;
mod verify;

use crate::error::Error;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;
use tell::complain;

const ENVIRONMENT: &str = "\
Environment:
  WGPU_BACKEND        graphics interfaces to look at: vulkan, metal, dx12, gl (several with commas)
  WGPU_ADAPTER_NAME   part of the name of the device to use, where --device names none
  WGPU_DX12_COMPILER  what compiles shaders on dx12: dxc, or fxc, which takes ten times as long [default: dxc if dxcompiler.dll is beside the program or on the path]
  SIGNSTEP_CACHE      folder for what can be found out again: tunings, what devices do [default: signstep in the folder for caches]";

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
    Attack(Box<attack::AttackArgs>),
    /// Evaluate a network against a list of attacks: an image counts as robust when none of them turns it
    #[command(after_help = format!(
        "Examples:\n  \
         signstep eval --limit 100\n  \
         signstep eval --attacks fgsm,pgd:steps=40:restarts=5,apgd:loss=dlr --eps 0.1 --out evaluated\n  \
         signstep eval --fail-under robust_accuracy=0.45 --time-budget 10m\n\n{ENVIRONMENT}"
    ))]
    Eval(Box<eval::EvalArgs>),
    /// Why isn't iterative targeted FGSM effective on minibatches? Every explanation, run and judged
    #[command(after_help = format!(
        "Examples:\n  \
         signstep study --out studied\n  \
         signstep study --rows 1-7 --json\n  \
         signstep study --model net.safetensors --data cifar10/test_batch.bin --eps 2/255 --out studied\n\n{ENVIRONMENT}"
    ))]
    Study(study::StudyArgs),
    /// Check a network on labelled images: accuracy, and its logits against those of another program
    #[command(after_help = format!(
        "Examples:\n  \
         signstep verify --model net.safetensors --data cifar10/test_batch.bin\n  \
         signstep verify --model net.safetensors --data data.safetensors --logits torch.safetensors\n\n{ENVIRONMENT}"
    ))]
    Verify(verify::VerifyArgs),
    /// Make one run of the shards of one (attack --shard I/N)
    #[command(after_help = format!(
        "Examples:\n  signstep merge shard-0 shard-1 shard-2 --out whole\n\n{ENVIRONMENT}"
    ))]
    Merge(merge::MergeArgs),
    /// Turn a checkpoint of PyTorch into weights (safetensors), without executing anything in it
    #[command(after_help = convert::HELP)]
    Convert(convert::ConvertArgs),
    /// List the devices that can be used
    #[command(after_help = format!("Examples:\n  signstep devices\n  signstep devices --json -v\n\n{ENVIRONMENT}"))]
    Devices(devices::DevicesArgs),
    /// Find the fastest kernels for a network on this device, and keep them for later runs; results do not depend on
    /// them
    #[command(after_help = format!(
        "Examples:\n  signstep tune\n  signstep tune --model net.safetensors --batch 64\n\n{ENVIRONMENT}"
    ))]
    Tune(tune::TuneArgs),
    /// Show a network: layers, shapes, parameters, work and memory
    #[command(after_help = format!("Examples:\n  signstep info\n  signstep info --plan --batch 64\n\n{ENVIRONMENT}"))]
    Info(info::InfoArgs),
    /// Time the kernels and whole steps on a device, beside what it can do at most
    #[command(after_help = format!("{}\n\n{ENVIRONMENT}", bench::HELP))]
    Bench(Box<bench::BenchArgs>),
}

/// Runs what the arguments ask for.
pub fn main() -> ExitCode {
    hush::hush();
    ExitCode::from(run(std::env::args_os()))
}

/// Runs `signstep bench PART` with the arguments that a bench target was given: what `cargo bench` calls.
pub fn bench(part: &str) -> ExitCode {
    // Cargo says `--bench` to all of them.
    let given = std::env::args_os().skip(1).filter(|a| a != "--bench");
    hush::hush();
    ExitCode::from(run(["signstep".into(), "bench".into(), part.into()].into_iter().chain(given)))
}

/// Reads arguments. A number below zero is a value of the flag before it, which refuses it by name.
fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let has_value = arg.get_long().is_some() && arg.get_action().takes_values();
            arg.allow_negative_numbers(has_value)
        })
    });
    Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
}

/// Runs what `arguments` ask for, on this thread; gives the exit code. For tests.
#[doc(hidden)]
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            let is_asked_for = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let told = if is_asked_for { tell::written(e.print()) } else { Err(Error::Usage(usage(&e))) };
            return told.map_or_else(|e| failed(&e), |()| 0);
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
        None => attack::run(&attack::defaults()),
    };
    #[cfg(feature = "pipeline-cache")]
    pipelines::keep();
    result.map_or_else(|e| failed(&e), |()| 0)
}

/// Tells of an error; gives the exit code.
fn failed(e: &Error) -> u8 {
    let narrowed = std::env::var_os(BACKEND).filter(|_| matches!(e, Error::NoAdapter(_)));
    match narrowed {
        None => complain("error", &e),
        Some(names) => complain("error", &format!("{e} ({})", only_named(&names.to_string_lossy()))),
    }
    e.exit_code()
}

/// What an environment that names graphics interfaces has to do with it that there is no adapter.
fn only_named(names: &str) -> String {
    format!("{BACKEND} is {names:?}: no other interface is looked at; it can name vulkan, metal, dx12 and gl")
}

/// What the parser of arguments says, without the lines that repeat the help.
fn usage(e: &clap::Error) -> String {
    let text = e.to_string();
    let said = text.split("\nUsage:").next().unwrap_or_default().split("\nFor more information").next();
    let said: Vec<&str> = said.unwrap_or_default().lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    format!("{} (see --help)", said.join(" ").trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_says_fits_into_a_line() {
        let said = |line: &str| usage(&parse(line.split(' ')).unwrap_err());
        assert!(said("signstep attack --nonsense").starts_with("unexpected argument '--nonsense' found"));
        assert!(said("signstep attack --json --format csv").contains("cannot be used with"));
        assert!(said("signstep merge --out x").contains("DIR"));
        for flag in ["attack --seed", "attack --limit", "eval --chunk", "study --examples", "bench --rounds"] {
            let (text, name) = (said(&format!("signstep {flag} -5")), flag.split(' ').next_back().unwrap());
            assert!(text.contains("invalid value '-5'") && text.contains(name), "{text}");
        }
        for line in ["signstep attack --nonsense", "signstep merge", "signstep nonsense", "signstep attack --seed x"] {
            let text = said(line);
            assert!(!text.contains('\n') && !text.contains("Usage") && text.ends_with("(see --help)"), "{text}");
        }
    }
}
