//! The sign step and its kin, each one dispatch for the whole batch: `shaders/step.wgsl` where a pixel needs to know
//! only itself, `shaders/rules.wgsl` and `shaders/fab.wgsl` where a sample is looked at as a whole,
//! `shaders/square.wgsl` where there is no gradient.

use super::per_item;
use super::{Build, Ids};
use crate::attack::{Norm, Rule, hills, sides, tile};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::Dims;
use crate::ops::Variant;

/// Parts of which the sum over a sample is made (`shaders/sums.wgsl`). Their number decides the order of sums, so it is
/// the same on every device; a power of two, for sums are halved.
pub(crate) const LANES: u32 = 256;

/// Invocations of a workgroup on a software adapter of whose subgroups nothing is known: as many as AVX has lanes.
const FEW: u32 = 8;

/// Sides of squares as constants of `shaders/square.wgsl`.
const SIDES: [&str; 10] =
    ["SIDE_0", "SIDE_1", "SIDE_2", "SIDE_3", "SIDE_4", "SIDE_5", "SIDE_6", "SIDE_7", "SIDE_8", "SIDE_9"];

/// What a rule does, each in one dispatch for the whole batch.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Which rule.
    pub rule: Rule,
    /// A random place to begin at, where that is not the plan's own start.
    pub start: Option<Dispatch>,
    /// Behind each gradient.
    pub step: Dispatch,
    /// Behind the logits of where the step led, where the rule asks for them.
    pub look: Option<Dispatch>,
}

impl Steps {
    /// Its dispatches.
    pub fn all(&self) -> impl Iterator<Item = &Dispatch> {
        self.start.iter().chain([&self.step]).chain(&self.look)
    }
}

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

/// What a rule other than the sign step does. `None` where a device has no workgroups of [`LANES`] or takes too few
/// bindings, or an image has so many values that an invocation would go round too often.
pub(crate) fn steps(build: &mut Build, rule: Rule, d: Dims, ids: &Ids) -> Option<Steps> {
    if build.target.limits.workgroup_size < LANES {
        return None;
    }
    // The table of windows, for L2, is a constant, as weights are.
    let windows = match rule {
        Rule::Square(Norm::L2) => {
            let squares = std::iter::once(tile(d)).chain(sides(Norm::L2, d).map(|s| s as usize));
            let table: Vec<f32> = squares.flat_map(hills).collect();
            Some(build.constant("windows of square".into(), bytemuck::cast_slice(&table).to_vec()))
        }
        _ => None,
    };
    let build = &*build;
    let dispatch = |entry, layer, consts: &[(&'static str, u32)], bindings: &[(&'static str, usize)]| {
        let all = [("bounds", ids.bounds), ("samples", ids.samples), ("x0", ids.x0), ("x", ids.x)];
        per_workgroup(build, entry, layer, d, consts, [&all[..], bindings].concat())
    };
    let gradient = [("dx", ids.dx), ("zero_gradients", ids.zero_gradients), ("health", ids.health)];
    let remembers = [&gradient[..], &[("memory", ids.memory), ("states", ids.states)]].concat();
    let starts = |kind, halves| Some(dispatch("ball_start", "start", &[("KIND", kind), ("HALVES", halves)], &[]));
    let start = |kind| starts(kind, 0);
    let fab = |kind, norm: u32| {
        let step = dispatch("fab_step", "step", &[("NORM", norm)], &remembers);
        // The search for two steps looks at every value sixteen times.
        (starts(kind, 1), Dispatch { flops: 600 * d.len() as u64, ..step })
    };
    let gathers =
        |lookahead, slots| dispatch("momentum_step", "step", &[("LOOKAHEAD", lookahead), ("SLOTS", slots)], &remembers);
    let (start, step) = match rule {
        Rule::Sign => return None,
        Rule::Momentum => (None, gathers(0, 1)),
        Rule::Lookahead => (None, gathers(1, 2)),
        Rule::L2 => (start(2), dispatch("l2_step", "step", &[], &gradient)),
        Rule::Apgd(Norm::Linf) => (start(0), dispatch("apgd_step", "step", &[("NORM", 0)], &remembers)),
        Rule::Square(norm) => {
            let (c, h, w, tile) = (d.c as u32, d.h as u32, d.w as u32, tile(d) as u32);
            let tiles = (h / tile) * (w / tile);
            let unit = 1.0 / f64::from(tiles * c).sqrt();
            let mut consts = vec![("C", c), ("H", h), ("W", w), ("NORM", u32::from(norm == Norm::L2)), ("TILE", tile)];
            let mut bindings: Vec<_> = windows.map(|id| ("windows", id)).into_iter().collect();
            let start = [&consts[..], &[("TILES", tiles), ("UNIT", (unit as f32).to_bits())]].concat();
            let start = dispatch("square_start", "start", &start, &bindings);
            consts.extend(SIDES.into_iter().zip(sides(norm, d)));
            bindings.extend([("memory", ids.memory), ("states", ids.states)]);
            (Some(start), dispatch("square_step", "step", &consts, &bindings))
        }
        Rule::Apgd(Norm::L2) => (start(1), dispatch("apgd_step", "step", &[("NORM", 1)], &remembers)),
        Rule::Fab(Norm::Linf) => fab(0, 0),
        Rule::Fab(Norm::L2) => fab(1, 1),
    };
    let look = rule.looks_twice().then(|| {
        let norm = u32::from(rule == Rule::Fab(Norm::L2));
        dispatch("fab_look", "look", &[("NORM", norm)], &[("memory", ids.memory), ("states", ids.states)])
    });
    let takes = |d: &Dispatch| matches!(d.kernel.exceeds(&build.target.limits), Ok(None));
    let fits = |d: &Dispatch| d.kernel.rounds() < build.target.rounds && takes(d);
    let all_fit = fits(&step) && start.iter().chain(&look).all(fits);
    all_fit.then_some(Steps { rule, start, step, look })
}

/// A dispatch with one workgroup for each sample: an invocation for each lane; on a software adapter, which takes
/// invocations of a workgroup in turns from one barrier to the next, one vector's, as far as its loops allow.
pub(crate) fn per_workgroup(
    build: &Build,
    entry: &'static str,
    layer: &str,
    d: Dims,
    consts: &[(&'static str, u32)],
    bindings: Vec<(&'static str, usize)>,
) -> Dispatch {
    let len = d.len() as u32;
    // A lane without values adds nothing.
    let lanes = LANES.min(len.next_power_of_two());
    let kernel = |invocations| {
        let own = [("LEN", len), ("LANES", lanes), ("WG", invocations)];
        Kernel::new(entry, own.into_iter().chain(consts.iter().copied()).collect(), build.target.storage)
    };
    let few = if build.target.subgroup > 0 { build.target.subgroup } else { FEW };
    let few = std::iter::successors(Some(few.min(lanes)), |n| Some(2 * n)).take_while(|n| *n < lanes);
    let few = few.filter(|_| build.target.is_software && build.target.variant != Variant::Naive);
    let few = few.map(kernel).find(|k| k.rounds() < build.target.rounds);
    Dispatch {
        kernel: few.unwrap_or_else(|| kernel(lanes)),
        layer: layer.into(),
        bindings,
        grid: Grid::PerSample(1, 1),
        flops: 16 * u64::from(len),
    }
}
