//! The same networks and the same attack on the CPU, in plain f64 loops: what the GPU is compared with, and what runs
//! where there is no GPU. Readable first; only the steps ([`Walk`]) are f32 and agree with the GPU bit for bit.
//!
//! Imports only `error`, `model` and the [`Engine`] types of `attack`. Each layer's backward stands beside its forward.

mod fab;
mod loss;
pub mod normal;
mod shared;
mod square;
mod training;
mod values;
mod walk;

pub use fab::Way;
pub use shared::Climb;
pub use training::Training;
pub use values::Sign;
pub use walk::{Walk, random_start, step};

use crate::attack::{
    Engine, Fit, Gradient, Health, Iterated, Job, Logits, Loss, Perturbation, Rule, Sample, Source, Trail, argmax,
};
use crate::error::{Error, Result};
use crate::model::{Conv2d, Dims, Layer, Linear, Model, Shortcut};
use std::collections::BTreeMap;
use std::fmt;

/// A network that runs on the CPU in f64. Samples are independent: they are spread over all cores.
#[derive(Clone, Debug)]
pub struct Reference {
    model: Model,
    params: BTreeMap<String, Params64>,
}

#[derive(Clone)]
struct Params64 {
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl fmt::Debug for Params64 {
    /// As [`crate::model::Params`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params64({} weights, {} biases)", self.weight.len(), self.bias.len())
    }
}

fn params64(model: &Model) -> BTreeMap<String, Params64> {
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect();
    model.params.iter().map(|(n, p)| (n.clone(), Params64 { weight: wide(&p.weight), bias: wide(&p.bias) })).collect()
}

impl Reference {
    /// Takes a network whose batch norm is folded, as [`crate::weights`] makes them.
    ///
    /// # Errors
    /// [`Error::Model`] naming the layer when shapes do not fit or parameters are missing; [`Error::Usage`] where batch norm is
    /// left, which is training mode ([`Training`]).
    pub fn new(model: Model) -> Result<Self> {
        model.check()?;
        let params = params64(&model);
        Ok(Reference { model, params })
    }

    /// Logits `[N, K]` of images `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::Data`] when the length is no multiple of an image.
    pub fn logits_f64(&self, images: &[f32]) -> Result<Vec<f64>> {
        let n = self.count(images)?;
        Ok(parallel(n, |i| self.forward(self.image(images, i)).logits).concat())
    }

    /// Gradient `[N, C, H, W]` of each sample's cross-entropy on its class with respect to its image.
    ///
    /// # Errors
    /// [`Error::Data`] when the length is no multiple of an image, or a class is out of range.
    pub fn input_gradient_f64(&self, images: &[f32], classes: &[u32]) -> Result<Vec<f64>> {
        let n = self.count(images)?;
        self.check_classes(n, classes.iter().copied())?;
        Ok(parallel(n, |i| self.backward(self.forward(self.image(images, i)), classes[i]).gradient).concat())
    }

