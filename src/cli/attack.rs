//! `signstep attack`: fills in defaults, checks that model, data and request fit together, runs, writes, tells.

use super::{AttackArgs, answer, answer_json, complain, load_model, open, sha256, warn};
use crate::attack::{Attack, Engine, Method, Norm, Outcome, Targets};
use crate::data::{self, Dataset};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::{self, Config, Device, Distance, Folder, Run, Timing};
use crate::{Network, Options, Reference};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Methods that the command line will have; asking for one is a usage error of its own.
const PLANNED: [&str; 8] = ["pgd", "mifgsm", "nifgsm", "apgd", "apgd-t", "square", "fab-t", "uap"];

/// Eps where neither the user nor the weights say anything.
const DEFAULT_EPS: &str = "8/255";

pub(super) fn run(args: &AttackArgs) -> Result<()> {
    let method = method(&args.method)?;
    for (flag, value) in [("--batch", args.batch), ("--limit", args.limit)] {
        if value == Some(0) {
            return Err(Error::Usage(format!("{flag} must be one or more")));
        }
    }
    // What can be refused without reading anything is refused first.
    let asked = [("--eps", &args.eps), ("--step-size", &args.step_size)];
    for (flag, value) in asked {
        value.as_deref().map(|v| distance(flag, v)).transpose()?;
    }
    let bounds = bounds(&args.bounds)?;

    let start = Instant::now();
    let (model, model_sha256) = load_model(args.model.as_deref())?;
    let mut config = configure(args, method, bounds, &model)?;
    let attack = configured(&config);
    attack.validate()?;
    let data = match &args.data {
        Some(path) => data::load(path, args.limit)?,
        None => first(data::digits()?, args.limit),
    };
    fit(&model, &data)?;
    let targets = targets(args, &data, model.logits(), &mut config)?;
    let attack = attack.targets(targets);
    let load = start.elapsed();

    let reference = args.device.as_deref() == Some("reference");
    let math = if reference { "f64" } else { "f32" };
    let samples = data.labels.len();
    let folder = Folder::check(&args.out, &config, math, &model_sha256, &data.sha256, samples)?;

    let total = samples as u64 * u64::from(config.steps);
    let (device, outcome, timing, gpu_bytes);
    if reference {
        warn("running the f64 reference on the CPU: right, but slow");
        let engine = Reference::new(model.clone())?;
        let start = Instant::now();
        let (out, sample_steps) = attacked(&attack, &engine, &data, total)?;
        timing = Timing { load, compile: Duration::ZERO, attack: start.elapsed(), sample_steps };
        (outcome, gpu_bytes) = (out, None);
        device = Device {
            name: "reference".into(),
            backend: "cpu".into(),
            kind: "software".into(),
            driver: String::new(),
            math,
        };
    } else {
        let start = Instant::now();
        let gpu = open(args.device.as_deref())?;
        let options = Options { batch: args.batch, ..Options::default() };
        let engine = Network::with_options(&gpu, model.clone(), &options)?;
        // Kernels are compiled when they are first needed, which is in the middle of the attack.
        let (opened, compiled) = (start.elapsed(), gpu.compile_time());
        let start = Instant::now();
        let (out, sample_steps) = attacked(&attack, &engine, &data, total)?;
        let late = gpu.compile_time().saturating_sub(compiled);
        timing = Timing { load, compile: opened + late, attack: start.elapsed().saturating_sub(late), sample_steps };
        (outcome, gpu_bytes) = (out, Some(engine.gpu_bytes()));
        let a = gpu.summary();
        device = Device {
            name: a.name.clone(),
            backend: a.backend.clone(),
            kind: a.kind.clone(),
            driver: a.driver.clone(),
            math,
        };
    }
    if let Some((sample, health)) = outcome.first_unhealthy() {
        return Err(Error::NonFinite { sample, stage: health.describe().into() });
    }
    advise(&config, &attack, &outcome);

    let run = Run {
        config: &config,
        device: &device,
        model: &model,
        model_sha256: &model_sha256,
        data_source: &data.source,
        data_sha256: &data.sha256,
        classes: if data.classes.is_empty() { &model.classes } else { &data.classes },
        outcome: &outcome,
        timing,
        gpu_bytes,
    };
    let written = folder.write(&run)?;
    if args.json {
        return answer_json(&report::json(&run));
    }
    answer(&format!("{}\nwritten to {}: {}", report::table(&run), args.out.display(), written.join(", ")))
}

fn method(name: &str) -> Result<Method> {
    match name {
        "fgsm" => Ok(Method::Fgsm),
        "ifgsm" => Ok(Method::Ifgsm),
        _ if PLANNED.contains(&name) => {
            Err(Error::Usage(format!("--method {name}: not built yet; fgsm and ifgsm are")))
        }
        _ => Err(Error::Usage(format!("--method {name}: no such method; there are fgsm and ifgsm"))),
    }
}

