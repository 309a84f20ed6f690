//! `report.json`: the figures of a run for other programs. Fields keep their order; a change that could break a reader
//! raises `SCHEMA_VERSION`.

use super::{Config, Distance, Run, Statistics, decimal};
use serde_json::{Map, Value, json};
use std::time::Duration;

const SCHEMA_VERSION: u32 = 1;

/// The report of a run.
pub fn report(run: &Run<'_>) -> Value {
    let s = Statistics::new(run.outcome);
    let mut map = identity(run);
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("clean_correct", json!(s.clean_correct));
    put("clean_accuracy", json!(s.clean_accuracy()));
    put("attacked", json!(s.attacked));
    put("successes", json!(s.successes));
    put("success_rate", json!(s.success_rate()));
    put("success_rate_float", json!(s.success_rate_float()));
    put("robust_accuracy", json!(s.robust_accuracy));
    put("robust_accuracy_float", json!(s.robust_accuracy_float));
    put("max_perturbation", json!(decimal(s.max_perturbation)));
    put("effective_eps", finite(decimal(run.outcome.effective_eps)));
    put("zero_gradient_pixels", json!(s.zero_gradient_pixels));
    put("samples_without_gradient", json!(s.samples_without_gradient));
    put("nonfinite_samples", json!(s.nonfinite_samples));
    let d = run.device;
    put("device", json!({ "name": d.name, "backend": d.backend, "kind": d.kind, "driver": d.driver }));
    let t = run.timing;
    let per_second = |n: f64| if t.attack.is_zero() { Value::Null } else { json!(round(n / t.attack.as_secs_f64())) };
    put(
        "timing",
        json!({
            "load_ms": ms(t.load),
            "compile_ms": ms(t.compile),
            "attack_ms": ms(t.attack),
            "images_per_s": per_second(s.samples as f64),
            "sample_steps_per_s": per_second(t.sample_steps as f64),
        }),
    );
    put("gpu_bytes", json!(run.gpu_bytes));
    Value::Object(map)
}

/// The part of a report that says what was run. A folder holds the results of one identity only.
fn identity(run: &Run<'_>) -> Map<String, Value> {
    let samples = run.outcome.len();
    let Value::Object(map) = json!({
        "schema_version": SCHEMA_VERSION,
        "version": env!("CARGO_PKG_VERSION"),
        "math": run.device.math,
        "config": config(run.config),
        "model": { "arch": run.model.arch, "sha256": run.model_sha256, "parameters": run.model.parameters() },
        "data": { "source": run.data_source, "sha256": run.data_sha256, "samples": samples },
        "samples": samples,
    }) else {
        return Map::new();
    };
    map
}

/// What an earlier report must have in common with a run for its folder to be written again.
pub(super) fn same_run(
    earlier: &Value,
    config: &Config,
    math: &str,
    model_sha256: &str,
    data_sha256: &str,
    samples: usize,
) -> bool {
    earlier["schema_version"] == json!(SCHEMA_VERSION)
        && earlier["math"] == json!(math)
        && earlier["config"] == self::config(config)
        && earlier["model"]["sha256"] == json!(model_sha256)
        && earlier["data"]["sha256"] == json!(data_sha256)
        && earlier["samples"] == json!(samples)
}

fn config(c: &Config) -> Value {
    json!({
        "method": c.method.name(),
        "norm": "linf",
        "loss": "ce",
        "targets": c.targets,
        "targets_sha256": c.targets_sha256,
        "eps": distance(&c.eps),
        "step_size": distance(&c.step_size),
        "steps": c.steps,
        "bounds": c.bounds.map(|(lo, hi)| [decimal(lo), decimal(hi)]),
        "quantize": c.quantise,
        "attack_all": c.attack_all,
        "seed": c.seed,
        "limit": c.limit,
    })
}

fn distance(d: &Distance) -> Value {
    json!({ "text": d.text, "value": finite(d.value) })
}

/// JSON has no infinity: null stands for it, the text beside says `inf`.
fn finite(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { Value::Null }
}

fn ms(d: Duration) -> f64 {
    round(d.as_secs_f64() * 1e3)
}

fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::super::tests::with_run;
    use super::*;
    use crate::model::Dims;

    #[test]
    fn a_report_keeps_its_fields_and_their_order() {
        let report = with_run(Dims::new(1, 2, 2), report);
        let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "schema_version version math config model data samples clean_correct clean_accuracy attacked \
                        successes success_rate success_rate_float robust_accuracy robust_accuracy_float \
                        max_perturbation effective_eps zero_gradient_pixels samples_without_gradient \
                        nonfinite_samples device timing gpu_bytes";
        assert_eq!(keys.join(" "), expected);
        assert_eq!(report["config"]["eps"]["text"], "2/255");
        assert_eq!(report["timing"]["images_per_s"], 8.0);
        assert_eq!(report["timing"]["sample_steps_per_s"], 80.0);
        assert!(report["gpu_bytes"].is_null());
    }

    #[test]
    fn another_configuration_is_told_apart() {
        with_run(Dims::new(1, 2, 2), |run| {
            let earlier = report(run);
            assert!(same_run(&earlier, run.config, "f64", "aa", "bb", 4));
            assert!(!same_run(&earlier, run.config, "f32", "aa", "bb", 4));
            assert!(!same_run(&earlier, run.config, "f64", "aa", "bb", 5));
            assert!(!same_run(&earlier, run.config, "f64", "ab", "bb", 4));
            assert!(!same_run(&earlier, &Config { seed: 8, ..run.config.clone() }, "f64", "aa", "bb", 4));
            assert!(!same_run(&Value::Null, run.config, "f64", "aa", "bb", 4));
        });
    }
}
