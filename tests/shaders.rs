//! Every shader of every network: translated for each back end, loops counted, nothing undeclared.

mod common;

use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use signstep::kernel::{Access, Dispatch, Kernel};
use signstep::model::Layer;
use signstep::plan::{CoopMatrix, Math, Tile, TrainingPlan};
use signstep::{Model, Plan, Storage, Target, Variant, weights};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn models() -> Vec<Model> {
    let digits = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let resnet = weights::load(include_bytes!("golden/resnet20-random.weights.safetensors")).unwrap();
    // A lone ReLU, and a convolution too wide for a uniform slice.
    let odd = vec![
        Layer::MaxPool { size: 2, stride: 1, padding: 0 },
        Layer::Relu,
        common::affine("bare", 300),
        common::residual(vec![common::affine("n", 300), Layer::Relu, common::conv("c", 300, 300, 1, 1, 0)], 0),
        common::conv("wide", 300, 300, 3, 2, 1),
        Layer::AvgPool { size: 2, stride: 1, padding: 1 },
        common::projected(vec![common::conv("b", 300, 9, 7, 2, 3)], common::conv("p", 300, 9, 1, 2, 0)),
        Layer::GlobalAvgPool,
        common::linear("z", 9, 5),
    ];
    let odd = common::random_model(&mut common::Rng::new(1), signstep::model::Dims::new(300, 6, 5), odd);
    vec![digits, resnet, odd]
}

/// Kernels of every plan, and those that are of none.
fn kernels() -> impl Iterator<Item = Kernel> {
    let probes = [Storage::Buffer, Storage::Texture].into_iter().flat_map(signstep::probe::kernels);
    dispatches()
        .into_iter()
        .map(|d| d.kernel)
        .chain([
            signstep::habits::kernel(),
            signstep::habits::subgroup_kernel(8),
            signstep::habits::subgroup_kernel(16),
        ])
        .chain(probes)
}

fn dispatches() -> Vec<Dispatch> {
    let mut all = Vec::new();
    for model in models() {
        for (storage, subgroup) in [(Storage::Buffer, 8), (Storage::Texture, 8), (Storage::Texture, 16)] {
            let device = Target { storage, subgroup, ..Target::default() };
            let tiles = Tile::all(&device).into_iter().map(Variant::Only);
            for variant in [Variant::Naive, Variant::Fast].into_iter().chain(tiles) {
                let plan = Plan::new(&model, &Target { variant, ..device.clone() }).unwrap();
                all.extend(plan.dispatches().cloned());
            }
            // Batch norm at the end of bodies with every kind of shortcut.
            for name in ["resnet20", "resnet20-b"] {
                let arch = common::seeded::arch(name);
                let tensors = common::seeded::tensors(&arch.layers);
                let model = weights::from_layers_training(arch.layers, arch.input, tensors).unwrap();
                all.extend(TrainingPlan::new(&model, &device).unwrap().dispatches().cloned());
            }
        }
    }
    // Fast arithmetic, where it is offered, with every epilogue.
    let mut rng = common::Rng::new(2);
    let block = common::residual(vec![common::conv("b", 128, 128, 3, 1, 1)], 0);
    let layers = vec![common::conv("a", 128, 128, 3, 1, 1), Layer::Relu, block, Layer::Relu];
    let layers = [layers, vec![Layer::GlobalAvgPool, common::linear("z", 128, 3)]].concat();
    let model = common::random_model(&mut rng, signstep::model::Dims::new(128, 8, 7), layers);
    let (math, storage) = (Math::Fast, Storage::Texture);
    for (variant, subgroup) in [(Variant::Naive, 8), (Variant::Fast, 8), (Variant::Fast, 16)] {
        let target = Target { math, is_software: true, subgroup, storage, variant, ..Target::default() };
        all.extend(Plan::new(&model, &target).unwrap().dispatches().cloned());
    }
    // Texels stored two words at a time, of f32 and of f16.
    for (math, storage) in [(Math::F32, Storage::Texture), (Math::F16, Storage::Texture), (Math::F32, Storage::Buffer)]
    {
        let target = Target { math, is_software: true, wide: true, subgroup: 8, storage, ..Target::default() };
        all.extend(Plan::new(&model, &target).unwrap().dispatches().cloned());
    }
    // Activations of f16, with every kernel that there is for a device.
    let layers = vec![
        common::conv("a", 3, 9, 3, 1, 1),
        Layer::Relu,
        common::residual(vec![common::conv("b", 9, 17, 3, 2, 1)], 8),
        Layer::MaxPool { size: 2, stride: 2, padding: 0 },
        common::affine("n", 17),
        Layer::Relu,
        Layer::AvgPool { size: 2, stride: 2, padding: 0 },
        Layer::GlobalAvgPool,
        common::linear("z", 17, 3),
    ];
    let model = common::random_model(&mut rng, signstep::model::Dims::new(3, 16, 16), layers);
    for storage in [Storage::Buffer, Storage::Texture] {
        let device = Target { math: Math::F16, storage, subgroup: 8, ..Target::default() };
        let tiles = Tile::all(&device).into_iter().map(Variant::Only);
        for variant in [Variant::Naive, Variant::Fast].into_iter().chain(tiles) {
            let plan = Plan::new(&model, &Target { variant, ..device.clone() }).unwrap();
            all.extend(plan.dispatches().filter(|d| !d.kernel.halves.is_empty() || d.layer == "scale").cloned());
        }
    }
    // Convolutions on units that multiply matrices, with every epilogue and phase.
    let layers = vec![
        common::conv("a", 17, 20, 3, 1, 1),
        Layer::Relu,
        common::residual(vec![common::conv("b", 20, 36, 3, 2, 1), common::conv("c", 36, 36, 1, 1, 0)], 16),
        Layer::Relu,
        common::projected(vec![common::conv("d", 36, 70, 3, 2, 1)], common::conv("p", 36, 70, 1, 2, 0)),
        Layer::GlobalAvgPool,
        common::linear("z", 70, 3),
    ];
    let model = common::random_model(&mut rng, signstep::model::Dims::new(17, 11, 9), layers);
    for (side, lanes, storage) in [(8, 8, Storage::Texture), (16, 32, Storage::Buffer)] {
        let coop = Some(CoopMatrix { side, lanes });
        let plan = Plan::new(&model, &Target { math: Math::Coop, coop, storage, ..Target::default() }).unwrap();
        all.extend(plan.dispatches().filter(|d| d.kernel.entry.ends_with("_coop")).cloned());
    }
    all
}

