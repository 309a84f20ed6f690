//! Kernels: the naive ones against the f64 reference on random shapes, the fast ones against the naive ones by bits.

mod common;

use common::*;
use signstep::attack::Engine;
use signstep::kernel::Kernel;
use signstep::model::{Dims, Layer};
use signstep::plan::{Family, Tile};
use signstep::{Error, Model, Network, Reference, Storage, Target, Variant};
use std::collections::BTreeSet;

/// A small random network that has a layer of the kind in question in its middle.
fn random_network(rng: &mut Rng) -> Model {
    let (c, h, w) = (rng.range(1, 9), rng.range(3, 11), rng.range(3, 11));
    let k = rng.range(1, 21);
    let mut layers = vec![];
    if rng.range(0, 1) == 1 {
        // No pixel k/255 comes near this mean: one that became 0 would tie with padding in f32 and not in f64.
        layers.push(Layer::Normalise {
            mean: vec![104.5 / 255.0; c],
            std: (0..c).map(|i| 0.2 + 0.01 * i as f64).collect(),
        });
    }
    // A quarter of the usual kind; the rest of any kernel, stride and padding that fits.
    let (kernel, stride, padding) = match rng.range(0, 3) {
        0 => (3, rng.range(1, 2), 1),
        _ => {
            let kernel = rng.range(1, 7);
            (kernel, rng.range(1, 4), rng.range(kernel.saturating_sub(h.min(w)).div_ceil(2), kernel + 1))
        }
    };
    layers.push(conv("a", c, k, kernel, stride, padding));
    if rng.range(0, 3) > 0 {
        layers.push(Layer::Relu);
    }
    let mut d = signstep::model::output(&layers, Dims::new(c, h, w)).unwrap();
    match rng.range(0, 10) {
        6 if d.h > 1 && d.w > 1 => {
            let size = rng.range(1, 4);
            let (stride, padding) = (rng.range(1, 3), rng.range(if size > d.h.min(d.w) { 1 } else { 0 }, size / 2));
            if rng.range(0, 1) == 0 {
                layers.push(Layer::AvgPool { size, stride, padding });
            } else {
                layers.push(Layer::MaxPool { size, stride, padding });
            }
        }
        7 => {
            let (more, stride) = (rng.range(1, 12), rng.range(1, 3));
            let body = vec![conv("b", k, 5, 3, stride, 1), Layer::Relu, conv("c", 5, more, 3, 1, 1)];
            layers.extend([projected(body, conv("p", k, more, 1, stride, 0)), Layer::Relu]);
        }
        0 => layers.push(residual(vec![conv("b", k, 7, 3, 1, 1), Layer::Relu, conv("c", 7, k, 3, 1, 1)], 0)),
        1 => {
            let added = 8 * rng.range(1, 3);
            layers
                .push(residual(vec![conv("b", k, 12, 3, 2, 1), Layer::Relu, conv("c", 12, k + added, 3, 1, 1)], added));
            layers.push(Layer::Relu);
        }
        2 if d.h > 1 && d.w > 1 => {
            let size = rng.range(2, d.h.min(d.w).min(3));
            layers.push(Layer::MaxPool { size, stride: rng.range(1, 3), padding: 0 });
            layers.push(Layer::Relu);
        }
        3 => layers.extend([conv("b", k, rng.range(1, 10), 3, 1, 1), Layer::Relu]),
        9 => {
            layers.push(affine("n", k));
            layers.extend((rng.range(0, 1) == 1).then_some(Layer::Relu));
        }
        // Pre-activation: what comes round is added behind the gain; where channels come in, and where they do not.
        10 => {
            let added = 8 * rng.range(0, 2);
            let stride = if added > 0 { 2 } else { 1 };
            let body =
                vec![affine("n", k), Layer::Relu, conv("b", k, 7, 3, stride, 1), conv("c", 7, k + added, 3, 1, 1)];
            let projects = added > 0 && rng.range(0, 1) == 1;
            layers.push(if projects {
                projected(body, conv("p", k, k + added, 1, 2, 0))
            } else {
                residual(body, added)
            });
        }
        _ => {}
    }
    d = signstep::model::output(&layers, Dims::new(c, h, w)).unwrap();
    let classes = rng.range(2, 13);
    match rng.range(0, 2) {
        0 => layers.extend([Layer::GlobalAvgPool, Layer::Flatten, linear("z", d.c, classes)]),
        1 => layers.extend([Layer::Flatten, linear("y", d.len(), 9), Layer::Relu, linear("z", 9, classes)]),
        _ => layers.extend([Layer::Flatten, linear("z", d.len(), classes)]),
    }
    random_model(rng, Dims::new(c, h, w), layers)
}

