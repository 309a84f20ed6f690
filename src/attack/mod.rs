//! The attack: what is asked for ([`Attack`]), what runs it ([`Engine`]), what comes out ([`Outcome`]).
//!
//! Everything an image's fate depends on is its own: label, target, eps, step size, random numbers, health. Nothing here
//! looks at two samples at once.

mod quantise;
mod random;
mod run;

pub use quantise::{budget, quantise, snap};
pub use random::{Stream, philox};

use crate::error::{Error, Result};
use crate::model::Model;
use std::str::FromStr;

/// Something that can run a [`Model`]: a GPU ([`crate::Network`]) or the f64 reference ([`crate::Reference`]).
pub trait Engine {
    /// The network that runs.
    fn model(&self) -> &Model;

    /// Logits of images `[N, C, H, W]`, N following from the length.
    ///
    /// # Errors
    /// Those of the device; [`Error::Data`] when the length is no multiple of an image.
    fn logits(&self, images: &[f32]) -> Result<Logits>;

    /// Gradient of each sample's cross-entropy on its class with respect to its image.
    ///
    /// # Errors
    /// As [`Engine::logits`]; [`Error::Data`] for a class out of range.
    fn input_gradient(&self, images: &[f32], classes: &[u32]) -> Result<Gradient>;

    /// Takes `steps` sign-gradient steps from `x0`, each sample its own. `progress` is told how many sample-steps have
    /// ended since it was last called; when it answers `false` the run ends with [`Error::Cancelled`].
    ///
    /// # Errors
    /// As [`Engine::logits`].
    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated>;
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
    /// `[N]`, cross-entropy of each sample on its class, natural logarithm
    pub loss: Vec<f32>,
    /// `[N]`
    pub health: Vec<Health>,
}

/// A batch of sign-step attacks.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Clean images `[N, C, H, W]`.
    pub x0: &'a [f32],
    /// `[N]`
    pub samples: &'a [Sample],
    /// Iterations.
    pub steps: u32,
    /// Smallest and largest value of a pixel.
    pub bounds: (f32, f32),
    /// Seed of random starts.
    pub seed: u64,
}

/// One sample's own parameters. The same 32 bytes lie in WGSL's `Sample` (`shaders/step.wgsl`). The default goes nowhere:
/// name what matters and end with `..Sample::default()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sample {
    /// Class whose cross-entropy is followed: the target, or the label.
    pub class: u32,
    /// Index in the whole data set; random numbers follow it.
    pub id: u32,
    /// Which restart this is; random numbers follow it.
    pub restart: u32,
    /// 1 where the first step is taken from a random place of the ball (of finite radius), 0 where from the clean image.
    pub start: u32,
    /// L∞ radius in pixel units of [0, 1]; may be infinite.
    pub eps: f32,
    /// Step length in pixel units; 0 leaves the sample where it is.
    pub step_size: f32,
    /// +1 ascends (untargeted), −1 descends (targeted).
    pub direction: f32,
    /// Whole grey levels that what is delivered may differ from the clean image ([`budget`]). The steps do not look at it.
    pub levels: u32,
}

impl Sample {
    /// Whether its place in the ball is drawn at random before the first step.
    pub(crate) fn starts_at_random(&self) -> bool {
        self.start != 0
    }

    /// What an engine checks before it runs sample `i` in a network of `classes`.
    pub(crate) fn check(&self, i: usize, classes: usize) -> Result<()> {
        let fail = |detail: String| Err(Error::data(format!("sample {i}"), detail));
        if self.class as usize >= classes {
            return fail(format!("class {}, but there are {classes} classes", self.class));
        }
        if self.starts_at_random() && !self.eps.is_finite() {
            return fail(format!("a random start in a ball of radius {}", self.eps));
        }
        Ok(())
    }
}

/// What [`Engine::iterate`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Iterated {
    /// Last iterate, `[N, C, H, W]`.
    pub images: Vec<f32>,
    /// `[N]`: pixels without a sign, added up over all steps.
    pub zero_gradients: Vec<u32>,
    /// `[N]`
    pub health: Vec<Health>,
}

