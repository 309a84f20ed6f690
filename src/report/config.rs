//! What a run is: everything that decides its bytes, and so what two runs must share for one to go on with the other.

use super::{Ladder, Radius, Shard};
use crate::attack::{Attack, Loss, Method, Norm, budget};
use crate::data::Framing;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::fmt::Display;
use std::str::FromStr;

/// Raised by a change that could break a reader of `report.json`.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// A pixel distance as it was written, and its value in pixel units of [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// `8/255`, `0.3`, `inf`
    pub text: String,
    /// May be infinite. JSON has no infinity: null stands for it.
    #[serde(deserialize_with = "null_is_infinite")]
    pub value: f64,
}

fn null_is_infinite<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
}

/// What was asked for, after defaults were filled in. Two runs with the same of everything here, the same model and the
/// same data write the same bytes on the same adapter; so neither the device nor the size of a batch or part is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Which attack.
    #[serde(serialize_with = "write_method", deserialize_with = "read_name")]
    pub method: Method,
    /// Norm of the ball.
    #[serde(serialize_with = "write_norm", deserialize_with = "read_name")]
    pub norm: Norm,
    /// What is followed.
    #[serde(serialize_with = "write_loss", deserialize_with = "read_name")]
    pub loss: Loss,
    /// As the command line writes it; `file` for classes read from a file.
    pub targets: String,
    /// SHA-256 of those classes, if they came from a file.
    pub targets_sha256: Option<String>,
    /// Radius; the largest where there are several.
    pub eps: Distance,
    /// Step length inside it; 0 where the method has none.
    pub step_size: Distance,
    /// Number of iterations.
    pub steps: u32,
    /// How often a sample is tried at most, for each class that is aimed at.
    pub restarts: u32,
    /// Whether the first step is taken from a random place of the ball.
    pub random_start: bool,
    /// Share of the accumulated gradient that is kept, where there is one.
    pub momentum: Option<f32>,
    /// Whether a sample stops once it is turned as delivered.
    pub early_stop: bool,
    /// Smallest and largest pixel value, if there are any.
    pub bounds: Option<(f32, f32)>,
    /// Whether 8-bit values are delivered: only within the bounds 0 and 1, unless floats were asked for.
    #[serde(rename = "quantize")]
    pub quantise: bool,
    /// Whether samples that are wrong when clean were stepped as well.
    pub attack_all: bool,
    /// Whether samples in which NaN or infinity arose are delivered as they were, and marked, in place of an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_going: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Largest number of samples read, if it was limited.
    pub limit: Option<usize>,
    /// All radii in their order, where there are several: then every sample has a row for each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub radii: Vec<Radius>,
    /// Where the smallest radius that turns a sample is looked for.
    #[serde(rename = "min_eps", default, skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Ladder>,
}

fn write_method<S: Serializer>(method: &Method, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(method.name())
}

fn write_norm<S: Serializer>(norm: &Norm, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(norm.name())
}

fn write_loss<S: Serializer>(loss: &Loss, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(loss.name())
}

fn read_name<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

impl Config {
    /// True when what is delivered is k/255 throughout.
    pub fn delivers_bytes(&self) -> bool {
        self.quantise && self.bounds == Some((0.0, 1.0))
    }

    /// The radius that can be delivered: whole grey levels where bytes are.
    pub fn effective_eps(&self) -> f32 {
        self.effective(self.eps.value)
    }

    /// What of a radius can be delivered.
    pub fn effective(&self, eps: f64) -> f32 {
        let eps = eps as f32;
        if self.delivers_bytes() && self.norm == Norm::Linf { budget(eps) as f32 / 255.0 } else { eps }
    }

    /// True when no class is aimed at.
    pub fn is_untargeted(&self) -> bool {
        self.targets == "none"
    }

    /// Rows that a sample has.
    pub fn rows_each(&self) -> usize {
        self.radii.len().max(1)
    }

    /// Place of the largest radius among several.
    pub(super) fn largest(&self) -> usize {
        (0..self.radii.len()).max_by(|a, b| self.radii[*a].eps.value.total_cmp(&self.radii[*b].eps.value)).unwrap_or(0)
    }

    /// Steps that a sample of a network with so many classes takes at most, at all radii together.
    pub fn steps_each(&self, classes: usize) -> u64 {
        let attack = Attack::new(self.method, self.norm, 0.0).restarts(self.restarts);
        let rounds = self.ladder.map_or(self.rows_each() as u64, |ladder| ladder.rounds());
        u64::from(self.steps) * attack.attempts(classes) * rounds
    }
}

/// What the attack ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// The adapter's name, or `reference`.
    pub name: String,
    /// `vulkan`, `metal`, …; `cpu` for the reference.
    pub backend: String,
    /// `discrete`, `integrated`, `software`, …
    pub kind: String,
    /// Driver and version.
    pub driver: String,
}

