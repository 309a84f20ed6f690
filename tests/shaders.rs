//! Every shader of every network: translated for each back end, loops counted, nothing undeclared.

mod common;

use naga::back::{glsl, hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use signstep::kernel::{Access, Dispatch, Kernel};
use signstep::plan::Tile;
use signstep::{Model, Plan, Storage, Target, Variant, weights};
use std::collections::BTreeSet;

fn models() -> Vec<Model> {
    let digits = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let resnet = weights::load(include_bytes!("golden/resnet20-random.weights.safetensors")).unwrap();
    // A lone ReLU, and a convolution too wide for a uniform slice.
    let odd = vec![
        signstep::model::Layer::MaxPool { size: 2, stride: 1, padding: 0 },
        signstep::model::Layer::Relu,
        common::conv("wide", 300, 300, 3, 2, 1),
        signstep::model::Layer::AvgPool { size: 2, stride: 1, padding: 1 },
        common::projected(vec![common::conv("b", 300, 9, 7, 2, 3)], common::conv("p", 300, 9, 1, 2, 0)),
        signstep::model::Layer::GlobalAvgPool,
        common::linear("z", 9, 5),
    ];
    let odd = common::random_model(&mut common::Rng::new(1), signstep::model::Dims::new(300, 6, 5), odd);
    vec![digits, resnet, odd]
}

/// Kernels of every plan, and those that are of none.
fn kernels() -> impl Iterator<Item = Kernel> {
    let probes = [Storage::Buffer, Storage::Texture].into_iter().flat_map(signstep::probe::kernels);
    dispatches().into_iter().map(|d| d.kernel).chain([signstep::kernel::subgroup_check()]).chain(probes)
}

fn dispatches() -> Vec<Dispatch> {
    let mut all = Vec::new();
    for model in models() {
        for storage in [Storage::Buffer, Storage::Texture] {
            let device = Target { storage, subgroup: 8, ..Target::default() };
            let tiles = Tile::all(&device).into_iter().map(Variant::Only);
            for variant in [Variant::Naive, Variant::Fast].into_iter().chain(tiles) {
                let plan = Plan::new(&model, &Target { variant, ..device.clone() }).unwrap();
                all.extend(plan.dispatches().cloned());
            }
        }
    }
    all
}

#[test]
fn every_shader_translates_for_every_back_end() {
    let mut seen = std::collections::HashSet::new();
    for kernel in kernels() {
        if !seen.insert(kernel.clone()) {
            continue;
        }
        let source = kernel.source().unwrap();
        let fail =
            |stage: &str, e: &dyn std::fmt::Debug| -> ! { panic!("{} {stage}: {e:?}\n{}", kernel.entry, source.text) };
        let module = naga::front::wgsl::parse_str(&source.text)
            .unwrap_or_else(|e| fail("parse", &e.emit_to_string(&source.text)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP)
            .validate(&module)
            .unwrap_or_else(|e| fail("validate", &e));
        spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap_or_else(|e| fail("SPIR-V", &e));
        msl::write_string(
            &module,
            &info,
            &msl::Options { fake_missing_bindings: true, ..Default::default() },
            &msl::PipelineOptions::default(),
        )
        .unwrap_or_else(|e| fail("MSL", &e));
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
            naga::proc::BoundsCheckPolicies::default(),
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

/// A kernel that no plan uses would be dead text.
#[test]
fn every_entry_point_is_used_by_a_plan() {
    let used: BTreeSet<&str> = kernels().map(|k| k.entry).collect();
    let all: BTreeSet<&str> = Kernel::entries().into_iter().collect();
    assert_eq!(used, all);
}

/// WGSL's `Sample` and Rust's are one struct.
#[test]
fn sample_has_the_same_layout_on_both_sides() {
    use signstep::attack::Sample;
    use std::mem::offset_of;
    for d in dispatches()
        .iter()
        .filter(|d| ["sign_step", "random_start", "cross_entropy_forward", "quantise"].contains(&d.kernel.entry))
    {
        let module = naga::front::wgsl::parse_str(&d.kernel.source().unwrap().text).unwrap();
        let (_, ty) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Sample")).unwrap();
        let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("no struct") };
        assert_eq!(*span as usize, size_of::<Sample>());
        let offsets: Vec<usize> = members.iter().map(|m| m.offset as usize).collect();
        let rust = [
            offset_of!(Sample, class),
            offset_of!(Sample, id),
            offset_of!(Sample, restart),
            offset_of!(Sample, start),
            offset_of!(Sample, eps),
            offset_of!(Sample, step_size),
            offset_of!(Sample, direction),
            offset_of!(Sample, levels),
        ];
        assert_eq!(offsets, rust);
    }
}

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
