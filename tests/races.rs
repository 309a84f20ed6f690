//! Every kernel as hardware would get it, run by an interpreter that knows what devices leave undefined
//! (`common/interpreter.rs`): no races, nothing of a workgroup's memory read before it was written, no index beyond an
//! array, no barrier that some invocations miss, and the bits that a device gives. Software adapters take the invocations
//! of a workgroup in turns, and so show none of this. Every barrier is taken away once, and missed.

mod common;
#[path = "common/interpreter.rs"]
mod interpreter;
#[path = "common/kinds.rs"]
mod kinds;
#[path = "common/played.rs"]
mod played;

use common::{Rng, conv, every_kind_of_layer, gpu, linear, random_model};
use interpreter::{Device, Faults, Program};
use kinds::{for_fast_arithmetic, in_training_mode};
use played::played;
use signstep::attack::{Sample, State};
use signstep::habits::Habits;
use signstep::kernel::{Access, Dispatch, Grid, Kernel, Source, run_alone};
use signstep::model::{Dims, Layer};
use signstep::plan::{CoopMatrix, Tile, TrainingPlan};
use signstep::{Kind, Math, Model, Plan, Resource, Storage, Target, Variant};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// As many as there are [`states`].
const SAMPLES: u32 = 7;

/// Samples that kernels do at a time which do a part of the batch at a time: several whole parts, and a last one.
const PART: u32 = 3;

/// A dispatch, what its plan allocates, its text, and the invocations that hand values round.
struct Case {
    dispatch: Dispatch,
    resources: Vec<Resource>,
    text: String,
    subgroup: u32,
}

/// Every kernel with every tile, once for each shape, for devices of every class.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut known: HashSet<(Kernel, u32)> = HashSet::new();
    let mut add = |d: &Dispatch, resources: &[Resource], subgroup: u32| {
        let text = d.kernel.source().unwrap().text;
        let subgroup = if text.contains("subgroup") { subgroup } else { 1 };
        if known.insert((d.kernel.clone(), subgroup)) {
            all.push(Case { dispatch: d.clone(), resources: resources.to_vec(), text, subgroup });
        }
    };
    let software = |subgroup| Target { is_software: true, storage: Storage::Texture, ..hands_round(subgroup) };
    for storage in [Storage::Buffer, Storage::Texture] {
        let plan = TrainingPlan::new(&in_training_mode(), &Target { storage, ..Target::default() }).unwrap();
        plan.dispatches().for_each(|d| add(d, &plan.resources, 1));
    }
    // A device may take any size of subgroup between its smallest and its largest.
    let between = |least, most| Target { subgroup_most: most, ..hands_round(least) };
    let targets = [
        (Target::default(), 1),
        (software(8), 8),
        (software(16), 16),
        (between(8, 32), 16),
        (hands_round(32), 32),
        (between(32, 64), 64),
    ];
    for model in every_kind_of_layer().into_iter().chain([tiny()]) {
        for (target, subgroup) in targets.clone() {
            let tiles = Tile::all(&target).into_iter().map(Variant::Only);
            for (i, variant) in [Variant::Naive].into_iter().chain(tiles).enumerate() {
                // How f16 lie in texels is no matter of tiles: one in four will do.
                let maths = if i % 4 == 0 { &[Math::F32, Math::F16][..] } else { &[Math::F32] };
                for &math in maths {
                    let plan = Plan::new(&model, &Target { math, variant, ..target.clone() }).unwrap();
                    plan.dispatches().for_each(|d| add(d, &plan.resources, subgroup));
                }
            }
        }
    }
    for subgroup in [8, 16] {
        for variant in [Variant::Naive, Variant::Fast] {
            let target = Target { math: Math::Fast, variant, ..software(subgroup) };
            let plan = Plan::new(&for_fast_arithmetic(), &target).unwrap();
            let winograd = plan.dispatches().filter(|d| d.kernel.entry.contains("_winograd"));
            winograd.for_each(|d| add(&in_small_parts(d), &plan.resources, subgroup));
        }
    }
    for (side, lanes, storage) in [(8, 8, 16 << 10), (16, 16, 16 << 10), (16, 8, 48 << 10)] {
        let mut target = Target { math: Math::Coop, coop: Some(CoopMatrix { side, lanes }), ..Target::default() };
        target.limits.workgroup_storage = storage;
        let plan = Plan::new(&for_matrices(), &target).unwrap();
        for d in plan.dispatches().filter(|d| d.kernel.entry.ends_with("_coop")) {
            let text = played(&d.kernel.source().unwrap().text, side, lanes);
            all.push(Case { dispatch: d.clone(), resources: plan.resources.clone(), text, subgroup: lanes });
        }
    }
    all
}