/// The network of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Its name.
    pub arch: String,
    /// SHA-256 of the weights file.
    pub sha256: String,
    /// Number of weights, batch norm folded.
    pub parameters: usize,
    /// SHA-256 of the description of its layers, if it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description_sha256: Option<String>,
}

impl ModelFacts {
    /// What decides the bytes.
    pub(crate) fn key(&self) -> Value {
        let mut key = serde_json::json!({ "sha256": self.sha256 });
        if let Some(description) = &self.description_sha256 {
            key["description_sha256"] = Value::from(description.as_str());
        }
        key
    }
}

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Where they came from: a path as given, or `embedded digits`.
    pub source: String,
    /// SHA-256 of the files read.
    pub sha256: String,
    /// Samples in the whole set, as far as it is read; a shard holds some of them.
    pub samples: usize,
    /// Names of the classes; may be empty or too short, numbers stand in.
    pub classes: Vec<String>,
    /// How pictures were brought to one size.
    #[serde(flatten)]
    pub framing: Framing,
}

impl DataFacts {
    /// What decides the bytes.
    pub(crate) fn key(&self) -> Value {
        let mut key = serde_json::json!({ "sha256": self.sha256, "samples": self.samples });
        for (name, value) in [("resize", self.framing.resize), ("crop", self.framing.crop)] {
            if let Some(value) = value {
                key[name] = Value::from(value);
            }
        }
        key
    }
}

/// What was run on what. A folder holds the results of one identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Of this form of report.
    pub schema_version: u32,
    /// Of this program.
    pub version: String,
    /// Arithmetic of the network: `f32`, or `f64` for the reference.
    pub math: String,
    /// What was asked for.
    pub config: Config,
    /// The network.
    pub model: ModelFacts,
    /// The images.
    pub data: DataFacts,
    /// Which part of the data, if not all.
    pub shard: Option<Shard>,
}

impl Identity {
    /// The identity of a run of this version of the program.
    pub fn new(math: &str, config: Config, model: ModelFacts, data: DataFacts, shard: Option<Shard>) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Identity { schema_version: SCHEMA_VERSION, version, math: math.into(), config, model, data, shard }
    }

    /// The samples that the run covers, by their index in the whole data set.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.shard.map_or(0..self.data.samples, |s| s.range())
    }

    /// What decides the bytes: names and paths do not.
    pub(super) fn key(&self, device: Option<&Device>) -> Value {
        let parse = |json: String| serde_json::from_str::<Value>(&json).unwrap_or_default();
        let mut key = serde_json::json!({
            "schema_version": self.schema_version,
            "version": self.version,
            "math": self.math,
            "config": parse(super::json::text(&self.config)),
            "model": self.model.key(),
            "data": self.data.key(),
            "shard": parse(super::json::text(&self.shard)),
        });
        if let Some(device) = device {
            key["device"] = serde_json::json!({ "name": device.name, "driver": device.driver });
        }
        key
    }

    /// Name of a class, or its number.
    pub fn class(&self, class: i64) -> String {
        let named = usize::try_from(class).ok().and_then(|k| self.data.classes.get(k));
        named.cloned().unwrap_or_else(|| class.to_string())
    }
}