/// Where NaN or infinity arose in a sample; nothing set means healthy.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Health(pub u32);

impl Health {
    /// In an activation of the forward pass.
    pub const ACTIVATION: Health = Health(1);
    /// In the logits or the loss.
    pub const LOGITS: Health = Health(2);
    /// In the gradient.
    pub const GRADIENT: Health = Health(4);

    /// True when nothing is marked.
    pub fn is_healthy(self) -> bool {
        self.0 == 0
    }

    /// Where the first mark was made, in words.
    pub fn describe(self) -> &'static str {
        match self.0 {
            0 => "healthy",
            bits if bits & 1 != 0 => "an activation is NaN or infinite",
            bits if bits & 2 != 0 => "a logit or the loss is NaN or infinite",
            _ => "the input gradient is NaN or infinite",
        }
    }
}

/// Which attack of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One step of length eps (Goodfellow et al. 2015, arXiv:1412.6572).
    Fgsm,
    /// Iterative FGSM, also called BIM (Kurakin et al. 2017, arXiv:1607.02533): no random start.
    Ifgsm,
    /// Projected gradient descent (Madry et al. 2018, arXiv:1706.06083): as `ifgsm`, from a random place of the ball, as
    /// often as there are restarts.
    Pgd,
}

impl Method {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Fgsm => "fgsm",
            Method::Ifgsm => "ifgsm",
            Method::Pgd => "pgd",
        }
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = [Method::Fgsm, Method::Ifgsm, Method::Pgd];
        let wrong = || Error::Usage(format!("no method {name:?}; there are fgsm, ifgsm and pgd"));
        known.into_iter().find(|m| m.name() == name).ok_or_else(wrong)
    }
}

/// What the size of a perturbation is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Norm {
    /// The largest change of any pixel value.
    #[default]
    Linf,
}

impl Norm {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Norm::Linf => "linf",
        }
    }
}

impl FromStr for Norm {
    type Err = Error;

    /// In any case.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "linf" => Ok(Norm::Linf),
            _ => Err(Error::Usage(format!("no norm {name:?}; there is linf"))),
        }
    }
}

/// What the attack aims at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Untargeted: any class but the label.
    None,
    /// Uniform over the classes that are not the label, by the sample's own random number.
    Random,
    /// (label + 1) mod K.
    Next,
    /// The class, not the label, with the lowest clean logit; ties to the lowest index.
    LeastLikely,
    /// The class, not the label, with the highest clean logit; ties to the lowest index.
    Second,
    /// One class a sample; −1 attacks that sample untargeted.
    Classes(Vec<i64>),
}

/// A configured attack. Start with [`Attack::fgsm`], [`Attack::ifgsm`] or [`Attack::pgd`], end with [`Attack::run`].
#[derive(Clone, Debug, PartialEq)]
pub struct Attack {
    method: Method,
    norm: Norm,
    eps: f32,
    step_size: Option<f32>,
    steps: u32,
    random_start: bool,
    restarts: u32,
    targets: Targets,
    bounds: Option<(f32, f32)>,
    quantise: bool,
    attack_all: bool,
    seed: u64,
    first_id: u64,
}

impl Attack {
    /// Fast gradient sign method: one step of length `eps` (L∞ radius, pixel units of [0, 1]).
    pub fn fgsm(eps: f32) -> Self {
        Attack { method: Method::Fgsm, steps: 1, ..Self::ifgsm(eps) }
    }

    /// Iterative FGSM inside the L∞ ball of radius `eps` (pixel units of [0, 1]): ten steps of 2.5·eps/steps unless
    /// told otherwise, untargeted, delivered in 8 bits.
    pub fn ifgsm(eps: f32) -> Self {
        Attack {
            method: Method::Ifgsm,
            norm: Norm::Linf,
            eps,
            step_size: None,
            steps: 10,
            random_start: false,
            restarts: 1,
            targets: Targets::None,
            bounds: Some((0.0, 1.0)),
            quantise: true,
            attack_all: false,
            seed: 0,
            first_id: 0,
        }
    }

