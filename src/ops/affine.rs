//! A gain and a bias for each channel: `shaders/affine.wgsl`. Backward needs nothing that forward did, but the gains.

use super::{Build, Consts, Epilogue, Value, blocks, per_item, sign_words, texels};
use crate::model::Params;

/// Gains and biases as the shader reads them: two texels for each block of channels.
pub(crate) fn weights(build: &mut Build, name: &str, p: &Params) -> usize {
    let four = |values: &[f32], b: usize| -> [f32; 4] {
        std::array::from_fn(|i| values.get(4 * b + i).copied().unwrap_or(0.0))
    };
    let blocks = blocks(p.bias.len()) as usize;
    let texels: Vec<[f32; 4]> = (0..blocks).flat_map(|b| [four(&p.weight, b), four(&p.bias, b)]).collect();
    build.constant(format!("{name} weights"), bytemuck::cast_slice(&texels).to_vec())
}

/// y = a·x + b, then the epilogue.
pub(crate) fn forward(build: &mut Build, name: &str, affine: usize, x: Value, y: Value, epilogue: Epilogue) {
    let mut consts = Consts::new();
    let mut bindings = vec![("x", x.id), ("y", y.id), ("affine", affine)];
    epilogue.apply(build, y.dims, &mut consts, &mut bindings);
    let (words, flops) = (sign_words(y.dims) as u32, 2 * y.dims.len() as u64);
    let dispatch = per_item(build, "affine_forward", name, words, consts, bindings, flops);
    build.push(dispatch);
}

/// dx = a·dy, then the epilogue.
pub(crate) fn input_grad(build: &mut Build, name: &str, affine: usize, dy: Value, dx: Value, epilogue: Epilogue) {
    let mut consts = Consts::new();
    let mut bindings = vec![("dy", dy.id), ("y", dx.id), ("affine", affine)];
    epilogue.apply(build, dx.dims, &mut consts, &mut bindings);
    let (items, flops) = (texels(dx.dims) as u32, dx.dims.len() as u64);
    let dispatch = per_item(build, "affine_input_grad", name, items, consts, bindings, flops);
    build.push(dispatch);
}
