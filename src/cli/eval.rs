//! `signstep eval`: how many images stay right whatever is tried. One attack after the other, each on those that are
//! left.

use super::advice::{advise_of_clean, advise_of_radius, advise_of_range, advise_of_snapping};
use super::apart;
use super::defaults::default_eps;
use super::engine::{Place, PlaceArgs, Runner};
use super::flags::{bounds, bytes, delivers_bytes, distance, duration, named, positive};
use super::forecast;
use super::images::{DataArgs, Images, load_images};
use super::interrupt::Interrupt;
use super::network::{NetworkArgs, load_model};
use super::specs::{Shared, Spec, Suite, default_list, list};
use super::tell::{AnswerArgs, Format, answer, complain, counted, progress_bar, warn};
use super::thresholds::Threshold;
use crate::attack::{Attack, Norm, Own, Rule, snap};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::{
    DataFacts, Distance, EVALUATION_NAMES, EvalConfig, EvalFolder, EvalIdentity, EvalOpened, EvalTiming, Evaluation,
    Ledger, ModelFacts, Struck, Tally, evaluation_csv, evaluation_markdown, evaluation_table,
};
use clap::Args;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What `eval` can be told. What `attack` has as well means the same.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    limit: Option<usize>,
    /// Attacks in their order, with commas between them: a method each, and after colons what it shall differ in
    /// (steps, step-size, restarts, loss, momentum, targets, classes, and of square schedule, the steps over which its
    /// squares shrink), as in fgsm,pgd:steps=40:restarts=5,apgd:loss=dlr [default: apgd:loss=ce,apgd-t; with fewer than
    /// 4 classes: apgd:loss=ce,apgd:loss=margin]
    #[arg(long, value_name = "LIST", help_heading = "Attack")]
    attacks: Option<String>,
    /// A list that is known by name, with its own settings
    #[arg(long, value_enum, conflicts_with = "attacks", help_heading = "Attack")]
    suite: Option<Suite>,
    /// What eps is measured in: linf, the largest change of any pixel value, or l2, the Euclidean length of the change
    #[arg(long, value_name = "NAME", default_value = "linf", help_heading = "Attack")]
    norm: String,
    /// Radius in the norm [default: what the weights suggest for linf, else 8/255; for l2: 0.5]
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true, help_heading = "Attack")]
    eps: Option<String>,
    /// Smallest and largest pixel value, or none for inputs that are no pixels; files of images hold values in [0, 1]
    /// whatever they are. With others than 0,1 floats are delivered, as with --no-quantize
    #[arg(long, value_name = "LO,HI|none", default_value = "0,1", allow_hyphen_values = true, help_heading = "Attack")]
    bounds: String,
    /// Deliver floats instead of 8-bit values
    #[arg(long, alias = "no-quantise", help_heading = "Attack")]
    no_quantize: bool,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Attack")]
    seed: u64,
    /// Go on where NaN or infinity arises, in place of ending with exit code 7: an image in which it does is delivered
    /// as it was, marked in the tensor `health`, and counts as neither turned nor robust
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
    /// Largest number of images in memory at once; results do not depend on it [default: what memory holds]
    #[arg(long, value_name = "N", help_heading = "Running")]
    chunk: Option<usize>,
    /// Do not begin an attack that would end later than this after the start (90s, 10m, 1h 30m); what is left out is
    /// said
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Running")]
    time_budget: Option<Duration>,
    /// Exit code 1 where a rate is lower: clean_accuracy, or robust_accuracy (the lower of float and delivered); can be
    /// repeated
    #[arg(long, value_name = "RATE=FRACTION", help_heading = "Output")]
    fail_under: Vec<String>,
    /// Folder for eval.json and eval.safetensors [default: none is written]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Discard the evaluation that the folder holds
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// What Ctrl-C brings about.
const STOPPING: &str = "the evaluation is given up";

/// An evaluation that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(5);

