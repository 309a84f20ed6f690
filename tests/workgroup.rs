//! Tiles of whole workgroups against the naive kernels, by bits: every tile, every kind of layer, several batches, poisoned
//! neighbours.

mod common;

use common::*;
use signstep::attack::Engine;
use signstep::model::{Dims, Layer};
use signstep::plan::{Family, Tile};
use signstep::{Model, Network, Storage, Variant};

fn tiles() -> Vec<Tile> {
    let target = signstep::Target { limits: gpu().limits().clone(), ..Default::default() };
    let of_workgroups = |tile: &Tile| matches!(tile.family, Family::Workgroup | Family::Lean);
    let tiles: Vec<Tile> = Tile::all(&target).into_iter().filter(of_workgroups).collect();
    assert!(tiles.len() > 9, "this device cannot show the workgroup tiles");
    tiles
}

/// Logits, gradients and marks of a batch.
fn run(net: &Network, images: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<bool>) {
    let n = images.len() / net.model().input.len();
    let classes: Vec<u32> = (0..n).map(|i| (i % net.model().logits()) as u32).collect();
    let z = net.logits(images).unwrap();
    let g = net.input_gradient(images, &classes).unwrap();
    let healthy = (0..n).map(|i| z.health[i].is_healthy() && g.health[i].is_healthy()).collect();
    (z.logits, g.gradient, healthy)
}

/// Every bit of logits and gradient equals that of the naive kernels, in batches of these sizes, the largest first.
fn bit_equal(rng: &mut Rng, model: &Model, tiles: &[Tile], storages: &[Storage], batches: &[usize]) {
    let (one, k) = (model.input.len(), model.logits());
    let images = rng.images(batches[0] * one);
    let (z, g, healthy) = run(&network(model, Storage::Buffer, Variant::Naive), &images);
    assert!(g.iter().any(|v| *v != 0.0) && healthy.iter().all(|h| *h), "{:?}", model.layers);
    for (&tile, &storage) in tiles.iter().flat_map(|tile| storages.iter().map(move |storage| (tile, storage))) {
        let net = network(model, storage, Variant::Only(tile));
        let products = net.plan().dispatches().filter(|d| d.kernel.entry.ends_with("_workgroup")).count();
        let layers = net.plan().dispatches().filter(|d| d.flops > 0 && !d.kernel.entry.contains("pool")).count();
        assert!(products > 1, "{products} of {layers} dispatches are workgroup tiles");
        for &n in batches {
            let what = format!("{tile} {storage:?} batch {n} of {} {:?}", model.input, model.layers);
            let (z_got, g_got, healthy) = run(&net, &images[..n * one]);
            assert!(healthy.iter().all(|h| *h), "{what}");
            assert_bits(&what, &z_got, &z[..n * k]);
            assert_bits(&what, &g_got, &g[..n * one]);
        }
        // Every other sample is NaN, the first one too: the others see nothing of it, and it is marked itself.
        let n = batches[0];
        for parity in 0..2 {
            let mut poisoned = images[..n * one].to_vec();
            (0..n).filter(|i| i % 2 == parity).for_each(|i| poisoned[i * one..(i + 1) * one].fill(f32::NAN));
            let (z_got, g_got, healthy) = run(&net, &poisoned);
            for i in 0..n {
                let what = format!("{tile} {storage:?} sample {i} beside NaN, {} {:?}", model.input, model.layers);
                assert_eq!(healthy[i], i % 2 != parity, "{what}");
                if healthy[i] {
                    assert_bits(&what, &z_got[i * k..(i + 1) * k], &z[i * k..(i + 1) * k]);
                    assert_bits(&what, &g_got[i * one..(i + 1) * one], &g[i * one..(i + 1) * one]);
                }
            }
        }
    }
}

