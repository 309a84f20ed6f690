//! Fully connected layers: `shaders/linear.wgsl`. Weights are reordered so that the texels of a sample are read as they
//! lie.

use super::tile::{Family, Tile, with_zeros};
use super::workgroup::Gemm;
use super::{Build, Variant};
use super::{Epilogue, Value, blocks, slice_bytes, slices, texels, workgroup};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Dims, Linear, Params};

/// Index in the flattened sample (channel, row, column) of channel `j` of texel `t`, or none where it is padding.
fn flat(d: Dims, t: usize, j: usize) -> Option<usize> {
    let c = 4 * (t / (d.h * d.w)) + j;
    (c < d.c).then(|| c * d.h * d.w + t % (d.h * d.w))
}

/// Texels of a sample that tiles of whole workgroups take at most: they loop two to three times for each, and loops are
/// bounded.
const LONGEST: usize = 12_000;

/// A product of a matrix and the texels of each sample.
struct Product<'a> {
    layer: &'a Linear,
    /// Entry points: naive, with weights handed round, and as tiles of whole workgroups.
    entries: [&'static str; 3],
    x: Value,
    y: Value,
    texels_in: usize,
    /// Channels in a texel that is read.
    cb: usize,
    blocks_out: usize,
    /// Of output `o` of block `b`, channel `i` of texel `t`.
    weight: &'a dyn Fn(usize, usize, usize, usize) -> f32,
    bias: &'a dyn Fn(usize, usize) -> f32,
}

/// y = W·x + bias, then the epilogue.
pub(crate) fn forward(build: &mut Build, l: &Linear, p: &Params, x: Value, y: Value, epilogue: Epilogue) {
    let product = Product {
        layer: l,
        entries: ["linear_forward", "linear_forward_broadcast", "linear_forward_workgroup"],
        x,
        y,
        texels_in: texels(x.dims) as usize,
        cb: x.dims.c.min(4),
        blocks_out: blocks(y.dims.c) as usize,
        weight: &|b, o, t, i| match flat(x.dims, t, i) {
            Some(at) if 4 * b + o < l.outputs => p.weight[(4 * b + o) * l.inputs + at],
            _ => 0.0,
        },
        bias: &|b, o| p.bias.get(4 * b + o).copied().unwrap_or(0.0),
    };
    emit(build, &product, epilogue);
}

/// dx = Wᵀ·dy, then the epilogue. Its outputs are the texels of x.
pub(crate) fn input_grad(build: &mut Build, l: &Linear, p: &Params, dy: Value, dx: Value, epilogue: Epilogue) {
    let product = Product {
        layer: l,
        entries: ["linear_input_grad", "linear_input_grad_broadcast", "linear_input_grad_workgroup"],
        x: dy,
        y: dx,
        texels_in: blocks(l.outputs) as usize,
        cb: l.outputs.min(4),
        blocks_out: texels(dx.dims) as usize,
        weight: &|b, o, t, i| match flat(dx.dims, b, o) {
            Some(at) if 4 * t + i < l.outputs && b < texels(dx.dims) as usize => p.weight[(4 * t + i) * l.inputs + at],
            _ => 0.0,
        },
        bias: &|_, _| 0.0,
    };
    emit(build, &product, epilogue);
}

fn emit(build: &mut Build, p: &Product, epilogue: Epilogue) {
    let first = build.dispatches.len();
    let shape = format!("{} {} to {}{epilogue}", p.entries[0], p.x.dims, p.y.dims);
    let target = build.target;
    let wanted = match target.variant {
        Variant::Only(tile) => Some(tile),
        Variant::Naive => None,
        Variant::Fast => target.tuning.tile(&shape),
    };
    let serves = |tile: &Tile| !tile.family.is_of_workgroups() || p.texels_in <= LONGEST;
    let wanted = wanted.filter(|tile| tile.family.is_offered(target) && serves(tile));
    let default = || match Family::best(target) {
        family if family.is_of_workgroups() && p.texels_in <= LONGEST => family.default_of_workgroups(),
        family if family.is_of_workgroups() => Tile::new(Family::Register, 4, 2),
        family => Tile::new(family, 4, 2),
    };
    let default = (target.variant != Variant::Naive).then(default);
    let tile = wanted.or(default);
    match tile {
        // A word of signs covers two blocks.
        Some(tile) if tile.family == Family::Broadcast && tile.blocks.is_multiple_of(2) => {
            broadcast(build, p, tile, epilogue);
        }
        Some(tile) if tile.family.is_of_workgroups() => product(build, p, tile, epilogue),
        _ => sliced(build, p, epilogue),
    }
    build.sites.push((first..build.dispatches.len(), shape));
}

