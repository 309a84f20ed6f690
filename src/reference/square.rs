//! The Square attack's proposals, the twin of `shaders/square.wgsl`: the same numbers to the bit.

use super::values::{LANES, flushed, halved, inverse_of, root, times, total};
use crate::attack::{Norm, Sample, State, Stream, halvings, hills, philox, sides, tile};
use crate::model::Dims;

/// What the proposals of a sample follow beside its own parameters.
#[derive(Clone, Debug)]
pub(super) struct Squares {
    dims: Dims,
    seed: u64,
    norm: Norm,
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
        Squares { dims, seed, norm, sides: sides(norm, dims) }
    }

    /// Where a sample begins.
    pub fn start(&self, x0: &[f32], sample: &Sample, bounds: (f32, f32)) -> Vec<f32> {
        if self.norm == Norm::L2 { self.tiles(x0, sample, bounds) } else { self.stripes(x0, sample, bounds) }
    }

    fn start_bit(&self, sample: &Sample, k: usize) -> bool {
        bit(philox(self.seed, [sample.id, sample.restart, (k / 128) as u32, Stream::Start as u32]), k % 128)
    }

    /// Every column of every channel is at one end of its way.
    fn stripes(&self, x0: &[f32], sample: &Sample, bounds: (f32, f32)) -> Vec<f32> {
        let Dims { h, w, .. } = self.dims;
        let place = |(i, x0): (usize, &f32)| end(*x0, sample, bounds, self.start_bit(sample, i / (h * w) * w + i % w));
        x0.iter().enumerate().map(place).collect()
    }

    /// Hills and valleys, each channel of each tile with a sign of its own, of length eps together.
    fn tiles(&self, x0: &[f32], sample: &Sample, bounds: (f32, f32)) -> Vec<f32> {
        let Dims { c, h, w } = self.dims;
        let side = tile(self.dims);
        let (hills, tiles) = (hills(side), (h / side) * (w / side));
        let height = times(sample.eps, (1.0 / ((tiles * c) as f64).sqrt()) as f32);
        let mut x = x0.to_vec();
        for tile in 0..tiles {
            let turned = self.start_bit(sample, tiles * c + tile);
            let (top, left) = (h % side / 2 + tile / (w / side) * side, w % side / 2 + tile % (w / side) * side);
            for channel in 0..c {
                let up = self.start_bit(sample, tile * c + channel);
                for (row, column) in (0..side * side).map(|i| (i / side, i % side)) {
                    let hill = hills[if turned { column * side + row } else { row * side + column }];
                    let at = (channel * h + top + row) * w + left + column;
                    let moved = x0[at] + times(if up { hill } else { -hill }, height);
                    x[at] = flushed(moved.max(bounds.0).min(bounds.1));
                }
            }
        }
        x
    }

    /// What is looked at next, where `best` is the best so far and `state` counts the queries before this one.
    pub fn propose(&self, x0: &[f32], best: &[f32], sample: &Sample, state: &State, bounds: (f32, f32)) -> Vec<f32> {
        let Dims { c, h, w } = self.dims;
        let query = state.iteration;
        let words = |k: usize| {
            let index = query.wrapping_mul(2 + (c / 128) as u32).wrapping_add(k as u32);
            philox(self.seed, [sample.id, sample.restart, index, Stream::Square as u32])
        };
        let side = self.sides[halvings(query, sample.stretch)] as usize;
        let places = words(0);
        let (top, left) = (below(places[0], h - side + 1), below(places[1], w - side + 1));
        if self.norm == Norm::L2 {
            let loses = (below(places[2], h - side + 1), below(places[3], w - side + 1));
            let turned = bit(words(1 + c / 128), c % 128);
            let up = |channel: usize| bit(words(1 + channel / 128), channel % 128);
            let x = self.hill(x0, best, sample.eps, Square { side, gains: (top, left), loses, turned }, up);
            return x.into_iter().map(|v| flushed(v.max(bounds.0).min(bounds.1))).collect();
        }
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

    /// A hill and a valley are added to one square of each channel, which gets the length that the other one loses.
    fn hill(&self, x0: &[f32], best: &[f32], eps: f32, square: Square, up: impl Fn(usize) -> bool) -> Vec<f32> {
        let Dims { c, h, w } = self.dims;
        let (plane, side) = (h * w, square.side);
        let hills = hills(side);
        // Where a place of a channel lies in a square that begins at another.
        let within = |i: usize, (top, left): (usize, usize)| -> Option<(usize, usize)> {
            let (row, column) = ((i / w).checked_sub(top)?, (i % w).checked_sub(left)?);
            (row < side && column < side).then_some((row, column))
        };
        // Σ v² over all channels, each lane with its places of one after the other.
        let sum = |v: &dyn Fn(usize, usize) -> f32| {
            let places = |lane: usize| (0..c).flat_map(move |k| (lane..plane).step_by(LANES).map(move |i| (k, i)));
            halved(|lane| places(lane).fold(0.0, |sum, (k, i)| sum + times(v(k, i), v(k, i))))
        };
        let moved = |k: usize, i: usize| best[k * plane + i] - x0[k * plane + i];
        let whole = sum(&moved);
        let inside = |i: usize| within(i, square.gains).is_some() || within(i, square.loses).is_some();
        let part = sum(&|k, i| if inside(i) { moved(k, i) } else { 0.0 });
        let unused = (times(eps, eps) - whole).max(0.0);
        let reach = root(times(unused, 1.0 / c as f32) + part);

        let mut d = vec![0.0; c * plane];
        for k in 0..c {
            // Σ v² over the places of the square.
            let length = |v: &dyn Fn(usize, (usize, usize)) -> f32| {
                let square = |i: usize| within(i, square.gains).map_or(0.0, |at| v(i, at));
                root(total(plane, |i, sum| sum + times(square(i), square(i))))
            };
            let inverse = inverse_of(length(&|i, _| moved(k, i)));
            let new = |i: usize, (row, column): (usize, usize)| {
                let hill = hills[if square.turned { column * side + row } else { row * side + column }];
                (if up(k) { hill } else { -hill }) + times(moved(k, i), inverse)
            };
            let size = times(reach, inverse_of(length(&new)));
            for i in 0..plane {
                d[k * plane + i] = flushed(match (within(i, square.gains), within(i, square.loses)) {
                    (Some(at), _) => new(i, at) * size,
                    (None, Some(_)) => 0.0,
                    (None, None) => moved(k, i),
                });
            }
        }
        let pull = times(eps, inverse_of(root(sum(&|k, i| d[k * plane + i]))));
        d.iter().zip(x0).map(|(d, x0)| x0 + times(*d, pull)).collect()
    }
}

/// Where a proposal in L2 changes an image.
#[derive(Clone, Copy)]
struct Square {
    side: usize,
    gains: (usize, usize),
    loses: (usize, usize),
    /// Hill and valley side by side, not one above the other.
    turned: bool,
}