#[test]
fn naive_kernels_match_the_reference_on_random_networks_in_buffers() {
    naive_matches_reference(1, Storage::Buffer);
}

#[test]
fn naive_kernels_match_the_reference_on_random_networks_in_textures() {
    naive_matches_reference(2, Storage::Texture);
}

/// Random networks, each with one to four convolutions of random shape, until 100 convolutions of each direction have run.
fn naive_matches_reference(seed: u64, storage: Storage) {
    let mut rng = Rng::new(seed);
    let (mut trial, mut shapes) = (0, 0);
    while shapes < 100 / thinning() {
        trial += 1;
        let model = random_network(&mut rng);
        let n = rng.range(1, 5);
        let images = rng.images(n * model.input.len());
        let classes: Vec<u32> = (0..n).map(|_| rng.word() % model.logits() as u32).collect();
        let net = network(&model, storage, Variant::Naive);
        shapes += net.plan().forward.iter().filter(|d| d.kernel.entry == "conv2d_forward").count();
        let reference = Reference::new(model.clone()).unwrap();
        let what = format!("trial {trial}, {storage:?}, {:?}", model.layers);
        let z = net.logits(&images).unwrap();
        assert_close(&what, &z.logits, &reference.logits_f64(&images).unwrap(), 1e-5, 1e-4);
        let g = net.input_gradient(&images, &classes).unwrap();
        assert!(z.health.iter().chain(&g.health).all(|h| h.is_healthy()), "{what}");
        let want = reference.input_gradient_f64(&images, &classes).unwrap();
        // Measured: a few times 1e-7. A ReLU or a pool that decides otherwise than in f64 would show as 1e-3.
        let error = relative_l2(&g.gradient, &want);
        assert!(error <= 1e-5 || want.iter().all(|v| *v == 0.0), "{what}: gradient off by {error:e}");
    }
}

/// Layers that end in a few logits whatever comes before.
fn finish(mut layers: Vec<Layer>, input: Dims) -> Vec<Layer> {
    let d = signstep::model::output(&layers, input).unwrap();
    layers.extend([Layer::GlobalAvgPool, linear("z", d.c, 3)]);
    layers
}

/// Every bit of logits and input gradient equals that of the naive kernels in buffers: the defaults for either storage, and
/// one tile more, each time another one.
fn bit_equal(rng: &mut Rng, input: Dims, layers: Vec<Layer>) {
    let layers = finish(layers, input);
    let model = random_model(rng, input, layers);
    let images = rng.images(3 * input.len());
    let naive = network(&model, Storage::Buffer, Variant::Naive);
    let z = naive.logits(&images).unwrap();
    let g = naive.input_gradient(&images, &[0, 1, 2]).unwrap();
    assert!(g.gradient.iter().any(|v| *v != 0.0), "{:?}", model.layers);
    let tiles = Tile::all(naive.plan().target());
    let tile = Variant::Only(tiles[rng.range(0, tiles.len() - 1)]);
    let other = [Storage::Buffer, Storage::Texture][rng.range(0, 1)];
    // Most of the time goes into compiling: what differs only in how texels are read takes turns.
    let usual = [(Storage::Buffer, Variant::Fast), (Storage::Texture, Variant::Naive)][rng.range(0, 1)];
    for (storage, variant) in [(Storage::Texture, Variant::Fast), usual, (other, tile)] {
        let what = format!("{storage:?} {variant:?} {input} {:?}", model.layers);
        let other = network(&model, storage, variant);
        assert_bits(&what, &other.logits(&images).unwrap().logits, &z.logits);
        assert_bits(&what, &other.input_gradient(&images, &[0, 1, 2]).unwrap().gradient, &g.gradient);
    }
}

