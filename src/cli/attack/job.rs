//! A run that is under way: what its folder does not hold yet, one chunk of images after the other.

use crate::attack::{Attack, Outcome, Own, Rung, Targets};
use crate::cli::defaults::default_step;
use crate::cli::engine::Runner;
use crate::cli::forecast;
use crate::cli::images::Images;
use crate::cli::interrupt::Interrupt;
use crate::cli::tell::{complain, counted, progress_bar};
use crate::error::{Error, Result};
use crate::report::{Config, Distance, Folder};
use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What Ctrl-C brings about.
const STOPPING: &str = "the run ends when the images under way are kept";

/// A run that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(5);

/// A run that is under way.
pub(super) struct Job {
    pub attack: Attack,
    pub targets: Targets,
    pub images: Images,
    pub config: Config,
    pub runner: Runner,
    pub folder: Folder,
    /// The sample after the last one.
    pub end: usize,
    /// Whether steps have the length that was asked for, whatever the radius.
    pub step_is_given: bool,
    pub interrupt: Interrupt,
}

impl Job {
    /// Steps that a sample takes at most.
    fn steps_each(&self) -> u64 {
        self.config.steps_each(self.runner.engine().model().logits())
    }

    /// Samples that the folder holds.
    pub fn done(&self) -> usize {
        self.folder.parts().iter().map(|p| p.end - p.first).sum()
    }

    /// Attacks what is left, and keeps each chunk that has ended.
    pub fn attack_all_chunks(&mut self, memory: u64, chunk: Option<usize>) -> Result<()> {
        let (left, mut steps) = (self.end - self.folder.next(), self.steps_each());
        let is_shared = self.config.method.shares_perturbation();
        let needs_fit = is_shared && self.folder.perturbation().is_none();
        if left == 0 && !needs_fit {
            return Ok(());
        }
        let rows = forecast::images_in(memory, self.images.source.dims.len(), self.runner.engine().model().logits());
        let held = (rows / self.config.rows_each()).max(1);
        let first = if needs_fit { 0 } else { self.folder.next() };
        let step = self.step_time(first, held)?;
        if is_shared {
            if needs_fit {
                self.announce(step, self.end);
                self.fit(held)?;
            }
            // All that is left is to put it on images.
            steps = 0;
        } else {
            self.announce(step, left);
        }
        let chunk = match chunk {
            Some(n) => n.min(held),
            None => forecast::chunk(held, self.runner.batch(), step, steps),
        };
        let bar = progress_bar((self.done() + left) as u64 * steps, self.done() as u64 * steps);
        let result = self.chunks(chunk, steps, &bar);
        bar.finish_and_clear();
        result
    }

    /// Fits one perturbation to all images, of which `held` may be in memory at once, and keeps it.
    fn fit(&mut self, held: usize) -> Result<()> {
        let (end, bounds) = (self.end, self.config.bounds);
        let bar = progress_bar(end as u64 * self.steps_each(), 0);
        let (compiled, start) = (self.runner.compile_time(), Instant::now());
        let attack = self.attack.clone().targets(self.targets.clone());
        let labels = self.images.source.labels[..end].to_vec();
        // What fits is read once, and else in every step.
        let (images, one) = (&mut self.images, self.runner.engine().model().input.len());
        let all = if end <= held { Some(images.pixels(0..end, bounds)?) } else { None };
        let mut source = |range: Range<usize>| match &all {
            Some(all) => Ok(all[range.start * one..range.end * one].to_vec()),
            None => images.pixels(range, bounds),
        };
        let interrupt = &self.interrupt;
        let mut progress = |steps| {
            bar.inc(steps);
            !interrupt.is_asked("the perturbation is given up")
        };
        let fitted = attack.fit(self.runner.engine(), &labels, held, &mut source, &mut progress);
        bar.finish_and_clear();
        let fitted = fitted?;
        if let Some((sample, health)) = fitted.health.iter().enumerate().find(|(_, h)| !h.is_healthy()) {
            return Err(Error::NonFinite { sample, stage: health.describe().into() });
        }
        let time = start.elapsed().saturating_sub(self.runner.compile_time().saturating_sub(compiled));
        self.folder.keep(fitted, time)
    }

    /// Measures on the images from `first` on.
    fn step_time(&mut self, first: usize, held: usize) -> Result<Duration> {
        let n = (self.end - first).min(held).min(forecast::PROBE);
        let pixels = self.pixels(first, first + n)?;
        let labels = &self.images.source.labels[first..first + n];
        forecast::step_time(&self.runner, &self.attack, &pixels, labels)
    }

