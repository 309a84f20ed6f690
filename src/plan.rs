//! A plan: the list of dispatches that run a network forward and backward, and the memory they share. Pure data, made
//! from a model and a device's limits; the batch size is no part of it, so every batch runs the same kernels.
//!
//! Forward keeps one bit for each ReLU and one byte for each max-pool output. Activations and gradients are needed only
//! until their last reader, so they take turns in a few slots.

use crate::attack::{Health, Loss, Norm, Rule, Sample, State};
use crate::error::{Error, Result};
use crate::gpu::Storage;
use crate::gpu::TEXTURE_WIDTH;
use crate::kernel::{Dispatch, Grid};
use crate::model::{Conv2d, Dims, Layer, Linear, Model, Shortcut};
use crate::ops::pool::Window;
use crate::ops::{self, ACTIVATIONS, Activation, Build, Epilogue, Ids, Residual, ResidualKind, Value};
use crate::tensor::{Kind, ROW, Resource, Stages, most_texels};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

mod training;

pub use crate::gpu::CoopMatrix;
pub use crate::ops::shared::Shared;
pub use crate::ops::step::Steps;
pub use crate::ops::{Family, Math, Target, Tile, Tuning, Variant};
pub use training::TrainingPlan;

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

/// What the backward pass needs to know of a layer that has run forward. `x` is the value that entered it.
enum Node<'m> {
    Conv { conv: &'m Conv2d, x: Value },
    Linear { linear: &'m Linear, x: Value },
    Affine { name: &'m str, affine: usize, x: Value },
    MaxPool { window: Window, x: Value, argmax: usize },
    AvgPool { window: Window, x: Value },
    GlobalAvgPool { x: Value },
    Residual { body: Vec<Node<'m>>, shortcut: Back<'m> },
}

/// The way back of a shortcut.
enum Back<'m> {
    Carried(ResidualKind),
    Projected { conv: &'m Conv2d, x: Value },
}

/// What the last layer of a residual body takes on from outside.
#[derive(Clone, Copy, Default)]
struct Tail {
    residual: Option<Residual>,
    relu: bool,
}

fn unsupported<T>(layer: &Layer, why: &str) -> Result<T> {
    Err(Error::model(layer.label(), format!("not supported here: {why}")))
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
        plan.check_dispatches()?;
        plan.largest_batch(u64::MAX)?;
        Ok(plan)
    }

    /// Checks what no batch size can mend.
    fn check_dispatches(&self) -> Result<()> {
        check_dispatches(self.dispatches(), &self.resources, &self.target)
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

/// Results are read back through one buffer: the largest of them, and up to two words and their alignment beside it;
/// and the word of `gpu/witness.rs` once.
fn read_back(input: Dims, classes: usize) -> u64 {
    input.len().max(classes) as u64 * 4 + 8
}

/// Checks what no batch size can mend: grids, workgroups, uniform bindings and loops.
fn check_dispatches<'d>(
    dispatches: impl Iterator<Item = &'d Dispatch>,
    resources: &[Resource],
    target: &Target,
) -> Result<()> {
    let limits = &target.limits;
    for d in dispatches {
        let fail = |detail: String| Err(Error::model(&d.layer, format!("too large for this device: {detail}")));
        let [x, y, _] = d.grid.workgroups(1);
        if u64::from(x.max(y)) > limits.workgroups {
            return fail(format!("{x}×{y} workgroups, {} in a dimension", limits.workgroups));
        }
        if let Some(over) = d.kernel.exceeds(limits)? {
            return fail(over);
        }
        let size = d.kernel.constant("WG").unwrap_or(1);
        if size > limits.workgroup_size {
            return fail(format!("{size} invocations in a workgroup, {} allowed", limits.workgroup_size));
        }
        // Weights are cut to fit; the means and deviations of the channels are not.
        for (_, id) in d.bindings.iter().filter(|(name, _)| *name == "channels") {
            let bytes = resources[*id].bytes(1, Storage::Buffer).unwrap_or(u64::MAX);
            if bytes > limits.uniform_binding {
                return fail(format!("{bytes} bytes in a uniform binding, {} allowed", limits.uniform_binding));
            }
        }
        let rounds = d.kernel.rounds();
        let allowed = target.rounds;
        if rounds >= allowed {
            return fail(format!("{rounds} rounds of loops in one invocation, fewer than {allowed} allowed"));
        }
    }
    Ok(())
}

/// The largest binding, whatever a device allows: what 32 bits count, in whole texels.
const BINDING: u64 = (1 << 32) - 16;

/// The largest batch that fits the limits and `memory` bytes, `read_back` bytes of each sample being read at a time.
fn largest_batch<'d>(
    dispatches: impl Iterator<Item = &'d Dispatch>,
    resources: &[&Resource],
    target: &Target,
    read_back: u64,
    memory: u64,
) -> Result<usize> {
    let limits = &target.limits;
    // Metal tells kernels the sizes of bindings in 32 bits, and what lies beyond would be read as the last texel.
    let binding = limits.storage_binding.min(BINDING);
    let mut most = limits.workgroups.min(1 << 30);
    let mut tightest = ("dispatch", 0, "workgroups in a dimension".to_string());
    for r in resources {
        let (allowed, limit) = match (&r.kind, target.storage) {
            (kind, Storage::Texture) if kind.is_texels() => {
                (kind.texel_bytes() * most_texels(limits.texture_side), "texture side")
            }
            (Kind::Constant(_) | Kind::Uniform | Kind::Texels(_), _) => (binding.min(limits.buffer), "binding"),
            (Kind::Stage(_), _) => (binding.min(limits.buffer / ROW * ROW), "storage binding"),
            _ => (binding.min(limits.buffer), "storage binding"),
        };
        let one = r.bytes(1, Storage::Buffer).unwrap_or(u64::MAX);
        let fits = match r.per_sample {
            0 => {
                if one <= allowed {
                    u64::MAX
                } else {
                    0
                }
            }
            // Indices in a kernel are u32, and some back ends treat them as signed.
            _ => (allowed / one).min((1 << 31) / r.per_sample),
        };
        if fits < most {
            most = fits;
            let narrow = allowed == 0 && limit == "texture side";
            let limit = if narrow {
                format!("textures {} texels wide, where {TEXTURE_WIDTH} are needed", limits.texture_side)
            } else {
                format!("{limit} of {allowed} bytes")
            };
            tightest = (&r.label, one, limit);
        }
    }
    for d in dispatches {
        let fits = d.grid.most(limits.workgroups);
        if fits < most {
            most = fits;
            tightest = (&d.layer, 0, "workgroups in a dimension".into());
        }
    }
    let fits = limits.buffer.saturating_sub(32) / read_back;
    if fits < most {
        most = fits;
        tightest = ("reading back", read_back, format!("buffer of {} bytes", limits.buffer));
    }
    // Textures grow by rows: the largest batch is looked for, never falling short of what `bytes` says of it.
    let bytes = |n: u64| {
        let charged = |r: &&Resource| r.charged(n, target.storage).unwrap_or(u64::MAX);
        resources.iter().map(charged).fold(0, u64::saturating_add)
    };
    if most > 0 && bytes(most) > memory {
        let (mut fits, mut larger) = (0, most);
        while larger - fits > 1 {
            let middle = fits + (larger - fits) / 2;
            if bytes(middle) <= memory { fits = middle } else { larger = middle }
        }
        most = fits;
        tightest = ("one sample", bytes(1), format!("memory budget of {memory} bytes"));
    }
    if most == 0 {
        return Err(Error::OutOfMemory { what: tightest.0.into(), bytes: tightest.1, limit: tightest.2 });
    }
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}

/// Runs `layers` on `x`, leaving dispatches and a tape for the way back.
fn forward<'m>(
    build: &mut Build,
    model: &'m Model,
    layers: &'m [Layer],
    mut x: Value,
    tail: Tail,
    tape: &mut Vec<Node<'m>>,
) -> Result<Value> {
    let mut i = 0;
    while let Some(layer) = layers.get(i) {
        i += 1;
        let last = i == layers.len();
        let label = layer.label();
        let dims = layer.output(x.dims)?;
        let params = |name: &str| model.params.get(name).ok_or_else(|| Error::model(name, "has no parameters"));
        // A ReLU right behind is done by the layer itself.
        let followed = matches!(layers.get(i), Some(Layer::Relu));
        let relu = followed || (last && tail.relu);
        let residual = if last { tail.residual } else { None };
        let fuses =
            matches!(layer, Layer::Conv2d(_) | Layer::Linear(_) | Layer::Affine { .. } | Layer::Residual { .. });
        if fuses && followed {
            i += 1;
        }
        match layer {
            Layer::Conv2d(conv) => {
                let signs = relu.then(|| build.signs(&label, dims));
                let y = build.activation(dims, signs);
                let epilogue = Epilogue { residual, relu: signs, mask: None };
                ops::conv::forward(build, conv, params(&conv.name)?, x, y, epilogue);
                tape.push(Node::Conv { conv, x });
                x = y;
            }
            Layer::Linear(linear) => {
                let signs = relu.then(|| build.signs(&label, dims));
                let y = build.activation(dims, signs);
                ops::linear::forward(
                    build,
                    linear,
                    params(&linear.name)?,
                    x,
                    y,
                    Epilogue { relu: signs, ..Epilogue::default() },
                );
                tape.push(Node::Linear { linear, x });
                x = y;
            }
            Layer::Affine { name, .. } => {
                let affine = ops::affine::weights(build, name, params(name)?);
                let signs = relu.then(|| build.signs(&label, dims));
                let y = build.activation(dims, signs);
                let epilogue = Epilogue { relu: signs, ..Epilogue::default() };
                ops::affine::forward(build, name, affine, x, y, epilogue);
                tape.push(Node::Affine { name, affine, x });
                x = y;
            }
            Layer::Relu => {
                let signs = build.signs(&label, dims);
                let y = build.activation(dims, Some(signs));
                ops::pointwise::relu_forward(build, x, y, signs);
                x = y;
            }
            Layer::MaxPool { size, stride, padding } => {
                let window = Window { size: *size, stride: *stride, padding: *padding };
                let y = build.activation(dims, None);
                let argmax = build.resource(format!("{label} argmax"), Kind::Words, ops::texels(dims));
                ops::pool::max_forward(build, window, x, y, argmax);
                tape.push(Node::MaxPool { window, x, argmax });
                x = y;
            }
            Layer::AvgPool { size, stride, padding } => {
                let window = Window { size: *size, stride: *stride, padding: *padding };
                let y = build.activation(dims, None);
                ops::pool::avg_forward(build, window, x, y);
                tape.push(Node::AvgPool { window, x });
                x = y;
            }
            Layer::GlobalAvgPool => {
                let y = build.activation(dims, None);
                ops::pool::mean_forward(build, x, y);
                tape.push(Node::GlobalAvgPool { x });
                x = y;
            }
            // Texels stay where they are: a linear layer's weights are put in their order.
            Layer::Flatten if x.dims.h * x.dims.w == 1 || matches!(layers.get(i), Some(Layer::Linear(_))) => {}
            Layer::Flatten => return unsupported(layer, "only a linear layer can follow"),
            Layer::Residual { body, shortcut } => {
                // Whoever computes its gradient adds what came round the body.
                if !matches!(body.first(), Some(Layer::Conv2d(_) | Layer::Affine { .. })) {
                    return unsupported(
                        layer,
                        "the body of a residual block must begin with a convolution or a batch norm",
                    );
                }
                // A body that ended with a ReLU would have it fused into its last convolution, before the shortcut is
                // added.
                if !matches!(body.last(), Some(Layer::Conv2d(_))) {
                    return unsupported(layer, "the body of a residual block must end with a convolution");
                }
                let carried = |kind| (Residual { id: x.id, dims: x.dims, kind }, Back::Carried(kind));
                let (residual, back) = match shortcut {
                    Shortcut::Identity => carried(ResidualKind::Same),
                    Shortcut::Subsample { added } => carried(ResidualKind::Subsample { added: *added }),
                    Shortcut::Projection(layers) => {
                        // A dispatch of its own: the canonical order gives a projection an accumulator of its own.
                        let [Layer::Conv2d(conv)] = &layers[..] else {
                            return unsupported(layer, "a projection must be one convolution");
                        };
                        let r = build.activation(dims, None);
                        ops::conv::forward(build, conv, params(&conv.name)?, x, r, Epilogue::default());
                        (Residual { id: r.id, dims, kind: ResidualKind::Same }, Back::Projected { conv, x })
                    }
                };
                let mut inner = Vec::new();
                let tail = Tail { residual: Some(residual), relu: followed };
                x = forward(build, model, body, x, tail, &mut inner)?;
                tape.push(Node::Residual { body: inner, shortcut: back });
            }
            Layer::Normalise { .. } => return unsupported(layer, "normalisation comes first or not at all"),
            Layer::BatchNorm { .. } => return unsupported(layer, "batch norm is folded when weights are loaded"),
        }
    }
    Ok(x)
}

