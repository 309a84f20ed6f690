//! Arithmetic: which roundings a network's results come from.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Which arithmetic a plan uses. A choice of the user, for it changes bits, as a [`super::Variant`] never does. Within
/// each, a sample's bits are the same alone and in any batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Math {
    /// Sums of f32 in the canonical order, the same on every device.
    #[default]
    F32,
    /// What is fastest for batches on a device of this class, layer by layer: chosen from its shape alone, never from
    /// the batch. Where nothing is faster than [`Math::F32`], that.
    Fast,
    /// Activations and gradients kept as f16 between layers, in half the memory; images, weights, logits and every sum
    /// are f32. Gradients are scaled by a power of two of each sample's own on their way back. An activation beyond
    /// 65,504 marks its sample.
    F16,
    /// [`Math::F16`], and convolutions of 16 channels and more on units that multiply whole matrices of f16 and add up
    /// in f32 ([`CoopMatrix`](crate::plan::CoopMatrix)), in an order of their own; weights of such layers are f16, too.
    /// Only where a device has such units, and they were found right ([`crate::coop`]).
    Coop,
}

const NAMES: [(Math, &str); 4] = [(Math::F32, "f32"), (Math::Fast, "fast"), (Math::F16, "f16"), (Math::Coop, "coop")];

impl Math {
    /// As reports and the program call it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(math, _)| *math == self).map_or("", |(_, name)| name)
    }

    /// Whether activations and gradients are f16 between layers.
    pub fn keeps_f16(self) -> bool {
        matches!(self, Math::F16 | Math::Coop)
    }
}

impl fmt::Display for Math {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Math {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(_, name)| *name == text).map(|(math, _)| *math);
        known.ok_or_else(|| Error::Usage(format!("no arithmetic {text:?}: f32, fast, f16 or coop")))
    }
}
