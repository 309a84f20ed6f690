//! The layers, one sample at a time: forward, then the gradient with respect to the input. Planes are rows of `w`
//! values, channels are planes. Imports only `model`.

use crate::model::{Conv2d, Dims, Linear, Model, Shortcut};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone)]
pub(super) struct Params64 {
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

impl fmt::Debug for Params64 {
    /// As [`crate::model::Params`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params64({} weights, {} biases)", self.weight.len(), self.bias.len())
    }
}

pub(super) fn params64(model: &Model) -> BTreeMap<String, Params64> {
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect();
    model.params.iter().map(|(n, p)| (n.clone(), Params64 { weight: wide(&p.weight), bias: wide(&p.bias) })).collect()
}

/// What the backward of a layer needs of its forward.
#[derive(Clone)]
pub(super) enum Memory {
    Nothing,
    /// ReLU: whether the input was positive.
    Signs(Vec<bool>),
    /// Max-pool: index of the input that won each window.
    Sources(Vec<usize>),
}

pub(super) fn normalise(mut x: Vec<f64>, d: Dims, mean: &[f64], std: &[f64]) -> Vec<f64> {
    for (c, plane) in x.chunks_exact_mut(d.h * d.w).enumerate() {
        plane.iter_mut().for_each(|v| *v = (*v - mean[c]) / std[c]);
    }
    x
}

pub(super) fn normalise_backward(mut dy: Vec<f64>, d: Dims, std: &[f64]) -> Vec<f64> {
    for (c, plane) in dy.chunks_exact_mut(d.h * d.w).enumerate() {
        plane.iter_mut().for_each(|v| *v /= std[c]);
    }
    dy
}

/// Calls `f(weight, start of the row in x, start of the row in y, count)` for every filter tap and row: pixel j of the
/// row in y meets pixel `j·stride` of the row in x.
fn for_each_row(c: &Conv2d, weight: &[f64], x: Dims, y: Dims, mut f: impl FnMut(f64, usize, usize, usize)) {
    // Places in one direction that a tap sees inside the picture: first output, number of outputs.
    let inside = |tap: usize, from: usize, to: usize| {
        let first = c.padding.saturating_sub(tap).div_ceil(c.stride);
        let end = (from + c.padding).checked_sub(tap + 1).map_or(0, |last| last / c.stride + 1).min(to);
        (first, end.saturating_sub(first))
    };
    let mut taps = weight.iter();
    for k in 0..c.outputs {
        for channel in 0..c.inputs {
            for r in 0..c.kernel {
                let (first_row, rows) = inside(r, x.h, y.h);
                for s in 0..c.kernel {
                    let w = *taps.next().expect("lengths were checked when the network was made");
                    let (first, count) = inside(s, x.w, y.w);
                    if count == 0 {
                        continue; // a tap that only ever meets padding
                    }
                    for row in first_row..first_row + rows {
                        let x_row = channel * x.h + row * c.stride + r - c.padding;
                        let x_start = x_row * x.w + first * c.stride + s - c.padding;
                        f(w, x_start, (k * y.h + row) * y.w + first, count);
                    }
                }
            }
        }
    }
}

pub(super) fn conv(c: &Conv2d, p: &Params64, x: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
    let mut y: Vec<f64> = p.bias.iter().flat_map(|b| std::iter::repeat_n(*b, out.h * out.w)).collect();
    for_each_row(c, &p.weight, dims, out, |w, from, to, count| {
        let row = &mut y[to..to + count];
        if c.stride == 1 {
            row.iter_mut().zip(&x[from..]).for_each(|(y, x)| *y += w * x);
        } else {
            row.iter_mut().zip(x[from..].iter().step_by(c.stride)).for_each(|(y, x)| *y += w * x);
        }
    });
    y
}

pub(super) fn conv_backward(c: &Conv2d, p: &Params64, dy: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
    let mut dx = vec![0.0; dims.len()];
    for_each_row(c, &p.weight, dims, out, |w, to, from, count| {
        let row = &dy[from..from + count];
        if c.stride == 1 {
            row.iter().zip(&mut dx[to..]).for_each(|(dy, dx)| *dx += w * dy);
        } else {
            row.iter().zip(dx[to..].iter_mut().step_by(c.stride)).for_each(|(dy, dx)| *dx += w * dy);
        }
    });
    dx
}

