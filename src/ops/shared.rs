//! One perturbation for all images: `shaders/shared.wgsl`.

use super::{Build, Consts, Ids, per_item, workgroup};
use crate::kernel::{Dispatch, Grid, Kernel, MAX_ROUNDS};
use crate::model::Dims;

/// Samples whose gradients one dispatch adds up, at most.
pub(crate) const MOST: usize = 16_384;
const _: () = assert!((MOST as u64) < MAX_ROUNDS);

/// What a step of a perturbation that all images share is made of, beside the network's forward and backward pass.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Puts it on each clean image.
    pub apply: Dispatch,
    /// Adds the gradients of all samples to the sum, one after the other.
    pub sum: Dispatch,
    /// A step along the sign of the sum.
    pub step: Dispatch,
}

impl Shared {
    pub(crate) fn new(build: &Build, d: Dims, ids: &Ids) -> Self {
        let len = d.len() as u32;
        let apply = [
            ("bounds", ids.bounds),
            ("samples", ids.samples),
            ("x0", ids.x0),
            ("perturbation", ids.perturbation),
            ("x", ids.x),
        ];
        let sum = [
            ("samples", ids.samples),
            ("dx", ids.dx),
            ("health", ids.health),
            ("sum", ids.sum),
            ("zero_gradients", ids.zero_gradients),
        ];
        let step = [("samples", ids.samples), ("sum", ids.sum), ("perturbation", ids.perturbation)];
        let consts = vec![("LEN", len)];
        Shared {
            apply: per_item(build, "shared_apply", "start", len, consts.clone(), apply.into(), 3 * u64::from(len)),
            sum: per_value(build, "shared_sum", len, [consts.clone(), vec![("MOST", MOST as u32)]].concat(), &sum),
            step: per_value(build, "shared_step", len, consts, &step),
        }
    }

    /// Its dispatches.
    pub fn all(&self) -> impl Iterator<Item = &Dispatch> {
        [&self.apply, &self.sum, &self.step].into_iter()
    }
}

/// A dispatch with one invocation for each value of an image, whatever the batch.
fn per_value(
    build: &Build,
    entry: &'static str,
    len: u32,
    mut consts: Consts,
    bindings: &[(&'static str, usize)],
) -> Dispatch {
    let size = workgroup(len);
    consts.push(("WG", size));
    Dispatch {
        kernel: Kernel::new(entry, consts, build.target.storage),
        layer: "step".into(),
        bindings: bindings.to_vec(),
        grid: Grid::Once(len.div_ceil(size)),
        flops: 2 * u64::from(len),
    }
}
