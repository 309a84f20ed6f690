//! A plan: the list of dispatches that run a network forward and backward, and the memory they share. Pure data, made
//! from a model and a device's limits; the batch size is no part of it, so every batch runs the same kernels.
//!
//! Forward keeps one bit for each ReLU and one byte for each max-pool output. Activations and gradients are needed only
//! until their last reader, so they take turns in a few slots.
//!
//! | file | what it is |
//! |---|---|
//! | `plan/layers.rs` | layer by layer forward, and back along the tape |
//! | `plan/slots.rs` | the slots that activations share |
//! | `plan/fits.rs` | what fits a device |
//! | `plan/training.rs` | the plan of a network in training mode, made of the same |

mod fits;
mod layers;
mod slots;
mod training;

pub use crate::gpu::CoopMatrix;
pub use crate::ops::shared::Shared;
pub use crate::ops::step::Steps;
pub use crate::ops::{Family, Math, Target, Tile, Tuning, Variant};
pub use training::TrainingPlan;

use crate::attack::{Health, Loss, Norm, Rule, Sample, State};
use crate::error::{Error, Result};
use crate::gpu::Storage;
use crate::kernel::Dispatch;
use crate::model::{Dims, Layer, Model};
use crate::ops::{self, Build, Ids};
use crate::tensor::{Kind, Resource, Stages};
use fits::{check_dispatches, largest_batch, read_back};
use layers::{Tail, backward, forward};
use slots::assign_slots;
use std::fmt;
use std::ops::Range;

/// Dispatches of one network, in order, and what they run on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From images to logits.
    pub forward: Vec<Dispatch>,
    /// From logits to the input gradient, cross-entropy first.
    pub backward: Vec<Dispatch>,
    /// What may stand there in place of cross-entropy.
    pub losses: Vec<(Loss, Dispatch)>,
    /// A random place in each sample's ball, for the whole batch, before the first step.
    pub start: Dispatch,
    /// One sign step for the whole batch.
    pub step: Dispatch,
    /// What other rules than the sign step do.
    pub rules: Vec<Steps>,
    /// From logits to plain numbers, when they are wanted.
    pub logits: Dispatch,
    /// What stands around a gradient where all samples share one perturbation.
    pub shared: Shared,
    /// What is done on the device where images come from a buffer of the host program.
    pub pixels: PixelDispatches,
    /// What the dispatches' bindings refer to.
    pub resources: Vec<Resource>,
    /// Where one of several tiles was chosen.
    pub sites: Vec<Site>,
    /// Where kernels leave texels that go to textures.
    pub(crate) stages: Stages<usize>,
    pub(crate) ids: Ids,
    target: Target,
    arch: String,
    input: Dims,
}

/// A layer in one direction, for which one of several tiles was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Whether its dispatches are in [`Plan::forward`]; else they are in [`Plan::backward`].
    pub is_forward: bool,
    /// Where they are there.
    pub range: Range<usize>,
    /// What the choice depends on: equal for layers of one shape and epilogue.
    pub shape: String,
}

/// What happens to pixels that never see the host, each in one dispatch for the whole batch.
#[derive(Clone, Debug)]
pub struct PixelDispatches {
    /// Looks for values that are not finite or out of bounds among the clean images.
    pub inspect: Dispatch,
    /// The same among the input gradients.
    pub inspect_gradient: Dispatch,
    /// Snaps clean images to k/255.
    pub snap: Dispatch,
    /// Rounds iterates as they are delivered.
    pub quantise: Dispatch,
    /// The same within an L2 ball, where the device has workgroups that large.
    pub quantise_l2: Option<Dispatch>,
}

impl PixelDispatches {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Dispatch> {
        [&self.inspect, &self.inspect_gradient, &self.snap, &self.quantise].into_iter().chain(&self.quantise_l2)
    }
}

