//! `signstep study`: why isn't iterative targeted FGSM effective on minibatches? Every explanation, run and judged.

use super::advice::advise_of_snapping;
use super::apart;
use super::defaults::default_eps;
use super::engine::{DeviceArgs, Place, Runner};
use super::flags::{bytes, distance, positive};
use super::images::{DataArgs, Images, load_images};
use super::interrupt::Interrupt;
use super::network::{NetworkArgs, Weights};
use super::tell::{answer, complain};
use crate::attack::{Engine, Gradient, Loss, Method, Norm, Sample, argmax, random_target, snap};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::Distance;
use crate::study::batch::{Batch, Budget, healthy};
use crate::study::{self, Bench, Config, Findings, Found, Identity, Net, Opened, Repeatable, Timing, examples};
use crate::{Math, Network, Options, Reference, Training, weights};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What `study` can be told.
#[derive(Args, Debug)]
pub(super) struct StudyArgs {
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Read only the first N images; of those that are right when clean as many are used as a power of two [default:
    /// 640]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Radius in linf [default: what the weights suggest, else 8/255]
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true)]
    eps: Option<String>,
    /// Rows from 0 to 13, ranges of them, and figures, with commas between them: 0,2-4,figures [default: all]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    rows: Option<String>,
    /// Images in row 0, which runs the question's examples on a ResNet-18 [default: 32 as printed; on software adapters
    /// 8]
    #[arg(long, value_name = "N")]
    examples: Option<usize>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Largest memory on the device for each network: 512M, 2G, 1GiB; a batch in training mode is never cut
    #[arg(long, value_name = "BYTES", default_value = "4G")]
    memory: String,
    /// Folder for study.md, study.json and the figures [default: none is written]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Discard the study that the folder holds
    #[arg(long)]
    fresh: bool,
    /// Also write study.safetensors: what another program needs to repeat rows 0 to 7
    #[arg(long)]
    tensors: bool,
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
}

/// Iterations, as the question's examples have.
const STEPS: u32 = 10;
/// Images in a minibatch, likewise.
const MINIBATCH: usize = 32;
/// Images read unless told otherwise: enough for a batch of 512 that are right.
const LIMIT: usize = 640;
/// Images of row 0 as printed, and on software adapters, which take a minute for them.
const EXAMPLES: (usize, usize) = (32, 8);
/// The two classes of row 6: cat and dog in CIFAR-10.
const PAIR: (i64, i64) = (3, 5);
/// What is asked for beside rows.
const FIGURES: &str = "figures";