/// Odd sides, channels that are no multiple of a tile, and sides around the tile's edge: (C, K, H, W).
const EDGES: [(usize, usize, usize, usize); 24] = [
    (1, 1, 3, 3),
    (1, 16, 8, 8),
    (2, 3, 5, 4),
    (3, 16, 32, 32),
    (4, 4, 3, 5),
    (5, 7, 6, 7),
    (7, 8, 4, 9),
    (8, 9, 7, 3),
    (9, 15, 5, 5),
    (12, 17, 3, 8),
    (13, 12, 9, 4),
    (16, 16, 8, 16),
    (16, 20, 7, 7),
    (17, 31, 5, 3),
    (20, 24, 4, 4),
    (24, 33, 3, 13),
    (28, 28, 6, 6),
    (32, 36, 5, 9),
    (33, 16, 4, 17),
    (40, 64, 3, 4),
    (64, 48, 8, 8),
    (65, 10, 3, 3),
    (11, 130, 4, 5),
    (130, 6, 3, 6),
];

#[test]
fn fast_convolutions_equal_naive_ones_stride_1() {
    let mut rng = Rng::new(3);
    for (i, (c, k, h, w)) in thinned(EDGES) {
        let kernel = [3, 3, 3, 1, 5, 4, 7, 2, 6][i % 9];
        let padding = [1, 0, 1, 0, 2, 5, 3, 1, 7][i % 9].max(kernel / 2 * usize::from(kernel > h.min(w)));
        // The second one has a ReLU mask behind it and a ReLU in front; the first writes plain values.
        let layers = vec![conv("a", c, k, kernel, 1, padding), Layer::Relu, conv("b", k, 6, 3, 1, 1)];
        bit_equal(&mut rng, Dims::new(c, h, w), layers);
    }
}

#[test]
fn fast_convolutions_equal_naive_ones_stride_2() {
    let mut rng = Rng::new(4);
    for (i, (c, k, h, w)) in thinned(EDGES) {
        let kernel = [3, 1, 3, 3, 3, 4, 5, 7, 2][i % 9];
        let padding = [1, 0, 0, 1, 2, 1, 2, 3, 3][i % 9].max(kernel / 2 * usize::from(kernel > h.min(w)));
        let layers = vec![conv("a", c, 5, 1, 1, 0), Layer::Relu, conv("b", 5, k, kernel, 2, padding), Layer::Relu];
        bit_equal(&mut rng, Dims::new(c, h, w), layers);
    }
}

/// Kernels that the edge shapes above have few of, padding from none to wider than the kernel.
#[test]
fn fast_convolutions_equal_naive_ones_whatever_the_kernel() {
    let mut rng = Rng::new(7);
    let kernels: [(usize, usize); 10] =
        [(2, 1), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2), (7, 1), (7, 2), (3, 3), (5, 4)];
    for (_, (kernel, stride)) in thinned(kernels) {
        let padding = rng.range(kernel.saturating_sub(4).div_ceil(2), kernel + 1);
        let (h, w) = (rng.range(4, 12), rng.range(4, 12));
        let layers = vec![conv("b", 9, 10, kernel, stride, padding), Layer::Relu];
        bit_equal(&mut rng, Dims::new(9, h, w), layers);
    }
}

#[test]
fn fast_projected_blocks_equal_naive_ones() {
    let mut rng = Rng::new(8);
    for (i, (c, k, h, w)) in thinned(EDGES).filter(|(i, _)| i % 3 == 1) {
        let k = k.min(40);
        let stride = 1 + i % 2;
        let body = vec![conv("b", 7, 9, 3, stride, 1), Layer::Relu, conv("c", 9, k, 3, 1, 1)];
        let layers =
            vec![conv("a", c, 7, 3, 1, 1), Layer::Relu, projected(body, conv("p", 7, k, 1, stride, 0)), Layer::Relu];
        bit_equal(&mut rng, Dims::new(c, h, w), layers);
    }
}

