//! Each layer's forward and input gradient side by side, as [`Dispatch`]es: constants, bindings and grids. Shapes
//! become text here; the arithmetic is in `shaders/`.
//!
//! Gradients are masked where they are *stored*: whoever computes the gradient of a ReLU's output zeroes it where the
//! sign bit is clear, so every later reader finds the gradient before the ReLU.

pub(crate) mod affine;
pub(crate) mod batch_norm;
mod build;
pub(crate) mod conv;
mod coop;
mod gather;
pub(crate) mod linear;
pub(crate) mod loss;
mod math;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod quantise;
pub(crate) mod scale;
pub(crate) mod shared;
pub(crate) mod step;
mod target;
mod tile;
mod winograd;
mod workgroup;

pub(crate) use build::{ACTIVATIONS, Activation, Build, Ids};
pub use math::Math;
pub use target::Target;
pub use tile::{Family, Tile, Tuning, Variant};

use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::Dims;
use std::fmt;

/// An activation with its shape, and the sign bits if it is the output of a ReLU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    pub id: usize,
    pub dims: Dims,
    pub signs: Option<usize>,
}

/// What is added before a value is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residual {
    pub id: usize,
    pub dims: Dims,
    pub kind: ResidualKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResidualKind {
    Same,
    /// Every second pixel; `added` new channels, half of them first.
    Subsample {
        added: usize,
    },
    /// The adjoint of `Subsample`.
    Spread {
        added: usize,
    },
}

/// What the epilogue (`shaders/epilogue.wgsl`) does, as constants and bindings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Epilogue {
    pub residual: Option<Residual>,
    /// Sign words to write: the value goes through a ReLU.
    pub relu: Option<usize>,
    /// Sign words to read: the value is a gradient and is masked.
    pub mask: Option<usize>,
}

/// Blocks of four channels.
pub(crate) fn blocks(channels: usize) -> u32 {
    channels.div_ceil(4) as u32
}

/// Sign words of one sample: 8 channels × 4 pixels of a row each.
pub(crate) fn sign_words(d: Dims) -> u64 {
    (d.c.div_ceil(8) * d.h * d.w.div_ceil(4)) as u64
}

/// Texels of one sample.
pub(crate) fn texels(d: Dims) -> u64 {
    (d.c.div_ceil(4) * d.h * d.w) as u64
}

/// Workgroup size for `items` invocations a sample: whole vectors of eight lanes, at most 64 so that small samples
/// waste little.
pub(crate) fn workgroup(items: u32) -> u32 {
    items.next_multiple_of(8).min(64)
}

type Consts = Vec<(&'static str, u32)>;
type Bindings = Vec<(&'static str, usize)>;

/// As part of a shape by which tiles are chosen.
impl fmt::Display for Epilogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.residual.map(|r| r.kind) {
            None => "",
            Some(ResidualKind::Same) => " residual",
            Some(ResidualKind::Subsample { .. }) => " subsampled",
            Some(ResidualKind::Spread { .. }) => " spread",
        })?;
        f.write_str(if self.relu.is_some() { " relu" } else { "" })?;
        f.write_str(if self.mask.is_some() { " mask" } else { "" })
    }
}

impl Epilogue {
    /// Adds its constants and bindings for an output of shape `out`.
    fn apply(&self, build: &Build, out: Dims, consts: &mut Consts, bindings: &mut Bindings) {
        consts.extend([("OC4", blocks(out.c)), ("OH", out.h as u32), ("OW", out.w as u32)]);
        consts.push((
            "RESIDUAL",
            match self.residual.map(|r| r.kind) {
                None => 0,
                Some(ResidualKind::Same) => 1,
                Some(ResidualKind::Subsample { .. }) => 2,
                Some(ResidualKind::Spread { .. }) => 3,
            },
        ));
        consts.extend([("RELU", u32::from(self.relu.is_some())), ("MASK", u32::from(self.mask.is_some()))]);
        // No software adapter adds up in another order, and what keeps a compiler from it has its price there.
        consts.push(("REORDERS", u32::from(!build.target.is_software)));
        if let Some(r) = self.residual {
            bindings.push(("res", r.id));
            if let ResidualKind::Subsample { added } | ResidualKind::Spread { added } = r.kind {
                consts.extend([
                    ("RC4", blocks(r.dims.c)),
                    ("RH", r.dims.h as u32),
                    ("RW", r.dims.w as u32),
                    ("RSHIFT", (added / 8) as u32),
                ]);
            }
        }
        if let Some(signs) = self.relu {
            bindings.extend([("signs", signs), ("health", build.health)]);
        }
        if let Some(signs) = self.mask {
            bindings.push(("signs", signs));
        }
    }
}

