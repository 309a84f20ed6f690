//! The sign step and its kin, each one dispatch for the whole batch: `shaders/step.wgsl` where a pixel needs to know only
//! itself, `shaders/rules.wgsl` where a sample is looked at as a whole.

use super::per_item;
use super::{Build, Ids};
use crate::attack::{Norm, Rule};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::Dims;
use crate::plan::Steps;

/// Invocations that look at one sample together. Part of what sums come to, so the same on every device.
pub(crate) const LANES: u32 = 256;

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

/// What a rule other than the sign step does. `None` where a device has no workgroups of [`LANES`].
pub(crate) fn steps(build: &Build, rule: Rule, d: Dims, ids: &Ids) -> Option<Steps> {
    if build.target.limits.workgroup_size < LANES {
        return None;
    }
    let dispatch = |entry, layer, consts: &[(&'static str, u32)], bindings: &[(&'static str, usize)]| {
        let all = [("bounds", ids.bounds), ("samples", ids.samples), ("x0", ids.x0), ("x", ids.x)];
        per_workgroup(build, entry, layer, d, consts, [&all[..], bindings].concat())
    };
    let gradient = [("dx", ids.dx), ("zero_gradients", ids.zero_gradients), ("health", ids.health)];
    let remembers = [&gradient[..], &[("memory", ids.memory), ("states", ids.states)]].concat();
    let start = |kind| Some(dispatch("ball_start", "start", &[("KIND", kind)], &[]));
    let gathers =
        |lookahead, slots| dispatch("momentum_step", "step", &[("LOOKAHEAD", lookahead), ("SLOTS", slots)], &remembers);
    let (start, step) = match rule {
        Rule::Sign => return None,
        Rule::Momentum => (None, gathers(0, 1)),
        Rule::Lookahead => (None, gathers(1, 2)),
        Rule::L2 => (start(2), dispatch("l2_step", "step", &[], &gradient)),
        Rule::Apgd(Norm::Linf) => (start(0), dispatch("apgd_step", "step", &[("NORM", 0)], &remembers)),
        Rule::Apgd(Norm::L2) => (start(1), dispatch("apgd_step", "step", &[("NORM", 1)], &remembers)),
    };
    Some(Steps { rule, start, step })
}

/// A dispatch with one workgroup of [`LANES`] for each sample.
pub(crate) fn per_workgroup(
    build: &Build,
    entry: &'static str,
    layer: &str,
    d: Dims,
    consts: &[(&'static str, u32)],
    bindings: Vec<(&'static str, usize)>,
) -> Dispatch {
    let len = d.len() as u32;
    let consts = [("LEN", len), ("WG", LANES)].into_iter().chain(consts.iter().copied()).collect();
    Dispatch {
        kernel: Kernel { entry, consts, storage: build.target.storage },
        layer: layer.into(),
        bindings,
        grid: Grid::PerSample(1, 1),
        flops: 16 * u64::from(len),
    }
}
