//! Tiles of a whole workgroup: `shaders/workgroup.wgsl`. Convolutions and fully connected layers as products of
//! matrices, and how much of one a workgroup does.

use super::{Build, Consts, Epilogue, Family, Tile, Value, blocks};
use crate::kernel::{Dispatch, Grid, Kernel};

/// Tiles that are offered, blocks of four outputs × pixels: the largest first, the last ones for single images. They
/// are cut for each layer.
const TILES: [(u32, u32); 7] = [(32, 128), (16, 128), (16, 64), (8, 128), (4, 256), (8, 32), (8, 16)];
const LEAN: [(u32, u32); 5] = [(16, 128), (16, 64), (8, 128), (4, 256), (8, 32)];

/// Invocations and bytes of shared memory that a tile takes at most: what WebGPU guarantees. Less memory leaves room
/// for more workgroups at a time.
pub(super) const INVOCATIONS: u32 = 256;
pub(super) const STORAGE: u32 = 16 << 10;

/// Every tile of this kind.
pub(super) fn tiles() -> impl Iterator<Item = Tile> {
    let of = |family, sizes: &'static [(u32, u32)]| sizes.iter().map(move |&(b, p)| Tile::new(family, b, p));
    of(Family::Workgroup, &TILES).chain(of(Family::Lean, &LEAN))
}

impl Family {
    /// Whether its tiles are those of a workgroup.
    pub(super) fn is_of_workgroups(self) -> bool {
        matches!(self, Family::Workgroup | Family::Lean)
    }

    /// Its tile for whole batches. One of 32 blocks reads less from memory, but its 256 invocations of 144 registers are
    /// alone on a processor of NVIDIA's, and nobody works while they wait for each other.
    pub(super) fn default_of_workgroups(self) -> Tile {
        Tile::new(self, 16, 128)
    }
}

/// Taps of a kernel that outputs of one phase meet, their row (or column) modulo `step`: every `step`-th. The twin of
/// `first_tap` in `shaders/phase.wgsl`.
pub(super) fn taps(kernel: usize, padding: i32, step: usize, phase: usize) -> impl Iterator<Item = usize> {
    let first = (padding - phase as i32).rem_euclid(step as i32) as usize;
    (first..kernel).step_by(step)
}

/// A convolution or a fully connected layer as a product: for each output block, line (input block and kernel row) and
/// column, CB × 4 weights. A fully connected layer has one pixel, one row and one column, and its inputs are whole
/// texels.
pub(super) struct Gemm<'a> {
    pub entry: &'static str,
    pub layer: &'a str,
    pub x: Value,
    pub y: Value,
    /// Fully connected: groups are made of samples, and every texel is a block of its own.
    pub linear: bool,
    pub kernel: usize,
    /// Step in the input from one output to the next.
    pub stride: usize,
    /// The input is spread out by this much first: as many phases in each direction.
    pub step: usize,
    pub padding: i32,
    /// Channels of an input block that count.
    pub cb: usize,
    /// Of an output block, for an input block and channel in it, kernel row and column; zero for what does not exist.
    pub weights: &'a dyn Fn(usize, usize, usize, usize, usize) -> [f32; 4],
    pub biases: &'a dyn Fn(usize) -> [f32; 4],
    pub flops: u64,
}

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Of a workgroup: blocks of outputs, and pixels.
    blocks: u32,
    pixels: u32,
    /// In registers: the same.
    qt: u32,
    px: u32,
    /// Lines in a slab.
    lines: u32,
}