    fn image<'a>(&self, images: &'a [f32], i: usize) -> &'a [f32] {
        let len = self.model.input.len();
        &images[i * len..(i + 1) * len]
    }

    fn count(&self, images: &[f32]) -> Result<usize> {
        let len = self.model.input.len();
        if !images.len().is_multiple_of(len) {
            let detail = format!("{} values are no whole number of {} images", images.len(), self.model.input);
            return Err(Error::data("images", detail));
        }
        Ok(images.len() / len)
    }

    fn check_classes(&self, n: usize, classes: impl ExactSizeIterator<Item = u32>) -> Result<()> {
        if classes.len() != n {
            return Err(Error::data("classes", format!("{} classes for {n} images", classes.len())));
        }
        let k = self.model.logits();
        for (i, class) in classes.enumerate() {
            if class as usize >= k {
                return Err(Error::data("classes", format!("sample {i}: class {class}, but there are {k} classes")));
            }
        }
        Ok(())
    }

    /// One sample forward, remembering what its gradient needs.
    fn forward(&self, image: &[f32]) -> Pass {
        let mut pass = Pass::default();
        let x: Vec<f64> = image.iter().copied().map(f64::from).collect();
        mark(&mut pass.health, &x, Health::ACTIVATION);
        let (last, body) = self.model.layers.split_last().expect("a network has layers");
        let (x, dims) = self.layers_forward(body, x, self.model.input, &mut pass);
        let activations = pass.health;
        pass.logits = self.layer_forward(last, x, dims, &mut pass).0;
        // The last layer's values are the logits, and marked as such.
        pass.health = activations;
        mark(&mut pass.health, &pass.logits, Health::LOGITS);
        pass
    }

    /// One sample backward from its cross-entropy on `class`.
    fn backward(&self, pass: Pass, class: u32) -> Backward {
        self.backward_from(pass, |z| loss::cross_entropy(z, class as usize))
    }

    /// One sample backward from the loss and the seed that `follow` gives for its logits.
    fn backward_from(&self, mut pass: Pass, follow: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> Backward {
        let (loss, seed) = follow(&pass.logits);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        let gradient = self.layers_backward(&self.model.layers, seed, &mut pass.tape);
        mark(&mut pass.health, &gradient, Health::GRADIENT);
        Backward { gradient, loss, health: pass.health }
    }

    /// A sample's loss at an image, its gradient where the rule needs one, and the class predicted there.
    fn look(&self, image: &[f32], sample: &Sample, (rule, loss): (Rule, Loss)) -> (Backward, u32) {
        let mut pass = self.forward(image);
        let predicted = argmax(&narrow(&pass.logits).collect::<Vec<f32>>()) as u32;
        if rule.needs_gradients() {
            return (self.backward_from(pass, |z| loss::follow(loss, z, sample)), predicted);
        }
        let (loss, _) = loss::follow(loss, &pass.logits, sample);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        (Backward { gradient: Vec::new(), loss, health: pass.health }, predicted)
    }

    /// The same without the gradient.
    fn glance(&self, image: &[f32], sample: &Sample, loss: Loss) -> (f64, Health, u32) {
        let mut pass = self.forward(image);
        let predicted = argmax(&narrow(&pass.logits).collect::<Vec<f32>>()) as u32;
        let (loss, _) = loss::follow(loss, &pass.logits, sample);
        mark(&mut pass.health, &[loss], Health::LOGITS);
        (loss, pass.health, predicted)
    }

    fn layers_forward(&self, layers: &[Layer], x: Vec<f64>, dims: Dims, pass: &mut Pass) -> (Vec<f64>, Dims) {
        layers.iter().fold((x, dims), |(x, dims), layer| self.layer_forward(layer, x, dims, pass))
    }

    fn layers_backward(&self, layers: &[Layer], dy: Vec<f64>, tape: &mut Vec<Saved>) -> Vec<f64> {
        layers.iter().rev().fold(dy, |dy, layer| self.layer_backward(layer, dy, tape))
    }

    fn layer_forward(&self, layer: &Layer, x: Vec<f64>, dims: Dims, pass: &mut Pass) -> (Vec<f64>, Dims) {
        let out = layer.output(dims).expect("shapes were checked when the network was made");
        let (y, memory) = match layer {
            Layer::Normalise { mean, std } => (normalise(x, dims, mean, std), Memory::Nothing),
            Layer::Conv2d(c) => (conv(c, &self.params[&c.name], &x, dims, out), Memory::Nothing),
            Layer::Affine { name, .. } => (affine(x, dims, &self.params[name]), Memory::Nothing),
            Layer::Relu => relu(x),
            Layer::MaxPool { size, stride, padding } => max_pool(*size, *stride, *padding, &x, dims, out),
            Layer::AvgPool { size, stride, padding } => {
                (avg_pool(*size, *stride, *padding, &x, dims, out), Memory::Nothing)
            }
            Layer::GlobalAvgPool => (mean_pool(&x, dims), Memory::Nothing),
            Layer::Flatten => (x, Memory::Nothing),
            Layer::Linear(l) => (linear(l, &self.params[&l.name], &x), Memory::Nothing),
            Layer::Residual { body, shortcut } => {
                let (mut y, _) = self.layers_forward(body, x.clone(), dims, pass);
                match shortcut {
                    Shortcut::Projection(layers) => {
                        let (through, _) = self.layers_forward(layers, x, dims, pass);
                        y.iter_mut().zip(through).for_each(|(y, s)| *y += s);
                    }
                    carried => for_each_carried(carried, dims, out, |from, to| y[to] += x[from]),
                }
                (y, Memory::Nothing)
            }
            Layer::BatchNorm { .. } => unreachable!("refused when the network was made"),
        };
        mark(&mut pass.health, &y, Health::ACTIVATION);
        pass.tape.push(Saved { dims, out, memory });
        (y, out)
    }

    fn layer_backward(&self, layer: &Layer, mut dy: Vec<f64>, tape: &mut Vec<Saved>) -> Vec<f64> {
        let Saved { dims, out, memory } = tape.pop().expect("forward pushed one for each layer");
        match (layer, memory) {
            (Layer::Normalise { std, .. }, _) => normalise_backward(dy, dims, std),
            (Layer::Conv2d(c), _) => conv_backward(c, &self.params[&c.name], &dy, dims, out),
            (Layer::Affine { name, .. }, _) => affine_backward(dy, dims, &self.params[name]),
            (Layer::Relu, Memory::Signs(signs)) => relu_backward(dy, &signs),
            (Layer::MaxPool { .. }, Memory::Sources(sources)) => max_pool_backward(&dy, &sources, dims),
            (Layer::AvgPool { size, stride, padding }, _) => {
                avg_pool_backward(*size, *stride, *padding, &dy, dims, out)
            }
            (Layer::GlobalAvgPool, _) => mean_pool_backward(&dy, dims),
            (Layer::Linear(l), _) => linear_backward(l, &self.params[&l.name], &dy),
            (Layer::Residual { body, shortcut }, _) => {
                let mut through = vec![0.0; dims.len()];
                match shortcut {
                    Shortcut::Projection(layers) => through = self.layers_backward(layers, dy.clone(), tape),
                    carried => for_each_carried(carried, dims, out, |to, from| through[to] += dy[from]),
                }
                dy = self.layers_backward(body, dy, tape);
                dy.iter_mut().zip(through).for_each(|(d, s)| *d += s);
                dy
            }
            // Flatten; nothing else comes here.
            _ => dy,
        }
    }
}