/// What a kernel declares in workgroup memory, and how many invocations share it, fit what WebGPU guarantees, whatever the
/// layer: kernels up to 7×7 with strides up to 4 and any number of channels, forward and backward.
#[test]
fn every_tile_fits_what_is_guaranteed() {
    let mut rng = Rng::new(26);
    let shapes = [(3, 64, 3, 1), (64, 130, 3, 2), (9, 20, 7, 4), (130, 9, 5, 1), (512, 512, 1, 2), (4, 4, 4, 3)];
    for (c, k, kernel, stride) in shapes {
        let layers = vec![conv("a", c, k, kernel, stride, 0), Layer::Relu, Layer::Flatten, linear("z", k, 10)];
        let model = random_model(&mut rng, Dims::new(c, kernel, kernel), layers);
        for tile in tiles()
            .into_iter()
            .chain([(1, 1), (3, 5), (64, 256), (256, 64)].map(|(b, p)| Tile::new(Family::Workgroup, b, p)))
            .chain([(1, 1), (3, 5), (64, 256), (256, 64)].map(|(b, p)| Tile::new(Family::Lean, b, p)))
        {
            let target = signstep::Target { variant: Variant::Only(tile), ..Default::default() };
            let plan = signstep::Plan::new(&model, &target).unwrap();
            let products: Vec<_> = plan.dispatches().filter(|d| d.kernel.entry.ends_with("_workgroup")).collect();
            assert_eq!(products.len(), 4);
            for d in products {
                let module = naga::front::wgsl::parse_str(&d.kernel.source().unwrap().text).unwrap();
                let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
                let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
                assert!((16..=16 << 10).contains(&bytes), "{tile}: {bytes} bytes in {d}");
                // Sums that an invocation holds, of four channels each.
                let sums = d.kernel.constant("QT").unwrap() * d.kernel.constant("PX").unwrap();
                assert!(sums <= if tile.family == Family::Lean { 8 } else { 16 }, "{tile}: {d}");
                assert!(d.kernel.constant("WG").is_some_and(|size| size <= 256), "{tile}: {d}");
            }
        }
    }
}

/// Layers that end in a few logits whatever comes before.
fn finish(rng: &mut Rng, mut layers: Vec<Layer>, input: Dims) -> Model {
    let d = signstep::model::output(&layers, input).unwrap();
    layers.extend([Layer::GlobalAvgPool, linear("z", d.c, 3)]);
    random_model(rng, input, layers)
}

/// Odd sides, channels that are no multiple of a tile, few and many: (C, K, H, W).
const EDGES: [(usize, usize, usize, usize); 12] = [
    (1, 16, 8, 8),
    (3, 9, 5, 4),
    (4, 4, 3, 5),
    (5, 7, 6, 7),
    (7, 33, 4, 9),
    (9, 15, 7, 3),
    (16, 20, 9, 17),
    (17, 6, 3, 3),
    (33, 40, 4, 4),
    (20, 130, 3, 6),
    (130, 6, 6, 5),
    (2, 68, 5, 13),
];

const STORAGES: [Storage; 2] = [Storage::Buffer, Storage::Texture];

/// Every shape, or every second one, with one tile and one storage: all tiles in turn. Most of the time goes into compiling.
fn in_turn(rng: &mut Rng, every: usize, model: impl Fn(&mut Rng, usize, (usize, usize, usize, usize)) -> Model) {
    let tiles = tiles();
    for (i, edge) in EDGES.into_iter().enumerate().step_by(every) {
        let model = model(rng, i, edge);
        let storage = STORAGES[usize::from(i % 4 > 1)];
        bit_equal(rng, &model, &tiles[i % tiles.len()..][..1], &[storage], if i % 3 == 0 { &[33, 1] } else { &[3, 1] });
    }
}

#[test]
fn convolutions_of_stride_1() {
    in_turn(&mut Rng::new(21), 1, |rng, i, (c, k, h, w)| {
        let kernel = [3, 3, 1, 5, 3, 4, 3, 2, 7, 3, 1, 6][i];
        let padding = [1, 0, 0, 2, 2, 5, 1, 1, 3, 1, 1, 7][i];
        let layers = vec![conv("a", c, k, kernel, 1, padding), Layer::Relu, conv("b", k, 6, 3, 1, 1)];
        finish(rng, layers, Dims::new(c, h, w))
    });
}

/// Forward with a stride, and backward by phases: strides 2, 3 and 4, kernels narrower than the stride, padding wider than
/// the kernel.
#[test]
fn convolutions_with_strides() {
    in_turn(&mut Rng::new(22), 1, |rng, i, (c, k, h, w)| {
        let kernel = [3, 1, 3, 5, 3, 4, 3, 2, 7, 3, 1, 3][i];
        let stride = [2, 2, 2, 2, 3, 2, 2, 4, 2, 2, 3, 4][i];
        let padding = [1, 0, 1, 2, 0, 5, 1, 3, 3, 0, 0, 4][i];
        let layers = vec![conv("a", c, 5, 3, 1, 1), Layer::Relu, conv("b", 5, k, kernel, stride, padding), Layer::Relu];
        finish(rng, layers, Dims::new(c, h, w))
    });
}