/// Where two keys differ, in words: `config.seed is 0 there and 1 here`.
pub(crate) fn differences(there: &Value, here: &Value) -> Vec<String> {
    fn walk(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let only_there = x.keys().filter(|k| !y.contains_key(*k));
                for name in y.keys().chain(only_there) {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, &a[name.as_str()], &b[name.as_str()], found);
                }
            }
            _ if a != b => found.push(format!("{path} is {a} there and {b} here")),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("", there, here, &mut found);
    // A distance is told once, as it was written.
    let told = found.clone();
    found.retain(|f| {
        let twin = f.split_once(".value is ").map(|(path, _)| format!("{path}.text is "));
        !twin.is_some_and(|twin| told.iter().any(|t| t.starts_with(&twin)))
    });
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> Config {
        Config {
            method: Method::Ifgsm,
            norm: Norm::Linf,
            loss: Loss::CrossEntropy,
            targets: "next".into(),
            targets_sha256: None,
            eps: Distance { text: "2/255".into(), value: 2.0 / 255.0 },
            step_size: Distance { text: "0.5/255".into(), value: 0.5 / 255.0 },
            steps: 10,
            restarts: 1,
            random_start: false,
            momentum: None,
            early_stop: false,
            bounds: Some((0.0, 1.0)),
            quantise: true,
            attack_all: false,
            keep_going: false,
            seed: 7,
            limit: None,
            radii: Vec::new(),
            ladder: None,
        }
    }

    pub(crate) fn identity(samples: usize) -> Identity {
        let model = ModelFacts { arch: "custom".into(), sha256: "aa".into(), parameters: 3, description_sha256: None };
        let classes = vec!["cat".into(), "dog".into()];
        let data =
            DataFacts { source: "made up".into(), sha256: "bb".into(), samples, classes, framing: Framing::default() };
        Identity::new("f64", config(), model, data, None)
    }

    pub(crate) fn device() -> Device {
        Device { name: "reference".into(), backend: "cpu".into(), kind: "software".into(), driver: String::new() }
    }

    #[test]
    fn an_identity_reads_as_it_was_written() {
        let mut one = identity(4);
        one.config.eps = Distance { text: "inf".into(), value: f64::INFINITY };
        one.config.step_size.value = 0.1 + 0.2;
        one.config.bounds = Some((-0.1, 2.7));
        let text = super::super::json::text(&one);
        assert!(text.contains("-0.1") && text.contains("2.7"), "f32 as they are written: {text}");
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), one);
        assert!(serde_json::from_str::<Identity>(&text.replace("ifgsm", "nonsense")).is_err());
    }

    /// What a forecast and a bar of progress count with.
    #[test]
    fn steps_of_a_sample_are_those_of_all_restarts_classes_and_radii() {
        let radius = Radius { eps: config().eps, step_size: config().step_size };
        let steps = |change: &dyn Fn(&mut Config)| {
            let mut config = Config { restarts: 3, ..config() };
            change(&mut config);
            config.steps_each(10)
        };
        assert_eq!(steps(&|_| {}), 10 * 3);
        assert_eq!(steps(&|c| c.radii = vec![radius.clone(); 4]), 10 * 3 * 4);
        assert_eq!(steps(&|c| c.ladder = Ladder::parts(0.5)), 10 * 3 * 7);
        assert_eq!(steps(&|c| c.method = Method::ApgdT), 10 * 3 * 9);
    }

    #[test]
    fn radii_are_whole_levels_where_bytes_are_delivered_in_linf_alone() {
        let half_a_level_more = 2.5 / 255.0;
        let effective = |norm, quantise, bounds| {
            let whole = Config { norm, bounds, quantise, ..config() };
            let eps = Distance { text: "2.5/255".into(), value: half_a_level_more };
            let eval = super::super::EvalConfig {
                attacks: Vec::new(),
                norm: norm.name().into(),
                eps,
                bounds,
                quantise,
                seed: 0,
                limit: None,
                keep_going: false,
            };
            assert_eq!(whole.effective(half_a_level_more), eval.effective_eps());
            eval.effective_eps()
        };
        let (cut, all) = (2.0 / 255.0, half_a_level_more as f32);
        assert_eq!(effective(Norm::Linf, true, Some((0.0, 1.0))), cut);
        assert_eq!(effective(Norm::L2, true, Some((0.0, 1.0))), all);
        assert_eq!(effective(Norm::Linf, false, Some((0.0, 1.0))), all);
        assert_eq!(effective(Norm::Linf, true, Some((0.0, 2.0))), all);
        assert_eq!(effective(Norm::Linf, true, None), all);
    }

    #[test]
    fn differences_are_named_and_paths_are_none() {
        let one = identity(4);
        let key = |i: &Identity| i.key(Some(&device()));
        let differ = |change: &dyn Fn(&mut Identity)| {
            let mut other = identity(4);
            change(&mut other);
            differences(&key(&one), &key(&other))
        };
        assert!(differ(&|i| i.data.source = "elsewhere".into()).is_empty());
        assert_eq!(differ(&|i| i.config.seed = 8), ["config.seed is 7 there and 8 here"]);
        let eps = Distance { text: "0.1".into(), value: 0.1 };
        assert_eq!(differ(&|i| i.config.eps = eps.clone()), ["config.eps.text is \"2/255\" there and \"0.1\" here"]);
        assert_eq!(differ(&|i| i.math = "f32".into()).len(), 1);
        assert_eq!(differ(&|i| i.model.sha256 = "ab".into()).len(), 1);
        let described = differ(&|i| i.model.description_sha256 = Some("cc".into()));
        assert_eq!(described, ["model.description_sha256 is null there and \"cc\" here"]);
        // What one of the two lacks differs, whichever it is.
        let mut other = identity(4);
        other.model.description_sha256 = Some("cc".into());
        assert_eq!(differences(&key(&other), &key(&one)), ["model.description_sha256 is \"cc\" there and null here"]);
        assert_eq!(differ(&|i| i.data.framing.resize = Some(256)), ["data.resize is null there and 256 here"]);
        assert_eq!(differ(&|i| i.data.framing.crop = Some(224)), ["data.crop is null there and 224 here"]);
        assert_eq!(differ(&|i| i.data.sha256 = "ab".into()).len(), 1);
        assert_eq!(differ(&|i| i.data.samples = 5).len(), 1);
        assert_eq!(differ(&|i| i.version = "9".into()).len(), 1);
        assert_eq!(differ(&|i| i.shard = Shard::new(0, 2, 4).ok()).len(), 1);
        let other = Device { driver: "2".into(), ..device() };
        assert_eq!(differences(&key(&one), &one.key(Some(&other))).len(), 1);
    }
}