pub(super) fn run(args: &StudyArgs) -> Result<()> {
    // What can be refused without reading anything is refused first.
    for (flag, value) in [("--limit", args.limit), ("--examples", args.examples)] {
        positive(flag, value)?;
    }
    if args.examples == Some(1) {
        return Err(Error::Usage("--examples 1: a minibatch needs two or more".into()));
    }
    let (mut rows, figures) = args.rows.as_deref().map_or(Ok(((0..=13).collect(), true)), selection)?;
    let memory = bytes("--memory", &args.memory)?;
    let eps = args.eps.as_deref().map(|text| distance("--eps", text)).transpose()?;
    if args.tensors && args.out.is_none() {
        return Err(Error::Usage("--tensors needs a folder: --out DIR".into()));
    }
    if let Some(out) = &args.out {
        apart::check(out, &study::NAMES, &apart::inputs(&args.network, &args.data))?;
    }

    let (model, weights) = load(&args.network)?;
    let eps = eps.map_or_else(|| suggested(&model), Ok)?;
    if !(eps.value > 0.0 && eps.value.is_finite()) {
        return Err(Error::Usage(format!("--eps {}: must be more than zero and finite", eps.text)));
    }
    let mut images = load_images(&args.data, Some(args.limit.unwrap_or(LIMIT)), &model)?;
    let place = Place::open(&args.device, Math::F32)?;
    if matches!(place, Place::Reference) && rows.contains(&0) {
        complain("note", &"row 0 is left out: its network is too large for the reference");
        rows.retain(|row| *row != 0);
    }
    let runner = place.load(model, None, memory)?;
    let engine = runner.engine();
    let (right, snapped) = right_images(engine, &mut images, args.seed)?;
    let Some(power) = right.len().checked_ilog2() else {
        return Err(Error::Data { place: images.source.name, detail: "no image is right when clean".into() });
    };
    let n = 1 << power;
    let step_size = step_size(&eps);
    let shown = if place.device().kind == "software" { EXAMPLES.1 } else { EXAMPLES.0 };
    let config = Config {
        eps: eps.clone(),
        step_size: step_size.clone(),
        steps: STEPS,
        // Two batches at least, for neighbours to be exchanged.
        minibatch: MINIBATCH.min(n / 2).max(1),
        examples: args.examples.unwrap_or(shown),
        seed: args.seed,
        limit: args.limit,
        rows,
        figures,
        tensors: args.tensors,
    };
    let identity = Identity::new(
        place.math(),
        config,
        weights.facts(engine.model()),
        images.facts(engine.model()),
        place.device(),
    );
    let interrupt = Interrupt::listen();
    let folder = match &args.out {
        None => None,
        Some(out) => match study::open(out, &identity, args.fresh)? {
            Opened::Complete(findings) => {
                complain("note", &format!("{} holds this study already; --fresh runs it anew", out.display()));
                return tell(&findings, args.json, &figure_names(&findings));
            }
            Opened::Ready(folder) => Some(folder),
        },
    };

    let bar = spinner();
    let (weights, interrupt) = (&weights, &interrupt);
    let identity = &identity;
    let work = Work { place: &place, runner: &runner, weights, memory, identity, snapped, bar: &bar, interrupt };
    let (findings, repeatable) = work.run(&right, n, &eps, &step_size)?;
    bar.finish_and_clear();
    let Some(folder) = folder else { return tell(&findings, args.json, &[]) };
    let (findings, names) = study::write(folder, findings, args.tensors.then_some(&repeatable))?;
    tell(&findings, args.json, &figure_names(&findings))?;
    if let Some(out) = &args.out {
        complain("note", &format!("written to {}: {}", out.display(), names.join(", ")));
    }
    Ok(())
}

fn tell(findings: &Findings, as_json: bool, figures: &[&str]) -> Result<()> {
    answer(&if as_json { findings.json() } else { study::markdown(findings, figures) })
}

fn figure_names(findings: &Findings) -> Vec<&str> {
    findings.files.keys().map(String::as_str).filter(|name| name.ends_with(".svg")).rev().collect()
}

/// Rows, and whether figures are among what was asked for: `0,2-4,figures`.
fn selection(list: &str) -> Result<(Vec<u8>, bool)> {
    let fail = |part: &str| {
        Error::Usage(format!(
            "--rows {list}: {part:?} is neither a row from 0 to 13, nor a range of them, nor {FIGURES}"
        ))
    };
    let (mut rows, mut figures) = (Vec::new(), false);
    for part in list.split(',').map(str::trim) {
        if part == FIGURES {
            figures = true;
            continue;
        }
        let number = |text: &str| text.trim().parse::<u8>().ok().filter(|row| *row <= 13);
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => rows.extend(from..=to),
            _ => return Err(fail(part)),
        }
    }
    rows.sort_unstable();
    rows.dedup();
    Ok((rows, figures))
}

/// A network, and the weights that it was made of.
fn load(args: &NetworkArgs) -> Result<(Model, Weights)> {
    let weights = Weights::open(args.model.as_deref(), args.arch.as_deref())?;
    let model = weights.model()?;
    if model.logits() < 2 {
        return Err(Error::Model { place: weights.name, detail: "has one class: nothing to aim at".into() });
    }
    Ok((model, weights))
}

/// The radius that the weights suggest.
fn suggested(model: &Model) -> Result<Distance> {
    distance("--eps", model.eps.as_deref().unwrap_or(default_eps(Norm::Linf)))
        .map_err(|e| Error::Model { place: model.arch.clone(), detail: format!("metadata: {e}") })
}

