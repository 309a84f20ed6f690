//! Images in buffers of the host program, on the same device: attacked, classified and differentiated without a pixel
//! going through the host's memory. What the host reads is logits, losses and marks.
//!
//! Work is put on the device's one queue in the order of the calls: what the host program submitted before a call is
//! seen by it, and when a call returns its results are complete.

use super::chunk::Chunk;
use super::{Network, append, mark};
use crate::attack::{
    Attack, Engine, Entrants, Gradient, Health, Logits, Loss, Norm, Outcome, Perturbation, Pixels, Sample, Tried,
    Verdict, check_labels, check_samples, runs,
};
use crate::error::{Error, Result};
use crate::kernel::{Bound, Dispatch};
use crate::ops::quantise::OUTSIDE;
use std::ops::Range;
use wgpu::{Buffer, BufferUsages};

impl Network {
    /// Logits of images `[samples, C, H, W]` f32 in a buffer of this device, which needs the usage `COPY_SRC`: bit for
    /// bit those of [`Engine::logits`]. A buffer of another device is refused, but wgpu cannot tell one of another
    /// *instance* from its own: what is read then is not said.
    ///
    /// # Errors
    /// [`Error::Usage`] for a buffer without that usage, mapped or of another device; [`Error::Data`] for one that is
    /// too small; those of the device.
    pub fn logits_buffer(&self, images: &Buffer, samples: usize) -> Result<Logits> {
        self.check_buffer("images", images, samples, BufferUsages::COPY_SRC)?;
        let ids = self.plan.ids;
        let mut out = Logits { logits: Vec::new(), health: Vec::new() };
        self.each_chunk(samples, &mut |_| true, |chunk, range, _| {
            chunk.reset()?;
            chunk.copy(&[(images, range.start, chunk.buffer(ids.x), 0, chunk.n)])?;
            let (z, health) = chunk.classify()?;
            out.logits.extend(z);
            out.health.extend(health);
            Ok(())
        })?;
        Ok(out)
    }

    /// Writes the gradient `[N, C, H, W]` of each sample's cross-entropy on its class into `gradient`, for images `[N,
    /// C, H, W]` in a buffer of this device: bit for bit that of [`Engine::input_gradient`]. `images` needs the usage
    /// `COPY_SRC`, `gradient` `COPY_DST`. The vector [`Gradient::gradient`] of the answer is empty.
    ///
    /// # Errors
    /// As [`Network::logits_buffer`], and [`Error::Data`] for a class out of range. What is in `gradient` after an
    /// error is not said.
    pub fn input_gradient_buffer(&self, images: &Buffer, classes: &[u32], gradient: &Buffer) -> Result<Gradient> {
        let n = classes.len();
        let samples: Vec<Sample> = classes.iter().map(|&class| Sample { class, ..Sample::default() }).collect();
        check_samples(&samples, n, Loss::CrossEntropy, &self.model)?;
        self.check_pair(("images", images), ("gradient", gradient), n)?;
        let ids = self.plan.ids;
        let mut out = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        self.each_chunk(n, &mut |_| true, |chunk, range, _| {
            chunk.reset()?;
            chunk.copy(&[(images, range.start, chunk.buffer(ids.x), 0, chunk.n)])?;
            chunk.write(ids.samples, &samples[range.clone()])?;
            chunk.write_bounds((f32::MIN, f32::MAX), 0)?;
            let inspect = chunk.seldom(&chunk.bound.inspect_gradient, &self.plan.pixels.inspect_gradient)?;
            chunk.run_all(chunk.forward().chain(chunk.backward()).chain([inspect]))?;
            chunk.copy(&[(chunk.buffer(ids.dx), 0, gradient, range.start, chunk.n)])?;
            let [loss, health] = chunk.read([ids.loss, ids.health])?;
            append(&mut out.loss, &loss);
            append(&mut out.health, &health);
            Ok(())
        })?;
        out.health.iter_mut().for_each(|h| h.0 &= !OUTSIDE);
        Ok(out)
    }

