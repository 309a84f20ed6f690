//! Row 0: the three examples that came with the question's answer, as they are printed: a ResNet-18 that was never
//! trained, images drawn from N(0, 1), ten steps of `x + 0.01·sign(gradient)` on the target's loss, no ball, no bounds,
//! and no `.eval()`.

use super::batch::{Batch, Judged, Net, Run, differing, healthy, moves, same_bits, signs};
use super::numbers::{Numbers, Row};
use super::verdict;
use crate::attack::{Engine, Gradient, Stream, philox};
use crate::error::Result;
use crate::model::{Arch, Layer, resnet18};
use crate::weights::{Tensors, expected};
use std::cell::RefCell;
use std::f64::consts::TAU;

/// As printed.
const STEP_SIZE: f32 = 0.01;
const STEPS: u32 = 10;

/// What a random number of row 0 is for.
const WEIGHTS: u32 = 0;
const IMAGES: u32 = 1;
const TARGETS: u32 = 2;

fn words(seed: u64, what: u32, index: u32) -> impl Iterator<Item = u32> {
    (0..).flat_map(move |block| philox(seed, [index, what, block, Stream::Study as u32]))
}

/// Uniform in [0, 1), in steps of 2⁻²⁴.
fn unit(word: u32) -> f64 {
    f64::from(word >> 8) / f64::from(1 << 24)
}

/// From N(0, 1), by Box and Muller.
fn normals(mut words: impl Iterator<Item = u32>) -> impl Iterator<Item = f64> {
    std::iter::from_fn(move || Some([words.next()?, words.next()?])).flat_map(|[a, b]| {
        // 1 − u is never zero.
        let (radius, angle) = ((-2.0 * (1.0 - unit(a)).ln()).sqrt(), TAU * unit(b));
        [radius * angle.cos(), radius * angle.sin()]
    })
}

/// Uniform within ±1/√inputs.
fn uniform(words: impl Iterator<Item = u32>, inputs: usize) -> impl Iterator<Item = f32> {
    let bound = 1.0 / (inputs as f64).sqrt();
    words.map(move |word| ((2.0 * unit(word) - 1.0) * bound) as f32)
}

/// A ResNet-18 that was never trained, as torchvision's begins: convolutions from N(0, 2/(outputs·kernel²)), the linear
/// layer uniform within ±1/√inputs, batch norm 1 and 0.
///
/// # Errors
/// None: its layers fit each other.
pub fn network(seed: u64) -> Result<(Arch, Tensors)> {
    let arch = resnet18();
    let mut tensors = Tensors::new();
    for (index, (name, shape)) in expected(&arch.layers)?.into_iter().enumerate() {
        let len: usize = shape.iter().product();
        let words = || words(seed, WEIGHTS, index as u32);
        // A bias is as wide as its layer's weights.
        let inputs = |name: &str| name.strip_suffix("bias").and_then(|layer| tensors.get(&format!("{layer}weight")));
        let values: Vec<f32> = match (&shape[..], name.rsplit('.').next()) {
            (&[outputs, _, kernel, _], _) => {
                let deviation = (2.0 / (outputs * kernel * kernel) as f64).sqrt();
                normals(words()).take(len).map(|v| (deviation * v) as f32).collect()
            }
            (&[_, inputs], _) => uniform(words(), inputs).take(len).collect(),
            (_, Some("bias")) => match inputs(&name) {
                Some((shape, _)) if shape.len() == 2 => uniform(words(), shape[1]).take(len).collect(),
                _ => vec![0.0; len],
            },
            (_, Some("running_mean")) => vec![0.0; len],
            _ => vec![1.0; len],
        };
        tensors.insert(name, (shape, values));
    }
    Ok((arch, tensors))
}

/// Whether layers have a batch norm.
pub fn has_batch_norm<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> bool {
    layers.into_iter().any(|layer| matches!(layer, Layer::BatchNorm { .. }) || has_batch_norm(layer.inner()))
}

/// `n` images from N(0, 1) with random targets; the first's is 1.
pub fn images(seed: u64, n: usize, one: usize, classes: usize) -> Batch {
    let image = |i: usize| normals(words(seed, IMAGES, i as u32)).take(one).map(|v| v as f32);
    let target = |i: usize| {
        let word = words(seed, TARGETS, i as u32).next().unwrap_or(0);
        if i == 0 { 1 } else { ((u64::from(word) * classes as u64) >> 32) as u32 }
    };
    Batch {
        x0: (0..n).flat_map(image).collect(),
        // What is drawn has no class of its own.
        labels: vec![-1; n],
        targets: (0..n).map(target).collect(),
        ids: (0..n as u64).collect(),
    }
}

/// The update of all three examples; +1 as printed, −1 mended.
#[derive(Clone, Copy)]
struct Way {
    direction: f32,
    training: bool,
}

/// Example 1: one image.
fn example_1(net: Net<'_>, image: &Batch, way: Way) -> Result<Run> {
    // The mean over one image is that image's loss.
    example_2(net, image, way)
}

/// Example 2: a minibatch under the mean loss.
fn example_2(net: Net<'_>, batch: &Batch, way: Way) -> Result<Run> {
    let n = batch.len() as f32;
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for iteration in 0..STEPS {
        let mean: Vec<f32> = net(&run.x, &batch.targets)?.gradient.iter().map(|g| g / n).collect();
        let sign = signs(&mean);
        for (x, s) in run.x.iter_mut().zip(&sign) {
            *x += way.direction * STEP_SIZE * f32::from(*s);
        }
        if iteration == 0 {
            run.first = sign;
        }
    }
    Ok(run)
}