/// 2.5·eps/steps, as every attack here has it, in the unit in which eps was written.
fn step_size(eps: &Distance) -> Distance {
    let value = Method::Ifgsm.default_step_size(eps.value, STEPS);
    let text = match eps.text.strip_suffix("/255") {
        Some(_) => format!("{}/255", (value * 255.0 * 1e6).round() / 1e6),
        None => format!("{}", (value * 1e9).round() / 1e9),
    };
    Distance { text, value }
}

/// The images that the network gets right when clean, each with a random target, and how far one moved at most when
/// all were rounded to 8 bits: row 13 counts grey levels.
fn right_images(engine: &dyn Engine, images: &mut Images, seed: u64) -> Result<(Batch, f32)> {
    let classes = engine.model().logits();
    let pixels = images.pixels(0..images.samples, Some((0.0, 1.0)))?;
    let (x0, moved) = snap(&pixels);
    advise_of_snapping(moved);
    let seen = engine.logits(&x0)?;
    healthy(&seen.health)?;
    let labels = images.source.labels[..images.samples].to_vec();
    let target = |i: usize| random_target(seed, i as u64, labels[i] as u32, classes as u32);
    let all =
        Batch { targets: (0..labels.len()).map(target).collect(), ids: (0..labels.len() as u64).collect(), x0, labels };
    let is_right = |i: &usize| argmax(&seen.logits[i * classes..(i + 1) * classes]) as i64 == all.labels[*i];
    let right: Vec<usize> = (0..all.len()).filter(is_right).collect();
    Ok((all.select(&right), moved))
}

/// Images of the two classes in turns, each aimed at the other; as many as a power of two.
fn pair(right: &Batch) -> Option<Batch> {
    let of = |label: i64| (0..right.len()).filter(move |i| right.labels[*i] == label);
    let pairs: Vec<(usize, usize)> = of(PAIR.0).zip(of(PAIR.1)).collect();
    let pairs = &pairs[..1 << pairs.len().checked_ilog2()?];
    let places: Vec<usize> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let mut pair = right.select(&places);
    let other = |label: &i64| if *label == PAIR.0 { PAIR.1 } else { PAIR.0 } as u32;
    pair.targets = pair.labels.iter().map(other).collect();
    Some(pair)
}

/// What runs now, where somebody is looking.
fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

struct Work<'a> {
    place: &'a Place,
    runner: &'a Runner,
    weights: &'a Weights,
    memory: u64,
    identity: &'a Identity,
    snapped: f32,
    bar: &'a ProgressBar,
    interrupt: &'a Interrupt,
}