/// An attack that took longer than this says more of the time of a step than a measurement of moments does.
const TELLING: Duration = Duration::from_secs(1);

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    // What can be refused without reading anything is refused first.
    let begun = Instant::now();
    let norm: Norm = named("--norm", &args.norm)?;
    for (flag, value) in [("--batch", args.batch), ("--limit", args.limit), ("--chunk", args.chunk)] {
        positive(flag, value)?;
    }
    let eps = args.eps.as_deref().map(|text| distance("--eps", text)).transpose()?;
    let bounds = bounds(&args.bounds)?;
    let memory = bytes("--memory", &args.memory)?;
    let thresholds = args.fail_under.iter().map(|text| Threshold::parse(text)).collect::<Result<Vec<_>>>()?;
    let (flag, specs) = match (args.suite, &args.attacks) {
        (Some(suite), _) => ("--suite autoattack:", Some(suite.specs()?)),
        (None, Some(text)) => ("--attacks", Some(list("--attacks", text)?)),
        (None, None) => ("--attacks", None),
    };
    if let Some(out) = &args.out {
        apart::check(out, &EVALUATION_NAMES, &apart::inputs(&args.network, &args.data))?;
    }

    let (model, model_facts) = load_model(&args.network)?;
    if model.logits() < 2 {
        return Err(Error::Model { place: model.arch.clone(), detail: "has one class: nothing to turn to".into() });
    }
    let eps = eps.map_or_else(|| suggested_eps(&model, norm), Ok)?;
    if eps.value.is_infinite() {
        return Err(Error::Usage("--eps inf: an evaluation needs a finite radius".into()));
    }
    let specs = specs.map_or_else(|| default_list(model.logits()), Ok)?;
    let specs: Vec<Spec> = specs.into_iter().map(|spec| spec.among(model.logits())).collect();
    let quantise = delivers_bytes(args.no_quantize, bounds);
    let shared = Shared { norm, eps, bounds, quantise, seed: args.seed, classes: model.logits() };
    let attacks = specs.iter().map(|spec| spec.attack(flag, &shared)).collect::<Result<Vec<_>>>()?;
    attacks.iter().try_for_each(|attack| attack.check_on(&model).map(drop))?;
    let images = load_images(&args.data, args.limit, &model)?;
    let load = begun.elapsed();

    let start = Instant::now();
    let place = Place::open(&args.place.device, args.place.math)?;
    let identity = identity(&place, (model_facts, images.facts(&model)), &specs, &shared, args);
    let interrupt = Interrupt::listen();
    let folder = match &args.out {
        None => None,
        Some(out) => match EvalFolder::open(out, &identity, model.input, args.fresh)? {
            EvalOpened::Complete(evaluation) => {
                let out = out.display();
                complain("note", &format!("{out} holds this evaluation already; --fresh runs it anew"));
                return conclude(&evaluation, args, &thresholds, &format!("\ncomplete in {out}"));
            }
            EvalOpened::Ready(folder) => Some(*folder),
        },
    };
    let runner = place.load(model, args.batch, memory)?;
    let opened = start.elapsed();
    let compiled = runner.compile_time();

    let held = forecast::images_in(memory, images.source.dims.len(), runner.engine().model().logits());
    let chunk = args.chunk.unwrap_or(usize::MAX).min(held);
    let chunk = if chunk > runner.batch() { chunk - chunk % runner.batch() } else { chunk };
    let keep_going = args.keep_going;
    let mut job = Job { images, shared, runner, folder, chunk, keep_going, ledger: Ledger::default(), interrupt };
    let clean = job.clean()?;
    let (struck, times) =
        job.strike(&specs, &attacks, args.time_budget.and_then(|budget| begun.checked_add(budget)))?;

    let milliseconds = |t: Duration| (t.as_secs_f64() * 1e6).round() / 1e3;
    let timing = EvalTiming {
        load_ms: milliseconds(load),
        compile_ms: milliseconds(opened + job.runner.compile_time().saturating_sub(compiled)),
        clean_ms: milliseconds(clean),
        attacks_ms: times.into_iter().map(milliseconds).collect(),
    };
    let suite = is_autoattack(&specs, &job.shared);
    let evaluation = Evaluation::new(identity, suite, &job.ledger, struck, timing, job.runner.gpu_bytes());
    let (evaluation, written) = match (job.folder, &args.out) {
        (Some(folder), Some(out)) => {
            let (evaluation, names) = folder.finish(&job.ledger, evaluation)?;
            (evaluation, format!("\nwritten to {}: {}", out.display(), names.join(", ")))
        }
        _ => (evaluation, String::new()),
    };
    conclude(&evaluation, args, &thresholds, &written)
}