    /// Projected gradient descent inside the ball of radius `eps` (pixel units of [0, 1]) from a random place of it: ten
    /// steps of 2.5·eps/steps and one restart unless told otherwise, untargeted, delivered in 8 bits.
    pub fn pgd(norm: Norm, eps: f32) -> Self {
        Attack { method: Method::Pgd, norm, random_start: true, ..Self::ifgsm(eps) }
    }

    /// Number of iterations (`ifgsm` and `pgd`; `fgsm` has one).
    pub fn steps(mut self, steps: u32) -> Self {
        self.steps = steps;
        self
    }

    /// Step length in pixel units.
    pub fn step_size(mut self, step_size: f32) -> Self {
        self.step_size = Some(step_size);
        self
    }

    /// How often a sample is tried, each time from another random place (`pgd`). The first restart that succeeds *as
    /// delivered* counts, and the sample is left alone from then on; where none succeeds, the restart whose delivered image
    /// has the highest attack loss counts (untargeted: cross-entropy on the label; targeted: minus that on the target), the
    /// earliest of equals. So more restarts never lower the success.
    ///
    /// Samples that were wrong when clean and are stepped all the same ([`Attack::attack_all`]) can have no success: they
    /// run every restart. A sample in which NaN or infinity arises runs no further one.
    pub fn restarts(mut self, restarts: u32) -> Self {
        self.restarts = restarts;
        self
    }

    /// Whether the first step is taken from a random place of the ball (`pgd`, and its default) or from the clean image.
    /// The place depends on the seed, the sample's id, the restart and the pixel, and scales with eps.
    pub fn random_start(mut self, yes: bool) -> Self {
        self.random_start = yes;
        self
    }

    /// What to aim at.
    pub fn targets(mut self, targets: Targets) -> Self {
        self.targets = targets;
        self
    }

    /// Any class but the label will do.
    pub fn untargeted(self) -> Self {
        self.targets(Targets::None)
    }

    /// Seed of everything random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Id of the first sample, for a batch that is a part of a larger data set. Random numbers follow the id.
    pub fn first_id(mut self, id: u64) -> Self {
        self.first_id = id;
        self
    }

    /// Smallest and largest pixel value, or `None` for inputs that are no pixels (then nothing is rounded to 8 bits).
    pub fn bounds(mut self, bounds: Option<(f32, f32)>) -> Self {
        self.bounds = bounds;
        self
    }

    /// Whether to deliver 8-bit values k/255 (the default) or the floats of the last iterate.
    pub fn quantise(mut self, yes: bool) -> Self {
        self.quantise = yes;
        self
    }

