//! Training mode: batch norm with the statistics of the batch. Kernels against the f64 reference, the reference against finite
//! differences, both against PyTorch (`golden/training`); what couples samples, and who refuses it.

mod common;

use common::*;
use signstep::attack::{Engine, Loss, Sample};
use signstep::model::{Conv2d, Dims, Layer, Linear, Shortcut};
use signstep::weights::{self, Tensors};
use signstep::{Error, Math, Network, Options, Reference, Storage, Training, Variant, reference};

/// A convolution and the batch norm behind it.
fn normed(name: &str, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> [Layer; 2] {
    let bias = outputs % 2 == 1; // batch norm takes it away again
    let conv = Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding: kernel / 2, bias };
    // PyTorch's, and one that shows.
    let eps = if outputs.is_multiple_of(3) { 0.3 } else { 1e-5 };
    [Layer::Conv2d(conv), Layer::BatchNorm { name: format!("{name}.bn"), channels: outputs, eps }]
}

/// Random tensors for layers, activations near 1. Running statistics are there, and far off: nothing may come of them.
fn tensors(rng: &mut Rng, layers: &[Layer]) -> Tensors {
    fn fill<'a>(rng: &mut Rng, layers: impl IntoIterator<Item = &'a Layer>, all: &mut Tensors) {
        for layer in layers {
            let mut add = |name: &str, part: &str, shape: Vec<usize>, value: &dyn Fn(f32) -> f32| {
                let values = rng.vec(shape.iter().product(), |r| value(r.normal()));
                assert!(all.insert(format!("{name}.{part}"), (shape, values)).is_none(), "{name} twice");
            };
            match layer {
                Layer::Conv2d(Conv2d { name, inputs, outputs, kernel, bias, .. }) => {
                    let scale = (1.5 / (inputs * kernel * kernel) as f32).sqrt();
                    add(name, "weight", vec![*outputs, *inputs, *kernel, *kernel], &|v| v * scale);
                    if *bias {
                        add(name, "bias", vec![*outputs], &|v| v);
                    }
                }
                Layer::BatchNorm { name, channels, .. } => {
                    add(name, "weight", vec![*channels], &|v| 1.0 + 0.3 * v);
                    add(name, "bias", vec![*channels], &|v| 0.3 * v);
                    add(name, "running_mean", vec![*channels], &|v| 5.0 * v);
                    add(name, "running_var", vec![*channels], &|v| 9.0 + v * v);
                }
                Layer::Linear(Linear { name, inputs, outputs, .. }) => {
                    let scale = (1.5 / *inputs as f32).sqrt();
                    add(name, "weight", vec![*outputs, *inputs], &|v| v * scale);
                    add(name, "bias", vec![*outputs], &|v| v * 0.1);
                }
                _ => fill(rng, layer.inner(), all),
            }
        }
    }
    let mut all = Tensors::new();
    fill(rng, layers, &mut all);
    all
}