    /// Two buffers of a run: one to read and another one to write.
    fn check_pair(&self, from: (&str, &Buffer), to: (&str, &Buffer), samples: usize) -> Result<()> {
        if from.1 == to.1 {
            return Err(Error::Usage(format!("the buffers of {} and {} must be two", from.0, to.0)));
        }
        self.check_buffer(from.0, from.1, samples, BufferUsages::COPY_SRC)?;
        self.check_buffer(to.0, to.1, samples, BufferUsages::COPY_DST)
    }

    /// Whether `samples` images can be copied from or to `buffer`.
    fn check_buffer(&self, name: &str, buffer: &Buffer, samples: usize, usage: BufferUsages) -> Result<()> {
        let needed = (samples as u64).saturating_mul(self.bytes_of_one());
        if !buffer.usage().contains(usage) {
            let has = buffer.usage();
            return Err(Error::Usage(format!("the buffer of {name} needs the usage {usage:?}, but has {has:?}")));
        }
        if buffer.size() < needed {
            let detail = format!("the buffer holds {} bytes, {samples} samples take {needed}", buffer.size());
            return Err(Error::data(name, detail));
        }
        if samples == 0 {
            return Ok(());
        }
        // That a buffer is mapped, destroyed or of another device can only be found out by using it. What is written
        // here is overwritten by what is asked for.
        let probe = || {
            let scratch = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("probe"),
                size: 4,
                usage: BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            if usage == BufferUsages::COPY_SRC {
                encoder.copy_buffer_to_buffer(buffer, 0, &scratch, 0, 4);
            } else {
                encoder.copy_buffer_to_buffer(&scratch, 0, buffer, 0, 4);
            }
            self.gpu.submit(encoder).map(drop)
        };
        self.gpu.scope(name, probe).map_err(|e| match e {
            Error::Internal(why) => Error::Usage(format!("the buffer of {name} cannot be used on this device: {why}")),
            other => other,
        })
    }

    fn bytes_of_one(&self) -> u64 {
        4 * self.model.input.len() as u64
    }
}

/// A copy of images: from where, first image there, to where, first image there, how many.
type Copy<'a> = (&'a Buffer, usize, &'a Buffer, usize, usize);

impl Chunk<'_> {
    /// Copies images between buffers, behind all that was submitted before.
    fn copy(&self, copies: &[Copy<'_>]) -> Result<()> {
        let (gpu, one) = (&self.net.gpu, self.net.bytes_of_one());
        gpu.scope("copying images", || {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for &(from, first, to, place, count) in copies {
                let [first, place, count] = [first, place, count].map(|images| images as u64 * one);
                encoder.copy_buffer_to_buffer(from, first, to, place, count);
            }
            gpu.submit(encoder).map(drop)
        })
    }

    fn run_all<'b>(&self, work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>) -> Result<()> {
        self.run(work, &self.net.plan.step, |_| Ok(()))
    }

    /// Rounds x as it is delivered in `norm`.
    fn quantise(&self, norm: Norm) -> Result<(&Bound, &Dispatch)> {
        let pixels = &self.net.plan.pixels;
        match (norm, &pixels.quantise_l2) {
            (Norm::Linf, _) => self.seldom(&self.bound.quantise, &pixels.quantise),
            (Norm::L2, Some(dispatch)) => self.seldom(&self.bound.quantise_l2, dispatch),
            (Norm::L2, None) => Err(Error::Usage("rounding in L2 needs larger workgroups than this device has".into())),
        }
    }

    /// Logits of x, and the marks so far.
    fn classify(&self) -> Result<(Vec<f32>, Vec<Health>)> {
        let ids = self.net.plan.ids;
        self.run_all(self.forward().chain([self.logits()]))?;
        let (mut logits, mut health) = (Vec::new(), Vec::new());
        let [z, marks] = self.read([ids.logits, ids.health])?;
        append(&mut logits, &z);
        append(&mut health, &marks);
        mark(&mut health, &logits, self.net.model.logits(), Health::LOGITS);
        Ok((logits, health))
    }
}

