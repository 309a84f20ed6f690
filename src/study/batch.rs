//! What all experiments share: images with their targets, how far they may go, and what became of them.

use crate::attack::{Attack, Engine, Gradient, Health, Logits, Norm, Own, Targets, argmax, cross_entropy};
use crate::error::{Error, Result};
use crate::reference::Sign;

/// Ten sums and differences of numbers around 1 are off by less, and no step is as short.
const ROUNDING: f32 = 5e-6;

/// Cross-entropy's gradients on targets, for the images of one batch `[N, C, H, W]`. The engine's own do not depend on
/// who else is in the batch; those of a network in training mode do.
pub type Net<'a> = &'a dyn Fn(&[f32], &[u32]) -> Result<Gradient>;

/// Images that are attacked together, each for a target of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[N, C, H, W]`, clean
    pub x0: Vec<f32>,
    /// `[N]`, right when clean: so none is its own target
    pub labels: Vec<i64>,
    /// `[N]`
    pub targets: Vec<u32>,
    /// `[N]`, index in the whole data set
    pub ids: Vec<u64>,
}

impl Batch {
    /// Number of images (N).
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Values in one image.
    pub fn one(&self) -> usize {
        self.x0.len() / self.len().max(1)
    }

    /// The images at `places`, in that order.
    pub fn select(&self, places: &[usize]) -> Self {
        Batch {
            x0: gather(&self.x0, self.one(), places),
            labels: places.iter().map(|&i| self.labels[i]).collect(),
            targets: places.iter().map(|&i| self.targets[i]).collect(),
            ids: places.iter().map(|&i| self.ids[i]).collect(),
        }
    }

    /// Cut into minibatches of `size`; the last may be smaller.
    pub fn minibatches(&self, size: usize) -> Vec<Batch> {
        let all: Vec<usize> = (0..self.len()).collect();
        all.chunks(size).map(|places| self.select(places)).collect()
    }

    /// Runs something on one minibatch after the other, and joins what comes of it.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn each(&self, size: usize, mut run: impl FnMut(&Batch) -> Result<Run>) -> Result<Run> {
        let mut whole = Run::default();
        for part in self.minibatches(size) {
            let part = run(&part)?;
            whole.x.extend(part.x);
            whole.first.extend(part.first);
            whole.path.resize(part.path.len().max(whole.path.len()), Vec::new());
            whole.path.iter_mut().zip(part.path).for_each(|(whole, part)| whole.extend(part));
            whole.steps += part.steps;
        }
        Ok(whole)
    }
}

/// Images of `one` value each, picked.
pub(super) fn gather<T: Copy>(values: &[T], one: usize, places: &[usize]) -> Vec<T> {
    places.iter().flat_map(|&i| &values[i * one..(i + 1) * one]).copied().collect()
}

/// How far, how fast and how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Radius of the ball in pixel units of [0, 1]; may be infinite.
    pub eps: f32,
    /// Length of a step.
    pub step_size: f32,
    /// Iterations.
    pub steps: u32,
    /// Smallest and largest pixel.
    pub bounds: (f32, f32),
}

impl Budget {
    /// An attack of the engine within this budget, on the float images, each for the target that `batch` gives it.
    pub fn attack(&self, batch: &Batch, mut attack: Attack) -> Attack {
        let own = |id: &u64| Own { id: *id, eps: attack.eps(), step_size: attack.effective_step_size() };
        let own = batch.ids.iter().map(own).collect();
        let targets = batch.targets.iter().map(|t| i64::from(*t)).collect();
        attack = attack.steps(self.steps).targets(Targets::Classes(targets)).quantise(false);
        attack.each(own)
    }

    /// The engine's iterative targeted FGSM.
    pub fn ifgsm(&self, batch: &Batch) -> Attack {
        self.attack(batch, Attack::ifgsm(self.eps).step_size(self.step_size))
    }

    /// The same in L2.
    pub fn l2(&self, batch: &Batch, eps: f32, step_size: f32) -> Attack {
        self.attack(batch, Attack::ifgsm(eps).in_norm(Norm::L2).step_size(step_size))
    }
}

/// Where images ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// `[N, C, H, W]`
    pub x: Vec<f32>,
    /// Sign of what the first step went along or against, `[N, C, H, W]`; empty where nobody looked.
    pub first: Vec<i8>,
    /// Where the images were before each step, `[T, N, C, H, W]`, of runs that are compared step by step; else empty.
    pub path: Vec<Vec<f32>>,
    /// Steps of all images together.
    pub steps: u64,
}

