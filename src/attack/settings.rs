//! [`Attack`]: the settings of an attack, each with what it is unless told otherwise, and what follows from them alone.

use super::loss::Loss;
use super::method::Method;
use super::norm::Norm;
use super::perturbation::Perturbation;
use super::rule::Rule;
use super::targets::Targets;

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

/// A configured attack. Start with [`Attack::fgsm`], [`Attack::pgd`], [`Attack::apgd`] or another, end with
/// [`Attack::run`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "an attack does nothing until it is run"]
pub struct Attack {
    pub(super) method: Method,
    pub(super) norm: Norm,
    pub(super) loss: Loss,
    pub(super) eps: f32,
    pub(super) step_size: Option<f32>,
    pub(super) steps: u32,
    pub(super) momentum: f32,
    pub(super) random_start: bool,
    pub(super) restarts: u32,
    pub(super) classes: u32,
    pub(super) stretch: Option<u32>,
    pub(super) early_stop: bool,
    pub(super) targets: Targets,
    pub(super) bounds: Option<(f32, f32)>,
    pub(super) quantise: bool,
    pub(super) attack_all: bool,
    pub(super) seed: u64,
    pub(super) first_id: u64,
    pub(super) own: Vec<Own>,
    pub(super) perturbation: Option<Perturbation>,
}

impl Attack {
    /// An attack by `method` inside the ball of radius `eps` (pixel units of [0, 1]), everything else as the method's
    /// authors have it: untargeted, one restart, delivered in 8 bits.
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

    /// Projected gradient descent inside the ball of radius `eps` (pixel units of [0, 1]) from a random place of it:
    /// ten steps of 2.5·eps/steps and one restart unless told otherwise, untargeted, delivered in 8 bits.
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

    /// Auto-PGD inside the ball of radius `eps` from a random place on its edge: 100 steps that begin with 2·eps and
    /// are halved where the loss does not rise. Where a point on the way is a success the latest such is delivered,
    /// else the one with the highest loss.
    pub fn apgd(norm: Norm, eps: f32) -> Self {
        Self::new(Method::Apgd, norm, eps)
    }

    /// Targeted Auto-PGD: as [`Attack::apgd`] with the targeted DLR loss, aimed at the nine most likely wrong classes
    /// of the clean image one after the other ([`Attack::classes`]); any class but the label is a success.
    pub fn apgd_t(norm: Norm, eps: f32) -> Self {
        Self::new(Method::ApgdT, norm, eps)
    }

    /// The Square attack inside the ball of radius `eps`: it begins with stripes (in L2 with tiles), and makes 5000
    /// proposals, each looked at in a forward pass and kept where the margin rises or the image is a success; a
    /// sample's first success is its last proposal. No gradient is taken. The first squares' share of the image (0.8)
    /// and their schedule are those of the paper's code; they may lie anywhere in the image, and each sample has its
    /// own.
    ///
    /// A success on the way is one of the float image: rounding to 8 bits can undo it, in L2 above all. More restarts
    /// help.
    pub fn square(norm: Norm, eps: f32) -> Self {
        Self::new(Method::Square, norm, eps)
    }

    /// Targeted FAB: the smallest perturbation in `norm` that 100 steps find, aimed at the nine most likely wrong
    /// classes of the clean image one after the other ([`Attack::classes`]), until one lies within the ball of radius
    /// `eps`. Steps begin at the clean image, in further restarts at a random place halfway to the edge.
    pub fn fab_t(norm: Norm, eps: f32) -> Self {
        Self::new(Method::FabT, norm, eps)
    }

    /// One perturbation for all images, no value of it larger than `eps`: ten steps of 2.5·eps/steps along the sign of
    /// the sum of their gradients. It is in [`Outcome::perturbation`](super::Outcome::perturbation);
    /// [`Attack::perturbation`] puts it on other images.
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

