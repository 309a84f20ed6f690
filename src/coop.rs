//! Units that multiply whole matrices ([`Math::Coop`]), tried beside the naive kernels before anything relies on them:
//! drivers and the compiler of shaders are young there, and what is wrong is wrong without a word. A second or so where
//! nothing is compiled yet, once for each device of a process.

use crate::error::Result;
use crate::gpu::{CoopMatrix, Gpu};
use crate::model::{Conv2d, Dims, Layer, Linear, Model, Params};
use crate::plan::{Math, Plan, Site, Target, Variant};
use crate::trial::{Scatter, Setup, Trial, compare};
use std::collections::BTreeMap;

/// How far a unit's results may be from a naive kernel's, both of the same f16 and both rounded to f16 in the end
/// (relative L2): sums of f32 in another order differ by some 1e-6, which rounds one number in some hundreds to its
/// neighbour, 2e-5 in all. Sums kept as f16 would be off by 1e-3 and more.
pub const TOLERANCE: f64 = 2e-4;

/// Samples of a trial.
const SAMPLES: u32 = 3;

/// The matrices that a device multiplies, once that it has been seen to multiply them right.
///
/// # Errors
/// [`crate::Error::Usage`] where it has none, or was opened without them, or gave wrong results, with the reason; those
/// of the device.
pub fn of(gpu: &Gpu) -> Result<CoopMatrix> {
    gpu.coop_once(|matrix| try_out(gpu, matrix))
}

/// Every kind of site once, where activations lie on this device: what is wrong, in words.
fn try_out(gpu: &Gpu, matrix: CoopMatrix) -> Result<std::result::Result<(), String>> {
    let model = model();
    let target = Target { math: Math::Coop, coop: Some(matrix), storage: gpu.storage(), ..Target::of(gpu)? };
    let fast = Plan::new(&model, &target)?;
    let naive = Plan::new(&model, &Target { variant: Variant::Naive, ..target })?;
    let mut tried = 0;
    for (site, other) in fast.sites.iter().zip(&naive.sites) {
        if fast.at(site).iter().any(|d| d.kernel.entry.ends_with("_coop")) {
            tried += 1;
            if let Err(wrong) = compared(gpu, (&fast, site), (&naive, other))? {
                return Ok(Err(format!("wrong results: {}: {wrong}", site.shape)));
            }
        }
    }
    // Four convolutions, forward and backward.
    Ok(if tried == 8 { Ok(()) } else { Err(format!("its workgroups hold no tile: {tried} of 8 kernels")) })
}

/// One site beside the naive kernel's, and a sample alone beside the same one in a batch.
fn compared(gpu: &Gpu, fast: (&Plan, &Site), naive: (&Plan, &Site)) -> Result<std::result::Result<(), String>> {
    let run = |(plan, site): (&Plan, &Site), samples| {
        Trial::new(gpu, plan.at(site), &plan.resources, &Setup::once(samples))?.outputs()
    };
    let batch = run(fast, SAMPLES)?;
    let alone = run(fast, 1)?;
    if let Err(wrong) = compare(&batch, &run(naive, SAMPLES)?, Some(TOLERANCE)) {
        return Ok(Err(wrong));
    }
    // Of y the texels of one sample, read as f32: its memory may be larger, for it serves other layers, too.
    let (plan, site) = fast;
    let c = |name| plan.at(site)[0].kernel.constant(name).unwrap_or(0) as usize;
    let same = batch.iter().zip(&alone).all(|(b, a)| {
        let bytes = if a.name == "y" { c("OC4") * c("OH") * c("OW") * 16 } else { a.bytes.len() };
        bytes > 0 && bytes <= a.bytes.len() && b.bytes.get(..bytes) == Some(&a.bytes[..bytes])
    });
    Ok(if same { Ok(()) } else { Err("a sample alone has other bits than in a batch".into()) })
}

/// Behind a convolution that makes f16 of the image, one with a ReLU, one with a stride, whose gradient has phases, and
/// to and from few channels: workgroups with every number of subgroups and matrices along the channels (`ops/coop.rs`).
/// Sides and channels that fill no matrix.
fn model() -> Model {
    let conv = |name: &str, inputs, outputs, stride| {
        let kernel = if name == "d" { 1 } else { 3 };
        let padding = kernel / 2;
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: true })
    };
    let layers = vec![
        conv("stem", 3, 20, 1),
        conv("a", 20, 36, 1),
        Layer::Relu,
        conv("b", 36, 24, 2),
        conv("c", 24, 70, 1),
        Layer::Relu,
        conv("d", 70, 16, 1),
        Layer::GlobalAvgPool,
        Layer::Linear(Linear { name: "z".into(), inputs: 16, outputs: 2, bias: true }),
    ];
    let mut scatter = Scatter(9);
    let mut params = |outputs: usize, each: usize| Params {
        weight: (0..outputs * each).map(|_| scatter.signed() / (each as f32).sqrt()).collect(),
        bias: (0..outputs).map(|_| scatter.signed() / 8.0).collect(),
    };
    let params = BTreeMap::from([
        ("stem".to_string(), params(20, 3 * 9)),
        ("a".to_string(), params(36, 20 * 9)),
        ("b".to_string(), params(24, 36 * 9)),
        ("c".to_string(), params(70, 24 * 9)),
        ("d".to_string(), params(16, 70)),
        ("z".to_string(), params(2, 16)),
    ]);
    let input = Dims::new(3, 11, 10);
    Model { arch: "trial".into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None }
}