/// Whether what is run is what AutoAttack runs, with its settings.
fn is_autoattack(specs: &[Spec], shared: &Shared) -> bool {
    let written = |specs: &[Spec]| specs.iter().map(|s| s.canonical(&shared.eps)).collect::<Vec<_>>();
    let suite = Suite::Autoattack.specs().unwrap_or_default();
    let suite: Vec<Spec> = suite.into_iter().map(|spec| spec.among(shared.classes)).collect();
    !suite.is_empty() && written(&suite) == written(specs) && shared.bounds == Some((0.0, 1.0))
}

/// Tells of an evaluation, and holds it against the thresholds.
fn conclude(evaluation: &Evaluation, args: &EvalArgs, thresholds: &[Threshold], written: &str) -> Result<()> {
    let config = &evaluation.identity.config;
    advise_of_range(&config.eps, config.norm == Norm::Linf.name(), config.bounds);
    advise_of_clean(evaluation.clean_accuracy.count, evaluation.samples);
    if config.delivers_bytes() {
        advise_of_radius(&config.eps, f64::from(config.effective_eps()));
        advise_of_snapping(evaluation.evidence.snapped);
    }
    let (marked, all) = (evaluation.evidence.nonfinite_samples, evaluation.samples);
    if marked > 0 {
        let what = "they are delivered as they were, marked in `health`, and count as neither turned nor robust";
        warn(format!("NaN or infinity arose in {marked} of {all} images: {what}"));
    }
    if evaluation.evidence.unsound_images > 0 {
        warn(format!("{} delivered images are not what they should be", evaluation.evidence.unsound_images));
    }
    if evaluation.evidence.logits_look_like_probabilities {
        warn("the logits look like the output of a softmax: attacks are weak against it; remove it from the network");
    }
    let left: Vec<&str> = evaluation.attacks.iter().filter(|a| !a.begun).map(|a| a.attack.as_str()).collect();
    if !left.is_empty() {
        warn(format!("incomplete: {} did not fit into the time budget", left.join(", ")));
    }
    match (args.answer.json, args.answer.format) {
        (true, _) | (_, Format::Json) => answer(&evaluation.json()),
        (_, Format::Table) => answer(&format!("{}{written}", evaluation_table(evaluation))),
        (_, Format::Csv) => answer(&evaluation_csv(evaluation)),
        (_, Format::Markdown) => answer(&evaluation_markdown(evaluation)),
    }?;
    let missed: Vec<String> = thresholds.iter().filter_map(|t| t.missed_by(evaluation)).collect();
    if missed.is_empty() { Ok(()) } else { Err(Error::Threshold(missed.join("; "))) }
}

/// An evaluation that is under way.
struct Job {
    images: Images,
    shared: Shared,
    runner: Runner,
    folder: Option<EvalFolder>,
    /// Images that are in memory at once.
    chunk: usize,
    /// Whether images in which NaN or infinity arises end nothing.
    keep_going: bool,
    ledger: Ledger,
    interrupt: Interrupt,
}

