//! Every kernel between canaries: words around every binding, and behind what a kernel was given within it, are as they were
//! after it ran, and what it wrote is what it writes without them.

mod common;
#[path = "common/kinds.rs"]
mod kinds;

use common::{every_kind_of_layer, gpu};
use kinds::{for_fast_arithmetic, in_training_mode};
use signstep::kernel::{Dispatch, Kernel};
use signstep::plan::{Family, Math, Tile, TrainingPlan};
use signstep::trial::{Setup, Trial, guarded};
use signstep::{Plan, Resource, Storage, Target, Variant};
use std::collections::{BTreeMap, BTreeSet};

/// Shapes of every kernel.
const SHAPES: usize = 2;

#[test]
fn no_kernel_touches_what_is_not_its_own() {
    let device = Target::of(gpu()).unwrap();
    let (mut words, mut runs, mut kernels) = (0, 0, BTreeSet::new());
    let mut touched: BTreeMap<String, usize> = BTreeMap::new();
    let mut known: BTreeMap<(&str, Storage, bool), Vec<Kernel>> = BTreeMap::new();
    let mut run = |d: &Dispatch, resources: &[Resource], storage: Storage| {
        // Compiling takes longest: so many shapes of a kernel in either storage, in f32 and in f16.
        let shapes: &mut Vec<Kernel> = known.entry((d.kernel.entry, storage, d.kernel.halves.is_empty())).or_default();
        if shapes.len() == SHAPES || shapes.contains(&d.kernel) {
            return;
        }
        shapes.push(d.kernel.clone());
        for samples in [1, 3] {
            let found = guarded(gpu(), std::slice::from_ref(d), resources, samples).unwrap();
            for what in &found.touched {
                *touched.entry(format!("{}: {what}", d.kernel.entry)).or_default() += 1;
            }
            // In buffers the data are those of a trial: so are the results.
            if storage == Storage::Buffer {
                let alone = Trial::new(gpu(), std::slice::from_ref(d), resources, &Setup::once(samples));
                assert_eq!(found.outputs, alone.unwrap().outputs().unwrap(), "{d}, {samples} samples");
            }
            words += found.words;
            runs += 1;
            kernels.insert(d.kernel.entry);
        }
    };
    for storage in [Storage::Buffer, Storage::Texture] {
        let plan = TrainingPlan::new(&in_training_mode(), &Target { storage, ..device.clone() }).unwrap();
        for d in plan.dispatches() {
            run(d, &plan.resources, storage);
        }
    }
    let wide = for_fast_arithmetic();
    for variant in [Variant::Naive, Variant::Fast] {
        let target = Target { math: Math::Fast, variant, ..device.clone() };
        let plan = Plan::new(&wide, &target).unwrap();
        for d in plan.dispatches().filter(|d| d.kernel.entry.contains("_winograd")) {
            run(d, &plan.resources, device.storage);
        }
    }
    for model in every_kind_of_layer() {
        for storage in [Storage::Buffer, Storage::Texture] {
            let target = Target { storage, ..device.clone() };
            let tiles = Tile::all(&target).into_iter().map(Variant::Only);
            for variant in [Variant::Naive].into_iter().chain(tiles) {
                for math in [Math::F32, Math::F16] {
                    let plan = Plan::new(&model, &Target { math, variant, ..target.clone() }).unwrap();
                    for d in plan.dispatches() {
                        run(d, &plan.resources, storage);
                    }
                }
            }
        }
    }
    assert!(touched.is_empty(), "{touched:#?}");
    let missing: Vec<_> = Kernel::entries().into_iter().filter(|e| !kernels.contains(e)).collect();
    println!("{} kernels, {runs} runs, {words} canaries, all as they were; not run: {missing:?}", kernels.len());
    // Kernels that look at a device, and those of subgroups where it has none; those of matrices have their canaries in coop.rs.
    let broadcast = Family::Broadcast.is_offered(&device);
    let workgroup = Family::Workgroup.is_offered(&device);
    let fast = Plan::new(&wide, &Target { math: Math::Fast, ..device.clone() }).unwrap().is_fast();
    for entry in missing {
        let excused = entry.starts_with("probe_")
            || entry.ends_with("_check")
            || entry.ends_with("_coop")
            || (entry.ends_with("_broadcast") && !broadcast)
            || (entry.ends_with("_workgroup") && !workgroup)
            || (entry.contains("_winograd") && !fast);
        assert!(excused, "{entry} was never run");
    }
}
