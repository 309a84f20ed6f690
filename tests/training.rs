//! Training mode: batch norm with the statistics of the batch. Kernels against the f64 reference, the reference against finite
//! differences, both against PyTorch (`golden/training`); what couples samples, and who refuses it.

mod common;

use common::*;
use signstep::attack::{Engine, Loss, Sample};
use signstep::model::{Conv2d, Dims, Layer, Linear, Shortcut};
use signstep::weights::{self, Tensors};
use signstep::{Error, Network, Options, Reference, Storage, Training, Variant, reference};

/// A convolution and the batch norm behind it.
fn normed(name: &str, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> [Layer; 2] {
    let bias = outputs % 2 == 1; // batch norm takes it away again
    let conv = Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding: kernel / 2, bias };
    [Layer::Conv2d(conv), Layer::BatchNorm { name: format!("{name}.bn"), channels: outputs }]
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
                Layer::BatchNorm { name, channels } => {
                    add(name, "weight", vec![*channels], &|v| 1.0 + 0.3 * v);
                    add(name, "bias", vec![*channels], &|v| 0.3 * v);
                    add(name, "running_mean", vec![*channels], &|v| 5.0 * v);
                    add(name, "running_var", vec![*channels], &|v| 9.0 + v * v);
                }
                Layer::Linear(Linear { name, inputs, outputs }) => {
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
/// kind of shortcut, in a projection; plain layers between them.
fn random_network(rng: &mut Rng) -> (Vec<Layer>, Dims) {
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
    match rng.range(0, 3) {
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
    let mut seen = [0; 3];
    for trial in 0..60 {
        let (layers, input) = random_network(&mut rng);
        let tensors = tensors(&mut rng, &layers);
        let twin = twin(&layers, input, &tensors);
        let storage = [Storage::Buffer, Storage::Texture][trial % 2];
        let variant = [Variant::Fast, Variant::Fast, Variant::Naive][trial % 3];
        let net = training(&layers, input, &tensors, storage, variant);
        for n in [2, 3, 33] {
            let images = rng.images(n * input.len());
            let samples = samples(&mut rng, n, twin.model().logits());
            let what = format!("trial {trial}, {storage:?}, {variant}, {n} images, {layers:?}");
            let z = net.logits(&images).unwrap();
            assert_close(&what, &z.logits, &twin.logits_f64(&images).unwrap(), 1e-5, 1e-4);
            let loss = [Loss::CrossEntropy, Loss::Margin, Loss::Dlr, Loss::Difference][rng.range(0, 3)];
            let got = net.loss_gradient(&images, &samples, loss).unwrap();
            let (want, losses) = twin.loss_gradient_f64(&images, &samples, loss).unwrap();
            assert_close(&what, &got.loss, &losses, 1e-5, 1e-4);
            assert!(z.health.iter().chain(&got.health).all(|h| h.is_healthy()), "{what}");
            let error = relative_l2(&got.gradient, &want);
            println!("{error:.1e} {n} {}", layers.len());
            assert!(error <= 1e-5 || want.iter().all(|v| *v == 0.0), "{what}: gradient off by {error:e}");
        }
        for (seen, part) in seen.iter_mut().zip(["Identity", "Subsample", "Projection"]) {
            *seen += usize::from(format!("{layers:?}").contains(part));
        }
    }
    assert!(seen.iter().all(|n| *n >= 5), "{seen:?}");
}
