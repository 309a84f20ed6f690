//! Shapes that kernels are timed on, by name; and the small networks that a plan of each is made of.

use crate::attack::{Norm, Rule};
use crate::error::{Error, Result};
use crate::kernel::{Access, Dispatch};
use crate::model::{Arch, Conv2d, Dims, Layer, Linear, Model, Params, known};
use crate::plan::{Plan, Target};
use crate::tensor::{Kind, Resource};
use crate::trial::{Scatter, uses};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How shapes are written.
pub(super) const GRAMMAR: &str = "conv3x3s1-16-32-8x8 (kernel, stride, channels in and out, height and width), \
     linear-64-10, maxpool2s2-32-8x8, avgpool2s2-32-8x8, mean-64-8x8, relu-16-32x32, image-3x32x32, or linf-3x32x32 and \
     l2-3x32x32 (rules that look at a whole image)";

/// What is timed unless a user names a shape: the layers of ResNet-20 and ResNet-18 for 32×32, and of the small
/// networks.
pub(super) const SHAPES: [&str; 24] = [
    "conv3x3s1-3-16-32x32",
    "conv3x3s1-16-16-32x32",
    "conv3x3s2-16-32-32x32",
    "conv3x3s1-32-32-16x16",
    "conv3x3s2-32-64-16x16",
    "conv3x3s1-64-64-8x8",
    "conv3x3s1-64-64-32x32",
    "conv3x3s2-64-128-32x32",
    "conv1x1s2-64-128-32x32",
    "conv3x3s1-128-128-16x16",
    "conv3x3s1-256-256-8x8",
    "conv3x3s1-512-512-4x4",
    "conv3x3s1-16-32-8x8",
    "conv5x5s1-32-64-14x14",
    "linear-64-10",
    "linear-128-48",
    "linear-3136-1024",
    "maxpool2s2-32-28x28",
    "avgpool2s2-32-28x28",
    "mean-64-8x8",
    "relu-16-32x32",
    "image-3x32x32",
    "linf-3x32x32",
    "l2-3x32x32",
];

/// The layer that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Conv {
        kernel: usize,
        stride: usize,
        outputs: usize,
    },
    Linear {
        outputs: usize,
    },
    MaxPool {
        size: usize,
        stride: usize,
    },
    AvgPool {
        size: usize,
        stride: usize,
    },
    Mean,
    Relu,
    /// Everything that runs on pixels and logits, whatever the attack.
    Image,
    /// What attacks other than by sign steps do in a norm.
    Rules(Norm),
}

/// A layer and the shape that enters it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    what: What,
    x: Dims,
}

/// One direction of a shape's layer, as dispatches of a plan.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    /// The same for every variant: `forward`, `backward`, or what runs.
    pub name: &'static str,
    pub dispatches: Vec<Dispatch>,
    /// The plan's, activations cut to the shape.
    pub resources: Vec<Resource>,
    /// The largest batch that the device's limits allow.
    pub most: u32,
    /// What activations hold, by the names they are bound to.
    extents: Vec<(&'static str, Dims)>,
}

/// Layers are called so in the networks of this file.
const TIMED: &str = "timed";