/// Images that are classified without asking whether to go on.
const UNASKED: usize = 64;

impl Engine for Reference {
    fn model(&self) -> &Model {
        &self.model
    }

    fn logits(&self, images: &[f32]) -> Result<Logits> {
        self.logits_with(images, &mut |_| true)
    }

    fn logits_with(&self, images: &[f32], progress: &mut dyn FnMut(u64) -> bool) -> Result<Logits> {
        let n = self.count(images)?;
        let mut all = Logits { logits: Vec::new(), health: Vec::new() };
        for first in (0..n).step_by(UNASKED) {
            if !progress(0) {
                return Err(Error::Cancelled);
            }
            let count = UNASKED.min(n - first);
            for pass in parallel(count, |i| self.forward(self.image(images, first + i)).forget()) {
                all.logits.extend(narrow(&pass.logits));
                all.health.push(pass.health);
            }
        }
        Ok(all)
    }

    fn loss_gradient(&self, images: &[f32], samples: &[Sample], loss: Loss) -> Result<Gradient> {
        let n = self.count(images)?;
        self.check_classes(n, samples.iter().map(|s| s.class))?;
        samples.iter().enumerate().try_for_each(|(i, s)| s.check(i, self.model.logits()))?;
        Job { loss, ..Job::new(images, samples, 1) }.check(self.model.logits())?;
        let mut all = Gradient { gradient: Vec::new(), loss: Vec::new(), health: Vec::new() };
        for (one, _) in parallel(n, |i| self.look(self.image(images, i), &samples[i], (Rule::Sign, loss))) {
            all.gradient.extend(narrow(&one.gradient));
            all.loss.push(one.loss as f32);
            all.health.push(one.health);
        }
        Ok(all)
    }

