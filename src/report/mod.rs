//! What came of a run, in numbers, text and pictures: statistics of an [`Outcome`], `report.json`, the table, the
//! contact sheet and the output folder. Nothing here runs a network.

mod folder;
mod json;
mod sheet;
mod table;
mod tensors;

pub use folder::Folder;
pub use json::report as json;
pub use sheet::sheet;
pub use table::{blank, table};

use crate::attack::{Method, Outcome};
use crate::model::Model;
use std::time::Duration;

/// A pixel distance as it was written, and its value in pixel units of [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Distance {
    /// `8/255`, `0.3`, `inf`
    pub text: String,
    /// May be infinite.
    pub value: f64,
}

/// What was asked for, after defaults were filled in. Two runs with the same of everything here, the same model and the
/// same data write the same bytes on the same adapter; so neither device nor batch size is part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which attack.
    pub method: Method,
    /// As the command line writes it; `file` for classes read from a file.
    pub targets: String,
    /// SHA-256 of those classes, if they came from a file.
    pub targets_sha256: Option<String>,
    /// L∞ radius.
    pub eps: Distance,
    /// Step length.
    pub step_size: Distance,
    /// Number of iterations.
    pub steps: u32,
    /// Smallest and largest pixel value, if there are any.
    pub bounds: Option<(f32, f32)>,
    /// Whether 8-bit values were asked for.
    pub quantise: bool,
    /// Whether samples that are wrong when clean were stepped as well.
    pub attack_all: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Largest number of samples read, if it was limited.
    pub limit: Option<usize>,
}

/// What the attack ran on.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// The adapter's name, or `reference`.
    pub name: String,
    /// `vulkan`, `metal`, …; `cpu` for the reference.
    pub backend: String,
    /// `discrete`, `integrated`, `software`, …
    pub kind: String,
    /// Driver and version.
    pub driver: String,
    /// Arithmetic of the network: `f32`, or `f64` for the reference.
    pub math: &'static str,
}

/// How long the parts of a run took, and how much work the attack was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Reading weights and data.
    pub load: Duration,
    /// Opening the device and compiling its kernels.
    pub compile: Duration,
    /// Clean logits, all steps, and the check of what is delivered.
    pub attack: Duration,
    /// Steps taken, added up over all samples.
    pub sample_steps: u64,
}

/// Everything that a report is made of.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// What it ran on.
    pub device: &'a Device,
    /// The network.
    pub model: &'a Model,
    /// SHA-256 of the weights file.
    pub model_sha256: &'a str,
    /// Where the images came from, as the data's reader names it.
    pub data_source: &'a str,
    /// SHA-256 of the data.
    pub data_sha256: &'a str,
    /// Names of the classes; may be empty or too short, numbers stand in.
    pub classes: &'a [String],
    /// What came of it.
    pub outcome: &'a Outcome,
    /// How long it took.
    pub timing: Timing,
    /// Device memory at its peak; `None` when no device was used.
    pub gpu_bytes: Option<u64>,
}

impl Run<'_> {
    /// True when what was delivered is k/255 throughout.
    fn delivers_bytes(&self) -> bool {
        self.config.quantise && self.config.bounds == Some((0.0, 1.0))
    }

    /// Name of a class, or its number.
    pub fn class(&self, class: i64) -> String {
        let named = usize::try_from(class).ok().and_then(|k| self.classes.get(k));
        named.cloned().unwrap_or_else(|| class.to_string())
    }
}

/// Counts and rates of an outcome. Rates are fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// All of them.
    pub samples: usize,
    /// Right when clean.
    pub clean_correct: usize,
    /// Right when clean and, when targeted, with a target that is not the label.
    pub attacked: usize,
    /// Attacked with success, as delivered.
    pub successes: usize,
    /// The same for the float iterate.
    pub successes_float: usize,
    /// Right when clean and still right as delivered, over all samples.
    pub robust_accuracy: f64,
    /// The same for the float iterate.
    pub robust_accuracy_float: f64,
    /// Largest |delivered − clean|.
    pub max_perturbation: f32,
    /// Pixels without a sign, added up over all steps of all samples that were stepped.
    pub zero_gradient_pixels: u64,
    /// Stepped samples that never had a gradient at all: for them the attack says nothing.
    pub samples_without_gradient: usize,
    /// Samples in which NaN or infinity arose.
    pub nonfinite_samples: usize,
}

impl Statistics {
    /// Counts.
    pub fn new(outcome: &Outcome) -> Self {
        let count = |flags: &[bool]| flags.iter().filter(|f| **f).count();
        let pixels = (outcome.clean.len() / outcome.len().max(1)) as u64;
        let without = |i: &usize| outcome.zero_gradients[*i] >= pixels * outcome.steps_taken[*i];
        Statistics {
            samples: outcome.len(),
            clean_correct: count(&outcome.clean_correct),
            attacked: count(&outcome.attacked),
            successes: count(&outcome.success),
            successes_float: count(&outcome.success_float),
            robust_accuracy: outcome.robust_accuracy(),
            robust_accuracy_float: outcome.robust_accuracy_float(),
            max_perturbation: outcome.linf.iter().copied().fold(0.0, f32::max),
            zero_gradient_pixels: outcome.zero_gradients.iter().sum(),
            samples_without_gradient: (0..outcome.len())
                .filter(|i| outcome.steps_taken[*i] > 0)
                .filter(without)
                .count(),
            nonfinite_samples: outcome.health.iter().filter(|h| !h.is_healthy()).count(),
        }
    }