/// A batch norm of every kind that there is: behind a convolution, with a ReLU or without, at the end of bodies with each
/// kind of shortcut, in a projection; plain layers between them. `trial` says which shortcut.
fn random_network(rng: &mut Rng, trial: usize) -> (Vec<Layer>, Dims) {
    let input = Dims::new(rng.range(1, 6), rng.range(3, 9), rng.range(3, 9));
    let k = rng.range(1, 14);
    let mut layers = vec![];
    if rng.range(0, 1) == 1 {
        layers.push(Layer::Normalise { mean: vec![104.5 / 255.0; input.c], std: vec![0.25; input.c] });
    }
    layers.extend(normed("a", input.c, k, [1, 3, 3, 5][rng.range(0, 3)], rng.range(1, 2)));
    if rng.range(0, 2) > 0 {
        layers.push(Layer::Relu);
    }
    if rng.range(0, 3) == 0 {
        layers.extend([conv("plain", k, k, 3, 1, 1), Layer::Relu]);
    }
    let body = |rng: &mut Rng, out: usize, stride: usize| {
        let middle = rng.range(1, 10);
        let mut body = normed("b", k, middle, 3, stride).to_vec();
        body.extend((rng.range(0, 3) > 0).then_some(Layer::Relu));
        // Of the rest of the body some has no batch norm.
        match rng.range(0, 3) {
            0 => body.push(conv("c", middle, out, 3, 1, 1)),
            _ => body.extend(normed("c", middle, out, 3, 1)),
        }
        body
    };
    match trial % 4 {
        0 => layers.push(residual(body(rng, k, 1), 0)),
        1 => {
            let added = 8 * rng.range(1, 2);
            layers.push(residual(body(rng, k + added, 2), added));
        }
        2 => {
            let (out, stride) = (rng.range(1, 12), rng.range(1, 2));
            let body = body(rng, out, stride);
            let mut through = normed("p", k, out, 1, stride).to_vec();
            if rng.range(0, 3) == 0 {
                through = vec![conv("p", k, out, 1, stride, 0)];
            }
            layers.push(Layer::Residual { body, shortcut: Shortcut::Projection(through) });
        }
        _ => {}
    }
    if rng.range(0, 2) > 0 && !matches!(layers.last(), Some(Layer::Relu)) {
        layers.push(Layer::Relu);
    }
    let mut d = signstep::model::output(&layers, input).unwrap();
    if rng.range(0, 2) == 0 && d.h.min(d.w) > 1 {
        layers.push(Layer::MaxPool { size: 2, stride: 2, padding: 0 });
        d = signstep::model::output(&layers, input).unwrap();
    }
    if rng.range(0, 1) == 0 {
        layers.extend(normed("d", d.c, 5, 1, 1));
        d.c = 5;
    }
    let classes = rng.range(4, 11);
    if rng.range(0, 1) == 0 {
        // The mean over what batch norm leaves is β whatever the images: with equal seeds nothing would be left to compare.
        if !matches!(layers.last(), Some(Layer::Relu | Layer::MaxPool { .. })) {
            layers.push(Layer::Relu);
        }
        layers.extend([Layer::GlobalAvgPool, linear("z", d.c, classes)]);
    } else {
        layers.extend([Layer::Flatten, linear("y", d.len(), 9), Layer::Relu, linear("z", 9, classes)]);
    }
    (layers, input)
}

fn options(storage: Storage, variant: Variant) -> Options {
    Options { storage: Some(storage), variant, ..Options::default() }
}

fn training(layers: &[Layer], input: Dims, tensors: &Tensors, storage: Storage, variant: Variant) -> Training {
    let (layers, tensors) = (layers.to_vec(), tensors.clone());
    Training::from_layers_with(gpu(), layers, input, tensors, &options(storage, variant)).expect("a plan")
}

fn twin(layers: &[Layer], input: Dims, tensors: &Tensors) -> reference::Training {
    let model = weights::from_layers_training(layers.to_vec(), input, tensors.clone()).unwrap();
    reference::Training::new(model).unwrap()
}

fn samples(rng: &mut Rng, n: usize, classes: usize) -> Vec<Sample> {
    let one = |rng: &mut Rng| {
        let (class, label) = (rng.word() % classes as u32, rng.word() % classes as u32);
        Sample { class, label, direction: [1.0, -1.0][rng.range(0, 1)], ..Sample::default() }
    };
    (0..n).map(|_| one(rng)).collect()
}

#[test]
fn kernels_match_the_reference_on_random_networks() {
    let mut rng = Rng::new(31);
    for (trial, _) in thinned([(); 12]) {
        let (layers, input) = random_network(&mut rng, trial);
        let tensors = tensors(&mut rng, &layers);
        let twin = twin(&layers, input, &tensors);
        let storage = [Storage::Buffer, Storage::Texture][trial / 4 % 2];
        let variant = [Variant::Fast, Variant::Fast, Variant::Naive][trial % 3];
        let net = training(&layers, input, &tensors, storage, variant);
        for n in [2, 3, 33] {
            let images = rng.images(n * input.len());
            let samples = samples(&mut rng, n, twin.model().logits());
            let what = format!("trial {trial}, {storage:?}, {variant}, {n} images, {layers:?}");
            let z = net.logits(&images).unwrap();
            assert_close(&what, &z.logits, &twin.logits_f64(&images).unwrap(), 1e-5, 1e-4);
            // Not DLR: where two logits nearly tie it divides by what is left of them, rounding and all.
            let loss = [Loss::CrossEntropy, Loss::Margin, Loss::Difference][rng.range(0, 2)];
            let got = net.loss_gradient(&images, &samples, loss).unwrap();
            let (want, losses) = twin.loss_gradient_f64(&images, &samples, loss).unwrap();
            assert_close(&what, &got.loss, &losses, 1e-5, 1e-4);
            assert!(z.health.iter().chain(&got.health).all(|h| h.is_healthy()), "{what}");
            let error = relative_l2(&got.gradient, &want);
            println!("trial {trial}, {n} images, {}: {error:.1e}", loss.name());
            // A ReLU that decides otherwise than in f64 would show as 1e-3.
            assert!(error <= 1e-5 || want.iter().all(|v| *v == 0.0), "{what}: gradient off by {error:e}");
        }
    }
}

