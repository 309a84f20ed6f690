//! Pooling: `shaders/pool.wgsl`. Max-pool keeps where its maximum was, one byte an output; the mean keeps nothing.

use super::Build;
use super::{Epilogue, Value, Variant, blocks, per_item, texels};

/// Windows of `size`×`size`, `stride` apart, the first one `padding` pixels outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub size: usize,
    pub stride: usize,
    pub padding: usize,
}

/// y = max over windows; `argmax` gets the places.
pub(crate) fn max_forward(build: &mut Build, window: Window, x: Value, y: Value, argmax: usize) {
    let consts = consts(window, x, y);
    let bindings = vec![("x", x.id), ("y", y.id), ("argmax", argmax), ("health", build.health)];
    let d = per_item(build, "max_pool_forward", "max_pool", texels(y.dims) as u32, consts, bindings, 0);
    build.push(d);
}

/// dx gathers dy from the windows whose maximum it was, then the epilogue.
pub(crate) fn max_input_grad(
    build: &mut Build,
    window: Window,
    dy: Value,
    dx: Value,
    argmax: usize,
    epilogue: Epilogue,
) {
    let mut consts = consts(window, dx, dy);
    let mut bindings = vec![("dy", dy.id), ("y", dx.id), ("argmax", argmax)];
    epilogue.apply(build, dx.dims, &mut consts, &mut bindings);
    let cells = dx.dims.h.div_ceil(2) * dx.dims.w.div_ceil(2);
    let (entry, items) = match (window, build.target.variant) {
        (Window { size: 2, stride: 2, padding: 0 }, Variant::Fast | Variant::Only(_)) => {
            ("max_pool_input_grad_windows", blocks(dx.dims.c) * cells as u32)
        }
        _ => ("max_pool_input_grad", texels(dx.dims) as u32),
    };
    let d = per_item(build, entry, "max_pool", items, consts, bindings, 0);
    build.push(d);
}

/// `large` is the input, `small` the pooled output.
fn consts(window: Window, large: Value, small: Value) -> Vec<(&'static str, u32)> {
    vec![
        ("C4", blocks(large.dims.c)),
        ("IH", large.dims.h as u32),
        ("IW", large.dims.w as u32),
        ("P", small.dims.h as u32),
        ("Q", small.dims.w as u32),
        ("SIZE", window.size as u32),
        ("STRIDE", window.stride as u32),
        ("PAD", window.padding as u32),
        // Windows along an axis that cover one pixel, at most.
        ("COVER", window.size.div_ceil(window.stride) as u32),
    ]
}

/// y = mean over windows, zeros of the padding counted in.
pub(crate) fn avg_forward(build: &mut Build, window: Window, x: Value, y: Value) {
    let flops = (y.dims.len() * window.size * window.size) as u64;
    let bindings = vec![("x", x.id), ("y", y.id)];
    let items = texels(y.dims) as u32;
    let d = per_item(build, "avg_pool_forward", "avg_pool", items, consts(window, x, y), bindings, flops);
    build.push(d);
}

/// dx gathers dy / pixels from the windows that cover it, then the epilogue.
pub(crate) fn avg_input_grad(build: &mut Build, window: Window, dy: Value, dx: Value, epilogue: Epilogue) {
    let mut consts = consts(window, dx, dy);
    let mut bindings = vec![("dy", dy.id), ("y", dx.id)];
    epilogue.apply(build, dx.dims, &mut consts, &mut bindings);
    let flops = (dy.dims.len() * window.size * window.size) as u64;
    let d = per_item(build, "avg_pool_input_grad", "avg_pool", texels(dx.dims) as u32, consts, bindings, flops);
    build.push(d);
}

fn mean_consts(large: Value) -> Vec<(&'static str, u32)> {
    vec![("C4", blocks(large.dims.c)), ("IH", large.dims.h as u32), ("IW", large.dims.w as u32)]
}

/// y = mean over all pixels.
pub(crate) fn mean_forward(build: &mut Build, x: Value, y: Value) {
    let flops = x.dims.len() as u64;
    let bindings = vec![("x", x.id), ("y", y.id)];
    let d = per_item(
        build,
        "global_avg_pool_forward",
        "global_avg_pool",
        blocks(x.dims.c),
        mean_consts(x),
        bindings,
        flops,
    );
    build.push(d);
}

/// dx = dy / pixels, then the epilogue.
pub(crate) fn mean_input_grad(build: &mut Build, dy: Value, dx: Value, epilogue: Epilogue) {
    let mut consts = mean_consts(dx);
    let mut bindings = vec![("dy", dy.id), ("y", dx.id)];
    epilogue.apply(build, dx.dims, &mut consts, &mut bindings);
    let items = texels(dx.dims) as u32;
    let d =
        per_item(build, "global_avg_pool_input_grad", "global_avg_pool", items, consts, bindings, dx.dims.len() as u64);
    build.push(d);
}
