//! Rules: what is done with a gradient, and what a sample remembers from one step to the next.

use super::norm::Norm;
use super::sample::Sample;

/// What is done with a gradient. The kernels are in `shaders/step.wgsl`, in `shaders/rules.wgsl` and `shaders/fab.wgsl`
/// where a sample is looked at as a whole, in `shaders/square.wgsl` where there is no gradient; their twins are in
/// [`crate::reference`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// x ← x ± α·sign(∇), clamped to the L∞ ball: FGSM, I-FGSM, PGD.
    #[default]
    Sign,
    /// g ← μ·g + ∇/mean|∇|, x ← x ± α·sign(g), clamped to the L∞ ball: MI-FGSM (Dong et al. 2018, arXiv:1710.06081).
    /// The paper divides by Σ|∇|, its code by the mean; the signs are the same. A zero gradient adds nothing.
    Momentum,
    /// As [`Rule::Momentum`], with the gradient taken at x ± α·μ·g: NI-FGSM (Lin et al. 2020, arXiv:1908.06281).
    Lookahead,
    /// x ← x ± α·∇/‖∇‖₂, pulled back into the L2 ball: PGD in L2.
    L2,
    /// Auto-PGD (Croce & Hein 2020, arXiv:2003.01690), in either norm.
    Apgd(Norm),
    /// Random search by squares that become smaller (Andriushchenko et al. 2020, arXiv:1912.00049), in either norm: it
    /// looks at losses alone, so it finds what hides from gradients.
    Square(Norm),
    /// A step beyond the plane on which the class and the label change places, found from the gradient, and back
    /// towards the clean image after every success: FAB (Croce & Hein 2020, arXiv:1907.02044), in either norm. It
    /// follows [`super::Loss::Difference`]; neither step size nor direction means anything to it.
    Fab(Norm),
}

impl Rule {
    /// Images that a sample remembers beside its iterate.
    pub(crate) fn memory(self) -> usize {
        match self {
            Rule::Sign | Rule::L2 => 0,
            Rule::Momentum | Rule::Square(_) | Rule::Fab(_) => 1,
            Rule::Lookahead => 2,
            Rule::Apgd(_) => 4,
        }
    }

    /// What it measures moves by.
    pub fn norm(self) -> Norm {
        match self {
            Rule::Sign | Rule::Momentum | Rule::Lookahead => Norm::Linf,
            Rule::L2 => Norm::L2,
            Rule::Apgd(norm) | Rule::Square(norm) | Rule::Fab(norm) => norm,
        }
    }

    /// Whether the last iterate's loss is looked at as well: one more forward pass than there are steps.
    pub(crate) fn looks_at_the_last(self) -> bool {
        matches!(self, Rule::Apgd(_) | Rule::Square(_))
    }

    /// Whether it follows gradients; else a step is a forward pass alone.
    pub fn needs_gradients(self) -> bool {
        !matches!(self, Rule::Square(_))
    }

    /// Whether every step is followed by a look at where it led: another forward pass.
    pub(crate) fn looks_twice(self) -> bool {
        matches!(self, Rule::Fab(_))
    }

    /// What would be delivered, were this the end: one image, of `len` values, of a sample that has not ended.
    pub(crate) fn candidate<'a>(self, x: &'a [f32], memory: &'a [f32], state: &State) -> &'a [f32] {
        let slot = |k: usize| &memory[k * x.len()..(k + 1) * x.len()];
        match self {
            _ if state.iteration == 0 => x,
            Rule::Lookahead => slot(AHEAD),
            Rule::Apgd(_) if state.found != 0 => slot(FOUND),
            Rule::Apgd(_) => slot(BEST),
            Rule::Square(_) => slot(KEPT),
            Rule::Fab(_) => slot(NEAREST),
            Rule::Sign | Rule::Momentum | Rule::L2 => x,
        }
    }
}

