//! The attack: what is asked for ([`Attack`]), what runs it ([`Engine`]), what comes out ([`Outcome`]).
//!
//! Everything an image's fate depends on is its own: label, target, eps, step size, schedule, random numbers, best so far,
//! health. Nothing here looks at two samples at once, but for `uap`, whose one perturbation is all samples' own (`shared.rs`).

mod least;
mod loss;
mod quantise;
mod random;
mod rule;
mod run;
mod shared;
mod square;

pub use least::{Least, Rung};
pub use loss::Loss;
pub use quantise::{budget, budget_l2, quantise, quantise_l2, snap};
#[cfg(feature = "cli")]
pub(crate) use random::random_target;
pub use random::{Stream, philox};
pub(crate) use rule::{AHEAD, BEST, BEST_GRADIENT, FOUND, GATHERED, KEPT, NEAREST, OLD};
pub use rule::{Rule, State, Trail};
#[cfg(feature = "cli")]
pub(crate) use run::cross_entropy;
pub(crate) use run::{Pixels, Tried, Verdict, check_labels};
pub(crate) use shared::{Entrants, runs};
pub use shared::{Fit, Perturbation, Source, put_on};
pub(crate) use square::{halvings, hills, sides, tile};

use crate::error::{Error, Result};
use crate::model::Model;
use std::fmt;
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

    /// As [`Engine::logits`], for a caller who may wish to stop: `progress` is told of 0 sample-steps now and then, while others have
    /// the engine and between parts of the work, and stops it by answering `false`.
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

    /// Takes `steps` steps from `x0`, or from where an earlier call ended, each sample its own. `progress` is told how many
    /// sample-steps have ended since it was last called (0 where it is only asked whether to go on); when it answers `false` the run
    /// ends with [`Error::Cancelled`].
    ///
    /// # Errors
    /// As [`Engine::logits`].
    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated>;

    /// Fits one perturbation to all samples of `fit`, whose clean images `images` gives: g ← Σ ∇ over the samples in their order,
    /// each at its clean image with the perturbation on it; then a step along the sign of g within the ball. The bits depend on
    /// the samples and their order, but not on how they are cut into chunks. A sample in which NaN or infinity arises is marked
    /// and adds nothing from then on. `progress` as in [`Engine::iterate`].
    ///
    /// # Errors
    /// As [`Engine::logits`], those of `images`, and [`Error::Usage`] for samples that differ in eps or step size.
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

    /// What an engine with a network of `classes` checks, but for the samples' own parameters.
    pub(crate) fn check(&self, classes: usize) -> Result<()> {
        let fail = |detail: String| Err(Error::Usage(detail));
        for (i, sample) in self.samples.iter().enumerate() {
            self.loss.check(classes, sample.direction < 0.0)?;
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

/// One sample's own parameters. The same 64 bytes lie in WGSL's `Sample` (`shaders/sample.wgsl`). The default goes nowhere:
/// name what matters and end with `..Sample::default()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sample {
    /// Class whose loss is followed: the target, or the label.
    pub class: u32,
    /// Index in the whole data set; random numbers follow it.
    pub id: u32,
    /// Which restart this is; random numbers follow it.
    pub restart: u32,
    /// 1 where the first step is taken from a random place of the ball (of finite radius), 0 where from the clean image.
    pub start: u32,
    /// Radius of the ball in pixel units of [0, 1]; may be infinite.
    pub eps: f32,
    /// Step length in pixel units; 0 leaves the sample where it is. With [`Rule::Apgd`] the first step's.
    pub step_size: f32,
    /// +1 ascends (untargeted), −1 descends (targeted).
    pub direction: f32,
    /// Whole grey levels that what is delivered may differ from the clean image ([`budget`]; in L2 the sum of their squares,
    /// [`budget_l2`]). The steps do not look at it.
    pub levels: u32,
    /// The true class.
    pub label: u32,
    /// 1 where only `class` is a success, 0 where any class but `label` is.
    pub aimed: u32,
    /// Share of the accumulated gradient that is kept ([`Rule::Momentum`], [`Rule::Lookahead`]).
    pub momentum: f32,
    /// Steps of the whole attack, however many calls they take: [`Rule::Apgd`]'s schedule follows it.
    pub steps: u32,
    /// Steps over which [`Rule::Square`]'s schedule is stretched.
    pub stretch: u32,
    /// Keeps whole vectors.
    pub unused: [u32; 3],
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
#[non_exhaustive]
pub enum Method {
    /// One step of length eps (Goodfellow et al. 2015, arXiv:1412.6572).
    Fgsm,
    /// Iterative FGSM, also called BIM (Kurakin et al. 2017, arXiv:1607.02533): no random start.
    Ifgsm,
    /// Projected gradient descent (Madry et al. 2018, arXiv:1706.06083): as `ifgsm`, from a random place of the ball, as
    /// often as there are restarts.
    Pgd,
    /// Momentum iterative FGSM (Dong et al. 2018, arXiv:1710.06081).
    Mifgsm,
    /// Nesterov iterative FGSM (Lin et al. 2020, arXiv:1908.06281): the gradient is taken where momentum will have led.
    Nifgsm,
    /// Auto-PGD (Croce & Hein 2020, arXiv:2003.01690): the step size halves by itself, and the best point is remembered.
    Apgd,
    /// Auto-PGD aimed at one class after the other, the most likely first (same paper); any class but the label is a success.
    ApgdT,
    /// The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search that looks at losses alone. What it
    /// turns and gradients do not was hidden from them.
    Square,
    /// FAB (Croce & Hein 2020, arXiv:1907.02044), aimed at one class after the other, the most likely first: the smallest
    /// perturbation that it finds; any class but the label is a success.
    FabT,
    /// One perturbation for all images (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), by steps along the sign of the sum of
    /// their gradients (Shafahi et al. 2020, arXiv:1811.11304).
    Uap,
}

impl Method {
    /// All there are.
    pub const ALL: [Method; 10] = [
        Method::Fgsm,
        Method::Ifgsm,
        Method::Pgd,
        Method::Mifgsm,
        Method::Nifgsm,
        Method::Apgd,
        Method::ApgdT,
        Method::Square,
        Method::FabT,
        Method::Uap,
    ];

    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Fgsm => "fgsm",
            Method::Ifgsm => "ifgsm",
            Method::Pgd => "pgd",
            Method::Mifgsm => "mifgsm",
            Method::Nifgsm => "nifgsm",
            Method::Apgd => "apgd",
            Method::ApgdT => "apgd-t",
            Method::Square => "square",
            Method::FabT => "fab-t",
            Method::Uap => "uap",
        }
    }

    /// Whether it can begin at a random place of the ball.
    pub fn can_start_at_random(self) -> bool {
        matches!(self, Method::Pgd | Method::Apgd | Method::ApgdT | Method::FabT | Method::Square)
    }

    /// Whether its first restart begins at the clean image all the same.
    pub fn begins_clean(self) -> bool {
        self == Method::FabT
    }

    /// Whether it aims at one class after the other by itself.
    pub fn chooses_targets(self) -> bool {
        matches!(self, Method::ApgdT | Method::FabT)
    }

    /// Whether one perturbation serves all images: then it needs all of them, and no image has anything for itself.
    pub fn shares_perturbation(self) -> bool {
        self == Method::Uap
    }

    /// Whether it is told how long its steps are.
    pub fn has_step_size(self) -> bool {
        !matches!(self, Method::FabT | Method::Square)
    }

    /// Whether it accumulates gradients.
    pub fn has_momentum(self) -> bool {
        matches!(self, Method::Mifgsm | Method::Nifgsm)
    }

    /// Steps unless told otherwise, as in the papers' own code.
    pub fn default_steps(self) -> u32 {
        match self {
            Method::Fgsm => 1,
            Method::Ifgsm | Method::Pgd | Method::Mifgsm | Method::Nifgsm | Method::Uap => 10,
            Method::Apgd | Method::ApgdT | Method::FabT => 100,
            Method::Square => 5000,
        }
    }

    /// Step length unless told otherwise, in the unit of `eps`.
    pub fn default_step_size(self, eps: f64, steps: u32) -> f64 {
        match self {
            Method::Fgsm => eps,
            Method::Ifgsm | Method::Pgd | Method::Uap => 2.5 * eps / f64::from(steps.max(1)),
            Method::Mifgsm | Method::Nifgsm => eps / f64::from(steps.max(1)),
            Method::Apgd | Method::ApgdT => 2.0 * eps,
            Method::FabT | Method::Square => 0.0,
        }
    }

    /// The loss unless told otherwise.
    pub fn default_loss(self) -> Loss {
        match self {
            Method::ApgdT => Loss::Dlr,
            Method::Square => Loss::Margin,
            Method::FabT => Loss::Difference,
            _ => Loss::CrossEntropy,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = || Method::ALL.map(Method::name).join(", ");
        let wrong = || Error::Usage(format!("no method {name:?}; there are {}", names()));
        Method::ALL.into_iter().find(|m| m.name() == name).ok_or_else(wrong)
    }
}

/// What the size of a perturbation is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Norm {
    /// The largest change of any pixel value.
    #[default]
    Linf,
    /// The Euclidean length of the change.
    L2,
}