/// A network with all three kinds of shortcut, and its tensors.
fn all_shortcuts() -> (Vec<Layer>, Dims, Tensors) {
    let mut layers = normed("a", 3, 8, 3, 1).to_vec();
    layers.push(Layer::Relu);
    let block = |name: &str, inputs: usize, outputs: usize, stride: usize| {
        let (b, c) = (format!("{name}.b"), format!("{name}.c"));
        let first = normed(&b, inputs, 5, 3, stride);
        [&first[..], &[Layer::Relu], &normed(&c, 5, outputs, 3, 1)].concat()
    };
    let through = Shortcut::Projection(normed("p", 16, 6, 1, 2).to_vec());
    layers.extend([residual(block("one", 8, 8, 1), 0), Layer::Relu]);
    layers.extend([residual(block("two", 8, 16, 2), 8), Layer::Relu]);
    layers.extend([Layer::Residual { body: block("three", 16, 6, 2), shortcut: through }, Layer::Relu]);
    layers.extend([Layer::GlobalAvgPool, linear("z", 6, 4)]);
    let tensors = tensors(&mut Rng::new(5), &layers);
    (layers, Dims::new(3, 9, 7), tensors)
}

fn cross_entropy(z: &[f64], class: u32) -> f64 {
    let top = z.iter().copied().fold(f64::MIN, f64::max);
    z.iter().map(|v| (v - top).exp()).sum::<f64>().ln() - (z[class as usize] - top)
}

/// Of the sum of losses, by every pixel of every image: through mean and variance, and through the neighbours.
#[test]
fn the_references_gradient_is_that_of_finite_differences() {
    let (layers, input, tensors) = all_shortcuts();
    let net = twin(&layers, input, &tensors);
    let mut rng = Rng::new(6);
    let mut x = rng.vec(3 * input.len(), |r| r.range(0, 255) as f32 / 256.0);
    let samples = samples(&mut rng, 3, 4);
    let (gradient, losses) = net.loss_gradient_f64(&x, &samples, Loss::CrossEntropy).unwrap();
    let scale = gradient.iter().fold(0.0_f64, |a, g| a.max(g.abs()));
    assert!(scale > 1e-3, "the network is dead: {scale}");
    let sum = |x: &[f32]| -> f64 {
        let z = net.logits_f64(x).unwrap();
        z.chunks(4).zip(&samples).map(|(z, s)| cross_entropy(z, s.class)).sum()
    };
    assert!((sum(&x) - losses.iter().sum::<f64>()).abs() < 1e-12);
    let h = 1.0 / 131_072.0; // x ± h is exact in f32
    for i in 0..x.len() {
        let old = x[i];
        x[i] = old + h;
        let above = sum(&x);
        x[i] = old - h;
        let below = sum(&x);
        x[i] = old;
        let slope = (above - below) / (2.0 * f64::from(h));
        let difference = (slope - gradient[i]).abs();
        assert!(difference <= 1e-6 * scale, "value {i}: slope {slope}, gradient {}", gradient[i]);
    }
}