impl Plan {
    /// Plans `model` for a device.
    ///
    /// # Errors
    /// [`Error::Model`] naming a layer that cannot run where it stands; [`Error::OutOfMemory`] when not even one sample
    /// fits the limits.
    pub fn new(model: &Model, target: &Target) -> Result<Self> {
        model.check()?;
        if target.math == Math::Coop && target.coop.is_none() {
            return Err(Error::Usage("math coop: the device multiplies no matrices".into()));
        }
        let mut build = Build::new(target);
        let (pixels, classes) = (model.input.len() as u64, model.logits() as u64);
        let ids = Ids {
            x0: build.resource("clean images", Kind::Floats, pixels),
            x: build.resource("iterates", Kind::Floats, pixels),
            dx: build.resource("input gradient", Kind::Floats, pixels),
            samples: build.resource("samples", Kind::Samples, (size_of::<Sample>() / 16) as u64),
            states: build.resource("states", Kind::Samples, (size_of::<State>() / 16) as u64),
            memory: build.resource("memory of rules", Kind::Memory, 4 * pixels),
            bounds: build.resource("bounds", Kind::Uniform, 0),
            perturbation: build.resource("shared perturbation", Kind::Whole(pixels), 0),
            sum: build.resource("sum of gradients", Kind::Whole(pixels), 0),
            logits: build.resource("logits", Kind::Floats, classes),
            loss: build.resource("loss", Kind::Floats, 1),
            zero_gradients: build.resource("zero gradients", Kind::Words, 1),
            health: build.resource("health", Kind::Words, 1),
        };
        build.health = ids.health;

        let (normalise, layers) = match model.layers.split_first() {
            Some((Layer::Normalise { mean, std }, rest)) => (Some((&mean[..], &std[..])), rest),
            _ => (None, &model.layers[..]),
        };
        let channels = ops::pointwise::channels(&mut build, model.input, normalise);
        let image = build.activation(model.input, None);
        ops::pointwise::normalise_forward(&mut build, channels, ids.x, image);
        let mut tape = Vec::new();
        let z = forward(&mut build, model, layers, image, Tail::default(), &mut tape)?;
        if z.signs.is_some() || z.dims.h * z.dims.w != 1 {
            return Err(Error::model("the last layer", "must give one plain number for each class"));
        }
        let forward_end = build.dispatches.len();

        ops::pointwise::logits_forward(&mut build, z, ids.logits);
        let mut dz = build.activation(z.dims, None);
        let loss = |l| ops::loss::forward(&build, l, z, dz, &ids);
        let losses = [Loss::Margin, Loss::Dlr, Loss::Difference].map(|l| (l, loss(l)));
        let cross_entropy = loss(Loss::CrossEntropy);
        build.push(cross_entropy);
        // What stands before the first layer and behind the last one is f32 in every arithmetic.
        let mut whole = vec![image.id, z.id, dz.id];
        let unscale = target.math.keeps_f16().then(|| {
            let (scaled, unscale) = ops::scale::input_grad(&mut build, dz);
            dz = scaled;
            unscale
        });
        let dimage = backward(&mut build, model, &tape, dz, None);
        ops::pointwise::normalise_input_grad(&mut build, channels, dimage, ids.dx, unscale);
        whole.extend([dz.id, dimage.id]);
        if target.math.keeps_f16() {
            build.halve_except(&whole);
        }

        let start = ops::step::random_start(&build, model.input, &ids);
        let step = ops::step::sign_step(&build, model.input, &ids);
        let rules = [
            Rule::Momentum,
            Rule::Lookahead,
            Rule::L2,
            Rule::Apgd(Norm::Linf),
            Rule::Apgd(Norm::L2),
            Rule::Square(Norm::Linf),
            Rule::Square(Norm::L2),
            Rule::Fab(Norm::Linf),
            Rule::Fab(Norm::L2),
        ];
        let rules = rules.into_iter().filter_map(|r| ops::step::steps(&mut build, r, model.input, &ids)).collect();
        let pixels = PixelDispatches {
            inspect: ops::quantise::inspect(&build, model.input, &ids, ids.x0, Health::ACTIVATION),
            inspect_gradient: ops::quantise::inspect(&build, model.input, &ids, ids.dx, Health::GRADIENT),
            snap: ops::quantise::snap(&build, model.input, &ids),
            quantise: ops::quantise::quantise(&build, model.input, &ids),
            quantise_l2: ops::quantise::quantise_l2(&build, model.input, &ids),
        };
        let shared = Shared::new(&build, model.input, &ids);
        let Build { mut resources, activations, mut dispatches, sites, .. } = build;
        let stages = assign_slots(&activations, &mut dispatches, &mut resources, target.storage);
        // They stand where cross-entropy stands, on the same memory.
        let slots = dispatches[forward_end + 1].bindings.clone();
        let losses = losses.map(|(l, d)| (l, Dispatch { bindings: slots.clone(), ..d })).to_vec();
        let backward = dispatches.split_off(forward_end + 1);
        let logits = dispatches.pop().expect("pushed above");
        let site = |(range, shape): (Range<usize>, String)| {
            let is_forward = range.start < forward_end;
            let from = if is_forward { 0 } else { forward_end + 1 };
            Site { is_forward, range: range.start - from..range.end - from, shape }
        };
        let plan = Plan {
            sites: sites.into_iter().map(site).collect(),
            forward: dispatches,
            backward,
            losses,
            start,
            step,
            rules,
            logits,
            shared,
            pixels,
            resources,
            stages,
            ids,
            target: target.clone(),
            arch: model.arch.clone(),
            input: model.input,
        };
        check_dispatches(plan.dispatches(), &plan.resources, target)?;
        plan.largest_batch(u64::MAX)?;
        Ok(plan)
    }

