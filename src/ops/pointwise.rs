//! Images in, gradients out, lone ReLUs: `shaders/pointwise.wgsl`.

use super::Build;
use super::{Epilogue, Value, blocks, per_item, sign_words, texels};
use crate::model::Dims;

/// Means and reciprocal deviations as the shader's `struct Channels`; what does not exist is zero.
pub(crate) fn channels(build: &mut Build, d: Dims, normalise: Option<(&[f64], &[f64])>) -> usize {
    let (mean, std) = normalise.unwrap_or((&[], &[]));
    let n = blocks(d.c) as usize * 4;
    let mut values: Vec<f32> = (0..n).map(|c| mean.get(c).map_or(0.0, |m| *m as f32)).collect();
    values.extend((0..n).map(|c| if c < d.c { std.get(c).map_or(1.0, |s| (1.0 / s) as f32) } else { 0.0 }));
    build.constant("mean and 1/std".into(), bytemuck::cast_slice(&values).to_vec())
}

fn consts(d: Dims) -> Vec<(&'static str, u32)> {
    vec![("C", d.c as u32), ("C4", blocks(d.c)), ("H", d.h as u32), ("W", d.w as u32)]
}

/// y = (x − mean) / std, from pixels to texels.
pub(crate) fn normalise_forward(build: &mut Build, channels: usize, x: usize, y: Value) {
    let bindings = vec![("channels", channels), ("x", x), ("y", y.id)];
    let flops = 2 * y.dims.len() as u64;
    let d = per_item(build, "normalise_forward", "normalise", texels(y.dims) as u32, consts(y.dims), bindings, flops);
    build.push(d);
}

/// dx = dy / std, from texels to pixels; `unscale` is what each sample's gradients are multiplied by beforehand
/// (`ops::scale`).
pub(crate) fn normalise_input_grad(build: &mut Build, channels: usize, dy: Value, dx: usize, unscale: Option<usize>) {
    let mut bindings = vec![("channels", channels), ("dy", dy.id), ("dx", dx)];
    bindings.extend(unscale.map(|id| ("unscale", id)));
    let mut consts = consts(dy.dims);
    consts.push(("SCALED", u32::from(unscale.is_some())));
    let flops = dy.dims.len() as u64;
    let d = per_item(build, "normalise_input_grad", "normalise", texels(dy.dims) as u32, consts, bindings, flops);
    build.push(d);
}

/// y = max(x, 0), where no layer before it could do it. Backward there is nothing to do (see `ops`).
pub(crate) fn relu_forward(build: &mut Build, x: Value, y: Value, signs: usize) {
    let mut consts = Vec::new();
    let mut bindings = vec![("x", x.id), ("y", y.id)];
    Epilogue { relu: Some(signs), ..Epilogue::default() }.apply(build, y.dims, &mut consts, &mut bindings);
    let d = per_item(build, "relu_forward", "relu", sign_words(y.dims) as u32, consts, bindings, y.dims.len() as u64);
    build.push(d);
}

/// Logits as plain numbers.
pub(crate) fn logits_forward(build: &mut Build, x: Value, z: usize) {
    let k = x.dims.c as u32;
    let d = per_item(build, "logits_forward", "logits", k, vec![("K", k)], vec![("x", x.id), ("z", z)], 0);
    build.push(d);
}
