//! Peers on one case: each is checked against the engine, then all are timed in interleaved rounds.

use crate::Result;
use crate::case::{DIGITS, EPS, STEP_SIZE};
use crate::common::relative_l2;
use crate::peers::Adapter;
use crate::worker::{Checked, Memory, Question, Ready, Timed, Worker};
use serde::{Serialize, Serializer};
use signstep::Math;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How far results may be from the engine's in f32, relative L2 of a sample. A ReLU whose input is within rounding of zero falls on either
/// side and moves that sample's gradient: hence a median beside the worst, of two samples that of the better one.
struct Tolerance {
    /// Logits of the worst sample.
    logits: f64,
    /// Input gradient of the median sample, and of the worst.
    gradient: (f64, f64),
}

/// f32, in whatever order and with whatever products: one sample of ten or so has such a ReLU, in fast arithmetic three of sixteen of ResNet-18.
/// It moves the gradient by 1e-5 to 1e-2, the more the later the layer; all others are within 3e-6.
const WHOLE: Tolerance = Tolerance { logits: 1e-5, gradient: (1e-5, 1e-2) };
/// f16: 2^-11 wherever a number is kept, which a dozen layers add up to less than 3e-3 (`tests/half.rs`). In a ResNet some ReLUs of every
/// sample decide otherwise: gradients came out 0.03 off in the median sample, 0.11 in the worst. What is wrong is off by about 1.
const HALF: Tolerance = Tolerance { logits: 3e-3, gradient: (0.1, 0.5) };

impl Tolerance {
    fn of(math: Math) -> &'static Self {
        match math {
            Math::F32 | Math::Fast => &WHOLE,
            Math::F16 | Math::Coop => &HALF,
        }
    }
}

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
    /// Only the engine has another than f32.
    #[serde(serialize_with = "by_name")]
    pub math: Math,
}

fn by_name<S: Serializer>(math: &Math, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(math.name())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Steps of the attack: forward, input gradient, sign, clamp.
    Step,
    /// Logits.
    Forward,
}

/// Who does what on which network. The first seat is the engine's in f32, which the others are checked against.
#[derive(Clone, Debug, Serialize)]
pub struct Contest {
    pub network: &'static str,
    pub batch: usize,
    pub work: Work,
    pub seats: Vec<Seat>,
}

/// What is known of the machine and the command line.
pub struct Setting {
    pub python: PathBuf,
    /// Where cases and logs are written.
    pub folder: PathBuf,
    pub rounds: usize,
    /// The engine's adapter.
    pub adapter: Adapter,
}

/// What came of a seat, or why nothing did.
pub type Seated = std::result::Result<Outcome, (Seat, String)>;

/// What a seat found and how fast.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub seat: Seat,
    pub ready: Ready,
    pub errors: Errors,
    pub memory: Memory,
    /// Sample-steps, or GFLOP of direct convolutions, for each second of CPU time; one a round.
    pub per_core_second: Vec<f64>,
    /// The same for each second of wall time.
    pub per_second: Vec<f64>,
}

struct Player {
    seat: Seat,
    worker: Worker,
    errors: Errors,
    memory: Memory,
    times: u32,
    rounds: Vec<Timed>,
}

impl Contest {
    pub fn title(&self) -> String {
        let network = match self.network.split_once('x') {
            Some((channels, side)) => format!("six 3×3 {channels}→{channels}, {side}×{side}"),
            None => self.network.replace("resnet", "ResNet-").replace(DIGITS, "digits-cnn"),
        };
        let work = if self.work == Work::Step { "PGD step" } else { "forward" };
        format!("{network}, {work}, batch {}", self.batch)
    }

