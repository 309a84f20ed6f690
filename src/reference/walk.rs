//! The random starts and the steps of every rule, in f32: one sample's way, bit for bit that of `shaders/step.wgsl` and
//! `shaders/rules.wgsl`.

use super::normal::{normal, squares_of_two};
use super::square::Squares;
use super::values::{Sign, flushed, inverse_of, root, scale_of, sound, times, total};
use crate::attack::{
    ACCUMULATED, AHEAD, BEST, BEST_GRADIENT, FOUND, KEPT, Norm, OLD, Rule, Sample, State, Stream, philox,
};
use crate::model::Dims;

/// Where a sample begins: at x0 + (2u − 1)·eps, u uniform in [0, 1) by the sample's own random numbers, clamped as a
/// step is; at the clean image `x0` itself where the sample asks for no random start.
pub fn random_start(x0: &[f32], sample: &Sample, seed: u64, bounds: (f32, f32)) -> Vec<f32> {
    if !sample.starts_at_random() {
        return x0.to_vec();
    }
    let eps = sample.eps;
    let place = |(i, four): (usize, &[f32])| -> Vec<f32> {
        let words = philox(seed, [sample.id, sample.restart, i as u32, Stream::Start as u32]);
        let one = |(x0, word): (&f32, u32)| {
            let v = ((word >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32;
            let d = (v * eps).max(-eps).min(eps);
            // Devices may flush a subnormal, so it counts as zero.
            let d = if Sign::of(d) == Sign::Zero { 0.0 } else { d };
            (x0 + d).max(bounds.0.max(x0 - eps)).min(bounds.1.min(x0 + eps))
        };
        four.iter().zip(words).map(one).collect()
    };
    x0.chunks(4).enumerate().flat_map(place).collect()
}

/// One pixel's step: clamp(x + direction·step_size·sign, lo, hi) with lo = max(lowest, x0 − eps) and
/// hi = min(highest, x0 + eps). `x` is the pixel now, `x0` the clean one, `bounds` the lowest and highest legal value.
pub fn step(x: f32, x0: f32, gradient: f32, sample: &Sample, bounds: (f32, f32)) -> (f32, Sign) {
    let lo = bounds.0.max(x0 - sample.eps);
    let hi = bounds.1.min(x0 + sample.eps);
    let sign = Sign::of(gradient);
    let ascends = sample.direction > 0.0;
    // The move is selected, never multiplied: a product could be contracted with the sum.
    let moved = match sign {
        Sign::Plus | Sign::Minus if (sign == Sign::Plus) == ascends => x + sample.step_size,
        Sign::Plus | Sign::Minus => x - sample.step_size,
        Sign::Zero | Sign::Broken => x,
    };
    (moved.max(lo).min(hi), sign)
}

impl Rule {
    /// Where a sample begins whose image is of the shape `dims`.
    pub fn start(self, x0: &[f32], dims: Dims, sample: &Sample, seed: u64, bounds: (f32, f32)) -> Vec<f32> {
        match self {
            _ if !sample.starts_at_random() => x0.to_vec(),
            Rule::Sign | Rule::Momentum | Rule::Lookahead => random_start(x0, sample, seed, bounds),
            Rule::Square(norm) => Squares::new(norm, dims, seed).start(x0, sample, bounds),
            Rule::Apgd(Norm::Linf) => on_the_cube(x0, sample, seed, bounds, 1.0),
            Rule::Apgd(Norm::L2) => on_the_ball(x0, sample, seed, bounds, (1.0, false)),
            Rule::L2 => on_the_ball(x0, sample, seed, bounds, (1.0, true)),
            // Halfway there.
            Rule::Fab(Norm::Linf) => on_the_cube(x0, sample, seed, bounds, 0.5),
            Rule::Fab(Norm::L2) => on_the_ball(x0, sample, seed, bounds, (0.5, false)),
        }
    }
}

/// A random place whose largest move is that part of eps.
fn on_the_cube(x0: &[f32], sample: &Sample, seed: u64, bounds: (f32, f32), part: f32) -> Vec<f32> {
    let noise = |i: usize| {
        let words = philox(seed, [sample.id, sample.restart, (i / 4) as u32, Stream::Start as u32]);
        ((words[i % 4] >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    };
    let top = (0..x0.len()).fold(0.0, |top: f32, i| top.max(noise(i).abs()));
    let eps = sample.eps;
    let place = |(i, x0): (usize, &f32)| {
        let d = times(times(noise(i), inverse_of(top)), part * eps);
        (x0 + d).max(bounds.0.max(x0 - eps)).min(bounds.1.min(x0 + eps))
    };
    x0.iter().enumerate().map(place).collect()
}

/// A random place on the edge of the L2 ball whose radius is that part of eps, or uniform within.
fn on_the_ball(x0: &[f32], sample: &Sample, seed: u64, bounds: (f32, f32), (part, within): (f32, bool)) -> Vec<f32> {
    let words = |k: u32| philox(seed, [sample.id, sample.restart, k, Stream::Start as u32]);
    let noise = |i: usize| {
        let w = words((i / 2) as u32);
        normal(w[2 * (i % 2)], w[2 * (i % 2) + 1])
    };
    let squares = total(x0.len(), |i, sum| sum + times(noise(i), noise(i)));
    // On a sphere in two dimensions more, all but these two coordinates of a point are uniform within the ball.
    let size = root(if within { squares + squares_of_two(words(u32::MAX)[0]) } else { squares });
    let radius = part * sample.eps;
    let place =
        |(i, x0): (usize, &f32)| (x0 + times(times(noise(i), inverse_of(size)), radius)).max(bounds.0).min(bounds.1);
    x0.iter().enumerate().map(place).collect()
}

/// Counts one more where that is so; round the end of a word, as WGSL does: a trail may hold any numbers.
pub(super) fn count(counter: &mut u32, one_more: bool) {
    *counter = counter.wrapping_add(u32::from(one_more));
}

/// One sample on its way: where it is, and what it remembers.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    rule: Rule,
    pub(super) sample: Sample,
    pub(super) bounds: (f32, f32),
    pub(super) x0: &'a [f32],
    pub(super) x: Vec<f32>,
    pub(super) memory: Vec<f32>,
    pub(super) state: State,
    squares: Option<Squares>,
}

impl<'a> Walk<'a> {
    /// Begins at `start`, for the clean image `x0`.
    pub fn new(rule: Rule, sample: Sample, bounds: (f32, f32), x0: &'a [f32], start: Vec<f32>) -> Self {
        let memory = vec![0.0; rule.memory() * x0.len()];
        Walk { rule, sample, bounds, x0, x: start, memory, state: State::begin(&sample), squares: None }
    }

    /// The shape of an image and the seed of proposals: [`Rule::Square`] takes no step without.
    pub fn in_images_of(mut self, dims: Dims, seed: u64) -> Self {
        if let Rule::Square(norm) = self.rule {
            self.squares = Some(Squares::new(norm, dims, seed));
        }
        self
    }

    /// Goes on from where another one was: point, memory, state.
    pub(crate) fn resume(
        rule: Rule,
        sample: Sample,
        bounds: (f32, f32),
        x0: &'a [f32],
        (x, memory, state): (&[f32], &[f32], State),
    ) -> Self {
        Walk { rule, sample, bounds, x0, x: x.to_vec(), memory: memory.to_vec(), state, squares: None }
    }

    /// Where the next gradient is to be taken.
    pub fn point(&self) -> &[f32] {
        &self.x
    }

    /// What the sample remembers but for images.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What would be delivered, were this the end.
    pub fn candidate(&self) -> &[f32] {
        // Behind the last look of Auto-PGD and Square it lies in x already, and is the same.
        self.rule.candidate(&self.x, &self.memory, &self.state)
    }

    pub(crate) fn parts(&self) -> (&[f32], &[f32], State) {
        (&self.x, &self.memory, self.state)
    }

    /// One step, with the gradient and the loss at [`Walk::point`] and the class predicted there. [`Rule::Apgd`] and
    /// [`Rule::Square`] take one more call than they have steps: the last one only looks. The latter looks at no
    /// gradient.
    ///
    /// # Panics
    /// With [`Rule::Square`] before [`Walk::in_images_of`].
    pub fn step(&mut self, gradient: &[f32], loss: f32, predicted: u32) {
        (self.state.loss, self.state.predicted) = (loss, predicted);
        match self.rule {
            Rule::Sign => {
                for (i, x) in self.x.iter_mut().enumerate() {
                    *x = step(*x, self.x0[i], gradient[i], &self.sample, self.bounds).0;
                }
            }
            Rule::Momentum | Rule::Lookahead => self.momentum(gradient),
            Rule::L2 => self.l2(gradient),
            Rule::Apgd(norm) => self.apgd(norm, gradient),
            Rule::Square(_) => self.square(),
            Rule::Fab(norm) => self.fab(norm, gradient),
        }
    }

    /// Behind each step of [`Rule::Fab`]: the loss where it led, and the class predicted there.
    pub fn look(&mut self, loss: f32, predicted: u32) {
        (self.state.loss, self.state.predicted) = (loss, predicted);
        if let Rule::Fab(norm) = self.rule {
            self.fab_look(norm);
        }
    }

    /// Looks at the loss, keeps the point where it is better than the best so far or a success, and proposes the next.
    fn square(&mut self) {
        let s = &mut self.state;
        let loss = if self.sample.direction > 0.0 { s.loss } else { -s.loss };
        let succeeds = self.sample.is_reached_by(s.predicted);
        if s.found == 0 && (s.iteration == 0 || succeeds || loss > s.best) {
            s.best = loss;
            self.memory.copy_from_slice(&self.x);
        }
        s.found |= u32::from(succeeds);
        let best = &self.memory[KEPT * self.x.len()..];
        self.x = if s.found == 0 && s.iteration < self.sample.steps {
            let squares = self.squares.as_ref().expect("the shape of an image was told");
            squares.propose(self.x0, best, &self.sample, s, self.bounds)
        } else {
            best.to_vec()
        };
        count(&mut s.iteration, true);
    }

    fn ascends(&self) -> bool {
        self.sample.direction > 0.0
    }

    /// +size or −size, whichever way the sample goes.
    fn signed(&self, size: f32) -> f32 {
        if self.ascends() { size } else { -size }
    }

    /// x + size·sign(g) on the sample's way, within the L∞ ball.
    fn sign_move(&self, i: usize, x: f32, g: f32, size: f32) -> f32 {
        step(x, self.x0[i], g, &Sample { step_size: size, ..self.sample }, self.bounds).0
    }

    fn momentum(&mut self, gradient: &[f32]) {
        let (len, s) = (self.x.len(), self.sample);
        let scale = scale_of(gradient);
        let mean = total(len, |i, sum| sum + times(sound(gradient[i]), scale).abs()) * (1.0 / len as f32);
        let inverse = inverse_of(mean);
        let is_first = self.state.iteration == 0;
        let reach = self.signed(times(s.step_size, s.momentum));
        for (i, gradient) in gradient.iter().enumerate() {
            let kept = if is_first { 0.0 } else { self.memory[ACCUMULATED * len + i] };
            let g = flushed(times(s.momentum, kept) + times(times(sound(*gradient), scale), inverse));
            self.memory[ACCUMULATED * len + i] = g;
            let looks_ahead = self.rule == Rule::Lookahead;
            let here = if looks_ahead && !is_first { self.memory[AHEAD * len + i] } else { self.x[i] };
            let next = self.sign_move(i, here, g, s.step_size);
            self.x[i] = next;
            if looks_ahead {
                self.memory[AHEAD * len + i] = next;
                if self.state.iteration.wrapping_add(1) < s.steps {
                    self.x[i] = next + times(reach, g);
                }
            }
        }
        count(&mut self.state.iteration, true);
    }

    /// Pulled back to the L2 ball, then within the bounds: `far` is the distance.
    fn pull(&self, i: usize, x: f32, far: f32) -> f32 {
        let pull = if far > self.sample.eps { times(self.sample.eps, inverse_of(far)) } else { 1.0 };
        (self.x0[i] + times(x - self.x0[i], pull)).max(self.bounds.0).min(self.bounds.1)
    }

    fn distance(&self, x: impl Fn(usize) -> f32) -> f32 {
        root(total(self.x.len(), |i, sum| sum + times(x(i) - self.x0[i], x(i) - self.x0[i])))
    }

    fn l2(&mut self, gradient: &[f32]) {
        let scale = scale_of(gradient);
        let g: Vec<f32> = gradient.iter().map(|g| times(sound(*g), scale)).collect();
        let inverse = inverse_of(root(total(g.len(), |i, sum| sum + times(g[i], g[i]))));
        let unit = |i: usize| times(g[i], inverse);
        let size = self.signed(self.sample.step_size);
        let moved: Vec<f32> = self.x.iter().enumerate().map(|(i, x)| flushed(*x + times(size, unit(i)))).collect();
        let far = self.distance(|i| moved[i]);
        self.x = (0..g.len()).map(|i| flushed(self.pull(i, moved[i], far))).collect();
    }

    /// Looks at the loss, keeps what is worth keeping, checks the step size when it is time, and moves on.
    fn apgd(&mut self, norm: Norm, gradient: &[f32]) {
        let len = self.x.len();
        let s = &mut self.state;
        let loss = if self.sample.direction > 0.0 { s.loss } else { -s.loss };
        let (is_first, is_last) = (s.iteration == 0, s.iteration >= self.sample.steps);
        let succeeds = self.sample.is_reached_by(s.predicted);
        s.found |= u32::from(succeeds);
        let improves = is_first || loss > s.best;
        if improves {
            s.best = loss;
        }
        let mut halves = false;
        if is_first {
            // The first rise is counted from zero, as in the paper's code.
            (s.best_at_check, s.last) = (loss, 0.0);
        } else {
            count(&mut s.rises, loss > s.last);
            s.last = loss;
            count(&mut s.since_check, true);
            if s.since_check == s.period {
                let few = s.rises as f32 <= 0.75 * s.period as f32;
                halves = few || (s.halved == 0 && s.best_at_check >= s.best);
                s.halved = u32::from(halves);
                if halves {
                    s.step_size *= 0.5;
                }
                s.best_at_check = s.best;
                s.period = s.period.saturating_sub(s.shorter_by).max(s.shortest);
                (s.since_check, s.rises) = (0, 0);
            }
        }
        count(&mut s.iteration, true);

        let scale = scale_of(gradient);
        let mut g: Vec<f32> = gradient.iter().map(|g| times(sound(*g), scale)).collect();
        let slot = |k: usize| k * len..(k + 1) * len;
        if succeeds {
            self.memory[slot(FOUND)].copy_from_slice(&self.x);
        }
        if improves {
            self.memory[slot(BEST)].copy_from_slice(&self.x);
            self.memory[slot(BEST_GRADIENT)].copy_from_slice(&g);
        }
        if is_first {
            self.memory[slot(OLD)].copy_from_slice(&self.x);
        }
        if halves {
            self.x.copy_from_slice(&self.memory[slot(BEST)]);
            g.copy_from_slice(&self.memory[slot(BEST_GRADIENT)]);
        }
        if is_last {
            self.x = self.candidate().to_vec();
            return;
        }
        let (share, rest) = if is_first { (1.0, 0.0) } else { (0.75, 0.25) };
        let size = self.state.step_size;
        let mix = |walk: &Self, i: usize, z: f32| {
            let here = walk.x[i];
            flushed(here + times(z - here, share)) + times(here - walk.memory[OLD * len + i], rest)
        };
        let next: Vec<f32> = match norm {
            Norm::Linf => (0..len)
                .map(|i| {
                    let mixed = mix(self, i, self.sign_move(i, self.x[i], g[i], size));
                    let eps = self.sample.eps;
                    let (lo, hi) = (self.bounds.0.max(self.x0[i] - eps), self.bounds.1.min(self.x0[i] + eps));
                    mixed.max(lo).min(hi)
                })
                .collect(),
            Norm::L2 => {
                let inverse = inverse_of(root(total(len, |i, sum| sum + times(g[i], g[i]))));
                let unit = |i: usize| times(g[i], inverse);
                let moved: Vec<f32> =
                    (0..len).map(|i| flushed(self.x[i] + times(self.signed(size), unit(i)))).collect();
                let far = self.distance(|i| moved[i]);
                let mixed: Vec<f32> = (0..len).map(|i| flushed(mix(self, i, self.pull(i, moved[i], far)))).collect();
                let farther = self.distance(|i| mixed[i]);
                (0..len).map(|i| flushed(self.pull(i, mixed[i], farther))).collect()
            }
        };
        self.memory[slot(OLD)].copy_from_slice(&self.x);
        self.x = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_follows_its_truth_table() {
        let sample = |direction| Sample { eps: 0.25, step_size: 0.125, direction, ..Sample::default() };
        let subnormal = f32::from_bits(0x007f_ffff);
        let table = [
            (0.5, f32::MIN_POSITIVE, 1.0, 0.625, Sign::Plus),
            (0.5, -1e30, 1.0, 0.375, Sign::Minus),
            (0.5, 1e-20, -1.0, 0.375, Sign::Plus),
            (0.5, -f32::MIN_POSITIVE, -1.0, 0.625, Sign::Minus),
            (0.5, 0.0, 1.0, 0.5, Sign::Zero),
            (0.5, -0.0, -1.0, 0.5, Sign::Zero),
            (0.5, subnormal, 1.0, 0.5, Sign::Zero),
            (0.5, -subnormal, 1.0, 0.5, Sign::Zero),
            (0.5, f32::INFINITY, 1.0, 0.5, Sign::Broken),
            (0.5, f32::NEG_INFINITY, 1.0, 0.5, Sign::Broken),
            (0.5, f32::NAN, 1.0, 0.5, Sign::Broken),
            (0.5, -f32::NAN, -1.0, 0.5, Sign::Broken),
            // The ball around 0.5 ends at 0.25 and 0.75.
            (0.75, 1.0, 1.0, 0.75, Sign::Plus),
            (0.25, 1.0, -1.0, 0.25, Sign::Plus),
            (0.9, 0.0, 1.0, 0.75, Sign::Zero),
        ];
        for (x, gradient, direction, want, sign) in table {
            let got = step(x, 0.5, gradient, &sample(direction), (0.0, 1.0));
            assert_eq!((got.0.to_bits(), got.1), (f32::to_bits(want), sign), "{x} {gradient} {direction}");
        }
        let free = Sample { eps: f32::INFINITY, ..sample(1.0) };
        assert_eq!(step(0.9375, 0.5, 1.0, &free, (0.0, 1.0)).0, 1.0);
        assert_eq!(step(9.0, 0.5, 1.0, &free, (f32::NEG_INFINITY, f32::INFINITY)).0, 9.125);
        let still = Sample { step_size: 0.0, ..sample(1.0) };
        assert_eq!(step(0.3, 0.3, 5.0, &still, (0.0, 1.0)).0.to_bits(), 0.3_f32.to_bits());
    }
}
