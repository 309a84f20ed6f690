//! A convolution as both passes have it: each output gathers what it is made of; and which tile computes it.

use super::tile::{Family, Tile, Variant};
use super::{Build, Epilogue, Value, blocks};

/// One pass of one convolution.
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
    /// Of output channel, input channel, kernel row, kernel column.
    pub weight: &'a dyn Fn(usize, usize, usize, usize) -> f32,
    pub bias: &'a dyn Fn(usize) -> f32,
    pub flops: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    InputGrad,
}

impl Gather<'_> {
    /// Blocks of four channels, read and written.
    pub fn blocks(&self) -> (usize, usize) {
        (blocks(self.x.dims.c) as usize, blocks(self.y.dims.c) as usize)
    }

    /// Input channels in a block: four, unless there are fewer in all.
    pub fn in_block(&self) -> usize {
        self.x.dims.c.min(4)
    }

    /// What a choice among tiles depends on.
    pub fn shape(&self, epilogue: &Epilogue) -> String {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::InputGrad => "input_grad",
        };
        let Gather { kernel, stride, dilate, padding, .. } = self;
        let (x, y) = (self.x.dims, self.y.dims);
        format!("conv2d_{pass} {x} to {y} kernel {kernel} stride {stride}/{dilate} padding {padding}{epilogue}")
    }

    /// The tile that computes this, none for the naive kernel.
    pub fn tile(&self, build: &Build, shape: &str, epilogue: &Epilogue) -> Option<Tile> {
        let target = build.target;
        let wanted = match target.variant {
            Variant::Naive => return None,
            Variant::Only(tile) => Some(tile),
            Variant::Fast => target.tuning.tile(shape),
        };
        let wanted = wanted.filter(|tile| self.serves(*tile, epilogue) && tile.family.is_offered(target));
        let family = Family::best(target);
        let default = (self.dilate <= 2 || family.is_of_workgroups()).then(|| self.default_tile(family, epilogue));
        wanted.or(default)
    }

    fn serves(&self, tile: Tile, epilogue: &Epilogue) -> bool {
        // Products of matrices are cut to fit, whatever the stride.
        if self.dilate > 2 || tile.family.is_of_workgroups() {
            return tile.family.is_of_workgroups();
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
            // One block's accumulators at a time are in registers: sixteen of them. A tap that meets every second
            // pixel, or few channels, leave room for more pixels.
            Family::Broadcast if lone => (1, wide),
            Family::Broadcast => (if o4 >= 4 { 4 } else { 2 }, if self.dilate == 2 || o4 < 4 { wide } else { 4 }),
            Family::Workgroup | Family::Lean => return family.default_of_workgroups(),
            // Large kernels are long programs as they are: a small tile keeps them from compiling for ten seconds.
            Family::Register if self.kernel > 4 => (2, if self.dilate == 2 { 4 } else { wide }),
            Family::Register if lone && self.dilate == 1 => (1, wide),
            Family::Register => (if o4 >= 4 { 4 } else { 2 }, wide),
        };
        Tile::new(family, blocks, pixels)
    }

    /// Constants that every kernel of this operation has.
    pub fn consts(&self, tile: Tile, size: u32) -> Vec<(&'static str, u32)> {
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