    /// The dispatches of a site.
    pub fn at(&self, site: &Site) -> &[Dispatch] {
        let list = if site.is_forward { &self.forward } else { &self.backward };
        &list[site.range.clone()]
    }

    /// Every dispatch there is, whether a run needs it or not.
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        let others =
            [&self.logits, &self.start, &self.step].into_iter().chain(self.shared.all()).chain(self.pixels.all());
        let rules = self.rules.iter().flat_map(Steps::all);
        let losses = self.losses.iter().map(|(_, d)| d);
        self.forward.iter().chain(&self.backward).chain(others).chain(losses).chain(rules)
    }

    /// What `rule` does where it is not the sign step.
    pub(crate) fn steps_of(&self, rule: Rule) -> Option<(usize, &Steps)> {
        self.rules.iter().enumerate().find(|(_, s)| s.rule == rule)
    }

    /// What the plan was made for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether any layer is computed in other arithmetic than that of [`Math::F32`].
    pub fn is_fast(&self) -> bool {
        self.dispatches().any(|d| d.kernel.entry.contains("winograd") || !d.kernel.halves.is_empty())
    }

    /// Bytes on the device that grow with the batch, for one sample; without what rules remember.
    pub fn bytes_per_sample(&self) -> u64 {
        // A texture is whole rows: told here as if a row could be split, in `bytes` as it is.
        self.resources
            .iter()
            .filter(|r| r.kind != Kind::Memory)
            .map(|r| r.bytes(1, Storage::Buffer).unwrap_or(u64::MAX) * u64::from(r.per_sample > 0))
            .sum()
    }

    /// Bytes on the device for a batch of `n`, weights included, but not what rules remember.
    pub fn bytes(&self, n: u64) -> u64 {
        let all = self.resources.iter().filter(|r| r.kind != Kind::Memory);
        all.fold(0, |sum, r| sum.saturating_add(r.charged(n, self.target.storage).unwrap_or(u64::MAX)))
    }

    /// Bytes on the device that a rule with a memory takes for one sample beside [`Plan::bytes_per_sample`].
    pub fn remembered_bytes_per_sample(&self) -> u64 {
        self.resources[self.ids.memory].bytes(1, Storage::Buffer).unwrap_or(u64::MAX)
    }

    fn classes(&self) -> usize {
        self.resources[self.ids.logits].per_sample as usize
    }

    /// Floating-point operations for one sample in the largest dispatch, which is not cut.
    pub(crate) fn largest_dispatch(&self) -> u64 {
        self.dispatches().map(|d| d.flops).max().unwrap_or(0)
    }

    /// Floating-point operations for one sample, from image to logits.
    pub fn flops_forward(&self) -> u64 {
        self.forward.iter().map(|d| d.flops).sum()
    }

    /// Floating-point operations for one sample, from logits to input gradient.
    pub fn flops_backward(&self) -> u64 {
        self.backward.iter().map(|d| d.flops).sum()
    }

    /// The largest batch that fits the limits and `memory` bytes; larger ones are cut. A pure function of the two.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when it is zero.
    pub fn largest_batch(&self, memory: u64) -> Result<usize> {
        self.largest_batch_of(Rule::Sign, memory)
    }

    /// The same for a rule, which may remember images.
    ///
    /// # Errors
    /// As [`Plan::largest_batch`].
    pub fn largest_batch_of(&self, rule: Rule, memory: u64) -> Result<usize> {
        let remembers = rule.memory() > 0;
        let resources: Vec<&Resource> = self.resources.iter().filter(|r| remembers || r.kind != Kind::Memory).collect();
        let read_back = read_back(self.input, self.classes());
        largest_batch(self.dispatches(), &resources, &self.target, read_back, memory)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = match self.target.storage {
            Storage::Buffer => "buffers",
            Storage::Texture => "textures",
        };
        writeln!(
            f,
            "{} for {} images, activations in {storage}; grids in workgroups, N samples",
            self.arch, self.input
        )?;
        let parts = [
            ("start", vec![&self.start]),
            ("forward", self.forward.iter().collect()),
            ("backward", self.backward.iter().collect()),
            ("step", vec![&self.step]),
            ("other losses, in the place of cross-entropy", self.losses.iter().map(|(_, d)| d).collect()),
            ("other rules, in the place of start and step", self.rules.iter().flat_map(Steps::all).collect()),
            ("one perturbation for all images", self.shared.all().collect()),
            ("images in buffers", self.pixels.all().collect()),
        ];
        for (name, dispatches) in parts {
            let flops: u64 = dispatches.iter().map(|d| d.flops).sum();
            writeln!(f, "\n{name}: {} dispatches, {:.3} MFLOP a sample", dispatches.len(), flops as f64 / 1e6)?;
            for d in dispatches {
                let names: Vec<String> = d
                    .bindings
                    .iter()
                    .filter(|(_, id)| !matches!(self.resources[*id].kind, Kind::Constant(_) | Kind::Texels(_)))
                    .map(|(name, id)| format!("{name}={}", self.resources[*id].label))
                    .collect();
                writeln!(f, "  {d} {}", names.join(", "))?;
            }
        }
        writeln!(f, "\nmemory, bytes a sample: {}", self.bytes_per_sample())?;
        let mut weights = 0;
        for r in &self.resources {
            let bytes = r.bytes(1, Storage::Buffer).unwrap_or(u64::MAX);
            match r.kind {
                Kind::Constant(_) | Kind::Texels(_) => weights += bytes,
                _ if r.per_sample == 0 => writeln!(f, "  {:<28} {bytes:>10}  (for any batch)", r.label)?,
                Kind::Memory => writeln!(f, "  {:<28} {bytes:>10}  (beside the sum, where a rule remembers)", r.label)?,
                _ => writeln!(f, "  {:<28} {bytes:>10}", r.label)?,
            }
        }
        writeln!(f, "  {:<28} {weights:>10}  (for any batch)", "weights, both directions")
    }
}
