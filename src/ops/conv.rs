//! Convolution: `shaders/conv2d.wgsl`. The input gradient is a convolution with the weights transposed and turned by 180°.

use super::tile::{Family, SHARE, Tile};
use super::workgroup::{Gemm, LARGEST};
use super::{Build, Variant, coop, winograd};
use super::{Epilogue, Value, blocks, slice_bytes, slices, workgroup};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Conv2d, Dims, Params};

/// Weights as a gather sees them: output channel, input channel, kernel row, kernel column.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a> {
    pub layer: &'a str,
    pub pass: Pass,
    pub x: Value,
    pub y: Value,
    pub kernel: usize,
    /// Step in the input from one output to the next.
    pub stride: usize,
    /// The input is spread out by this much first.
    pub dilate: usize,
    pub padding: i32,
    weight: &'a dyn Fn(usize, usize, usize, usize) -> f32,
    bias: &'a dyn Fn(usize) -> f32,
    pub flops: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    InputGrad,
}

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
        Some(tile) if tile.family == Family::Workgroup => product(build, g, tile, epilogue),
        tile => sliced(build, g, tile, epilogue),
    }
    build.sites.push((first..build.dispatches.len(), shape));
}

impl Gather<'_> {
    /// Blocks of four channels, read and written.
    pub fn blocks(&self) -> (usize, usize) {
        (blocks(self.x.dims.c) as usize, blocks(self.y.dims.c) as usize)
    }

    /// Input channels in a block: four, unless there are fewer in all.
    fn in_block(&self) -> usize {
        self.x.dims.c.min(4)
    }

    /// What a choice among tiles depends on.
    fn shape(&self, epilogue: &Epilogue) -> String {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::InputGrad => "input_grad",
        };
        let Gather { kernel, stride, dilate, padding, .. } = self;
        let (x, y) = (self.x.dims, self.y.dims);
        format!("conv2d_{pass} {x} to {y} kernel {kernel} stride {stride}/{dilate} padding {padding}{epilogue}")
    }

    /// The tile that computes this, none for the naive kernel.
    fn tile(&self, build: &Build, shape: &str, epilogue: &Epilogue) -> Option<Tile> {
        let target = build.target;
        let wanted = match target.variant {
            Variant::Naive => return None,
            Variant::Only(tile) => Some(tile),
            Variant::Fast => target.tuning.tile(shape),
        };
        let wanted = wanted.filter(|tile| self.serves(*tile, epilogue) && tile.family.is_offered(target));
        let family = Family::best(target);
        let default = (self.dilate <= 2 || family == Family::Workgroup).then(|| self.default_tile(family, epilogue));
        wanted.or(default)
    }

    fn serves(&self, tile: Tile, epilogue: &Epilogue) -> bool {
        // Products of matrices are cut to fit, whatever the stride.
        if self.dilate > 2 || tile.family == Family::Workgroup {
            return tile.family == Family::Workgroup;
        }
        let (_, o4) = self.blocks();
        // A word of signs covers two blocks and four pixels, so only a lone block without one can stand alone.
        let lone = o4 == 1 && epilogue.relu.is_none() && !(self.dilate == 2 && tile.family == Family::Register);
        let pairs = tile.blocks.is_multiple_of(2) || (tile.blocks == 1 && lone);
        pairs && tile.pixels.is_multiple_of(4) && tile.blocks as usize <= o4.next_multiple_of(2)
    }

    /// What `benches/NOTES.md` found best.
    fn default_tile(&self, family: Family, epilogue: &Epilogue) -> Tile {
        let (_, o4) = self.blocks();
        let wide = if self.y.dims.w > 4 { 8 } else { 4 };
        let lone = o4 == 1 && epilogue.relu.is_none();
        let (blocks, pixels) = match family {
            // One block's accumulators at a time are in registers: sixteen of them. A tap that meets every second pixel, or
            // few channels, leave room for more pixels.
            Family::Broadcast if lone => (1, wide),
            Family::Broadcast => (if o4 >= 4 { 4 } else { 2 }, if self.dilate == 2 || o4 < 4 { wide } else { 4 }),
            Family::Workgroup => (LARGEST.blocks, LARGEST.pixels),
            // Large kernels are long programs as they are: a small tile keeps them from compiling for ten seconds.
            Family::Register if self.kernel > 4 => (2, if self.dilate == 2 { 4 } else { wide }),
            Family::Register if lone && self.dilate == 1 => (1, wide),
            Family::Register => (if o4 >= 4 { 4 } else { 2 }, wide),
        };
        Tile::new(family, blocks, pixels)
    }

    /// Constants that every kernel of this operation has.
    fn consts(&self, tile: Tile, size: u32) -> Vec<(&'static str, u32)> {
        let (i4, _) = self.blocks();
        vec![
            ("IC4", i4 as u32),
            ("IH", self.x.dims.h as u32),
            ("IW", self.x.dims.w as u32),
            ("R", self.kernel as u32),
            ("S", self.kernel as u32),
            ("CB", self.in_block() as u32),
            ("STRIDE", self.stride as u32),
            ("DILATE", self.dilate as u32),
            ("PAD", self.padding.cast_unsigned()),
            ("QT", tile.blocks),
            ("PX", tile.pixels),
            ("WG", size),
        ]
    }

    /// Four output channels' weights for one input channel and tap; what does not exist is zero.
    pub fn weights(&self, block: usize, i: usize, r: usize, s: usize) -> [f32; 4] {
        std::array::from_fn(|j| {
            let o = 4 * block + j;
            if o < self.y.dims.c && i < self.x.dims.c { (self.weight)(o, i, r, s) } else { 0.0 }
        })
    }

    pub fn biases(&self, block: usize) -> [f32; 4] {
        std::array::from_fn(|j| if 4 * block + j < self.y.dims.c { (self.bias)(4 * block + j) } else { 0.0 })
    }
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
    let size = build.target.handing_round(items);
    let mut consts = g.consts(tile, size);
    consts.push(("OT", tiles as u32));
    // Pixels of a row that one invocation owns, those before them that it reads, and all that it reads.
    let (px, kernel, stride) = (tile.pixels as i32, k as i32, g.stride as i32);
    let (own, before, read) = if parity {
        (px / 2, g.padding / 2, (px + kernel - 2 - g.padding) / 2 + g.padding / 2 + 1)
    } else {
        (px * stride, g.padding, (px - 1) * stride + kernel)
    };
    // Those around its own are its neighbours'. They can be had from the subgroup where a row of tiles never leaves it, and where
    // the row's last tile is the image's end.
    let in_reach = SHARE.is_multiple_of(across)
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
    // The last kernel row is read in whole eights too, and sums begin at the first of these zeros.
    texels.resize(texels.len().next_multiple_of(SHARE as usize) + SHARE as usize, [0.0; 4]);
    bindings.push(("w", build.texels(format!("{} weights", g.layer), bytemuck::cast_slice(&texels).to_vec())));
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
