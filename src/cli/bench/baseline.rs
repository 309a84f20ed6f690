//! This run beside an earlier one of the same adapter.

use super::results::{Results, StepRow};
use crate::cli::tell::counted;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Reads `5%` or `0.05`.
pub(super) fn threshold(text: &str) -> Result<f64> {
    let fail = || Error::Usage(format!("--fail-over {text}: not a share such as 5% or 0.05"));
    let (number, scale) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |n| (n.trim(), 0.01));
    let value = number.parse::<f64>().map_err(|_| fail())? * scale;
    // 5 is more likely to be meant for 5% than for six times as slow.
    let is_share = value.is_finite() && value >= 0.0 && (scale < 1.0 || value <= 1.0);
    if is_share { Ok(value) } else { Err(fail()) }
}

/// Refuses results that are of another adapter than `now`.
pub(super) fn check(before: &Results, now: &Results) -> Result<()> {
    let same = before.device.name == now.device.name
        && before.device.backend == now.device.backend
        && before.clock == now.clock;
    if same {
        return Ok(());
    }
    let of = |r: &Results| format!("{} ({}), {}", r.device.name, r.device.backend, r.clock);
    Err(Error::Usage(format!("--baseline: results of {}, but this is {}", of(before), of(now))))
}

/// Medians by what they are of. On a software adapter they are told in operations of the run's own fma probe: its
/// machine is shared, and the same code takes another time at another hour.
fn medians(results: &Results) -> BTreeMap<String, f64> {
    let unit = match results.probe("fma") {
        Some(rate) if results.device.kind == "software" => rate,
        _ => 1.0,
    };
    let kernels = results.kernels.iter().map(|r| (r.key(), r.time.median));
    let steps = results.steps.iter().filter_map(|r| Some((r.key(), r.time()?.median)));
    kernels.chain(steps).map(|(key, seconds)| (key, seconds * unit)).collect()
}

/// Tells how many rows were compared; those that are slower by more than `threshold` are an error.
pub(super) fn compare(before: &Results, now: &Results, threshold: f64) -> Result<String> {
    check(before, now)?;
    let (old, new) = (medians(before), medians(now));
    let both: Vec<(&String, f64)> =
        new.iter().filter_map(|(key, now)| Some((key, now / old.get(key)? - 1.0))).collect();
    if both.is_empty() {
        return Err(Error::Usage("--baseline: it has no row in common with this run".into()));
    }
    let left_out: Vec<String> = now.steps.iter().filter(|r| r.skipped.is_some()).map(StepRow::key).collect();
    let left_out: Vec<String> = left_out.into_iter().filter(|key| old.contains_key(key)).collect();
    if !left_out.is_empty() {
        return Err(Error::Threshold(format!(
            "left out for their time, but not in the baseline: {}",
            left_out.join("; ")
        )));
    }
    let mut slower: Vec<_> = both.iter().filter(|(_, c)| c.is_nan() || *c > threshold).collect();
    slower.sort_by(|a, b| b.1.total_cmp(&a.1));
    if slower.is_empty() {
        let change = both.iter().map(|(_, change)| *change).fold(f64::MIN, f64::max);
        let rows = counted(both.len() as u64, "row", "rows");
        return Ok(format!("{rows} beside the baseline; the worst change is {:+.1} %", 100.0 * change));
    }
    let rows: Vec<String> = slower.iter().map(|(key, change)| format!("{key} {:+.1} %", 100.0 * change)).collect();
    Err(Error::Threshold(format!(
        "{} of {} slower than the baseline by more than {:.1} %: {}",
        slower.len(),
        counted(both.len() as u64, "row", "rows"),
        100.0 * threshold,
        rows.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn slower_rows_fail_and_a_slower_machine_does_not() {
        let before = sample();
        assert!(compare(&before, &before, 0.0).unwrap().starts_with("2 rows"));
        let one = Results { steps: Vec::new(), ..before.clone() };
        assert!(compare(&before, &one, 0.0).unwrap().starts_with("1 row "));
        let mut slower = before.clone();
        slower.kernels[0].time.median *= 1.2;
        let error = compare(&before, &slower, 0.05).unwrap_err();
        assert!(
            error.exit_code() == 1 && error.to_string().contains("conv2d_forward conv3x3s1-16-16-32x32"),
            "{error}"
        );
        assert!(error.to_string().contains("+20.0 %") && error.to_string().contains("1 of 2 rows"), "{error}");
        assert!(compare(&before, &slower, 0.25).is_ok());
        // Everything twice as slow, the probe too.
        let mut machine = before.clone();
        machine.probes[0].value.median /= 2.0;
        machine.kernels[0].time.median *= 2.0;
        machine.steps[0].device.as_mut().unwrap().median *= 2.0;
        assert!(compare(&before, &machine, 0.01).is_ok());
        // On hardware that is no excuse.
        let hardware = |r: &Results| {
            let mut r = r.clone();
            r.device.kind = "discrete".into();
            r
        };
        assert_eq!(compare(&hardware(&before), &hardware(&machine), 0.01).unwrap_err().exit_code(), 1);
        let mut left_out = before.clone();
        left_out.steps[0].skipped = Some("it takes too long".into());
        let error = compare(&before, &left_out, 10.0).unwrap_err();
        assert!(error.exit_code() == 1 && error.to_string().contains("left out for their time"), "{error}");
        let mut nan = before.clone();
        nan.kernels[0].time.median = f64::NAN;
        assert_eq!(compare(&before, &nan, 10.0).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn other_adapters_and_other_rows_are_refused() {
        let before = sample();
        let mut other = before.clone();
        other.device.name = "another".into();
        assert_eq!(compare(&before, &other, 0.1).unwrap_err().exit_code(), 2);
        let mut none = before.clone();
        none.kernels.clear();
        none.steps.clear();
        assert_eq!(compare(&before, &none, 0.1).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn thresholds_are_shares() {
        assert_eq!(threshold("5%").unwrap(), 0.05);
        assert_eq!((threshold("0.5").unwrap(), threshold("150%").unwrap()), (0.5, 1.5));
        for bad in ["", "%", "-1%", "nan", "x", "inf", "5"] {
            assert_eq!(threshold(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
