//! Losses and the seeds of their backward passes: `shaders/loss.wgsl`.

use super::Build;
use super::{Ids, Value};
use crate::attack::Loss;
use crate::kernel::{Dispatch, Grid, Kernel};

/// loss ← that of the logits `x`, y ← its gradient, each sample for itself; states ← loss and predicted class.
pub(crate) fn forward(build: &Build, loss: Loss, x: Value, y: Value, ids: &Ids) -> Dispatch {
    let size = 32;
    let (entry, layer) = match loss {
        Loss::CrossEntropy => ("cross_entropy_forward", "cross_entropy"),
        Loss::Margin => ("margin_forward", "margin"),
        Loss::Dlr => ("dlr_forward", "dlr"),
        Loss::Difference => ("difference_forward", "difference"),
    };
    Dispatch {
        kernel: Kernel::new(entry, vec![("K", x.dims.c as u32), ("WG", size)], build.target.storage),
        layer: layer.into(),
        bindings: vec![
            ("x", x.id),
            ("samples", ids.samples),
            ("y", y.id),
            ("loss", ids.loss),
            ("states", ids.states),
            ("health", ids.health),
        ],
        grid: Grid::Flat { items: 1, samples: 1, size, y: 1 },
        flops: 8 * x.dims.c as u64,
    }
}