/// Classes of their logits.
const CLASSES: usize = 10;

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: &str| {
            Error::Usage(format!(
                "--shape {text}: {why}; known are {}; others are written as {GRAMMAR}",
                SHAPES.join(", ")
            ))
        };
        let parts: Vec<&str> = text.split('-').collect();
        let numbers = |part: &str| {
            let all = part.split(['x', 's']).map(|n| n.parse().ok().filter(|n| (1..=8192).contains(n)));
            all.collect::<Option<Vec<usize>>>().ok_or_else(|| fail("no such shape"))
        };
        let (kind, rest) = parts.split_first().expect("splitting gives at least one");
        let head = kind.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let name = &kind[..kind.len() - head.len()];
        let tail = rest.iter().map(|p| numbers(p)).collect::<Result<Vec<_>>>()?.concat();
        let head = if head.is_empty() { Vec::new() } else { numbers(head)? };
        let (what, x) = match (name, &head[..], &tail[..]) {
            ("conv", &[r, s, stride], &[inputs, outputs, h, w]) if r == s => {
                if r > 7 || r % 2 == 0 || stride > 4 {
                    return Err(fail("kernels are odd and at most 7×7, strides at most 4"));
                }
                (What::Conv { kernel: r, stride, outputs }, Dims::new(inputs, h, w))
            }
            ("linear", [], &[inputs, outputs]) => (What::Linear { outputs }, Dims::new(inputs, 1, 1)),
            ("maxpool" | "avgpool", &[size, stride], &[c, h, w]) => {
                if size > h.min(w) || size > 15 {
                    return Err(fail("a window must fit into the image, and is at most 15×15"));
                }
                let max = name == "maxpool";
                let what = if max { What::MaxPool { size, stride } } else { What::AvgPool { size, stride } };
                (what, Dims::new(c, h, w))
            }
            ("mean", [], &[c, h, w]) => (What::Mean, Dims::new(c, h, w)),
            ("relu", [], &[c, h, w]) => (What::Relu, Dims::new(c, h, w)),
            ("image", [], &[c, h, w]) => (What::Image, Dims::new(c, h, w)),
            ("linf", [], &[c, h, w]) => (What::Rules(Norm::Linf), Dims::new(c, h, w)),
            ("l", &[2], &[c, h, w]) => (What::Rules(Norm::L2), Dims::new(c, h, w)),
            _ => return Err(fail("no such shape")),
        };
        if x.len() > 1 << 24 {
            return Err(fail("too large"));
        }
        Ok(Shape { what, x })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dims { c, h, w } = self.x;
        match self.what {
            What::Conv { kernel: k, stride, outputs } => write!(f, "conv{k}x{k}s{stride}-{c}-{outputs}-{h}x{w}"),
            What::Linear { outputs } => write!(f, "linear-{c}-{outputs}"),
            What::MaxPool { size, stride } => write!(f, "maxpool{size}s{stride}-{c}-{h}x{w}"),
            What::AvgPool { size, stride } => write!(f, "avgpool{size}s{stride}-{c}-{h}x{w}"),
            What::Mean => write!(f, "mean-{c}-{h}x{w}"),
            What::Relu => write!(f, "relu-{c}-{h}x{w}"),
            What::Image => write!(f, "image-{c}x{h}x{w}"),
            What::Rules(norm) => write!(f, "{}-{c}x{h}x{w}", norm.name()),
        }
    }
}

impl Shape {
    /// A network around the layer. A ReLU comes before it and behind it, as in the body of a residual block: the
    /// forward pass keeps signs and the backward pass is masked.
    pub(super) fn model(&self) -> Result<Model> {
        let layer = match self.what {
            What::Conv { kernel, stride, outputs } => {
                let (name, inputs, padding) = (TIMED.into(), self.x.c, kernel / 2);
                Some(Layer::Conv2d(Conv2d { name, inputs, outputs, kernel, stride, padding, bias: true }))
            }
            What::Linear { outputs } => {
                Some(Layer::Linear(Linear { name: TIMED.into(), inputs: self.x.len(), outputs, bias: true }))
            }
            What::MaxPool { size, stride } => Some(Layer::MaxPool { size, stride, padding: 0 }),
            What::AvgPool { size, stride } => Some(Layer::AvgPool { size, stride, padding: 0 }),
            What::Mean => Some(Layer::GlobalAvgPool),
            What::Relu => None,
            What::Image | What::Rules(_) => {
                let (mean, std) = (vec![0.5; self.x.c], vec![0.25; self.x.c]);
                return self.finish(vec![Layer::Normalise { mean, std }]);
            }
        };
        let fuses = matches!(self.what, What::Conv { .. } | What::Linear { .. });
        let layers = [Layer::Relu].into_iter().chain(layer).chain(fuses.then_some(Layer::Relu));
        self.finish(layers.collect())
    }

    /// Down to logits.
    fn finish(&self, mut layers: Vec<Layer>) -> Result<Model> {
        let y = crate::model::output(&layers, self.x).map_err(|e| Error::Usage(format!("--shape {self}: {e}")))?;
        if y.h * y.w > 1 {
            layers.push(Layer::GlobalAvgPool);
        }
        layers.push(Layer::Linear(Linear { name: "logits".into(), inputs: y.c, outputs: CLASSES, bias: true }));
        Ok(random_model("bench", self.x, layers))
    }

