//! What makes no sense is refused before anything runs.

use super::loss::Loss;
use super::method::Method;
use super::norm::Norm;
use super::sample::check_steps;
use super::settings::{Attack, Own};
use super::targets::Targets;
use crate::error::{Error, Result};
use crate::model::Model;

/// The longest length in L2: f32 holds the square of twice as much.
const L2_MOST: f32 = 1e18;

impl Attack {
    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the parameter.
    pub fn validate(&self) -> Result<()> {
        let fail = |m: String| Err(Error::Usage(m));
        if self.eps.is_nan() || self.eps < 0.0 {
            return fail(format!("eps must be zero or more, but is {}", self.eps));
        }
        let name = self.method.name();
        if self.step_size.is_some() && !self.method.has_step_size() {
            return fail(format!("{name} has no step size"));
        }
        if self.method == Method::Square && self.eps.is_infinite() {
            return fail("square needs a finite eps".into());
        }
        if (self.loss == Loss::Difference) != (self.method == Method::FabT) {
            return fail(format!("{name} cannot follow the loss {}", self.loss.name()));
        }
        if self.eps.is_infinite() && self.step_size.is_none() && self.method.has_step_size() {
            return fail("with an infinite eps a step size must be given".into());
        }
        let a = self.effective_step_size();
        if !a.is_finite() || a < 0.0 {
            return fail(format!("the step size must be finite and zero or more, but is {a}"));
        }
        if self.steps == 0 {
            return fail("steps must be one or more".into());
        }
        if self.method == Method::Fgsm && self.steps != 1 {
            return fail(format!("fgsm takes one step, not {}: use ifgsm", self.steps));
        }
        if self.random_start && !self.method.can_start_at_random() {
            return fail(format!("{name} has no random start: use pgd"));
        }
        if (self.method.has_momentum() || self.method.shares_perturbation()) && self.norm != Norm::Linf {
            return fail(format!("{name} is for linf alone"));
        }
        // With more than one the accumulated gradient would grow until it is no number.
        if !(0.0..=1.0).contains(&self.momentum) {
            return fail(format!("the momentum must be a number from zero to one, but is {}", self.momentum));
        }
        let too_long = |length: f32| self.norm == Norm::L2 && length.is_finite() && length > L2_MOST;
        if let Some(long) = [self.eps, a].into_iter().find(|length| too_long(*length)) {
            return fail(format!("in l2 eps and the step size must be {L2_MOST:e} at most, but one is {long:e}"));
        }
        if self.method.chooses_targets() {
            if self.targets != Targets::None {
                return fail(format!("{name} chooses its targets itself: use apgd with targets"));
            }
            if self.classes == 0 {
                return fail(format!("{name} must aim at one class or more"));
            }
        }
        match self.stretch {
            Some(_) if self.method != Method::Square => return fail(format!("{name} has no schedule to stretch")),
            Some(0) => return fail("a schedule cannot be stretched over no steps".into()),
            _ => {}
        }
        if self.method.shares_perturbation() && (self.early_stop || !self.own.is_empty()) {
            let what = if self.early_stop { "stop early with an image" } else { "have an eps for each image" };
            return fail(format!("{name} cannot {what}: all share one perturbation"));
        }
        if self.perturbation.is_some() && !self.method.shares_perturbation() {
            return fail(format!("{name} takes no perturbation: use uap"));
        }
        for (i, own) in self.own.iter().enumerate() {
            let sound = |v: f32| v >= 0.0 && v.is_finite() && !too_long(v);
            if !sound(own.eps) || !sound(own.step_size) {
                let Own { eps, step_size, .. } = own;
                let most = if self.norm == Norm::L2 { format!(", and {L2_MOST:e} at most") } else { String::new() };
                return fail(format!(
                    "sample {i}: eps {eps} and step size {step_size} must be finite and zero or more{most}"
                ));
            }
        }
        let starts_at_random = self.random_start && (self.restarts > 1 || !self.method.begins_clean());
        if starts_at_random && self.eps.is_infinite() {
            return fail("a random start needs a finite eps".into());
        }
        if self.restarts == 0 {
            return fail("restarts must be one or more".into());
        }
        if self.restarts > 1 && !self.random_start && self.method != Method::Square {
            return fail(format!("{} restarts without a random start would all be the same", self.restarts));
        }
        if let Some((lo, hi)) = self.bounds {
            // NaN must fail too.
            if !(lo.is_finite() && hi.is_finite() && lo < hi) {
                return fail(format!("bounds {lo},{hi}: two finite numbers, the lower one first"));
            }
        }
        Ok(())
    }