impl Job {
    /// Classifies the clean images; gives the time it took, without the compilation of kernels.
    fn clean(&mut self) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for first in (0..self.images.samples).step_by(self.chunk) {
            if self.interrupt.is_asked(STOPPING) {
                return Err(Error::Cancelled);
            }
            let end = (first + self.chunk).min(self.images.samples);
            let pixels = self.images.pixels(first..end, self.shared.bounds)?;
            let (pixels, snapped) = if self.shared.quantise { snap(&pixels) } else { (pixels, 0.0) };
            let (start, compiled) = (Instant::now(), self.runner.compile_time());
            let seen = self.runner.engine().logits(&pixels)?;
            time += start.elapsed().saturating_sub(self.runner.compile_time().saturating_sub(compiled));
            let marked = seen.health.iter().enumerate().find(|(_, h)| !h.is_healthy());
            if let (Some((i, health)), false) = (marked, self.keep_going) {
                return Err(Error::NonFinite { sample: first + i, stage: health.describe().into() });
            }
            if let Some(folder) = &mut self.folder {
                folder.keep(first, &pixels)?;
            }
            self.ledger.open(&self.images.source.labels[first..end], &pixels, &seen, snapped);
        }
        Ok(time)
    }

    /// Runs one attack after the other, each on the images that are left, as far as there is time.
    fn strike(
        &mut self,
        specs: &[Spec],
        attacks: &[Attack],
        until: Option<Instant>,
    ) -> Result<(Vec<Struck>, Vec<Duration>)> {
        let mut steps = self.step_times(attacks)?;
        self.announce(attacks, &steps);
        let (mut struck, mut times) = (Vec::new(), Vec::new());
        for (index, (spec, attack)) in specs.iter().zip(attacks).enumerate() {
            let rows = self.ledger.survivors();
            let foreseen = self.duration(attack, steps[index], rows.len());
            let fits = rows.is_empty() || until.is_none_or(|end| Instant::now() + foreseen <= end);
            let (tally, time) = if fits { self.run(index, attack, &rows)? } else { (Tally::default(), Duration::ZERO) };
            // What it took is better than what was foreseen, looks at clean and delivered images counted as there.
            if time > TELLING && tally.gradients > 0 {
                let each = time.div_f64((tally.gradients + rows.len() as u64) as f64);
                let same = attacks.iter().map(|other| other.rule() == attack.rule());
                steps.iter_mut().zip(same).filter(|(_, same)| *same).for_each(|(step, _)| *step = each);
            }
            struck.push(Struck {
                attack: spec.text.clone(),
                description: spec.to_string(),
                begun: fits,
                tally,
                robust: self.ledger.robust(),
                robust_float: self.ledger.robust_float(),
            });
            times.push(time);
        }
        Ok((struck, times))
    }

    /// Runs one attack on the images `rows`; gives the time it took, without the compilation of kernels.
    fn run(&mut self, index: usize, attack: &Attack, rows: &[usize]) -> Result<(Tally, Duration)> {
        let (mut sum, mut time) = (Tally::default(), Duration::ZERO);
        let each = u64::from(attack.step_count()) * attack.attempts(self.shared.classes);
        let bar = progress_bar(rows.len() as u64 * each, 0);
        for rows in rows.chunks(self.chunk) {
            let pixels = self.gather(rows)?;
            let labels: Vec<i64> = rows.iter().map(|&i| self.images.source.labels[i]).collect();
            // Random numbers follow the sample's index in the whole set, whoever is left.
            let own = |&i: &usize| Own { id: i as u64, eps: attack.eps(), step_size: attack.effective_step_size() };
            let attack = attack.clone().each(rows.iter().map(own).collect());
            let (start, compiled, interrupt) = (Instant::now(), self.runner.compile_time(), &self.interrupt);
            let mut outcome = attack.run_with(self.runner.engine(), &pixels, &labels, &mut |steps| {
                bar.inc(steps);
                !interrupt.is_asked(STOPPING)
            })?;
            time += start.elapsed().saturating_sub(self.runner.compile_time().saturating_sub(compiled));
            match outcome.first_unhealthy() {
                Some(_) if self.keep_going => outcome.withhold_unhealthy(),
                Some((place, health)) => {
                    return Err(Error::NonFinite { sample: rows[place], stage: health.describe().into() });
                }
                None => {}
            }
            let folder = &mut self.folder;
            let keep = |i: usize, image: &[f32]| folder.as_mut().map_or(Ok(()), |folder| folder.keep(i, image));
            sum = sum.plus(self.ledger.add(index, &attack, rows, &outcome, keep)?);
        }
        bar.finish_and_clear();
        Ok((sum, time))
    }

    /// Pixels of the samples `rows`, which are in order, read in as few pieces as there are gaps.
    fn gather(&mut self, rows: &[usize]) -> Result<Vec<f32>> {
        let mut pixels = Vec::with_capacity(rows.len() * self.images.source.dims.len());
        for piece in rows.chunk_by(|a, b| a + 1 == *b) {
            pixels.extend(self.images.pixels(piece[0]..piece[0] + piece.len(), self.shared.bounds)?);
        }
        Ok(pixels)
    }

    /// The time of a step of one sample under each attack, measured on the first images, once for each rule.
    fn step_times(&mut self, attacks: &[Attack]) -> Result<Vec<Duration>> {
        let n = self.images.samples.min(self.chunk).min(forecast::PROBE);
        let pixels = self.images.pixels(0..n, self.shared.bounds)?;
        let mut known: HashMap<Rule, Duration> = HashMap::new();
        let mut time = |attack: &Attack| {
            if let Some(time) = known.get(&attack.rule()) {
                return Ok(*time);
            }
            let time = forecast::step_time(&self.runner, attack, &pixels, &self.images.source.labels[..n])?;
            known.insert(attack.rule(), time);
            Ok(time)
        };
        attacks.iter().map(&mut time).collect()
    }

    /// How long an attack on `samples` images will take at most.
    fn duration(&self, attack: &Attack, step: Duration, samples: usize) -> Duration {
        let steps = u64::from(attack.step_count()) * attack.attempts(self.shared.classes);
        forecast::duration(step, samples, steps)
    }

    fn announce(&self, attacks: &[Attack], steps: &[Duration]) {
        let n = self.ledger.clean_correct();
        let time: Duration = attacks.iter().zip(steps).map(|(attack, step)| self.duration(attack, *step, n)).sum();
        if time > LONG || std::io::stderr().is_terminal() {
            let (time, n) = (forecast::words(time), counted(n as u64, "image", "images"));
            let count = counted(attacks.len() as u64, "attack", "attacks");
            complain("note", &format!("about {time} for {count} on {n}; less where images fall early"));
        }
    }
}

/// The radius that the weights suggest, which is in L∞, else the norm's own.
fn suggested_eps(model: &Model, norm: Norm) -> Result<Distance> {
    match model.eps.as_deref().filter(|_| norm == Norm::Linf) {
        None => distance("--eps", default_eps(norm)),
        Some(text) => distance("--eps", text).map_err(|_| Error::Model {
            place: model.arch.clone(),
            detail: format!("metadata eps is {text}, which is no distance"),
        }),
    }
}

fn identity(
    place: &Place,
    (model, data): (ModelFacts, DataFacts),
    specs: &[Spec],
    shared: &Shared,
    args: &EvalArgs,
) -> EvalIdentity {
    let config = EvalConfig {
        attacks: specs.iter().map(|spec| spec.canonical(&shared.eps)).collect(),
        norm: shared.norm.name().into(),
        eps: shared.eps.clone(),
        bounds: shared.bounds,
        quantise: shared.quantise,
        seed: shared.seed,
        limit: args.limit,
        keep_going: args.keep_going,
    };
    EvalIdentity::new(place.math(), config, model, data, place.device())
}
