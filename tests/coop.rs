//! `Math::Coop`: convolutions on units that multiply matrices. On any adapter their kernels with the units played by plain loops, of
//! either size; with the feature `cooperative-matrix`, where the adapter has such units, beside the naive kernels of the same f16 and
//! beside the f64 reference, and by bits alone, in any batch and beside NaN. With SIGNSTEP_TEST_MATRICES set the adapter must have them
//! (`tests/each-adapter mesa26`).

mod common;
#[path = "common/played.rs"]
mod played;

use common::*;
use played::played;
use signstep::kernel::Dispatch;
use signstep::model::{Dims, Layer};
use signstep::plan::{CoopMatrix, Plan};
use signstep::trial::{Custom, Setup, Trial, Written, compare};
use signstep::{Math, Model, Target, Variant, coop};

/// Strides of 1 to 3, kernels of 1, 3 and 5, every epilogue, channels and sides that fill no matrix. Without ReLUs nothing is decided,
/// and only roundings are left.
fn model(seed: u64, with_relu: bool) -> Model {
    let relu = |layers: &[Layer]| if with_relu { [layers, &[Layer::Relu]].concat() } else { layers.to_vec() };
    let layers = [
        vec![Layer::Normalise { mean: vec![0.4; 3], std: vec![0.25; 3] }],
        relu(&[conv("a", 3, 18, 3, 1, 1)]),
        relu(&[residual([relu(&[conv("b", 18, 18, 3, 1, 1)]), vec![conv("c", 18, 18, 5, 1, 2)]].concat(), 0)]),
        relu(&[residual([relu(&[conv("d", 18, 34, 3, 2, 1)]), vec![conv("e", 34, 34, 3, 1, 1)]].concat(), 16)]),
        relu(&[projected(
            [relu(&[conv("f", 34, 70, 3, 2, 1)]), vec![conv("g", 70, 70, 1, 1, 0)]].concat(),
            conv("p", 34, 70, 1, 2, 0),
        )]),
        relu(&[conv("h", 70, 16, 3, 3, 1)]),
        vec![Layer::GlobalAvgPool, linear("z", 16, 5)],
    ];
    random_model(&mut Rng::new(seed), Dims::new(3, 21, 18), layers.concat())
}

/// Every kernel of a network with every kind of convolution, on whatever adapter there is: what lies where, what is zero, which taps a
/// phase meets. Only the units themselves are not in it.
#[test]
fn with_units_that_are_played_they_are_near_the_naive_kernels() {
    let model = model(50, true);
    // Drivers compile each for a second and more; of the smaller matrices, which software adapters have themselves, every third.
    for (side, lanes, every) in [(16, 8, 1), (8, 8, 3)] {
        let target = Target { math: Math::Coop, coop: Some(CoopMatrix { side, lanes }), ..Target::of(gpu()).unwrap() };
        let fast = Plan::new(&model, &target).unwrap();
        let naive = Plan::new(&model, &Target { variant: Variant::Naive, ..target }).unwrap();
        let is_ours = |d: &Dispatch| d.kernel.entry.ends_with("_coop");
        let sites = fast.sites.iter().zip(&naive.sites).filter(|(site, _)| fast.at(site).iter().any(is_ours));
        assert_eq!(sites.clone().count(), 16, "{fast}");
        for (site, other) in sites.step_by(every) {
            let [dispatch] = fast.at(site) else { panic!("{}: more than one dispatch", site.shape) };
            let text = played(&dispatch.kernel.source().unwrap().text, side, lanes);
            let custom = Custom::compile(gpu(), dispatch, dispatch.kernel.entry, &text).unwrap();
            let run = |samples| -> Vec<Written> {
                let setup = Setup::once(samples);
                let list = std::slice::from_ref(dispatch);
                Trial::with_custom(gpu(), list, &fast.resources, &setup, &custom).unwrap().outputs().unwrap()
            };
            let want =
                Trial::new(gpu(), naive.at(other), &naive.resources, &Setup::once(3)).unwrap().outputs().unwrap();
            let got = run(3);
            if let Err(wrong) = compare(&got, &want, Some(coop::TOLERANCE)) {
                panic!("{side}×{side}, {}: {wrong}", site.shape);
            }
            // Samples stand one after the other; y's memory may serve larger activations, too.
            let c = |name| dispatch.kernel.constant(name).unwrap() as usize;
            let one = c("OC4") * c("OH") * c("OW") * 16;
            let y = |all: &[Written]| all.iter().find(|w| w.name == "y").unwrap().bytes[..one].to_vec();
            assert!(y(&got) == y(&run(1)), "{side}×{side}, {}: a sample alone has other bits", site.shape);
        }
    }
}

