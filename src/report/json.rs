//! `report.json`: the figures of a run for other programs, and for this one when it is asked again. Fields keep their
//! order; a change that could break a reader raises the schema version.

use super::{Device, EpsRow, Figures, Identity, MinEps, Shard, Statistics};
use crate::data;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Largest file of the program's own that is read as JSON, in bytes: what is read takes several times as much memory.
pub(crate) const MAX_BYTES: u64 = 4 << 20;

/// Samples of a run are fewer than 2^32: their ids are words.
const MAX_SAMPLES: usize = u32::MAX as usize;

/// How long the parts of a run took, and how much work the attack was. Times of shards add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Reading weights and data.
    pub load_ms: f64,
    /// Opening the device and compiling its kernels.
    pub compile_ms: f64,
    /// Clean logits, all steps, and the check of what is delivered.
    pub attack_ms: f64,
    /// Steps taken, added up over all samples.
    pub sample_steps: u64,
    /// Samples for each second of the attack.
    pub images_per_s: Option<f64>,
    /// Steps for each second of the attack.
    pub sample_steps_per_s: Option<f64>,
}

impl Timing {
    /// Rates of `samples` images follow from the times.
    pub fn new(samples: usize, load: Duration, compile: Duration, attack: Duration, sample_steps: u64) -> Self {
        let [load_ms, compile_ms, attack_ms] = [load, compile, attack].map(|t| round(t.as_secs_f64() * 1e3));
        Timing { load_ms, compile_ms, attack_ms, sample_steps, ..Timing::default() }.rated(samples)
    }

    fn rated(mut self, samples: usize) -> Self {
        let per_second = |n: f64| (self.attack_ms > 0.0).then(|| round(1e3 * n / self.attack_ms));
        (self.images_per_s, self.sample_steps_per_s) =
            (per_second(samples as f64), per_second(self.sample_steps as f64));
        self
    }

    /// Times of two runs together, which attacked `samples` images.
    #[must_use]
    pub fn plus(self, other: Self, samples: usize) -> Self {
        Timing {
            load_ms: round(self.load_ms + other.load_ms),
            compile_ms: round(self.compile_ms + other.compile_ms),
            attack_ms: round(self.attack_ms + other.attack_ms),
            sample_steps: self.sample_steps.saturating_add(other.sample_steps),
            ..self
        }
        .rated(samples)
    }
}

fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// Shares that follow from the statistics; fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    clean_accuracy: Option<f64>,
    success_rate: Option<f64>,
    success_rate_float: Option<f64>,
    robust_accuracy: Option<f64>,
    robust_accuracy_float: Option<f64>,
    effective_eps: Option<f32>,
}

impl Rates {
    pub(super) fn new(statistics: &Statistics, effective_eps: f32) -> Self {
        Rates {
            clean_accuracy: statistics.clean_accuracy(),
            success_rate: statistics.success_rate(),
            success_rate_float: statistics.success_rate_float(),
            robust_accuracy: statistics.robust_accuracy(),
            robust_accuracy_float: statistics.robust_accuracy_float(),
            effective_eps: Some(effective_eps).filter(|e| e.is_finite()),
        }
    }
}

/// Everything that is known of a run that has ended, but for its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was run on what.
    #[serde(flatten)]
    pub identity: Identity,
    /// What came of it; at the largest radius where there are several.
    #[serde(flatten)]
    pub statistics: Statistics,
    #[serde(flatten)]
    rates: Rates,
    /// What came of each radius, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eps: Vec<EpsRow>,
    /// The smallest radii that turn samples, where they were looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_eps: Option<MinEps>,
    /// SHA-256 of the files beside the report that the others can be made from.
    pub files: BTreeMap<String, String>,
    /// What it ran on.
    pub device: Device,
    /// Where shards ran on several: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// How long it took.
    pub timing: Timing,
    /// Device memory at its peak; `None` when no device was used.
    pub gpu_bytes: Option<u64>,
}

impl Report {
    /// A report on `devices`, at least one, before there are files; rates follow from the statistics.
    pub(super) fn new(
        identity: Identity,
        figures: Figures,
        devices: Vec<Device>,
        timing: Timing,
        gpu_bytes: Option<u64>,
    ) -> Self {
        let config = &identity.config;
        let statistics = figures.whole;
        let rates = Rates::new(&statistics, config.effective_eps());
        let eps = EpsRow::all(config, &figures.radii);
        let min_eps = config.ladder.map(|ladder| MinEps::new(&ladder, figures.rungs, statistics.attacked));
        let device = devices[0].clone();
        let devices = if devices.len() > 1 { devices } else { Vec::new() };
        Report { identity, statistics, rates, eps, min_eps, files: BTreeMap::new(), device, devices, timing, gpu_bytes }
    }