#[test]
fn pre_activation_blocks_have_the_same_bits_everywhere() {
    let mut rng = Rng::new(13);
    for (i, (c, k, h, w)) in EDGES.into_iter().enumerate().filter(|(i, _)| i % 4 == 1) {
        let k = k.min(40);
        let mut layers = vec![conv("a", c, k, 3, 1, 1)];
        // What enters the block is the output of a ReLU, or not.
        layers.extend((i % 8 == 1).then_some(Layer::Relu));
        let body = vec![affine("n", k), Layer::Relu, conv("b", k, 9, 3, 1, 1), Layer::Relu, conv("c", 9, k, 3, 1, 1)];
        layers.extend([residual(body, 0), affine("m", k), Layer::Relu]);
        layers.push(projected(vec![conv("d", k, 6, 3, 2, 1)], conv("p", k, 6, 1, 2, 0)));
        bit_equal(&mut rng, Dims::new(c, h, w), layers);
    }
}

#[test]
fn fast_residual_blocks_equal_naive_ones() {
    let mut rng = Rng::new(5);
    for (i, (c, k, h, w)) in thinned(EDGES).filter(|(i, _)| i % 3 != 0) {
        let mut layers = vec![conv("a", c, k.min(40), 3, 1, 1), Layer::Relu];
        let k = k.min(40);
        if i % 2 == 0 {
            layers.push(residual(vec![conv("b", k, 9, 3, 1, 1), Layer::Relu, conv("c", 9, k, 3, 1, 1)], 0));
        } else {
            layers.push(residual(vec![conv("b", k, 9, 3, 2, 1), Layer::Relu, conv("c", 9, k + 16, 3, 1, 1)], 16));
        }
        layers.push(Layer::Relu);
        bit_equal(&mut rng, Dims::new(c, h, w), layers);
    }
}

/// Every kernel that a network has, of each family that the device offers, for `tests/each-adapter`: few shapes, all of them odd.
#[test]
fn every_kernel_of_a_network_on_odd_shapes() {
    let mut rng = Rng::new(14);
    let mut met = BTreeSet::new();
    let mut run = |net: &Network, images: &[f32]| {
        met.extend(
            net.plan().forward.iter().chain(&net.plan().backward).chain([&net.plan().logits]).map(|d| d.kernel.entry),
        );
        let z = net.logits(images).unwrap().logits;
        (z, net.input_gradient(images, &[0, 1, 2]).unwrap().gradient)
    };
    let target = Target::of(gpu()).unwrap();
    let tiles = Tile::all(&target);
    let small = |family| tiles.iter().rev().find(|tile| tile.family == family && tile.blocks > 1);
    // Each family in one storage, with the smallest tile that serves linear layers, too: most of the time goes into compiling.
    let of = |family| small(family).map(|tile| Variant::Only(*tile));
    let others = [
        (Storage::Buffer, of(Family::Register)),
        (Storage::Texture, of(Family::Broadcast)),
        (Storage::Texture, of(Family::Workgroup)),
        (Storage::Buffer, of(Family::Lean)),
        (Storage::Texture, Some(Variant::Naive)),
    ];
    for model in every_kind_of_layer() {
        let images = rng.images(3 * model.input.len());
        let (z, g) = run(&network(&model, Storage::Buffer, Variant::Naive), &images);
        let reference = Reference::new(model.clone()).unwrap();
        assert_close("naive", &z, &reference.logits_f64(&images).unwrap(), 1e-5, 1e-4);
        let error = relative_l2(&g, &reference.input_gradient_f64(&images, &[0, 1, 2]).unwrap());
        assert!(error <= 1e-5, "naive: gradient off by {error:e}");
        for (storage, variant) in others.into_iter().filter_map(|(storage, variant)| Some((storage, variant?))) {
            let (other_z, other_g) = run(&network(&model, storage, variant), &images);
            assert_bits(&format!("{storage:?} {variant}, logits"), &other_z, &z);
            assert_bits(&format!("{storage:?} {variant}, gradient"), &other_g, &g);
        }
    }
    // Fast arithmetic, f16, matrices, training mode and the other losses have tests of their own.
    let elsewhere = ["winograd", "scale", "_coop", "batch_norm", "margin", "dlr", "difference"];
    let of_network =
        |e: &&str| (e.contains("_forward") || e.contains("_input_grad")) && !elsewhere.iter().any(|w| e.contains(w));
    let offered = |e: &&str| !e.ends_with("_broadcast") || Family::Broadcast.is_offered(&target);
    let missing: Vec<&str> =
        Kernel::entries().into_iter().filter(of_network).filter(offered).filter(|e| !met.contains(e)).collect();
    assert!(missing.is_empty(), "{missing:?} were never run");
}

