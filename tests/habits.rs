//! What adapters do where WGSL leaves it open, and that plans obey it. The adapters that tests run on are known: an answer that
//! changes is a driver that changed, and whoever meets it looks at what rests on it.

mod common;

use common::*;
use signstep::fault::Fault;
use signstep::habits::{Answers, Habits};
use signstep::{Adapter, Error, Gpu, Network, Plan, Target, attack::Engine, weights};

#[test]
fn known_adapters_answer_as_they_did() {
    let habits = Habits::of(gpu()).unwrap();
    let adapter = gpu().summary();
    let told = format!("{} on {}: {:?}", adapter.name, adapter.backend, habits);
    // Everything that is offered rests on these, whatever the adapter.
    assert!(habits.loop_cap.is_none_or(|cap| cap >= 65_535), "{told}");
    // Mesa 22.3 leaves loops, 25.0 does not; 26.1 takes subnormal numbers for zeros; what lies between and beyond is taken at its word.
    let (cap, keeps) = match &adapter.driver {
        driver if driver.contains("Mesa 22.") => (Some(65_535), true),
        driver if driver.contains("Mesa 25.") => (None, true),
        driver if driver.contains("Mesa 26.1.") => (None, false),
        _ => (habits.loop_cap, habits.keeps_subnormals),
    };
    let sign = f32::from(u8::from(keeps));
    let expected = match (adapter.backend.as_str(), adapter.name.as_str()) {
        ("vulkan", name) if name.starts_with("llvmpipe") => (cap, keeps, sign, false, true),
        ("vulkan", name) if name.starts_with("SwiftShader") => (None, false, 0.0, false, false),
        ("gl", name) if name.starts_with("llvmpipe") => (cap, keeps, sign, true, true),
        _ => return,
    };
    let seen =
        (habits.loop_cap, habits.keeps_subnormals, habits.sign_of_subnormal, habits.nan_differs, habits.reassociates);
    assert_eq!(seen, expected, "{told}");
    assert!(habits.rounds_looked_at, "{told}");
    // A NaN looks like a black pixel on all three: hence the marks.
    assert_eq!(habits.of_nan, [0.0, 1.0, 0.0, 0.0], "{told}");
}

#[test]
fn plans_obey_what_a_device_takes() {
    let model = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let target = Target::of(gpu()).unwrap();
    assert_eq!(target.rounds, 32_000, "a device that leaves loops before 64,000 rounds gets fewer");
    let most = Plan::new(&model, &target).unwrap().dispatches().map(|d| d.kernel.rounds()).max().unwrap();
    let plan = |rounds| Plan::new(&model, &Target { rounds, ..target.clone() });
    assert!(plan(most + 1).is_ok());
    let Err(Error::Model { detail, .. }) = plan(20) else {
        panic!("a plan for a device that leaves loops after 20 rounds")
    };
    assert!(detail.contains("rounds of loops in one invocation, fewer than 20 allowed"), "{detail}");
}

#[test]
fn what_an_earlier_process_was_answered_need_not_be_asked() {
    let text = Answers::of(gpu()).unwrap().to_string();
    let later = Gpu::new(&Adapter::Auto).unwrap();
    later.fail_at(u64::MAX, Fault::Lost);
    assert!(text.parse::<Answers>().unwrap().recall(&later), "{text}");
    assert_eq!(Target::of(&later), Target::of(gpu()));
    assert_eq!(Habits::of(&later), Habits::of(gpu()));
    assert_eq!(later.calls(), 0, "the device was asked");
    let model = weights::load(include_bytes!("../weights/digits-cnn.safetensors")).unwrap();
    let images = Rng::new(3).images(5 * 64);
    let logits = |gpu| Network::new(gpu, model.clone()).unwrap().logits(&images).unwrap().logits;
    assert_bits("with kept answers", &logits(&later), &logits(gpu()));
}

/// A subgroup that the device does not have is not believed: it is asked.
#[test]
fn answers_of_another_device_are_not_taken() {
    let text = Answers::of(gpu()).unwrap().to_string();
    let smallest = gpu().summary().limits.iter().find(|(name, _)| *name == "subgroup_min").unwrap().1;
    let other = if smallest == 16 { 32 } else { 16 };
    let at = text.trim_end().rfind('\n').unwrap() + 1;
    let wrong: Answers = format!("{}{other:08x}\n", &text[..at]).parse().unwrap();
    let gpu = Gpu::new(&Adapter::Auto).unwrap();
    assert!(!wrong.recall(&gpu));
    assert_eq!(Answers::of(&gpu).unwrap().to_string(), text);
}
