//! One run of an attack: clean logits, targets, restarts, and the judgement of what is delivered. Where the pixels lie, on the
//! host or on the device, is [`Pixels`]' affair.

use super::random::random_target;
use super::{Attack, Engine, Health, Job, Logits, Outcome, Sample, Targets, argmax, budget, quantise, snap};
use crate::error::{Error, Result};
use crate::model::Model;

/// The images of a run, wherever they lie.
pub(crate) trait Pixels {
    /// Snaps the clean images to k/255 where bytes are delivered, and looks at them: their logits, and the largest move. From
    /// here on what would be delivered is the clean images.
    fn clean(&mut self) -> Result<(Logits, f32)>;

    /// Takes `steps` steps with the images of `rows`. `judge` is told of one after the other; where it answers `true` the
    /// image, rounded where bytes are delivered, takes the place of what would have been delivered.
    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        judge: &mut dyn FnMut(usize, Tried<'_>) -> bool,
    ) -> Result<()>;
}

/// What became of one row in one restart.
pub(crate) struct Tried<'a> {
    /// Logits of the last iterate.
    pub float: &'a [f32],
    /// Logits of what would be delivered.
    pub rounded: &'a [f32],
    pub zero_gradients: u32,
    pub health: Health,
}

impl Attack {
    /// Attacks images `[N, C, H, W]` (pixels, [0, 1] unless the bounds say otherwise) with their true `labels` `[N]`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a configuration that makes no sense, [`Error::Data`] for lengths, labels or targets that do
    /// not fit, and those of the engine. NaN in an image is no error: the sample is marked in [`Outcome::health`], and
    /// its neighbours are as if it were not there.
    pub fn run(&self, engine: &dyn Engine, images: &[f32], labels: &[i64]) -> Result<Outcome> {
        self.run_with(engine, images, labels, &mut |_| true)
    }

