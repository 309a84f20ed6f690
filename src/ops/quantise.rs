//! Pixels from and to buffers of the host program: `shaders/quantise.wgsl`.

use super::step::{LANES, per_workgroup};
use super::{Build, Ids, per_item};
use crate::attack::Health;
use crate::kernel::Dispatch;
use crate::model::Dims;

/// Marks samples with values that are not finite by `mark`, and those with values outside of the bounds by
/// [`OUTSIDE`].
pub(crate) fn inspect(build: &Build, d: Dims, ids: &Ids, values: usize, mark: Health) -> Dispatch {
    let len = d.len() as u32;
    let bindings = vec![("bounds", ids.bounds), ("values", values), ("health", ids.health)];
    per_item(build, "inspect", "inspect", len, vec![("LEN", len), ("MARK", mark.0)], bindings, 0)
}

/// In a sample's health: a value outside of the bounds. Never leaves this crate.
pub(crate) const OUTSIDE: u32 = 1 << 31;

/// x0 ← nearest k/255. The largest move of each sample is left, as bits, where zero gradients are counted later.
pub(crate) fn snap(build: &Build, d: Dims, ids: &Ids) -> Dispatch {
    let len = d.len() as u32;
    let bindings = vec![("x0", ids.x0), ("moved", ids.zero_gradients)];
    per_item(build, "snap", "snap", len, vec![("LEN", len)], bindings, 0)
}

/// x ← what is delivered in 8 bits.
pub(crate) fn quantise(build: &Build, d: Dims, ids: &Ids) -> Dispatch {
    let len = d.len() as u32;
    let bindings = vec![("samples", ids.samples), ("x0", ids.x0), ("x", ids.x)];
    per_item(build, "quantise", "quantise", len, vec![("LEN", len)], bindings, 0)
}

/// The same within an L2 ball. `None` where a device has no workgroups of [`LANES`].
pub(crate) fn quantise_l2(build: &Build, d: Dims, ids: &Ids) -> Option<Dispatch> {
    let bindings = vec![("samples", ids.samples), ("x0", ids.x0), ("x", ids.x)];
    let fits = build.target.limits.workgroup_size >= LANES;
    fits.then(|| per_workgroup(build, "quantise_l2", "quantise", d, &[], bindings))
}
