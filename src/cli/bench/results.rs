//! What was measured, as data: kept as JSON, told as tables, compared with what was kept.

use super::peers::{self, Peers};
use crate::data;
use crate::error::{Error, Result};
use crate::report::{Device, MAX_BYTES};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Raised by a change that could break a reader.
pub(super) const SCHEMA: u32 = 1;

/// The middle of what was measured, and where nine tenths and one tenth of it lie above.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

impl Spread {
    /// Of at least one number.
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        // Between two measures a quantile is taken in proportion.
        let at = |q: f64| {
            let place = q * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Spread { median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }

    /// All three changed; p10 stays the smaller one.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.p10), f(self.p90));
        Spread { median: f(self.median), p10: a.min(b), p90: a.max(b) }
    }

    /// How far apart the tenths are, as a ratio.
    pub(super) fn drift(self) -> f64 {
        self.p90 / self.p10
    }
}

/// One ceiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ProbeRow {
    pub name: String,
    pub unit: String,
    pub value: Spread,
}

/// One kernel on one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct KernelRow {
    pub kernel: String,
    pub shape: String,
    pub variant: String,
    /// Blocks of four channels × pixels of one invocation.
    pub tile: Option<String>,
    /// `buffer` or `texture`: where activations lie.
    pub storage: String,
    pub samples: u32,
    /// Dispatches that the layer takes.
    pub dispatches: usize,
    /// Seconds for the layer once, on all samples, by the clock.
    pub time: Spread,
    /// Seconds of wall time.
    pub wall: Spread,
    pub gflops_per_s: Option<f64>,
    pub gbytes_per_s: f64,
    /// Which ceiling is the lowest: `fma`, `copy` or `dispatch`.
    pub bound: String,
    /// How near it is to that ceiling, of 1.
    pub share: f64,
    /// How many times as fast as the naive kernel, where that was timed too.
    pub speedup: Option<f64>,
}

/// Whole steps of one network and batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StepRow {
    pub network: String,
    pub batch: usize,
    /// Why it was not timed, if it was not.
    pub skipped: Option<String>,
    /// Samples that ran at once.
    pub chunk: usize,
    pub rounds: usize,
    /// Seconds of device time for one step of the whole batch: process CPU time on a software adapter, else the sum of
    /// the plan's dispatches by timestamps.
    pub device: Option<Spread>,
    /// Seconds of wall time for the same, from images on the host to images on the host.
    pub wall: Option<Spread>,
    /// Share of device time that is no convolution.
    pub other_share: Option<f64>,
    /// GFLOP for each second of device time.
    pub gflops_per_s: Option<f64>,
    /// Seconds from the opened device's making to the end of the first step of one image.
    pub start_up: f64,
    /// Bytes on the device that grow with the batch, for one sample.
    pub bytes_per_sample: u64,
    /// Device time (wall time where there is none) for one sample, as a multiple of that in the largest batch timed.
    pub growth: Option<f64>,
}

/// One dispatch of a network's step, alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DispatchRow {
    pub network: String,
    pub samples: usize,
    /// Its place in the step, from 0.
    pub place: usize,
    pub kernel: String,
    pub layer: String,
    /// Seconds for all samples, by the clock.
    pub time: Spread,
    /// Of the sum of all dispatches.
    pub share: f64,
    pub gflops_per_s: Option<f64>,
}

/// Everything of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Results {
    pub schema_version: u32,
    pub version: String,
    pub device: Device,
    /// `process CPU time`, `device timestamps` or `wall time`.
    pub clock: String,
    pub rounds: usize,
    pub probes: Vec<ProbeRow>,
    pub kernels: Vec<KernelRow>,
    pub steps: Vec<StepRow>,
    /// Where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dispatches: Vec<DispatchRow>,
    pub warnings: Vec<String>,
}

impl KernelRow {
    /// What the row is about, apart from figures.
    pub(super) fn key(&self) -> String {
        format!("{} {} {} {} {}", self.kernel, self.shape, self.variant, self.storage, self.samples)
    }
}

impl StepRow {
    pub(super) fn key(&self) -> String {
        format!("step {} {}", self.network, self.batch)
    }

    /// Device time, or wall time where there is none.
    pub(super) fn time(&self) -> Option<Spread> {
        self.device.or(self.wall)
    }

    /// Samples × steps for each second of `time`.
    pub(super) fn rate(&self, time: Option<Spread>) -> Option<f64> {
        time.map(|t| self.batch as f64 / t.median)
    }
}

impl Results {
    /// Reads what [`Results::json`] wrote.
    pub(super) fn read(path: &Path) -> Result<Self> {
        read(path, "results of bench", SCHEMA)
    }