    /// As [`Attack::run`]; `progress` is told how many sample-steps have ended since it was last called, and cancels the
    /// run by answering `false`. The total is samples × steps × restarts at most: samples that are not attacked take no
    /// steps, and a sample that has succeeded takes no further restart.
    ///
    /// # Errors
    /// As [`Attack::run`], and [`Error::Cancelled`].
    pub fn run_with(
        &self,
        engine: &dyn Engine,
        images: &[f32],
        labels: &[i64],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome> {
        self.validate()?;
        let model = engine.model();
        let one = model.input.len();
        if images.len() != labels.len() * one {
            let n = labels.len();
            let detail = format!("{} values for {n} labels, but an image is {} = {one}", images.len(), model.input);
            return Err(Error::data("images", detail));
        }
        check_labels(model, labels)?;
        self.check_pixels(images, one)?;
        let mut pixels = OnHost { attack: self, engine, images, clean: Vec::new(), delivered: Vec::new() };
        let mut out = self.run_on(model, &mut pixels, labels, progress)?;
        let OnHost { clean, delivered, .. } = pixels;
        let moves = clean.chunks(one).zip(delivered.chunks(one)).map(|(x0, x)| {
            let moves = || x.iter().zip(x0).map(|(x, x0)| f64::from(*x) - f64::from(*x0));
            (moves().fold(0.0, |m, d| f64::max(m, d.abs())) as f32, moves().map(|d| d * d).sum::<f64>().sqrt() as f32)
        });
        (out.linf, out.l2) = moves.unzip();
        (out.clean, out.adversarial) = (clean, delivered);
        Ok(out)
    }

    /// The run itself, all but what needs the pixels: `clean`, `adversarial`, `linf` and `l2` are left empty.
    pub(crate) fn run_on(
        &self,
        model: &Model,
        pixels: &mut dyn Pixels,
        labels: &[i64],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Outcome> {
        let (k, n) = (model.logits(), labels.len());
        if u64::from(self.steps) * model.input.len() as u64 > u64::from(u32::MAX) {
            return Err(Error::Usage(format!("{} steps are more than can be counted", self.steps)));
        }
        let (Logits { logits: clean_logits, mut health }, snapped) = pixels.clean()?;
        let targets = self.resolve(labels, &clean_logits, k)?;
        let row = |i: usize| i * k..(i + 1) * k;
        let right = |i: usize, z: &[f32]| argmax(z) as i64 == labels[i];
        let clean_correct: Vec<bool> =
            (0..n).map(|i| health[i].is_healthy() && right(i, &clean_logits[row(i)])).collect();
        let attacked: Vec<bool> = (0..n).map(|i| clean_correct[i] && targets[i] != labels[i]).collect();
        let class = |i: usize| if targets[i] < 0 { labels[i] } else { targets[i] } as usize;
        let direction = |i: usize| if targets[i] < 0 { 1.0 } else { -1.0 };
        let hit = |i: usize, z: &[f32]| {
            attacked[i] && if targets[i] < 0 { !right(i, z) } else { argmax(z) as i64 == targets[i] }
        };

        let mut adversarial_logits = clean_logits.clone();
        let mut float_logits = clean_logits.clone();
        let mut loss: Vec<f32> = (0..n).map(|i| cross_entropy(&clean_logits[row(i)], class(i))).collect();
        let mut zero_gradients = vec![0; n];
        let mut restarts = vec![0; n];
        let mut steps_taken = vec![0; n];
        let mut float_success = vec![false; n];

        // Only the rows that still have something to gain are run; what a row becomes does not depend on the others.
        let moves = |i: &usize| attacked[*i] || (self.attack_all && targets[*i] != labels[*i]);
        let mut open: Vec<usize> = (0..n).filter(moves).collect();
        for restart in 0..self.restarts {
            if open.is_empty() {
                break;
            }
            let sample = |&i: &usize| Sample {
                class: class(i) as u32,
                // A data set has fewer than 2^32 samples.
                id: self.first_id.wrapping_add(i as u64) as u32,
                restart,
                start: u32::from(self.random_start),
                eps: self.eps,
                step_size: self.effective_step_size(),
                direction: direction(i),
                levels: budget(self.eps) as u32,
            };
            let samples: Vec<Sample> = open.iter().map(sample).collect();
            let mut still_open = Vec::new();
            pixels.attempt(&open, &samples, progress, &mut |i, tried| {
                steps_taken[i] += u64::from(self.steps);
                zero_gradients[i] += u64::from(tried.zero_gradients);
                health[i].0 |= tried.health.0;
                let success = health[i].is_healthy() && hit(i, tried.rounded);
                let after = cross_entropy(tried.rounded, class(i));
                let keep = restart == 0 || success || direction(i) * after > direction(i) * loss[i];
                let float_hit = hit(i, tried.float);
                if !float_success[i] && (float_hit || keep) {
                    float_logits[row(i)].copy_from_slice(tried.float);
                    float_success[i] = float_hit;
                }
                if keep {
                    adversarial_logits[row(i)].copy_from_slice(tried.rounded);
                    (loss[i], restarts[i]) = (after, restart);
                }
                if !success && health[i].is_healthy() {
                    still_open.push(i);
                }
                keep
            })?;
            open = still_open;
        }

        let success = |logits: &[f32]| (0..n).map(|i| health[i].is_healthy() && hit(i, &logits[row(i)])).collect();
        Ok(Outcome {
            clean: Vec::new(),
            snapped,
            adversarial: Vec::new(),
            linf: Vec::new(),
            l2: Vec::new(),
            success: success(&adversarial_logits),
            success_float: success(&float_logits),
            loss,
            effective_eps: if self.delivers_bytes() { budget(self.eps) as f32 / 255.0 } else { self.eps },
            labels: labels.to_vec(),
            targets,
            clean_logits,
            adversarial_logits,
            float_logits,
            clean_correct,
            attacked,
            zero_gradients,
            restart: restarts,
            steps_taken,
            health,
        })
    }

    /// Smallest and largest pixel for an engine, which knows no absence of bounds.
    pub(crate) fn engine_bounds(&self) -> (f32, f32) {
        self.bounds.unwrap_or((f32::MIN, f32::MAX))
    }

    /// Pixels must lie within the bounds; NaN is the sample's own affair.
    fn check_pixels(&self, images: &[f32], one: usize) -> Result<()> {
        let Some((lo, hi)) = self.bounds else { return Ok(()) };
        match images.iter().position(|&x| x < lo || x > hi) {
            Some(i) => Err(Error::data(
                format!("sample {}", i / one),
                format!("pixel value {} is outside of the bounds {lo} to {hi}", images[i]),
            )),
            None => Ok(()),
        }
    }

    /// Rounds to bytes, and checks what came of it: on the grid, inside the ball.
    fn deliver(&self, x: &[f32], x0: &[f32]) -> Result<Vec<f32>> {
        let levels = budget(self.eps);
        let out: Vec<f32> = x.iter().zip(x0).map(|(&x, &x0)| quantise(x, x0, levels)).collect();
        let far = |(d, x0): (&f32, &f32)| ((d - x0).abs() * 255.0).round() as i32 > levels;
        match out.iter().zip(x0).position(far) {
            Some(i) => Err(Error::Internal(format!("value {i} was rounded out of the ball"))),
            None => Ok(out),
        }
    }

    /// The target class of each sample, −1 for none.
    fn resolve(&self, labels: &[i64], logits: &[f32], k: usize) -> Result<Vec<i64>> {
        if k < 2 && self.targets != Targets::None {
            return Err(Error::data("targets", "a network with one class has nothing to aim at"));
        }
        let z = |i: usize| &logits[i * k..(i + 1) * k];
        // The first class, not the label, that no other one beats.
        let best = |i: usize, beats: fn(f32, f32) -> bool| {
            let others = (0..k).filter(|&c| c as i64 != labels[i]);
            others.reduce(|a, b| if beats(z(i)[b], z(i)[a]) { b } else { a }).expect("two classes or more") as i64
        };
        let each = |f: &dyn Fn(usize) -> i64| (0..labels.len()).map(f).collect();
        Ok(match &self.targets {
            Targets::None => vec![-1; labels.len()],
            Targets::Next => each(&|i| (labels[i] + 1) % k as i64),
            Targets::Random => each(&|i| {
                i64::from(random_target(self.seed, self.first_id.wrapping_add(i as u64), labels[i] as u32, k as u32))
            }),
            Targets::Second => each(&|i| best(i, |b, a| b > a)),
            Targets::LeastLikely => each(&|i| best(i, |b, a| b < a)),
            Targets::Classes(classes) => {
                if classes.len() != labels.len() {
                    let detail = format!("{} for {} samples", classes.len(), labels.len());
                    return Err(Error::data("targets", detail));
                }
                if let Some(i) = classes.iter().position(|&t| t < -1 || t >= k as i64) {
                    let detail = format!("target {} with {k} classes (−1 for none)", classes[i]);
                    return Err(Error::data(format!("sample {i}"), detail));
                }
                classes.clone()
            }
        })
    }
}

/// Labels must be classes.
pub(crate) fn check_labels(model: &Model, labels: &[i64]) -> Result<()> {
    let k = model.logits();
    match labels.iter().position(|&y| y < 0 || y >= k as i64) {
        Some(i) => Err(Error::data(format!("sample {i}"), format!("label {} with {k} classes", labels[i]))),
        None => Ok(()),
    }
}

/// Images in the host's memory, run by any engine.
struct OnHost<'a> {
    attack: &'a Attack,
    engine: &'a dyn Engine,
    images: &'a [f32],
    /// As attacked, from [`Pixels::clean`] on.
    clean: Vec<f32>,
    delivered: Vec<f32>,
}

impl Pixels for OnHost<'_> {
    fn clean(&mut self) -> Result<(Logits, f32)> {
        let bytes = self.attack.delivers_bytes();
        let (clean, snapped) = if bytes { snap(self.images) } else { (self.images.to_vec(), 0.0) };
        let mut first = self.engine.logits(&clean)?;
        for (health, image) in first.health.iter_mut().zip(clean.chunks(self.engine.model().input.len())) {
            // A network may never look at this pixel (a stride can pass it by), but the image is not sound.
            if !image.iter().all(|x| x.is_finite()) {
                health.0 |= Health::ACTIVATION.0;
            }
        }
        self.delivered = clean.clone();
        self.clean = clean;
        Ok((first, snapped))
    }

    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        judge: &mut dyn FnMut(usize, Tried<'_>) -> bool,
    ) -> Result<()> {
        let (attack, engine) = (self.attack, self.engine);
        let (one, k) = (engine.model().input.len(), engine.model().logits());
        let x0: Vec<f32> = rows.iter().flat_map(|&i| &self.clean[i * one..(i + 1) * one]).copied().collect();
        let (bounds, seed) = (attack.engine_bounds(), attack.seed);
        let moved = engine.iterate(&Job { x0: &x0, samples, steps: attack.steps, bounds, seed }, progress)?;
        let float = engine.logits(&moved.images)?;
        let (images, rounded) = if attack.delivers_bytes() {
            let images = attack.deliver(&moved.images, &x0)?;
            let rounded = engine.logits(&images)?;
            (images, rounded)
        } else {
            (moved.images, float.clone())
        };
        for (row, &i) in rows.iter().enumerate() {
            let z = row * k..(row + 1) * k;
            let tried = Tried {
                float: &float.logits[z.clone()],
                rounded: &rounded.logits[z],
                zero_gradients: moved.zero_gradients[row],
                health: Health(moved.health[row].0 | float.health[row].0 | rounded.health[row].0),
            };
            if judge(i, tried) {
                self.delivered[i * one..(i + 1) * one].copy_from_slice(&images[row * one..(row + 1) * one]);
            }
        }
        Ok(())
    }
}

/// −log softmax(z)[class], in f64 from f32 logits.
fn cross_entropy(z: &[f32], class: usize) -> f32 {
    let top = z.iter().fold(f64::MIN, |m, &z| m.max(f64::from(z)));
    let sum: f64 = z.iter().map(|&z| (f64::from(z) - top).exp()).sum();
    (sum.ln() - (f64::from(z[class]) - top)) as f32
}
