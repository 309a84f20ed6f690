//! Every kernel between canaries: words around every binding, and behind what a kernel was given within it, are as they were
//! after it ran, and what it wrote is what it writes without them.

mod common;

use common::{Rng, conv, every_kind_of_layer, gpu, linear, random_model};
use signstep::kernel::{Dispatch, Kernel};
use signstep::model::{Dims, Layer, Model, Shortcut};
use signstep::plan::{Family, Math, Tile, TrainingPlan};
use signstep::trial::{Setup, Trial, guarded};
use signstep::{Plan, Resource, Storage, Target, Variant, weights};
use std::collections::{BTreeMap, BTreeSet};

/// Shapes of every kernel.
const SHAPES: usize = 2;

/// A layer that fast arithmetic computes in its own way, with tiles over the edge and channels that are no whole group.
fn for_fast_arithmetic() -> Model {
    let layers = vec![conv("a", 3, 129, 1, 1, 0), conv("b", 129, 131, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool];
    random_model(&mut Rng::new(13), Dims::new(3, 7, 8), [layers, vec![linear("z", 131, 3)]].concat())
}

/// Batch norm with the statistics of the batch, before a ReLU and before a sum.
fn in_training_mode() -> Model {
    let mut rng = Rng::new(12);
    let norm = |name: &str| Layer::BatchNorm { name: name.into(), channels: 7 };
    let body = vec![conv("b", 7, 7, 3, 1, 1), norm("bn2")];
    let layers = vec![
        conv("a", 3, 7, 3, 1, 1),
        norm("bn1"),
        Layer::Relu,
        Layer::Residual { body, shortcut: Shortcut::Identity },
        Layer::Relu,
        Layer::GlobalAvgPool,
        linear("z", 7, 3),
    ];
    let mut tensors = weights::Tensors::new();
    let mut fill = |name: &str, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| 0.1 + rng.unit()).collect();
        tensors.insert(name.into(), (shape.to_vec(), values));
    };
    for (name, shape) in [("a", vec![7, 3, 3, 3]), ("b", vec![7, 7, 3, 3]), ("z", vec![3, 7])] {
        fill(&format!("{name}.weight"), &shape);
        fill(&format!("{name}.bias"), &shape[..1]);
    }
    for name in ["bn1", "bn2"] {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            fill(&format!("{name}.{part}"), &[7]);
        }
    }
    weights::from_layers_training(layers, Dims::new(3, 13, 11), tensors).unwrap()
}

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
            // Of each family one tile, where the device has it.
            let offered = Tile::all(&target);
            let of = |family| offered.iter().find(|t| t.family == family).map(|t| Variant::Only(*t));
            let tiles = [Family::Register, Family::Broadcast, Family::Workgroup].into_iter().filter_map(of);
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
