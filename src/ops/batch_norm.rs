//! Batch norm with the statistics of the batch: `shaders/batch_norm.wgsl`. For plans of training mode alone.

use super::{Bindings, Build, Consts, Epilogue, Value, blocks, per_item, sign_words, texels};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::model::{Dims, Params};
use crate::tensor::Kind;

/// Lanes that add up a plane, and those that add up what the samples bring: their number decides the order of sums, so
/// it is the same on every device; a power of two, for sums are halved. Few, for planes are small and there are many of
/// them.
const LANES: u32 = 64;

/// A batch norm that has run forward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'m> {
    pub name: &'m str,
    /// What entered: kept until the way back.
    pub x: Value,
    /// Mean, 1/deviation, and two means of the way back.
    sums: usize,
    affine: usize,
}

fn shape(d: Dims) -> Consts {
    vec![("C4", blocks(d.c)), ("PIXELS", (d.h * d.w) as u32)]
}

/// Two texels for each block of channels: what a sample brings to the sums.
fn part(build: &mut Build, d: Dims) -> Value {
    build.activation(Dims::new(8 * d.c.div_ceil(4), 1, 1), None)
}

/// The sums of each sample, a workgroup for each block of channels.
fn each_sample(build: &mut Build, entry: &'static str, name: &str, d: Dims, bindings: Bindings) {
    let lanes = ((d.h * d.w) as u32).next_power_of_two().clamp(8, LANES);
    push(build, entry, name, shape(d), (lanes, Grid::PerSample(blocks(d.c), 1)), bindings, 4 * d.len() as u64);
}

/// The sums of all samples, a workgroup for each block of channels.
fn whole_batch(build: &mut Build, entry: &'static str, name: &str, d: Dims, consts: Consts, mut bindings: Bindings) {
    bindings.push(("health", build.health));
    push(build, entry, name, consts, (LANES, Grid::Once(blocks(d.c))), bindings, 4 * d.c as u64);
}

fn push(
    build: &mut Build,
    entry: &'static str,
    name: &str,
    mut consts: Consts,
    (lanes, grid): (u32, Grid),
    bindings: Bindings,
    flops: u64,
) {
    consts.push(("WG", lanes));
    let kernel = Kernel::new(entry, consts, build.target.storage);
    build.push(Dispatch { kernel, layer: name.into(), bindings, grid, flops });
}

/// y = γ·x̂ + β, then the epilogue.
pub(crate) fn forward<'m>(
    build: &mut Build,
    (name, eps): (&'m str, f64),
    p: &Params,
    x: Value,
    y: Value,
    epilogue: Epilogue,
) -> Norm<'m> {
    let d = x.dims;
    let sums = build.resource(format!("{name} statistics"), Kind::Whole(16 * u64::from(blocks(d.c))), 0);
    let affine = super::affine::weights(build, name, p);

    let part = part(build, d);
    each_sample(build, "batch_norm_forward_sample", name, d, vec![("x", x.id), ("part", part.id)]);
    let consts = [shape(d), vec![("EPS", (eps as f32).to_bits())]].concat();
    whole_batch(build, "batch_norm_forward_batch", name, d, consts, vec![("part", part.id), ("shared_sums", sums)]);
    let mut consts = Consts::new();
    let mut bindings = vec![("x", x.id), ("y", y.id), ("shared_sums", sums), ("affine", affine)];
    epilogue.apply(build, d, &mut consts, &mut bindings);
    let words = sign_words(d) as u32;
    let dispatch = per_item(build, "batch_norm_forward", name, words, consts, bindings, 4 * d.len() as u64);
    build.push(dispatch);
    Norm { name, x, sums, affine }
}

/// dx from dy, through mean and variance. What entered was a convolution's output, so there is no epilogue.
pub(crate) fn input_grad(build: &mut Build, norm: &Norm<'_>, dy: Value, dx: Value) {
    let Norm { name, x, sums, affine } = *norm;
    let part = part(build, x.dims);
    let reads = [("x", x.id), ("dy", dy.id), ("shared_sums", sums)];
    let bindings = [&reads[..], &[("part", part.id)]].concat();
    each_sample(build, "batch_norm_input_grad_sample", name, x.dims, bindings);
    let bindings = vec![("part", part.id), ("shared_sums", sums)];
    whole_batch(build, "batch_norm_input_grad_batch", name, x.dims, shape(x.dims), bindings);
    let bindings = [&reads[..], &[("y", dx.id), ("affine", affine)]].concat();
    let (items, flops) = (texels(x.dims) as u32, 6 * x.dims.len() as u64);
    let dispatch = per_item(build, "batch_norm_input_grad", name, items, shape(x.dims), bindings, flops);
    build.push(dispatch);
}
