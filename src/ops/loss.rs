//! Losses and the seeds of their backward passes: `shaders/loss.wgsl`.

use super::Build;
use super::Value;
use crate::kernel::{Dispatch, Grid, Kernel};

/// loss = −log softmax(x)[class], y = softmax(x) − onehot(class), each sample for itself.
pub(crate) fn cross_entropy_forward(build: &mut Build, x: Value, y: Value, samples: usize, loss: usize) {
    let size = 32;
    let kernel = Kernel {
        entry: "cross_entropy_forward",
        consts: vec![("K", x.dims.c as u32), ("WG", size)],
        storage: build.target.storage,
    };
    let health = build.health;
    build.push(Dispatch {
        kernel,
        layer: "cross_entropy".into(),
        bindings: vec![("x", x.id), ("samples", samples), ("y", y.id), ("loss", loss), ("health", health)],
        grid: Grid::Flat { items: 1, samples: 1, size, y: 1 },
        flops: 8 * x.dims.c as u64,
    });
}
