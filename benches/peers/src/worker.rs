//! A peer is a process of its own, so that no peer's threads are charged to another: questions on its standard input,
//! answers on its standard output, a line of JSON each.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Logits and input gradient of the case.
    Check,
    /// An attack on the whole batch with so many steps: forward, input gradient, sign, clamp.
    Step(u32),
    /// The whole batch forward, so many times.
    Forward(u32),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Ready(Ready),
    Checked(Checked),
    Timed(Timed),
    Failed(String),
}

/// Who a peer is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ready {
    /// Name and version.
    pub name: String,
    /// What it runs on.
    pub device: String,
    /// Its configuration.
    pub how: String,
}

/// What a peer finds for the case, and what it knows of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// `[N, K]`
    pub logits: Vec<f32>,
    /// `[N, C, H, W]`, of each sample's cross-entropy on its class.
    pub gradient: Option<Vec<f32>>,
    #[serde(flatten)]
    pub memory: Memory,
    /// Floating-point operations of a direct forward pass, one sample: the engine's count, used for all.
    pub flops_forward: Option<f64>,
}

/// Bytes for each sample, weights left out, where the peer can tell.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The most that a gradient needs at a time.
    pub bytes: Option<f64>,
    /// What is kept from the forward to the backward pass.
    pub saved: Option<f64>,
    /// The same, had batch norm not been folded.
    pub saved_unfolded: Option<f64>,
}

/// Seconds of the process's CPU time and of wall time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Timed {
    pub cpu: f64,
    pub wall: f64,
    /// Farthest that an attack moved a pixel.
    pub moved: Option<f32>,
}

/// A peer written in Rust.
pub trait Peer {
    fn ready(&self) -> Ready;
    fn check(&mut self) -> Result<Checked>;
    /// Gives how far the farthest pixel was moved.
    fn step(&mut self, steps: u32) -> Result<f32>;
    fn forward(&mut self, times: u32) -> Result<()>;
}

/// Answers questions until there are no more.
pub fn serve(peer: Result<Box<dyn Peer>>) -> Result<()> {
    let tell = |answer: &Answer| -> Result<()> {
        println!("{}", serde_json::to_string(answer)?);
        Ok(())
    };
    let mut peer = match peer {
        Ok(peer) => peer,
        Err(e) => return tell(&Answer::Failed(e.to_string())),
    };
    tell(&Answer::Ready(peer.ready()))?;
    for line in std::io::stdin().lines() {
        let question = serde_json::from_str(&line?)?;
        tell(&answer(&mut *peer, question).unwrap_or_else(|e| Answer::Failed(e.to_string())))?;
    }
    Ok(())
}

fn answer(peer: &mut dyn Peer, question: Question) -> Result<Answer> {
    let (cpu, wall) = (cpu_time::ProcessTime::now(), Instant::now());
    let moved = match question {
        Question::Check => return Ok(Answer::Checked(peer.check()?)),
        Question::Step(steps) => Some(peer.step(steps)?),
        Question::Forward(times) => {
            peer.forward(times)?;
            None
        }
    };
    Ok(Answer::Timed(Timed { cpu: cpu.elapsed().as_secs_f64(), wall: wall.elapsed().as_secs_f64(), moved }))
}

/// A peer's process, seen from the other side.
pub struct Worker {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
    pub ready: Ready,
}

impl Worker {
    /// Starts a peer; what it writes to standard error goes to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut process = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        let questions = process.stdin.take().expect("is piped");
        let answers = BufReader::new(process.stdout.take().expect("is piped"));
        let mut worker = Worker { process, questions, answers, log, ready: Ready::default() };
        match worker.answer()? {
            Answer::Ready(ready) => worker.ready = ready,
            other => return Err(format!("an answer out of turn: {other:?}").into()),
        }
        Ok(worker)
    }

    pub fn check(&mut self) -> Result<Checked> {
        match self.ask(Question::Check)? {
            Answer::Checked(checked) => Ok(checked),
            other => Err(format!("an answer out of turn: {other:?}").into()),
        }
    }

    pub fn time(&mut self, question: Question) -> Result<Timed> {
        match self.ask(question)? {
            Answer::Timed(timed) => Ok(timed),
            other => Err(format!("an answer out of turn: {other:?}").into()),
        }
    }

    fn ask(&mut self, question: Question) -> Result<Answer> {
        writeln!(self.questions, "{}", serde_json::to_string(&question)?)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            // A panic ends with a note on how to see more of it.
            let says = |l: &&str| !l.trim().is_empty() && !l.starts_with("note:");
            let last = log.lines().rfind(says).unwrap_or("without a word").to_string();
            return Err(format!("the process ended: {last}").into());
        }
        match serde_json::from_str(&line).map_err(|e| format!("no sound answer: {e}"))? {
            Answer::Failed(reason) => Err(reason.into()),
            answer => Ok(answer),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has nothing to put in order; one that has ended already cannot be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