/// A device whose subgroups are of that size.
fn hands_round(subgroup: u32) -> Target {
    Target { subgroup, subgroup_most: subgroup, ..Target::default() }
}

/// The same dispatch with parts of [`PART`] samples.
fn in_small_parts(d: &Dispatch) -> Dispatch {
    let mut d = d.clone();
    if let Grid::Parts { part, .. } = &mut d.grid {
        *part = PART;
        d.kernel.consts.iter_mut().filter(|(name, _)| *name == "PART").for_each(|(_, v)| *v = PART);
    }
    d
}

/// An image of fewer values than sums have lanes otherwise.
fn tiny() -> Model {
    let layers = vec![conv("a", 1, 4, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool, linear("z", 4, 3)];
    random_model(&mut Rng::new(15), Dims::new(1, 4, 5), layers)
}

/// Convolutions with strides and without, with channels and sides that fill no matrix, of few channels and of many.
fn for_matrices() -> Model {
    let layers = vec![
        conv("a", 3, 18, 3, 1, 1),
        Layer::Relu,
        conv("b", 18, 34, 3, 2, 1),
        Layer::Relu,
        conv("c", 34, 70, 1, 1, 0),
        Layer::Relu,
        conv("d", 70, 16, 1, 1, 0),
        Layer::GlobalAvgPool,
        linear("z", 16, 5),
    ];
    random_model(&mut Rng::new(14), Dims::new(3, 9, 7), layers)
}

/// A sample of each kind: with a random start and without, aimed at a class and not, up and down.
fn samples() -> Vec<Sample> {
    let one = |id: u32| Sample {
        id,
        class: 1 + id % 2,
        start: u32::from(id != 1),
        eps: 8.0 / 255.0,
        step_size: 1.0 / 255.0,
        direction: if id.is_multiple_of(2) { -1.0 } else { 1.0 },
        aimed: u32::from(id.is_multiple_of(2)),
        levels: 8,
        momentum: 0.75,
        steps: 10,
        stretch: 10,
        ..Sample::default()
    };
    (0..SAMPLES).map(one).collect()
}

/// Where each of them is: before the first step; where a step is halved, and where it is though the loss is the highest;
/// behind the last step with a success and without one; at its first success; on the way after one.
fn states() -> Vec<State> {
    let begin: Vec<State> = samples().iter().map(|s| State { loss: -3.0, ..State::begin(s) }).collect();
    let way = |i: usize| State { iteration: 4, best: 0.5, last: -2.5, ..begin[i] };
    let check = |i: usize| State { since_check: begin[i].period - 1, halved: 0, best_at_check: 9.0, ..way(i) };
    vec![
        begin[0],
        check(1),
        State { loss: 9.0, best: -9.0, ..check(2) },
        State { iteration: 10, found: 1, predicted: 1, ..way(3) },
        State { iteration: 10, ..way(4) },
        State { predicted: 2, ..way(5) },
        State { predicted: 1, found: 1, ..way(6) },
    ]
}

/// What lies in a resource before a kernel runs, in words: what a trial would put there, and samples at all points of
/// their way. What is `wild` has a NaN, an infinity and a zero in it: images in the last sample, activations in the first.
fn data(rng: &mut Rng, resource: &Resource, name: &str, wild: bool) -> Vec<u32> {
    let words = resource.bytes(SAMPLES.into(), Storage::Buffer).unwrap().div_ceil(4) as usize;
    let fill = |f: &mut dyn FnMut() -> u32| (0..words).map(|_| f()).collect::<Vec<u32>>();
    let mut signed = || rng.unit() * 2.0 - 1.0;
    let mut filled = match &resource.kind {
        Kind::Constant(bytes) | Kind::Texels(bytes) => bytemuck::pod_collect_to_vec(bytes),
        Kind::Words if matches!(name, "health" | "zero_gradients") => vec![0; words],
        Kind::Words if name == "argmax" => fill(&mut || rng.word() & 0x0303_0303),
        Kind::Words => fill(&mut || rng.word()),
        Kind::Half => {
            let mut half = || u32::from(half::f16::from_f32(signed()).to_bits());
            fill(&mut || half() | half() << 16)
        }
        Kind::Floats | Kind::Memory if name != "dx" => fill(&mut || rng.unit().to_bits()),
        Kind::Activation | Kind::Passing(_) | Kind::Floats | Kind::Memory => fill(&mut || signed().to_bits()),
        Kind::Samples if name == "states" => bytemuck::pod_collect_to_vec(&states()),
        Kind::Samples => bytemuck::pod_collect_to_vec(&samples()),
        Kind::Uniform => vec![0, 1.0_f32.to_bits(), 1, 2],
        Kind::Stage(_) | Kind::Whole(_) => vec![0; words],
    };
    let wild = [f32::NAN, f32::INFINITY, 0.0].map(f32::to_bits).into_iter().filter(|_| wild);
    match resource.kind {
        // Slots may be larger than what a kernel reads of them, but begin with it.
        Kind::Activation | Kind::Passing(_) => filled.iter_mut().zip(wild).for_each(|(at, v)| *at = v),
        // NaN and infinity of f16.
        Kind::Half => filled.iter_mut().zip(wild.take(1)).for_each(|(at, _)| *at = 0x7c00_7e00),
        Kind::Floats => {
            let last = words - words / SAMPLES as usize;
            filled[last..].iter_mut().zip(wild).for_each(|(at, v)| *at = v);
        }
        _ => {}
    }
    filled
}

/// What a case binds, in the order of its bindings.
struct Bound {
    source: Source,
    ids: Vec<usize>,
    before: Vec<Vec<u32>>,
}

impl Case {
    fn bound(&self, wild: bool) -> Bound {
        let source = self.dispatch.kernel.source().unwrap();
        let id = |name: &str| self.dispatch.bindings.iter().find(|(n, _)| *n == name).expect("a binding").1;
        let ids: Vec<usize> = source.bindings.iter().map(|(name, _)| id(name)).collect();
        let mut rng = Rng::new(7);
        let before =
            source.bindings.iter().zip(&ids).map(|((name, _), id)| data(&mut rng, &self.resources[*id], name, wild));
        let mut before: Vec<Vec<u32>> = before.collect();
        // Three samples are near their clean images, within the ball.
        let place = |name: &str| source.bindings.iter().position(|(n, _)| n == name);
        if let (Some(x), Some(x0)) = (place("x"), place("x0")) {
            let clean = before[x0].clone();
            let each = clean.len() / SAMPLES as usize;
            for (i, word) in before[x].iter_mut().enumerate().filter(|(i, _)| [1, 3, 5].contains(&(i / each))) {
                let near = f32::from_bits(clean[i]) + if i % 3 == 0 { 0.02 } else { -0.01 };
                *word = near.clamp(0.0, 1.0).to_bits();
            }
        }
        Bound { source, ids, before }
    }

    /// What the interpreter makes of it, or of a text in its place, and what it finds wrong.
    fn interpreted(&self, bound: &Bound, text: &str, fuses: bool) -> (Vec<Vec<u32>>, Faults) {
        let program = Program::new(text);
        let device = Device { subgroup: self.subgroup as usize, fuses };
        let mut buffers = bound.before.clone();
        let mut faults = Faults::new();
        let health = bound.source.bindings.iter().position(|(name, _)| name == "health");
        for part in self.dispatch.grid.parts(SAMPLES) {
            // A kernel knows by the length of `health` where its part ends.
            let rest = health.map(|i| buffers[i].split_off(part.end as usize));
            faults.extend(program.run(self.dispatch.grid.workgroups(part.len() as u32), device, &mut buffers));
            if let (Some(i), Some(rest)) = (health, rest) {
                buffers[i].extend(rest);
            }
        }
        (buffers, faults)
    }
}

/// Kernels of sixteen invocations, and what is to be found in each: nothing where nothing is wrong.
#[test]
fn what_is_undefined_is_found() {
    const NEIGHBOUR: &str = "shared_words[i] = i; BARRIER words[i] = shared_words[(i + 1u) % 16u];";
    const ATOMIC: &str = "atomicStore(&sums[i], 0u); workgroupBarrier(); atomicAdd(&sums[0], i); BARRIER words[i] = atomicLoad(&sums[0]);";
    const STATE: &str =
        "let seen = words[0]; BARRIER if (i == 0u) { words[0] = 1u; } workgroupBarrier(); words[i + 16u] = seen;";
    let with = |text: &str, barrier: &str| text.replace("BARRIER", barrier);
    let cases = [
        (1, with(NEIGHBOUR, "workgroupBarrier();"), vec![]),
        (1, with(NEIGHBOUR, "storageBarrier();"), vec!["a read races with a write: shared_words"]),
        (1, with(NEIGHBOUR, ""), vec!["a read races with a write: shared_words"]),
        (1, with(ATOMIC, "workgroupBarrier();"), vec![]),
        (1, with(ATOMIC, ""), vec!["a read races with an atomic: sums"]),
        (1, with(STATE, "storageBarrier();"), vec![]),
        (1, with(STATE, "workgroupBarrier();"), vec!["a write races with a read: words"]),
        (1, "words[i / 2u] = i;".into(), vec!["a write races with a write: words"]),
        (
            1,
            "if (i < 8u) { shared_words[i] = i; } words[i] = shared_words[i];".into(),
            vec!["read before it was written: shared_words"],
        ),
        (
            1,
            "shared_words[i] = i; words[i] = shared_words[i + 1u];".into(),
            vec!["a read races with a write: shared_words", "beyond an array: shared_words"],
        ),
        (1, "words[i * 3u] = 1u;".into(), vec!["beyond a binding: words"]),
        (1, "words[i * 0x20000000u + i] = 1u;".into(), vec!["beyond a binding: words"]),
        (1, "words[i] = 7u / (i % 3u);".into(), vec!["a division by zero"]),
        (1, "words[i] = 7u << (3u * i);".into(), vec!["a shift by more than a word has"]),
        (1, "words[0] = 0u;".into(), vec!["a write races with a write: words"]),
        (
            1,
            "words[i] = atomicAdd(&sums[0], 1u);".into(),
            vec![
                "a read races with a write: sums",
                "a write races with a write: sums",
                "read before it was written: sums",
            ],
        ),
        (1, "if (i < 8u) { workgroupBarrier(); }".into(), vec!["a barrier that not all come to"]),
        (
            1,
            "if (i == 3u) { return; } workgroupBarrier(); words[i] = i;".into(),
            vec!["a barrier that not all come to"],
        ),
        (1, "words[i] = subgroupShuffle(i, lane ^ 1u);".into(), vec![]),
        (
            1,
            "if (i != 2u) { words[i] = subgroupShuffle(i, lane ^ 1u); }".into(),
            vec!["a value from who does not take part"],
        ),
        (1, "words[i] = subgroupShuffle(i, lane + 1u);".into(), vec!["a value from who does not take part"]),
        (2, "words[i] = i;".into(), vec!["a write races with a write: words"]),
        (2, "words[id.x] = i;".into(), vec![]),
    ];
    for (groups, body, wanted) in cases {
        let text = format!(
            "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
            var<workgroup> shared_words: array<u32, 16>;
            var<workgroup> sums: array<atomic<u32>, 16>;
            @compute @workgroup_size(16)
            fn main(
                @builtin(local_invocation_index) i: u32,
                @builtin(global_invocation_id) id: vec3<u32>,
                @builtin(subgroup_invocation_id) lane: u32,
            ) {{ {body} }}"
        );
        let device = Device { subgroup: 8, fuses: true };
        let faults = Program::new(&text).run([groups, 1, 1], device, &mut [vec![0; 40]]);
        assert_eq!(faults.keys().collect::<Vec<_>>(), wanted, "{body}");
    }
}

#[test]
fn no_kernel_leaves_anything_to_chance() {
    let mut entries = BTreeSet::new();
    let mut wrong = Vec::new();
    let all = cases();
    for case in &all {
        let (_, faults) = case.interpreted(&case.bound(true), &case.text, true);
        wrong
            .extend(faults.iter().map(|(what, place)| format!("{} {}: {what}: {place}", case.dispatch, case.subgroup)));
        entries.insert(case.dispatch.kernel.entry);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} kernels, {} shapes", entries.len(), all.len());
    // Kernels that look at a device are none of a network's.
    for entry in Kernel::entries().into_iter().filter(|e| !entries.contains(e)) {
        assert!(entry.starts_with("probe_") || entry.ends_with("_check"), "{entry} was never run");
    }
}

/// The interpreter is worth as much as it resembles devices.
#[test]
fn an_interpreted_kernel_gives_the_bits_of_the_device() {
    let fuses = Habits::of(gpu()).unwrap().fuses;
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut wrong, mut words) = (Vec::new(), 0);
    for case in cases() {
        let d = &case.dispatch;
        // Subgroups are the device's own; texels in textures nobody writes here; compiling takes longest.
        if d.kernel.storage == Storage::Texture || case.subgroup > 1 || known.get(d.kernel.entry) == Some(&2) {
            continue;
        }
        *known.entry(d.kernel.entry).or_default() += 1;
        let bound = case.bound(false);
        let (after, _) = case.interpreted(&bound, &case.text, fuses);
        let bytes = |words: &Vec<u32>| bytemuck::cast_slice(words).to_vec();
        let given: Vec<(usize, Vec<u8>)> = bound.ids.iter().copied().zip(bound.before.iter().map(bytes)).collect();
        for (i, (name, access)) in bound.source.bindings.iter().enumerate() {
            if !matches!(access, Access::ActivationWrite | Access::StorageUpdate) {
                continue;
            }
            let device = run_alone(gpu(), d, &case.resources, SAMPLES, &given, bound.ids[i]).unwrap();
            let device: Vec<u32> = bytemuck::pod_collect_to_vec(&device);
            assert_eq!(device.len(), after[i].len(), "{d}: {name}");
            // Cross-entropy takes the device's own exponential, some units in the last place from the nearest number.
            let near = |a: u32, b: u32| {
                let (a, b) = (f32::from_bits(a), f32::from_bits(b));
                d.kernel.entry == "cross_entropy_forward" && (a - b).abs() <= 1e-5 * b.abs().max(1e-3)
            };
            let differ = device.iter().zip(&after[i]).filter(|(a, b)| a != b && !near(**a, **b)).count();
            if differ > 0 {
                wrong.push(format!("{d}: {differ} of {} words of {name}", device.len()));
            }
            words += device.len();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} kernels, {words} words", known.len());
}

/// Each barrier is taken away, from every kernel in which it stands: somebody must notice. (Some kernels do not need one
/// that stands in a function which others call, too, and some shapes are too small to.)
#[test]
fn no_barrier_is_for_nothing() {
    let mut missed: BTreeMap<(String, Option<u32>, usize), bool> = BTreeMap::new();
    for case in cases() {
        let bound = case.bound(true);
        let kernel = &case.dispatch.kernel;
        for (function, number, text) in interpreter::barriers(&case.text, kernel.entry) {
            // In L2 a kernel is another one.
            let norm = kernel.constant("NORM").filter(|_| function == kernel.entry);
            let noticed = missed.entry((function, norm, number)).or_default();
            *noticed = *noticed || !case.interpreted(&bound, &text, true).1.is_empty();
        }
    }
    println!("{} barriers", missed.len());
    missed.retain(|_, noticed| !*noticed);
    assert!(missed.is_empty(), "{missed:#?}");
}
