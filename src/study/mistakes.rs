//! What is done to minibatches elsewhere, each mechanism a function, the mistake in plain sight. None of it is used by
//! the engine.
//!
//! All but one take the engine's own step ([`crate::reference::step`]): only what it is given is wrong.

use super::batch::{Batch, Budget, Judged, Net, Run, signs};
use crate::attack::{Engine, Sample};
use crate::error::Result;
use crate::reference;
use half::f16;

/// The loop that they share: `gradients` makes of the batch's gradients what is stepped against.
fn descend(
    net: Net<'_>,
    batch: &Batch,
    budget: &Budget,
    mut gradients: impl FnMut(Vec<f32>) -> Vec<f32>,
) -> Result<Run> {
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for iteration in 0..budget.steps {
        let g = gradients(net(&run.x, &batch.targets)?.gradient);
        if iteration == 0 {
            run.first = signs(&g);
        }
        against(&mut run.x, &batch.x0, &g, budget);
        run.steps += batch.len() as u64;
    }
    Ok(run)
}

/// x ← x − α·sign(g), within ball and bounds.
fn against(x: &mut [f32], x0: &[f32], g: &[f32], budget: &Budget) {
    let sample = Sample { eps: budget.eps, step_size: budget.step_size, direction: -1.0, ..Sample::default() };
    for ((x, x0), g) in x.iter_mut().zip(x0).zip(g) {
        *x = reference::step(*x, *x0, *g, &sample, budget.bounds).0;
    }
}

/// No mistake but in a network in training mode: sums, and steps against them. There one sign that is rounded the other
/// way moves everybody in the batch, so other programs compare step by step, and need the way.
///
/// # Errors
/// Those of the network.
pub fn summed(net: Net<'_>, batch: &Batch, budget: &Budget) -> Result<Run> {
    let path = std::cell::RefCell::new(Vec::new());
    let remembering = |x: &[f32], targets: &[u32]| {
        path.borrow_mut().push(x.to_vec());
        net(x, targets)
    };
    let run = descend(&remembering, batch, budget, |g| g)?;
    Ok(Run { path: path.into_inner(), ..run })
}

/// The mean of the losses: ∂(1/N ΣLⱼ)/∂xᵢ = (1/N) ∂Lᵢ/∂xᵢ.
///
/// # Errors
/// Those of the network.
pub fn mean_loss(net: Net<'_>, batch: &Batch, budget: &Budget) -> Result<Run> {
    let n = batch.len() as f32;
    descend(net, batch, budget, |g| g.iter().map(|g| g / n).collect())
}

/// +α·sign on the loss of the target: that is how to get away from a class.
///
/// # Errors
/// Those of the network.
pub fn ascent(net: Net<'_>, batch: &Batch, budget: &Budget) -> Result<Run> {
    let run = descend(net, batch, budget, |g| g.iter().map(|g| -g).collect())?;
    // The sign that was looked at is the gradient's.
    Ok(Run { first: run.first.iter().map(|s| -s).collect(), ..run })
}

/// One gradient, averaged over the images, and one perturbation for all of them.
///
/// # Errors
/// Those of the network.
pub fn shared(net: Net<'_>, batch: &Batch, budget: &Budget) -> Result<Run> {
    let (n, one) = (batch.len(), batch.one());
    let (lo, hi) = budget.bounds;
    let mut delta = vec![0.0_f32; one];
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for iteration in 0..budget.steps {
        let g = net(&run.x, &batch.targets)?.gradient;
        let mean: Vec<f32> = (0..one).map(|p| g.iter().skip(p).step_by(one).sum::<f32>() / n as f32).collect();
        if iteration == 0 {
            run.first = signs(&mean).repeat(n);
        }
        let ball = Budget { bounds: (-budget.eps, budget.eps), ..*budget };
        against(&mut delta, &vec![0.0; one], &mean, &ball);
        let moved = batch.x0.chunks(one).flat_map(|x0| x0.iter().zip(&delta).map(|(x0, d)| (x0 + d).max(lo).min(hi)));
        run.x = moved.collect();
        run.steps += n as u64;
    }
    Ok(run)
}