    /// Over how many steps the schedule of `square` is stretched: as many as there are, unless told otherwise, as in
    /// the paper's code. AutoAttack takes 5000 of a schedule of 10,000.
    pub fn schedule_over(mut self, steps: u32) -> Self {
        self.stretch = Some(steps);
        self
    }

    /// Whether a sample stops once its *rounded* iterate succeeds. It is looked at after a tenth of the steps, two,
    /// four and seven; what has succeeded is delivered as it is then, and the rest go on without it, which changes
    /// nobody's bits.
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

    /// How often a sample is tried, each time from another random place (`pgd`, `apgd`, `apgd-t`, `square`, and `fab-t`
    /// but for the first time). The first restart that succeeds *as delivered* counts, and the sample is left alone
    /// from then on; where none succeeds, the restart whose delivered image has the highest attack loss counts
    /// (untargeted: cross-entropy on the label; targeted: minus that on the target), the earliest of equals. So more
    /// restarts never lower the success.
    ///
    /// Samples that were wrong when clean and are stepped all the same ([`Attack::attack_all`]) can have no success:
    /// they run every restart. A sample in which NaN or infinity arises runs no further one.
    pub fn restarts(mut self, restarts: u32) -> Self {
        self.restarts = restarts;
        self
    }

    /// Whether the first step is taken from a random place of the ball (`pgd`, `apgd`, `apgd-t`, `square`: their
    /// default) or from the clean image. The place depends on the seed, the sample's id, the restart and the pixel, and
    /// scales with eps.
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

    /// Id of the first sample, for a batch that is a part of a larger data set. Random numbers follow the id, by its
    /// lower 32 bits: samples whose ids are 2³² apart share theirs.
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

    /// Whether samples that are wrong when clean are stepped as well. They are delivered as the steps left them, but
    /// count neither as attacked nor as a success.
    pub fn attack_all(mut self, yes: bool) -> Self {
        self.attack_all = yes;
        self
    }

    /// Puts this perturbation on the images instead of fitting one to them: on others than those it was fitted to, or
    /// on these a part at a time (`uap`).
    pub fn perturbation(mut self, perturbation: impl Into<Perturbation>) -> Self {
        self.perturbation = Some(perturbation.into());
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

    /// How often a sample is tried at most: restarts, for each of the classes that `apgd-t` and `fab-t` aim at among
    /// `classes`.
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

    /// Gradients and forward passes that so many steps cost, taken in so many attempts, what is delivered looked at
    /// included.
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

    /// Step length in pixel units: as set, else eps for `fgsm`, 2·eps for `apgd` and `apgd-t`, eps/steps for `mifgsm`
    /// and `nifgsm`, else 2.5·eps/steps (2/255 for ten steps of 8/255).
    pub fn effective_step_size(&self) -> f32 {
        self.step_size.unwrap_or_else(|| self.method.default_step_size(f64::from(self.eps), self.steps) as f32)
    }

    /// What sample `i` has for itself.
    pub(super) fn own_of(&self, i: usize) -> Own {
        let alike =
            || Own { id: self.first_id.wrapping_add(i as u64), eps: self.eps, step_size: self.effective_step_size() };
        self.own.get(i).copied().unwrap_or_else(alike)
    }

    /// Whether all images share a perturbation that is still to be found.
    pub(crate) fn needs_fit(&self) -> bool {
        self.method.shares_perturbation() && self.perturbation.is_none()
    }

    /// The perturbation that is put on images.
    pub(crate) fn given(&self) -> Option<&Perturbation> {
        self.perturbation.as_ref()
    }

    /// Whether a sample stops once it has succeeded.
    pub(crate) fn stops_early(&self) -> bool {
        self.early_stop
    }

    /// Smallest and largest pixel for an engine, which knows no absence of bounds.
    pub(crate) fn engine_bounds(&self) -> (f32, f32) {
        self.bounds.unwrap_or((f32::MIN, f32::MAX))
    }

    /// Whether pixels must lie within bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bounds.is_some()
    }
}
