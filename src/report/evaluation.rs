//! `eval.json`: robust accuracy against a list of attacks, what it took, and what speaks for it.

use super::config::SCHEMA_VERSION;
use super::json::MAX_BYTES;
use super::{DataFacts, Device, Distance, Evidence, Ledger, ModelFacts, Tally, grouped, percent, wilson};
use crate::attack::{Norm, budget};
use crate::data;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What was asked for, after defaults were filled in: all that decides the bytes, beside model and data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// The attacks in their order, every parameter written out.
    pub attacks: Vec<String>,
    /// `linf` or `l2`.
    pub norm: String,
    /// Radius.
    pub eps: Distance,
    /// Smallest and largest pixel value, if there are any.
    pub bounds: Option<(f32, f32)>,
    /// Whether 8-bit values are delivered: only within the bounds 0 and 1, unless floats were asked for.
    #[serde(rename = "quantize")]
    pub quantise: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Largest number of samples read, if it was limited.
    pub limit: Option<usize>,
    /// Whether samples in which NaN or infinity arose are delivered as they were, and marked, in place of an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_going: bool,
}

impl EvalConfig {
    /// True when what is delivered is k/255 throughout.
    pub fn delivers_bytes(&self) -> bool {
        self.quantise && self.bounds == Some((0.0, 1.0))
    }

    /// The radius that can be delivered: whole grey levels where bytes are.
    pub fn effective_eps(&self) -> f32 {
        let eps = self.eps.value as f32;
        if self.delivers_bytes() && self.norm == Norm::Linf.name() { budget(eps) as f32 / 255.0 } else { eps }
    }
}

/// What was evaluated with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalIdentity {
    /// Of this form of report.
    pub schema_version: u32,
    /// Of this program.
    pub version: String,
    /// Arithmetic of the network: `f32`, or `f64` for the reference.
    pub math: String,
    /// What was asked for.
    pub config: EvalConfig,
    /// The network.
    pub model: ModelFacts,
    /// The images.
    pub data: DataFacts,
    /// What it ran on.
    pub device: Device,
}

impl EvalIdentity {
    /// The identity of an evaluation by this version of the program.
    pub fn new(math: &str, config: EvalConfig, model: ModelFacts, data: DataFacts, device: Device) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        EvalIdentity { schema_version: SCHEMA_VERSION, version, math: math.into(), config, model, data, device }
    }

    /// What decides the bytes: names and paths do not.
    pub(super) fn key(&self) -> Value {
        let config: Value = serde_json::from_str(&super::json_text(&self.config)).unwrap_or_default();
        serde_json::json!({
            "schema_version": self.schema_version,
            "version": self.version,
            "math": self.math,
            "config": config,
            "model": self.model.key(),
            "data": self.data.key(),
            "device": { "name": self.device.name, "driver": self.device.driver },
        })
    }
}

/// A rate, with the interval that holds the true one with 95 % confidence (Wilson).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How many samples.
    pub count: usize,
    /// Their share of all.
    pub rate: f64,
    /// Lower and upper end.
    pub interval_95: (f64, f64),
}

impl Rate {
    /// `count` of `samples`, of which there is one at least.
    pub fn new(count: usize, samples: usize) -> Self {
        let rate = count as f64 / samples.max(1) as f64;
        Rate { count, rate, interval_95: wilson(count, samples).unwrap_or((0.0, 1.0)) }
    }
}

/// An attack of the list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Struck {
    /// As it was asked for: `apgd:loss=ce`.
    pub attack: String,
    /// In words, for a paper: `apgd (ce, 100 steps, 1 restart)`.
    pub description: String,
    /// False where it was not begun, for it would not have fitted into the time budget.
    pub begun: bool,
    /// What it did.
    #[serde(flatten)]
    pub tally: Tally,
    /// Right when clean and after all attacks up to this one, as delivered.
    pub robust: usize,
    /// The same for the float iterates.
    pub robust_float: usize,
}

/// How long the parts took, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalTiming {
    /// Reading weights and data.
    pub load_ms: f64,
    /// Opening the device and compiling its kernels.
    pub compile_ms: f64,
    /// Clean logits.
    pub clean_ms: f64,
    /// Each attack.
    pub attacks_ms: Vec<f64>,
}