/// Half precision: the mean over `n` images in 16 bits, `scale` times as large. Below 2⁻²⁵ a 16-bit float is zero. Only
/// the gradient at the image is rounded here; networks that compute in half precision round on the way as well.
///
/// # Errors
/// Those of the network.
pub fn half_precision(net: Net<'_>, batch: &Batch, budget: &Budget, n: usize, scale: f32) -> Result<Run> {
    descend(net, batch, budget, |g| g.iter().map(|g| f16::from_f32(g / n as f32 * scale).to_f32()).collect())
}

/// Momentum whose gradients are divided by the norm of the whole batch's, not each by its own.
///
/// # Errors
/// Those of the network.
pub fn batch_momentum(net: Net<'_>, batch: &Batch, budget: &Budget) -> Result<Run> {
    let mut gathered = vec![0.0_f32; batch.x0.len()];
    descend(net, batch, budget, |g| {
        let norm = g.iter().map(|g| g.abs()).sum::<f32>() / g.len() as f32;
        let norm = if norm > 0.0 { norm } else { 1.0 };
        gathered.iter_mut().zip(&g).for_each(|(m, g)| *m += g / norm);
        gathered.clone()
    })
}

/// Steps along gradients as long as they are, of a mean over `n` images: they shrink as the batch grows. Here the ball
/// is of L2, of radius `budget.eps`, and a step is `budget.step_size` times the gradient.
///
/// # Errors
/// Those of the network.
pub fn unnormalised(net: Net<'_>, batch: &Batch, budget: &Budget, n: usize) -> Result<Run> {
    let (one, (lo, hi)) = (batch.one(), budget.bounds);
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for _ in 0..budget.steps {
        let g = net(&run.x, &batch.targets)?.gradient;
        for ((x, x0), g) in run.x.chunks_mut(one).zip(batch.x0.chunks(one)).zip(g.chunks(one)) {
            x.iter_mut().zip(g).for_each(|(x, g)| *x -= budget.step_size * (g / n as f32));
            let length = length(x.iter().zip(x0).map(|(x, x0)| x - x0));
            let back = (budget.eps / length).min(1.0);
            x.iter_mut().zip(x0).for_each(|(x, x0)| *x = (x0 + (*x - x0) * back).max(lo).min(hi));
        }
        run.steps += batch.len() as u64;
    }
    Ok(run)
}

/// Euclidean length.
pub(super) fn length(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt() as f32
}

/// When a batch that stops as one does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// As soon as one image has succeeded.
    First,
    /// Only when all have.
    All,
}

/// Early stop for the whole batch, where each image should stop for itself.
///
/// # Errors
/// Those of the network and the engine.
pub fn stop_together(engine: &dyn Engine, net: Net<'_>, batch: &Batch, budget: &Budget, stop: Stop) -> Result<Run> {
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for _ in 0..budget.steps {
        let g = net(&run.x, &batch.targets)?.gradient;
        against(&mut run.x, &batch.x0, &g, budget);
        run.steps += batch.len() as u64;
        let hits = Judged::new(engine, &run.x, &batch.targets)?.hits;
        let stops = match stop {
            Stop::First => hits.contains(&true),
            Stop::All => !hits.contains(&false),
        };
        if stops {
            break;
        }
    }
    Ok(run)
}