    fn announce(&self, step: Duration, left: usize) {
        let c = &self.config;
        let time = forecast::duration(step, left, self.steps_each());
        if time > LONG || std::io::stderr().is_terminal() {
            let more = if self.done() > 0 { "more " } else { "" };
            let steps = counted(c.steps.into(), "step", "steps");
            let images = if left == 1 { "image" } else { "images" };
            let restarts = if c.restarts == 1 { String::new() } else { format!(" × at most {} restarts", c.restarts) };
            let radii = match &c.ladder {
                Some(ladder) => format!(" × at most {} radii", ladder.rounds()),
                None if c.radii.is_empty() => String::new(),
                None => format!(" × {} radii", c.radii.len()),
            };
            let time = forecast::words(time);
            complain("note", &format!("about {time} for {left} {more}{images} × {steps}{restarts}{radii}"));
        }
    }

    fn chunks(&mut self, chunk: usize, steps: u64, bar: &ProgressBar) -> Result<()> {
        while self.folder.next() < self.end {
            if self.interrupt.is_asked(STOPPING) {
                return Err(Error::Cancelled);
            }
            let first = self.folder.next();
            let end = (first + chunk).min(self.end);
            let (outcome, rungs, time) = self.attack(first, end, bar)?;
            bar.set_position(self.done() as u64 * steps + (end - first) as u64 * steps);
            self.folder.add(&outcome, &rungs, time)?;
        }
        Ok(())
    }

    /// Attacks the samples from `first` to `end`, each with all its radii; gives the rung of the ladder that each was
    /// turned on, if there is one, and the time that it took, without the compilation of kernels.
    fn attack(&mut self, first: usize, end: usize, bar: &ProgressBar) -> Result<Attacked> {
        let (pixels, compiled) = (self.pixels(first, end)?, self.runner.compile_time());
        let (config, engine) = (&self.config, self.runner.engine());
        let each = config.rows_each();
        let labels = repeated(&self.images.source.labels[first..end], 1, each);
        let targets = match &self.targets {
            Targets::Classes(classes) => Targets::Classes(repeated(&classes[first..end], 1, each)),
            rule => rule.clone(),
        };
        let mut progress = |steps| {
            bar.inc(steps);
            self.interrupt.is_asked(STOPPING);
            true
        };
        let mut attack = self.attack.clone().first_id(first as u64).targets(targets);
        if let Some(perturbation) = self.folder.perturbation() {
            attack = attack.perturbation(perturbation.part(first..end));
        }
        let start = Instant::now();
        let (outcome, rungs) = if let Some(ladder) = &config.ladder {
            let rungs: Vec<Rung> =
                (1..=ladder.rungs).map(|k| rung(config, &ladder.radius(k), self.step_is_given)).collect();
            let found = attack.least(engine, &pixels, &labels, &rungs, &mut progress)?;
            (found.outcome, found.rungs)
        } else if config.radii.is_empty() {
            (attack.run_with(engine, &pixels, &labels, &mut progress)?, Vec::new())
        } else {
            let own = |i: usize| {
                config.radii.iter().map(move |r| Own {
                    id: i as u64,
                    eps: r.eps.value as f32,
                    step_size: r.step_size.value as f32,
                })
            };
            let attack = attack.each((first..end).flat_map(own).collect());
            let pixels = repeated(&pixels, self.images.source.dims.len(), each);
            (attack.run_with(engine, &pixels, &labels, &mut progress)?, Vec::new())
        };
        let time = start.elapsed().saturating_sub(self.runner.compile_time().saturating_sub(compiled));
        match outcome.first_unhealthy() {
            None => Ok((outcome, rungs, time)),
            Some(_) if config.keep_going => {
                let (mut outcome, mut rungs) = (outcome, rungs);
                outcome.withhold_unhealthy();
                let marked = rungs.iter_mut().zip(&outcome.health).filter(|(_, health)| !health.is_healthy());
                marked.for_each(|(rung, _)| *rung = None);
                Ok((outcome, rungs, time))
            }
            Some((i, health)) => Err(Error::NonFinite { sample: first + i / each, stage: health.describe().into() }),
        }
    }

    fn pixels(&mut self, first: usize, end: usize) -> Result<Vec<f32>> {
        self.images.pixels(first..end, self.config.bounds)
    }
}

/// What came of a chunk, where on the ladder each of its samples was turned, and how long it took.
type Attacked = (Outcome, Vec<Option<usize>>, Duration);

/// Each item, of `size` values, `times` times over.
fn repeated<T: Copy>(values: &[T], size: usize, times: usize) -> Vec<T> {
    if times == 1 {
        return values.to_vec();
    }
    values.chunks(size).flat_map(|item| item.repeat(times)).collect()
}

/// A radius of the ladder, with the step that a run of its own would have.
fn rung(config: &Config, eps: &Distance, step_is_given: bool) -> Rung {
    let step = if step_is_given { config.step_size.clone() } else { default_step(config.method, eps, config.steps) };
    Rung { eps: eps.value as f32, step_size: step.value as f32 }
}