impl Norm {
    /// As the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Norm::Linf => "linf",
            Norm::L2 => "l2",
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Norm {
    type Err = Error;

    /// In any case.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "linf" => Ok(Norm::Linf),
            "l2" => Ok(Norm::L2),
            _ => Err(Error::Usage(format!("no norm {name:?}; there are linf and l2"))),
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

/// What a sample has for itself where the samples of a run differ ([`Attack::each`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Own {
    /// Index in the whole data set; random numbers follow its lower 32 bits.
    pub id: u64,
    /// Radius of its ball, pixel units.
    pub eps: f32,
    /// Length of its steps, pixel units.
    pub step_size: f32,
}

/// A configured attack. Start with [`Attack::fgsm`], [`Attack::pgd`], [`Attack::apgd`] or another, end with [`Attack::run`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "an attack does nothing until it is run"]
pub struct Attack {
    method: Method,
    norm: Norm,
    loss: Loss,
    eps: f32,
    step_size: Option<f32>,
    steps: u32,
    momentum: f32,
    random_start: bool,
    restarts: u32,
    classes: u32,
    stretch: Option<u32>,
    early_stop: bool,
    targets: Targets,
    bounds: Option<(f32, f32)>,
    quantise: bool,
    attack_all: bool,
    seed: u64,
    first_id: u64,
    own: Vec<Own>,
    perturbation: Option<Perturbation>,
}

impl Attack {
    /// An attack by `method` inside the ball of radius `eps` (pixel units of [0, 1]), everything else as the method's authors
    /// have it: untargeted, one restart, delivered in 8 bits.
    pub fn new(method: Method, norm: Norm, eps: f32) -> Self {
        Attack {
            method,
            norm,
            loss: method.default_loss(),
            eps,
            step_size: None,
            steps: method.default_steps(),
            momentum: 1.0,
            random_start: method.can_start_at_random(),
            restarts: 1,
            classes: 9,
            stretch: None,
            early_stop: false,
            targets: Targets::None,
            bounds: Some((0.0, 1.0)),
            quantise: true,
            attack_all: false,
            seed: 0,
            first_id: 0,
            own: Vec::new(),
            perturbation: None,
        }
    }

