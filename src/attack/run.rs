//! One run of an attack: clean logits, targets, restarts, and the judgement of what is delivered. Where the pixels lie, on the
//! host or on the device, is [`Pixels`]' affair.

use super::logits::{argmax, cross_entropy, nth_but};
use super::random::random_target;
use super::{
    Attack, Engine, Health, Iterated, Job, Logits, Method, Norm, Outcome, Own, Perturbation, Sample, Targets, Trail,
    budget, budget_l2, put_on, quantise, quantise_l2, snap,
};
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

/// The images of a run, wherever they lie.
pub(crate) trait Pixels {
    /// Snaps the clean images to k/255 where bytes are delivered, and looks at them: their logits, and the largest move. From
    /// here on what would be delivered is the clean images.
    fn clean(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(Logits, f32)>;

    /// Takes an attack's steps with the images of `rows`. `verdict` is told of one after the other; where it says so the image,
    /// rounded where bytes are delivered, takes the place of what would have been delivered.
    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()>;
}

/// What decides over an attempt.
pub(crate) trait Verdict {
    /// Whether these logits are what the attack on row `i` is after: then it may stop.
    fn is_hit(&self, i: usize, logits: &[f32]) -> bool;

    /// What became of row `i`; whether its image is to be delivered.
    fn judge(&mut self, i: usize, tried: Tried<'_>) -> bool;
}

/// What became of one row in one restart.
pub(crate) struct Tried<'a> {
    /// Logits of the last iterate.
    pub float: &'a [f32],
    /// Logits of what would be delivered.
    pub rounded: &'a [f32],
    /// Steps taken.
    pub steps: u32,
    pub zero_gradients: u64,
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
    /// run by answering `false`. It is told of 0 where it is only asked whether to go on: while another thread has the engine, and
    /// before each chunk of images that is classified.
    ///
    /// The total is samples × steps × [`Attack::attempts`] at most, which is the number of restarts, for `apgd-t` and `fab-t` times
    /// that of the classes aimed at: samples that are not attacked take no steps, and a sample that has succeeded is not tried
    /// again.
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
        check_images(model, images, labels.len())?;
        check_labels(model, labels)?;
        self.check_pixels(images, one, 0)?;
        if self.needs_fit() {
            let mut source = |range: Range<usize>| Ok(images[range.start * one..range.end * one].to_vec());
            let fitted = self.fit(engine, labels, labels.len(), &mut source, progress)?;
            return self.clone().perturbation(fitted).run_with(engine, images, labels, progress);
        }
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
        self.check_perturbation(model.input.len())?;
        if u64::from(self.steps) * model.input.len() as u64 > u64::from(u32::MAX) {
            return Err(Error::Usage(format!("{} steps are more than can be counted", self.steps)));
        }
        let attempts = self.countable_attempts(k)?;
        if !self.own.is_empty() && self.own.len() != n {
            return Err(Error::Usage(format!(
                "{} samples have an eps of their own, but there are {n}",
                self.own.len()
            )));
        }
        let (Logits { logits: clean_logits, health }, snapped) = pixels.clean(progress)?;
        let targets = self.resolve(labels, &clean_logits, k)?;
        let is_targeted = self.method.chooses_targets() || targets.iter().any(|t| *t >= 0);
        self.loss.check(k, is_targeted)?;
        let row = |i: usize| i * k..(i + 1) * k;
        let clean_correct: Vec<bool> =
            (0..n).map(|i| health[i].is_healthy() && argmax(&clean_logits[row(i)]) as i64 == labels[i]).collect();
        let mut judge = Judge {
            k,
            labels,
            attempt: 0,
            attacked: (0..n).map(|i| clean_correct[i] && targets[i] != labels[i]).collect(),
            adversarial_logits: clean_logits.clone(),
            float_logits: clean_logits.clone(),
            loss: Vec::new(),
            zero_gradients: vec![0; n],
            attempts: vec![0; n],
            steps_taken: vec![0; n],
            float_success: vec![false; n],
            health,
            still_open: Vec::new(),
            targets,
        };
        judge.loss = (0..n).map(|i| cross_entropy(&clean_logits[row(i)], judge.goal(i))).collect();

