//! Tuning: what gives other bits is refused, whatever its speed; results do not depend on what is chosen.

mod common;

use common::*;
use signstep::attack::Engine;
use signstep::model::{Dims, Layer};
use signstep::plan::{Family, Plan, Tile, Tuning};
use signstep::trial::Clock;
use signstep::tune::{Verdict, Work, judge, tune};
use signstep::{Kind, Model, Network, Options, Target, Variant};

fn small() -> Model {
    let layers =
        vec![conv("a", 3, 12, 3, 1, 1), Layer::Relu, conv("b", 12, 8, 3, 2, 1), Layer::Relu, Layer::GlobalAvgPool];
    random_model(&mut Rng::new(11), Dims::new(3, 9, 8), [layers, vec![linear("z", 8, 5)]].concat())
}

fn plan(model: &Model, variant: Variant) -> Plan {
    Plan::new(model, &Target { variant, ..Target::of(gpu()).unwrap() }).unwrap()
}

#[test]
fn a_wrong_candidate_is_refused() {
    let model = small();
    let (naive, fast) = (plan(&model, Variant::Naive), plan(&model, Variant::Fast));
    for (i, site) in naive.sites.iter().enumerate().filter(|(_, s)| s.shape.contains("conv2d")) {
        let good = fast.at(&fast.sites[i]);
        // One bit of one weight, the lowest.
        let mut resources = fast.resources.clone();
        let (_, w) = good[0].bindings.iter().find(|(name, _)| *name == "w").unwrap();
        let (Kind::Texels(bytes) | Kind::Constant(bytes)) = &mut resources[*w].kind else { panic!("no weights") };
        let value = bytes.chunks_exact_mut(4).rfind(|v| u32::from_le_bytes((&**v).try_into().unwrap()) << 1 != 0);
        value.unwrap()[0] ^= 1;
        // Another constant in its text: padding on the wrong side.
        let mut shifted = good.to_vec();
        let pad = shifted[0].kernel.consts.iter_mut().find(|(name, _)| *name == "IW").unwrap();
        pad.1 -= 1;
        let candidates = [
            Work { dispatches: good, resources: &fast.resources },
            Work { dispatches: good, resources: &resources },
            Work { dispatches: &shifted, resources: &fast.resources },
        ];
        let twin = Work { dispatches: naive.at(site), resources: &naive.resources };
        let verdicts = judge(gpu(), twin, &candidates, 2, &Clock::Wall).unwrap();
        assert!(matches!(verdicts[0], Verdict::Time(t) if t.is_finite() && t > 0.0), "{}: {verdicts:?}", site.shape);
        assert!(matches!(&verdicts[1], Verdict::Wrong(why) if why.contains("differ")), "{}: {verdicts:?}", site.shape);
        assert!(matches!(&verdicts[2], Verdict::Wrong(_)), "{}: {verdicts:?}", site.shape);
    }
}

#[test]
fn every_tile_is_judged_and_results_stay_as_they_are() {
    let model = small();
    let mut choices = Vec::new();
    let tuning = tune(gpu(), &model, 2, &Clock::Wall, &mut |choice| {
        choices.push(choice.clone());
        true
    })
    .unwrap();
    assert_eq!(choices.len(), 6, "{choices:?}");
    for choice in &choices {
        assert!(choice.candidates.iter().all(|(_, v)| matches!(v, Verdict::Time(_))), "{choice:?}");
        assert_eq!(tuning.iter().find(|(shape, _)| *shape == choice.shape).map(|(_, tile)| tile), choice.best);
    }
    assert!(choices.iter().any(|c| c.candidates.len() > 3), "{choices:?}");
    let images = Rng::new(12).images(3 * model.input.len());
    let of = |tuning: Tuning| {
        let net = Network::with_options(gpu(), model.clone(), &Options { tuning, ..Options::default() }).unwrap();
        (net.logits(&images).unwrap().logits, net.input_gradient(&images, &[0, 1, 2]).unwrap().gradient)
    };
    let (z, g) = of(Tuning::default());
    // Whatever a file says: also a tile that serves no such shape, and one for every shape.
    let other = |tile: Tile| choices.iter().map(|c| (c.shape.clone(), tile)).collect::<Tuning>();
    for tuning in [tuning, other(Tile::new(Family::Register, 2, 4)), other(Tile::new(Family::Broadcast, 8, 64))] {
        let (tuned_z, tuned_g) = of(tuning);
        assert_bits("logits", &tuned_z, &z);
        assert_bits("gradient", &tuned_g, &g);
    }
}

#[test]
fn a_batch_beyond_the_limits_is_refused_before_it_is_there() {
    let most = [Variant::Naive, Variant::Fast].map(|v| plan(&small(), v).largest_batch(u64::MAX).unwrap());
    let most = u32::try_from(most[0].min(most[1])).unwrap();
    let none = tune(gpu(), &small(), 0, &Clock::Wall, &mut |_| panic!("tried"));
    assert!(matches!(none, Err(signstep::Error::Usage(_))), "{none:?}");
    for samples in [most + 1, u32::MAX] {
        let refused = tune(gpu(), &small(), samples, &Clock::Wall, &mut |_| panic!("tried"));
        let Err(e @ signstep::Error::OutOfMemory { .. }) = refused else { panic!("{refused:?}") };
        let told = e.to_string();
        assert!(told.contains(&format!("a batch of {samples}")) && told.contains(&format!("is {most}")), "{told}");
    }
}

#[test]
fn a_caller_can_end_it() {
    let mut told = 0;
    let ended = tune(gpu(), &small(), 2, &Clock::Wall, &mut |_| {
        told += 1;
        false
    });
    assert!(matches!(ended, Err(signstep::Error::Cancelled)) && told == 1);
}