impl Gemm<'_> {
    /// Blocks that are read, and blocks that are written.
    fn blocks(&self) -> (u32, u32) {
        let (x, y) = (self.x.dims, self.y.dims);
        if self.linear {
            (blocks(x.c) * (x.h * x.w) as u32, blocks(y.c) * (y.h * y.w) as u32)
        } else {
            (blocks(x.c), blocks(y.c))
        }
    }

    /// Kernel columns that an output meets at most.
    fn widest(&self) -> u32 {
        self.kernel.div_ceil(self.step) as u32
    }

    /// Texels between the pixels of a group in workgroup memory. A kernel one column wide skips what it does not read.
    fn x_step(&self) -> u32 {
        if self.kernel == 1 { 1 } else { self.stride as u32 }
    }

    /// Texels of a row that serve a group.
    fn columns(&self) -> u32 {
        3 * self.x_step() + self.widest()
    }

    /// Bytes of workgroup memory, as the shader declares it.
    fn storage(&self, cut: &Cut, relu: bool) -> u32 {
        let x = cut.lines * cut.pixels / 4 * (self.columns() | 1);
        let w = cut.lines * self.widest() * (cut.blocks / cut.qt) * ((self.cb as u32 * cut.qt) | 1);
        16 * (x + w) + 4 * self.words(cut, relu)
    }

    /// Texels of a slab that an invocation has on their way, at most. It remembers where each comes from, too.
    fn staged(&self, cut: &Cut) -> u32 {
        let size = cut.blocks * cut.pixels / (cut.qt * cut.px);
        let (x, w) = self.texels_of_slab(cut);
        x.div_ceil(size) + w.div_ceil(size)
    }

    /// Texels of pixels and of weights in a slab.
    fn texels_of_slab(&self, cut: &Cut) -> (u32, u32) {
        let x = cut.lines * cut.pixels / 4 * self.columns();
        (x, cut.lines * self.widest() * cut.blocks * self.cb as u32)
    }

    /// Words of signs that a tile writes: of a fully connected layer one for each sample.
    fn words(&self, cut: &Cut, relu: bool) -> u32 {
        let groups = if self.linear { cut.pixels } else { cut.pixels / 4 };
        if relu { cut.blocks / 2 * groups } else { 0 }
    }

    /// Cuts the product into tiles of at most the size asked for.
    fn cut(&self, tile: Tile, relu: bool) -> Cut {
        let (i4, o4) = self.blocks();
        let (mut blocks, mut pixels) = (tile.blocks.next_power_of_two(), (tile.pixels.next_power_of_two()).max(4));
        let is_lean = tile.family == Family::Lean;
        // The two blocks of a word of signs belong to one workgroup.
        let least = if relu { 2 } else { 1 };
        blocks = blocks.max(least);
        // Half as many blocks and twice as many pixels, as long as more than a fifth of the work is for blocks that do
        // not exist.
        while blocks > least && o4.next_multiple_of(blocks / 2) * 5 <= o4.next_multiple_of(blocks) * 4 {
            blocks /= 2;
            pixels = (2 * pixels).min(pixels.max(INVOCATIONS));
        }
        loop {
            // The largest register tile that keeps 64 invocations busy, or else the smallest. 64 sums, what they are
            // made of, and what is on its way take 150 registers; 32 sums leave the last of 128 free.
            let registers: &[(u32, u32)] = if is_lean { &[(2, 4), (1, 4)] } else { &[(2, 8), (2, 4), (1, 4)] };
            let register = registers
                .iter()
                .find(|(qt, px)| blocks % qt == 0 && pixels % px == 0 && blocks * pixels / (qt * px) >= 64);
            let (qt, px) = *register.unwrap_or(&(1, 1));
            // So many multiply-adds of texels for each invocation between two barriers; a fully connected layer reads
            // eight texels side by side.
            let taps = (if is_lean { 32 } else { 64 } / (qt * px)).clamp(if self.linear { 8 } else { 4 }, 16);
            let all = i4 * self.kernel.div_ceil(self.step) as u32;
            let mut cut = Cut { blocks, pixels, qt, px, lines: (taps / self.widest()).clamp(1, all) };
            while cut.lines > 1 && (self.storage(&cut, relu) > STORAGE || is_lean && self.staged(&cut) > 5) {
                cut.lines -= 1;
            }
            let invocations = blocks * pixels / (qt * px);
            if self.storage(&cut, relu) <= STORAGE && invocations <= INVOCATIONS {
                return cut;
            }
            if pixels > 4 && (4 * blocks <= pixels || blocks <= least) {
                pixels /= 2;
            } else {
                blocks /= 2;
            }
        }
    }

    /// Biases, then weights, in the order in which workgroups read them.
    fn texels(&self, cut: &Cut, tiles: u32) -> Vec<u8> {
        let (i4, _) = self.blocks();
        let (qt, tx) = (cut.qt as usize, (cut.blocks / cut.qt) as usize);
        let mut texels: Vec<[f32; 4]> = Vec::new();
        texels.extend((0..(tiles * cut.blocks) as usize).map(|b| (self.biases)(b)));
        let taps = |phase| taps(self.kernel, self.padding, self.step, phase);
        for tile in 0..tiles as usize {
            for (h, w) in (0..self.step).flat_map(|h| (0..self.step).map(move |w| (h, w))) {
                for (c4, r) in (0..i4 as usize).flat_map(|c| taps(h).map(move |r| (c, r))) {
                    for (s, column) in taps(w).flat_map(|s| (0..tx).map(move |t| (s, t))) {
                        for (i, q) in (0..self.cb).flat_map(|i| (0..qt).map(move |q| (i, q))) {
                            let b = tile * cut.blocks as usize + column * qt + q;
                            texels.push((self.weights)(b, c4, i, r, s));
                        }
                    }
                }
            }
        }
        // The last slab may be fetched whole; sums begin at the first of these.
        let slab = (cut.lines * self.widest() * cut.blocks) as usize * self.cb;
        texels.extend(std::iter::repeat_n([0.0; 4], slab));
        bytemuck::cast_slice(&texels).to_vec()
    }

    /// Adds the dispatch.
    pub(super) fn emit(&self, build: &mut Build, tile: Tile, epilogue: Epilogue) {
        let cut = self.cut(tile, epilogue.relu.is_some());
        let (i4, o4) = self.blocks();
        let tiles = o4.div_ceil(cut.blocks);
        let (tx, ty, groups) = (cut.blocks / cut.qt, cut.pixels / cut.px, cut.pixels / 4);
        let size = tx * ty;
        let (ih, iw) = if self.linear { (1, 1) } else { (self.x.dims.h as u32, self.x.dims.w as u32) };
        let (x_texels, w_texels) = self.texels_of_slab(&cut);
        // A row of up to three taps keeps the pixels that the taps share in registers, nine of them with a stride.
        let keeps_a_row = self.step == 1 && self.kernel <= 3 && (self.stride == 1 || tile.family == Family::Workgroup);
        let mut consts: Consts = vec![
            ("IC4", i4),
            ("IH", ih),
            ("IW", iw),
            ("R", self.kernel as u32),
            ("S", self.kernel as u32),
            ("CB", self.cb as u32),
            ("STRIDE", self.stride as u32),
            ("STEP", self.step as u32),
            ("PAD", self.padding.cast_unsigned()),
            ("LINEAR", u32::from(self.linear)),
            ("BLOCKS", cut.blocks),
            ("PIXELS", cut.pixels),
            ("QT", cut.qt),
            ("PX", cut.px),
            ("P4", cut.px.min(4)),
            ("GROUPS", cut.px.div_ceil(4)),
            ("TILES", tiles),
            ("TX", tx),
            ("TY", ty),
            ("G", groups),
            ("LS", cut.lines),
            ("COLUMNS", self.columns()),
            ("XSTEP", self.x_step()),
            ("WIDEST", self.widest()),
            ("TAPS", if keeps_a_row { self.kernel as u32 } else { 1 }),
            ("X_TURNS", x_texels.div_ceil(size)),
            ("W_TURNS", w_texels.div_ceil(size)),
            ("WORDS", self.words(&cut, epilogue.relu.is_some())),
            ("WG", size),
        ];
        let mut bindings = vec![("x", self.x.id), ("y", self.y.id)];
        epilogue.apply(build, self.y.dims, &mut consts, &mut bindings);
        if epilogue.relu.is_none() {
            bindings.push(("health", build.health));
        }
        bindings.push(("w", build.texels(format!("{} weights", self.layer), self.texels(&cut, tiles))));
        let phase = |side: usize| side.div_ceil(self.step) as u32;
        let (items, samples) =
            if self.linear { (1, 4) } else { (phase(self.y.dims.h) * phase(self.y.dims.w).div_ceil(4), 1) };
        build.push(Dispatch {
            kernel: Kernel::new(self.entry, consts, build.target.storage),
            layer: self.layer.into(),
            bindings,
            grid: Grid::Flat { items, samples, size: groups, y: tiles * (self.step * self.step) as u32 },
            flops: self.flops,
        });
    }
}