    /// Right when clean, over all samples.
    pub fn clean_accuracy(&self) -> Option<f64> {
        rate(self.clean_correct, self.samples)
    }

    /// Successes over attacked samples, as delivered; `None` when none was attacked.
    pub fn success_rate(&self) -> Option<f64> {
        rate(self.successes, self.attacked)
    }

    /// The same for the float iterate.
    pub fn success_rate_float(&self) -> Option<f64> {
        rate(self.successes_float, self.attacked)
    }
}

fn rate(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The value of an f32 as its shortest decimal says it: 0.3, not 0.30000001192092896.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// A distance of [0, 1] in words: `76/255` when it is one of 8 bits, else a decimal.
fn levels(x: f32) -> String {
    let k = f64::from(x) * 255.0;
    if x.is_finite() && (k - k.round()).abs() < 1e-3 {
        format!("{}/255", k.round())
    } else {
        let rounded = format!("{x:.4}");
        rounded.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::attack::Health;
    use crate::model::{Dims, Layer};

    /// Four samples of two classes: turned, held, wrong when clean, turned in float only.
    pub(crate) fn outcome(dims: Dims) -> Outcome {
        let len = dims.len();
        let clean = vec![51.0 / 255.0; 4 * len];
        let mut adversarial = clean.clone();
        adversarial[0] = 53.0 / 255.0;
        Outcome {
            clean,
            snapped: 0.0,
            adversarial,
            labels: vec![0, 1, 0, 1],
            targets: vec![1, 0, 1, 0],
            clean_logits: vec![2.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            adversarial_logits: vec![0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            float_logits: vec![0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0],
            clean_correct: vec![true, true, false, true],
            attacked: vec![true, true, false, true],
            success: vec![true, false, false, false],
            success_float: vec![true, false, false, true],
            loss: vec![0.3; 4],
            linf: vec![2.0 / 255.0, 0.0, 0.0, 0.0],
            l2: vec![2.0 / 255.0, 0.0, 0.0, 0.0],
            zero_gradients: vec![1, 10 * len as u64, 0, 0],
            restart: vec![0; 4],
            steps_taken: vec![10, 10, 0, 10],
            health: vec![Health::default(); 4],
            effective_eps: 2.0 / 255.0,
        }
    }

    pub(crate) fn config() -> Config {
        Config {
            method: Method::Ifgsm,
            targets: "next".into(),
            targets_sha256: None,
            eps: Distance { text: "2/255".into(), value: 2.0 / 255.0 },
            step_size: Distance { text: "0.5/255".into(), value: 0.5 / 255.0 },
            steps: 10,
            bounds: Some((0.0, 1.0)),
            quantise: true,
            attack_all: false,
            seed: 7,
            limit: None,
        }
    }

    /// Calls `f` with a run on made-up images of `dims`.
    pub(crate) fn with_run<T>(dims: Dims, f: impl FnOnce(&Run<'_>) -> T) -> T {
        let model = Model {
            arch: "custom".into(),
            input: dims,
            layers: vec![Layer::Flatten],
            params: Default::default(),
            classes: vec![],
            eps: None,
            step_size: None,
        };
        let device = Device {
            name: "reference".into(),
            backend: "cpu".into(),
            kind: "software".into(),
            driver: String::new(),
            math: "f64",
        };
        let (config, outcome) = (config(), outcome(dims));
        f(&Run {
            config: &config,
            device: &device,
            model: &model,
            model_sha256: "aa",
            data_source: "made up",
            data_sha256: "bb",
            classes: &["cat".into(), "dog".into()],
            outcome: &outcome,
            timing: Timing { attack: Duration::from_millis(500), sample_steps: 40, ..Timing::default() },
            gpu_bytes: None,
        })
    }

    #[test]
    fn statistics_tell_delivered_from_float_and_attacked_from_all() {
        let s = Statistics::new(&outcome(Dims::new(1, 2, 3)));
        assert_eq!((s.samples, s.clean_correct, s.attacked, s.successes, s.successes_float), (4, 3, 3, 1, 2));
        assert_eq!(s.success_rate(), Some(1.0 / 3.0));
        assert_eq!(s.success_rate_float(), Some(2.0 / 3.0));
        assert_eq!(s.robust_accuracy, 0.5);
        assert_eq!(s.robust_accuracy_float, 0.25);
        // The sample that is wrong when clean has no gradient either, but was not stepped.
        assert_eq!((s.zero_gradient_pixels, s.samples_without_gradient), (61, 1));
    }

    #[test]
    fn no_rate_without_attacked_samples() {
        let mut o = outcome(Dims::new(1, 1, 1));
        o.attacked = vec![false; 4];
        assert_eq!(Statistics::new(&o).success_rate(), None);
    }

    #[test]
    fn distances_read_as_grey_levels_where_they_are() {
        assert_eq!(levels(76.0 / 255.0), "76/255");
        assert_eq!(levels(0.3), "0.3");
        assert_eq!(levels(0.0), "0/255");
        assert_eq!(decimal(0.3), 0.3);
    }
}