/// Behind a 1×1 convolution, batch norm takes away whatever all pixels of a channel have in common: no gradient points there.
/// With mean and variance taken for constants it would.
#[test]
fn what_all_pixels_share_has_no_gradient() {
    let mut rng = Rng::new(7);
    let input = Dims::new(3, 6, 5);
    let mut layers = normed("a", 3, 12, 1, 1).to_vec();
    layers.extend([Layer::Relu, Layer::Flatten, linear("z", 12 * 30, 4)]);
    let tensors = tensors(&mut rng, &layers);
    let net = training(&layers, input, &tensors, Storage::Buffer, Variant::Fast);
    let (images, samples) = (rng.images(5 * input.len()), samples(&mut rng, 5, 4));
    let g = net.loss_gradient(&images, &samples, Loss::CrossEntropy).unwrap().gradient;
    for channel in 0..3 {
        let values = || (0..g.len()).filter(|i| i / 30 % 3 == channel).map(|i| f64::from(g[i]));
        let (sum, size) = (values().sum::<f64>(), values().map(f64::abs).sum::<f64>());
        assert!(size > 0.0 && sum.abs() <= 1e-6 * size, "channel {channel}: {sum} of {size}");
    }
}

#[test]
fn neighbours_matter_and_runs_repeat() {
    let (layers, input, tensors) = all_shortcuts();
    let mut rng = Rng::new(8);
    let one = input.len();
    let images = rng.images(4 * one);
    let samples = samples(&mut rng, 4, 4);
    for storage in [Storage::Buffer, Storage::Texture] {
        let net = training(&layers, input, &tensors, storage, Variant::Fast);
        let run = |n: usize, images: &[f32]| {
            let z = net.logits(images).unwrap().logits;
            (z, net.loss_gradient(images, &samples[..n], Loss::CrossEntropy).unwrap().gradient)
        };
        let (z, g) = run(4, &images);
        assert_eq!((&z, &g), (&run(4, &images).0, &run(4, &images).1), "not the same again");
        // The same image beside fewer neighbours, and beside one that is lit otherwise.
        let (fewer_z, fewer_g) = run(3, &images[..3 * one]);
        let mut lit = images.clone();
        lit[3 * one..].iter_mut().for_each(|v| *v *= 0.5);
        let (lit_z, lit_g) = run(4, &lit);
        for (other_z, other_g) in [(fewer_z, fewer_g), (lit_z, lit_g)] {
            assert!(z[..4].iter().zip(&other_z[..4]).any(|(a, b)| (a - b).abs() > 1e-3), "neighbours do not matter");
            let norm = |f: &dyn Fn(usize) -> f32| (0..one).map(|i| f(i).powi(2)).sum::<f32>().sqrt();
            let moved = norm(&|i| g[i] - other_g[i]) / norm(&|i| g[i]);
            assert!(moved > 1e-2, "{storage:?}: the gradient moved by {moved}");
        }
        // What is not finite reaches everybody, and everybody is marked.
        let mut broken = images.clone();
        broken[one] = f32::NAN;
        let marked = net.loss_gradient(&broken, &samples, Loss::CrossEntropy).unwrap().health;
        assert!(marked.iter().all(|h| !h.is_healthy()), "{marked:?}");
        assert_eq!(run(4, &images), (z, g), "what was not finite has stayed");
    }
}

/// Samples are on their own everywhere else: neither engine takes such a network.
#[test]
fn evaluation_refuses_it() {
    let (layers, input, tensors) = all_shortcuts();
    let net = training(&layers, input, &tensors, Storage::Buffer, Variant::Fast);
    let refused = |e: Error| {
        assert_eq!(e.exit_code(), 2, "{e}");
        let e = e.to_string();
        assert!(e.starts_with("a.bn: batch norm must be folded first") && e.contains("neighbours"), "{e}");
    };
    refused(Network::new(gpu(), net.model().clone()).unwrap_err());
    refused(Network::with_options(gpu(), net.model().clone(), &Options::default()).unwrap_err());
    refused(Reference::new(net.model().clone()).unwrap_err());
    // One that is hidden in a projection counts too.
    let mut hidden = net.model().clone();
    hidden.layers.retain(|l| matches!(l, Layer::Residual { shortcut: Shortcut::Projection(_), .. }));
    assert!(Reference::new(hidden).unwrap_err().to_string().starts_with("three.b.bn:"));
    // The same layers and tensors, folded, are another network, and welcome.
    let folded = Network::from_layers(gpu(), layers, input, tensors).unwrap();
    let images = Rng::new(9).images(2 * input.len());
    assert_ne!(folded.logits(&images).unwrap().logits, net.logits(&images).unwrap().logits);
}

