//! FAB in f32: one sample's way, bit for bit that of `shaders/fab.wgsl`.

use super::values::{flushed, inverse_of, root, scale_of, sound, times, total};
use super::walk::{Walk, count};
use crate::attack::{NEAREST, Norm};

/// As in the authors' code: the largest share of the clean image's way (alpha).
const SHARE: f32 = 0.1;
/// How far a step goes beyond the plane (eta).
const BEYOND: f32 = 1.05;
/// What is left of a move that was a success (beta).
const LEFT: f32 = 0.9;

/// Farther than any move, where products are still finite: 2⁹⁹.
const FAR: f32 = 6.338_253e29;
/// Below 2⁻⁶³ there is nothing to go, and devices would differ on what they multiply.
const NEAR: f32 = 1.084_202_2e-19;

/// The way of a point to a plane w·(point + way) = w·point − height, as short as can be in a norm and within bounds; as
/// far as it goes where the plane lies beyond them.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    norm: Norm,
    point: &'a [f32],
    w: &'a [f32],
    bounds: (f32, f32),
    /// Whether the plane lies where w·x is smaller.
    below: bool,
    /// How far a value goes, by itself or times |w|.
    t: f32,
}

impl<'a> Way<'a> {
    /// The shortest way. Values of `w` are near 1 at most.
    pub fn to_plane(norm: Norm, point: &'a [f32], w: &'a [f32], height: f32, bounds: (f32, f32)) -> Self {
        let mut way = Way { norm, point, w, bounds, below: height >= 0.0, t: 0.0 };
        // The largest step that does not pass the plane, one bit after the other, the highest first: bits of positive
        // numbers are in their order, and rounding leaves sums in the order of the steps.
        let mut bits = 0_u32;
        for bit in (0..31).rev() {
            let t = f32::from_bits(bits | 1 << bit);
            if t <= FAR && (Way { t, ..way }).fall() <= height.abs() {
                bits |= 1 << bit;
            }
        }
        let t = f32::from_bits(bits);
        way.t = if t >= NEAR && height != 0.0 { t } else { 0.0 };
        way
    }

    fn falls(&self, i: usize) -> bool {
        (self.w[i] > 0.0) == self.below
    }

    /// How far value `i` goes.
    fn length(&self, i: usize) -> f32 {
        let ((lo, hi), v, w) = (self.bounds, self.point[i], self.w[i]);
        let room = (if self.falls(i) { v - lo } else { hi - v }).clamp(0.0, FAR);
        match self.norm {
            Norm::Linf if w == 0.0 => 0.0,
            Norm::Linf => self.t.min(room),
            Norm::L2 => (self.t * w.abs()).min(room),
        }
    }

    /// By how much w·x changes.
    fn fall(&self) -> f32 {
        total(self.w.len(), |i, sum| sum + times(self.w[i].abs(), self.length(i)))
    }

    /// The move of value `i`.
    pub fn at(&self, i: usize) -> f32 {
        if self.falls(i) { -self.length(i) } else { self.length(i) }
    }

    /// In the norm, never quite zero.
    fn size(&self) -> f32 {
        let size = match self.norm {
            Norm::Linf => (0..self.w.len()).map(|i| self.length(i)).fold(0.0, f32::max),
            Norm::L2 => root(total(self.w.len(), |i, sum| sum + times(self.length(i), self.length(i)))),
        };
        size.max(1e-8)
    }
}

impl Walk<'_> {
    /// The next point, behind a gradient.
    pub(super) fn fab(&mut self, norm: Norm, gradient: &[f32]) {
        let (x, x0, bounds) = (&self.x, self.x0, self.bounds);
        if self.state.iteration == 0 {
            self.memory[NEAREST..][..x0.len()].copy_from_slice(x0);
        }
        let scale = scale_of(gradient);
        let w: Vec<f32> = gradient.iter().map(|g| times(sound(*g), scale)).collect();
        // In the scale of the gradient, and no more than what sums can hold.
        let most = if scale < 1.0 { 3e38 } else { times(1.329_228e36, inverse_of(scale)) };
        let here = flushed(self.state.loss).max(-most).min(most);
        let from_clean = total(w.len(), |i, sum| sum + times(w[i], x0[i] - x[i]));
        let way = Way::to_plane(norm, x, &w, times(here, scale), bounds);
        let way0 = Way::to_plane(norm, x0, &w, times(here, scale) + from_clean, bounds);
        let share = times(way.size(), inverse_of(way.size() + way0.size())).min(SHARE);
        let next = |i: usize| {
            let y = times(x[i] + times(BEYOND, way.at(i)), 1.0 - share);
            let y0 = times(x0[i] + times(BEYOND, way0.at(i)), share);
            (y + y0).max(bounds.0).min(bounds.1)
        };
        self.x = (0..w.len()).map(next).collect();
    }

    /// Behind the logits of the new point: where it is a success it may be the nearest one, and the way goes back.
    pub(super) fn fab_look(&mut self, norm: Norm) {
        let (x0, s, len) = (self.x0, &mut self.state, self.x.len());
        let moved = |i: usize| (self.x[i] - x0[i]).abs();
        let distance = match norm {
            Norm::Linf => (0..len).map(moved).fold(0.0, f32::max),
            Norm::L2 => root(total(len, |i, sum| sum + times(moved(i), moved(i)))),
        };
        count(&mut s.iteration, true);
        let nearest = NEAREST * len..(NEAREST + 1) * len;
        if self.sample.is_reached_by(s.predicted) {
            if s.found == 0 || distance < s.best {
                s.best = distance;
                let eps = self.sample.eps;
                if distance <= eps {
                    self.memory[nearest.clone()].copy_from_slice(&self.x);
                }
                if distance <= eps && norm == Norm::Linf {
                    // The edges of the ball are rounded, too.
                    let kept = &mut self.memory[nearest.clone()];
                    kept.iter_mut().zip(x0).for_each(|(v, x0)| *v = v.max(x0 - eps).min(x0 + eps));
                }
            }
            s.found = 1;
            self.x.iter_mut().zip(x0).for_each(|(x, x0)| *x = x0 + times(*x - x0, LEFT));
        }
        if s.iteration >= self.sample.steps {
            self.x.copy_from_slice(&self.memory[nearest]);
        }
    }
}
