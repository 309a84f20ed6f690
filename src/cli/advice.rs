//! What a user should know beside a result.

use super::tell::{complain, warn};
use crate::attack::Norm;
use crate::report::{self, Distance, Radius, Report};
use std::path::Path;

/// What a user should know before trusting a result.
pub(super) fn advise(report: &Report) {
    let config = &report.identity.config;
    let only = [Radius { eps: config.eps.clone(), step_size: config.step_size.clone() }];
    let radii = if config.radii.is_empty() { &only[..] } else { &config.radii[..] };
    for Radius { eps, step_size } in radii {
        let reach = step_size.value * f64::from(config.steps);
        if config.method.has_step_size() && eps.value.is_finite() && reach < eps.value * (1.0 - 1e-9) {
            warn(format!("{} steps of {} do not reach eps {}", config.steps, step_size.text, eps.text));
        }
        advise_of_range(eps, config.norm == Norm::Linf, config.bounds);
        if config.delivers_bytes() {
            advise_of_radius(eps, f64::from(config.effective(eps.value)));
        }
    }
    advise_of_clean(report.statistics.clean_correct, report.statistics.samples);
    if config.delivers_bytes() {
        advise_of_snapping(report.statistics.snapped);
    }
    // A target is never the label, unless a file says so, or one class is for all.
    let own = report.statistics.clean_correct.saturating_sub(report.statistics.attacked);
    if own > 0 {
        warn(format!(
            "images whose target is their own label: {own}; not attacked, they count as robust and prove nothing"
        ));
    }
    let (marked, all) = (report.statistics.nonfinite_samples, report.statistics.samples);
    if marked > 0 {
        let what = "they are delivered as they were, marked in `health`, and count neither as turned nor as robust";
        warn(format!("NaN or infinity arose in {marked} of {all} images: {what}"));
    }
}

/// A radius that holds every image there is, by mistake more often than not.
pub(super) fn advise_of_range(eps: &Distance, is_linf: bool, bounds: Option<(f32, f32)>) {
    let Some((lo, hi)) = bounds else { return };
    let whole = f64::from(hi) - f64::from(lo);
    if is_linf && eps.value.is_finite() && eps.value > whole {
        let grey = if eps.value.fract() == 0.0 && eps.value <= 255.0 {
            format!("; {} of 255 grey levels are {}/255", eps.text, eps.text)
        } else {
            String::new()
        };
        warn(format!("eps {} is more than the whole range of a pixel, {whole}{grey}", eps.text));
    }
}

/// Hardly any image is right: labels of another order, or pixels as another network takes them.
pub(super) fn advise_of_clean(right: usize, samples: usize) {
    if right == 0 || (samples >= 20 && right * 10 <= samples) {
        let of = format!("only {right} of {samples} images are right when clean");
        warn(format!(
            "{of}: are these the labels of this network, and has it the mean and deviation that it was trained with?"
        ));
    }
}

/// What 8 bits do to a radius, of which `effective` can be delivered.
pub(super) fn advise_of_radius(eps: &Distance, effective: f64) {
    let levels = (effective * 255.0).round();
    if levels < 1.0 && eps.value > 0.0 {
        warn(format!(
            "eps {} is less than one of 255 grey levels: nothing can be delivered in 8 bits (see --no-quantize)",
            eps.text
        ));
    } else if eps.value <= 1.0 && (effective - eps.value).abs() > 1e-6 {
        warn(format!("8-bit images change by at most {levels}/255, not by eps {}", eps.text));
    }
}

/// What 8 bits did to clean images.
pub(super) fn advise_of_snapping(snapped: f32) {
    if let Some(what) = report::rounding(snapped) {
        complain("note", &what);
    }
}

/// Says what a complete folder lacks.
pub(super) fn tell_missing(out: &Path, report: &Report) {
    let missing = report::missing(out, report);
    if !missing.is_empty() {
        complain("note", &format!("{} lacks {}; --fresh runs it anew", out.display(), missing.join(", ")));
    }
}