impl Attack {
    /// As [`Attack::run`], with the images `[N, C, H, W]` f32 in one buffer of the network's device and the adversarial
    /// ones left in another: bit for bit those of [`Attack::run`]. `images` needs the usage `COPY_SRC`, `adversarial`
    /// `COPY_DST`; either may be larger than needed. `images` must stay as it is until the call returns: each restart
    /// reads it again.
    ///
    /// Both must be buffers of the network's own device ([`Gpu::device`](crate::Gpu::device)). One of another device is
    /// refused, but wgpu cannot tell a buffer of another *instance* from one of its own: do not give one.
    ///
    /// The pixels stay on the device, so [`Outcome::clean`], [`Outcome::adversarial`], [`Outcome::linf`] and
    /// [`Outcome::l2`] are empty. Everything else is as there, but for the work that `square` does: here a sample that
    /// has succeeded, which proposes nothing more, keeps its place in the batch to the last step, and
    /// [`Outcome::steps_taken`] counts all of them.
    ///
    /// # Errors
    /// As [`Attack::run`]; [`Error::Usage`] for an attack that stops early, for a buffer without its usage, mapped or
    /// of another device, and for one buffer in both places; [`Error::Data`] for one that is too small. What is in
    /// `adversarial` after an error is not said.
    pub fn run_buffers(&self, net: &Network, images: &Buffer, labels: &[i64], adversarial: &Buffer) -> Result<Outcome> {
        self.run_buffers_with(net, images, labels, adversarial, &mut |_| true)
    }

    /// As [`Attack::run_buffers`], with progress and cancelling as in [`Attack::run_with`].
    ///
    /// # Errors
    /// As [`Attack::run_buffers`], and [`Error::Cancelled`].
    pub fn run_buffers_with(
        &self,
        net: &Network,
        images: &Buffer,
        labels: &[i64],
        adversarial: &Buffer,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome> {
        self.validate()?;
        check_labels(net.model(), labels)?;
        if self.stops_early() {
            return Err(Error::Usage("images in buffers take every step: early stop is for images in slices".into()));
        }
        net.check_pair(("images", images), ("adversarial", adversarial), labels.len())?;
        let mut pixels = OnDevice { attack: self, net, images, adversarial, samples: labels.len() };
        if self.needs_fit() {
            let fitted = pixels.fit(labels, progress)?;
            return self.clone().perturbation(fitted).run_buffers_with(net, images, labels, adversarial, progress);
        }
        self.run_on(net.model(), &mut pixels, labels, progress)
    }
}

/// Images in buffers of the device.
struct OnDevice<'a> {
    attack: &'a Attack,
    net: &'a Network,
    images: &'a Buffer,
    adversarial: &'a Buffer,
    samples: usize,
}

impl OnDevice<'_> {
    /// Fits a perturbation to all images that are attacked.
    fn fit(&mut self, labels: &[i64], progress: &mut dyn FnMut(u64) -> bool) -> Result<Perturbation> {
        self.attack.check_steps(self.net.model())?;
        let mut entrants = Entrants::default();
        let (seen, _) = self.clean(progress)?;
        self.attack.enter(&mut entrants, self.net.model(), labels, 0..labels.len(), &seen)?;
        let fit = self.attack.fit_of(&entrants.samples);
        let mut take =
            |chunk: &Chunk<'_>, range: Range<usize>| self.take(chunk, &runs(&entrants.rows[range]), false).map(drop);
        let fitted = self.net.fit_to(&fit, &mut take, progress)?;
        Ok(entrants.spread(fitted))
    }

    /// Copies into x0 what `rows` say of the images, snapped to k/255 where bytes are delivered. Where they are to be
    /// inspected they are marked, and the largest move is given.
    fn take(&self, chunk: &Chunk<'_>, rows: &[Range<usize>], inspect: bool) -> Result<f32> {
        let (ids, pixels) = (self.net.plan.ids, &self.net.plan.pixels);
        let mut place = 0;
        let copies: Vec<Copy<'_>> = rows
            .iter()
            .map(|r| {
                place += r.len();
                (self.images, r.start, chunk.buffer(ids.x0), place - r.len(), r.len())
            })
            .collect();
        chunk.copy(&copies)?;
        if inspect {
            chunk.run_all([chunk.seldom(&chunk.bound.inspect, &pixels.inspect)?].into_iter())?;
        }
        let mut moved = 0.0;
        if self.attack.delivers_bytes() {
            chunk.run_all([chunk.seldom(&chunk.bound.snap, &pixels.snap)?].into_iter())?;
            if inspect {
                let [moves] = chunk.read([ids.zero_gradients])?;
                let mut all: Vec<f32> = Vec::new();
                append(&mut all, &moves);
                moved = all.into_iter().fold(0.0, f32::max);
            }
            chunk.write(ids.zero_gradients, &vec![0_u32; chunk.n])?;
        }
        chunk.copy(&[(chunk.buffer(ids.x0), 0, chunk.buffer(ids.x), 0, chunk.n)])?;
        Ok(moved)
    }
}

