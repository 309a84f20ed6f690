//! `signstep attack`: fills in defaults, checks that model, data and request fit together, and runs what the folder
//! does not hold yet, one chunk of images after the other.

use super::engine::{Place, PlaceArgs, Runner};
use super::flags::{bounds, bytes, distance, distances, named, positive};
use super::images::{DataArgs, Images, load_images};
use super::interrupt::Interrupt;
use super::network::{NetworkArgs, load_model};
use super::tell::{AnswerArgs, complain, tell, warn};
use super::{apart, forecast};
use crate::attack::{Attack, Loss, Method, Norm, Outcome, Own, Rung, Targets};
use crate::data;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::{self, Config, Distance, Folder, Identity, Ladder, Opened, RUN_NAMES, Radius, Report, Shard};
use clap::{Args, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What `attack` can be told. Distances are in pixel units of [0, 1], as decimals or fractions (8/255).
#[derive(Args, Debug)]
pub(super) struct AttackArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<usize>,
    /// Attack: fgsm, ifgsm, pgd, mifgsm, nifgsm, apgd, apgd-t, fab-t, square, or uap (one perturbation for all images)
    #[arg(long, value_name = "NAME", default_value = "ifgsm", help_heading = "Attack")]
    method: String,
    /// What eps is measured in: linf, the largest change of any pixel value, or l2, the Euclidean length of the change
    #[arg(long, value_name = "NAME", default_value = "linf", help_heading = "Attack")]
    norm: String,
    /// Class to aim at: none (untargeted), random, next, least-likely, second, or a file with one class a line
    /// (-1: none) [default: random; for apgd-t and fab-t: none, they aim at one class after the other; for uap: none]
    #[arg(long, value_name = "RULE|FILE", help_heading = "Attack")]
    targets: Option<String>,
    /// Any class but the label will do: the same as --targets none
    #[arg(long, conflicts_with = "targets", help_heading = "Attack")]
    untargeted: bool,
    /// What is followed: ce (cross-entropy), margin (Carlini & Wagner) or dlr (difference of logits ratio) [default:
    /// ce; for apgd-t: dlr; for square: margin; fab-t follows the difference of two logits]
    #[arg(long, value_name = "NAME", help_heading = "Attack")]
    loss: Option<String>,
    /// Radius in the norm, or inf; several with commas between them, 0 among them, are run at once, with a row for each
    /// image and radius [default: what the weights suggest for linf, else 8/255; for l2: 0.5]
    #[arg(long, value_name = "DISTANCE[,…]", allow_hyphen_values = true, help_heading = "Attack")]
    eps: Option<String>,
    /// Find the smallest radius up to eps that turns each image, by bisection: in whole grey levels, or in l2 and
    /// without 8-bit values in 64ths of eps
    #[arg(long, help_heading = "Attack")]
    min_eps: bool,
    /// Step length [default: 2.5·eps/steps; for fgsm: eps; for mifgsm and nifgsm: eps/steps; for apgd and apgd-t, of
    /// the first step: 2·eps; fab-t and square have none]
    #[arg(
        long,
        visible_aliases = ["alpha", "eps-step"],
        value_name = "DISTANCE",
        allow_hyphen_values = true,
        help_heading = "Attack"
    )]
    step_size: Option<String>,
    /// Number of steps [default: 10; for fgsm: 1; for apgd, apgd-t and fab-t: 100; for square: 5000]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    steps: Option<u32>,
    /// How often an image is tried from another random start, until it is turned (pgd, apgd, apgd-t, fab-t,
    /// square) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    restarts: Option<u32>,
    /// Begin at the clean image (pgd, apgd, apgd-t, square; fab-t does so anyway, but for further restarts)
    #[arg(long, help_heading = "Attack")]
    no_random_start: bool,
    /// Share of the accumulated gradient that is kept, from 0 to 1 (mifgsm, nifgsm) [default: 1]
    #[arg(long, value_name = "F", allow_hyphen_values = true, help_heading = "Attack")]
    momentum: Option<f32>,
    /// Stop with an image once it is turned as delivered: looked at after a tenth of the steps, two, four and seven
    #[arg(long, help_heading = "Attack")]
    early_stop: bool,
    /// Smallest and largest pixel value, or none for inputs that are no pixels; files of images hold values in [0, 1]
    /// whatever they are
    #[arg(long, value_name = "LO,HI|none", default_value = "0,1", allow_hyphen_values = true, help_heading = "Attack")]
    bounds: String,
    /// Deliver floats instead of 8-bit values
    #[arg(long, alias = "no-quantise", help_heading = "Attack")]
    no_quantize: bool,
    /// Attack images that the network gets wrong when clean as well
    #[arg(long, help_heading = "Attack")]
    attack_all: bool,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Attack")]
    seed: u64,
    /// Deliver images in which NaN or infinity arises as they were, marked in the tensor `health`, in place of ending
    /// with exit code 7; the others are as they would be without them
    #[arg(long, help_heading = "Attack")]
    keep_going: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Largest number of images that run at once; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N", help_heading = "Running")]
    batch: Option<usize>,
    /// Largest memory on the host, and as much on the device, weights included: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G", help_heading = "Running")]
    memory: String,
    /// Largest number of images between two savings; results do not depend on it [default: what memory holds and half a
    /// minute does]
    #[arg(long, value_name = "N", help_heading = "Running")]
    chunk: Option<usize>,
    /// Run only piece I (from 0) of N of the data, to be joined by `signstep merge`
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    shard: Option<String>,
    /// Folder for the results; an interrupted run that it holds is gone on with
    #[arg(long, value_name = "DIR", default_value = "signstep-out", help_heading = "Output")]
    out: PathBuf,
    /// Discard the results that the folder holds, whatever run they are of
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// The arguments of `signstep attack` without any.
pub(super) fn defaults() -> AttackArgs {
    /// Only this command's arguments, so that none can be missing.
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        args: AttackArgs,
    }
    Defaults::parse_from(["signstep"]).args
}

