//! A sample as an engine is given it: all that its fate depends on but its image.

use super::loss::Loss;
use crate::error::{Error, Result};
use crate::model::Model;

/// One sample's own parameters. The same 64 bytes lie in WGSL's `Sample` (`shaders/sample.wgsl`). The default goes
/// nowhere: name what matters and end with `..Sample::default()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sample {
    /// Class whose loss is followed: the target, or the label.
    pub class: u32,
    /// Index in the whole data set; random numbers follow it.
    pub id: u32,
    /// Which restart this is; random numbers follow it.
    pub restart: u32,
    /// 1 where the first step is taken from a random place of the ball (of finite radius), 0 where from the clean
    /// image.
    pub start: u32,
    /// Radius of the ball in pixel units of [0, 1]; may be infinite.
    pub eps: f32,
    /// Step length in pixel units; 0 leaves the sample where it is. With [`Rule::Apgd`](super::Rule::Apgd) the first
    /// step's.
    pub step_size: f32,
    /// +1 ascends (untargeted), −1 descends (targeted), 0 leaves the sample where it is.
    pub direction: f32,
    /// Whole grey levels that what is delivered may differ from the clean image ([`budget`](super::budget); in L2 the
    /// sum of their squares, [`budget_l2`](super::budget_l2)). The steps do not look at it.
    pub levels: u32,
    /// The true class.
    pub label: u32,
    /// 1 where only `class` is a success, 0 where any class but `label` is.
    pub aimed: u32,
    /// Share of the accumulated gradient that is kept ([`Rule::Momentum`](super::Rule::Momentum),
    /// [`Rule::Lookahead`](super::Rule::Lookahead)).
    pub momentum: f32,
    /// Steps of the whole attack, however many calls they take: [`Rule::Apgd`](super::Rule::Apgd)'s schedule follows
    /// it.
    pub steps: u32,
    /// Steps over which [`Rule::Square`](super::Rule::Square)'s schedule is stretched.
    pub stretch: u32,
    /// Keeps whole vectors.
    pub unused: [u32; 3],
}

impl Sample {
    /// Whether its place in the ball is drawn at random before the first step.
    pub(crate) fn starts_at_random(&self) -> bool {
        self.start != 0
    }

    /// Whether there are its classes, and it may start where it is to start.
    fn check(&self, i: usize, classes: usize) -> Result<()> {
        let fail = |detail: String| Err(Error::data(format!("sample {i}"), detail));
        if self.class as usize >= classes {
            return fail(format!("class {}, but there are {classes} classes", self.class));
        }
        if self.label as usize >= classes {
            return fail(format!("label {}, but there are {classes} classes", self.label));
        }
        if self.starts_at_random() && !self.eps.is_finite() {
            return fail(format!("a random start in a ball of radius {}", self.eps));
        }
        Ok(())
    }

    /// Whether a prediction is what the sample's attack is after.
    pub(crate) fn is_reached_by(&self, predicted: u32) -> bool {
        if self.aimed == 0 { predicted != self.label } else { predicted == self.class }
    }
}

/// What an engine checks of the samples of `n` images before it follows `loss`.
pub(crate) fn check_samples(samples: &[Sample], n: usize, loss: Loss, model: &Model) -> Result<()> {
    if samples.len() != n {
        return Err(Error::data("samples", format!("{} for {n} images", samples.len())));
    }
    let classes = model.logits();
    samples.iter().enumerate().try_for_each(|(i, sample)| {
        sample.check(i, classes)?;
        loss.check(classes, sample.direction < 0.0)
    })
}

/// What it checks before it moves them: a step stays within a ball and within bounds only if these are some.
pub(crate) fn check_moves(samples: &[Sample], (lo, hi): (f32, f32)) -> Result<()> {
    if lo.is_nan() || hi.is_nan() || lo > hi {
        return Err(Error::Usage(format!("bounds {lo} to {hi}")));
    }
    for (i, s) in samples.iter().enumerate() {
        let fail = |detail: String| Err(Error::data(format!("sample {i}"), detail));
        if s.eps.is_nan() || s.eps < 0.0 {
            return fail(format!("eps {}", s.eps));
        }
        if !s.step_size.is_finite() || s.step_size < 0.0 {
            return fail(format!("a step of {}", s.step_size));
        }
        if ![-1.0, 0.0, 1.0].contains(&s.direction) {
            return fail(format!("direction {}: 1 ascends, -1 descends, 0 stays", s.direction));
        }
    }
    Ok(())
}

/// Pixels without a sign, added up over all steps of one call, must fit a word.
pub(crate) fn check_steps(steps: u32, model: &Model) -> Result<()> {
    if u64::from(steps) * model.input.len() as u64 > u64::from(u32::MAX) {
        return Err(Error::Usage(format!("{steps} steps are more than can be counted")));
    }
    Ok(())
}