    /// Fast gradient sign method: one step of length `eps` (L∞ radius, pixel units of [0, 1]).
    pub fn fgsm(eps: f32) -> Self {
        Self::new(Method::Fgsm, Norm::Linf, eps)
    }

    /// Iterative FGSM inside the L∞ ball of radius `eps` (pixel units of [0, 1]): ten steps of 2.5·eps/steps unless
    /// told otherwise, untargeted, delivered in 8 bits.
    pub fn ifgsm(eps: f32) -> Self {
        Self::new(Method::Ifgsm, Norm::Linf, eps)
    }

    /// Projected gradient descent inside the ball of radius `eps` (pixel units of [0, 1]) from a random place of it: ten
    /// steps of 2.5·eps/steps and one restart unless told otherwise, untargeted, delivered in 8 bits.
    pub fn pgd(norm: Norm, eps: f32) -> Self {
        Self::new(Method::Pgd, norm, eps)
    }

    /// Momentum iterative FGSM inside the L∞ ball: g ← μ·g + ∇/mean|∇|, x ← x + α·sign(g); ten steps, μ = 1.
    pub fn mifgsm(eps: f32) -> Self {
        Self::new(Method::Mifgsm, Norm::Linf, eps)
    }

    /// Nesterov iterative FGSM inside the L∞ ball: as [`Attack::mifgsm`], with the gradient taken at x + α·μ·g.
    pub fn nifgsm(eps: f32) -> Self {
        Self::new(Method::Nifgsm, Norm::Linf, eps)
    }

    /// Auto-PGD inside the ball of radius `eps` from a random place on its edge: 100 steps that begin with 2·eps and are
    /// halved where the loss does not rise. Where a point on the way is a success the latest such is delivered, else the
    /// one with the highest loss.
    pub fn apgd(norm: Norm, eps: f32) -> Self {
        Self::new(Method::Apgd, norm, eps)
    }

    /// Targeted Auto-PGD: as [`Attack::apgd`] with the targeted DLR loss, aimed at the nine most likely wrong classes of
    /// the clean image one after the other ([`Attack::classes`]); any class but the label is a success.
    pub fn apgd_t(norm: Norm, eps: f32) -> Self {
        Self::new(Method::ApgdT, norm, eps)
    }

