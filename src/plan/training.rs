//! The plan of a network in training mode: batch norm takes its statistics from the batch, so samples are coupled.
//! Apart from [`Plan`](super::Plan), which has no dispatch that looks at two samples. What has no batch norm in it is
//! planned as there.
//!
//! What entered a batch norm is kept for the way back, as a whole activation; everything else as in any plan.

use super::fits::{check_dispatches, largest_batch, read_back};
use super::layers::{self, Tail, unsupported};
use super::slots::assign_slots;
use crate::attack::{Loss, Sample, State};
use crate::error::{Error, Result};
use crate::gpu::Storage;
use crate::kernel::{Dispatch, MAX_BATCH};
use crate::model::{Conv2d, Layer, Model, Shortcut};
use crate::ops::batch_norm::Norm;
use crate::ops::{self, Build, Epilogue, Ids, Residual, ResidualKind, Target, Value};
use crate::tensor::{Kind, Resource, Stages};

/// Dispatches of one network in training mode, in order, and what they run on.
#[derive(Clone, Debug)]
pub struct TrainingPlan {
    /// From images to logits.
    pub forward: Vec<Dispatch>,
    /// From logits to the input gradient, without the loss.
    pub backward: Vec<Dispatch>,
    /// What stands between the two.
    pub losses: Vec<(Loss, Dispatch)>,
    /// From logits to plain numbers, when they are wanted.
    pub logits: Dispatch,
    /// What the dispatches' bindings refer to.
    pub resources: Vec<Resource>,
    /// Where kernels leave texels that go to textures.
    pub(crate) stages: Stages<usize>,
    pub(crate) ids: Ids,
    /// The first batch norm whose channels have one value a sample.
    pub(crate) one_value: Option<String>,
    target: Target,
    read_back: u64,
}

/// What the backward pass needs to know of layers that have run forward.
enum Node<'m> {
    /// Without any batch norm.
    Plain(Vec<layers::Node<'m>>),
    /// A convolution of x, and the batch norm behind it.
    Normed {
        conv: &'m Conv2d,
        x: Value,
        norm: Norm<'m>,
    },
    Residual {
        body: Vec<Node<'m>>,
        shortcut: Back<'m>,
    },
}

/// The way back of a shortcut.
enum Back<'m> {
    Carried(ResidualKind),
    Projected(Vec<Node<'m>>),
}

impl TrainingPlan {
    /// Plans `model` ([`crate::weights::load_training`]) for a device.
    ///
    /// # Errors
    /// As [`Plan::new`](super::Plan::new).
    pub fn new(model: &Model, target: &Target) -> Result<Self> {
        model.check_training()?;
        let mut build = Build::new(target);
        let (pixels, classes) = (model.input.len() as u64, model.logits() as u64);
        let ids = Ids {
            x: build.resource("images", Kind::Floats, pixels),
            dx: build.resource("input gradient", Kind::Floats, pixels),
            samples: build.resource("samples", Kind::Samples, (size_of::<Sample>() / 16) as u64),
            states: build.resource("states", Kind::Samples, (size_of::<State>() / 16) as u64),
            logits: build.resource("logits", Kind::Floats, classes),
            loss: build.resource("loss", Kind::Floats, 1),
            health: build.resource("health", Kind::Words, 1),
            ..Ids::default()
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
        let dz = build.activation(z.dims, None);
        let losses = Loss::ALL.map(|l| (l, ops::loss::forward(&build, l, z, dz, &ids)));
        build.push(losses[0].1.clone());
        let dimage = backward(&mut build, model, &tape, dz, None);
        ops::pointwise::normalise_input_grad(&mut build, channels, dimage, ids.dx, None);

        let Build { mut resources, activations, mut dispatches, .. } = build;
        let stages = assign_slots(&activations, &mut dispatches, &mut resources, target.storage);
        let backward = dispatches.split_off(forward_end + 2);
        // All losses stand in one place, on the same memory.
        let slots = dispatches.pop().expect("pushed above").bindings;
        let losses = losses.map(|(l, d)| (l, Dispatch { bindings: slots.clone(), ..d })).to_vec();
        let logits = dispatches.pop().expect("pushed above");
        let plan = TrainingPlan {
            forward: dispatches,
            backward,
            losses,
            logits,
            resources,
            stages,
            ids,
            one_value: one_value(&tape),
            target: target.clone(),
            read_back: read_back(model.input, classes as usize),
        };
        check_dispatches(plan.dispatches(), &plan.resources, target)?;
        plan.largest_batch(u64::MAX)?;
        Ok(plan)
    }

    /// Every dispatch there is.
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        let losses = self.losses.iter().map(|(_, d)| d);
        self.forward.iter().chain(&self.backward).chain([&self.logits]).chain(losses)
    }

    /// What the plan was made for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Bytes on the device that grow with the batch, for one sample.
    pub fn bytes_per_sample(&self) -> u64 {
        let grows = self.resources.iter().filter(|r| r.per_sample > 0);
        grows.map(|r| r.bytes(1, Storage::Buffer).unwrap_or(u64::MAX)).sum()
    }

    /// The largest batch that fits the limits and `memory` bytes. A larger one cannot be cut: it is another batch then.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when it is zero.
    pub fn largest_batch(&self, memory: u64) -> Result<usize> {
        let resources: Vec<&Resource> = self.resources.iter().collect();
        let most = largest_batch(self.dispatches(), &resources, &self.target, self.read_back, memory)?;
        Ok(most.min(MAX_BATCH as usize))
    }
}