    /// Checks what a network has no sense for, whatever the images; how often a sample is tried at most.
    pub(crate) fn check_on(&self, model: &Model) -> Result<u32> {
        self.check_perturbation(model.input.len())?;
        self.check_steps(model)?;
        self.countable_attempts(model.logits())
    }

    /// Checks a run of `n` samples before any image is looked at; how often a sample is tried at most.
    pub(super) fn check_run(&self, model: &Model, n: usize) -> Result<u32> {
        let attempts = self.check_on(model)?;
        if !self.own.is_empty() && self.own.len() != n {
            return Err(Error::Usage(format!(
                "{} samples have an eps of their own, but there are {n}",
                self.own.len()
            )));
        }
        Ok(attempts)
    }

    /// As [`check_steps`].
    pub(crate) fn check_steps(&self, model: &Model) -> Result<()> {
        check_steps(self.steps, model)
    }

    /// How often a sample is tried at most ([`Attack::attempts`]); a sample's restart is one word.
    fn countable_attempts(&self, classes: usize) -> Result<u32> {
        let attempts = self.attempts(classes);
        u32::try_from(attempts).map_err(|_| {
            let aims = attempts / u64::from(self.restarts);
            Error::Usage(format!("{} restarts for each of {aims} classes are more than can be counted", self.restarts))
        })
    }

    /// Whether a perturbation that was given can be put on images of so many values.
    pub(crate) fn check_perturbation(&self, len: usize) -> Result<()> {
        let Some(given) = &self.perturbation else { return Ok(()) };
        let fail = |detail: String| Err(Error::data("perturbation", detail));
        if given.values.len() != len {
            return fail(format!("{} values, but an image has {len}", given.values.len()));
        }
        match given.values.iter().position(|d| d.is_nan() || d.abs() > self.eps) {
            Some(i) => fail(format!("value {i} is {}, outside of eps {}", given.values[i], self.eps)),
            None => Ok(()),
        }
    }

    /// Pixels must lie within the bounds; NaN is the sample's own affair.
    pub(super) fn check_pixels(&self, images: &[f32], one: usize, first: usize) -> Result<()> {
        let Some((lo, hi)) = self.bounds else { return Ok(()) };
        match images.iter().position(|&x| x < lo || x > hi) {
            Some(i) => Err(Error::data(
                format!("sample {}", first + i / one),
                format!("pixel value {} is outside of the bounds {lo} to {hi}", images[i]),
            )),
            None => Ok(()),
        }
    }
}

/// Images must be as many as there are labels.
pub(super) fn check_images(model: &Model, images: &[f32], n: usize) -> Result<()> {
    let one = model.input.len();
    if images.len() == n * one {
        return Ok(());
    }
    let detail = format!("{} values for {n} labels, but an image is {} = {one}", images.len(), model.input);
    Err(Error::data("images", detail))
}

/// Labels must be classes.
pub(crate) fn check_labels(model: &Model, labels: &[i64]) -> Result<()> {
    let k = model.logits();
    match labels.iter().position(|&y| y < 0 || y >= k as i64) {
        Some(i) => Err(Error::data(format!("sample {i}"), format!("label {} with {k} classes", labels[i]))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_beyond_the_bounds_are_told_by_their_sample_in_the_whole_set() {
        let attack = Attack::ifgsm(0.1);
        let told = |images: &[f32], first| attack.check_pixels(images, 2, first).map_err(|e| e.to_string());
        assert_eq!(told(&[0.0, 1.0, f32::NAN, 0.5], 0), Ok(()));
        assert!(told(&[0.0, 0.5, 0.5, 1.5], 40).unwrap_err().contains("sample 41: pixel value 1.5"));
        assert!(told(&[-0.5, 0.5], 40).unwrap_err().contains("sample 40: pixel value -0.5"));
    }
}