/// A dispatch with one invocation for each of `items` items of a sample.
fn per_item(
    build: &Build,
    entry: &'static str,
    layer: &str,
    items: u32,
    mut consts: Consts,
    bindings: Bindings,
    flops: u64,
) -> Dispatch {
    let size = workgroup(items);
    consts.push(("WG", size));
    Dispatch {
        kernel: Kernel::new(entry, consts, build.target.storage),
        layer: layer.into(),
        bindings,
        grid: Grid::PerSample(items.div_ceil(size), 1),
        flops,
    }
}

/// One slice of weights as the shaders' `struct Slice` lays it out: the first block, biases, weights; the bytes of a
/// uniform binding.
///
/// `value(block, strip index)` gives four outputs' weights, `bias(block)` their biases; blocks that do not exist are
/// zero.
fn slice_bytes(
    first: usize,
    count: usize,
    strip: usize,
    bias: impl Fn(usize) -> [f32; 4],
    value: impl Fn(usize, usize) -> [f32; 4],
) -> Vec<u8> {
    let mut words: Vec<[f32; 4]> = Vec::with_capacity(1 + count * (1 + strip));
    words.push([f32::from_bits(first as u32), 0.0, 0.0, 0.0]);
    words.extend((first..first + count).map(bias));
    for block in first..first + count {
        words.extend((0..strip).map(|i| value(block, i)));
    }
    bytemuck::cast_slice(&words).to_vec()
}

/// How `blocks` output blocks, in multiples of `tile`, are cut into slices that fit a uniform binding: blocks in a
/// slice, number of slices, and whether they do fit. Where not even one tile fits, one slice holds everything and lies
/// in a storage buffer.
fn slices(blocks: usize, tile: usize, strip: usize, uniform_binding: u64) -> (usize, usize, bool) {
    let padded = blocks.next_multiple_of(tile);
    let fits = (uniform_binding as usize / 16).saturating_sub(1) / (1 + strip) / tile * tile;
    if fits == 0 {
        return (padded, 1, false);
    }
    let number = padded.div_ceil(fits);
    // Slices of equal size, so that one pipeline serves them all.
    let count = padded.div_ceil(number).next_multiple_of(tile);
    (count, padded.div_ceil(count), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block and the biases lie in a binding beside the weights, to the last byte that it may have.
    #[test]
    fn slices_hold_all_blocks_and_fit_a_uniform_binding() {
        let mut whole = 0;
        for (blocks, tile, strip) in [(1, 1, 1), (4, 2, 36), (5, 4, 36), (16, 4, 144), (17, 2, 9), (64, 8, 3)] {
            for binding in (16..60_000).step_by(16) {
                let (count, number, uniform) = slices(blocks, tile, strip, binding);
                assert!(count % tile == 0 && count * number >= blocks && count * (number - 1) < blocks + tile);
                let bytes = slice_bytes(0, count, strip, |_| [0.0; 4], |_, _| [0.0; 4]).len() as u64;
                assert!(bytes <= binding || !uniform, "{bytes} of {binding} bytes");
                // Where not even one tile fits.
                assert_eq!(uniform, 16 * (1 + tile * (1 + strip)) as u64 <= binding, "{tile} × {strip} in {binding}");
                whole += usize::from(uniform && bytes == binding);
            }
        }
        assert!(whole > 0, "none was full");
    }
}