        // Only the rows that still have something to gain are run; what a row becomes does not depend on the others.
        let moves = |i: &usize| judge.attacked[*i] || (self.attack_all && judge.targets[*i] != labels[*i]);
        let mut open: Vec<usize> = (0..n).filter(moves).collect();
        for attempt in 0..attempts {
            if open.is_empty() {
                break;
            }
            let samples: Vec<Sample> = open
                .iter()
                .map(|&i| {
                    let aim = self.method.chooses_targets().then(|| {
                        nth_but(&clean_logits[row(i)], labels[i] as usize, (attempt / self.restarts) as usize)
                    });
                    self.sample(i, labels[i], judge.targets[i], aim, attempt)
                })
                .collect();
            judge.attempt = attempt;
            pixels.attempt(&open, &samples, progress, &mut judge)?;
            open = std::mem::take(&mut judge.still_open);
            open.sort_unstable();
        }

        let success = |logits: &[f32]| {
            (0..n).map(|i| judge.health[i].is_healthy() && judge.is_hit(i, &logits[row(i)])).collect::<Vec<_>>()
        };
        let bytes = self.delivers_bytes() && self.norm == Norm::Linf;
        Ok(Outcome {
            clean: Vec::new(),
            snapped,
            adversarial: Vec::new(),
            linf: Vec::new(),
            l2: Vec::new(),
            success: success(&judge.adversarial_logits),
            success_float: success(&judge.float_logits),
            loss: judge.loss,
            effective_eps: if bytes { budget(self.eps) as f32 / 255.0 } else { self.eps },
            labels: labels.to_vec(),
            targets: judge.targets,
            clean_logits,
            adversarial_logits: judge.adversarial_logits,
            float_logits: judge.float_logits,
            clean_correct,
            attacked: judge.attacked,
            zero_gradients: judge.zero_gradients,
            restart: judge.attempts,
            steps_taken: judge.steps_taken,
            health: judge.health,
            perturbation: self.perturbation.as_ref().map(|p| p.values.clone()),
        })
    }

    /// How often a sample is tried at most ([`Attack::attempts`]); a sample's restart is one word.
    fn countable_attempts(&self, classes: usize) -> Result<u32> {
        let attempts = self.attempts(classes);
        u32::try_from(attempts).map_err(|_| {
            let aims = attempts / u64::from(self.restarts);
            Error::Usage(format!("{} restarts for each of {aims} classes are more than can be counted", self.restarts))
        })
    }

    /// What sample `i` has for itself in an attempt; `aim` is the class that the method chose for it.
    pub(super) fn sample(&self, i: usize, label: i64, target: i64, aim: Option<usize>, attempt: u32) -> Sample {
        let shared =
            || Own { id: self.first_id.wrapping_add(i as u64), eps: self.eps, step_size: self.effective_step_size() };
        let own = self.own.get(i).copied().unwrap_or_else(shared);
        let starts_clean = self.method.begins_clean() && attempt.is_multiple_of(self.restarts);
        Sample {
            class: aim.unwrap_or(if target < 0 { label } else { target } as usize) as u32,
            // A data set has fewer than 2^32 samples.
            id: own.id as u32,
            restart: attempt,
            start: u32::from(self.random_start && !starts_clean),
            eps: own.eps,
            step_size: own.step_size,
            direction: if aim.is_some() || target >= 0 { -1.0 } else { 1.0 },
            levels: match self.norm {
                Norm::Linf => budget(own.eps) as u32,
                Norm::L2 => budget_l2(own.eps),
            },
            label: label as u32,
            aimed: u32::from(target >= 0),
            momentum: self.momentum,
            steps: self.steps,
            stretch: self.stretch.unwrap_or(self.steps),
            ..Sample::default()
        }
    }