/// Reads a distance: a decimal, a fraction, or `inf`.
fn distance(flag: &str, text: &str) -> Result<Distance> {
    let text = text.trim();
    let number = |t: &str| t.trim().parse::<f64>().ok().filter(|v| !v.is_nan());
    let value = match text.split_once('/') {
        Some((n, d)) => number(n).zip(number(d)).map(|(n, d)| n / d).filter(|v| v.is_finite()),
        None => number(text),
    };
    match value {
        None => Err(Error::Usage(format!("{flag} {text}: not a number or a fraction such as 8/255"))),
        Some(v) if v < 0.0 => Err(Error::Usage(format!("{flag} {text}: must be zero or more"))),
        Some(v) if v.is_infinite() && flag != "--eps" => Err(Error::Usage(format!("{flag} {text}: must be finite"))),
        Some(value) => Ok(Distance { text: text.to_string(), value }),
    }
}

fn bounds(text: &str) -> Result<Option<(f32, f32)>> {
    if text == "none" {
        return Ok(None);
    }
    let pair = text.split_once(',').and_then(|(lo, hi)| Some((lo.trim().parse().ok()?, hi.trim().parse().ok()?)));
    match pair {
        Some((lo, hi)) if f32::is_finite(lo) && f32::is_finite(hi) && lo < hi => Ok(Some((lo, hi))),
        _ => Err(Error::Usage(format!("--bounds {text}: two finite numbers, the lower one first, or none"))),
    }
}

/// Everything that was asked for, defaults filled in.
fn configure(args: &AttackArgs, method: Method, bounds: Option<(f32, f32)>, model: &Model) -> Result<Config> {
    let suggested = |value: &Option<String>, what: &str| {
        value
            .as_deref()
            .map(|v| {
                distance("--eps", v).map_err(|_| Error::Model {
                    place: args.model.as_deref().map_or_else(|| "weights".into(), |p| p.display().to_string()),
                    detail: format!("metadata {what} is {v}, which is no distance"),
                })
            })
            .transpose()
    };
    let (eps, from_weights) = match (&args.eps, suggested(&model.eps, "eps")?) {
        (Some(text), _) => (distance("--eps", text)?, false),
        (None, Some(eps)) => (eps, true),
        (None, None) => (distance("--eps", DEFAULT_EPS)?, false),
    };
    let steps = args.steps.unwrap_or(match method {
        Method::Fgsm => 1,
        Method::Ifgsm | Method::Pgd => 10,
    });
    let hint = suggested(&model.step_size, "step_size")?.filter(|_| from_weights && steps == 10);
    let step_size = match (&args.step_size, method, hint) {
        (Some(text), ..) => distance("--step-size", text)?,
        (None, Method::Ifgsm | Method::Pgd, Some(hint)) => hint,
        _ if eps.value.is_infinite() => {
            return Err(Error::Usage("--eps inf: give a --step-size as well".into()));
        }
        (None, Method::Fgsm, _) => eps.clone(),
        (None, Method::Ifgsm | Method::Pgd, None) => default_step(&eps, steps),
    };
    Ok(Config {
        method,
        targets: if args.untargeted { "none".into() } else { args.targets.clone() },
        targets_sha256: None,
        eps,
        step_size,
        steps,
        bounds,
        quantise: !args.no_quantize,
        attack_all: args.attack_all,
        seed: args.seed,
        limit: args.limit,
    })
}

/// 2.5·eps/steps, written as eps is: 2/255 for ten steps of 8/255.
fn default_step(eps: &Distance, steps: u32) -> Distance {
    let steps = f64::from(steps.max(1));
    let (eps_part, divisor) = match eps.text.split_once('/') {
        Some((n, d)) => (n.trim().parse().unwrap_or(eps.value), Some(d.trim())),
        None => (eps.value, None),
    };
    let part = 2.5 * eps_part / steps;
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
    let attack = match c.method {
        Method::Fgsm => Attack::fgsm(eps),
        Method::Ifgsm => Attack::ifgsm(eps),
        Method::Pgd => Attack::pgd(Norm::Linf, eps),
    };
    attack
        .steps(c.steps)
        .step_size(c.step_size.value as f32)
        .bounds(c.bounds)
        .quantise(c.quantise)
        .attack_all(c.attack_all)
        .seed(c.seed)
}

fn first(mut data: Dataset, limit: Option<usize>) -> Dataset {
    let n = limit.unwrap_or(usize::MAX).min(data.labels.len());
    data.labels.truncate(n);
    data.images.truncate(n * data.dims.len());
    data
}

/// Checks that the network can take the images, and knows their labels.
fn fit(model: &Model, data: &Dataset) -> Result<()> {
    let fail = |detail: String| Err(Error::Data { place: data.source.clone(), detail });
    if data.labels.is_empty() {
        return fail("holds no images".into());
    }
    if data.dims != model.input {
        return fail(format!("images are {}, but {} takes {}", data.dims, model.arch, model.input));
    }
    let classes = model.logits();
    if let Some((i, label)) = data.labels.iter().enumerate().find(|(_, l)| !(0..classes as i64).contains(*l)) {
        return fail(format!("label {label} of sample {i} is none of the {classes} classes of {}", model.arch));
    }
    if classes < 2 {
        return Err(Error::Model { place: model.arch.clone(), detail: "has one class: nothing to turn to".into() });
    }
    Ok(())
}