/// An empty folder for a test's output.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// As the GPU library writes SPIR-V for a device that bounds accesses to buffers itself.
fn spirv_options() -> spv::Options<'static> {
    spv::Options {
        lang_version: (1, 3),
        bounds_check_policies: BoundsCheckPolicies { index: BoundsCheckPolicy::Restrict, ..Default::default() },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..spv::Options::default()
    }
}

#[test]
fn every_shader_translates_for_every_back_end() {
    let mut seen = std::collections::HashSet::new();
    // For `spirv-val`, which CI runs on them, and for `hardware/compile`; those of matrices, which not all validators know, apart.
    let [spirv, of_matrices] = ["spirv", "spirv-matrices"].map(folder);
    for kernel in kernels() {
        if !seen.insert(kernel.clone()) {
            continue;
        }
        let source = kernel.source().unwrap();
        let fail =
            |stage: &str, e: &dyn std::fmt::Debug| -> ! { panic!("{} {stage}: {e:?}\n{}", kernel.entry, source.text) };
        let module = naga::front::wgsl::parse_str(&source.text)
            .unwrap_or_else(|e| fail("parse", &e.emit_to_string(&source.text)));
        // Matrices are there for Vulkan alone; the validator of SPIR-V that systems have does not know them.
        let matrices = kernel.entry.ends_with("_coop");
        let mut needs = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        if matrices {
            needs |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
        }
        if kernel.wide {
            needs |= Capabilities::SHADER_INT64;
        }
        let info =
            Validator::new(ValidationFlags::all(), needs).validate(&module).unwrap_or_else(|e| fail("validate", &e));
        let words = spv::write_vec(&module, &info, &spirv_options(), None).unwrap_or_else(|e| fail("SPIR-V", &e));
        let folder = if matrices { &of_matrices } else { &spirv };
        fs::write(folder.join(format!("{}-{}.spv", kernel.entry, seen.len())), bytemuck::cast_slice(&words)).unwrap();
        if matrices {
            continue;
        }
        msl::write_string(
            &module,
            &info,
            &msl::Options { fake_missing_bindings: true, ..Default::default() },
            &msl::PipelineOptions::default(),
        )
        .unwrap_or_else(|e| fail("MSL", &e));
        // GLSL has no u64, nor has HLSL before version 6: there nothing is stored so.
        if kernel.wide {
            continue;
        }
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &hlsl::Options::default(), &hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|e| fail("HLSL", &e));
        let mut text = String::new();
        let pipeline = glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: kernel.entry.into(),
            multiview: None,
        };
        glsl::Writer::new(
            &mut text,
            &module,
            &info,
            &glsl::Options { version: glsl::Version::Desktop(430), ..Default::default() },
            &pipeline,
            BoundsCheckPolicies::default(),
        )
        .and_then(|mut w| w.write())
        .unwrap_or_else(|e| fail("GLSL", &e));
        let storage =
            source.bindings.iter().filter(|(_, a)| matches!(a, Access::StorageRead | Access::StorageUpdate)).count();
        assert!(storage <= 8, "{} binds {storage} storage buffers", kernel.entry);
        assert!(!source.text.contains("//#") && !source.text.contains('$'), "{}: directives are left", kernel.entry);
    }
    assert!(seen.len() > 60, "only {} kernels seen", seen.len());
}