/// Runs a tape backward: `dy` is the gradient of what left it, `extra` is added to the gradient of what entered it.
fn backward(build: &mut Build, model: &Model, tape: &[Node], dy: Value, extra: Option<Residual>) -> Value {
    let mut g = dy;
    for (i, node) in tape.iter().enumerate().rev() {
        let residual = if i == 0 { extra } else { None };
        let mut grad = |x: &Value| {
            let epilogue = Epilogue { residual, relu: None, mask: x.signs };
            (build.activation(x.dims, None), epilogue)
        };
        g = match node {
            Node::Conv { conv, x } => {
                let (dx, epilogue) = grad(x);
                ops::conv::input_grad(build, conv, &model.params[&conv.name], g, dx, epilogue);
                dx
            }
            Node::Linear { linear, x } => {
                let (dx, epilogue) = grad(x);
                ops::linear::input_grad(build, linear, &model.params[&linear.name], g, dx, epilogue);
                dx
            }
            Node::Affine { name, affine, x } => {
                let (dx, epilogue) = grad(x);
                ops::affine::input_grad(build, name, *affine, g, dx, epilogue);
                dx
            }
            Node::MaxPool { window, x, argmax } => {
                let (dx, epilogue) = grad(x);
                ops::pool::max_input_grad(build, *window, g, dx, *argmax, epilogue);
                dx
            }
            Node::AvgPool { window, x } => {
                let (dx, epilogue) = grad(x);
                ops::pool::avg_input_grad(build, *window, g, dx, epilogue);
                dx
            }
            Node::GlobalAvgPool { x } => {
                let (dx, epilogue) = grad(x);
                ops::pool::mean_input_grad(build, g, dx, epilogue);
                dx
            }
            Node::Residual { body, shortcut } => {
                let extra = match shortcut {
                    Back::Carried(kind) => {
                        let kind = match *kind {
                            ResidualKind::Subsample { added } => ResidualKind::Spread { added },
                            other => other,
                        };
                        Residual { id: g.id, dims: g.dims, kind }
                    }
                    // What it adds lies at every second pixel, and is kept so: a convolution of stride 1 where dy is.
                    Back::Projected { conv, x } if (conv.kernel, conv.stride, conv.padding) == (1, 2, 0) => {
                        let dx = build.activation(Dims { c: x.dims.c, ..g.dims }, None);
                        let dense = Conv2d { stride: 1, ..(*conv).clone() };
                        ops::conv::input_grad(build, &dense, &model.params[&conv.name], g, dx, Epilogue::default());
                        Residual { id: dx.id, dims: dx.dims, kind: ResidualKind::Spread { added: 0 } }
                    }
                    Back::Projected { conv, x } => {
                        let dx = build.activation(x.dims, None);
                        ops::conv::input_grad(build, conv, &model.params[&conv.name], g, dx, Epilogue::default());
                        Residual { id: dx.id, dims: dx.dims, kind: ResidualKind::Same }
                    }
                };
                backward(build, model, body, g, Some(extra))
            }
        };
    }
    g
}

