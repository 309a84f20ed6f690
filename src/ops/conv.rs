//! Convolution: `shaders/conv2d.wgsl`. The input gradient is a convolution with the weights transposed and turned by 180°.

use super::{Build, Tile, Variant};
use super::{Epilogue, Value, blocks, slice_bytes, slices, workgroup};
use crate::error::Result;
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Conv2d, Dims, Params};

/// Weights as a gather sees them: output channel, input channel, kernel row, kernel column.
struct Gather<'a> {
    layer: &'a str,
    x: Value,
    y: Value,
    kernel: usize,
    /// Step in the input from one output to the next.
    stride: usize,
    /// The input is spread out by this much first.
    dilate: usize,
    padding: i32,
    weight: &'a dyn Fn(usize, usize, usize, usize) -> f32,
    bias: &'a dyn Fn(usize) -> f32,
    flops: u64,
}

fn flops(c: &Conv2d, y: Dims) -> u64 {
    2 * (c.inputs * c.outputs * c.kernel * c.kernel * y.h * y.w) as u64
}

/// y = conv(x) + bias, then the epilogue.
pub(crate) fn forward(build: &mut Build, c: &Conv2d, p: &Params, x: Value, y: Value, epilogue: Epilogue) -> Result<()> {
    let k = c.kernel;
    let entry = match build.target.variant {
        Variant::Naive => "conv2d_forward",
        _ => "conv2d_forward_tiled",
    };
    let gather = Gather {
        layer: &c.name,
        x,
        y,
        kernel: k,
        stride: c.stride,
        dilate: 1,
        padding: c.padding as i32,
        weight: &|o, i, r, s| p.weight[((o * c.inputs + i) * k + r) * k + s],
        bias: &|o| p.bias[o],
        flops: flops(c, y.dims),
    };
    emit(build, entry, &gather, epilogue)
}

/// dx = convᵀ(dy), then the epilogue.
pub(crate) fn input_grad(
    build: &mut Build,
    c: &Conv2d,
    p: &Params,
    dy: Value,
    dx: Value,
    epilogue: Epilogue,
) -> Result<()> {
    let k = c.kernel;
    let entry = match (build.target.variant, c.stride) {
        (Variant::Fast | Variant::Only(_), 1) => "conv2d_input_grad_tiled",
        (Variant::Fast | Variant::Only(_), 2) => "conv2d_input_grad_parity",
        _ => "conv2d_input_grad",
    };
    let gather = Gather {
        layer: &c.name,
        x: dy,
        y: dx,
        kernel: k,
        stride: 1,
        dilate: c.stride,
        // Negative where the padding is wider than the kernel: then the gradient begins inside of dy.
        padding: k as i32 - 1 - c.padding as i32,
        weight: &|o, i, r, s| p.weight[((i * c.inputs + o) * k + k - 1 - r) * k + k - 1 - s],
        bias: &|_| 0.0,
        flops: flops(c, dy.dims),
    };
    emit(build, entry, &gather, epilogue)
}