fn targets(args: &AttackArgs, data: &Dataset, classes: usize, config: &mut Config) -> Result<Targets> {
    Ok(match config.targets.as_str() {
        "none" => Targets::None,
        "random" => Targets::Random,
        "next" => Targets::Next,
        "least-likely" => Targets::LeastLikely,
        "second" => Targets::Second,
        _ => {
            let list = data::read_targets(Path::new(&args.targets), data.labels.len(), classes)?;
            let bytes: Vec<u8> = list.iter().flat_map(|t| t.to_le_bytes()).collect();
            config.targets = "file".into();
            config.targets_sha256 = Some(sha256(&bytes));
            Targets::Classes(list)
        }
    })
}

/// Runs the attack under a progress bar; gives the number of sample-steps too.
fn attacked(attack: &Attack, engine: &dyn Engine, data: &Dataset, total: u64) -> Result<(Outcome, u64)> {
    let bar = progress_bar(total);
    let mut done = 0;
    let outcome = attack.run_with(engine, &data.images, &data.labels, &mut |steps| {
        done += steps;
        bar.inc(steps);
        true
    });
    bar.finish_and_clear();
    Ok((outcome?, done))
}

/// A bar on standard error, drawn only on a terminal.
fn progress_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % of {len} sample-steps, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

/// Warnings that need the result, or belong beside it.
fn advise(config: &Config, attack: &Attack, outcome: &Outcome) {
    let (eps, reach) = (config.eps.value, config.step_size.value * f64::from(config.steps));
    if eps.is_finite() && reach < eps * (1.0 - 1e-9) {
        warn(format!("{} steps of {} do not reach eps {}", config.steps, config.step_size.text, config.eps.text));
    }
    if attack.delivers_bytes() {
        let levels = (f64::from(outcome.effective_eps) * 255.0).round();
        if levels < 1.0 && eps > 0.0 {
            warn(format!(
                "eps {} is less than one of 255 grey levels: nothing can be delivered in 8 bits (see --no-quantize)",
                config.eps.text
            ));
        } else if eps <= 1.0 && (f64::from(outcome.effective_eps) - eps).abs() > 1e-6 {
            warn(format!("8-bit images change by at most {levels}/255, not by eps {}", config.eps.text));
        }
    }
    if outcome.snapped > 0.0 {
        let moved = outcome.snapped * 255.0;
        complain("note", &format!("clean images were rounded to 8 bits, by at most {moved:.3}/255"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_decimals_fractions_or_inf() {
        let value = |t: &str| distance("--eps", t).map(|d| d.value).map_err(|e| e.to_string());
        assert_eq!(value("8/255"), Ok(8.0 / 255.0));
        assert_eq!(value("0.5/255"), Ok(0.5 / 255.0));
        assert_eq!(value("0.3"), Ok(0.3));
        assert_eq!(value("inf"), Ok(f64::INFINITY));
        for bad in ["", "x", "-1", "-1/255", "1/0", "0/0", "nan", "8/", "1/2/3"] {
            let message = value(bad).unwrap_err();
            assert!(message.starts_with("--eps"), "{bad}: {message}");
        }
        assert!(distance("--step-size", "inf").is_err());
    }

    #[test]
    fn the_default_step_is_written_as_eps_is() {
        let step = |t: &str, n| default_step(&distance("--eps", t).unwrap(), n);
        assert_eq!(step("8/255", 10), Distance { text: "2/255".into(), value: 2.0 / 255.0 });
        assert_eq!(step("1/255", 10).text, "0.25/255");
        assert_eq!(step("0.3", 10), Distance { text: "0.075".into(), value: 0.075 });
    }

    #[test]
    fn bounds_are_two_numbers_or_none() {
        assert_eq!(bounds("0,1"), Ok(Some((0.0, 1.0))));
        assert_eq!(bounds("-2.5, 2.5"), Ok(Some((-2.5, 2.5))));
        assert_eq!(bounds("none"), Ok(None));
        for bad in ["1,0", "0", "0,nan", "0,inf", "a,b", "0,1,2"] {
            assert!(bounds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn methods_that_are_not_built_say_so() {
        assert!(method("pgd").unwrap_err().to_string().contains("not built yet"));
        assert!(method("nonsense").unwrap_err().to_string().contains("no such method"));
    }

    #[test]
    fn the_program_without_arguments_has_defaults() {
        let args = super::super::defaults();
        assert_eq!((args.method.as_str(), args.targets.as_str(), args.seed), ("ifgsm", "random", 0));
    }
}