impl Work<'_> {
    fn run(&self, right: &Batch, n: usize, eps: &Distance, step_size: &Distance) -> Result<(Findings, Repeatable)> {
        let config = &self.identity.config;
        let tell = |what: &str| {
            self.bar.set_message(what.to_string());
            self.bar.tick();
            if self.interrupt.is_asked("the study is given up") { Err(Error::Cancelled) } else { Ok(()) }
        };
        let (engine, dims) = (self.runner.engine(), self.runner.engine().model().input);
        let mut repeatable = Repeatable::default();
        let mut rows = Vec::new();
        let begun = Instant::now();
        if config.rows.contains(&0) {
            let (found, made) = self.examples(&tell)?;
            rows.extend(found);
            repeatable = made;
        }
        let examples_ms = milliseconds(begun.elapsed());

        let training = match self.place {
            Place::Gpu(gpu, _) => Some(match &self.weights.description {
                None => Training::load_with(gpu, &self.weights.bytes, &self.options())?,
                Some(d) => Training::load_as(gpu, &self.weights.bytes, &d.arch, &self.options())?,
            }),
            Place::Reference => None,
        };
        let gradient = |x: &[f32], targets: &[u32]| match &training {
            Some(training) => in_training(training, x, targets),
            None => Err(Error::Internal("no training mode on the reference".into())),
        };
        let training: std::result::Result<Net<'_>, &str> = match &training {
            None => Err("training mode needs a device"),
            Some(t) if !examples::has_batch_norm(&t.model().layers) => Err("this network has no batch norm"),
            Some(_) => Ok(&gradient),
        };
        let first: Vec<usize> = (0..n).collect();
        let classes = &self.identity.data.classes;
        let name = |class: i64| classes.get(class as usize).cloned().unwrap_or_else(|| class.to_string());
        let bench = Bench {
            engine,
            training,
            images: right.select(&first),
            pair: pair(right),
            pair_names: (name(PAIR.0), name(PAIR.1)),
            minibatch: config.minibatch,
            budget: Budget {
                eps: eps.value as f32,
                step_size: step_size.value as f32,
                steps: config.steps,
                bounds: (0.0, 1.0),
            },
            seed: config.seed,
            tell: &tell,
        };
        let begun = Instant::now();
        let wanted: Vec<u8> = config.rows.iter().copied().filter(|row| *row > 0).collect();
        let Found { rows: more, runs } = if wanted.is_empty() { Found::default() } else { bench.rows(&wanted)? };
        rows.extend(more);
        repeatable.runs.extend(runs);
        let rows_ms = milliseconds(begun.elapsed());
        let begun = Instant::now();
        let (success_by_batch, steps) =
            if config.figures { (bench.lines()?, bench.curves()?) } else { (Vec::new(), Vec::new()) };
        let figures_ms = milliseconds(begun.elapsed());
        let findings = Findings {
            identity: self.identity.clone(),
            samples: n,
            snapped: self.snapped,
            rows,
            success_by_batch,
            steps,
            files: std::collections::BTreeMap::new(),
            timing: Timing { examples_ms, rows_ms, figures_ms },
            gpu_bytes: self.runner.gpu_bytes(),
        };
        repeatable.pair = bench.pair.map(|pair| (pair, dims));
        repeatable.images = Some((bench.images, dims));
        Ok((findings, repeatable))
    }

    fn options(&self) -> Options {
        Options { memory: self.memory, ..Options::default() }
    }

    /// Row 0, on a network of its own.
    fn examples(&self, tell: &dyn Fn(&str) -> Result<()>) -> Result<(Vec<study::Row>, Repeatable)> {
        let config = &self.identity.config;
        tell("row 0, its network")?;
        let (arch, tensors) = examples::network(config.seed)?;
        let model = weights::from_layers(arch.layers.clone(), arch.input, tensors.clone())?;
        let batch = examples::images(config.seed, config.examples, arch.input.len(), model.logits());
        let (layers, input) = (arch.layers, arch.input);
        let (rows, runs) = match self.place {
            Place::Gpu(gpu, _) => {
                let engine = Network::with_options(gpu, model, &self.options())?;
                let training = Training::from_layers_with(gpu, layers, input, tensors.clone(), &self.options())?;
                let gradient = |x: &[f32], targets: &[u32]| in_training(&training, x, targets);
                examples::rows(&engine, Ok(&gradient), &batch, tell)?
            }
            Place::Reference => {
                examples::rows(&Reference::new(model)?, Err("training mode needs a device"), &batch, tell)?
            }
        };
        let runs = runs.into_iter().map(|made| (made.id, made.run)).collect();
        Ok((rows, Repeatable { weights: tensors, examples: Some((batch, input)), runs, ..Repeatable::default() }))
    }
}

/// Gradients of one batch in training mode.
fn in_training(training: &Training, x: &[f32], targets: &[u32]) -> Result<Gradient> {
    let one = |&class: &u32| Sample { class, label: class, direction: 1.0, ..Sample::default() };
    let samples: Vec<Sample> = targets.iter().map(one).collect();
    let gradient = training.loss_gradient(x, &samples, Loss::CrossEntropy)?;
    healthy(&gradient.health)?;
    Ok(gradient)
}

fn milliseconds(t: Duration) -> f64 {
    (t.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbers_ranges_and_figures() {
        assert_eq!(selection("0, 2-4,3,figures").unwrap(), (vec![0, 2, 3, 4], true));
        assert_eq!(selection("13").unwrap(), (vec![13], false));
        for bad in ["", "14", "3-1", "1-", "-1", "a", "1,,2", "figure", "1-14"] {
            assert_eq!(selection(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_step_is_written_as_eps_is() {
        let step = |text: &str| step_size(&distance("--eps", text).unwrap()).text;
        assert_eq!(step("2/255"), "0.5/255");
        assert_eq!(step("0.3"), "0.075");
    }
}