fn emit(build: &mut Build, entry: &'static str, g: &Gather, epilogue: Epilogue) -> Result<()> {
    if let Some(tile) = workgroup::wanted(build) {
        emit_workgroup(build, entry, g, epilogue, tile);
        return Ok(());
    }
    let (i4, o4) = (blocks(g.x.dims.c) as usize, blocks(g.y.dims.c) as usize);
    let cb = g.x.dims.c.min(4);
    let strip = i4 * g.kernel * g.kernel * cb;
    // Output blocks and pixels in the registers of one invocation, and rows that it covers. 16 channels × 8 pixels is what
    // the bench found best on lavapipe (benches/NOTES.md).
    let pixels = if g.y.dims.w > 4 { 8 } else { 4 };
    let (qt, px, rows) = match entry {
        "conv2d_forward" | "conv2d_input_grad" => (2, 4, 1),
        // Large kernels are long programs as they are: a small tile keeps them from compiling for ten seconds.
        "conv2d_input_grad_parity" if g.kernel > 4 => (2, 4, 2),
        "conv2d_forward_tiled" | "conv2d_input_grad_tiled" if g.kernel > 4 => (2, pixels, 1),
        "conv2d_input_grad_parity" => (if o4 >= 4 { 4 } else { 2 }, pixels, 2),
        // A word of signs that is written covers two blocks; a lone block (the gradient of a small image) writes none.
        _ if o4 >= 4 => (4, pixels, 1),
        _ if o4 == 1 && epilogue.relu.is_none() => (1, pixels, 1),
        _ => (2, pixels, 1),
    };
    let (count, number, uniform) = slices(o4, qt, strip, build.target.limits.uniform_binding);
    let items = (g.y.dims.h.div_ceil(rows) * g.y.dims.w.div_ceil(px)) as u32;
    let size = workgroup(items);
    let mut consts = vec![
        ("IC4", i4 as u32),
        ("IH", g.x.dims.h as u32),
        ("IW", g.x.dims.w as u32),
        ("R", g.kernel as u32),
        ("S", g.kernel as u32),
        ("CB", cb as u32),
        ("STRIDE", g.stride as u32),
        ("DILATE", g.dilate as u32),
        ("PAD", g.padding.cast_unsigned()),
        ("QT", qt as u32),
        ("PX", px as u32),
        ("SLICE", count as u32),
        ("UNIFORM", u32::from(uniform)),
        ("WG", size),
    ];
    let mut bindings = vec![("x", g.x.id), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    let per_tap = g.kernel * cb;
    let weight = |o: usize, i: usize, r: usize, s: usize| {
        if o < g.y.dims.c && i < g.x.dims.c { (g.weight)(o, i, r, s) } else { 0.0 }
    };
    for part in 0..number {
        let bytes = slice_bytes(
            part * count,
            count,
            strip,
            |b| std::array::from_fn(|j| if 4 * b + j < g.y.dims.c { (g.bias)(4 * b + j) } else { 0.0 }),
            |b, at| {
                let (c4, r, s, i) = (at / (g.kernel * per_tap), at / per_tap % g.kernel, at / cb % g.kernel, at % cb);
                std::array::from_fn(|j| weight(4 * b + j, 4 * c4 + i, r, s))
            },
        );
        let w = build.constant(format!("{} weights", g.layer), bytes);
        let mut bindings = bindings.clone();
        bindings.push(("w", w));
        build.push(Dispatch {
            kernel: Kernel { entry, consts: consts.clone(), storage: build.target.storage },
            layer: g.layer.into(),
            bindings,
            grid: Grid::PerSample(items.div_ceil(size), (count / qt) as u32),
            flops: g.flops / number as u64,
        });
    }
    Ok(())
}

/// The same as a product of matrices.
fn emit_workgroup(build: &mut Build, entry: &'static str, g: &Gather, epilogue: Epilogue, tile: Tile) {
    let (inputs, outputs) = (g.x.dims.c, g.y.dims.c);
    let forward = entry.starts_with("conv2d_forward");
    let product = workgroup::Product {
        entry: if forward { "conv2d_forward_workgroup" } else { "conv2d_input_grad_workgroup" },
        layer: g.layer,
        x: g.x,
        y: g.y,
        linear: false,
        kernel: g.kernel,
        stride: g.stride,
        step: g.dilate,
        padding: g.padding,
        cb: inputs.min(4),
        weight: &|[b, j], [c4, i], r, s| {
            let (o, i) = (4 * b + j, 4 * c4 + i);
            if o < outputs && i < inputs { (g.weight)(o, i, r, s) } else { 0.0 }
        },
        bias: &|[b, j]| if 4 * b + j < outputs { (g.bias)(4 * b + j) } else { 0.0 },
        flops: g.flops,
    };
    product.emit(build, tile, epilogue);
}
