//! Logits and input gradients of any weights that the engine reads, for programs in other languages: safetensors in and out.
//!
//! ```text
//! cargo run --release --example input_gradient -- WEIGHTS IMAGES OUT
//! ```
//!
//! IMAGES holds `images` `[N, C, H, W]` f32 in [0, 1] and `labels` `[N]` i64; OUT gets `logits` `[N, K]` and `input_gradient`
//! `[N, C, H, W]`, the gradient of each image's cross-entropy on its label.

use safetensors::tensor::{Dtype, TensorView, serialize};
use safetensors::{SafeTensorError, SafeTensors};
use signstep::attack::Engine;
use signstep::{Adapter, Gpu, Network};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, images, out] = &arguments[..] else { return Err("three files: WEIGHTS IMAGES OUT".into()) };

    let net = Network::load(&Gpu::new(&Adapter::Auto)?, &std::fs::read(weights)?)?;
    let bytes = std::fs::read(images)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let shape = file.tensor("images")?.shape().to_vec();
    let pixels: Vec<f32> = numbers(&file, "images", f32::from_le_bytes)?;
    let labels: Vec<i64> = numbers(&file, "labels", i64::from_le_bytes)?;
    let classes = labels.iter().map(|label| u32::try_from(*label)).collect::<Result<Vec<_>, _>>()?;

    let logits = net.logits(&pixels)?;
    let gradient = net.input_gradient(&pixels, &classes)?;
    if let Some(i) = logits.health.iter().chain(&gradient.health).position(|health| !health.is_healthy()) {
        return Err(format!("NaN or infinity at sample {}", i % labels.len()).into());
    }
    let k = logits.logits.len() / labels.len().max(1);
    let (logits, gradient) = (words(&logits.logits), words(&gradient.gradient));
    let tensors = [
        ("logits", TensorView::new(Dtype::F32, vec![labels.len(), k], &logits)?),
        ("input_gradient", TensorView::new(Dtype::F32, shape, &gradient)?),
    ];
    std::fs::write(out, serialize(tensors, None)?)?;
    Ok(())
}

fn numbers<const B: usize, T>(
    file: &SafeTensors<'_>,
    name: &str,
    from: fn([u8; B]) -> T,
) -> Result<Vec<T>, SafeTensorError> {
    Ok(file.tensor(name)?.data().as_chunks().0.iter().map(|b| from(*b)).collect())
}

fn words(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