    /// What a plan of [`Shape::model`] does for this layer.
    pub(super) fn passes(&self, model: &Model, target: &Target) -> Result<Vec<Pass>> {
        let plan = Plan::new(model, target).map_err(|e| Error::Usage(format!("--shape {self}: {e}")))?;
        let (x, z) = (self.x, Dims::new(CLASSES, 1, 1));
        let timed = match self.what {
            What::Conv { .. } | What::Linear { .. } => 1..2,
            What::MaxPool { .. } | What::AvgPool { .. } | What::Mean => 1..2,
            What::Relu | What::Image | What::Rules(_) => 0..0,
        };
        let y = crate::model::output(&model.layers[timed.clone()], x)?;
        let entry = match self.what {
            What::Conv { .. } | What::Linear { .. } => "",
            What::MaxPool { .. } => "max_pool_",
            What::AvgPool { .. } => "avg_pool_",
            What::Mean => "global_avg_pool_",
            What::Relu => "relu_",
            What::Image => return Ok(self.image(&plan, z)),
            What::Rules(norm) => return Ok(self.rules(&plan, norm)),
        };
        let ours = |d: &&Dispatch| if entry.is_empty() { d.layer == TIMED } else { d.kernel.entry.starts_with(entry) };
        // The loss, and the pooling that only leads to the logits, come behind.
        let forward: Vec<Dispatch> = plan.forward.iter().filter(ours).cloned().collect();
        let backward: Vec<Dispatch> = plan.backward.iter().filter(ours).cloned().collect();
        let (forward, backward) = if timed.is_empty() { (forward, Vec::new()) } else { (forward, backward) };
        let pass = |name, dispatches, extents| Pass::new(name, dispatches, &plan, extents);
        let forward = pass("forward", forward, vec![("x", x), ("y", y)]);
        let backward = pass("backward", backward, vec![("x", y), ("dy", y), ("y", x)]);
        Ok([forward, backward].into_iter().filter(|p| !p.dispatches.is_empty()).collect())
    }

    fn image(&self, plan: &Plan, z: Dims) -> Vec<Pass> {
        let mut lone = vec![&plan.start, &plan.step, &plan.logits];
        lone.extend(plan.pixels.all());
        let entries = ["normalise_forward", "cross_entropy_forward", "normalise_input_grad"];
        lone.extend(plan.forward.iter().chain(&plan.backward).filter(|d| entries.contains(&d.kernel.entry)));
        let mut passes: Vec<Pass> = Vec::new();
        for d in lone {
            let of_image = d.kernel.entry.starts_with("normalise");
            let extents = if of_image { vec![("y", self.x), ("dy", self.x)] } else { vec![("x", z), ("y", z)] };
            let pass = Pass::new(d.kernel.entry, vec![d.clone()], plan, extents);
            // Two dispatches of one kernel and shape are one row.
            if !passes.iter().any(|p| p.name == pass.name) {
                passes.push(pass);
            }
        }
        passes
    }

    /// What the rules of a norm do, each kernel once: a start, a step, a look.
    fn rules(&self, plan: &Plan, norm: Norm) -> Vec<Pass> {
        let mut passes: Vec<Pass> = Vec::new();
        for steps in plan.rules.iter().filter(|steps| steps.rule.norm() == norm) {
            for d in steps.all() {
                // Starts differ in where they end, steps with momentum in what they look ahead to.
                if !passes.iter().any(|p| p.name == d.kernel.entry) {
                    let mut pass = Pass::new(d.kernel.entry, vec![d.clone()], plan, Vec::new());
                    pass.most = most(plan, steps.rule);
                    // As much as this rule remembers, not the one that remembers most.
                    let memory = pass.resources.iter_mut().filter(|r| r.kind == Kind::Memory);
                    memory.for_each(|r| r.per_sample = (steps.rule.memory() * self.x.len()) as u64);
                    passes.push(pass);
                }
            }
        }
        passes
    }
}

