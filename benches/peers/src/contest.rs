//! Peers on one case: each is checked against the engine, then all are timed in interleaved rounds.

use crate::Result;
use crate::case::{EPS, STEP_SIZE};
use crate::worker::{Checked, Question, Ready, Timed, Worker};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How far a peer's logits may be from the engine's: relative L2 of the worst sample.
const LOGITS_TOLERANCE: f64 = 1e-5;
/// The same for input gradients. Larger, for a ReLU whose input is within rounding of zero falls on either side.
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// CPU time that one timed question should take.
const ROUND_SECONDS: f64 = 0.7;
/// A peer that has used so much wall time takes part in no round after its third.
const PATIENCE_SECONDS: f64 = 60.0;
const FEWEST_ROUNDS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Signstep,
    Burn,
    NcnnVulkan,
    NcnnCpu,
    Torch,
    TorchCuda,
}

/// A peer with so many threads; 0: as many as it likes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Seat {
    pub kind: Kind,
    pub threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Steps of the attack: forward, input gradient, sign, clamp.
    Step,
    /// Logits.
    Forward,
}

/// Who does what on which network. The first seat is the engine's, which the others are checked against.
#[derive(Clone, Debug, Serialize)]
pub struct Contest {
    pub network: &'static str,
    pub batch: usize,
    pub work: Work,
    pub seats: Vec<Seat>,
}

/// What is known of the machine and the command line.
pub struct Setting {
    pub python: String,
    /// Where cases and logs are written.
    pub folder: PathBuf,
    pub rounds: usize,
    /// The engine's adapter.
    pub adapter: Ready,
    /// `discrete`, `software`, …
    pub kind: String,
}

/// What came of a seat.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub seat: Seat,
    pub ready: Ready,
    /// Relative L2 of the worst sample, logits and input gradient.
    pub errors: (f64, Option<f64>),
    pub bytes_per_sample: Option<f64>,
    /// Sample-steps, or GFLOP of direct convolutions, for each second of CPU time; one a round.
    pub per_core_second: Vec<f64>,
    /// The same for each second of wall time.
    pub per_second: Vec<f64>,
}

struct Player {
    seat: Seat,
    worker: Worker,
    errors: (f64, Option<f64>),
    bytes_per_sample: Option<f64>,
    times: u32,
    rounds: Vec<Timed>,
}

impl Contest {
    pub fn title(&self) -> String {
        let network = match self.network.split_once('x') {
            Some((channels, side)) => format!("six 3×3 {channels}→{channels}, {side}×{side}"),
            None => self.network.replace("resnet", "ResNet-"),
        };
        let work = if self.work == Work::Step { "PGD step" } else { "forward" };
        format!("{network}, {work}, batch {}", self.batch)
    }

    /// Runs it. What a seat cannot do is told in its place.
    pub fn run(&self, setting: &Setting) -> Result<Vec<std::result::Result<Outcome, (Seat, String)>>> {
        let file = setting.folder.join(format!("{}-{}.safetensors", self.network, self.batch));
        prepare(self.network, self.batch, &file)?;
        let mut answer: Option<Checked> = None;
        let mut seats = Vec::new();
        for &seat in &self.seats {
            eprintln!("{}: {seat:?}", self.title());
            seats.push(self.enter(seat, &file, setting, &mut answer).map_err(|e| (seat, e.to_string())));
            if answer.is_none() {
                let why = seats.pop().and_then(std::result::Result::err).map(|(_, why)| why).unwrap_or_default();
                return Err(format!("{}: signstep itself: {why}", self.title()).into());
            }
        }
        for round in 0..setting.rounds {
            for seat in &mut seats {
                let Ok(player) = seat else { continue };
                let used: f64 = player.rounds.iter().map(|t| t.wall).sum();
                if round < FEWEST_ROUNDS || used < PATIENCE_SECONDS {
                    match self.time(&mut player.worker, player.times) {
                        Ok(timed) => player.rounds.push(timed),
                        Err(e) => *seat = Err((player.seat, e.to_string())),
                    }
                }
            }
        }
        // What one question does, in the unit of the table.
        let flops = answer.and_then(|a| a.flops_forward).unwrap_or(f64::NAN);
        let each = self.batch as f64 * if self.work == Work::Step { 1.0 } else { flops / 1e9 };
        let outcome = |p: Player| Outcome {
            seat: p.seat,
            errors: p.errors,
            bytes_per_sample: p.bytes_per_sample,
            per_core_second: p.rounds.iter().map(|t| each * f64::from(p.times) / t.cpu).collect(),
            per_second: p.rounds.iter().map(|t| each * f64::from(p.times) / t.wall).collect(),
            ready: p.worker.ready.clone(),
        };
        Ok(seats.into_iter().map(|seat| seat.map(outcome)).collect())
    }