/// Gives every activation a slot that is free from its first writer to its last reader, and puts the slots among the
/// resources. A free slot that is large enough is taken first, the smallest such; else the largest one grows. Texels of
/// f32 and of f16 never share a slot. Where the slots are textures there is a stage, too, as large as the largest of
/// them: its place is returned.
fn assign_slots(
    activations: &[Activation],
    dispatches: &mut [Dispatch],
    resources: &mut Vec<Resource>,
    storage: Storage,
) -> Stages<usize> {
    let mut last_use = BTreeMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id) in d.bindings.iter().filter(|(_, id)| *id >= ACTIVATIONS) {
            last_use.insert(*id, at);
        }
    }
    // What dispatches that do the batch in parts read is read again by the next part, after the last of them has
    // written.
    for (at, d) in dispatches.iter().enumerate().rev().filter(|(_, d)| matches!(d.grid, Grid::Parts { .. })) {
        let bound: Vec<usize> = d.bindings.iter().map(|(_, id)| *id).filter(|id| *id >= ACTIVATIONS).collect();
        let handed_on = bound.iter().filter(|id| activations[**id - ACTIVATIONS].is_passing);
        let end = handed_on.map(|id| last_use[id]).max().unwrap_or(at);
        for id in bound {
            last_use.entry(id).and_modify(|last| *last = end.max(*last));
        }
    }
    // The largest that takes it, and when it is free again.
    let mut slots: Vec<(Activation, usize)> = Vec::new();
    let mut slot_of = BTreeMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id) in d.bindings.iter().filter(|(_, id)| *id >= ACTIVATIONS) {
            if slot_of.contains_key(id) {
                continue;
            }
            let need = activations[id - ACTIVATIONS];
            let same_kind = |a: &Activation| (a.is_half, a.is_passing) == (need.is_half, need.is_passing);
            let free = slots.iter().enumerate().filter(|(_, (of, until))| *until < at && same_kind(of));
            let fit = |of: &Activation| (of.texels < need.texels, of.texels.abs_diff(need.texels));
            let slot = free.min_by_key(|(_, (of, _))| fit(of)).map_or(slots.len(), |(slot, _)| slot);
            if slot == slots.len() {
                slots.push((need, 0));
            }
            slots[slot].0.texels = slots[slot].0.texels.max(need.texels);
            slots[slot].1 = last_use[id];
            slot_of.insert(*id, slot);
        }
    }
    let first = resources.len();
    for (i, (Activation { texels, is_half, is_passing }, _)) in slots.iter().enumerate() {
        let (kind, per_sample) = match (is_half, is_passing) {
            (_, true) => (Kind::Passing(*texels), 0),
            (true, _) => (Kind::Half, *texels),
            _ => (Kind::Activation, *texels),
        };
        resources.push(Resource { label: format!("activation {i}"), kind, per_sample });
    }
    for d in dispatches {
        for (name, id) in &mut d.bindings {
            if let Some(slot) = slot_of.get(id) {
                *id = first + slot;
                if slots[*slot].0.is_half {
                    d.kernel.halves.push(name);
                }
            }
        }
    }
    Stages::of_all(&resources[first..], storage).map(|stage| {
        resources.push(stage);
        resources.len() - 1
    })
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
                _ => writeln!(f, "  {:<28} {bytes:>10}", r.label)?,
            }
        }
        writeln!(f, "  {:<28} {weights:>10}  (for any batch)", "weights, both directions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    /// What the first part's last dispatch writes must not lie where the second part's first one reads, nor where its
    /// second does.
    #[test]
    fn what_parts_read_is_kept_until_the_last_has_written() {
        let dispatch = |grid: Grid, bindings: &[(&'static str, usize)]| Dispatch {
            kernel: Kernel::new("any", Vec::new(), Storage::Buffer),
            layer: "any".into(),
            bindings: bindings.iter().map(|(name, id)| (*name, ACTIVATIONS + id)).collect(),
            grid,
            flops: 0,
        };
        let whole = Activation { texels: 8, is_half: false, is_passing: false };
        let passing = Activation { is_passing: true, ..whole };
        let activations = [whole, passing, passing, whole, whole];
        let slots = |grid: Grid| {
            let mut dispatches = vec![
                dispatch(Grid::Once(1), &[("y", 0), ("res", 4)]),
                dispatch(grid, &[("x", 0), ("v", 1)]),
                dispatch(grid, &[("v", 1), ("m", 2)]),
                dispatch(grid, &[("m", 2), ("res", 4), ("y", 3)]),
            ];
            let mut resources = Vec::new();
            assign_slots(&activations, &mut dispatches, &mut resources, Storage::Buffer);
            let of = |d: usize, b: usize| dispatches[d].bindings[b].1;
            [of(1, 0), of(1, 1), of(2, 1), of(3, 2), of(3, 1)]
        };
        let [x, v, m, y, res] = slots(Grid::Parts { part: 2, items: 1, each: 1, size: 1, y: 1 });
        assert!(x != y && v != m && res != y && ![x, y, res].contains(&v) && ![x, y, res].contains(&m));
        // Where all samples are done with, x's memory is free for y.
        let [x, .., y, _] = slots(Grid::PerSample(1, 1));
        assert_eq!(x, y);
    }
}