    /// With a newline at the end.
    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).map_err(|e| Error::Internal(e.to_string()))? + "\n")
    }

    /// The median of a probe.
    pub(super) fn probe(&self, name: &str) -> Option<f64> {
        self.probes.iter().find(|p| p.name == name).map(|p| p.value.median)
    }

    /// The adapter in a file name.
    pub(super) fn slug(&self) -> String {
        peers::slug(&self.device.name, &self.device.backend)
    }
}

impl Peers {
    /// Reads what `benches/peers` wrote.
    pub(super) fn read(path: &Path) -> Result<Self> {
        read(path, "figures of peers", peers::SCHEMA)
    }

    /// Whether they were measured where `results` were.
    pub(super) fn are_of(&self, results: &Results) -> bool {
        (&self.adapter.name, &self.adapter.backend) == (&results.device.name, &results.device.backend)
    }
}

/// Reads JSON of a schema.
fn read<T: DeserializeOwned>(path: &Path, what: &str, schema: u32) -> Result<T> {
    let fail = |detail: String| Error::Data { place: path.display().to_string(), detail };
    let text = data::read(path, MAX_BYTES)?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| fail(format!("no {what}: {e}")))?;
    match value.get("schema_version").and_then(serde_json::Value::as_u64) {
        Some(v) if v == u64::from(schema) => {}
        Some(v) => return Err(fail(format!("{what} of schema {v}; this program reads {schema}"))),
        None => return Err(fail(format!("no {what}: no schema_version"))),
    }
    serde_json::from_value(value).map_err(|e| fail(format!("no {what}: {e}")))
}

/// Writes a file, and the folders that it lies in.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        let fail = |e: std::io::Error| Error::Output { place: path.display().to_string(), detail: e.to_string() };
        fs::create_dir_all(folder).map_err(fail)?;
    }
    data::write_named(path, bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One row of each kind.
    pub(in super::super) fn sample() -> Results {
        let time = Spread { median: 2e-3, p10: 1e-3, p90: 3e-3 };
        let device = Device {
            name: "llvmpipe (LLVM 15.0.6, 256 bits)".into(),
            backend: "vulkan".into(),
            kind: "software".into(),
            driver: "Mesa".into(),
        };
        Results {
            schema_version: SCHEMA,
            version: "0.0.0".into(),
            device,
            clock: "process CPU time".into(),
            rounds: 3,
            probes: vec![ProbeRow { name: "fma".into(), unit: "GFLOP/s".into(), value: Spread::of(&[90.0]) }],
            kernels: vec![KernelRow {
                kernel: "conv2d_forward".into(),
                shape: "conv3x3s1-16-16-32x32".into(),
                variant: "naive".into(),
                tile: Some("2x4".into()),
                storage: "texture".into(),
                samples: 16,
                dispatches: 1,
                time,
                wall: time,
                gflops_per_s: Some(5.0),
                gbytes_per_s: 0.1,
                bound: "fma".into(),
                share: 0.05,
                speedup: Some(1.0),
            }],
            steps: vec![StepRow {
                network: "resnet20".into(),
                batch: 8,
                skipped: None,
                chunk: 8,
                rounds: 3,
                device: Some(time),
                wall: Some(time),
                other_share: Some(0.1),
                gflops_per_s: Some(10.0),
                start_up: 1.0,
                bytes_per_sample: 257_092,
                growth: Some(1.0),
            }],
            dispatches: vec![DispatchRow {
                network: "resnet20".into(),
                samples: 8,
                place: 3,
                kernel: "linear_forward".into(),
                layer: "fc".into(),
                time,
                share: 0.01,
                gflops_per_s: None,
            }],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn spreads_lie_between_measures() {
        assert_eq!(Spread::of(&[3.0]), Spread { median: 3.0, p10: 3.0, p90: 3.0 });
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]);
        assert!((spread.median - 2.5).abs() < 1e-12 && (spread.p10 - 1.3).abs() < 1e-12);
        assert!((spread.p90 - 3.7).abs() < 1e-12 && (spread.drift() - 3.7 / 1.3).abs() < 1e-12);
        let rate = spread.map(|s| 1.0 / s);
        assert!(rate.p10 < rate.median && rate.median < rate.p90);
    }

    #[test]
    fn json_is_read_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/results.json");
        let results = sample();
        write(&path, results.json().unwrap().as_bytes()).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(results.slug(), "llvmpipe-llvm-15-0-6-256-bits-vulkan");
        for (text, said) in [("{}", "schema_version"), ("{\"schema_version\": 99}", "schema 99"), ("[", "no results")] {
            write(&path, text.as_bytes()).unwrap();
            let error = Results::read(&path).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(said), "{error}");
        }
    }
}
