//! Convolution: `shaders/conv2d.wgsl`. The input gradient is a convolution with the weights transposed and turned by
//! 180°.

use super::gather::{Gather, Pass};
use super::tile::{Family, Tile, with_zeros};
use super::workgroup::Gemm;
use super::{Build, Variant, coop, winograd};
use super::{Epilogue, Value, slice_bytes, slices, workgroup};
use crate::habits::SHARE;
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Conv2d, Dims, Params};

fn flops(c: &Conv2d, y: Dims) -> u64 {
    2 * (c.inputs * c.outputs * c.kernel * c.kernel * y.h * y.w) as u64
}

/// y = conv(x) + bias, then the epilogue.
pub(crate) fn forward(build: &mut Build, c: &Conv2d, p: &Params, x: Value, y: Value, epilogue: Epilogue) {
    let k = c.kernel;
    let gather = Gather {
        layer: &c.name,
        pass: Pass::Forward,
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
    emit(build, &gather, epilogue);
}

/// dx = convᵀ(dy), then the epilogue.
pub(crate) fn input_grad(build: &mut Build, c: &Conv2d, p: &Params, dy: Value, dx: Value, epilogue: Epilogue) {
    let k = c.kernel;
    let gather = Gather {
        layer: &c.name,
        pass: Pass::InputGrad,
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
    emit(build, &gather, epilogue);
}

fn emit(build: &mut Build, g: &Gather, epilogue: Epilogue) {
    let first = build.dispatches.len();
    let shape = g.shape(&epilogue);
    // Both variants of such a layer have the weights that the units take.
    let rounded = |o, i, r, s| coop::rounded((g.weight)(o, i, r, s));
    match g.tile(build, &shape, &epilogue) {
        _ if coop::is_chosen(build.target, g) => {
            let g = Gather { weight: &rounded, ..*g };
            match build.target.variant {
                Variant::Naive => sliced(build, &g, None, epilogue),
                _ => coop::emit(build, &g, epilogue),
            }
        }
        _ if winograd::is_chosen(build.target, g) => winograd::emit(build, g, epilogue),
        Some(tile) if tile.family == Family::Broadcast => broadcast(build, g, tile, epilogue),
        Some(tile) if tile.family.is_of_workgroups() => product(build, g, tile, epilogue),
        tile => sliced(build, g, tile, epilogue),
    }
    build.sites.push((first..build.dispatches.len(), shape));
}

/// The naive kernels and the register tiles: weights in slices, uniform where they fit.
fn sliced(build: &mut Build, g: &Gather, tile: Option<Tile>, epilogue: Epilogue) {
    let (i4, o4) = g.blocks();
    let cb = g.in_block();
    let strip = i4 * g.kernel * g.kernel * cb;
    let entry = match (tile, g.pass, g.dilate) {
        (None, Pass::Forward, _) => "conv2d_forward",
        (None, Pass::InputGrad, _) => "conv2d_input_grad",
        (Some(_), Pass::Forward, _) => "conv2d_forward_tiled",
        (Some(_), Pass::InputGrad, 2) => "conv2d_input_grad_parity",
        (Some(_), Pass::InputGrad, _) => "conv2d_input_grad_tiled",
    };
    let tile = tile.unwrap_or(Tile::new(Family::Register, 2, 4));
    let (qt, px) = (tile.blocks as usize, tile.pixels as usize);
    let rows = if entry == "conv2d_input_grad_parity" { 2 } else { 1 };
    let (count, number, uniform) = slices(o4, qt, strip, build.target.limits.uniform_binding);
    let items = (g.y.dims.h.div_ceil(rows) * g.y.dims.w.div_ceil(px)) as u32;
    let size = workgroup(items);
    let mut consts = g.consts(tile, size);
    consts.extend([("SLICE", count as u32), ("UNIFORM", u32::from(uniform))]);
    let mut bindings = vec![("x", g.x.id), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    let per_tap = g.kernel * cb;
    for part in 0..number {
        let bytes = slice_bytes(
            part * count,
            count,
            strip,
            |b| g.biases(b),
            |b, at| {
                let (c4, r, s, i) = (at / (g.kernel * per_tap), at / per_tap % g.kernel, at / cb % g.kernel, at % cb);
                g.weights(b, 4 * c4 + i, r, s)
            },
        );
        let w = build.constant(format!("{} weights", g.layer), bytes);
        let mut bindings = bindings.clone();
        bindings.push(("w", w));
        build.push(Dispatch {
            kernel: Kernel::new(entry, consts.clone(), build.target.storage),
            layer: g.layer.into(),
            bindings,
            grid: Grid::PerSample(items.div_ceil(size), (count / qt) as u32),
            flops: g.flops / number as u64,
        });
    }
}

/// Weights handed round in subgroups: they lie as texels, each tile's and kernel row's together.
fn broadcast(build: &mut Build, g: &Gather, tile: Tile, epilogue: Epilogue) {
    let (i4, o4) = g.blocks();
    let (qt, cb, k) = (tile.blocks as usize, g.in_block(), g.kernel);
    let parity = g.dilate == 2;
    let entry = match (g.pass, parity) {
        (Pass::Forward, _) => "conv2d_forward_broadcast",
        (Pass::InputGrad, true) => "conv2d_input_grad_parity_broadcast",
        (Pass::InputGrad, false) => "conv2d_input_grad_broadcast",
    };
    let across = g.y.dims.w.div_ceil(tile.pixels as usize) as u32;
    let items = across * if parity { g.y.dims.h.div_ceil(2) } else { g.y.dims.h } as u32;
    let tiles = o4.div_ceil(qt);
    let share = build.target.share();
    let size = build.target.handing_round(items);
    let mut consts = g.consts(tile, size);
    consts.extend([("OT", tiles as u32), ("SHARE", share), ("TEXELS", (k * cb * qt) as u32)]);
    // Pixels of a row that one invocation owns, those before them that it reads, and all that it reads.
    let (px, kernel, stride) = (tile.pixels as i32, k as i32, g.stride as i32);
    let (own, before, read) = if parity {
        (px / 2, g.padding / 2, (px + kernel - 2 - g.padding) / 2 + g.padding / 2 + 1)
    } else {
        (px * stride, g.padding, (px - 1) * stride + kernel)
    };
    // Those around its own are its neighbours'. They can be had from the subgroup where a row of tiles never leaves it,
    // and where the row's last tile is the image's end. Of wider subgroups see `hand.wgsl`: there a texel is cheaper.
    let in_reach = share == SHARE
        && SHARE.is_multiple_of(across)
        && (0..=kernel - stride).contains(&g.padding)
        && before.max(read - before - own) <= own
        && across as i32 * own >= g.x.dims.w as i32;
    let (from, to) = if in_reach { (before, read.min(before + own)) } else { (0, read) };
    consts.extend([("OWN", own as u32), ("OWN_0", from as u32), ("OWN_1", to as u32), ("READ", read as u32)]);
    let mut bindings = vec![("x", g.x.id), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    if epilogue.relu.is_none() {
        bindings.push(("health", build.health));
    }
    let mut texels: Vec<[f32; 4]> = (0..tiles * qt).map(|b| g.biases(b)).collect();
    for t in 0..tiles {
        for c4 in 0..i4 {
            for (r, s) in (0..k).flat_map(|r| (0..k).map(move |s| (r, s))) {
                for i in 4 * c4..4 * c4 + cb {
                    texels.extend((t * qt..(t + 1) * qt).map(|b| g.weights(b, i, r, s)));
                }
            }
        }
    }
    bindings.push(("w", build.texels(format!("{} weights", g.layer), with_zeros(texels))));
    build.push(Dispatch {
        kernel: Kernel::new(entry, consts, build.target.storage),
        layer: g.layer.into(),
        bindings,
        grid: Grid::Flat { items, samples: 1, size, y: tiles as u32 * if parity { 2 } else { 1 } },
        flops: g.flops,
    });
}

/// A product of matrices, cut into tiles of whole workgroups.
fn product(build: &mut Build, g: &Gather, tile: Tile, epilogue: Epilogue) {
    let gemm = Gemm {
        entry: match g.pass {
            Pass::Forward => "conv2d_forward_workgroup",
            Pass::InputGrad => "conv2d_input_grad_workgroup",
        },
        layer: g.layer,
        x: g.x,
        y: g.y,
        linear: false,
        kernel: g.kernel,
        stride: g.stride,
        step: g.dilate,
        padding: g.padding,
        cb: g.in_block(),
        weights: &|b, c4, i, r, s| g.weights(b, 4 * c4 + i, r, s),
        biases: &|b| g.biases(b),
        flops: g.flops,
    };
    gemm.emit(build, tile, epilogue);
}