/// 8 bits by cutting fractions off: `(255 * x).astype(uint8)`.
pub fn truncated(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| (255.0 * x).floor() / 255.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{Gradient, Health};
    use crate::model::{Dims, Layer, Linear};
    use crate::reference::Reference;
    use crate::weights::{self, Tensors};
    use std::cell::Cell;

    const BUDGET: Budget = Budget { eps: 0.25, step_size: 0.1, steps: 3, bounds: (0.0, 1.0) };

    /// Images of so many values for targets of class 1.
    fn batch(x0: &[f32], n: usize) -> Batch {
        Batch { x0: x0.to_vec(), labels: vec![0; n], targets: vec![1; n], ids: (0..n as u64).collect() }
    }

    fn answer(gradient: Vec<f32>, targets: &[u32]) -> Result<Gradient> {
        let n = targets.len();
        Ok(Gradient { gradient, loss: vec![0.0; n], health: vec![Health::default(); n] })
    }

    /// The same gradient wherever the images are.
    fn flat(g: &[f32]) -> impl Fn(&[f32], &[u32]) -> Result<Gradient> {
        move |_: &[f32], targets: &[u32]| answer(g.to_vec(), targets)
    }

    #[test]
    fn a_shared_perturbation_follows_the_mean_to_either_edge_of_the_ball() {
        let run = shared(&flat(&[1.0, -1.0, -3.0, -1.0]), &batch(&[0.5, 0.5, 0.625, 0.875], 2), &BUDGET).unwrap();
        assert_eq!((run.x, run.first, run.steps), (vec![0.75, 0.75, 0.875, 1.0], vec![-1; 4], 6));
        let run = shared(&flat(&[1.0, 1.0]), &batch(&[0.5, 0.125], 1), &BUDGET).unwrap();
        assert_eq!(run.x, [0.25, 0.0]);
    }

    /// 10⁻⁸ is zero in 16 bits, a thousand times as much is not.
    #[test]
    fn scaled_gradients_outlast_half_precision() {
        let moved = |n: usize, scale: f32| {
            half_precision(&flat(&[1e-8]), &batch(&[0.5], 1), &BUDGET, n, scale).unwrap().x != [0.5]
        };
        assert_eq!((moved(1, 1.0), moved(1, 1024.0), moved(4096, 1024.0)), (false, true, false));
    }

    #[test]
    fn a_batch_without_a_gradient_leaves_no_mark_on_its_momentum() {
        let calls = Cell::new(0.0_f32);
        let late = |_: &[f32], targets: &[u32]| answer(vec![-calls.replace(1.0)], targets);
        assert_eq!(batch_momentum(&late, &batch(&[0.5], 1), &BUDGET).unwrap().x, [0.5 + 0.1 + 0.1]);
    }

    #[test]
    fn steps_as_long_as_a_mean_gradient_are_pulled_back_from_outside_alone() {
        let x = |g: &[f32], n| unnormalised(&flat(g), &batch(&[0.5, 0.5], 1), &BUDGET, n).unwrap().x;
        let near = |x: &[f32], want: f32| (x[0] - want).abs() < 1e-6 && x[1] == 0.5;
        assert!(near(&x(&[0.5, 0.0], 1), 0.35) && near(&x(&[0.5, 0.0], 10), 0.485) && near(&x(&[9.0, 0.0], 1), 0.25));
    }

    /// The second image succeeds in the first step, the first one in the fifth.
    #[test]
    fn a_batch_stops_with_any_first_success_or_with_the_last() {
        let layers =
            vec![Layer::Flatten, Layer::Linear(Linear { name: "z".into(), inputs: 1, outputs: 2, bias: true })];
        let weight = ("z.weight".to_string(), (vec![2, 1], vec![0.0, 1.0]));
        let tensors = Tensors::from([weight, ("z.bias".to_string(), (vec![2], vec![0.5, 0.0]))]);
        let engine = Reference::new(weights::from_layers(layers, Dims::new(1, 1, 1), tensors).unwrap()).unwrap();
        let (net, batch) = (flat(&[-1.0, -1.0]), batch(&[0.05, 0.45], 2));
        let budget = Budget { eps: 1.0, steps: 9, ..BUDGET };
        let steps = |stop| stop_together(&engine, &net, &batch, &budget, stop).unwrap().steps;
        assert_eq!((steps(Stop::First), steps(Stop::All)), (2, 10));
    }

    #[test]
    fn fractions_of_a_level_are_cut_off() {
        let levels = |x: &[f32]| truncated(x).iter().map(|x| (255.0 * x).round()).collect::<Vec<_>>();
        assert_eq!(levels(&[0.5, 1.0, 254.9 / 255.0, 0.0]), [127.0, 255.0, 254.0, 0.0]);
    }
}