    /// The Square attack inside the ball of radius `eps`: it begins with stripes (in L2 with tiles), and makes 5000 proposals,
    /// each looked at in a forward pass and kept where the margin rises or the image is a success; a sample's first success is
    /// its last proposal. No gradient is taken. The first squares' share of the image (0.8) and their schedule are those of the
    /// paper's code; they may lie anywhere in the image, and each sample has its own.
    ///
    /// A success on the way is one of the float image: rounding to 8 bits can undo it, in L2 above all. More restarts help.
    pub fn square(norm: Norm, eps: f32) -> Self {
        Self::new(Method::Square, norm, eps)
    }

    /// Targeted FAB: the smallest perturbation in `norm` that 100 steps find, aimed at the nine most likely wrong classes of
    /// the clean image one after the other ([`Attack::classes`]), until one lies within the ball of radius `eps`. Steps
    /// begin at the clean image, in further restarts at a random place halfway to the edge.
    pub fn fab_t(norm: Norm, eps: f32) -> Self {
        Self::new(Method::FabT, norm, eps)
    }

    /// One perturbation for all images, no value of it larger than `eps`: ten steps of 2.5·eps/steps along the sign of the sum of
    /// their gradients. It is in [`Outcome::perturbation`]; [`Attack::perturbation`] puts it on other images.
    pub fn uap(eps: f32) -> Self {
        Self::new(Method::Uap, Norm::Linf, eps)
    }

    /// What is followed. [`Loss::Dlr`] needs three classes, four where a class is aimed at.
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// What eps and steps are measured in (`mifgsm` and `nifgsm`: L∞ alone).
    pub fn in_norm(mut self, norm: Norm) -> Self {
        self.norm = norm;
        self
    }

    /// μ, the share of the accumulated gradient that is kept, from 0 to 1 (`mifgsm` and `nifgsm`).
    pub fn momentum(mut self, momentum: f32) -> Self {
        self.momentum = momentum;
        self
    }

    /// How many classes are aimed at, the most likely wrong one first (`apgd-t`, `fab-t`); never more than there are.
    pub fn classes(mut self, classes: u32) -> Self {
        self.classes = classes;
        self
    }

    /// Over how many steps the schedule of `square` is stretched: as many as there are, unless told otherwise, as in the paper's code.
    /// AutoAttack takes 5000 of a schedule of 10,000.
    pub fn schedule_over(mut self, steps: u32) -> Self {
        self.stretch = Some(steps);
        self
    }

    /// Whether a sample stops once its *rounded* iterate succeeds. It is looked at after a tenth of the steps, two, four and
    /// seven; what has succeeded is delivered as it is then, and the rest go on without it, which changes nobody's bits.
    pub fn early_stop(mut self, yes: bool) -> Self {
        self.early_stop = yes;
        self
    }

    /// Ids, radii and step sizes of the samples, one each, where they differ: they take the place of eps, step size and
    /// [`Attack::first_id`]. Empty: all alike.
    pub fn each(mut self, own: Vec<Own>) -> Self {
        self.own = own;
        self
    }

    /// Number of iterations (`fgsm` has one).
    pub fn steps(mut self, steps: u32) -> Self {
        self.steps = steps;
        self
    }

    /// Step length in pixel units (`apgd`, `apgd-t`: of the first step; `fab-t` and `square` have none).
    pub fn step_size(mut self, step_size: f32) -> Self {
        self.step_size = Some(step_size);
        self
    }

    /// How often a sample is tried, each time from another random place (`pgd`, `apgd`, `apgd-t`, `square`, and `fab-t` but
    /// for the first time). The first restart that succeeds *as
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

    /// Whether the first step is taken from a random place of the ball (`pgd`, `apgd`, `apgd-t`, `square`: their default) or from the clean image.
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

    /// Id of the first sample, for a batch that is a part of a larger data set. Random numbers follow the id, by its lower 32 bits:
    /// samples whose ids are 2³² apart share theirs.
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

    /// What is followed.
    pub fn followed_loss(&self) -> Loss {
        self.loss
    }

    /// How often a sample is tried at most: restarts, for each of the classes that `apgd-t` and `fab-t` aim at among `classes`.
    pub fn attempts(&self, classes: usize) -> u64 {
        let aims = if self.method.chooses_targets() { self.classes.min(classes.saturating_sub(1) as u32) } else { 1 };
        u64::from(self.restarts) * u64::from(aims)
    }

