//! The Square attack's proposals, the twin of `shaders/square.wgsl`: the same numbers to the bit.

use crate::attack::{Norm, Sample, State, Stream, halvings, philox, sides};
use crate::model::Dims;

/// What the proposals of a sample follow beside its own parameters.
#[derive(Clone, Debug)]
pub(super) struct Squares {
    dims: Dims,
    seed: u64,
    sides: [u32; 10],
}

/// Bit `k` of 128.
fn bit(words: [u32; 4], k: usize) -> bool {
    words[k / 32 % 4] >> (k % 32) & 1 == 1
}

/// Uniform in 0..n.
fn below(word: u32, n: usize) -> usize {
    ((u64::from(word) * n as u64) >> 32) as usize
}

/// One end of a pixel's way.
fn end(clean: f32, sample: &Sample, bounds: (f32, f32), up: bool) -> f32 {
    if up { bounds.1.min(clean + sample.eps) } else { bounds.0.max(clean - sample.eps) }
}

impl Squares {
    pub fn new(norm: Norm, dims: Dims, seed: u64) -> Self {
        Squares { dims, seed, sides: sides(norm, dims) }
    }

    /// Stripes: every column of every channel is at one end of its way.
    pub fn start(&self, x0: &[f32], sample: &Sample, bounds: (f32, f32)) -> Vec<f32> {
        let Dims { h, w, .. } = self.dims;
        let place = |(i, x0): (usize, &f32)| {
            let stripe = i / (h * w) * w + i % w;
            let counter = [sample.id, sample.restart, (stripe / 128) as u32, Stream::Start as u32];
            end(*x0, sample, bounds, bit(philox(self.seed, counter), stripe % 128))
        };
        x0.iter().enumerate().map(place).collect()
    }

    /// What is looked at next, where `best` is the best so far and `state` counts the queries before this one.
    pub fn propose(&self, x0: &[f32], best: &[f32], sample: &Sample, state: &State, bounds: (f32, f32)) -> Vec<f32> {
        let Dims { c, h, w } = self.dims;
        let query = state.iteration;
        let words = |k: usize| {
            let index = query.wrapping_mul(2 + (c / 128) as u32).wrapping_add(k as u32);
            philox(self.seed, [sample.id, sample.restart, index, Stream::Square as u32])
        };
        let side = self.sides[halvings(query, sample.steps)] as usize;
        let places = words(0);
        let (top, left) = (below(places[0], h - side + 1), below(places[1], w - side + 1));
        let mut x = best.to_vec();
        for channel in 0..c {
            let up = bit(words(1 + channel / 128), channel % 128);
            for row in top..top + side {
                for column in left..left + side {
                    let i = (channel * h + row) * w + column;
                    x[i] = end(x0[i], sample, bounds, up);
                }
            }
        }
        x
    }
}