/// One invocation for eight outputs, weights in slices.
fn sliced(build: &mut Build, p: &Product, epilogue: Epilogue) {
    let strip = p.texels_in * p.cb;
    let (count, number, uniform) = slices(p.blocks_out, 2, strip, build.target.limits.uniform_binding);
    let items = (count / 2) as u32;
    let size = workgroup(items);
    let mut consts = vec![
        ("L", p.texels_in as u32),
        ("CB", p.cb as u32),
        ("SLICE", count as u32),
        ("UNIFORM", u32::from(uniform)),
        ("WG", size),
    ];
    let mut bindings = vec![("x", p.x.id), ("y", p.y.id)];
    epilogue.apply(build, p.y.dims, &mut consts, &mut bindings);
    for part in 0..number {
        let bytes = slice_bytes(
            part * count,
            count,
            strip,
            |b| std::array::from_fn(|o| (p.bias)(b, o)),
            |b, at| std::array::from_fn(|o| (p.weight)(b, o, at / p.cb, at % p.cb)),
        );
        let w = build.constant(format!("{} weights", p.layer.name), bytes);
        let mut bindings = bindings.clone();
        bindings.push(("w", w));
        build.push(Dispatch {
            kernel: Kernel::new(p.entries[0], consts.clone(), build.target.storage),
            layer: p.layer.name.clone(),
            bindings,
            grid: Grid::PerSample(items.div_ceil(size), 1),
            flops: 2 * (p.layer.inputs * p.layer.outputs / number) as u64,
        });
    }
}

/// Blocks of outputs × samples in registers, weights handed round in subgroups.
fn broadcast(build: &mut Build, p: &Product, tile: Tile, epilogue: Epilogue) {
    let qt = tile.blocks as usize;
    let tiles = p.blocks_out.div_ceil(qt);
    let share = build.target.share();
    let size = build.target.handing_round(1);
    let mut consts = vec![
        ("L", p.texels_in as u32),
        ("CB", p.cb as u32),
        ("QT", tile.blocks),
        ("PX", tile.pixels),
        ("OT", tiles as u32),
        ("SHARE", share),
        ("TEXELS", p.cb as u32 * tile.blocks),
        ("WG", size),
    ];
    let mut bindings = vec![("x", p.x.id), ("y", p.y.id)];
    epilogue.apply(build, p.y.dims, &mut consts, &mut bindings);
    if epilogue.relu.is_none() {
        bindings.push(("health", build.health));
    }
    let mut texels: Vec<[f32; 4]> = (0..tiles * qt).map(|b| std::array::from_fn(|o| (p.bias)(b, o))).collect();
    for tile in 0..tiles {
        for (t, i) in (0..p.texels_in).flat_map(|t| (0..p.cb).map(move |i| (t, i))) {
            texels.extend((tile * qt..(tile + 1) * qt).map(|b| std::array::from_fn(|o| (p.weight)(b, o, t, i))));
        }
    }
    bindings.push(("w", build.texels(format!("{} weights", p.layer.name), with_zeros(texels))));
    build.push(Dispatch {
        kernel: Kernel::new(p.entries[1], consts, build.target.storage),
        layer: p.layer.name.clone(),
        bindings,
        grid: Grid::Flat { items: 1, samples: tile.pixels, size, y: tiles as u32 },
        flops: 2 * (p.layer.inputs * p.layer.outputs) as u64,
    });
}

/// Tiles of whole workgroups.
fn product(build: &mut Build, p: &Product, tile: Tile, epilogue: Epilogue) {
    let gemm = Gemm {
        entry: p.entries[2],
        layer: &p.layer.name,
        x: p.x,
        y: p.y,
        linear: true,
        kernel: 1,
        stride: 1,
        step: 1,
        padding: 0,
        cb: p.cb,
        weights: &|b, t, i, _, _| std::array::from_fn(|o| (p.weight)(b, o, t, i)),
        biases: &|b| std::array::from_fn(|o| (p.bias)(b, o)),
        flops: 2 * (p.layer.inputs * p.layer.outputs) as u64,
    };
    gemm.emit(build, tile, epilogue);
}