/// Hardware whose invocations have 256 registers gets tiles of 64 sums, other hardware tiles of 32: in every layer that a tile of
/// workgroups can serve. They are written down for `hardware/compile`.
#[test]
fn hardware_gets_the_tiles_that_its_registers_hold() {
    for (registers, most) in [(256, 64), (128, 32)] {
        let spirv = folder(&format!("spirv-default-{registers}"));
        let mut largest = 0;
        for (name, math) in
            [("digits-cnn", Math::F32), ("resnet20", Math::F32), ("resnet18", Math::F32), ("resnet20", Math::F16)]
        {
            let arch = common::seeded::arch(name);
            let tensors = common::seeded::tensors(&arch.layers);
            let model = weights::from_layers(arch.layers, arch.input, tensors).unwrap();
            let plan = Plan::new(&model, &Target { registers, math, ..Target::default() }).unwrap();
            let mut seen = std::collections::HashSet::new();
            for (i, d) in plan.dispatches().filter(|d| seen.insert(d.kernel.clone())).enumerate() {
                let module = naga::front::wgsl::parse_str(&d.kernel.source().unwrap().text).unwrap();
                let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
                    .validate(&module)
                    .unwrap();
                let words = spv::write_vec(&module, &info, &spirv_options(), None).unwrap();
                let file = format!("{name}-{math}-{i:03}-{}.spv", d.kernel.entry);
                fs::write(spirv.join(file), bytemuck::cast_slice(&words)).unwrap();
                if d.kernel.entry.ends_with("_workgroup") {
                    let sums = 4 * d.kernel.constant("QT").unwrap() * d.kernel.constant("PX").unwrap();
                    assert!(sums <= most, "{sums} sums in {d}");
                    largest = largest.max(sums);
                } else {
                    assert!(!d.kernel.entry.starts_with("conv2d_"), "{d}");
                }
            }
        }
        assert_eq!(largest, most);
    }
}

/// A kernel that no plan uses would be dead text.
#[test]
fn every_entry_point_is_used_by_a_plan() {
    let used: BTreeSet<&str> = kernels().map(|k| k.entry).collect();
    let all: BTreeSet<&str> = Kernel::entries().into_iter().collect();
    assert_eq!(used, all);
}

/// WGSL's `Sample` and Rust's are one struct.
#[test]
fn samples_and_states_have_the_same_layout_on_both_sides() {
    use signstep::attack::{Sample, State};
    let fields = |d: &Dispatch, name: &str| -> Option<(Vec<String>, Vec<u32>, u32)> {
        let module = naga::front::wgsl::parse_str(&d.kernel.source().unwrap().text).unwrap();
        let (_, ty) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(name))?;
        let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("no struct") };
        let names = members.iter().map(|m| m.name.clone().unwrap()).collect();
        Some((names, members.iter().map(|m| m.offset).collect(), *span))
    };
    let mut seen = [0, 0];
    // One shape is enough: what is declared is in a file of its own.
    let mut entries = std::collections::HashSet::new();
    for d in dispatches().iter().filter(|d| entries.insert(d.kernel.entry)) {
        if let Some((names, offsets, span)) = fields(d, "Sample") {
            let wgsl = "class_index id restart start eps step_size direction levels label aimed momentum steps stretch \
                        unused_0 unused_1 unused_2";
            assert_eq!((names.join(" "), span as usize), (wgsl.into(), size_of::<Sample>()));
            let rust = offsets!(Sample: class id restart start eps step_size direction levels label aimed momentum
                steps stretch unused);
            assert_eq!(offsets[..14], rust, "{}", d.kernel.entry);
            seen[0] += 1;
        }
        if let Some((names, offsets, span)) = fields(d, "State") {
            let wgsl = "iteration loss predicted step_size best best_at_check last rises since_check period shortest shorter_by \
                        halved found unused_0 unused_1";
            assert_eq!((names.join(" "), span as usize), (wgsl.into(), size_of::<State>()));
            let rust = offsets!(State: iteration loss predicted step_size best best_at_check last rises since_check period
                shortest shorter_by halved found unused);
            assert_eq!(offsets[..15], rust, "{}", d.kernel.entry);
            seen[1] += 1;
        }
    }
    assert!(seen[0] >= 8 && seen[1] >= 5, "{seen:?}");
}

macro_rules! offsets {
    ($of:ty: $($field:ident)+) => { vec![$(std::mem::offset_of!($of, $field) as u32),+] };
}
use offsets;

/// No f32 kernel may leave a product and a sum to the compiler's choice of contraction: `a * b + c` is written `fma`.
#[test]
fn no_float_product_is_added_without_fma() {
    // Float products stand alone in these lines; everything else that multiplies is an address.
    let floats = ["sum * (1.0", "dy_at(", "channels."];
    for kernel in kernels() {
        for line in kernel.source().unwrap().text.lines().filter(|l| !l.trim_start().starts_with("//")) {
            if floats.iter().any(|f| line.contains(f)) && line.contains(" * ") {
                let code = line.split("//").next().unwrap();
                let product = code.rfind(" * ").unwrap();
                assert!(!code[product..].contains(" + "), "{}: {line}", kernel.entry);
            }
        }
    }
}
