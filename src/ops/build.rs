//! A plan in the making: resources and dispatches as the layers add them.

use super::{Target, Value, Variant, sign_words, texels};
use crate::kernel::Dispatch;
use crate::model::Dims;
use crate::tensor::{Kind, Resource};
use std::ops::Range;

/// Resources that the host writes and reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ids {
    /// Clean images, `[N, C, H, W]`.
    pub x0: usize,
    /// Iterates, `[N, C, H, W]`.
    pub x: usize,
    /// Input gradient, `[N, C, H, W]`.
    pub dx: usize,
    /// `[N]` of `attack::Sample`.
    pub samples: usize,
    /// `[N]` of `attack::State`.
    pub states: usize,
    /// What rules remember beside x: `[N, M, C, H, W]`, M by the rule.
    pub memory: usize,
    /// Smallest and largest pixel, and the seed in two words.
    pub bounds: usize,
    /// One for all samples, `[C, H, W]`.
    pub perturbation: usize,
    /// Of all samples' gradients, `[C, H, W]`.
    pub sum: usize,
    /// `[N, K]`
    pub logits: usize,
    /// `[N]`
    pub loss: usize,
    /// `[N]`
    pub zero_gradients: usize,
    /// `[N]`
    pub health: usize,
}

/// A plan in the making. Activations are numbered from `ACTIVATIONS` on until they are given slots.
pub(crate) struct Build<'a> {
    pub target: &'a Target,
    pub health: usize,
    pub resources: Vec<Resource>,
    pub activations: Vec<Activation>,
    pub dispatches: Vec<Dispatch>,
    /// Where one of several tiles was chosen: its dispatches, and the shape that decided.
    pub sites: Vec<(Range<usize>, String)>,
}

/// An activation without a slot: texels of a sample, and whether they are of f16; or texels in all, where the parts of
/// a batch have it one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activation {
    pub texels: u64,
    pub is_half: bool,
    pub is_passing: bool,
}

/// Ids of activations that have no slot yet begin here.
pub(crate) const ACTIVATIONS: usize = 1 << 30;

impl<'a> Build<'a> {
    pub fn new(target: &'a Target) -> Self {
        Build {
            target,
            health: 0,
            resources: Vec::new(),
            activations: Vec::new(),
            dispatches: Vec::new(),
            sites: Vec::new(),
        }
    }

    pub fn resource(&mut self, label: impl Into<String>, kind: Kind, per_sample: u64) -> usize {
        self.resources.push(Resource { label: label.into(), kind, per_sample });
        self.resources.len() - 1
    }

    pub fn constant(&mut self, label: String, bytes: Vec<u8>) -> usize {
        self.resource(label, Kind::Constant(bytes), 0)
    }

    /// Texels that no batch changes, in a texture where activations lie in one.
    pub fn texels(&mut self, label: String, bytes: Vec<u8>) -> usize {
        self.resource(label, Kind::Texels(bytes), 0)
    }

    pub fn push(&mut self, mut dispatch: Dispatch) {
        // Not where others are checked against it: the naive kernels do everything the plain way.
        dispatch.kernel.wide = self.target.wide && self.target.variant != Variant::Naive;
        self.dispatches.push(dispatch);
    }

    pub fn activation(&mut self, dims: Dims, signs: Option<usize>) -> Value {
        self.activations.push(Activation { texels: texels(dims), is_half: false, is_passing: false });
        Value { id: ACTIVATIONS + self.activations.len() - 1, dims, signs }
    }

    /// So many texels that one dispatch hands on to the next, of a part of the batch.
    pub fn passing(&mut self, texels: u64) -> usize {
        self.activations.push(Activation { texels, is_half: false, is_passing: true });
        ACTIVATIONS + self.activations.len() - 1
    }

    /// Keeps every activation as f16 but those.
    pub fn halve_except(&mut self, whole: &[usize]) {
        for (i, activation) in self.activations.iter_mut().enumerate() {
            activation.is_half = !whole.contains(&(ACTIVATIONS + i));
        }
    }

    pub fn signs(&mut self, label: &str, dims: Dims) -> usize {
        self.resource(format!("{label} signs"), Kind::Words, sign_words(dims))
    }
}