/// The largest batch that the device's limits allow, with what a rule remembers.
fn most(plan: &Plan, rule: Rule) -> u32 {
    plan.largest_batch_of(rule, u64::MAX).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

impl Pass {
    fn new(name: &'static str, mut dispatches: Vec<Dispatch>, plan: &Plan, extents: Vec<(&'static str, Dims)>) -> Self {
        // Slots are as large as the largest activation that ever takes one, and hold one after the other; here what
        // goes in and what comes out has memory of its own, of its own size.
        let mut resources = plan.resources.clone();
        let mut own: BTreeMap<(&str, usize), usize> = BTreeMap::new();
        for (binding, id) in dispatches.iter_mut().flat_map(|d| &mut d.bindings) {
            if let (Kind::Activation | Kind::Half, Some((_, dims))) =
                (&resources[*id].kind, extents.iter().find(|(n, _)| n == binding))
            {
                *id = *own.entry((*binding, *id)).or_insert_with(|| {
                    let per_sample = (dims.c.div_ceil(4) * dims.h * dims.w) as u64;
                    resources.push(Resource { per_sample, ..resources[*id].clone() });
                    resources.len() - 1
                });
            }
        }
        Pass { name, dispatches, resources, most: most(plan, Rule::Sign), extents }
    }

    /// The kernel's name; where several work one after the other, as far as their names are the same.
    pub(super) fn kernel(&self) -> &'static str {
        let mut entries = self.dispatches.iter().map(|d| d.kernel.entry);
        let first = entries.next().unwrap_or("");
        let common = |name: &'static str, other: &str| {
            let is_word = |end: &usize| matches!(name.as_bytes().get(*end), None | Some(b'_'));
            &name[..(0..=name.len()).rev().filter(is_word).find(|end| other.starts_with(&name[..*end])).unwrap_or(0)]
        };
        entries.fold(first, common)
    }

    /// What a kernel of it may be called: by [`Pass::kernel`], or by what runs.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.kernel()].into_iter().chain(self.dispatches.iter().map(|d| d.kernel.entry))
    }

    /// Floating-point operations for `n` samples, as they are done: fewer than the definition's in Winograd's
    /// convolution.
    pub(super) fn flops(&self, n: u64) -> u64 {
        self.dispatches.iter().map(|d| d.flops).sum::<u64>() * n
    }

    /// Blocks of four channels × pixels of an invocation, where the kernel has such.
    pub(super) fn tile(&self) -> Option<String> {
        let kernel = &self.dispatches.first()?.kernel;
        Some(format!("{}x{}", kernel.constant("QT")?, kernel.constant("PX")?))
    }

    /// Bytes that must be read and written for `n` samples, whoever computes it: inputs, outputs and weights once.
    /// Channels that only fill up a texel do not count, nor what one kernel hands on to the next.
    pub(super) fn bytes(&self, n: u64) -> u64 {
        let mut seen = BTreeMap::new();
        let uses = uses(&self.dispatches).unwrap_or_default();
        for d in &self.dispatches {
            let updates = d.kernel.source().map(|s| s.bindings).unwrap_or_default();
            for (name, id) in &d.bindings {
                let Some((_, access)) = updates.iter().find(|(n, _)| n == name) else { continue };
                let r = &self.resources[*id];
                let once = match self.extents.iter().find(|(n, _)| n == name) {
                    Some((_, dims)) if r.kind == Kind::Activation => n * 4 * dims.len() as u64,
                    Some((_, dims)) if r.kind == Kind::Half => n * 2 * dims.len() as u64,
                    _ => r.bytes(n, crate::gpu::Storage::Buffer).unwrap_or(0),
                };
                // Pixels that are changed are read first, but for where they are only put somewhere.
                let entry = d.kernel.entry;
                let changes =
                    entry.ends_with("_step") || matches!(entry, "fab_look" | "snap" | "quantise" | "quantise_l2");
                let changed = *access == Access::StorageUpdate && r.kind == Kind::Floats && changes;
                seen.insert(*id, if changed { 2 * once } else { once });
            }
        }
        seen.iter().filter(|(id, _)| uses.get(id).is_none_or(|used| !used.handed_on)).map(|(_, bytes)| bytes).sum()
    }
}

/// The network known as `name`, with random weights: what they are does not change how fast it runs.
pub(super) fn network(name: &str) -> Option<Model> {
    known().into_iter().find(|a| a.name == name).map(|Arch { name, input, layers }| {
        let mean = vec![0.5; input.c];
        let normalise = Layer::Normalise { mean: mean.clone(), std: mean };
        random_model(&name, input, [normalise].into_iter().chain(folded(layers)).collect())
    })
}

/// Batch norm is part of the convolution before it, once weights are loaded.
fn folded(layers: Vec<Layer>) -> Vec<Layer> {
    use crate::model::Shortcut;
    let layers = layers.into_iter().filter(|l| !matches!(l, Layer::BatchNorm { .. }));
    let inner = |layer| match layer {
        Layer::Residual { body, shortcut } => {
            let shortcut = match shortcut {
                Shortcut::Projection(layers) => Shortcut::Projection(folded(layers)),
                other => other,
            };
            Layer::Residual { body: folded(body), shortcut }
        }
        Layer::Conv2d(conv) => Layer::Conv2d(Conv2d { bias: true, ..conv }),
        other => other,
    };
    layers.map(inner).collect()
}

