//! `signstep attack`: fills in defaults, checks that model, data and request fit together, and runs what the folder
//! does not hold yet.

mod args;
mod configure;
mod job;

use super::advice::{advise, tell_missing};
use super::apart;
use super::engine::Place;
use super::flags::{bounds, bytes, distance, distances, named, positive};
use super::images::load_images;
use super::interrupt::Interrupt;
use super::network::load_model;
use super::tell::{complain, tell};
use crate::attack::{Method, Norm};
use crate::error::{Error, Result};
use crate::report::{Folder, Identity, Opened, RUN_NAMES, Shard};
use configure::{configure, configured, refuse_for_shared, targets};
use job::Job;
use std::path::Path;
use std::time::Instant;

pub(super) use args::{AttackArgs, defaults};

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
    attack.check_on(&model)?;
    let images = load_images(&args.data, args.limit, &model)?;
    if model.logits() < 2 {
        return Err(Error::Model { place: model.arch.clone(), detail: "has one class: nothing to turn to".into() });
    }
    let shard = shard.map(|(index, count)| Shard::new(index, count, images.samples)).transpose()?;
    let names = if images.source.classes.is_empty() { &model.classes } else { &images.source.classes };
    let targets = targets(images.samples, names, model.logits(), &mut config)?;
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
