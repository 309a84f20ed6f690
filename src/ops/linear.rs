//! Fully connected layers: `shaders/linear.wgsl`. Weights are reordered so that the texels of a sample are read as they lie.

use super::Build;
use super::{Epilogue, Value, blocks, slice_bytes, slices, texels, workgroup};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Dims, Linear, Params};

/// Index in the flattened sample (channel, row, column) of channel `j` of texel `t`, or none where it is padding.
fn flat(d: Dims, t: usize, j: usize) -> Option<usize> {
    let c = 4 * (t / (d.h * d.w)) + j;
    (c < d.c).then(|| c * d.h * d.w + t % (d.h * d.w))
}

/// y = W·x + bias, then the epilogue.
pub(crate) fn forward(build: &mut Build, l: &Linear, p: &Params, x: Value, y: Value, epilogue: Epilogue) {
    let weight = |o: usize, t: usize, j: usize| match flat(x.dims, t, j) {
        Some(i) if o < l.outputs => p.weight[o * l.inputs + i],
        _ => 0.0,
    };
    let bias = |o: usize| p.bias.get(o).copied().unwrap_or(0.0);
    let shape =
        Shape { texels_in: texels(x.dims) as usize, cb: x.dims.c.min(4), blocks_out: blocks(y.dims.c) as usize };
    emit(build, "linear_forward", l, x, y, shape, epilogue, &|b, k, t, i| weight(4 * b + k, t, i), &|b, k| {
        bias(4 * b + k)
    });
}

/// dx = Wᵀ·dy, then the epilogue. Its outputs are the texels of x.
pub(crate) fn input_grad(build: &mut Build, l: &Linear, p: &Params, dy: Value, dx: Value, epilogue: Epilogue) {
    let weight = |t: usize, j: usize, o: usize| match flat(dx.dims, t, j) {
        Some(i) if o < l.outputs && t < texels(dx.dims) as usize => p.weight[o * l.inputs + i],
        _ => 0.0,
    };
    let shape =
        Shape { texels_in: blocks(l.outputs) as usize, cb: l.outputs.min(4), blocks_out: texels(dx.dims) as usize };
    emit(build, "linear_input_grad", l, dy, dx, shape, epilogue, &|b, k, t, i| weight(b, k, 4 * t + i), &|_, _| 0.0);
}

struct Shape {
    texels_in: usize,
    cb: usize,
    blocks_out: usize,
}

/// `weight(block, output in it, texel, channel in it)`
#[expect(clippy::too_many_arguments, reason = "two callers, right above, and no two of these belong together")]
fn emit(
    build: &mut Build,
    entry: &'static str,
    l: &Linear,
    x: Value,
    y: Value,
    shape: Shape,
    epilogue: Epilogue,
    weight: &dyn Fn(usize, usize, usize, usize) -> f32,
    bias: &dyn Fn(usize, usize) -> f32,
) {
    if let Some(tile) = workgroup::wanted(build) {
        let product = workgroup::Product {
            entry: if entry == "linear_forward" { "linear_forward_workgroup" } else { "linear_input_grad_workgroup" },
            layer: &l.name,
            x,
            y,
            linear: true,
            kernel: 1,
            stride: 1,
            step: 1,
            padding: 0,
            cb: shape.cb,
            weight: &|[b, k], [t, i], _, _| weight(b, k, t, i),
            bias: &|[b, k]| bias(b, k),
            flops: 2 * (l.inputs * l.outputs) as u64,
        };
        product.emit(build, tile, epilogue);
        return;
    }
    let strip = shape.texels_in * shape.cb;
    let (count, number, uniform) = slices(shape.blocks_out, 2, strip, build.target.limits.uniform_binding);
    let items = (count / 2) as u32;
    let size = workgroup(items);
    let mut consts = vec![
        ("L", shape.texels_in as u32),
        ("CB", shape.cb as u32),
        ("SLICE", count as u32),
        ("UNIFORM", u32::from(uniform)),
        ("WG", size),
    ];
    let mut bindings = vec![("x", x.id), ("y", y.id)];
    epilogue.apply(build, y.dims, &mut consts, &mut bindings);
    for part in 0..number {
        let bytes = slice_bytes(
            part * count,
            count,
            strip,
            |b| std::array::from_fn(|k| bias(b, k)),
            |b, at| std::array::from_fn(|k| weight(b, k, at / shape.cb, at % shape.cb)),
        );
        let w = build.constant(format!("{} weights", l.name), bytes);
        let mut bindings = bindings.clone();
        bindings.push(("w", w));
        build.push(Dispatch {
            kernel: Kernel { entry, consts: consts.clone(), storage: build.target.storage },
            layer: l.name.clone(),
            bindings,
            grid: Grid::PerSample(items.div_ceil(size), 1),
            flops: 2 * (l.inputs * l.outputs / number) as u64,
        });
    }
}