impl Run {
    /// The images at `places`.
    pub fn select(&self, one: usize, places: &[usize]) -> Self {
        let first = if self.first.is_empty() { Vec::new() } else { gather(&self.first, one, places) };
        let path = self.path.iter().map(|x| gather(x, one, places)).collect();
        Run { x: gather(&self.x, one, places), first, path, steps: self.steps }
    }
}

/// Runs an attack of the engine, minibatch by minibatch.
///
/// # Errors
/// Those of [`Attack::run`]; [`Error::NonFinite`].
pub fn own(engine: &dyn Engine, batch: &Batch, size: usize, attack: &dyn Fn(&Batch) -> Attack) -> Result<Run> {
    batch.each(size, |part| {
        let out = attack(part).run(engine, &part.x0, &part.labels)?;
        healthy(&out.health)?;
        Ok(Run { steps: out.sample_steps(), x: out.adversarial, ..Run::default() })
    })
}

/// What the network says of images, in evaluation mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// `[N]`, whether the target is what is predicted
    pub hits: Vec<bool>,
    /// `[N]`, cross-entropy on the target
    pub loss: Vec<f32>,
}

impl Judged {
    /// Looks at the images `x` of a batch.
    ///
    /// # Errors
    /// Those of the engine; [`Error::NonFinite`].
    pub fn new(engine: &dyn Engine, x: &[f32], targets: &[u32]) -> Result<Self> {
        let Logits { logits, health } = engine.logits(x)?;
        healthy(&health)?;
        let rows = || logits.chunks(engine.model().logits()).zip(targets);
        Ok(Judged {
            hits: rows().map(|(z, t)| argmax(z) == *t as usize).collect(),
            loss: rows().map(|(z, t)| cross_entropy(z, *t as usize)).collect(),
        })
    }

    /// How many reach their targets.
    pub fn successes(&self) -> usize {
        self.hits.iter().filter(|hit| **hit).count()
    }

    /// The mean loss.
    pub fn mean_loss(&self) -> f64 {
        self.loss.iter().map(|l| f64::from(*l)).sum::<f64>() / self.loss.len().max(1) as f64
    }
}

/// Refuses results in which NaN or infinity arose.
///
/// # Errors
/// [`Error::NonFinite`].
pub fn healthy(health: &[Health]) -> Result<()> {
    match health.iter().enumerate().find(|(_, h)| !h.is_healthy()) {
        Some((sample, health)) => Err(Error::NonFinite { sample, stage: health.describe().into() }),
        None => Ok(()),
    }
}

/// Signs as a step takes them: 1, −1, or 0 for what has none.
pub fn signs(values: &[f32]) -> Vec<i8> {
    let sign = |v: &f32| match Sign::of(*v) {
        Sign::Plus => 1,
        Sign::Minus => -1,
        Sign::Zero | Sign::Broken => 0,
    };
    values.iter().map(sign).collect()
}

/// Signs of what images were changed by. Steps that cancel each other leave a rounding error, which is no move.
pub fn moves(x: &[f32], x0: &[f32]) -> Vec<i8> {
    let moved = |(x, x0): (&f32, &f32)| if (x - x0).abs() < ROUNDING { 0.0 } else { x - x0 };
    signs(&x.iter().zip(x0).map(moved).collect::<Vec<_>>())
}

/// Share of places in which two lists differ.
pub fn differing<T: PartialEq>(a: &[T], b: &[T]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len().max(1) as f64
}

/// Whether two lists are the same, bit for bit.
pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minibatches_are_joined_and_their_steps_added_up() {
        let x0 = vec![0.1, 0.2, 0.3, 0.4, 0.5];
        let batch = Batch { x0, labels: vec![0; 5], targets: vec![1, 2, 3, 4, 5], ids: (0..5).collect() };
        let run = |part: &Batch| Ok(Run { x: part.x0.clone(), steps: 3 * part.len() as u64, ..Run::default() });
        for size in [1, 2, 5, 9] {
            let whole = batch.each(size, run).unwrap();
            assert_eq!((whole.x, whole.steps), (batch.x0.clone(), 15), "{size} at a time");
        }
        assert_eq!(batch.minibatches(2)[2].targets, [5]);
    }

    /// A step there and one back leave a rounding error.
    #[test]
    fn what_has_come_back_has_not_moved() {
        assert_eq!(moves(&[0.5 + 3e-7, 0.5 - 3e-7, 0.501, 0.499], &[0.5; 4]), [0, 0, 1, -1]);
    }
}