#[test]
fn without_batch_norm_it_is_the_same_network() {
    let bytes = include_bytes!("../weights/digits-cnn.safetensors");
    let (eval, training) = (Network::load(gpu(), bytes).unwrap(), Training::load(gpu(), bytes).unwrap());
    let mut rng = Rng::new(10);
    let (images, samples) = (rng.images(3 * 64), samples(&mut rng, 3, 10));
    assert_eq!(eval.logits(&images).unwrap(), training.logits(&images).unwrap());
    for loss in Loss::ALL {
        let wanted = eval.loss_gradient(&images, &samples, loss).unwrap();
        assert_eq!(wanted, training.loss_gradient(&images, &samples, loss).unwrap(), "{}", loss.name());
    }
}

#[test]
fn what_is_no_batch_is_refused() {
    let mut rng = Rng::new(11);
    let input = Dims::new(2, 3, 3);
    let mut layers = normed("a", 2, 4, 3, 1).to_vec();
    layers.push(Layer::GlobalAvgPool);
    layers.extend(normed("d", 4, 6, 1, 1));
    layers.push(linear("z", 6, 3));
    let tensors = tensors(&mut rng, &layers);
    let options = Options { batch: Some(4), ..Options::default() };
    let net = Training::from_layers_with(gpu(), layers.clone(), input, tensors.clone(), &options).unwrap();
    let twin = twin(&layers, input, &tensors);
    let images = rng.images(5 * 18);
    let sample = [Sample::default(); 5];
    // PyTorch: "Expected more than 1 value per channel when training".
    for e in [
        net.logits(&images[..18]).unwrap_err(),
        net.loss_gradient(&images[..18], &sample[..1], Loss::CrossEntropy).unwrap_err(),
        twin.logits_f64(&images[..18]).unwrap_err(),
    ] {
        assert!(e.exit_code() == 3 && e.to_string().contains("d.bn has one value a channel"), "{e}");
    }
    assert_eq!(net.logits(&images[..36]).unwrap().logits.len(), 6);
    assert!(net.logits(&[]).unwrap().logits.is_empty());
    let e = net.logits(&images).unwrap_err();
    assert!(e.exit_code() == 5 && e.to_string().contains("one batch of 5 samples"), "{e}");
    for math in [Math::Fast, Math::F16, Math::Coop] {
        let e = Training::from_layers_with(
            gpu(),
            layers.clone(),
            input,
            tensors.clone(),
            &Options { math, ..options.clone() },
        );
        let e = e.expect_err("an arithmetic that it does not have");
        assert!(e.exit_code() == 2 && e.to_string().contains(&format!("math {math}")), "{e}");
    }
    let small = Options { memory: 1 << 15, storage: Some(Storage::Buffer), ..Options::default() };
    let net = Training::from_layers_with(gpu(), layers.clone(), input, tensors.clone(), &small).unwrap();
    assert!(net.logits(&rng.images(500 * 18)).unwrap_err().to_string().contains("one batch of 500 samples"));
    assert!(net.logits(&images[1..]).unwrap_err().to_string().contains("2×3×3"));
    let e = net.loss_gradient(&images[..36], &sample[..1], Loss::CrossEntropy).unwrap_err();
    assert!(e.to_string().contains("1 for 2 images"), "{e}");
    let far = [Sample { class: 3, ..Sample::default() }; 2];
    assert!(net.loss_gradient(&images[..36], &far, Loss::CrossEntropy).unwrap_err().to_string().contains("class 3"));
    // A file is as strict as in evaluation mode: statistics that nobody reads must still be there, and sound.
    let mut short = tensors.clone();
    short.remove("d.bn.running_var");
    let e = Training::from_layers(gpu(), layers.clone(), input, short).unwrap_err();
    assert!(e.to_string().contains("d.bn.running_var: this tensor is missing"), "{e}");
    let late =
        vec![Layer::GlobalAvgPool, Layer::BatchNorm { name: "b".into(), channels: 2, eps: 1e-5 }, linear("z", 2, 3)];
    let all = self::tensors(&mut rng, &late);
    assert!(
        Training::from_layers(gpu(), late, input, all).unwrap_err().to_string().contains("right after a convolution")
    );
}

