//! The sign step and what belongs to it: `shaders/step.wgsl`, each one dispatch for the whole batch.

use super::per_item;
use super::{Build, Ids};
use crate::kernel::Dispatch;
use crate::model::Dims;

/// x ← clamp(x ± step_size·sign(dx), lo, hi), with each sample's own eps, step size and direction.
pub(crate) fn sign_step(build: &Build, d: Dims, ids: &Ids) -> Dispatch {
    let bindings = vec![
        ("bounds", ids.bounds),
        ("samples", ids.samples),
        ("x0", ids.x0),
        ("dx", ids.dx),
        ("x", ids.x),
        ("zero_gradients", ids.zero_gradients),
        ("health", ids.health),
    ];
    per_item(build, "sign_step", "step", d.len() as u32, vec![("LEN", d.len() as u32)], bindings, 4 * d.len() as u64)
}

/// x ← a random place of the ball around x0, for samples that ask for one; by each sample's own random numbers.
pub(crate) fn random_start(build: &Build, d: Dims, ids: &Ids) -> Dispatch {
    let bindings = vec![("bounds", ids.bounds), ("samples", ids.samples), ("x0", ids.x0), ("x", ids.x)];
    let len = d.len() as u32;
    per_item(build, "random_start", "start", len.div_ceil(4), vec![("LEN", len)], bindings, 4 * d.len() as u64)
}