    fn iterate(&self, job: &Job<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<Iterated> {
        let n = self.count(job.x0)?;
        self.check_classes(n, job.samples.iter().map(|s| s.class))?;
        job.samples.iter().enumerate().try_for_each(|(i, s)| s.check(i, self.model.logits()))?;
        job.check(self.model.logits())?;
        let walk = |i: usize| {
            let (x0, sample) = (self.image(job.x0, i), &job.samples[i]);
            match job.from {
                None => {
                    let start = job.rule.start(x0, self.model.input, sample, job.seed, job.bounds);
                    Walk::new(job.rule, *sample, job.bounds, x0, start)
                }
                Some(trail) => {
                    let (x, memory, states) = trail.part(i..i + 1);
                    Walk::resume(job.rule, *sample, job.bounds, x0, (x, memory, states[0]))
                }
            }
            .in_images_of(self.model.input, job.seed)
        };
        let mut walks: Vec<Walk<'_>> = (0..n).map(walk).collect();
        let mut out =
            Iterated { zero_gradients: vec![0; n], health: vec![Health::default(); n], ..Iterated::default() };
        for _ in 0..job.steps {
            let seen = parallel(n, |i| self.look(walks[i].point(), &job.samples[i], (job.rule, job.loss)));
            for (i, (back, predicted)) in seen.iter().enumerate() {
                let gradient: Vec<f32> = narrow(&back.gradient).collect();
                out.zero_gradients[i] += gradient.iter().map(|g| u32::from(Sign::of(*g) == Sign::Zero)).sum::<u32>();
                walks[i].step(&gradient, back.loss as f32, *predicted);
                out.health[i].0 |= back.health.0;
            }
            if job.rule.looks_twice() {
                let seen = parallel(n, |i| self.glance(walks[i].point(), &job.samples[i], job.loss));
                for (i, (loss, health, predicted)) in seen.into_iter().enumerate() {
                    walks[i].look(loss as f32, predicted);
                    out.health[i].0 |= health.0;
                }
            }
            if !progress(n as u64) {
                return Err(Error::Cancelled);
            }
        }
        if job.rule.looks_at_the_last() && !job.goes_on {
            let seen = parallel(n, |i| self.look(walks[i].point(), &job.samples[i], (job.rule, job.loss)));
            for (i, (back, predicted)) in seen.iter().enumerate() {
                walks[i].step(&vec![0.0; self.model.input.len()], back.loss as f32, *predicted);
                out.health[i].0 |= back.health.0 & !Health::GRADIENT.0;
            }
        }
        let mut trail = Trail::default();
        for walk in &walks {
            out.images.extend_from_slice(walk.candidate());
            let (x, memory, state) = walk.parts();
            trail.x.extend_from_slice(x);
            trail.memory.extend_from_slice(memory);
            trail.states.push(state);
        }
        out.trail = job.goes_on.then_some(trail);
        Ok(out)
    }

    fn fit(
        &self,
        fit: &Fit<'_>,
        images: &mut Source<'_>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Perturbation> {
        self.fit_to(fit, images, progress)
    }
}

/// What one sample's forward pass leaves behind.
#[derive(Default)]
struct Pass {
    logits: Vec<f64>,
    tape: Vec<Saved>,
    health: Health,
}

impl Pass {
    /// Drops what only a gradient needs.
    fn forget(mut self) -> Self {
        self.tape = Vec::new();
        self
    }
}

struct Backward {
    gradient: Vec<f64>,
    loss: f64,
    health: Health,
}

/// What the backward of one layer needs from its forward.
#[derive(Clone)]
struct Saved {
    dims: Dims,
    out: Dims,
    memory: Memory,
}

#[derive(Clone)]
enum Memory {
    Nothing,
    /// ReLU: whether the input was positive.
    Signs(Vec<bool>),
    /// Max-pool: index of the input that won each window.
    Sources(Vec<usize>),
}

/// The engine works in f32, so what f32 cannot hold counts as infinite here too.
fn mark(health: &mut Health, values: &[f64], what: Health) {
    if values.iter().any(|v| !(*v as f32).is_finite()) {
        health.0 |= what.0;
    }
}

fn narrow(values: &[f64]) -> impl Iterator<Item = f32> + '_ {
    values.iter().map(|v| *v as f32)
}

