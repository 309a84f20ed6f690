//! Convolution 3×3 with a quarter of the products: `shaders/winograd.wgsl`. Other roundings than the definition's, so
//! only for [`Math::Fast`].

use super::gather::{Gather, Pass};
use super::tile::{Family, with_zeros};
use super::{Bindings, Build, Consts, Epilogue, Math, Target, Variant, workgroup};
use crate::kernel::{Dispatch, Grid, Kernel};

/// Outputs of a tile along each side.
const SIDE: usize = 4;

/// Places of a transformed tile.
const PLACES: usize = 36;

/// Blocks of four output channels in an invocation of the naive kernel, and of the one that ends a convolution: a word
/// of signs.
const BLOCKS: usize = 2;

/// Blocks of four output channels in one invocation of the products; twice as many where they divide all there are.
const GROUP: usize = 4;

/// Texels that V or M takes, unless one sample or the tiles of a subgroup need more: so large are the parts of a batch
/// that go through the three kernels at a time, for caches hold both, and their stages (`benches/NOTES.md`).
const PART: u64 = 160 << 10;

/// Channels, read and written, from which this is faster than the definition (`benches/NOTES.md`).
const CHANNELS: usize = 64;

/// G, for the points 0, 1, −1, 2, −2 and infinity.
const G: [[f64; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// Whether a layer is computed so: a question of its shape and of the device's class, not of the batch, nor of the
/// variant.
pub(super) fn is_chosen(target: &Target, g: &Gather) -> bool {
    let (x, y) = (g.x.dims, g.y.dims);
    let is_fast_here = target.is_software && Family::best(target) == Family::Broadcast;
    let usual = (g.kernel, g.stride, g.dilate, g.padding) == (3, 1, 1, 1);
    // Tiles that reach over the edge by more than a third of the image cost what they save.
    let fits = 3 * tiles(g) as usize * SIDE * SIDE <= 4 * y.h * y.w;
    target.math == Math::Fast && is_fast_here && usual && fits && x.c.min(y.c) >= CHANNELS
}

/// G g Gᵀ, each value rounded once.
fn transformed(g: impl Fn(usize, usize) -> f32) -> [f32; PLACES] {
    let half: [[f64; 3]; 6] =
        std::array::from_fn(|i| std::array::from_fn(|s| (0..3).map(|r| G[i][r] * f64::from(g(r, s))).sum()));
    std::array::from_fn(|p| (0..3).map(|s| half[p / 6][s] * G[p % 6][s]).sum::<f64>() as f32)
}

pub(super) fn emit(build: &mut Build, g: &Gather, epilogue: Epilogue) {
    if build.target.variant == Variant::Naive {
        naive(build, g, epilogue);
    } else {
        apart(build, g, epilogue);
    }
}

/// Tiles of one sample.
fn tiles(g: &Gather) -> u32 {
    (g.y.dims.h.div_ceil(SIDE) * g.y.dims.w.div_ceil(SIDE)) as u32
}

fn consts(g: &Gather) -> Consts {
    let [h, w] = [g.x.dims.h, g.x.dims.w].map(|side| side as u32);
    vec![("IC4", g.blocks().0 as u32), ("IH", h), ("IW", w)]
}

/// Everything in one kernel, in plain loops.
fn naive(build: &mut Build, g: &Gather, epilogue: Epilogue) {
    let groups = g.blocks().1.div_ceil(BLOCKS);
    let items = tiles(g);
    let size = workgroup(items);
    let mut consts = consts(g);
    consts.extend([("QT", BLOCKS as u32), ("PX", SIDE as u32), ("OT", groups as u32), ("WG", size)]);
    let mut bindings = vec![("x", g.x.id), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    // [OT·QT] biases, then [OT, IC4, QT, 36, 4], each of 4 output channels.
    let mut texels: Vec<[f32; 4]> = (0..groups * BLOCKS).map(|b| g.biases(b)).collect();
    for t in 0..groups {
        for c4 in 0..g.blocks().0 {
            for u in (t * BLOCKS..(t + 1) * BLOCKS).map(|b| block(g, b, c4)) {
                texels.extend(u.into_iter().flatten());
            }
        }
    }
    bindings.push(("w", build.texels(format!("{} weights", g.layer), with_zeros(texels))));
    let entry = match g.pass {
        Pass::Forward => "conv2d_forward_winograd",
        Pass::InputGrad => "conv2d_input_grad_winograd",
    };
    let (i, o) = (g.x.dims.c as u64, g.y.dims.c as u64);
    let grid = Grid::PerSample(items.div_ceil(size), groups as u32);
    push(build, g, entry, consts, bindings, grid, before(i) + products(i, o) + after(o));
}

/// Transforms and products in kernels of their own: together they are too long a program, and compile for ten seconds.
fn apart(build: &mut Build, g: &Gather, epilogue: Epilogue) {
    let (i4, o4) = g.blocks();
    // The more channels, the fewer loads of V.
    let qt = if o4.is_multiple_of(2 * GROUP) { 2 * GROUP } else { GROUP };
    let groups = o4.div_ceil(qt);
    let m4 = groups * qt;
    let tiles = tiles(g);
    let share = build.target.share();
    // Tiles of an invocation of the products: where an image has few, a small batch must fill a subgroup, too.
    let px = if tiles < 4 { 2 } else { 4 };
    let fit = PART / (PLACES * i4.max(m4)) as u64 / u64::from(tiles);
    let part = (fit as u32).max((share * px).div_ceil(tiles));
    let passing = |blocks: usize| u64::from(part) * u64::from(tiles) * (PLACES * blocks) as u64;
    let (v, m) = (build.passing(passing(i4)), build.passing(passing(m4)));
    let in_parts = |items, each, size, y| Grid::Parts { part, items, each, size, y };
    let [first, second, third] = match g.pass {
        Pass::Forward => {
            ["conv2d_forward_winograd_before", "conv2d_forward_winograd_products", "conv2d_forward_winograd_after"]
        }
        Pass::InputGrad => [
            "conv2d_input_grad_winograd_before",
            "conv2d_input_grad_winograd_products",
            "conv2d_input_grad_winograd_after",
        ],
    };
    let sides = [("OH", g.y.dims.h as u32), ("OW", g.y.dims.w as u32)];
    let (i, o) = (g.x.dims.c as u64, g.y.dims.c as u64);

    let items = tiles * i4 as u32;
    let size = workgroup(items);
    let consts_before = [consts(g), sides.to_vec(), vec![("WG", size), ("PART", part)]].concat();
    let bindings = vec![("x", g.x.id), ("v", v), ("health", build.health)];
    push(build, g, first, consts_before, bindings, in_parts(items, 1, size, 1), before(i));

    let size = build.target.handing_round(tiles.div_ceil(px));
    let shape = vec![
        ("QT", qt as u32),
        ("PX", px),
        ("OT", groups as u32),
        ("SHARE", share),
        ("TEXELS", 4 * qt as u32),
        ("WG", size),
        ("PART", part),
    ];
    // [36, OT, IC4, 4, QT], each of 4 output channels. Transformed for one block written and one read at a time, so
    // that there is no second copy of all of them.
    let mut texels = vec![[0.0; 4]; PLACES * m4 * i4 * 4];
    for (b, c4) in (0..m4).flat_map(|b| (0..i4).map(move |c4| (b, c4))) {
        for (p, u) in block(g, b, c4).into_iter().enumerate() {
            for (k, u) in u.into_iter().enumerate() {
                texels[((((p * groups + b / qt) * i4 + c4) * 4) + k) * qt + b % qt] = u;
            }
        }
    }
    let w = build.texels(format!("{} weights", g.layer), with_zeros(texels));
    let bindings = vec![("w", w), ("v", v), ("m", m), ("health", build.health)];
    let grid = in_parts(tiles, px, size, (PLACES * groups) as u32);
    push(build, g, second, [consts(g), sides.to_vec(), shape].concat(), bindings, grid, products(i, o));

    let items = tiles * (o4.div_ceil(2)) as u32;
    let size = workgroup(items);
    let mut consts = vec![("QT", BLOCKS as u32), ("PX", SIDE as u32), ("M4", m4 as u32), ("WG", size), ("PART", part)];
    let biases: Vec<[f32; 4]> = (0..m4).map(|b| g.biases(b)).collect();
    let b = build.texels(format!("{} biases", g.layer), with_zeros(biases));
    let mut bindings = vec![("b", b), ("m", m), ("y", g.y.id)];
    epilogue.apply(build, g.y.dims, &mut consts, &mut bindings);
    if epilogue.relu.is_none() {
        bindings.push(("health", build.health));
    }
    push(build, g, third, consts, bindings, in_parts(items, 1, size, 1), after(o));
}

fn push(
    build: &mut Build,
    g: &Gather,
    entry: &'static str,
    consts: Consts,
    bindings: Bindings,
    grid: Grid,
    flops_of_a_tile: u64,
) {
    let kernel = Kernel::new(entry, consts, build.target.storage);
    let flops = u64::from(tiles(g)) * flops_of_a_tile;
    build.push(Dispatch { kernel, layer: g.layer.into(), bindings, grid, flops });
}

/// Transformed weights of a block of four channels written and one read: [36][4 channels read], each of 4 output
/// channels.
fn block(g: &Gather, b: usize, c4: usize) -> [[[f32; 4]; 4]; PLACES] {
    let one = |i: usize, j: usize| transformed(|r, s| g.weights(b, 4 * c4 + i, r, s)[j]);
    let all: [[[f32; PLACES]; 4]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| one(i, j)));
    std::array::from_fn(|p| std::array::from_fn(|i| std::array::from_fn(|j| all[i][j][p])))
}

/// Operations for a tile of so many channels read, or written: lines of each transform.
fn before(channels: u64) -> u64 {
    channels * 12 * 18
}

fn products(inputs: u64, outputs: u64) -> u64 {
    2 * PLACES as u64 * inputs * outputs
}

fn after(channels: u64) -> u64 {
    channels * 10 * 13
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bᵀ and Aᵀ, written out; the shader computes the same with fewer operations.
    const B: [[f64; 6]; 6] = [
        [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ];
    const A: [[f64; 6]; 4] = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ];

    /// Aᵀ((G g Gᵀ) ⊙ (Bᵀ d B))A is the convolution, whatever g and d.
    #[test]
    fn the_transforms_belong_together() {
        let mut scatter = crate::trial::Scatter(7);
        let g: Vec<f32> = (0..9).map(|_| scatter.signed()).collect();
        let d: Vec<f64> = (0..36).map(|_| f64::from(scatter.signed())).collect();
        let u = transformed(|r, s| g[3 * r + s]);
        let v = |i: usize, j: usize| -> f64 {
            (0..36).map(|k| B[i][k / 6] * d[k] * B[j][k % 6]).sum::<f64>() * f64::from(u[6 * i + j])
        };
        for (y, x) in (0..4).flat_map(|y| (0..4).map(move |x| (y, x))) {
            let got: f64 = (0..36).map(|k| A[y][k / 6] * v(k / 6, k % 6) * A[x][k % 6]).sum();
            let want: f64 = (0..9).map(|k| f64::from(g[k]) * d[6 * (y + k / 3) + x + k % 3]).sum();
            // U is rounded to f32, and A multiplies it by up to 64.
            assert!((got - want).abs() < 2e-5, "({y}, {x}): {got} for {want}");
        }
    }
}