/// Whether there is any batch norm in a layer.
fn has_norm(layer: &Layer) -> bool {
    matches!(layer, Layer::BatchNorm { .. }) || layer.inner().any(has_norm)
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
    while i < layers.len() {
        // What stands at i, and how many layers it is.
        let taken = match &layers[i..] {
            [Layer::Conv2d(_), Layer::BatchNorm { .. }, ..] => 2,
            [layer @ Layer::BatchNorm { .. }, ..] => {
                return unsupported(layer, "batch norm comes right after a convolution");
            }
            [layer, ..] if has_norm(layer) => 1,
            rest => {
                let ends = |j: &usize| {
                    has_norm(&rest[*j]) || matches!(&rest[*j..], [Layer::Conv2d(_), Layer::BatchNorm { .. }, ..])
                };
                let plain = (1..rest.len()).find(ends).unwrap_or(rest.len());
                let last = i + plain == layers.len();
                let mut nodes = Vec::new();
                let tail = if last { tail } else { Tail::default() };
                x = layers::forward(build, model, &layers[i..i + plain], x, tail, &mut nodes)?;
                tape.push(Node::Plain(nodes));
                i += plain;
                continue;
            }
        };
        let these = &layers[i..i + taken];
        i += taken;
        // A ReLU right behind is done by the layer itself.
        let followed = matches!(layers.get(i), Some(Layer::Relu));
        let last = i == layers.len();
        let own = Tail { residual: tail.residual.filter(|_| last), relu: followed || (last && tail.relu) };
        i += usize::from(followed);
        match these {
            [layer @ Layer::Conv2d(conv), Layer::BatchNorm { name, eps, .. }] => {
                let dims = layer.output(x.dims)?;
                let conv_y = build.activation(dims, None);
                ops::conv::forward(build, conv, &model.params[&conv.name], x, conv_y, Epilogue::default());
                let signs = own.relu.then(|| build.signs(name, dims));
                let y = build.activation(dims, signs);
                let epilogue = Epilogue { residual: own.residual, relu: signs, mask: None };
                let norm = ops::batch_norm::forward(build, (name, *eps), &model.params[name], conv_y, y, epilogue);
                tape.push(Node::Normed { conv, x, norm });
                x = y;
            }
            [layer @ Layer::Residual { body, shortcut }] => {
                if !matches!(body.first(), Some(Layer::Conv2d(_))) {
                    return unsupported(layer, "the body of a residual block must begin with a convolution");
                }
                if !matches!(body.last(), Some(Layer::Conv2d(_) | Layer::BatchNorm { .. })) {
                    return unsupported(
                        layer,
                        "the body of a residual block must end with a convolution or batch norm",
                    );
                }
                let carried = |kind| (Residual { id: x.id, dims: x.dims, kind }, Back::Carried(kind));
                let (residual, back) = match shortcut {
                    Shortcut::Identity => carried(ResidualKind::Same),
                    Shortcut::Subsample { added } => carried(ResidualKind::Subsample { added: *added }),
                    Shortcut::Projection(layers) => {
                        // Its gradient is masked together with the body's.
                        let bare = Value { signs: None, ..x };
                        let mut nodes = Vec::new();
                        let r = forward(build, model, layers, bare, Tail::default(), &mut nodes)?;
                        (Residual { id: r.id, dims: r.dims, kind: ResidualKind::Same }, Back::Projected(nodes))
                    }
                };
                let mut inner = Vec::new();
                x = forward(build, model, body, x, Tail { residual: Some(residual), relu: own.relu }, &mut inner)?;
                tape.push(Node::Residual { body: inner, shortcut: back });
            }
            _ => unreachable!("one of the two above"),
        }
    }
    Ok(x)
}

/// Runs a tape backward: `dy` is the gradient of what left it, `extra` is added to the gradient of what entered it.
fn backward(build: &mut Build, model: &Model, tape: &[Node], dy: Value, extra: Option<Residual>) -> Value {
    let mut g = dy;
    for (i, node) in tape.iter().enumerate().rev() {
        let residual = if i == 0 { extra } else { None };
        g = match node {
            Node::Plain(nodes) => layers::backward(build, model, nodes, g, residual),
            Node::Normed { conv, x, norm } => {
                let d_conv = build.activation(norm.x.dims, None);
                ops::batch_norm::input_grad(build, norm, g, d_conv);
                let dx = build.activation(x.dims, None);
                let epilogue = Epilogue { residual, relu: None, mask: x.signs };
                ops::conv::input_grad(build, conv, &model.params[&conv.name], d_conv, dx, epilogue);
                dx
            }
            Node::Residual { body, shortcut } => {
                let through = match shortcut {
                    Back::Carried(kind) => {
                        let kind = match *kind {
                            ResidualKind::Subsample { added } => ResidualKind::Spread { added },
                            other => other,
                        };
                        Residual { id: g.id, dims: g.dims, kind }
                    }
                    Back::Projected(nodes) => {
                        let dx = backward(build, model, nodes, g, None);
                        Residual { id: dx.id, dims: dx.dims, kind: ResidualKind::Same }
                    }
                };
                backward(build, model, body, g, Some(through))
            }
        };
    }
    g
}

/// The first batch norm whose channels have one value a sample.
fn one_value(tape: &[Node]) -> Option<String> {
    tape.iter().find_map(|node| match node {
        Node::Plain(_) => None,
        Node::Normed { norm, .. } => (norm.x.dims.h * norm.x.dims.w == 1).then(|| norm.name.to_string()),
        Node::Residual { body, shortcut: Back::Projected(nodes) } => one_value(body).or_else(|| one_value(nodes)),
        Node::Residual { body, .. } => one_value(body),
    })
}