    /// All steps of an attempt, from the beginning.
    pub(crate) fn job<'a>(&self, x0: &'a [f32], samples: &'a [Sample]) -> Job<'a> {
        Job {
            rule: self.rule(),
            loss: self.loss,
            bounds: self.engine_bounds(),
            seed: self.seed,
            ..Job::new(x0, samples, self.steps)
        }
    }

    /// Whether all images share a perturbation that is still to be found.
    pub(crate) fn needs_fit(&self) -> bool {
        self.method.shares_perturbation() && self.perturbation.is_none()
    }

    /// The perturbation that is put on images.
    pub(crate) fn given(&self) -> Option<&Perturbation> {
        self.perturbation.as_ref()
    }

    /// Clean images as they are attacked: snapped to k/255 where bytes are delivered; and the largest move.
    pub(super) fn as_attacked(&self, images: &[f32]) -> (Vec<f32>, f32) {
        if self.delivers_bytes() { snap(images) } else { (images.to_vec(), 0.0) }
    }

    /// Whether a sample stops once it has succeeded.
    pub(crate) fn stops_early(&self) -> bool {
        self.early_stop
    }

    /// The steps after which it is looked at; the last is the last step.
    fn stops(&self) -> Vec<u32> {
        let shares: &[u64] = match self.method {
            // It proposes nothing more for a sample that has succeeded: to stop changes no bit, and saves most of its steps.
            Method::Square => &[2, 5, 10, 20, 40, 70, 100],
            _ if self.early_stop => &[10, 20, 40, 70, 100],
            _ => &[100],
        };
        let mut stops: Vec<u32> = shares.iter().map(|s| (u64::from(self.steps) * s).div_ceil(100) as u32).collect();
        stops.dedup();
        stops
    }

    /// Smallest and largest pixel for an engine, which knows no absence of bounds.
    pub(crate) fn engine_bounds(&self) -> (f32, f32) {
        self.bounds.unwrap_or((f32::MIN, f32::MAX))
    }

