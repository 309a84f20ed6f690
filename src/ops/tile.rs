//! Tiles: which of several kernels computes a layer, and how much of it one invocation does. Every tile gives the same
//! bits.

use crate::error::{Error, Result};
use crate::habits::SHARE_MOST;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Which kernels a plan uses where there are several. All give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// One value at a time, in plain loops: what the others are checked against.
    Naive,
    /// What serves a device of this class best.
    #[default]
    Fast,
    /// This tile for every layer that it can serve, the default for the others: for benches and tuning.
    Only(Tile),
}

/// A family of kernels, written for one cost model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Register tiles; every invocation reads its own weights, from a uniform buffer where they fit. Runs anywhere.
    Register,
    /// Register tiles; the invocations of a subgroup read one weight each and hand them round. For adapters where
    /// memory operations cost far more than arithmetic.
    Broadcast,
    /// Tiles of a whole workgroup, staged in the memory that it shares. For hardware.
    Workgroup,
    /// The same, for hardware whose invocations have 128 registers: half as much in each of them.
    Lean,
}

const FAMILIES: [(Family, &str); 4] = [
    (Family::Register, "register"),
    (Family::Broadcast, "broadcast"),
    (Family::Workgroup, "workgroup"),
    (Family::Lean, "lean"),
];

/// What one invocation computes: blocks of four output channels × pixels of a row. In [`Family::Workgroup`] and
/// [`Family::Lean`], what a workgroup computes at most: of fewer channels more pixels, of any rows and samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// By which kernels.
    pub family: Family,
    /// Blocks of four output channels.
    pub blocks: u32,
    /// Pixels of one row; of a fully connected layer, samples.
    pub pixels: u32,
}

/// Invocations in a workgroup of [`Family::Broadcast`] at most: whole subgroups, whatever their size.
pub(crate) const WHOLE: u32 = 64;

/// Texels as bytes, with zeros behind them: those that share read as many at once as they are, and sums begin at the
/// first of these zeros.
pub(super) fn with_zeros(mut texels: Vec<[f32; 4]>) -> Vec<u8> {
    texels.resize(texels.len().next_multiple_of(SHARE_MOST as usize) + SHARE_MOST as usize, [0.0; 4]);
    bytemuck::cast_slice(&texels).to_vec()
}

impl Tile {
    /// Shorthand.
    pub const fn new(family: Family, blocks: u32, pixels: u32) -> Self {
        Tile { family, blocks, pixels }
    }
}

/// Which tile is fastest for which shape on one device, as `tune` found it. Cheap to clone.
///
/// As text, one line for each shape: `SHAPE: TILE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning(Arc<BTreeMap<String, Tile>>);

impl Tuning {
    /// Nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Shapes and their tiles.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tile)> {
        self.0.iter().map(|(shape, tile)| (shape.as_str(), *tile))
    }

    pub(crate) fn tile(&self, shape: &str) -> Option<Tile> {
        self.0.get(shape).copied()
    }
}

impl FromIterator<(String, Tile)> for Tuning {
    fn from_iter<I: IntoIterator<Item = (String, Tile)>>(tiles: I) -> Self {
        Tuning(Arc::new(tiles.into_iter().collect()))
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(shape, tile)| writeln!(f, "{shape}: {tile}"))
    }
}

impl FromStr for Tuning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let line = |line: &str| {
            let (shape, tile) = line.rsplit_once(": ").ok_or_else(|| Error::Usage(format!("no tile in {line:?}")))?;
            Ok((shape.to_string(), tile.parse()?))
        };
        text.lines().map(line).collect()
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FAMILIES.iter().find(|(family, _)| *family == self.family).map_or("", |(_, name)| name);
        write!(f, "{name}-{}x{}", self.blocks, self.pixels)
    }
}

impl FromStr for Tile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || Error::Usage(format!("no tile {text:?}: a family, blocks and pixels, as in register-4x8"));
        let (family, size) = text.split_once('-').ok_or_else(fail)?;
        let (family, _) = FAMILIES.iter().find(|(_, name)| *name == family).ok_or_else(fail)?;
        let (blocks, pixels) = size.split_once('x').ok_or_else(fail)?;
        let number = |t: &str| t.parse().ok().filter(|n| (1..=256).contains(n)).ok_or_else(fail);
        Ok(Tile::new(*family, number(blocks)?, number(pixels)?))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Naive => f.write_str("naive"),
            Variant::Fast => f.write_str("fast"),
            Variant::Only(tile) => tile.fmt(f),
        }
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "naive" => Variant::Naive,
            "fast" => Variant::Fast,
            tile => Variant::Only(tile.parse()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunings_are_read_as_they_are_written() {
        let tiles = [("conv2d_forward 3×8×8 to 16×8×8", Family::Broadcast), ("b: c", Family::Register)];
        let tuning: Tuning = tiles.into_iter().map(|(s, f)| (s.to_string(), Tile::new(f, 4, 8))).collect();
        assert_eq!(tuning.to_string().parse::<Tuning>().unwrap(), tuning);
        assert!("".parse::<Tuning>().unwrap().is_empty());
        for wrong in ["a", "a: ", "a: broadcast", "a: broadcast-4x4\nb"] {
            assert!(wrong.parse::<Tuning>().is_err(), "{wrong}");
        }
    }
}
