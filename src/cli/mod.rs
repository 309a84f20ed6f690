//! The command line: what can be asked for, and how answers and errors are told. Results go to standard output,
//! everything else to standard error.

mod attack;
mod devices;
mod info;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::{Adapter, Gpu, weights};
use clap::{Args, Parser, Subcommand};
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Weights that are used when no others are named.
const DIGITS_CNN: &[u8] = include_bytes!("../../weights/digits-cnn.safetensors");

const ENVIRONMENT: &str = "\
Environment:
  WGPU_BACKEND       graphics interfaces to look at: vulkan, metal, dx12, gl (several with commas)
  WGPU_ADAPTER_NAME  part of the name of the device to use, where --device names none";

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
    /// List the devices that can be used
    #[command(after_help = format!("Examples:\n  signstep devices\n  signstep devices --json -v\n\n{ENVIRONMENT}"))]
    Devices(DevicesArgs),
    /// Show a network: layers, shapes, parameters, work and memory
    #[command(after_help = format!("Examples:\n  signstep info\n  signstep info --plan --batch 64\n\n{ENVIRONMENT}"))]
    Info(InfoArgs),
}

/// What `attack` can be told. Distances are in pixel units of [0, 1], as decimals or fractions (8/255).
#[derive(Args, Debug)]
struct AttackArgs {
    /// Weights (safetensors) [default: digits-cnn, inside the program]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    model: Option<PathBuf>,
    /// Images and labels: a CIFAR-10 binary file or folder, or a .safetensors with `images` and `labels`
    /// [default: the 450 held-out digits inside the program]
    #[arg(long, value_name = "PATH", help_heading = "Input")]
    data: Option<PathBuf>,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<usize>,
    /// Attack: fgsm or ifgsm
    #[arg(long, value_name = "NAME", default_value = "ifgsm", help_heading = "Attack")]
    method: String,
    /// Class to aim at: none (untargeted), random, next, least-likely, second, or a file with one class a line
    /// (-1: none)
    #[arg(long, value_name = "RULE|FILE", default_value = "random", help_heading = "Attack")]
    targets: String,
    /// Any class but the label will do: the same as --targets none
    #[arg(long, conflicts_with = "targets", help_heading = "Attack")]
    untargeted: bool,
    /// Largest change of a pixel (L∞), or inf [default: what the weights suggest, else 8/255]
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true, help_heading = "Attack")]
    eps: Option<String>,
    /// Step length [default: 2.5·eps/steps; for fgsm: eps]
    #[arg(
        long,
        visible_aliases = ["alpha", "eps-step"],
        value_name = "DISTANCE",
        allow_hyphen_values = true,
        help_heading = "Attack"
    )]
    step_size: Option<String>,
    /// Number of steps [default: 10; for fgsm: 1]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    steps: Option<u32>,
    /// Smallest and largest pixel value, or none for inputs that are no pixels
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
    /// Device: part of its name, its index in `signstep devices`, or reference (CPU, f64, slow)
    #[arg(long, value_name = "NAME|INDEX|reference", help_heading = "Running")]
    device: Option<String>,
    /// Largest number of images in one submission; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N", help_heading = "Running")]
    batch: Option<usize>,
    /// Folder for the results
    #[arg(long, value_name = "DIR", default_value = "signstep-out", help_heading = "Output")]
    out: PathBuf,
    /// Print report.json on standard output instead of the table
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args, Debug)]
struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show limits and features too
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Args, Debug)]
struct InfoArgs {
    /// Weights (safetensors) [default: digits-cnn, inside the program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help that nobody reads to its end is no failure.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        Some(Command::Attack(args)) => attack::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Info(args)) => info::run(&args),
        None => attack::run(&defaults()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain("error", &e);
            ExitCode::from(e.exit_code())
        }
    }
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

/// One line on standard error, whatever the message holds.
fn complain(kind: &str, message: &dyn Display) {
    let line: Vec<String> = message.to_string().lines().map(|l| l.trim().to_string()).collect();
    let _ = writeln!(io::stderr(), "{kind}: {}", line.join(" "));
}

/// Something that a user should know before trusting a result.
fn warn(message: impl Display) {
    complain("warning", &message);
}

/// Writes an answer and a newline to standard output. A reader that has gone away (`| head`) is no error.
fn answer(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
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

/// A network, and the SHA-256 of the file it came from.
fn load_model(file: Option<&Path>) -> Result<(Model, String)> {
    match file {
        None => Ok((weights::load(DIGITS_CNN)?, sha256(DIGITS_CNN))),
        Some(path) => {
            let name = path.display().to_string();
            let bytes = std::fs::read(path)
                .map_err(|e| Error::Model { place: name.clone(), detail: format!("cannot be read: {e}") })?;
            Ok((weights::load(&bytes).map_err(|e| e.in_file(&name))?, sha256(&bytes)))
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Opens the device asked for.
fn open(device: Option<&str>) -> Result<Gpu> {
    Gpu::new(&match device {
        None => Adapter::Auto,
        Some(d) => d.parse().map_or_else(|_| Adapter::Name(d.to_string()), Adapter::Index),
    })
}
