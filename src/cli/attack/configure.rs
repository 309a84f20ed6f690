//! From arguments to a configuration, defaults filled in and refused where it cannot be, and from that to an attack.

use super::args::AttackArgs;
use crate::attack::{Attack, Loss, Method, Norm, Targets};
use crate::cli::defaults::{default_eps, default_step};
use crate::cli::flags::{delivers_bytes, distance, distances};
use crate::cli::specs::Rule;
use crate::data;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::{Config, Distance, Ladder, Radius};
use std::path::Path;

/// What needs images that have something for themselves, where one perturbation serves all of them.
pub(super) fn refuse_for_shared(args: &AttackArgs, method: Method, norm: Norm) -> Result<()> {
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
pub(super) fn configure(
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
    // It was chosen for their radius, and for the number of steps that is the default of those who take it.
    let hint = suggested(&model.step_size, "step_size")?.filter(|_| from_weights && steps == 10 && !args.min_eps);
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
    let quantise = delivers_bytes(args.no_quantize, bounds);
    let ladder = if args.min_eps { Some(ladder(args, &list, norm, quantise)?) } else { None };
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
        quantise,
        attack_all: args.attack_all,
        keep_going: args.keep_going,
        seed: args.seed,
        limit: args.limit,
        radii,
        ladder,
    })
}

/// The radii among which the smallest is looked for: grey levels where pixels have them.
fn ladder(args: &AttackArgs, list: &[Distance], norm: Norm, quantise: bool) -> Result<Ladder> {
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
    let ladder = if norm == Norm::Linf && quantise { Ladder::levels(eps.value) } else { Ladder::parts(eps.value) };
    ladder.map_or_else(|| fail("is less than one grey level"), Ok)
}

/// The attack that a configuration describes, but for its targets.
pub(super) fn configured(c: &Config) -> Attack {
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

/// The targets that a configuration names: a rule, a class by its number or its name, or a file. It names them in one
/// way only from here on: a class by its number alone, a file by the hash of what it says.
pub(super) fn targets(samples: usize, names: &[String], classes: usize, config: &mut Config) -> Result<Targets> {
    let rule = config.targets.parse::<Rule>();
    let named = || names[..names.len().min(classes)].iter().position(|name| *name == config.targets).map(Rule::Class);
    match rule.or_else(|e| named().ok_or(e)) {
        Ok(rule) => {
            rule.check(classes).map_err(|e| Error::Usage(format!("--{e}")))?;
            config.targets = rule.to_string();
            return Ok(rule.targets());
        }
        Err(e) if !Path::new(&config.targets).exists() => {
            let names = if names.is_empty() { "" } else { " or names" };
            return Err(Error::Usage(format!("--targets: {e}{names}; nor is there a file of that name")));
        }
        Err(_) => {}
    }
    let list = data::read_targets(Path::new(&config.targets), samples, classes)?;
    if list.iter().all(|target| *target == -1) {
        config.targets = "none".into();
        return Ok(Targets::None);
    }
    let bytes: Vec<u8> = list.iter().flat_map(|t| t.to_le_bytes()).collect();
    config.targets = "file".into();
    config.targets_sha256 = Some(data::sha256([&bytes[..]]));
    Ok(Targets::Classes(list))
}
