//! Engines: what an attack runs on, what it asks of them ([`Job`]), and what they answer.

use super::health::Health;
use super::loss::Loss;
use super::perturbation::{Fit, Perturbation, Source};
use super::rule::{Rule, Trail};
use super::sample::{Sample, check_moves, check_samples, check_steps};
use crate::error::{Error, Result};
use crate::model::Model;

/// Something that can run a [`Model`]: a GPU ([`crate::Network`]) or the f64 reference ([`crate::Reference`]).
pub trait Engine {
    /// The network that runs.
    fn model(&self) -> &Model;

    /// Logits of images `[N, C, H, W]`, N following from the length.
    ///
    /// # Errors
    /// Those of the device; [`Error::Data`] when the length is no multiple of an image.
    fn logits(&self, images: &[f32]) -> Result<Logits>;

    /// As [`Engine::logits`], for a caller who may wish to stop: `progress` is told of 0 sample-steps now and then,
    /// while others have the engine and between parts of the work, and stops it by answering `false`.
    ///
    /// # Errors
    /// As [`Engine::logits`], and [`Error::Cancelled`].
    fn logits_with(&self, images: &[f32], progress: &mut dyn FnMut(u64) -> bool) -> Result<Logits> {
        if progress(0) { self.logits(images) } else { Err(Error::Cancelled) }
    }

    /// Gradient of each sample's cross-entropy on its class with respect to its image.
    ///
    /// # Errors
    /// As [`Engine::logits`]; [`Error::Data`] for a class out of range.
    fn input_gradient(&self, images: &[f32], classes: &[u32]) -> Result<Gradient> {
        let one = |&class: &u32| Sample { class, label: class, direction: 1.0, ..Sample::default() };
        self.loss_gradient(images, &classes.iter().map(one).collect::<Vec<_>>(), Loss::CrossEntropy)
    }

    /// Gradient of each sample's `loss` with respect to its image: on [`Sample::class`], with [`Sample::label`] and
    /// [`Sample::direction`] where the loss looks at them.
    ///
    /// # Errors
    /// As [`Engine::input_gradient`]; [`Error::Usage`] where the network has too few classes for the loss.
    fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient>;

    /// Takes `steps` steps from `x0`, or from where an earlier call ended, each sample its own. `progress` is told how
    /// many sample-steps have ended since it was last called (0 where it is only asked whether to go on); when it
    /// answers `false` the run ends with [`Error::Cancelled`].
    ///
    /// # Errors
    /// As [`Engine::input_gradient`]; [`Error::Data`] for a sample whose eps, step size or direction is none;
    /// [`Error::Usage`] for bounds that are none, for more steps than can be counted, and where the rule is not there.
    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated>;

    /// Fits one perturbation to all samples of `fit`, whose clean images `images` gives: g ← Σ ∇ over the samples in
    /// their order, each at its clean image with the perturbation on it; then a step along the sign of g within the
    /// ball. The bits depend on the samples and their order, but not on how they are cut into chunks. A sample in which
    /// NaN or infinity arises is marked and adds nothing from then on. `progress` as in [`Engine::iterate`].
    ///
    /// # Errors
    /// As [`Engine::iterate`], those of `images`, and [`Error::Usage`] for samples that differ in eps or step size.
    fn fit(
        &self,
        fit: &Fit<'_>,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation>;
}

/// What [`Engine::logits`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[N, K]`
    pub logits: Vec<f32>,
    /// `[N]`
    pub health: Vec<Health>,
}

/// What [`Engine::input_gradient`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// `[N, C, H, W]`, with respect to pixels in [0, 1]
    pub gradient: Vec<f32>,
    /// `[N]`, loss of each sample (cross-entropy: natural logarithm)
    pub loss: Vec<f32>,
    /// `[N]`
    pub health: Vec<Health>,
}

/// A batch of attacks, all by one rule and one loss.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Clean images `[N, C, H, W]`.
    pub x0: &'a [f32],
    /// `[N]`
    pub samples: &'a [Sample],
    /// What is done with a gradient.
    pub rule: Rule,
    /// What is followed.
    pub loss: Loss,
    /// Iterations of this call.
    pub steps: u32,
    /// Smallest and largest value of a pixel.
    pub bounds: (f32, f32),
    /// Seed of random starts.
    pub seed: u64,
    /// Where an earlier call ended; `None` begins.
    pub from: Option<&'a Trail>,
    /// Whether a later call goes on from here: then [`Iterated::trail`] says where this one ended.
    pub goes_on: bool,
}

impl<'a> Job<'a> {
    /// `steps` sign steps on cross-entropy from the clean images, pixels within [0, 1].
    pub fn new(x0: &'a [f32], samples: &'a [Sample], steps: u32) -> Self {
        Job {
            x0,
            samples,
            rule: Rule::Sign,
            loss: Loss::CrossEntropy,
            steps,
            bounds: (0.0, 1.0),
            seed: 0,
            from: None,
            goes_on: false,
        }
    }

    /// What an engine checks before it runs, on `n` images.
    pub(crate) fn check(&self, n: usize, model: &Model) -> Result<()> {
        check_samples(self.samples, n, self.loss, model)?;
        check_moves(self.samples, self.bounds)?;
        check_steps(self.steps, model)?;
        let fail = |detail: String| Err(Error::Usage(detail));
        for (i, sample) in self.samples.iter().enumerate() {
            if matches!(self.rule, Rule::Fab(_)) && self.loss != Loss::Difference {
                return fail(format!("{:?} follows the difference of two logits, not {}", self.rule, self.loss.name()));
            }
            if self.rule.memory() == 0 {
                continue;
            }
            let taken = self.from.and_then(|t| t.states.get(i)).map_or(0, |s| s.iteration);
            let end = u64::from(taken) + u64::from(self.steps);
            let all = u64::from(sample.steps);
            if end > all || (end < all && !self.goes_on) {
                return fail(format!("sample {i}: a call to step {end} of {all}"));
            }
        }
        let Some(from) = self.from else { return Ok(()) };
        let n = self.samples.len();
        if from.states.len() != n
            || from.x.len() != self.x0.len()
            || from.memory.len() != self.rule.memory() * self.x0.len()
        {
            return fail(format!("a trail of {} samples for {n}, or of another rule", from.states.len()));
        }
        Ok(())
    }
}

/// What [`Engine::iterate`] gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Iterated {
    /// What would be delivered, were this the end: the last iterate, or what the rule remembers, `[N, C, H, W]`.
    pub images: Vec<f32>,
    /// `[N]`: pixels without a sign, added up over all steps.
    pub zero_gradients: Vec<u32>,
    /// `[N]`
    pub health: Vec<Health>,
    /// Where this call ended, if a later one goes on ([`Job::goes_on`]).
    pub trail: Option<Trail>,
}