struct Golden {
    images: Vec<f32>,
    samples: Vec<Sample>,
    logits: Vec<f64>,
    loss: Vec<f64>,
    gradient: Vec<f64>,
    /// The largest error of PyTorch's own f32 in each image's gradient.
    largest: Vec<f64>,
}

fn golden(name: &str) -> Golden {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/training/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let t = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().clone().expect("metadata");
    assert_eq!(about["arch"], name);
    let ours = seeded::checksum(&seeded::tensors(&seeded::arch(name).layers));
    assert_eq!(ours, about["weights"], "{name}: other weights than PyTorch's");
    let data = |name: &str| t.tensor(name).unwrap().data().to_vec();
    let f32s = |name: &str| data(name).as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let f64s = |name: &str| data(name).as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let sample = |class: u8| Sample { class: class.into(), label: class.into(), direction: 1.0, ..Sample::default() };
    Golden {
        images: data("images").into_iter().map(|b| f32::from(b) / 255.0).collect(),
        samples: data("classes").into_iter().map(sample).collect(),
        logits: f64s("logits"),
        loss: f64s("loss"),
        gradient: f32s("input_gradient"),
        largest: f32s("f32_largest"),
    }
}

/// Against PyTorch's `train()` in f64. Tolerances of the project: logits 1e-5 + 1e-4·|z|; gradient of each image, relative L2,
/// 1e-5; no sign differs where a gradient is larger than the error of PyTorch's own f32.
fn is_pytorch(name: &str) {
    let g = golden(name);
    let (arch, n) = (seeded::arch(name), g.samples.len());
    let (mean, std) = (vec![0.4914, 0.4822, 0.4465], vec![0.2470, 0.2435, 0.2616]);
    let tensors = seeded::tensors(&arch.layers);
    let layers = [&[Layer::Normalise { mean, std }], &arch.layers[..]].concat();
    for storage in [Storage::Texture, Storage::Buffer] {
        let net = training(&layers, arch.input, &tensors, storage, Variant::Fast);
        let z = net.logits(&g.images).unwrap();
        assert_close(&format!("{name}: logits"), &z.logits, &g.logits, 1e-5, 1e-4);
        let start = std::time::Instant::now();
        let got = net.loss_gradient(&g.images, &g.samples, Loss::CrossEntropy).unwrap();
        let took = start.elapsed();
        assert_close(&format!("{name}: loss"), &got.loss, &g.loss, 1e-5, 1e-4);
        assert!(z.health.iter().chain(&got.health).all(|h| h.is_healthy()), "{name}: health");
        let one = arch.input.len();
        let (mut worst, mut looked, mut wrong) = (0.0_f64, 0, 0);
        for i in 0..n {
            let (a, b) = (&got.gradient[i * one..(i + 1) * one], &g.gradient[i * one..(i + 1) * one]);
            worst = worst.max(relative_l2(a, b));
            for (a, b) in a.iter().zip(b).filter(|(_, b)| b.abs() > g.largest[i]) {
                looked += 1;
                wrong += usize::from((f64::from(*a) > 0.0) != (*b > 0.0) || *a == 0.0);
            }
        }
        let bytes = net.plan().bytes_per_sample();
        println!("{name} {storage:?}: worst image {worst:.1e}, {looked} signs, {bytes} bytes a sample, {took:.2?}");
        assert!(worst <= 1e-5, "{name} {storage:?}: gradient off by {worst:e}");
        assert!(wrong == 0 && looked > n * one * 9 / 10, "{name} {storage:?}: {wrong} of {looked} signs differ");
    }
}

#[test]
fn resnet20_is_pytorchs() {
    is_pytorch("resnet20");
}

#[test]
fn resnet20_with_projections_is_pytorchs() {
    is_pytorch("resnet20-b");
}

#[test]
fn resnet18_is_pytorchs() {
    is_pytorch("resnet18");
}
