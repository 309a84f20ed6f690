//! Cold start: from the start of a process to the finished ten-step attack on the embedded digits, and its end.

use crate::Result;
use crate::case::{DIGITS, repository};
use crate::contest::{Setting, prepare, script};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use wait4::Wait4;

/// Digits that the embedded network has never seen, all of them attacked.
const HELD_OUT: usize = 450;
/// Random targets are drawn differently; success rates so far apart mean that something else was done.
const SUCCESS_TOLERANCE: f64 = 0.04;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start {
    pub wall: f64,
    pub cpu: f64,
    pub peak_rss: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct ColdStarts {
    /// With the driver's cache of compiled shaders empty.
    pub cold_caches: Vec<Start>,
    /// With that cache filled by runs before.
    pub warm_caches: Vec<Start>,
    pub pytorch: Vec<Start>,
    /// Of what was attacked, as told by signstep and by PyTorch.
    pub success_rates: [Option<f64>; 2],
    /// Why PyTorch's part is missing.
    pub failed: Option<String>,
}

/// Builds the program and starts it, and PyTorch, in turns.
pub fn cold_starts(setting: &Setting) -> Result<ColdStarts> {
    let program = build()?;
    let case = setting.folder.join("digits.safetensors");
    prepare(DIGITS, HELD_OUT, &case)?;
    let cache = setting.folder.join("shader-cache");
    let mut starts = ColdStarts::default();
    for round in 0..=setting.rounds {
        eprintln!("cold start, {round} of {}", setting.rounds);
        empty(&cache)?;
        // Mesa has not written all of its cache when the first run ends: the third run is the one with a full one.
        for run in 0..3 {
            let out = setting.folder.join("run");
            empty(&out)?;
            let mut command = Command::new(&program);
            command.args(["attack", "--json", "--out"]).arg(&out).env("MESA_SHADER_CACHE_DIR", &cache);
            let (start, told) = start(command, setting)?;
            starts.success_rates[0] = told["success_rate"].as_f64();
            // The first round only brings files into memory.
            match run {
                0 if round > 0 => starts.cold_caches.push(start),
                2 if round > 0 => starts.warm_caches.push(start),
                _ => {}
            }
        }
        if starts.failed.is_none() {
            let mut command = Command::new(&setting.python);
            command.args([script(), "digits"]).arg(&case).arg("--out").arg(setting.folder.join("run.safetensors"));
            match start(command, setting).and_then(|(start, told)| Ok((start, same(&mut starts.success_rates, &told)?)))
            {
                Ok((start, ())) if round > 0 => starts.pytorch.push(start),
                Ok(_) => {}
                Err(e) => starts.failed = Some(e.to_string()),
            }
        }
    }
    Ok(starts)
}

/// The program with its default features, which this tool itself does without.
fn build() -> Result<PathBuf> {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(["build", "--release", "--bin", "signstep", "--message-format=json-render-diagnostics"]);
    let built = command.current_dir(repository("")).stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8(built.stdout)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.filter(|_| built.status.success()).ok_or_else(|| "signstep's own program does not build".into())
}

fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// Runs a program to its end; what it prints is JSON.
fn start(mut command: Command, setting: &Setting) -> Result<(Start, Value)> {
    let [out, err] = ["start.json", "start.log"].map(|name| setting.folder.join(name));
    command.current_dir(&setting.folder).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let program = command.get_program().to_string_lossy().into_owned();
    let clock = Instant::now();
    let ended = command.spawn().map_err(|e| format!("{program}: {e}"))?.wait4()?;
    let wall = clock.elapsed().as_secs_f64();
    if !ended.status.success() {
        let log = fs::read_to_string(&err)?;
        return Err(format!("{}: {}", ended.status, log.lines().last().unwrap_or_default()).into());
    }
    let used = ended.rusage;
    let told = serde_json::from_str(&fs::read_to_string(&out)?)?;
    Ok((Start { wall, cpu: (used.utime + used.stime).as_secs_f64(), peak_rss: used.maxrss }, told))
}

/// Whether PyTorch, too, came to the end of the same attack.
fn same(rates: &mut [Option<f64>; 2], told: &Value) -> Result<()> {
    if let Some(reason) = told["failed"].as_str() {
        return Err(reason.into());
    }
    rates[1] = told["success_rate"].as_f64();
    match *rates {
        [Some(ours), Some(theirs)] if (ours - theirs).abs() <= SUCCESS_TOLERANCE => Ok(()),
        _ => Err(format!("success rates disagree: {rates:?}").into()),
    }
}