    /// Whether pixels must lie within bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bounds.is_some()
    }

    /// Pixels must lie within the bounds; NaN is the sample's own affair.
    pub(super) fn check_pixels(&self, images: &[f32], one: usize, first: usize) -> Result<()> {
        let Some((lo, hi)) = self.bounds else { return Ok(()) };
        match images.iter().position(|&x| x < lo || x > hi) {
            Some(i) => Err(Error::data(
                format!("sample {}", first + i / one),
                format!("pixel value {} is outside of the bounds {lo} to {hi}", images[i]),
            )),
            None => Ok(()),
        }
    }

    /// Rounds one image to bytes, and checks what came of it: on the grid, inside the ball.
    fn deliver(&self, x: &[f32], x0: &[f32], sample: &Sample) -> Result<Vec<f32>> {
        let moved = |out: &[f32]| out.iter().zip(x0).map(|(d, x0)| ((d - x0).abs() * 255.0).round() as u64).collect();
        let squares = |levels: &[u64]| levels.iter().map(|d| d.saturating_mul(*d)).fold(0, u64::saturating_add);
        let (out, far): (_, bool) = match self.norm {
            Norm::Linf => {
                let out: Vec<f32> = x.iter().zip(x0).map(|(&x, &x0)| quantise(x, x0, sample.levels as i32)).collect();
                let levels: Vec<u64> = moved(&out);
                (out, levels.iter().any(|d| *d > u64::from(sample.levels)))
            }
            Norm::L2 => {
                let out = quantise_l2(x, x0, sample.levels);
                let levels: Vec<u64> = moved(&out);
                (out, sample.levels < u32::MAX && squares(&levels) > u64::from(sample.levels))
            }
        };
        if far {
            return Err(Error::Internal(format!("the image of sample {} was rounded out of its ball", sample.id)));
        }
        Ok(out)
    }

    /// The target class of each sample, −1 for none.
    pub(super) fn resolve(&self, labels: &[i64], logits: &[f32], k: usize) -> Result<Vec<i64>> {
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
                let id = self.own.get(i).map_or(self.first_id.wrapping_add(i as u64), |own| own.id);
                i64::from(random_target(self.seed, id, labels[i] as u32, k as u32))
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

/// Images must be as many as there are labels.
pub(super) fn check_images(model: &Model, images: &[f32], n: usize) -> Result<()> {
    let one = model.input.len();
    if images.len() == n * one {
        return Ok(());
    }
    let detail = format!("{} values for {n} labels, but an image is {} = {one}", images.len(), model.input);
    Err(Error::data("images", detail))
}

/// What the network says of clean images.
pub(super) fn look_at_clean(
    engine: &dyn Engine,
    clean: &[f32],
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Logits> {
    let mut seen = engine.logits_with(clean, progress)?;
    for (health, image) in seen.health.iter_mut().zip(clean.chunks(engine.model().input.len())) {
        // A network may never look at this pixel (a stride can pass it by), but the image is not sound.
        if !image.iter().all(|x| x.is_finite()) {
            health.0 |= Health::ACTIVATION.0;
        }
    }
    Ok(seen)
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
    fn clean(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(Logits, f32)> {
        let (clean, snapped) = self.attack.as_attacked(self.images);
        let first = look_at_clean(self.engine, &clean, progress)?;
        self.delivered = clean.clone();
        self.clean = clean;
        Ok((first, snapped))
    }

    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()> {
        if let Some(perturbation) = self.attack.given() {
            return self.share(perturbation, rows, samples, progress, verdict);
        }
        let (one, k) = (self.engine.model().input.len(), self.engine.model().logits());
        // Places in `rows` that are still on their way, and what has become of them so far.
        let mut open: Vec<usize> = (0..rows.len()).collect();
        let mut zero_gradients = vec![0_u64; rows.len()];
        let mut health = vec![Health::default(); rows.len()];
        let mut trail: Option<Trail> = None;
        let stops = self.attack.stops();
        for (at, &end) in stops.iter().enumerate() {
            let x0: Vec<f32> = open.iter().flat_map(|&p| &self.clean[rows[p] * one..][..one]).copied().collect();
            let samples: Vec<Sample> = open.iter().map(|&p| samples[p]).collect();
            let steps = end - at.checked_sub(1).map_or(0, |before| stops[before]);
            let is_last = end == self.attack.steps;
            let job = Job { steps, from: trail.as_ref(), goes_on: !is_last, ..self.attack.job(&x0, &samples) };
            let moved = self.engine.iterate(&job, progress)?;
            let seen = self.see(&moved, &x0, &samples, progress)?;
            let mut left = Vec::new();
            for (place, &p) in open.iter().enumerate() {
                let i = rows[p];
                zero_gradients[p] += u64::from(moved.zero_gradients[place]);
                health[p].0 |= moved.health[place].0 | seen.float.health[place].0 | seen.rounded.health[place].0;
                let z = place * k..(place + 1) * k;
                let rounded = &seen.rounded.logits[z.clone()];
                let may_stop = health[p].is_healthy() && verdict.is_hit(i, rounded);
                if !is_last && !may_stop {
                    left.push(place);
                    continue;
                }
                let float = &seen.float.logits[z];
                let tried = Tried { float, rounded, steps: end, zero_gradients: zero_gradients[p], health: health[p] };
                if verdict.judge(i, tried) {
                    self.delivered[i * one..][..one].copy_from_slice(&seen.images[place * one..][..one]);
                }
            }
            if left.is_empty() {
                break;
            }
            trail = moved.trail.map(|t| t.select(&left));
            open = left.iter().map(|&place| open[place]).collect();
        }
        Ok(())
    }
}

/// Iterates as they would be delivered, and what the network says of them.
struct Seen {
    images: Vec<f32>,
    float: Logits,
    rounded: Logits,
}

impl OnHost<'_> {
    /// Puts one perturbation on the images of `rows`.
    fn share(
        &mut self,
        perturbation: &Perturbation,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()> {
        let (one, k) = (self.engine.model().input.len(), self.engine.model().logits());
        let x0: Vec<f32> = rows.iter().flat_map(|i| &self.clean[i * one..][..one]).copied().collect();
        let bounds = self.attack.engine_bounds();
        let images = x0.chunks(one).flat_map(|x0| put_on(x0, &perturbation.values, bounds)).collect();
        let moved = Iterated { images, ..Iterated::default() };
        let seen = self.see(&moved, &x0, samples, progress)?;
        for (place, &i) in rows.iter().enumerate() {
            let (steps, zero_gradients, health) = perturbation.met(i);
            let [float, rounded] = [&seen.float, &seen.rounded].map(|z| &z.logits[place * k..(place + 1) * k]);
            let health = Health(health.0 | seen.float.health[place].0 | seen.rounded.health[place].0);
            let tried = Tried { float, rounded, steps: steps as u32, zero_gradients, health };
            if verdict.judge(i, tried) {
                self.delivered[i * one..][..one].copy_from_slice(&seen.images[place * one..][..one]);
            }
        }
        Ok(())
    }

    fn see(
        &self,
        moved: &Iterated,
        x0: &[f32],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Seen> {
        let one = self.engine.model().input.len();
        let float = self.engine.logits_with(&moved.images, progress)?;
        if !self.attack.delivers_bytes() {
            return Ok(Seen { images: moved.images.clone(), rounded: float.clone(), float });
        }
        let pairs = moved.images.chunks(one).zip(x0.chunks(one)).zip(samples);
        let images = pairs.map(|((x, x0), s)| self.attack.deliver(x, x0, s)).collect::<Result<Vec<_>>>()?.concat();
        Ok(Seen { rounded: self.engine.logits_with(&images, progress)?, images, float })
    }
}

/// Keeps, for each row, the best attempt so far.
struct Judge<'a> {
    k: usize,
    labels: &'a [i64],
    targets: Vec<i64>,
    attacked: Vec<bool>,
    /// Which attempt is under way.
    attempt: u32,
    adversarial_logits: Vec<f32>,
    float_logits: Vec<f32>,
    loss: Vec<f32>,
    zero_gradients: Vec<u64>,
    attempts: Vec<u32>,
    steps_taken: Vec<u64>,
    float_success: Vec<bool>,
    health: Vec<Health>,
    /// Rows for which another attempt is worth while.
    still_open: Vec<usize>,
}

impl Judge<'_> {
    /// The class whose cross-entropy tells attempts that fail apart.
    fn goal(&self, i: usize) -> usize {
        (if self.targets[i] < 0 { self.labels[i] } else { self.targets[i] }) as usize
    }
}

impl Verdict for Judge<'_> {
    fn is_hit(&self, i: usize, logits: &[f32]) -> bool {
        let predicted = argmax(logits) as i64;
        self.attacked[i] && if self.targets[i] < 0 { predicted != self.labels[i] } else { predicted == self.targets[i] }
    }

    fn judge(&mut self, i: usize, tried: Tried<'_>) -> bool {
        let row = i * self.k..(i + 1) * self.k;
        self.steps_taken[i] += u64::from(tried.steps);
        self.zero_gradients[i] += tried.zero_gradients;
        self.health[i].0 |= tried.health.0;
        let success = self.health[i].is_healthy() && self.is_hit(i, tried.rounded);
        let after = cross_entropy(tried.rounded, self.goal(i));
        let is_higher = if self.targets[i] < 0 { after > self.loss[i] } else { after < self.loss[i] };
        let keep = self.attempt == 0 || success || is_higher;
        let float_hit = self.is_hit(i, tried.float);
        if !self.float_success[i] && (float_hit || keep) {
            self.float_logits[row.clone()].copy_from_slice(tried.float);
            self.float_success[i] = float_hit;
        }
        if keep {
            self.adversarial_logits[row].copy_from_slice(tried.rounded);
            (self.loss[i], self.attempts[i]) = (after, self.attempt);
        }
        if !success && self.health[i].is_healthy() {
            self.still_open.push(i);
        }
        keep
    }
}