    /// Reads `report.json`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |detail: String| Error::data(path.display().to_string(), detail);
        let bytes = data::read(path, MAX_BYTES)?;
        let report: Report =
            serde_json::from_slice(&bytes).map_err(|e| fail(format!("no report of this program: {e}")))?;
        if report.is_consistent() { Ok(report) } else { Err(fail("its figures contradict each other".into())) }
    }

    /// Whether its counts can be those of one run: what follows from them is then no matter of trust.
    fn is_consistent(&self) -> bool {
        let Identity { config, data, shard, .. } = &self.identity;
        let samples = self.identity.range().len();
        let whole = shard.is_none_or(|s| Shard::new(s.index, s.count, data.samples) == Ok(s));
        let counted = |s: &Statistics| s.samples == samples && s.parts().iter().all(|part| *part <= samples);
        let radii = self.eps.len() == config.radii.len() && self.eps.iter().all(|row| counted(&row.statistics));
        let rungs = match (&config.ladder, &self.min_eps) {
            (None, None) => true,
            (Some(ladder), Some(least)) => {
                let turned = least.counts.iter().try_fold(0_usize, |sum, n| sum.checked_add(*n));
                ladder.rungs > 0
                    && ladder.of > 0
                    && least.counts.len() == ladder.rungs as usize
                    && turned.is_some_and(|turned| turned <= samples)
            }
            _ => false,
        };
        whole && samples <= MAX_SAMPLES && counted(&self.statistics) && radii && rungs
    }

    /// What [`Report::new`] was given.
    pub(super) fn figures(&self) -> Figures {
        Figures {
            whole: self.statistics,
            radii: self.eps.iter().map(|row| row.statistics).collect(),
            rungs: self.min_eps.as_ref().map_or_else(Vec::new, |least| least.counts.clone()),
        }
    }

    /// All devices that the run was made on.
    pub fn all_devices(&self) -> &[Device] {
        if self.devices.is_empty() { std::slice::from_ref(&self.device) } else { &self.devices }
    }

    /// The file's text, without a newline at its end.
    pub fn json(&self) -> String {
        text(self)
    }
}

/// JSON for people: numbers as their own type writes them (an f32 of 0.3 is 0.3), infinity as null.
pub(crate) fn text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("maps with text for keys, and nothing that fails")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::config::tests::{device, identity};
    use super::super::statistics::tests::outcome;
    use super::*;
    use crate::model::Dims;

    pub(crate) fn report() -> Report {
        let statistics = Statistics::new(&outcome(Dims::new(1, 2, 2)));
        let times = [0, 0, 500].map(Duration::from_millis);
        let timing = Timing::new(4, times[0], times[1], times[2], 40);
        let files = BTreeMap::from([("adversarial.safetensors".to_string(), "cc".to_string())]);
        Report {
            files,
            ..Report::new(
                identity(4),
                Figures { whole: statistics, ..Figures::default() },
                vec![device()],
                timing,
                None,
            )
        }
    }

    #[test]
    fn a_report_keeps_its_fields_and_their_order() {
        let text = report().json();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "schema_version version math config model data shard samples clean_correct attacked successes \
                        successes_float robust robust_float max_perturbation max_l2 snapped zero_gradient_pixels \
                        samples_without_gradient nonfinite_samples clean_accuracy success_rate success_rate_float \
                        robust_accuracy robust_accuracy_float effective_eps files device timing gpu_bytes";
        assert_eq!(keys.join(" "), expected);
        let config: Vec<&str> = json["config"].as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "method norm loss targets targets_sha256 eps step_size steps restarts random_start momentum early_stop \
                        bounds quantize attack_all seed limit";
        assert_eq!(config.join(" "), expected);
        assert_eq!(json["config"]["eps"]["text"], "2/255");
        assert_eq!(json["timing"]["images_per_s"], 8.0);
        assert_eq!(json["timing"]["sample_steps_per_s"], 80.0);
        assert!(json["gpu_bytes"].is_null());
        assert!(text.contains("\"max_perturbation\": 0.007843138,"), "an f32 as it is written: {text}");
    }

    #[test]
    fn a_report_reads_as_it_was_written() {
        let report = report();
        let read: Report = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(read, report);
        assert_eq!(read.json(), report.json());
        // Older ones have no such key.
        let mut older: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        older.as_object_mut().unwrap().shift_remove("max_l2").unwrap();
        let older: Report = serde_json::from_value(older).unwrap();
        assert_eq!((older.statistics.max_l2, older.statistics.samples), (0.0, 4));
        for foreign in ["", "{}", "[1]", "{\"schema_version\": 1}"] {
            assert!(serde_json::from_str::<Report>(foreign).is_err());
        }
    }

    #[test]
    fn times_add_up_and_rates_follow() {
        let one = report().timing;
        let both = one.plus(one, 8);
        assert_eq!((both.attack_ms, both.sample_steps), (1000.0, 80));
        assert_eq!((both.images_per_s, both.sample_steps_per_s), (Some(8.0), Some(80.0)));
        assert_eq!(Timing::default().rated(3).images_per_s, None);
    }
}