impl Pixels for OnDevice<'_> {
    fn clean(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(Logits, f32)> {
        let (attack, bounds) = (self.attack, self.attack.engine_bounds());
        let mut out = Logits { logits: Vec::new(), health: Vec::new() };
        let mut snapped = 0.0_f32;
        self.net.each_chunk(self.samples, progress, |chunk, range, _| {
            chunk.reset()?;
            chunk.write_bounds(bounds, 0)?;
            snapped = snapped.max(self.take(chunk, std::slice::from_ref(&range), true)?);
            chunk.copy(&[(chunk.buffer(self.net.plan.ids.x0), 0, self.adversarial, range.start, chunk.n)])?;
            let (z, mut health) = chunk.classify()?;
            for (i, health) in range.zip(&mut health) {
                if health.0 & OUTSIDE != 0 && attack.is_bounded() {
                    let detail = format!("a pixel value is outside of the bounds {} to {}", bounds.0, bounds.1);
                    return Err(Error::data(format!("sample {i}"), detail));
                }
                health.0 &= !OUTSIDE;
            }
            out.logits.extend(z);
            out.health.extend(health);
            Ok(())
        })?;
        Ok((out, snapped))
    }

    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()> {
        let (attack, net) = (self.attack, self.net);
        let (ids, k) = (net.plan.ids, net.model.logits());
        let job = attack.job(&[], samples);
        net.is_rule_there(job.rule)?;
        net.each_chunk_of(job.rule, rows.len(), progress, |chunk, range, progress| {
            let rows = &rows[range.clone()];
            chunk.reset()?;
            self.take(chunk, &runs(rows), false)?;
            match attack.given() {
                Some(perturbation) => chunk.share(perturbation, &samples[range], attack.engine_bounds())?,
                None => chunk.steps(&job, &samples[range], None, progress)?,
            }
            let (float, mut health) = chunk.classify()?;
            let mut rounded = float.clone();
            if attack.delivers_bytes() {
                chunk.run_all([chunk.quantise(attack.norm())?].into_iter())?;
                let marks;
                (rounded, marks) = chunk.classify()?;
                health.iter_mut().zip(marks).for_each(|(h, m)| h.0 |= m.0);
            }
            let mut zero_gradients: Vec<u32> = Vec::new();
            let [zeros] = chunk.read([ids.zero_gradients])?;
            append(&mut zero_gradients, &zeros);
            let mut kept = Vec::new();
            for (place, &row) in rows.iter().enumerate() {
                let z = place * k..(place + 1) * k;
                // What was met on the way: here, or when the perturbation was fitted.
                let here = || (u64::from(attack.step_count()), u64::from(zero_gradients[place]), Health::default());
                let (steps, zero_gradients, before) = attack.given().map_or_else(here, |p| p.met(row));
                let tried = Tried {
                    float: &float[z.clone()],
                    rounded: &rounded[z],
                    steps: steps as u32,
                    zero_gradients,
                    health: Health(health[place].0 | before.0),
                };
                if verdict.judge(row, tried) {
                    kept.push((chunk.buffer(ids.x), place, self.adversarial, row, 1));
                }
            }
            chunk.copy(&kept)
        })
    }
}