/// Random weights, scaled so that activations neither grow nor vanish.
fn random_model(arch: &str, input: Dims, layers: Vec<Layer>) -> Model {
    fn add<'a>(layers: impl Iterator<Item = &'a Layer>, scatter: &mut Scatter, params: &mut BTreeMap<String, Params>) {
        for layer in layers {
            let (name, outputs, each) = match layer {
                Layer::Conv2d(c) => (&c.name, c.outputs, c.inputs * c.kernel * c.kernel),
                Layer::Linear(l) => (&l.name, l.outputs, l.inputs),
                _ => {
                    add(layer.inner(), scatter, params);
                    continue;
                }
            };
            // A uniform number has a variance of 1/3.
            let scale = (3.0 / each as f32).sqrt();
            let weight = (0..outputs * each).map(|_| scatter.signed() * scale).collect();
            let bias = (0..outputs).map(|_| scatter.signed() * 0.1).collect();
            params.insert(name.clone(), Params { weight, bias });
        }
    }
    let mut params = BTreeMap::new();
    add(layers.iter(), &mut Scatter(1), &mut params);
    Model { arch: arch.into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{Sample, State};
    use crate::plan::Variant;

    #[test]
    fn shapes_are_read_as_they_are_written() {
        for name in SHAPES {
            let shape: Shape = name.parse().unwrap();
            assert_eq!(shape.to_string(), name);
        }
        for wrong in [
            "",
            "conv",
            "conv3x3s1",
            "conv3x3s1-3-16-32",
            "conv3x5s1-3-16-8x8",
            "conv9x9s1-3-16-8x8",
            "conv2x2s1-3-4-8x8",
            "conv3x3s0-3-16-8x8",
            "conv3x3s1-0-16-8x8",
            "conv3x3s5-3-16-8x8",
            "linear-64",
            "maxpool2s2-32",
            "maxpool9s2-32-8x8",
            "image-3-32-99999",
            "relu16-32x32",
            "nonsense-1-2",
            "image-3x8000x8000",
        ] {
            assert_eq!(wrong.parse::<Shape>().map_err(|e| e.exit_code()), Err(2), "{wrong}");
        }
    }

    #[test]
    fn every_shape_has_its_passes_and_traffic() {
        for name in SHAPES {
            let shape: Shape = name.parse().unwrap();
            let model = shape.model().unwrap();
            let passes = shape.passes(&model, &Target { variant: Variant::Naive, ..Target::default() }).unwrap();
            let count = match shape.what {
                What::Image => 10,
                What::Rules(_) => 7,
                What::Relu => 1,
                _ => 2,
            };
            assert_eq!(passes.len(), count, "{name}");
            for pass in passes {
                assert!(pass.bytes(2) > pass.bytes(1), "{name} {}", pass.name);
            }
        }
        // Momentum: two images read, x and one that is remembered; x written; a sample, its state and two counters.
        let shape: Shape = "linf-1x8x8".parse().unwrap();
        let passes = shape.passes(&shape.model().unwrap(), &Target::default()).unwrap();
        let step = passes.iter().find(|p| p.name == "momentum_step").unwrap();
        let words = (size_of::<Sample>() + size_of::<State>() + 8) as u64;
        assert_eq!(step.bytes(3) - step.bytes(2), 4 * 5 * 64 + words);
        // 4 bytes for each of 3·64 inputs and 8·64 outputs, signs, health, and weights as they are laid out.
        let shape: Shape = "conv3x3s1-3-8-8x8".parse().unwrap();
        let passes = shape.passes(&shape.model().unwrap(), &Target { variant: Variant::Naive, ..Target::default() });
        let forward = &passes.unwrap()[0];
        let weights = forward.bytes(0);
        assert_eq!(forward.bytes(1) - weights, 4 * (3 + 8) * 64 + 8 * 64 / 8 + 4);
        assert_eq!(forward.flops(2), 2 * 2 * 3 * 8 * 9 * 64);
    }

    #[test]
    fn networks_have_random_weights_of_their_own_shapes() {
        for arch in known() {
            let model = network(&arch.name).unwrap();
            Plan::new(&model, &Target::default()).unwrap();
        }
        assert!(network("nonsense").is_none());
    }
}