/// The derivative of a ReLU at 0 is 0, in every kernel that has one: black images and no biases make every sum exactly 0.
#[test]
fn relu_lets_nothing_through_at_zero() {
    let mut rng = Rng::new(6);
    let input = Dims::new(3, 6, 6);
    let fused = vec![conv("a", 3, 9, 3, 1, 1), Layer::Relu, Layer::GlobalAvgPool, linear("z", 9, 4)];
    let block = vec![conv("a", 3, 8, 3, 2, 1), residual(vec![conv("b", 8, 8, 3, 1, 1)], 0), Layer::Relu];
    let block = [block, vec![Layer::GlobalAvgPool, linear("z", 8, 4)]].concat();
    let lone = vec![Layer::MaxPool { size: 2, stride: 2, padding: 0 }, Layer::Relu, linear("z", 27, 4)];
    let dense = vec![Layer::Flatten, linear("y", 108, 10), Layer::Relu, linear("z", 10, 4)];
    for layers in [fused, block, lone, dense] {
        let mut model = random_model(&mut rng, input, layers);
        model.params.values_mut().for_each(|p| p.bias.fill(0.0));
        let black = vec![0.0; 2 * input.len()];
        let white = vec![1.0; 2 * input.len()];
        for (storage, variant) in [(Storage::Buffer, Variant::Naive), (Storage::Texture, Variant::Fast)] {
            let net = network(&model, storage, variant);
            let what = format!("{storage:?} {variant:?} {:?}", model.layers);
            let g = net.input_gradient(&black, &[0, 3]).unwrap().gradient;
            assert!(g.iter().all(|g| *g == 0.0), "{what}");
            let g = net.input_gradient(&white, &[0, 3]).unwrap().gradient;
            assert!(g.iter().any(|g| *g != 0.0), "{what}");
        }
    }
}

/// Of equal pixels, of which photographs are full, the first of a window has the gradient: in the reference as in PyTorch.
#[test]
fn of_equal_pixels_the_first_of_a_window_has_the_gradient() {
    let mut rng = Rng::new(5);
    let input = Dims::new(5, 7, 6);
    for (size, stride, padding) in [(2, 2, 0), (3, 2, 1), (3, 1, 1)] {
        let [h, w] = [input.h, input.w].map(|side| (side + 2 * padding - size) / stride + 1);
        let layers = vec![Layer::MaxPool { size, stride, padding }, Layer::Flatten, linear("z", 5 * h * w, 4)];
        let model = random_model(&mut rng, input, layers);
        let want = Reference::new(model.clone()).unwrap().input_gradient_f64(&vec![0.5; input.len()], &[1]).unwrap();
        for storage in [Storage::Buffer, Storage::Texture] {
            let net = network(&model, storage, Variant::Naive);
            let got = net.input_gradient(&vec![0.5; input.len()], &[1]).unwrap().gradient;
            let error = relative_l2(&got, &want);
            assert!(error < 1e-5, "{size}×{size}, {stride} apart, {storage:?}: {error}");
        }
    }
}

/// What is offered on an adapter is tested there: the three that tests run on offer what is known of them.
#[test]
fn every_family_is_offered_where_it_can_be() {
    let mut rng = Rng::new(10);
    let model = random_model(&mut rng, Dims::new(3, 8, 8), finish(vec![conv("a", 3, 8, 3, 1, 1)], Dims::new(3, 8, 8)));
    let net = network(&model, Storage::Buffer, Variant::Naive);
    let target = net.plan().target();
    let offered = |family| Tile::all(target).iter().any(|tile| tile.family == family);
    assert!(offered(Family::Register) && offered(Family::Workgroup) && offered(Family::Lean));
    assert_eq!(offered(Family::Broadcast), target.subgroup >= 8);
    let adapter = gpu().summary();
    match (adapter.backend.as_str(), adapter.name.as_str()) {
        // As many lanes as its vectors have.
        ("vulkan", name) if name.starts_with("llvmpipe") => {
            assert_eq!(target.subgroup, if name.ends_with("512 bits)") { 16 } else { 8 });
        }
        // Subgroups of four, and none at all.
        ("vulkan", name) if name.starts_with("SwiftShader") => assert_eq!(target.subgroup, 0),
        ("gl", _) => assert_eq!(target.subgroup, 0),
        _ => {}
    }
}