/// Places in a sample's memory, as in `shaders/rules.wgsl`: the accumulated gradient of [`Rule::Momentum`] and
/// [`Rule::Lookahead`] lies in the first.
pub(crate) const ACCUMULATED: usize = 0;
/// [`Rule::Lookahead`]: the iterate, where x is the point ahead of it.
pub(crate) const AHEAD: usize = 1;
/// [`Rule::Apgd`]: the iterate before.
pub(crate) const OLD: usize = 0;
/// [`Rule::Apgd`]: the iterate with the highest loss.
pub(crate) const BEST: usize = 1;
/// [`Rule::Apgd`]: its gradient.
pub(crate) const BEST_GRADIENT: usize = 2;
/// [`Rule::Apgd`]: the latest iterate that is a success.
pub(crate) const FOUND: usize = 3;
/// [`Rule::Fab`]: the nearest success within the ball, before any the clean image.
pub(crate) const NEAREST: usize = 0;

/// [`Rule::Square`]: what has the highest loss so far, or is a success.
pub(crate) const KEPT: usize = 0;

/// What a sample remembers from one step to the next, but for images. The same 64 bytes lie in WGSL's `State`
/// (`shaders/sample.wgsl`); all but the first three are [`Rule::Apgd`]'s, `best` and `found` those of [`Rule::Square`]
/// and [`Rule::Fab`] as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct State {
    /// Steps taken.
    pub iteration: u32,
    /// Loss at the point that was looked at last.
    pub loss: f32,
    /// The class predicted there: the first of the highest logits.
    pub predicted: u32,
    /// Length of a step now.
    pub step_size: f32,
    /// The highest loss so far (direction·loss); with [`Rule::Fab`] the norm of the smallest move that was a success.
    pub best: f32,
    /// What that was at the last check.
    pub best_at_check: f32,
    /// Loss of the point before.
    pub last: f32,
    /// How often the loss has risen since the last check.
    pub rises: u32,
    /// Steps since the last check.
    pub since_check: u32,
    /// Steps from the last check to the next.
    pub period: u32,
    /// The least that it may come to.
    pub shortest: u32,
    /// By how much it becomes shorter at every check.
    pub shorter_by: u32,
    /// Whether the last check halved the step size.
    pub halved: u32,
    /// Whether any point so far is a success.
    pub found: u32,
    /// Keeps whole vectors.
    pub unused: [u32; 2],
}

impl State {
    /// Before the first step. The schedule is that of the paper's code: n steps are first checked after 0.22·n of them,
    /// each later check 0.03·n sooner after the one before, never sooner than 0.06·n; for 100 steps after 22, 41, 57,
    /// 70, 80, 87, 93 and 99.
    pub fn begin(sample: &Sample) -> Self {
        let share = |percent: u64| ((u64::from(sample.steps) * percent / 100) as u32).max(1);
        State {
            step_size: sample.step_size,
            period: share(22),
            shortest: share(6),
            shorter_by: share(3),
            halved: 1,
            ..State::default()
        }
    }
}

/// Where samples are between two calls of [`super::Engine::iterate`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trail {
    /// Where the next gradient is taken, `[N, C, H, W]`.
    pub x: Vec<f32>,
    /// What the rule remembers, `[N, M, C, H, W]`, M by the rule.
    pub memory: Vec<f32>,
    /// `[N]`
    pub states: Vec<State>,
}

impl Trail {
    /// Of some of the samples.
    pub fn select(&self, places: &[usize]) -> Self {
        let n = self.states.len().max(1);
        let pick = |values: &[f32]| -> Vec<f32> {
            let one = values.len() / n;
            places.iter().flat_map(|&i| &values[i * one..(i + 1) * one]).copied().collect()
        };
        Trail { x: pick(&self.x), memory: pick(&self.memory), states: places.iter().map(|&i| self.states[i]).collect() }
    }

    /// Of the samples from `range`.
    pub(crate) fn part(&self, range: std::ops::Range<usize>) -> (&[f32], &[f32], &[State]) {
        let n = self.states.len().max(1);
        let pick = |values: &'_ [f32]| {
            let one = values.len() / n;
            range.start * one..range.end * one
        };
        (&self.x[pick(&self.x)], &self.memory[pick(&self.memory)], &self.states[range.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_the_papers() {
        let checks = |steps: u32| {
            let mut s = State::begin(&Sample { steps, ..Sample::default() });
            let (mut at, mut all) = (0, Vec::new());
            while at + s.period <= steps {
                at += s.period;
                all.push(at);
                s.period = s.period.saturating_sub(s.shorter_by).max(s.shortest);
            }
            all
        };
        assert_eq!(checks(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checks(1), [1]);
        assert_eq!(checks(10), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }
}