    /// Starts a peer, checks it against `answer` (which the first one gives), and finds how much it can do in a round.
    fn enter(&self, seat: Seat, file: &Path, setting: &Setting, answer: &mut Option<Checked>) -> Result<Player> {
        let log = setting.folder.join(format!("{:?}.log", seat.kind));
        let mut worker = Worker::start(self.command(seat, file, setting), log)?;
        let on_adapter = matches!(seat.kind, Kind::Burn | Kind::NcnnVulkan);
        if on_adapter && worker.ready.device != setting.adapter.device {
            return Err(format!("runs on {}, not on {}", worker.ready.device, setting.adapter.device).into());
        }
        let checked = worker.check()?;
        let bytes_per_sample = checked.bytes_per_sample;
        let errors = match answer {
            Some(answer) => {
                let logits = distance(&checked.logits, &answer.logits, self.batch)?;
                let gradient = match (&checked.gradient, &answer.gradient) {
                    (Some(got), Some(want)) => Some(distance(got, want, self.batch)?),
                    _ => None,
                };
                (logits, gradient)
            }
            None => {
                *answer = Some(checked);
                (0.0, Some(0.0))
            }
        };
        if !(errors.0 <= LOGITS_TOLERANCE && errors.1.is_none_or(|e| e <= GRADIENT_TOLERANCE)) {
            let gradient = errors.1.map(|e| format!(", gradient by {e:.1e}")).unwrap_or_default();
            return Err(format!("disagrees: logits by {:.1e}{gradient}", errors.0).into());
        }
        // Compiles what is left to compile.
        self.time(&mut worker, 1)?;
        let first = self.time(&mut worker, 1)?;
        let times = (ROUND_SECONDS / first.cpu).ceil().clamp(1.0, 10.0) as u32;
        Ok(Player { seat, worker, errors, bytes_per_sample, times, rounds: Vec::new() })
    }

    fn time(&self, worker: &mut Worker, times: u32) -> Result<Timed> {
        if self.work == Work::Forward {
            return worker.time(Question::Forward(times));
        }
        let timed = worker.time(Question::Step(times))?;
        let want = (STEP_SIZE * times as f32).min(EPS);
        let moved = timed.moved.unwrap_or(f32::NAN);
        if !((moved - want).abs() <= 1e-5) {
            return Err(format!("{times} steps moved a pixel by {moved}, not by {want}").into());
        }
        Ok(timed)
    }

    fn command(&self, seat: Seat, file: &Path, setting: &Setting) -> Command {
        let own = |peer: &str| {
            let mut command = own_program();
            command.args(["worker", peer, self.network, &self.batch.to_string(), &setting.kind]);
            command
        };
        let python = |arguments: &[&str]| {
            let mut command = Command::new(&setting.python);
            command.arg(script()).arg(arguments[0]).arg(file).args(&arguments[1..]);
            command
        };
        let mut command = match seat.kind {
            Kind::Signstep => own("signstep"),
            Kind::Burn => own("burn"),
            Kind::NcnnVulkan => python(&["ncnn", "--device", "vulkan", "--adapter", &setting.adapter.device]),
            Kind::NcnnCpu => python(&["ncnn"]),
            Kind::Torch => python(&["torch", "--threads", &seat.threads.to_string()]),
            Kind::TorchCuda => python(&["torch", "--device", "cuda"]),
        };
        command.current_dir(&setting.folder).env_remove("LP_NUM_THREADS");
        if seat.threads > 0 {
            command.env("LP_NUM_THREADS", seat.threads.to_string());
        }
        command
    }
}

pub fn script() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/peers.py")
}

pub fn own_program() -> Command {
    Command::new(std::env::current_exe().expect("this program has a path"))
}

/// Writes a case in a process of its own: a process that is started counts as large as the one that starts it, so this one
/// stays small.
pub fn prepare(network: &str, batch: usize, file: &Path) -> Result<()> {
    let status = own_program().args(["worker", "prepare", network, &batch.to_string()]).arg(file).status()?;
    if status.success() { Ok(()) } else { Err(format!("{}: cannot be written", file.display()).into()) }
}

/// ‖got − want‖ / ‖want‖ of the worst sample; NaN where anything is NaN.
fn distance(got: &[f32], want: &[f32], samples: usize) -> Result<f64> {
    if got.len() != want.len() || want.is_empty() {
        return Err(format!("gives {} values, not {}", got.len(), want.len()).into());
    }
    let each = want.len() / samples;
    let one = |(got, want): (&[f32], &[f32])| {
        let want: Vec<f64> = want.iter().map(|v| f64::from(*v)).collect();
        crate::common::relative_l2(got, &want)
    };
    let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    Ok(got.chunks(each).zip(want.chunks(each)).map(one).fold(0.0, worst))
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn the_worst_sample_counts_and_nan_wins() {
        assert_eq!(distance(&[1.0, 1.5, 2.0], &[1.0, 1.0, 2.0], 3).unwrap(), 0.5);
        assert!(distance(&[f32::NAN, 1.0], &[1.0, 1.0], 2).unwrap().is_nan());
        assert!(distance(&[1.0], &[1.0, 1.0], 2).is_err());
    }
}