/// Eps where neither the user nor the weights say anything.
pub(super) fn default_eps(norm: Norm) -> &'static str {
    if norm == Norm::L2 { "0.5" } else { "8/255" }
}

/// What Ctrl-C brings about.
const STOPPING: &str = "the run ends when the images under way are kept";

/// A run that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(5);

pub(super) fn run(args: &AttackArgs) -> Result<()> {
    // What can be refused without reading anything is refused first.
    let (method, norm): (Method, Norm) = (named("--method", &args.method)?, named("--norm", &args.norm)?);
    if method.shares_perturbation() {
        refuse_for_shared(args, method, norm)?;
    }
    let loss = args.loss.as_deref().map_or(Ok(method.default_loss()), |name| named("--loss", name))?;
    for (flag, value) in [("--batch", args.batch), ("--limit", args.limit), ("--chunk", args.chunk)] {
        positive(flag, value)?;
    }
    args.eps.as_deref().map(distances).transpose()?;
    args.step_size.as_deref().map(|v| distance("--step-size", v)).transpose()?;
    let bounds = bounds(&args.bounds)?;
    let memory = bytes("--memory", &args.memory)?;
    let shard = args.shard.as_deref().map(Shard::parse).transpose()?;
    let mut inputs = apart::inputs(&args.network, &args.data);
    // Where it is a rule and no file, no result has its name.
    inputs.extend(args.targets.as_ref().map(|targets| ("--targets", Path::new(targets))));
    apart::check(&args.out, &RUN_NAMES, &inputs)?;

    let start = Instant::now();
    let (model, model_facts) = load_model(&args.network)?;
    let mut config = configure(args, (method, norm, loss), bounds, &model)?;
    let attack = configured(&config);
    attack.validate()?;
    let images = load_images(&args.data, args.limit, &model)?;
    if model.logits() < 2 {
        return Err(Error::Model { place: model.arch.clone(), detail: "has one class: nothing to turn to".into() });
    }
    let shard = shard.map(|(index, count)| Shard::new(index, count, images.samples)).transpose()?;
    let targets = targets(images.samples, model.logits(), &mut config)?;
    let load = start.elapsed();

    let start = Instant::now();
    let place = Place::open(&args.place.device, args.place.math)?;
    let identity = Identity::new(place.math(), config.clone(), model_facts, images.facts(&model), shard);
    let (dims, classes, out) = (model.input, model.logits(), args.out.display());
    let interrupt = Interrupt::listen();
    let folder = match Folder::open(&args.out, identity.clone(), place.device(), dims, classes, args.fresh)? {
        Opened::Complete(report) => {
            advise(&report);
            complain("note", &format!("{out} holds this run already; --fresh runs it anew"));
            tell_missing(&args.out, &report);
            return tell(&report, &args.answer, &format!("complete in {out}"));
        }
        Opened::Ready(folder) => *folder,
    };
    let runner = place.load(model, args.batch, memory)?;
    let opened = start.elapsed();
    let compiled = runner.compile_time();

    let (end, step_is_given) = (identity.range().end, args.step_size.is_some());
    let mut job = Job { attack, targets, images, config, runner, folder, end, step_is_given, interrupt };
    let all = identity.range().len();
    let tell_kept = |done: usize| {
        if done > 0 {
            let kept = format!("{done} of {all} images are kept in {out}: the same command goes on from there");
            complain("note", &kept);
        }
    };
    let attacked = job.attack_all_chunks(memory, args.chunk);
    let done = job.done();
    attacked.inspect_err(|_| tell_kept(done))?;
    let compile = opened + job.runner.compile_time().saturating_sub(compiled);
    let finished = job.folder.finish(load, compile, job.runner.gpu_bytes());
    let (report, written) = finished.inspect_err(|_| tell_kept(done))?;
    advise(&report);
    tell(&report, &args.answer, &format!("written to {out}: {}", written.join(", ")))
}

