//! Memory that activations share, for each is needed only until its last reader.

use crate::gpu::Storage;
use crate::kernel::{Dispatch, Grid};
use crate::ops::{ACTIVATIONS, Activation};
use crate::tensor::{Kind, Resource, Stages};
use std::collections::BTreeMap;

/// Gives every activation a slot that is free from its first writer to its last reader, and puts the slots among the
/// resources. A free slot that is large enough is taken first, the smallest such; else the largest one grows. Texels of
/// f32 and of f16 never share a slot. Where the slots are textures there is a stage, too, as large as the largest of
/// them: its place is returned.
pub(super) fn assign_slots(
    activations: &[Activation],
    dispatches: &mut [Dispatch],
    resources: &mut Vec<Resource>,
    storage: Storage,
) -> Stages<usize> {
    let mut last_use = BTreeMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id) in d.bindings.iter().filter(|(_, id)| *id >= ACTIVATIONS) {
            last_use.insert(*id, at);
        }
    }
    // What dispatches that do the batch in parts read is read again by the next part, after the last of them has
    // written.
    for (at, d) in dispatches.iter().enumerate().rev().filter(|(_, d)| matches!(d.grid, Grid::Parts { .. })) {
        let bound: Vec<usize> = d.bindings.iter().map(|(_, id)| *id).filter(|id| *id >= ACTIVATIONS).collect();
        let handed_on = bound.iter().filter(|id| activations[**id - ACTIVATIONS].is_passing);
        let end = handed_on.map(|id| last_use[id]).max().unwrap_or(at);
        for id in bound {
            last_use.entry(id).and_modify(|last| *last = end.max(*last));
        }
    }
    // The largest that takes it, and when it is free again.
    let mut slots: Vec<(Activation, usize)> = Vec::new();
    let mut slot_of = BTreeMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id) in d.bindings.iter().filter(|(_, id)| *id >= ACTIVATIONS) {
            if slot_of.contains_key(id) {
                continue;
            }
            let need = activations[id - ACTIVATIONS];
            let same_kind = |a: &Activation| (a.is_half, a.is_passing) == (need.is_half, need.is_passing);
            let free = slots.iter().enumerate().filter(|(_, (of, until))| *until < at && same_kind(of));
            let fit = |of: &Activation| (of.texels < need.texels, of.texels.abs_diff(need.texels));
            let slot = free.min_by_key(|(_, (of, _))| fit(of)).map_or(slots.len(), |(slot, _)| slot);
            if slot == slots.len() {
                slots.push((need, 0));
            }
            slots[slot].0.texels = slots[slot].0.texels.max(need.texels);
            slots[slot].1 = last_use[id];
            slot_of.insert(*id, slot);
        }
    }
    let first = resources.len();
    for (i, (Activation { texels, is_half, is_passing }, _)) in slots.iter().enumerate() {
        let (kind, per_sample) = match (is_half, is_passing) {
            (_, true) => (Kind::Passing(*texels), 0),
            (true, _) => (Kind::Half, *texels),
            _ => (Kind::Activation, *texels),
        };
        resources.push(Resource { label: format!("activation {i}"), kind, per_sample });
    }
    for d in dispatches {
        for (name, id) in &mut d.bindings {
            if let Some(slot) = slot_of.get(id) {
                *id = first + slot;
                if slots[*slot].0.is_half {
                    d.kernel.halves.push(name);
                }
            }
        }
    }
    Stages::of_all(&resources[first..], storage).map(|stage| {
        resources.push(stage);
        resources.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    /// What the first part's last dispatch writes must not lie where the second part's first one reads, nor where its
    /// second does.
    #[test]
    fn what_parts_read_is_kept_until_the_last_has_written() {
        let dispatch = |grid: Grid, bindings: &[(&'static str, usize)]| Dispatch {
            kernel: Kernel::new("any", Vec::new(), Storage::Buffer),
            layer: "any".into(),
            bindings: bindings.iter().map(|(name, id)| (*name, ACTIVATIONS + id)).collect(),
            grid,
            flops: 0,
        };
        let whole = Activation { texels: 8, is_half: false, is_passing: false };
        let passing = Activation { is_passing: true, ..whole };
        let activations = [whole, passing, passing, whole, whole];
        let slots = |grid: Grid| {
            let mut dispatches = vec![
                dispatch(Grid::Once(1), &[("y", 0), ("res", 4)]),
                dispatch(grid, &[("x", 0), ("v", 1)]),
                dispatch(grid, &[("v", 1), ("m", 2)]),
                dispatch(grid, &[("m", 2), ("res", 4), ("y", 3)]),
            ];
            let mut resources = Vec::new();
            assign_slots(&activations, &mut dispatches, &mut resources, Storage::Buffer);
            let of = |d: usize, b: usize| dispatches[d].bindings[b].1;
            [of(1, 0), of(1, 1), of(2, 1), of(3, 2), of(3, 1)]
        };
        let [x, v, m, y, res] = slots(Grid::Parts { part: 2, items: 1, each: 1, size: 1, y: 1 });
        assert!(x != y && v != m && res != y && ![x, y, res].contains(&v) && ![x, y, res].contains(&m));
        // Where all samples are done with, x's memory is free for y.
        let [x, .., y, _] = slots(Grid::PerSample(1, 1));
        assert_eq!(x, y);
    }
}