    /// Runs it. What a seat cannot do is told in its place.
    pub fn run(&self, setting: &Setting) -> Result<Vec<Seated>> {
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
            memory: p.memory,
            per_core_second: p.rounds.iter().map(|t| each * f64::from(p.times) / t.cpu).collect(),
            per_second: p.rounds.iter().map(|t| each * f64::from(p.times) / t.wall).collect(),
            ready: p.worker.ready.clone(),
        };
        Ok(seats.into_iter().map(|seat| seat.map(outcome)).collect())
    }

    /// Starts a peer, checks it against `answer` (which the first one gives), and finds how much it can do in a round.
    fn enter(&self, seat: Seat, file: &Path, setting: &Setting, answer: &mut Option<Checked>) -> Result<Player> {
        let log = setting.folder.join(format!("{:?}-{}-{}.log", seat.kind, seat.math, seat.threads));
        let mut worker = Worker::start(self.command(seat, file, setting), log)?;
        let on_adapter = matches!(seat.kind, Kind::Burn | Kind::NcnnVulkan);
        if on_adapter && worker.ready.device != setting.adapter.name {
            return Err(format!("runs on {}, not on {}", worker.ready.device, setting.adapter.name).into());
        }
        let checked = worker.check()?;
        let memory = checked.memory;
        let errors = match answer {
            Some(answer) => Errors::between(&checked, answer, self.batch)?,
            None => {
                *answer = Some(checked);
                Errors::default()
            }
        };
        if !errors.within(Tolerance::of(seat.math)) {
            return Err(format!("disagrees: {errors}").into());
        }
        // Compiles what is left to compile.
        self.time(&mut worker, 1)?;
        let first = self.time(&mut worker, 1)?;
        let times = (ROUND_SECONDS / first.cpu).ceil().clamp(1.0, 10.0) as u32;
        Ok(Player { seat, worker, errors, memory, times, rounds: Vec::new() })
    }

    fn time(&self, worker: &mut Worker, times: u32) -> Result<Timed> {
        if self.work == Work::Forward {
            return worker.time(Question::Forward(times));
        }
        let timed = worker.time(Question::Step(times))?;
        let want = (STEP_SIZE * times as f32).min(EPS);
        let moved = timed.moved.unwrap_or(f32::NAN);
        match (moved - want).abs() <= 1e-5 {
            true => Ok(timed),
            false => Err(format!("{times} steps moved a pixel by {moved}, not by {want}").into()),
        }
    }

    fn command(&self, seat: Seat, file: &Path, setting: &Setting) -> Command {
        let own = |peer: &str, how: &str| {
            let mut command = own_program();
            command.args(["worker", peer, self.network, &self.batch.to_string(), how]);
            command
        };
        let python = |arguments: &[&str]| {
            let mut command = Command::new(&setting.python);
            command.arg(script()).arg(arguments[0]).arg(file).args(&arguments[1..]);
            command
        };
        let mut command = match seat.kind {
            Kind::Signstep => own("signstep", seat.math.name()),
            Kind::Burn => own("burn", &setting.adapter.kind),
            Kind::NcnnVulkan => python(&["ncnn", "--device", "vulkan", "--adapter", &setting.adapter.name]),
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

/// ‖got − want‖ / ‖want‖ by sample.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Errors {
    /// Of the worst sample.
    pub logits: f64,
    /// Of the median sample and of the worst, where the peer has gradients.
    pub gradient: Option<(f64, f64)>,
}

impl Errors {
    fn between(got: &Checked, want: &Checked, samples: usize) -> Result<Self> {
        let logits = distances(&got.logits, &want.logits, samples)?;
        let gradient = match (&got.gradient, &want.gradient) {
            (Some(got), Some(want)) => Some(distances(got, want, samples)?),
            _ => None,
        };
        let (median, worst) = ((samples - 1) / 2, samples - 1);
        Ok(Errors { logits: logits[worst], gradient: gradient.map(|sorted| (sorted[median], sorted[worst])) })
    }

    /// NaN is within nothing.
    fn within(&self, tolerance: &Tolerance) -> bool {
        let (median, worst) = self.gradient.unwrap_or_default();
        self.logits <= tolerance.logits && median <= tolerance.gradient.0 && worst <= tolerance.gradient.1
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "logits {:.0e}", self.logits)?;
        self.gradient.map_or(Ok(()), |(median, worst)| write!(f, ", gradient {median:.0e}, worst {worst:.0e}"))
    }
}

/// Of each sample, the smallest first; NaN where anything is NaN, and last.
fn distances(got: &[f32], want: &[f32], samples: usize) -> Result<Vec<f64>> {
    if got.len() != want.len() || want.is_empty() {
        return Err(format!("gives {} values, not {}", got.len(), want.len()).into());
    }
    let each = want.len() / samples;
    let one = |(got, want): (&[f32], &[f32])| {
        let want: Vec<f64> = want.iter().map(|v| f64::from(*v)).collect();
        relative_l2(got, &want)
    };
    let mut distances: Vec<f64> = got.chunks(each).zip(want.chunks(each)).map(one).collect();
    // Not by `total_cmp`: the sign of a NaN is the processor's and the compiler's, and would decide whether it is first or last.
    distances.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())));
    Ok(distances)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(logits: &[f32], gradient: &[f32]) -> Errors {
        let checked = |logits: &[f32], gradient: &[f32]| Checked {
            logits: logits.to_vec(),
            gradient: Some(gradient.to_vec()),
            ..Checked::default()
        };
        Errors::between(&checked(logits, gradient), &checked(&[1.0; 3], &[1.0; 3]), 3).unwrap()
    }

    #[test]
    fn errors_are_seen() {
        let small = |logits: &[f32], gradient: &[f32]| errors(logits, gradient).within(Tolerance::of(Math::Fast));
        assert!(small(&[1.0; 3], &[1.0, 1.001, 1.0]));
        assert!(!small(&[1.0; 3], &[1.0, 1.001, 1.001]), "gradients, two of three");
        assert!(!small(&[1.0; 3], &[1.0, 1.1, 1.0]), "a gradient far off");
        assert!(!small(&[1.0, 1.0, 1.001], &[1.0; 3]), "logits");
        let half = |logits: &[f32], gradient: &[f32]| errors(logits, gradient).within(Tolerance::of(Math::F16));
        assert!(half(&[1.0, 1.0, 1.001], &[1.4, 1.05, 1.05]));
        assert!(!half(&[1.0; 3], &[1.2, 1.2, 1.0]), "gradients, two of three");
        assert!(!half(&[1.0; 3], &[0.0, 1.0, 1.0]), "a gradient that is not there");
        assert!(!half(&[1.0, 1.0, 1.01], &[1.0; 3]), "logits");
        for nan in [f32::NAN, -f32::NAN] {
            for within in [&small as &dyn Fn(&[f32], &[f32]) -> bool, &half] {
                assert!(!within(&[1.0, nan, 1.0], &[1.0; 3]), "NaN among logits");
                assert!(!within(&[1.0; 3], &[1.0, nan, 1.0]), "NaN in a gradient");
            }
        }
        let two = |gradient: [f32; 2]| {
            let checked = |gradient: [f32; 2]| Checked {
                logits: vec![1.0; 2],
                gradient: Some(gradient.to_vec()),
                ..Checked::default()
            };
            Errors::between(&checked(gradient), &checked([1.0; 2]), 2).unwrap().within(Tolerance::of(Math::F32))
        };
        assert!(two([1.0, 1.001]) && !two([1.001, 1.001]), "of two samples one may be off");
        assert!(distances(&[1.0], &[1.0; 2], 1).is_err(), "a value too few");
    }
}