/// Example 3: the same gradient, and the update as a loop over the samples.
fn example_3(net: Net<'_>, batch: &Batch, way: Way) -> Result<Run> {
    let (n, one) = (batch.len(), batch.one());
    let mut run = Run { x: batch.x0.clone(), ..Run::default() };
    for iteration in 0..STEPS {
        let gradient = net(&run.x, &batch.targets)?.gradient;
        for i in 0..n {
            let own: Vec<f32> = gradient[i * one..(i + 1) * one].iter().map(|g| g / n as f32).collect();
            let sign = signs(&own);
            for (x, s) in run.x[i * one..(i + 1) * one].iter_mut().zip(&sign) {
                *x += way.direction * STEP_SIZE * f32::from(*s);
            }
            if iteration == 0 {
                run.first.extend(sign);
            }
        }
    }
    Ok(run)
}

/// A network that remembers what it was asked: examples 2 and 3 ask for the same gradients as long as they agree, and a
/// gradient at the same bits need not be computed twice.
struct Remembering<'a> {
    net: Net<'a>,
    asked: RefCell<Vec<(Vec<f32>, Gradient)>>,
}

impl Remembering<'_> {
    fn gradient(&self, x: &[f32], targets: &[u32]) -> Result<Gradient> {
        if let Some((_, known)) = self.asked.borrow().iter().find(|(asked, _)| same_bits(asked, x)) {
            return Ok(known.clone());
        }
        let gradient = (self.net)(x, targets)?;
        healthy(&gradient.health)?;
        self.asked.borrow_mut().push((x.to_vec(), gradient.clone()));
        Ok(gradient)
    }
}

/// What row 0 left behind, for programs that repeat it.
pub struct Repeat {
    /// `0a`, …
    pub id: String,
    /// Where the images ended, and their first signs.
    pub run: Run,
}

/// The examples in both modes and both directions. `training` says why where it cannot run.
///
/// # Errors
/// Those of the networks.
pub fn rows(
    engine: &dyn Engine,
    training: std::result::Result<Net<'_>, &str>,
    batch: &Batch,
    tell: &dyn Fn(&str) -> Result<()>,
) -> Result<(Vec<Row>, Vec<Repeat>)> {
    let evaluation = |x: &[f32], targets: &[u32]| engine.input_gradient(x, targets);
    let before = Judged::new(engine, &batch.x0, &batch.targets)?;
    let (mut rows, mut runs) = (Vec::new(), Vec::new());
    let mut letters = 'a'..='z';
    for (title, direction, is_training) in [
        ("as printed: training mode, +α", 1.0, true),
        ("evaluation mode, +α", 1.0, false),
        ("sign mended: evaluation mode, −α", -1.0, false),
        ("training mode, −α", -1.0, true),
    ] {
        let way = Way { direction, training: is_training };
        let mut id = || format!("0{}", letters.next().unwrap_or('z'));
        let net = match (way.training, training) {
            (true, Ok(net)) => net,
            (true, Err(why)) => {
                rows.push(Row {
                    id: id(),
                    experiment: format!("Examples 1 to 3 {title}"),
                    against: String::new(),
                    numbers: None,
                    verdict: format!("Not run: {why}."),
                });
                continue;
            }
            (false, _) => &evaluation,
        };
        tell(&format!("row 0, {title}"))?;
        let memory = Remembering { net, asked: RefCell::default() };
        let net = |x: &[f32], targets: &[u32]| memory.gradient(x, targets);
        let alone = batch.each(1, |image| example_1(&net, image, way))?;
        let together = example_2(&net, batch, way)?;
        let looped = example_3(&net, batch, way)?;
        let first_id = id();
        let name = |n: u32| match n {
            1 => format!("Example 1, each of the {} images alone; {title}", batch.len()),
            2 => format!("Example 2, the minibatch of {}; {title}", batch.len()),
            _ => format!("Example 3, the minibatch of {}, updated in a loop; {title}", batch.len()),
        };
        let mut push = |n: u32, id: String, run: Run| -> Result<()> {
            let mut numbers = Numbers::new(&before, &Judged::new(engine, &run.x, &batch.targets)?);
            if n == 1 {
                numbers = numbers.fact("hits_before", before.successes() as f64);
            }
            if n > 1 {
                numbers.same_bits = Some(same_bits(&run.x, &alone.x));
                numbers.first_signs_differ = Some(differing(&run.first, &alone.first));
                let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                numbers = numbers.fact("pixels_agree", 1.0 - differing(&bits(&run.x), &bits(&alone.x)));
                numbers.signs_differ = Some(differing(&moves(&run.x, &batch.x0), &moves(&alone.x, &batch.x0)));
            }
            if n == 3 {
                numbers = numbers.fact("equals_example_2", f64::from(u8::from(same_bits(&run.x, &together.x))));
            }
            let against = if n > 1 { first_id.clone() } else { String::new() };
            let verdict = verdict::example(&numbers);
            rows.push(Row { id: id.clone(), experiment: name(n), against, numbers: Some(numbers), verdict });
            runs.push(Repeat { id, run });
            Ok(())
        };
        push(1, first_id.clone(), alone.clone())?;
        push(2, id(), together.clone())?;
        push(3, id(), looped)?;
    }
    Ok((rows, runs))
}