pub(super) fn affine(mut x: Vec<f64>, d: Dims, p: &Params64) -> Vec<f64> {
    for (plane, (a, b)) in x.chunks_exact_mut(d.h * d.w).zip(p.weight.iter().zip(&p.bias)) {
        plane.iter_mut().for_each(|v| *v = a * *v + b);
    }
    x
}

pub(super) fn affine_backward(mut dy: Vec<f64>, d: Dims, p: &Params64) -> Vec<f64> {
    for (plane, a) in dy.chunks_exact_mut(d.h * d.w).zip(&p.weight) {
        plane.iter_mut().for_each(|v| *v *= a);
    }
    dy
}

pub(super) fn relu(mut x: Vec<f64>) -> (Vec<f64>, Memory) {
    // NaN is not positive: it ends here, and the layer before it has marked the sample.
    let signs: Vec<bool> = x.iter().map(|v| *v > 0.0).collect();
    x.iter_mut().zip(&signs).for_each(|(v, positive)| *v = if *positive { *v } else { 0.0 });
    (x, Memory::Signs(signs))
}

pub(super) fn relu_backward(mut dy: Vec<f64>, signs: &[bool]) -> Vec<f64> {
    dy.iter_mut().zip(signs).for_each(|(v, positive)| *v = if *positive { *v } else { 0.0 });
    dy
}

/// Calls `f(index in y, index in x)` for every pixel of every window, row by row; padding is passed by.
fn for_each_window(size: usize, stride: usize, padding: usize, x: Dims, y: Dims, mut f: impl FnMut(usize, usize)) {
    let inside =
        |place: usize, tap: usize, side: usize| (place * stride + tap).checked_sub(padding).filter(|i| *i < side);
    for c in 0..y.c {
        for row in 0..y.h {
            for column in 0..y.w {
                for r in (0..size).filter_map(|r| inside(row, r, x.h)) {
                    for s in (0..size).filter_map(|s| inside(column, s, x.w)) {
                        f((c * y.h + row) * y.w + column, (c * x.h + r) * x.w + s);
                    }
                }
            }
        }
    }
}

pub(super) fn max_pool(
    size: usize,
    stride: usize,
    padding: usize,
    x: &[f64],
    dims: Dims,
    out: Dims,
) -> (Vec<f64>, Memory) {
    let mut sources = vec![usize::MAX; out.len()];
    for_each_window(size, stride, padding, dims, out, |to, i| {
        if sources[to] == usize::MAX || x[i] > x[sources[to]] {
            sources[to] = i;
        }
    });
    (sources.iter().map(|i| x[*i]).collect(), Memory::Sources(sources))
}

pub(super) fn max_pool_backward(dy: &[f64], sources: &[usize], dims: Dims) -> Vec<f64> {
    let mut dx = vec![0.0; dims.len()];
    // Windows may overlap: a pixel can win several.
    dy.iter().zip(sources).for_each(|(d, i)| dx[*i] += d);
    dx
}

pub(super) fn avg_pool(size: usize, stride: usize, padding: usize, x: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
    let mut y = vec![0.0; out.len()];
    for_each_window(size, stride, padding, dims, out, |to, from| y[to] += x[from] / (size * size) as f64);
    y
}

pub(super) fn avg_pool_backward(
    size: usize,
    stride: usize,
    padding: usize,
    dy: &[f64],
    dims: Dims,
    out: Dims,
) -> Vec<f64> {
    let mut dx = vec![0.0; dims.len()];
    for_each_window(size, stride, padding, dims, out, |from, to| dx[to] += dy[from] / (size * size) as f64);
    dx
}

pub(super) fn mean_pool(x: &[f64], d: Dims) -> Vec<f64> {
    x.chunks_exact(d.h * d.w).map(|plane| plane.iter().sum::<f64>() / (d.h * d.w) as f64).collect()
}

pub(super) fn mean_pool_backward(dy: &[f64], d: Dims) -> Vec<f64> {
    dy.iter().flat_map(|v| std::iter::repeat_n(v / (d.h * d.w) as f64, d.h * d.w)).collect()
}

pub(super) fn linear(l: &Linear, p: &Params64, x: &[f64]) -> Vec<f64> {
    let dot = |(row, bias): (&[f64], &f64)| bias + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    p.weight.chunks_exact(l.inputs).zip(&p.bias).map(dot).collect()
}

pub(super) fn linear_backward(l: &Linear, p: &Params64, dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; l.inputs];
    for (row, d) in p.weight.chunks_exact(l.inputs).zip(dy) {
        dx.iter_mut().zip(row).for_each(|(dx, w)| *dx += w * d);
    }
    dx
}

