//! Kernels that look at a sample as a whole: however many invocations share its lanes, sums run in one order, and what is written is
//! the same by bits.

mod common;

use common::{Rng, gpu, linear, random_model};
use signstep::kernel::Dispatch;
use signstep::model::{Dims, Layer};
use signstep::trial::{Setup, Trial, Written, compare};
use signstep::{Plan, Target, Variant};

const SAMPLES: u32 = 3;

/// What has lanes.
fn looks(plan: &Plan) -> Vec<&Dispatch> {
    plan.dispatches().filter(|d| d.kernel.constant("LANES").is_some()).collect()
}

/// A plan of a model that is little more than its pixels.
fn planned(input: Dims, target: &Target) -> Plan {
    let model = random_model(&mut Rng::new(0), input, vec![Layer::GlobalAvgPool, linear("z", input.c, 2)]);
    Plan::new(&model, target).unwrap()
}

#[test]
fn sums_do_not_depend_on_who_adds_them_up() {
    let sizes = [(1, 1, 1), (1, 7, 9), (1, 28, 28), (130, 3, 3)];
    let outputs = |d: &Dispatch, plan: &Plan| -> Vec<Written> {
        Trial::new(gpu(), std::slice::from_ref(d), &plan.resources, &Setup::once(SAMPLES)).unwrap().outputs().unwrap()
    };
    let mut counts = Vec::new();
    for (c, h, w) in sizes {
        let hardware = Target { storage: gpu().storage(), ..Target::default() };
        let whole = planned(Dims::new(c, h, w), &hardware);
        let want: Vec<Vec<Written>> = looks(&whole).into_iter().map(|d| outputs(d, &whole)).collect();
        assert!(want.len() >= 10, "{} kernels have lanes", want.len());
        for subgroup in [4, 16] {
            let few = planned(Dims::new(c, h, w), &Target { is_software: true, subgroup, ..hardware.clone() });
            for (d, want) in looks(&few).into_iter().zip(&want) {
                counts.push(d.kernel.constant("LANES").unwrap() / d.kernel.constant("WG").unwrap());
                compare(&outputs(d, &few), want, None).unwrap_or_else(|e| panic!("{d}, {c}×{h}×{w}, {subgroup}: {e}"));
            }
        }
    }
    // Lanes that an invocation takes.
    assert_eq!((counts.iter().min(), counts.iter().max()), (Some(&1), Some(&64)));
}

/// Few invocations go round more often: for large images more of them share the work, as many as it takes.
#[test]
fn loops_stay_as_short_as_a_device_wants_them() {
    let software = Target { is_software: true, subgroup: 8, ..Target::default() };
    for (side, few) in [(8, true), (32, true), (160, false)] {
        let plan = planned(Dims::new(3, side, side), &software);
        let hardware = planned(Dims::new(3, side, side), &Target::default());
        assert_eq!(plan.rules.len(), hardware.rules.len());
        for d in looks(&plan) {
            let (lanes, wg) = (d.kernel.constant("LANES").unwrap(), d.kernel.constant("WG").unwrap());
            assert!(d.kernel.rounds() < software.rounds && wg >= 8 && wg <= lanes, "{d}");
            assert!(!few || wg == 8, "{d}: {wg} invocations for an image of {side}×{side}");
        }
        assert!(looks(&hardware).iter().all(|d| d.kernel.constant("LANES") == d.kernel.constant("WG")));
        let naive = planned(Dims::new(3, side, side), &Target { variant: Variant::Naive, ..software.clone() });
        assert!(looks(&naive).iter().zip(looks(&hardware)).all(|(a, b)| a.kernel == b.kernel));
    }
}
