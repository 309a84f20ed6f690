//! One run of an attack: clean logits, targets, steps, rounding, and the judgement of what is delivered.

use super::random::random_target;
use super::{Attack, Engine, Health, Job, Outcome, Sample, Targets, argmax, budget, quantise, snap};
use crate::error::{Error, Result};

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
    /// run by answering `false`.
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
        let (one, k, n) = (model.input.len(), model.logits(), labels.len());
        if images.len() != n * one {
            let detail = format!("{} values for {n} labels, but an image is {} = {one}", images.len(), model.input);
            return Err(Error::data("images", detail));
        }
        if let Some(i) = labels.iter().position(|&y| y < 0 || y >= k as i64) {
            return Err(Error::data(format!("sample {i}"), format!("label {} with {k} classes", labels[i])));
        }
        self.check_pixels(images, one)?;

        let bytes = self.delivers_bytes();
        let (clean, snapped) = if bytes { snap(images) } else { (images.to_vec(), 0.0) };
        let first = engine.logits(&clean)?;
        let mut health = first.health;
        for (health, image) in health.iter_mut().zip(clean.chunks(one)) {
            // A network may never look at this pixel (a stride can pass it by), but the image is not sound.
            if !image.iter().all(|x| x.is_finite()) {
                health.0 |= Health::ACTIVATION.0;
            }
        }
        let clean_logits = first.logits;
        let targets = self.resolve(labels, &clean_logits, k)?;
        let right = |logits: &[f32], i: usize| argmax(&logits[i * k..(i + 1) * k]) as i64 == labels[i];
        let clean_correct: Vec<bool> = (0..n).map(|i| health[i].is_healthy() && right(&clean_logits, i)).collect();
        let attacked: Vec<bool> = (0..n).map(|i| clean_correct[i] && targets[i] != labels[i]).collect();

        // Only the rows that move are run; what a row becomes does not depend on the others.
        let moves = |i: &usize| attacked[*i] || (self.attack_all && targets[*i] != labels[*i]);
        let rows: Vec<usize> = (0..n).filter(moves).collect();
        let gather = |from: &[f32]| -> Vec<f32> {
            rows.iter().flat_map(|&i| from[i * one..(i + 1) * one].iter().copied()).collect()
        };
        let x0 = gather(&clean);
        let samples: Vec<Sample> = rows
            .iter()
            .map(|&i| Sample {
                class: if targets[i] < 0 { labels[i] } else { targets[i] } as u32,
                eps: self.eps,
                step_size: self.effective_step_size(),
                direction: if targets[i] < 0 { 1.0 } else { -1.0 },
            })
            .collect();
        let bounds = self.bounds.unwrap_or((f32::MIN, f32::MAX));
        let moved = engine.iterate(&Job { x0: &x0, samples: &samples, steps: self.steps, bounds }, progress)?;
        let delivered = if bytes { self.deliver(&moved.images, &x0)? } else { moved.images.clone() };
        let float = engine.logits(&moved.images)?;
        let last = if bytes { engine.logits(&delivered)? } else { float.clone() };

        let mut adversarial = clean.clone();
        let mut adversarial_logits = clean_logits.clone();
        let mut float_logits = clean_logits.clone();
        let mut zero_gradients = vec![0; n];
        for (row, &i) in rows.iter().enumerate() {
            adversarial[i * one..(i + 1) * one].copy_from_slice(&delivered[row * one..(row + 1) * one]);
            adversarial_logits[i * k..(i + 1) * k].copy_from_slice(&last.logits[row * k..(row + 1) * k]);
            float_logits[i * k..(i + 1) * k].copy_from_slice(&float.logits[row * k..(row + 1) * k]);
            zero_gradients[i] = moved.zero_gradients[row];
            health[i] = Health(health[i].0 | moved.health[row].0 | float.health[row].0 | last.health[row].0);
        }
        let success = |logits: &[f32]| -> Vec<bool> {
            let hit = |i: usize| match targets[i] {
                t if t < 0 => !right(logits, i),
                t => argmax(&logits[i * k..(i + 1) * k]) as i64 == t,
            };
            (0..n).map(|i| attacked[i] && health[i].is_healthy() && hit(i)).collect()
        };
        let class = |i: usize| if targets[i] < 0 { labels[i] } else { targets[i] } as usize;
        let distance = |i: usize| (i * one..(i + 1) * one).map(|p| f64::from(adversarial[p]) - f64::from(clean[p]));
        Ok(Outcome {
            snapped,
            success: success(&adversarial_logits),
            success_float: success(&float_logits),
            loss: (0..n).map(|i| cross_entropy(&adversarial_logits[i * k..(i + 1) * k], class(i))).collect(),
            linf: (0..n).map(|i| distance(i).fold(0.0, |m, d| f64::max(m, d.abs())) as f32).collect(),
            l2: (0..n).map(|i| distance(i).map(|d| d * d).sum::<f64>().sqrt() as f32).collect(),
            effective_eps: if bytes { budget(self.eps) as f32 / 255.0 } else { self.eps },
            labels: labels.to_vec(),
            clean,
            adversarial,
            targets,
            clean_logits,
            adversarial_logits,
            float_logits,
            clean_correct,
            attacked,
            zero_gradients,
            health,
        })
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

/// −log softmax(z)[class], in f64 from f32 logits.
fn cross_entropy(z: &[f32], class: usize) -> f32 {
    let top = z.iter().fold(f64::MIN, |m, &z| m.max(f64::from(z)));
    let sum: f64 = z.iter().map(|&z| (f64::from(z) - top).exp()).sum();
    (sum.ln() - (f64::from(z[class]) - top)) as f32
}