/// Calls `f(index in x, index in y)` for every value that the shortcut carries over.
pub(super) fn for_each_carried(shortcut: &Shortcut, x: Dims, y: Dims, mut f: impl FnMut(usize, usize)) {
    let (before, stride) = match shortcut {
        Shortcut::Subsample { added } => (added / 2, 2),
        _ => (0, 1),
    };
    for c in 0..x.c {
        for row in 0..y.h {
            for column in 0..y.w {
                f((c * x.h + row * stride) * x.w + column * stride, ((c + before) * y.h + row) * y.w + column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::philox;
    use crate::model::Layer;

    /// Reproducible values in [−0.5, 0.5).
    fn noise(stream: u32, n: usize) -> Vec<f64> {
        (0..n).map(|i| f64::from(philox(3, [i as u32, 0, 0, stream])[0] >> 8) / 16_777_216.0 - 0.5).collect()
    }

    #[test]
    fn a_convolution_is_what_the_definition_says() {
        let usual = [(3, 1, 4, 5), (3, 2, 5, 4), (1, 2, 5, 4), (1, 1, 3, 3), (3, 2, 1, 1), (4, 2, 6, 7), (7, 2, 5, 9)];
        let usual = usual.map(|(kernel, stride, h, w)| (kernel, stride, kernel / 2, h, w));
        for (kernel, stride, padding, h, w) in
            usual.into_iter().chain([(5, 3, 0, 6, 5), (2, 4, 9, 3, 2), (1, 1, 2, 2, 1)])
        {
            let input = Dims::new(2, h, w);
            let c = Conv2d { name: "c".into(), inputs: 2, outputs: 3, kernel, stride, padding, bias: true };
            let out = Layer::Conv2d(c.clone()).output(input).unwrap();
            let p = Params64 { weight: noise(0, 6 * kernel * kernel), bias: noise(1, 3) };
            let x = noise(2, input.len());
            let y = conv_forward_by_definition(&c, &p, &x, input, out);
            let got = conv(&c, &p, &x, input, out);
            assert!(y.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-14), "kernel {kernel}, stride {stride}");
            // Backward is the transpose: ⟨conv(x) − bias, dy⟩ = ⟨x, backward(dy)⟩.
            let dy = noise(3, out.len());
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let zero = Params64 { weight: p.weight.clone(), bias: vec![0.0; 3] };
            let left = dot(&conv(&c, &zero, &x, input, out), &dy);
            assert!((left - dot(&x, &conv_backward(&c, &p, &dy, input, out))).abs() < 1e-13);
        }
    }

    fn conv_forward_by_definition(c: &Conv2d, p: &Params64, x: &[f64], input: Dims, out: Dims) -> Vec<f64> {
        let mut y = Vec::new();
        for k in 0..out.c {
            for row in 0..out.h {
                for column in 0..out.w {
                    let mut sum = p.bias[k];
                    for channel in 0..input.c {
                        for r in 0..c.kernel {
                            for s in 0..c.kernel {
                                let i = (row * c.stride + r).checked_sub(c.padding).filter(|i| *i < input.h);
                                let j = (column * c.stride + s).checked_sub(c.padding).filter(|j| *j < input.w);
                                if let (Some(i), Some(j)) = (i, j) {
                                    let tap = ((k * c.inputs + channel) * c.kernel + r) * c.kernel + s;
                                    sum += p.weight[tap] * x[(channel * input.h + i) * input.w + j];
                                }
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    #[test]
    fn kinks_go_the_agreed_way() {
        let (y, Memory::Signs(signs)) = relu(vec![-1.0, 0.0, -0.0, 2.0, f64::NAN]) else { unreachable!() };
        assert_eq!(
            (y, relu_backward(vec![1.0; 5], &signs)),
            (vec![0.0, 0.0, 0.0, 2.0, 0.0], vec![0.0, 0.0, 0.0, 1.0, 0.0])
        );
        let (input, out) = (Dims::new(1, 2, 2), Dims::new(1, 1, 1));
        let (y, Memory::Sources(first)) = max_pool(2, 2, 0, &[1.0, 5.0, 5.0, 5.0], input, out) else { unreachable!() };
        assert_eq!((y, max_pool_backward(&[3.0], &first, input)), (vec![5.0], vec![0.0, 3.0, 0.0, 0.0]));
    }
}