/// The order of design: four input channels at a time, kernel rows, kernel columns, channels; then the bias, then what is
/// added. Whether `fma` rounds once or twice is the device's affair, the order is not.
#[test]
fn sums_are_taken_in_the_canonical_order() {
    let mut rng = Rng::new(9);
    let inputs = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (9, 1), (1, 2), (2, 3), (6, 3), (7, 2)];
    for (_, (c, kernel)) in thinned(inputs) {
        let input = Dims::new(c, kernel, kernel);
        let block = residual(vec![conv("b", 8, 8, 1, 1, 0)], 0);
        let model = random_model(&mut rng, input, vec![conv("a", c, 8, kernel, 1, 0), block]);
        let x = rng.images(input.len());
        let sum = |w: &dyn Fn(usize) -> f32, x: &dyn Fn(usize) -> f32, order: &[usize], once: bool| {
            order.iter().fold(0.0_f32, |s, &i| if once { w(i).mul_add(x(i), s) } else { w(i) * x(i) + s })
        };
        let taps = kernel * kernel;
        let blocks = (0..c.div_ceil(4))
            .flat_map(|b| (0..taps).flat_map(move |t| (4 * b..(4 * b + 4).min(c)).map(move |i| i * taps + t)));
        let order: Vec<usize> = blocks.collect();
        let expected = |once: bool| -> Vec<f32> {
            let (a, b) = (&model.params["a"], &model.params["b"]);
            let of = |o: usize| sum(&|i| a.weight[o * c * taps + i], &|i| x[i], &order, once) + a.bias[o];
            let y: Vec<f32> = (0..8).map(of).collect();
            let in_b: Vec<usize> = (0..8).collect();
            (0..8).map(|o| sum(&|i| b.weight[8 * o + i], &|i| y[i], &in_b, once) + b.bias[o] + y[o]).collect()
        };
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let tiles = Tile::all(network(&model, Storage::Buffer, Variant::Naive).plan().target());
        let one_of_each = [Family::Register, Family::Broadcast, Family::Workgroup, Family::Lean]
            .into_iter()
            .filter_map(|family| tiles.iter().find(|tile| tile.family == family).map(|tile| Variant::Only(*tile)));
        for variant in one_of_each.chain([Variant::Naive]) {
            let z = network(&model, Storage::Texture, variant).logits(&x).unwrap().logits;
            let once_or_twice = [bits(&expected(true)), bits(&expected(false))];
            assert!(once_or_twice.contains(&bits(&z)), "{variant}, {c} channels, kernel {kernel}: {z:?}");
        }
    }
}

/// A stride may be as large as the largest window, and leaves out what lies between windows; beyond that it is refused, and so
/// never near the end of a word, where a place in an image would come out wrong.
#[test]
fn strides_of_pools_are_bounded() {
    let mut rng = Rng::new(16);
    let pools: [fn(usize) -> Layer; 2] = [
        |stride| Layer::MaxPool { size: 3, stride, padding: 1 },
        |stride| Layer::AvgPool { size: 3, stride, padding: 1 },
    ];
    let input = Dims::new(2, 2, 515);
    for pool in pools {
        for stride in [0, 256, (1 << 32) - 1, 1 << 32, usize::MAX] {
            let e = pool(stride).output(input).unwrap_err();
            let bound = format!("stride {stride}: strides of 1 to 255");
            assert!(matches!(&e, Error::Model { detail, .. } if detail.contains(&bound)), "{e}");
        }
        let model = random_model(&mut rng, input, vec![pool(255), Layer::Flatten, linear("z", 6, 4)]);
        let (images, classes) = (rng.images(2 * input.len()), [0, 3]);
        let want = Reference::new(model.clone()).unwrap().input_gradient_f64(&images, &classes).unwrap();
        for storage in [Storage::Buffer, Storage::Texture] {
            let got = network(&model, storage, Variant::Fast).input_gradient(&images, &classes).unwrap();
            assert_close("gradient", &got.gradient, &want, 1e-6, 1e-4);
        }
    }
}