#[test]
fn residual_and_projected_blocks() {
    in_turn(&mut Rng::new(23), 2, |rng, i, (c, k, h, w)| {
        let k = k.min(40);
        let mut layers = vec![conv("a", c, k, 3, 1, 1), Layer::Relu];
        match i % 3 {
            0 => layers.push(residual(vec![conv("b", k, 9, 3, 1, 1), Layer::Relu, conv("c", 9, k, 3, 1, 1)], 0)),
            1 => layers.push(residual(vec![conv("b", k, 9, 3, 2, 1), Layer::Relu, conv("c", 9, k + 16, 3, 1, 1)], 16)),
            _ => {
                let stride = 1 + i / 3 % 2;
                let body = vec![conv("b", k, 9, 3, stride, 1), Layer::Relu, conv("c", 9, 12, 3, 1, 1)];
                layers.push(projected(body, conv("p", k, 12, 1, stride, 0)));
            }
        }
        layers.push(Layer::Relu);
        finish(rng, layers, Dims::new(c, h, w))
    });
}

/// With a ReLU behind and without, over an image and over a row, backward into a masked image.
#[test]
fn fully_connected_layers() {
    in_turn(&mut Rng::new(24), 2, |rng, i, (c, k, h, w)| {
        let input = Dims::new(c.min(20), h, w.min(9));
        let mut layers = if i % 4 == 0 { vec![conv("a", input.c, 6, 3, 1, 1), Layer::Relu] } else { vec![] };
        let d = signstep::model::output(&layers, input).unwrap();
        layers.extend([Layer::Flatten, linear("y", d.len(), k), Layer::Relu, linear("z", k, 3 + i)]);
        random_model(rng, input, layers)
    });
}

/// One network that has everything, with every tile.
#[test]
fn every_tile() {
    let mut rng = Rng::new(25);
    let input = Dims::new(3, 9, 10);
    let layers = vec![
        conv("a", 3, 36, 3, 1, 1),
        Layer::Relu,
        residual(vec![conv("b", 36, 9, 3, 2, 1), Layer::Relu, conv("c", 9, 52, 3, 1, 1)], 16),
        Layer::Relu,
        Layer::Flatten,
        linear("y", 52 * 25, 70),
        Layer::Relu,
        linear("z", 70, 11),
    ];
    let model = random_model(&mut rng, input, layers);
    for (i, tile) in tiles().into_iter().enumerate() {
        bit_equal(&mut rng, &model, &[tile], &[STORAGES[i % 2]], &[5, 1]);
    }
}

/// Sums of two products and a bias, which compilers like to reorder, with tiles of all families, not of this one alone:
/// a 1×1 convolution of two channels, a gradient of two channels by phases, a fully connected layer of two inputs.
#[test]
fn two_products_and_a_bias() {
    let mut rng = Rng::new(27);
    let input = Dims::new(2, 5, 6);
    let mut layers = vec![conv("a", 2, 5, 1, 1, 0), Layer::Relu, conv("b", 5, 2, 3, 2, 1), Layer::GlobalAvgPool];
    layers.extend([linear("y", 2, 6), Layer::Relu, linear("z", 6, 2)]);
    let model = random_model(&mut rng, input, layers);
    let images = rng.images(5 * input.len());
    let naive = network(&model, Storage::Buffer, Variant::Naive);
    let (z, g, _) = run(&naive, &images);
    let all = Tile::all(naive.plan().target()).into_iter().map(Variant::Only);
    for (i, variant) in [Variant::Naive, Variant::Fast].into_iter().chain(all).enumerate() {
        let what = format!("{variant}, {:?}", STORAGES[(i + 1) % 2]);
        let (z_got, g_got, _) = run(&network(&model, STORAGES[(i + 1) % 2], variant), &images);
        assert_bits(&what, &z_got, &z);
        assert_bits(&what, &g_got, &g);
    }
}
