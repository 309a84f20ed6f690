//! Where gradients of f16 begin: `shaders/scale.wgsl`.

use super::{Build, Value};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::tensor::Kind;

/// Seeds times a power of two for each sample, and the floats that undo it ([`Math::F16`](super::Math::F16)).
pub(crate) fn input_grad(build: &mut Build, dz: Value) -> (Value, usize) {
    let (size, classes) = (32, dz.dims.c as u32);
    let scaled = build.activation(dz.dims, None);
    let unscale = build.resource("powers of two", Kind::Floats, 1);
    build.push(Dispatch {
        kernel: Kernel::new("scale_input_grad", vec![("K", classes), ("WG", size)], build.target.storage),
        layer: "scale".into(),
        bindings: vec![("dy", dz.id), ("y", scaled.id), ("unscale", unscale)],
        grid: Grid::Flat { items: 1, samples: 1, size, y: 1 },
        flops: u64::from(classes),
    });
    (scaled, unscale)
}