/// Says what a complete folder lacks.
pub(super) fn tell_missing(out: &Path, report: &Report) {
    let missing = report::missing(out, report);
    if !missing.is_empty() {
        complain("note", &format!("{} lacks {}; --fresh makes them anew", out.display(), missing.join(", ")));
    }
}

/// A run that is under way.
struct Job {
    attack: Attack,
    targets: Targets,
    images: Images,
    config: Config,
    runner: Runner,
    folder: Folder,
    /// The sample after the last one.
    end: usize,
    /// Whether steps have the length that was asked for, whatever the radius.
    step_is_given: bool,
    interrupt: Interrupt,
}

impl Job {
    /// Steps that a sample takes at most.
    fn steps_each(&self) -> u64 {
        self.config.steps_each(self.runner.engine().model().logits())
    }

    /// Samples that the folder holds.
    fn done(&self) -> usize {
        self.folder.parts().iter().map(|p| p.end - p.first).sum()
    }

    /// Attacks what is left, and keeps each chunk that has ended.
    fn attack_all_chunks(&mut self, memory: u64, chunk: Option<usize>) -> Result<()> {
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
        forecast::step_time(&self.runner, &pixels, labels, self.attack.rule().needs_gradients())
    }

    fn announce(&self, step: Duration, left: usize) {
        let c = &self.config;
        let time = forecast::duration(step, left, self.steps_each());
        if time > LONG || std::io::stderr().is_terminal() {
            let more = if self.done() > 0 { "more " } else { "" };
            let steps = if c.steps == 1 { "1 step".into() } else { format!("{} steps", c.steps) };
            let restarts = if c.restarts == 1 { String::new() } else { format!(" × at most {} restarts", c.restarts) };
            let radii = match &c.ladder {
                Some(ladder) => format!(" × at most {} radii", ladder.rounds()),
                None if c.radii.is_empty() => String::new(),
                None => format!(" × {} radii", c.radii.len()),
            };
            let time = forecast::words(time);
            complain("note", &format!("about {time} for {left} {more}images × {steps}{restarts}{radii}"));
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

/// What needs images that have something for themselves, where one perturbation serves all of them.
fn refuse_for_shared(args: &AttackArgs, method: Method, norm: Norm) -> Result<()> {
    let many = args.eps.as_deref().is_some_and(|eps| eps.contains(','));
    let reasons = [
        (norm == Norm::L2, "--norm l2", "steps along the sign of a gradient, so it is for linf alone"),
        (args.shard.is_some(), "--shard", "fits one perturbation to all images: a shard has only some of them"),
        (many, "--eps", "fits one perturbation for one radius: run it once for each"),
        (args.min_eps, "--min-eps", "has one perturbation for all images, so none has a smallest radius of its own"),
        (args.early_stop, "--early-stop", "has one perturbation for all images, so none can stop before the others"),
        (args.restarts.is_some_and(|n| n > 1), "--restarts", "begins at zero: all restarts would be the same"),
        (args.keep_going, "--keep-going", "adds up the gradients of all images: it cannot go on without one of them"),
    ];
    match reasons.iter().find(|(is_asked, ..)| *is_asked) {
        Some((_, flag, why)) => Err(Error::Usage(format!("{flag}: {} {why}", method.name()))),
        None => Ok(()),
    }
}

/// Everything that was asked for, defaults filled in.
fn configure(
    args: &AttackArgs,
    (method, norm, loss): (Method, Norm, Loss),
    bounds: Option<(f32, f32)>,
    model: &Model,
) -> Result<Config> {
    let suggested = |value: &Option<String>, what: &str| {
        value
            .as_deref()
            .map(|v| {
                distance("--eps", v).map_err(|_| Error::Model {
                    place: args.network.model.as_deref().map_or_else(|| "weights".into(), |p| p.display().to_string()),
                    detail: format!("metadata {what} is {v}, which is no distance"),
                })
            })
            .transpose()
    };
    // What the weights suggest is an L∞ radius.
    let (list, from_weights) = match (&args.eps, suggested(&model.eps, "eps")?.filter(|_| norm == Norm::Linf)) {
        (Some(text), _) => (distances(text)?, false),
        (None, Some(eps)) => (vec![eps], true),
        (None, None) => (vec![distance("--eps", default_eps(norm))?], false),
    };
    let largest = list.iter().max_by(|a, b| a.value.total_cmp(&b.value));
    let eps = largest.cloned().ok_or_else(|| Error::Usage("--eps: no distance".into()))?;
    let steps = args.steps.unwrap_or(method.default_steps());
    let hint = suggested(&model.step_size, "step_size")?.filter(|_| from_weights && steps == 10);
    if args.step_size.is_some() && !method.has_step_size() {
        return Err(Error::Usage(format!("--step-size: {} has none", method.name())));
    }
    let step_size = match (&args.step_size, method, hint) {
        (Some(text), ..) => distance("--step-size", text)?,
        _ if !method.has_step_size() => Distance { text: "0".into(), value: 0.0 },
        (None, Method::Ifgsm | Method::Pgd | Method::Uap, Some(hint)) => hint,
        _ if eps.value.is_infinite() => {
            return Err(Error::Usage("--eps inf: give a --step-size as well".into()));
        }
        (None, Method::Fgsm, _) => eps.clone(),
        (None, ..) => default_step(method, &eps, steps),
    };
    let ladder = if args.min_eps { Some(ladder(args, &list, norm, bounds)?) } else { None };
    let step_of = |eps: &Distance| match &args.step_size {
        Some(_) => step_size.clone(),
        None => default_step(method, eps, steps),
    };
    let radii = list.iter().map(|eps| Radius { eps: eps.clone(), step_size: step_of(eps) });
    let radii = if list.len() > 1 { radii.collect() } else { Vec::new() };
    if args.momentum.is_some() && !method.has_momentum() {
        return Err(Error::Usage(format!("--momentum: {} has none", method.name())));
    }
    if args.no_random_start && !method.can_start_at_random() {
        return Err(Error::Usage(format!("--no-random-start: {} never begins at random", method.name())));
    }
    if method.chooses_targets() && args.targets.as_deref().is_some_and(|t| t != "none") {
        return Err(Error::Usage(format!("--targets: {} chooses its targets itself", method.name())));
    }
    let targets = match &args.targets {
        _ if args.untargeted => "none".into(),
        // A target for each image, and the sum would pull in all directions.
        None if method.chooses_targets() || method.shares_perturbation() => "none".into(),
        None => "random".into(),
        Some(targets) => targets.clone(),
    };
    Ok(Config {
        method,
        norm,
        loss,
        targets,
        targets_sha256: None,
        eps,
        step_size,
        steps,
        restarts: args.restarts.unwrap_or(1),
        random_start: method.can_start_at_random() && !args.no_random_start,
        momentum: method.has_momentum().then(|| args.momentum.unwrap_or(1.0)),
        early_stop: args.early_stop,
        bounds,
        quantise: !args.no_quantize,
        attack_all: args.attack_all,
        keep_going: args.keep_going,
        seed: args.seed,
        limit: args.limit,
        radii,
        ladder,
    })
}

/// The radii among which the smallest is looked for: grey levels where pixels have them.
fn ladder(args: &AttackArgs, list: &[Distance], norm: Norm, bounds: Option<(f32, f32)>) -> Result<Ladder> {
    let [eps] = list else {
        return Err(Error::Usage("--min-eps looks for one radius up to --eps: give one, not several".into()));
    };
    let fail = |why: &str| Err(Error::Usage(format!("--min-eps: eps {} {why}", eps.text)));
    if eps.value.is_infinite() {
        return fail("must be finite");
    }
    if args.attack_all {
        return Err(Error::Usage("--min-eps: images that are wrong when clean have none (--attack-all)".into()));
    }
    let in_levels = norm == Norm::Linf && bounds == Some((0.0, 1.0)) && !args.no_quantize;
    let ladder = if in_levels { Ladder::levels(eps.value) } else { Ladder::parts(eps.value) };
    ladder.map_or_else(|| fail("is less than one grey level"), Ok)
}

/// The method's own step length, written as eps is: 2/255 for ten steps of 8/255.
pub(super) fn default_step(method: Method, eps: &Distance, steps: u32) -> Distance {
    if method == Method::Fgsm {
        return eps.clone();
    }
    let (eps_part, divisor) = match eps.text.split_once('/') {
        Some((n, d)) => (n.trim().parse().unwrap_or(eps.value), Some(d.trim())),
        None => (eps.value, None),
    };
    let part = method.default_step_size(eps_part, steps);
    // Twelve digits hide that 2.5 × 0.3 / 10 is not quite 0.075 in binary.
    let part: f64 = format!("{part:.12}").parse().unwrap_or(part);
    let divide = |d: &str| d.parse::<f64>().map_or(part, |d| part / d);
    match divisor {
        Some(d) => Distance { text: format!("{part}/{d}"), value: divide(d) },
        None => Distance { text: part.to_string(), value: part },
    }
}

/// The attack that a configuration describes, but for its targets.
fn configured(c: &Config) -> Attack {
    let eps = c.eps.value as f32;
    let attack = Attack::new(c.method, c.norm, eps);
    let attack = if c.method.has_step_size() { attack.step_size(c.step_size.value as f32) } else { attack };
    attack
        .loss(c.loss)
        .momentum(c.momentum.unwrap_or(0.0))
        .random_start(c.random_start)
        .early_stop(c.early_stop)
        .steps(c.steps)
        .restarts(c.restarts)
        .bounds(c.bounds)
        .quantise(c.quantise)
        .attack_all(c.attack_all)
        .seed(c.seed)
}

fn targets(samples: usize, classes: usize, config: &mut Config) -> Result<Targets> {
    Ok(match config.targets.as_str() {
        "none" => Targets::None,
        "random" => Targets::Random,
        "next" => Targets::Next,
        "least-likely" => Targets::LeastLikely,
        "second" => Targets::Second,
        _ => {
            let list = data::read_targets(Path::new(&config.targets), samples, classes)?;
            let bytes: Vec<u8> = list.iter().flat_map(|t| t.to_le_bytes()).collect();
            config.targets = "file".into();
            config.targets_sha256 = Some(data::sha256([&bytes[..]]));
            Targets::Classes(list)
        }
    })
}

/// A bar on standard error, drawn only on a terminal; `done` was done by an earlier process.
pub(super) fn progress_bar(total: u64, done: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % of {len} sample-steps, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style).with_position(done);
    bar.reset_eta();
    bar
}

/// What a user should know before trusting a result.
fn advise(report: &Report) {
    let config = &report.identity.config;
    let only = [Radius { eps: config.eps.clone(), step_size: config.step_size.clone() }];
    let radii = if config.radii.is_empty() { &only[..] } else { &config.radii[..] };
    for Radius { eps, step_size } in radii {
        let reach = step_size.value * f64::from(config.steps);
        if config.method.has_step_size() && eps.value.is_finite() && reach < eps.value * (1.0 - 1e-9) {
            warn(format!("{} steps of {} do not reach eps {}", config.steps, step_size.text, eps.text));
        }
        if config.delivers_bytes() {
            advise_of_radius(eps, f64::from(config.effective(eps.value)));
        }
    }
    if config.delivers_bytes() {
        advise_of_snapping(report.statistics.snapped);
    }
    let (marked, all) = (report.statistics.nonfinite_samples, report.statistics.samples);
    if marked > 0 {
        let what = "they are delivered as they were, marked in `health`, and count neither as turned nor as robust";
        warn(format!("NaN or infinity arose in {marked} of {all} images: {what}"));
    }
}

/// What 8 bits do to a radius, of which `effective` can be delivered.
pub(super) fn advise_of_radius(eps: &Distance, effective: f64) {
    let levels = (effective * 255.0).round();
    if levels < 1.0 && eps.value > 0.0 {
        warn(format!(
            "eps {} is less than one of 255 grey levels: nothing can be delivered in 8 bits (see --no-quantize)",
            eps.text
        ));
    } else if eps.value <= 1.0 && (effective - eps.value).abs() > 1e-6 {
        warn(format!("8-bit images change by at most {levels}/255, not by eps {}", eps.text));
    }
}

/// What 8 bits did to clean images.
pub(super) fn advise_of_snapping(snapped: f32) {
    if snapped > 0.0 {
        complain("note", &format!("clean images were rounded to 8 bits, by at most {:.3}/255", snapped * 255.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_step_is_written_as_eps_is() {
        let step = |t: &str, n| default_step(Method::Ifgsm, &distance("--eps", t).unwrap(), n);
        assert_eq!(step("8/255", 10), Distance { text: "2/255".into(), value: 2.0 / 255.0 });
        assert_eq!(step("1/255", 10).text, "0.25/255");
        assert_eq!(step("0.3", 10), Distance { text: "0.075".into(), value: 0.075 });
        let auto = default_step(Method::Apgd, &distance("--eps", "8/255").unwrap(), 100);
        assert_eq!(auto, Distance { text: "16/255".into(), value: 16.0 / 255.0 });
    }

    #[test]
    fn the_program_without_arguments_has_defaults() {
        let args = defaults();
        assert_eq!((args.method.as_str(), args.targets, args.seed), ("ifgsm", None, 0));
    }
}