    /// Whether samples that are wrong when clean are stepped as well.
    pub fn attack_all(mut self, yes: bool) -> Self {
        self.attack_all = yes;
        self
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What eps is measured in.
    pub fn norm(&self) -> Norm {
        self.norm
    }

    /// Radius of the ball in pixel units.
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// Number of iterations.
    pub fn step_count(&self) -> u32 {
        self.steps
    }

    /// How often a sample is tried at most.
    pub fn restart_count(&self) -> u32 {
        self.restarts
    }

    /// True when the first step is taken from a random place of the ball.
    pub fn starts_at_random(&self) -> bool {
        self.random_start
    }

    /// True when values are delivered as k/255: asked for, and the pixels lie in [0, 1].
    pub fn delivers_bytes(&self) -> bool {
        self.quantise && self.bounds == Some((0.0, 1.0))
    }

    /// Step length in pixel units: as set, else eps for `fgsm`, else 2.5·eps/steps (2/255 for ten steps of 8/255).
    pub fn effective_step_size(&self) -> f32 {
        match (self.step_size, self.method) {
            (Some(a), _) => a,
            (None, Method::Fgsm) => self.eps,
            (None, Method::Ifgsm | Method::Pgd) => (2.5 * f64::from(self.eps) / f64::from(self.steps.max(1))) as f32,
        }
    }

    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the parameter.
    pub fn validate(&self) -> Result<()> {
        let fail = |m: String| Err(Error::Usage(m));
        if self.eps.is_nan() || self.eps < 0.0 {
            return fail(format!("eps must be zero or more, but is {}", self.eps));
        }
        if self.eps.is_infinite() && self.step_size.is_none() {
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
        if self.random_start && self.method != Method::Pgd {
            return fail(format!("{} has no random start: use pgd", self.method.name()));
        }
        if self.random_start && self.eps.is_infinite() {
            return fail("a random start needs a finite eps".into());
        }
        if self.restarts == 0 {
            return fail("restarts must be one or more".into());
        }
        if self.restarts > 1 && !self.random_start {
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
}

/// Everything that came of an attack. All vectors are indexed by sample, in the order of the images given.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Clean images as attacked, `[N, C, H, W]`; k/255 exactly where bytes are delivered.
    pub clean: Vec<f32>,
    /// Largest distance by which an image given moved when it was snapped to k/255 (0 when all were on the grid).
    pub snapped: f32,
    /// What is delivered, `[N, C, H, W]`.
    pub adversarial: Vec<f32>,
    /// `[N]`
    pub labels: Vec<i64>,
    /// `[N]`, −1 for none
    pub targets: Vec<i64>,
    /// `[N, K]` of the clean images
    pub clean_logits: Vec<f32>,
    /// `[N, K]` of what is delivered
    pub adversarial_logits: Vec<f32>,
    /// `[N, K]` of the float iterate before it was rounded: of the first restart whose float iterate succeeds, else of the
    /// delivered one; equals `adversarial_logits` when floats are delivered
    pub float_logits: Vec<f32>,
    /// Right when clean.
    pub clean_correct: Vec<bool>,
    /// Right when clean and, when targeted, target ≠ label.
    pub attacked: Vec<bool>,
    /// Attacked, and what is delivered is classified as the target (untargeted: not as the label).
    pub success: Vec<bool>,
    /// The same for the float iterate.
    pub success_float: Vec<bool>,
    /// Cross-entropy of what is delivered on the target (untargeted: on the label).
    pub loss: Vec<f32>,
    /// max |delivered − clean|
    pub linf: Vec<f32>,
    /// Euclidean length of delivered − clean
    pub l2: Vec<f32>,
    /// Pixels whose gradient had no sign, added up over all steps of all restarts.
    pub zero_gradients: Vec<u64>,
    /// Which restart is delivered; 0 for a sample that was left alone.
    pub restart: Vec<u32>,
    /// Steps taken, of all restarts together; 0 for a sample that was left alone.
    pub steps_taken: Vec<u64>,
    /// Healthy, or where NaN or infinity arose.
    pub health: Vec<Health>,
    /// eps that 8 bits can deliver: floor(255·eps)/255; eps itself when floats are delivered.
    pub effective_eps: f32,
}

impl Outcome {
    /// Number of samples (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True for an empty batch.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Share of samples that are right when clean *and* still right as delivered.
    pub fn robust_accuracy(&self) -> f64 {
        self.share_right(&self.adversarial_logits)
    }

    /// The same for the float iterate, which is what papers report.
    pub fn robust_accuracy_float(&self) -> f64 {
        self.share_right(&self.float_logits)
    }

    fn share_right(&self, logits: &[f32]) -> f64 {
        let k = logits.len() / self.len().max(1);
        let right = (0..self.len())
            .filter(|&i| self.clean_correct[i] && argmax(&logits[i * k..(i + 1) * k]) as i64 == self.labels[i])
            .count();
        right as f64 / self.len().max(1) as f64
    }

    /// Steps taken, added up over all samples: the work that was done.
    pub fn sample_steps(&self) -> u64 {
        self.steps_taken.iter().sum()
    }

    /// Index and mark of the first sample in which NaN or infinity arose.
    pub fn first_unhealthy(&self) -> Option<(usize, Health)> {
        self.health.iter().copied().enumerate().find(|(_, h)| !h.is_healthy())
    }
}

/// Index of the highest logit, the lowest index where several are equal.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = i;
        }
    }
    best
}