    /// What is done with a gradient.
    pub fn rule(&self) -> Rule {
        match (self.method, self.norm) {
            (Method::Mifgsm, _) => Rule::Momentum,
            (Method::Nifgsm, _) => Rule::Lookahead,
            (Method::Apgd | Method::ApgdT, norm) => Rule::Apgd(norm),
            (Method::Square, norm) => Rule::Square(norm),
            (Method::FabT, norm) => Rule::Fab(norm),
            // The sign step too, though not of a sample.
            (Method::Fgsm | Method::Ifgsm | Method::Pgd | Method::Uap, Norm::Linf) => Rule::Sign,
            (Method::Fgsm | Method::Ifgsm | Method::Pgd | Method::Uap, Norm::L2) => Rule::L2,
        }
    }

    /// How often a sample is tried at most, for each class that is aimed at.
    pub fn restart_count(&self) -> u32 {
        self.restarts
    }

    /// Gradients and forward passes that so many steps cost, taken in so many attempts, what is delivered looked at included.
    pub fn cost(&self, steps: u64, attempts: u64) -> (u64, u64) {
        let ends = u64::from(self.rule().looks_at_the_last()) + 1 + u64::from(self.delivers_bytes());
        let rule = self.rule();
        let forward = steps * (1 + u64::from(rule.looks_twice())) + attempts * ends;
        (if rule.needs_gradients() { steps } else { 0 }, forward)
    }

    /// True when the first step is taken from a random place of the ball.
    pub fn starts_at_random(&self) -> bool {
        self.random_start
    }

    /// True when values are delivered as k/255: asked for, and the pixels lie in [0, 1].
    pub fn delivers_bytes(&self) -> bool {
        self.quantise && self.bounds == Some((0.0, 1.0))
    }

    /// Step length in pixel units: as set, else eps for `fgsm`, 2·eps for `apgd` and `apgd-t`, eps/steps for `mifgsm` and
    /// `nifgsm`, else 2.5·eps/steps (2/255 for ten steps of 8/255).
    pub fn effective_step_size(&self) -> f32 {
        self.step_size.unwrap_or_else(|| self.method.default_step_size(f64::from(self.eps), self.steps) as f32)
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
        // More than one, and what is gathered would grow until it is no number.
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
    /// The one perturbation that was put on all attacked images, `[C, H, W]` (`uap`); of the float iterate, before rounding.
    pub perturbation: Option<Vec<f32>>,
    /// Which attempt is delivered (restarts, those of the first class that `apgd-t` or `fab-t` aims at first); 0 for a sample that was left alone.
    pub restart: Vec<u32>,
    /// Steps taken, of all restarts together; 0 for a sample that was left alone.
    pub steps_taken: Vec<u64>,
    /// Healthy, or where NaN or infinity arose.
    pub health: Vec<Health>,
    /// eps that 8 bits can deliver: floor(255·eps)/255; eps itself in L2 and when floats are delivered. That of [`Attack::eps`], even
    /// where samples have radii of their own ([`Attack::each`]).
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

    /// Puts the clean image, and what the network says of it, in the place of whatever was made of each sample that is marked in
    /// [`Outcome::health`], and withholds success from it: [`Attack::least`] may have turned it at a radius, and met NaN at a smaller
    /// one. Where the pixels lie on the device ([`Attack::run_buffers`]) there are none here to replace: whoever has the buffers copies
    /// the clean image over.
    pub fn withhold_unhealthy(&mut self) {
        let n = self.len().max(1);
        let (one, k) = (self.clean.len() / n, self.clean_logits.len() / n);
        for i in (0..self.len()).filter(|&i| !self.health[i].is_healthy()) {
            let (pixels, row) = (i * one..(i + 1) * one, i * k..(i + 1) * k);
            self.adversarial[pixels.clone()].copy_from_slice(&self.clean[pixels]);
            for moved in [&mut self.linf, &mut self.l2] {
                moved.get_mut(i).into_iter().for_each(|moved| *moved = 0.0);
            }
            self.adversarial_logits[row.clone()].copy_from_slice(&self.clean_logits[row.clone()]);
            self.float_logits[row.clone()].copy_from_slice(&self.clean_logits[row.clone()]);
            let class = if self.targets[i] < 0 { self.labels[i] } else { self.targets[i] };
            self.loss[i] = run::cross_entropy(&self.clean_logits[row], class as usize);
            (self.success[i], self.success_float[i]) = (false, false);
        }
    }

    /// Index and mark of the first sample in which NaN or infinity arose.
    pub fn first_unhealthy(&self) -> Option<(usize, Health)> {
        self.health.iter().copied().enumerate().find(|(_, h)| !h.is_healthy())
    }
}

/// The longest length in L2: f32 holds the square of twice as much.
const L2_MOST: f32 = 1e18;

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
