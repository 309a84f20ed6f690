//! The layers of a network, one after the other: forward, which leaves a tape, and backward along it.

use crate::error::{Error, Result};
use crate::model::{Conv2d, Dims, Layer, Linear, Model, Shortcut};
use crate::ops::pool::Window;
use crate::ops::{self, Build, Epilogue, Residual, ResidualKind, Value};
use crate::tensor::Kind;

/// What the backward pass needs to know of a layer that has run forward. `x` is the value that entered it.
pub(super) enum Node<'m> {
    Conv { conv: &'m Conv2d, x: Value },
    Linear { linear: &'m Linear, x: Value },
    Affine { name: &'m str, affine: usize, x: Value },
    MaxPool { window: Window, x: Value, argmax: usize },
    AvgPool { window: Window, x: Value },
    GlobalAvgPool { x: Value },
    Residual { body: Vec<Node<'m>>, shortcut: Back<'m> },
}

/// The way back of a shortcut.
pub(super) enum Back<'m> {
    Carried(ResidualKind),
    Projected { conv: &'m Conv2d, x: Value },
}

/// What the last layer of a residual body takes on from outside.
#[derive(Clone, Copy, Default)]
pub(super) struct Tail {
    pub residual: Option<Residual>,
    pub relu: bool,
}

pub(super) fn unsupported<T>(layer: &Layer, why: &str) -> Result<T> {
    Err(Error::model(layer.label(), format!("not supported here: {why}")))
}

/// Runs `layers` on `x`, leaving dispatches and a tape for the way back.
pub(super) fn forward<'m>(
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
pub(super) fn backward(build: &mut Build, model: &Model, tape: &[Node], dy: Value, extra: Option<Residual>) -> Value {
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