/// Results of `work` for 0..n in order, computed on all cores.
fn parallel<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(n).max(1);
    let share = n.div_ceil(threads);
    let work = &work;
    std::thread::scope(|scope| {
        let start = |t: usize| (t * share).min(n);
        let handles: Vec<_> =
            (0..threads).map(|t| scope.spawn(move || (start(t)..start(t + 1)).map(work).collect::<Vec<T>>())).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

// The layers: forward, then the gradient with respect to the input. Planes are rows of `w` values, channels are planes.

fn normalise(mut x: Vec<f64>, d: Dims, mean: &[f64], std: &[f64]) -> Vec<f64> {
    for (c, plane) in x.chunks_exact_mut(d.h * d.w).enumerate() {
        plane.iter_mut().for_each(|v| *v = (*v - mean[c]) / std[c]);
    }
    x
}

fn normalise_backward(mut dy: Vec<f64>, d: Dims, std: &[f64]) -> Vec<f64> {
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

fn conv(c: &Conv2d, p: &Params64, x: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
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

fn conv_backward(c: &Conv2d, p: &Params64, dy: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
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

fn affine(mut x: Vec<f64>, d: Dims, p: &Params64) -> Vec<f64> {
    for (plane, (a, b)) in x.chunks_exact_mut(d.h * d.w).zip(p.weight.iter().zip(&p.bias)) {
        plane.iter_mut().for_each(|v| *v = a * *v + b);
    }
    x
}

fn affine_backward(mut dy: Vec<f64>, d: Dims, p: &Params64) -> Vec<f64> {
    for (plane, a) in dy.chunks_exact_mut(d.h * d.w).zip(&p.weight) {
        plane.iter_mut().for_each(|v| *v *= a);
    }
    dy
}

fn relu(mut x: Vec<f64>) -> (Vec<f64>, Memory) {
    // NaN is not positive: it ends here, and the layer before it has marked the sample.
    let signs: Vec<bool> = x.iter().map(|v| *v > 0.0).collect();
    x.iter_mut().zip(&signs).for_each(|(v, positive)| *v = if *positive { *v } else { 0.0 });
    (x, Memory::Signs(signs))
}

fn relu_backward(mut dy: Vec<f64>, signs: &[bool]) -> Vec<f64> {
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

fn max_pool(size: usize, stride: usize, padding: usize, x: &[f64], dims: Dims, out: Dims) -> (Vec<f64>, Memory) {
    let mut sources = vec![usize::MAX; out.len()];
    for_each_window(size, stride, padding, dims, out, |to, i| {
        if sources[to] == usize::MAX || x[i] > x[sources[to]] {
            sources[to] = i;
        }
    });
    (sources.iter().map(|i| x[*i]).collect(), Memory::Sources(sources))
}

fn max_pool_backward(dy: &[f64], sources: &[usize], dims: Dims) -> Vec<f64> {
    let mut dx = vec![0.0; dims.len()];
    // Windows may overlap: a pixel can win several.
    dy.iter().zip(sources).for_each(|(d, i)| dx[*i] += d);
    dx
}

fn avg_pool(size: usize, stride: usize, padding: usize, x: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
    let mut y = vec![0.0; out.len()];
    for_each_window(size, stride, padding, dims, out, |to, from| y[to] += x[from] / (size * size) as f64);
    y
}

fn avg_pool_backward(size: usize, stride: usize, padding: usize, dy: &[f64], dims: Dims, out: Dims) -> Vec<f64> {
    let mut dx = vec![0.0; dims.len()];
    for_each_window(size, stride, padding, dims, out, |from, to| dx[to] += dy[from] / (size * size) as f64);
    dx
}

fn mean_pool(x: &[f64], d: Dims) -> Vec<f64> {
    x.chunks_exact(d.h * d.w).map(|plane| plane.iter().sum::<f64>() / (d.h * d.w) as f64).collect()
}

fn mean_pool_backward(dy: &[f64], d: Dims) -> Vec<f64> {
    dy.iter().flat_map(|v| std::iter::repeat_n(v / (d.h * d.w) as f64, d.h * d.w)).collect()
}

fn linear(l: &Linear, p: &Params64, x: &[f64]) -> Vec<f64> {
    let dot = |(row, bias): (&[f64], &f64)| bias + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    p.weight.chunks_exact(l.inputs).zip(&p.bias).map(dot).collect()
}

fn linear_backward(l: &Linear, p: &Params64, dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; l.inputs];
    for (row, d) in p.weight.chunks_exact(l.inputs).zip(dy) {
        dx.iter_mut().zip(row).for_each(|(dx, w)| *dx += w * d);
    }
    dx
}

/// Calls `f(index in x, index in y)` for every value that the shortcut carries over.
fn for_each_carried(shortcut: &Shortcut, x: Dims, y: Dims, mut f: impl FnMut(usize, usize)) {
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
    use crate::weights::{Tensors, from_layers};

    fn conv(name: &str, inputs: usize, outputs: usize, kernel: usize, stride: usize) -> Layer {
        let padding = kernel / 2;
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel, stride, padding, bias: true })
    }

    fn affine(name: &str, channels: usize) -> Layer {
        Layer::Affine { name: name.into(), channels }
    }

    /// Reproducible values in [−0.5, 0.5).
    fn noise(stream: u32, n: usize) -> Vec<f32> {
        (0..n).map(|i| (philox(3, [i as u32, 0, 0, stream])[0] >> 8) as f32 / 16_777_216.0 - 0.5).collect()
    }

    /// Values in [0, 1] that are whole multiples of 2⁻⁸, so that a small power of two can be added exactly.
    fn pixels(n: usize) -> Vec<f32> {
        noise(1000, n).iter().map(|v| ((v + 0.5) * 256.0).floor() / 256.0).collect()
    }

    fn with_noise(layers: Vec<Layer>, input: Dims) -> Reference {
        fn fill<'a>(layers: impl IntoIterator<Item = &'a Layer>, tensors: &mut Tensors) {
            for layer in layers {
                let mut add = |name: String, shape: Vec<usize>, scale: f32| {
                    let values = noise(tensors.len() as u32, shape.iter().product());
                    tensors.insert(name, (shape, values.iter().map(|v| v * scale).collect()));
                };
                match layer {
                    Layer::Conv2d(c) => {
                        let taps = c.inputs * c.kernel * c.kernel;
                        let scale = 4.0 / (taps as f32).sqrt();
                        add(format!("{}.weight", c.name), vec![c.outputs, c.inputs, c.kernel, c.kernel], scale);
                        add(format!("{}.bias", c.name), vec![c.outputs], 0.5);
                    }
                    Layer::Linear(l) => {
                        add(format!("{}.weight", l.name), vec![l.outputs, l.inputs], 4.0 / (l.inputs as f32).sqrt());
                        add(format!("{}.bias", l.name), vec![l.outputs], 0.5);
                    }
                    Layer::Affine { name, channels } => {
                        add(format!("{name}.weight"), vec![*channels], 2.0);
                        add(format!("{name}.bias"), vec![*channels], 0.5);
                    }
                    Layer::Residual { .. } => fill(layer.inner(), tensors),
                    _ => {}
                }
            }
        }
        let mut tensors = Tensors::new();
        fill(&layers, &mut tensors);
        Reference::new(from_layers(layers, input, tensors).unwrap()).unwrap()
    }

    /// Every kind of layer, odd sides, both strides, overlapping windows.
    fn all_layers() -> (Vec<Layer>, Dims) {
        let layers = vec![
            Layer::Normalise { mean: vec![0.4, 0.5, 0.3], std: vec![0.2, 0.25, 0.3] },
            conv("c1", 3, 8, 3, 1),
            Layer::Relu,
            Layer::Residual {
                body: vec![conv("c2", 8, 8, 3, 1), Layer::Relu, conv("c3", 8, 8, 1, 1)],
                shortcut: Shortcut::Identity,
            },
            Layer::Relu,
            Layer::MaxPool { size: 3, stride: 2, padding: 1 },
            Layer::Residual { body: vec![conv("c4", 8, 16, 3, 2)], shortcut: Shortcut::Subsample { added: 8 } },
            Layer::Relu,
            Layer::Residual {
                body: vec![conv("c5", 16, 12, 4, 2)],
                shortcut: Shortcut::Projection(vec![conv("p", 16, 12, 2, 2)]),
            },
            Layer::AvgPool { size: 3, stride: 1, padding: 1 },
            // Pre-activation, alone and at the head of a body.
            affine("n1", 12),
            Layer::Relu,
            Layer::Residual {
                body: vec![affine("n2", 12), Layer::Relu, conv("c6", 12, 12, 3, 1)],
                shortcut: Shortcut::Identity,
            },
            Layer::Relu,
            Layer::MaxPool { size: 2, stride: 1, padding: 0 },
            Layer::GlobalAvgPool,
            Layer::Flatten,
            Layer::Linear(Linear { name: "l1".into(), inputs: 12, outputs: 12 }),
            Layer::Relu,
            Layer::Linear(Linear { name: "l2".into(), inputs: 12, outputs: 5 }),
        ];
        (layers, Dims::new(3, 11, 9))
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x = pixels(input.len());
        let h = 1.0 / 131_072.0; // x ± h is exact in f32
        for class in [0, 3] {
            let gradient = net.input_gradient_f64(&x, &[class]).unwrap();
            let scale = gradient.iter().fold(0.0_f64, |a, g| a.max(g.abs()));
            assert!(scale > 1e-3, "the network is dead: {scale}");
            let loss = |x: &[f32]| loss::cross_entropy(&net.logits_f64(x).unwrap(), class as usize).0;
            let mut moved = x.clone();
            for i in 0..x.len() {
                moved[i] = x[i] + h;
                let above = loss(&moved);
                moved[i] = x[i] - h;
                let below = loss(&moved);
                moved[i] = x[i];
                let slope = (above - below) / (2.0 * f64::from(h));
                let difference = (slope - gradient[i]).abs();
                assert!(difference <= 1e-6 * scale, "pixel {i}: slope {slope}, gradient {}", gradient[i]);
            }
        }
    }

    #[test]
    fn a_convolution_is_what_the_definition_says() {
        let usual = [(3, 1, 4, 5), (3, 2, 5, 4), (1, 2, 5, 4), (1, 1, 3, 3), (3, 2, 1, 1), (4, 2, 6, 7), (7, 2, 5, 9)];
        let usual = usual.map(|(kernel, stride, h, w)| (kernel, stride, kernel / 2, h, w));
        for (kernel, stride, padding, h, w) in
            usual.into_iter().chain([(5, 3, 0, 6, 5), (2, 4, 9, 3, 2), (1, 1, 2, 2, 1)])
        {
            let input = Dims::new(2, h, w);
            let Layer::Conv2d(mut c) = conv("c", 2, 3, kernel, stride) else { unreachable!() };
            c.padding = padding;
            let out = Layer::Conv2d(c.clone()).output(input).unwrap();
            let wide = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
            let p = Params64 { weight: wide(noise(0, 6 * kernel * kernel)), bias: wide(noise(1, 3)) };
            let x = wide(noise(2, input.len()));
            let y = conv_forward_by_definition(&c, &p, &x, input, out);
            let got = super::conv(&c, &p, &x, input, out);
            assert!(y.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-14), "kernel {kernel}, stride {stride}");
            // Backward is the transpose: ⟨conv(x) − bias, dy⟩ = ⟨x, backward(dy)⟩.
            let dy = wide(noise(3, out.len()));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let zero = Params64 { weight: p.weight.clone(), bias: vec![0.0; 3] };
            let left = dot(&super::conv(&c, &zero, &x, input, out), &dy);
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
        let (loss, seed) = loss::cross_entropy(&[0.0, 0.0, 0.0, 0.0], 2);
        assert!((loss - 4.0_f64.ln()).abs() < 1e-15 && seed == [0.25, 0.25, -0.75, 0.25]);
        assert!(loss::cross_entropy(&[1e300, 0.0], 1).0 == 1e300);
    }

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

    #[test]
    fn a_small_targeted_step_lowers_the_target_loss_and_an_untargeted_one_raises_it() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x0 = pixels(input.len());
        for direction in [1.0, -1.0] {
            let sample = Sample { class: 2, eps: 1e-3, step_size: 1e-3, direction, ..Sample::default() };
            let job = Job::new(&x0, std::slice::from_ref(&sample), 1);
            let out = net.iterate(&job, &mut |_| true).unwrap();
            let loss = |x: &[f32]| net.input_gradient(x, &[2]).unwrap().loss[0];
            assert!((loss(&out.images) - loss(&x0)) * direction > 0.0);
            assert_eq!((out.zero_gradients[0], out.health[0]), (0, Health::default()));
        }
    }

    #[test]
    fn samples_do_not_see_each_other() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let len = input.len();
        let mut x = [pixels(len), pixels(len), noise(7, len).iter().map(|v| v + 0.5).collect()].concat();
        x[len] = f32::NAN;
        let sample = |class| Sample { class, eps: 0.1, step_size: 0.05, direction: -1.0, ..Sample::default() };
        let samples = [sample(0), sample(1), Sample { step_size: 0.0, ..sample(2) }];
        let mut reports = Vec::new();
        let job = Job::new(&x, &samples, 3);
        let all = net
            .iterate(&job, &mut |n| {
                reports.push(n);
                true
            })
            .unwrap();
        assert_eq!(reports, [3, 3, 3]);
        assert!(all.health[0].is_healthy() && all.health[2].is_healthy());
        assert!(all.health[1].0 & Health::ACTIVATION.0 != 0);
        assert_eq!(all.images[2 * len..], x[2 * len..]);
        let alone = net.iterate(&Job { x0: &x[..len], samples: &samples[..1], ..job }, &mut |_| true).unwrap();
        assert_eq!(alone.images, all.images[..len]);
        assert_eq!(net.logits(&x[..len]).unwrap().logits, net.logits(&x[..2 * len]).unwrap().logits[..5]);
    }

    #[test]
    fn requests_that_do_not_fit_are_refused() {
        let (layers, input) = all_layers();
        let net = with_noise(layers, input);
        let x = pixels(input.len());
        assert!(net.logits(&x[1..]).unwrap_err().to_string().contains("3×11×9"));
        assert!(net.logits(&[]).unwrap().logits.is_empty());
        assert!(net.input_gradient(&x, &[5]).unwrap_err().to_string().contains("sample 0: class 5"));
        assert!(net.input_gradient(&x, &[0, 1]).unwrap_err().to_string().contains("2 classes for 1 images"));
        let samples = &[Sample { eps: 1.0, step_size: 1.0, direction: 1.0, ..Sample::default() }];
        let job = Job::new(&x, samples, 9);
        assert_eq!(net.iterate(&job, &mut |_| false), Err(Error::Cancelled));
        let mut model = net.model().clone();
        model.params.remove("c3");
        assert!(Reference::new(model).unwrap_err().to_string().contains("c3: has no parameters"));
        let mut model = net.model().clone();
        model.layers.push(Layer::BatchNorm { name: "b".into(), channels: 5 });
        assert!(Reference::new(model).unwrap_err().to_string().contains("b: batch norm must be folded"));
    }

    #[test]
    fn overflow_is_marked_where_it_arises() {
        let l = Layer::Linear(Linear { name: "l".into(), inputs: 1, outputs: 2 });
        let tensors = Tensors::from([
            ("l.weight".into(), (vec![2, 1], vec![f32::MAX, 0.0])),
            ("l.bias".into(), (vec![2], vec![0.0; 2])),
        ]);
        let net = Reference::new(from_layers(vec![l], Dims::new(1, 1, 1), tensors).unwrap()).unwrap();
        let health = |x: f32| net.logits(&[x]).unwrap().health[0];
        assert_eq!((health(1.0), health(2.0)), (Health::default(), Health::LOGITS));
        assert_eq!(health(f32::NAN).0, Health::ACTIVATION.0 | Health::LOGITS.0);
    }
}