/// Everything that is known of an evaluation, but for its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What was evaluated with what.
    #[serde(flatten)]
    pub identity: EvalIdentity,
    /// Whether this is AutoAttack: its four attacks with its settings, none left out.
    pub is_autoattack: bool,
    /// Whether all attacks of the list were run.
    pub is_complete: bool,
    /// All of them.
    pub samples: usize,
    /// Right when clean.
    pub clean_accuracy: Rate,
    /// Right when clean and after every attack, as delivered.
    pub robust_accuracy: Rate,
    /// The same for the float iterates, which is what papers report.
    pub robust_accuracy_float: Rate,
    /// The attacks in their order.
    pub attacks: Vec<Struck>,
    /// One line, fit for a paper.
    pub protocol: String,
    /// Why the rates can be believed, or not.
    pub evidence: Evidence,
    /// SHA-256 of the files beside `eval.json`.
    pub files: BTreeMap<String, String>,
    /// How long it took.
    pub timing: EvalTiming,
    /// Device memory at its peak; `None` when no device was used.
    pub gpu_bytes: Option<u64>,
}

impl Evaluation {
    /// An evaluation that has ended; `suite` says whether its list is that of AutoAttack.
    pub fn new(
        identity: EvalIdentity,
        suite: bool,
        ledger: &Ledger,
        attacks: Vec<Struck>,
        timing: EvalTiming,
        gpu_bytes: Option<u64>,
    ) -> Self {
        let rate = |count| Rate::new(count, ledger.samples());
        let is_complete = attacks.iter().all(|a| a.begun);
        let mut evaluation = Evaluation {
            is_autoattack: suite && is_complete,
            is_complete,
            samples: ledger.samples(),
            clean_accuracy: rate(ledger.clean_correct()),
            robust_accuracy: rate(ledger.robust()),
            robust_accuracy_float: rate(ledger.robust_float()),
            attacks,
            protocol: String::new(),
            evidence: ledger.evidence(identity.config.delivers_bytes()),
            files: BTreeMap::new(),
            timing,
            gpu_bytes,
            identity,
        };
        evaluation.protocol = evaluation.in_one_line();
        evaluation
    }

    /// What was run, in one line that a paper can print.
    fn in_one_line(&self) -> String {
        let (i, c) = (&self.identity, &self.identity.config);
        let begun: Vec<&str> = self.attacks.iter().filter(|a| a.begun).map(|a| a.description.as_str()).collect();
        let left = self.attacks.len() - begun.len();
        let left = if left == 0 { String::new() } else { format!(" (incomplete: {left} attacks not run)") };
        let suite = if self.is_autoattack { "AutoAttack: " } else { "" };
        let delivered = if c.delivers_bytes() { "as 8-bit images" } else { "as delivered floats" };
        let attacks = if begun.is_empty() { "no attack".into() } else { begun.join(", ") };
        let each = self.gradients_each();
        format!(
            "{}, eps {}; {suite}{attacks}{left}; {} images; robust accuracy {} in float, {} {delivered}; {} gradients an \
             image; seed {}; signstep {}, {} ({})",
            c.norm,
            c.eps.text,
            grouped(self.samples as f64),
            percent(Some(self.robust_accuracy_float.rate)),
            percent(Some(self.robust_accuracy.rate)),
            if each < 1000.0 { format!("{each:.1}") } else { grouped(each) },
            c.seed,
            i.version,
            i.device.name,
            i.device.backend,
        )
    }

    /// Reads `eval.json`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |detail: String| Error::data(path.display().to_string(), detail);
        let bytes = data::read(path, MAX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| fail(format!("no evaluation of this program: {e}")))
    }

    /// The file's text, without a newline at its end.
    pub fn json(&self) -> String {
        super::json_text(self)
    }

    /// Gradients taken, all attacks together, for each image of the data.
    pub fn gradients_each(&self) -> f64 {
        let all: u64 = self.attacks.iter().map(|a| a.tally.gradients).sum();
        all as f64 / self.samples.max(1) as f64
    }

    /// The lower of float and delivered: what a threshold is held against.
    pub fn lower_robust_accuracy(&self) -> f64 {
        self.robust_accuracy.rate.min(self.robust_accuracy_float.rate)
    }
}