#[cfg(feature = "cooperative-matrix")]
mod units {
    use super::*;
    use signstep::attack::{Engine, Health};
    use signstep::trial::guarded;
    use signstep::{Adapter, Attack, Gpu, Network, Options, Reference, Storage};
    use std::sync::OnceLock;

    /// The device of these tests, where it has units that multiply matrices.
    fn device() -> Option<&'static Gpu> {
        static GPU: OnceLock<Gpu> = OnceLock::new();
        let gpu = GPU.get_or_init(|| {
            // SAFETY: what is experimental is what is tested.
            #[allow(unsafe_code, reason = "the call under test")]
            let gpu = unsafe { Gpu::with_cooperative_matrix(&Adapter::Auto) };
            gpu.expect("tests need an adapter: sh tests/with-driver cargo test")
        });
        let has =
            ["16x16x16 f16 to f32", "8x8x8 f16 to f32"].iter().any(|m| gpu.summary().matrices.iter().any(|n| n == m));
        assert!(has || std::env::var_os("SIGNSTEP_TEST_MATRICES").is_none(), "{:?}", gpu.summary());
        (has && gpu.summary().backend == "vulkan").then_some(gpu)
    }

    fn with(gpu: &Gpu, model: &Model, storage: Storage, math: Math, variant: Variant) -> Network {
        let options = Options { storage: Some(storage), math, variant, ..Options::default() };
        Network::with_options(gpu, model.clone(), &options).unwrap()
    }

    fn uses(plan: &Plan) -> usize {
        plan.forward.iter().chain(&plan.backward).filter(|d| d.kernel.entry.ends_with("_coop")).count()
    }

    #[test]
    fn they_are_found_right_and_used() {
        let Some(gpu) = device() else { return };
        let matrix = coop::of(gpu).unwrap();
        assert!([8, 16].contains(&matrix.side) && matrix.lanes >= 4, "{matrix:?}");
        let net = with(gpu, &model(52, true), gpu.storage(), Math::Coop, Variant::Fast);
        // All but the first convolution, whose image has three channels; each forward and backward.
        assert_eq!(uses(net.plan()), 2 * 8, "{}", net.plan());
        assert_eq!(uses(with(gpu, &model(52, true), gpu.storage(), Math::Coop, Variant::Naive).plan()), 0);
        assert_eq!(uses(with(gpu, &model(52, true), gpu.storage(), Math::F16, Variant::Fast).plan()), 0);
    }

    /// Where activations are rounded to f16, a sum that differs in its last digits rounds to the neighbour now and then; ten layers of that.
    #[test]
    fn results_are_near_the_naive_kernels() {
        let Some(gpu) = device() else { return };
        for with_relu in [false, true] {
            let model = model(53, with_relu);
            let n = 3;
            let images = Rng::new(54).images(n * model.input.len());
            for storage in [Storage::Buffer, Storage::Texture] {
                let fast = with(gpu, &model, storage, Math::Coop, Variant::Fast);
                let naive = with(gpu, &model, storage, Math::Coop, Variant::Naive);
                let [got, want] = [&fast, &naive].map(|net| net.logits(&images).unwrap());
                assert!(got.health.iter().chain(&want.health).all(|h| h.is_healthy()));
                let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let logits = relative_l2(&got.logits, &wide(&want.logits));
                let [got, want] = [&fast, &naive].map(|net| net.input_gradient(&images, &[0, 1, 2]).unwrap().gradient);
                let gradient = relative_l2(&got, &wide(&want));
                println!("{storage:?}, ReLUs {with_relu}: logits off by {logits:.1e}, gradients by {gradient:.1e}");
                // A ReLU near zero may decide otherwise, which costs one pixel's part of a gradient.
                assert!(logits <= 1e-3 && gradient <= if with_relu { 2e-2 } else { 1e-3 }, "{logits:e} {gradient:e}");
                assert!(got.iter().any(|v| *v != 0.0));
            }
        }
    }

    /// Activations as in f16, and weights, too: some 3e-3 there, 4e-3 here.
    #[test]
    fn results_are_near_the_reference() {
        let Some(gpu) = device() else { return };
        let model = model(55, false);
        let images = Rng::new(56).images(3 * model.input.len());
        let reference = Reference::new(model.clone()).unwrap();
        let net = with(gpu, &model, gpu.storage(), Math::Coop, Variant::Fast);
        let logits = relative_l2(&net.logits(&images).unwrap().logits, &reference.logits_f64(&images).unwrap());
        let want = reference.input_gradient_f64(&images, &[0, 1, 2]).unwrap();
        let gradient = relative_l2(&net.input_gradient(&images, &[0, 1, 2]).unwrap().gradient, &want);
        println!("logits off by {logits:.1e}, gradients by {gradient:.1e}");
        assert!(logits <= 4e-3 && gradient <= 4e-3, "logits off by {logits:e}, gradients by {gradient:e}");
    }

    /// Promise 1: a sample's bits are its own, alone, at any place of any batch, and beside neighbours full of NaN.
    #[test]
    fn bits_do_not_depend_on_the_batch() {
        let Some(gpu) = device() else { return };
        let model = model(57, true);
        let one = model.input.len();
        let net = with(gpu, &model, gpu.storage(), Math::Coop, Variant::Fast);
        let attack = Attack::ifgsm(8.0 / 255.0).steps(3).attack_all(true);
        let mut rng = Rng::new(58);
        let sample = rng.images(one);
        let logits = net.logits(&sample).unwrap().logits;
        let gradient = net.input_gradient(&sample, &[2]).unwrap().gradient;
        let image = attack.run(&net, &sample, &[2]).unwrap().adversarial;
        for n in [2, 3, 7, 16] {
            let places: Vec<usize> = if n < 16 { (0..n).collect() } else { vec![0, 5, 11, 15] };
            for place in places {
                for poisoned in [false, true] {
                    let mut images = if poisoned { vec![f32::NAN; n * one] } else { rng.images(n * one) };
                    images[place * one..][..one].copy_from_slice(&sample);
                    let what = format!("at {place} of {n}, neighbours {}", if poisoned { "NaN" } else { "random" });
                    let z = net.logits(&images).unwrap();
                    assert_bits(&what, &z.logits[place * 5..][..5], &logits);
                    let labels: Vec<i64> = (0..n).map(|i| if i == place { 2 } else { i as i64 % 5 }).collect();
                    let targets: Vec<u32> = labels.iter().map(|l| *l as u32).collect();
                    let g = net.input_gradient(&images, &targets).unwrap();
                    assert_bits(&what, &g.gradient[place * one..][..one], &gradient);
                    assert!(z.health[place].is_healthy() && g.health[place].is_healthy());
                    if poisoned {
                        let marked = |(i, h): (usize, &Health)| (i == place) == h.is_healthy();
                        assert!(z.health.iter().enumerate().all(marked), "{what}: {:?}", z.health);
                    } else {
                        let out = attack.run(&net, &images, &labels).unwrap();
                        assert_bits(&what, &out.adversarial[place * one..][..one], &image);
                    }
                }
            }
        }
    }

    #[test]
    fn they_write_nothing_that_is_not_theirs() {
        let Some(gpu) = device() else { return };
        for storage in [Storage::Buffer, Storage::Texture] {
            let net = with(gpu, &model(60, true), storage, Math::Coop, Variant::Fast);
            let plan = net.plan();
            for d in plan.forward.iter().chain(&plan.backward).filter(|d| d.kernel.entry.ends_with("_coop")) {
                for samples in [1, 3] {
                    let found = guarded(gpu, std::slice::from_ref(d), &plan.resources, samples).unwrap();
                    assert!(found.touched.is_empty() && found.words > 0, "{d}: {:?}", found.touched);
                }
            }
        }
    }

    /// What f16 does not hold stays with the kernels that hold it.
    #[test]
    fn weights_beyond_f16_are_left_to_other_kernels() {
        let Some(gpu) = device() else { return };
        let mut model = model(59, true);
        model.params.get_mut("b").unwrap().weight[7] = 7e4;
        let net = with(gpu, &model, gpu.storage(), Math::Coop, Variant::Fast);
        assert_eq!(uses(net.plan()), 2 * 7);
    }
}
