//! Weights: safetensors bytes in, a [`Model`] out, or an error that names the tensor. No files, no GPU.
//!
//! Strict on purpose: a tensor that is missing, left over, of another shape or not finite is refused, and so is a header
//! that the format forbids but common readers let pass. Batch norm is folded here, in f64, into the convolution before
//! it, unless the network is loaded for training mode ([`load_training`]). Names stay as a checkpoint has them: what wrappers
//! put around them is taken off (`weights/wrappers.rs`), and the layouts of the common families are known by their own names
//! ([`model::families`]). Imports only `error` and `model`.
//!
//! Metadata that is read, all of it optional:
//!
//! | key | meaning |
//! |---|---|
//! | `arch` | name of the architecture; without it, the one whose tensor names and shapes fit |
//! | `mean`, `std` | JSON lists, one number a channel: the network starts with (x − mean) / std. Without them, and without tensors that say the same, it reads pixels in [0, 1] as they are |
//! | `input` | `C,H,W`, must be what the architecture takes; one with a mean over all pixels takes any sides |
//! | `classes` | JSON list of names, as many as there are logits |
//! | `eps`, `step_size` | suggestions for attacks, kept as text (`8/255`) |

use crate::error::{Error, Result};
use crate::model::{self, Arch, Conv2d, Dims, Layer, Linear, MAX_VALUES, Model, Params, Shapes, Shortcut};
use half::{bf16, f16};
use safetensors::tensor::{self, Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet};

mod wrappers;

/// Added to the variance of every batch norm.
pub const BATCH_NORM_EPS: f64 = 1e-5;

/// Largest header that is read, in bytes.
pub(crate) const MAX_HEADER: u64 = 8 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 4096;
/// Most axes of a tensor.
const MAX_RANK: usize = 4;
/// Most numbers in a list of a header, far more than axes: the few that are too many get a message of their own.
const MAX_NUMBERS: usize = 64;
/// The header, a tensor in it, its shape.
const MAX_DEPTH: usize = 3;

/// Named tensors: shape, outermost axis first, and values in that order.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads the bytes of a safetensors file. Floating-point tensors of 16 to 64 bits are converted to f32;
/// `num_batches_tracked` is ignored; a prefix `module.`, `model.` or `_orig_mod.` is dropped when every tensor has it.
///
/// # Errors
/// [`Error::Model`] naming the tensor or the metadata key. The caller adds the file's name with [`Error::in_file`].
pub fn load(bytes: &[u8]) -> Result<Model> {
    load_bytes(bytes, None, Norms::Folded)
}

/// Reads the same bytes as the weights of `arch`, a network of one's own, whose layers name the tensors. What the metadata say
/// of an architecture is not looked at. Mean and deviation may stand in the metadata or in front of the layers
/// ([`Layer::Normalise`]); where they stand in both they must be the same.
///
/// # Errors
/// As [`load`] and [`from_layers`].
pub fn load_as(bytes: &[u8], arch: &Arch) -> Result<Model> {
    load_bytes(bytes, Some(arch), Norms::Folded)
}

/// Reads the same bytes for training mode ([`crate::Training`]): every [`Layer::BatchNorm`] stays a layer, with its gain and
/// bias among the parameters. Its running statistics are checked as in [`load`], and dropped.
///
/// # Errors
/// As [`load`].
pub fn load_training(bytes: &[u8]) -> Result<Model> {
    load_bytes(bytes, None, Norms::Apart)
}

/// The same for a network of one's own, as [`load_as`].
///
/// # Errors
/// As [`load_as`].
pub fn load_training_as(bytes: &[u8], arch: &Arch) -> Result<Model> {
    load_bytes(bytes, Some(arch), Norms::Apart)
}

/// What becomes of batch norm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norms {
    /// Part of the convolution before it, with its running statistics.
    Folded,
    /// A layer, for the statistics of a batch.
    Apart,
}

fn load_bytes(bytes: &[u8], arch: Option<&Arch>, norms: Norms) -> Result<Model> {
    let (file, metadata) = open(bytes).map_err(|detail| Error::model("weights", detail))?;
    let (mut views, own) = wrappers::unwrapped(file.tensors())?;
    let normalise = normalisation(&metadata, arch, own, &mut views)?;
    let arch = arch.map_or_else(|| recognise(&metadata, &views), |arch| Ok(arch.clone()))?;
    let input = metadata.get("input").map_or(Ok(arch.input), |text| check_input(text, &arch))?;
    let mut layers = arch.layers;
    let described = usize::from(matches!(layers.first(), Some(Layer::Normalise { .. })));
    layers.splice(0..described, normalise);
    let expected = expected(&layers)?;
    let found = views.iter().map(|(name, view)| (name.clone(), view.shape().to_vec())).collect();
    if let Some(difference) = difference(&expected, &found) {
        return Err(difference);
    }
    let mut tensors = Tensors::new();
    for (name, view) in &views {
        tensors.insert(name.clone(), (view.shape().to_vec(), floats(name, view)?));
    }
    let mut model = build(&arch.name, layers, input, tensors, norms)?;
    model.classes = classes(&metadata, model.logits())?;
    model.eps = metadata.get("eps").cloned();
    model.step_size = metadata.get("step_size").cloned();
    Ok(model)
}

/// Builds a network of one's own (`arch` is `custom`) from layers and tensors named as [`Conv2d`], [`Linear`] and
/// [`Layer::BatchNorm`] say. `input` is the shape of one image.
///
/// # Errors
/// [`Error::Model`] naming the layer or tensor: shapes that do not fit, two layers of one name, tensors missing, left
/// over or not finite, a body of a residual block that does not end with a convolution, a [`Layer::Normalise`] that is not first.
pub fn from_layers(layers: Vec<Layer>, input: Dims, tensors: Tensors) -> Result<Model> {
    build("custom", layers, input, tensors, Norms::Folded)
}

/// The same for training mode, as [`load_training`].
///
/// # Errors
/// As [`from_layers`].
pub fn from_layers_training(layers: Vec<Layer>, input: Dims, tensors: Tensors) -> Result<Model> {
    build("custom", layers, input, tensors, Norms::Apart)
}

/// What a file says about itself, by key.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Opens a safetensors file with the checks that the crate does not make. The error is a detail without a place, for
/// weights and data sets alike.
pub(crate) fn open(bytes: &[u8]) -> std::result::Result<(SafeTensors<'_>, Metadata), String> {
    header(bytes)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unsound)?;
    let pairs = pairs(&metadata)?;
    Ok((SafeTensors::deserialize(bytes).map_err(unsound)?, pairs))
}

/// The same for a file that is read piece by piece: `bytes` are its first ones, at least to the end of the header. That
/// the data are as long as the header says is left to the caller.
#[cfg(feature = "cli")]
pub(crate) fn describe(bytes: &[u8]) -> std::result::Result<(tensor::Metadata, Metadata), String> {
    let metadata: tensor::Metadata = serde_json::from_slice(header(bytes)?).map_err(unsound)?;
    let pairs = pairs(&metadata)?;
    Ok((metadata, pairs))
}

fn unsound(e: impl std::fmt::Display) -> String {
    format!("not sound safetensors: {e}")
}

/// The header's text, as far as it can be judged before it is parsed.
fn header(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than a safetensors header")?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("not safetensors, or a header of {length} bytes; at most {MAX_HEADER} are read"));
    }
    let header = rest.get(..length as usize).ok_or("truncated: the header is cut off")?;
    if header.first() != Some(&b'{') {
        return Err("not safetensors: the header does not start with `{`".into());
    }
    scan(header)?;
    Ok(header)
}

fn pairs(metadata: &tensor::Metadata) -> std::result::Result<Metadata, String> {
    for (name, info) in metadata.tensors() {
        if info.shape.len() > MAX_RANK {
            return Err(format!("tensor `{name}` has {} axes; at most {MAX_RANK} are supported", info.shape.len()));
        }
    }
    Ok(metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Refuses a key that occurs twice in one object (JSON readers keep the last one silently), and what would take far more
/// memory read than it has bytes: too many tensors, entries or numbers, and depth. What is not JSON at all is left for the
/// reader proper to refuse.
fn scan(header: &[u8]) -> std::result::Result<(), String> {
    let mut open: Vec<Option<BTreeSet<String>>> = Vec::new();
    let mut numbers = 0;
    let mut key_next = false;
    let mut i = 0;
    while i < header.len() {
        match header[i] {
            b'{' => {
                open.push(Some(BTreeSet::new()));
                key_next = true;
            }
            b'[' => {
                open.push(None);
                (key_next, numbers) = (false, 0);
            }
            b'}' | b']' => {
                open.pop();
                key_next = false;
            }
            b',' => {
                key_next = matches!(open.last(), Some(Some(_)));
                numbers += 1;
                if !key_next && numbers > MAX_NUMBERS {
                    return Err(format!("more than {MAX_NUMBERS} numbers in a list of the header"));
                }
            }
            b'"' => {
                let start = i;
                i += 1;
                while i < header.len() && header[i] != b'"' {
                    i += if header[i] == b'\\' { 2 } else { 1 };
                }
                let text = header.get(start..=i).ok_or("the header ends inside a string")?;
                let outermost = open.len() == 1;
                if let (true, Some(Some(keys))) = (key_next, open.last_mut()) {
                    let key: String = serde_json::from_slice(text).map_err(|e| format!("header: {e}"))?;
                    if keys.contains(&key) {
                        return Err(format!("`{key}` occurs twice in the header"));
                    }
                    keys.insert(key);
                    if keys.len() > MAX_TENSORS + usize::from(keys.contains("__metadata__")) {
                        let what = if outermost { "tensors" } else { "entries" };
                        return Err(format!("more than {MAX_TENSORS} {what}"));
                    }
                }
                key_next = false;
            }
            _ => {}
        }
        if open.len() > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} brackets inside one another in the header"));
        }
        i += 1;
    }
    Ok(())
}

type Views<'a> = BTreeMap<String, TensorView<'a>>;

/// The network that the metadata name, or that the tensors are of; with as many classes as its last tensor says.
fn recognise(metadata: &Metadata, views: &Views<'_>) -> Result<model::Arch> {
    let found: Shapes = views.iter().map(|(n, v)| (n.clone(), v.shape().to_vec())).collect();
    let known = model::known();
    let names = || {
        let names: Vec<&str> = known.iter().map(|a| a.name.as_str()).chain(model::FAMILIES).collect();
        names.join(", ")
    };
    let candidates = known.iter().map(|arch| model::with_classes_of(arch.clone(), &found));
    let mut candidates: Vec<model::Arch> = candidates.chain(model::families(&found)).collect();
    if let Some(name) = metadata.get("arch") {
        candidates.retain(|arch| arch.name == *name);
        if candidates.is_empty() {
            let detail = if model::is_family(name) {
                format!("the tensors are none of a `{name}`")
            } else {
                format!("unknown architecture `{name}`; known are {} (# is a number)", names())
            };
            return Err(Error::model("metadata `arch`", detail));
        }
    }
    // The architecture that shares the most names gives the most useful message when none fits.
    let mut closest: Option<(usize, &model::Arch, Error)> = None;
    for arch in &candidates {
        let expected = expected(&arch.layers)?;
        let Some(error) = difference(&expected, &found) else { return Ok(arch.clone()) };
        let shared = expected.iter().filter(|(name, _)| found.contains_key(name)).count();
        if closest.as_ref().is_none_or(|(best, ..)| shared > *best) {
            closest = Some((shared, arch, error));
        }
    }
    Err(match closest {
        Some((_, _, error)) if metadata.contains_key("arch") => error,
        Some((1.., arch, Error::Model { place, detail })) => {
            let detail = format!("{detail} (as {}, which fits best; known are {}, # is a number)", arch.name, names());
            Error::model(place, detail)
        }
        _ => Error::model(
            "weights",
            format!("no `arch` in the metadata, and no tensor of a known architecture; known are {}", names()),
        ),
    })
}

/// The normalisation that metadata, a described architecture or tensors bring; several only if they agree.
fn normalisation(
    metadata: &Metadata,
    arch: Option<&Arch>,
    own: Option<Layer>,
    views: &mut Views<'_>,
) -> Result<Option<Layer>> {
    let described = arch.and_then(|arch| arch.layers.first()).filter(|l| matches!(l, Layer::Normalise { .. }));
    let said = match (normalise(metadata)?, described) {
        (Some(said), Some(described)) if said != *described => {
            return Err(Error::model("metadata `mean`, `std`", "not those that the architecture begins with"));
        }
        (said, described) => described.cloned().or(said),
    };
    if own.is_none()
        && let Some(name) = wrappers::take_suspects(views).first()
        && said.is_none()
    {
        let detail = "looks like a normalisation, but not by a name that is known: say the numbers in the metadata `mean` and \
                      `std` (`signstep convert` with --mean and --std), and tensors like this one are left out";
        return Err(Error::model(name, detail));
    }
    let single = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
    match (&said, &own) {
        (Some(Layer::Normalise { mean, std }), Some(Layer::Normalise { mean: m, std: s }))
            if (single(mean), single(std)) != (single(m), single(s)) =>
        {
            let detail = format!("{mean:?} with `std` {std:?}, but the tensors bring {m:?} and {s:?}: leave it out");
            Err(Error::model("metadata `mean`", detail))
        }
        _ => Ok(own.or(said)),
    }
}

fn normalise(metadata: &Metadata) -> Result<Option<Layer>> {
    let list = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(text) => serde_json::from_str::<Vec<f64>>(text)
            .map(Some)
            .map_err(|e| Error::model(format!("metadata `{key}`"), format!("not a JSON list of numbers: {e}"))),
    };
    match (list("mean")?, list("std")?) {
        (None, None) => Ok(None),
        (Some(mean), Some(std)) => Ok(Some(Layer::Normalise { mean, std })),
        (Some(_), None) => Err(Error::model("metadata `mean`", "there is no `std` beside it")),
        (None, Some(_)) => Err(Error::model("metadata `std`", "there is no `mean` beside it")),
    }
}

/// The shape of an image as the metadata say it: the architecture's own, or any sides where a mean over all pixels takes them in.
fn check_input(text: &str, arch: &model::Arch) -> Result<Dims> {
    let input = arch.input;
    let any_side = arch.layers.iter().any(|layer| matches!(layer, Layer::GlobalAvgPool));
    let sides: Option<Vec<usize>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides.as_deref() {
        Some(&[c, h, w]) if (c, h, w) == (input.c, input.h, input.w) => Ok(input),
        Some(&[c, h, w]) if any_side && c == input.c => Ok(Dims::new(c, h, w)),
        Some(&[c, h, w]) => Err(Error::model(
            "metadata `input`",
            format!("{} given, but the architecture takes {input}", Dims::new(c, h, w)),
        )),
        _ => Err(Error::model("metadata `input`", "not of the form C,H,W")),
    }
}

fn classes(metadata: &Metadata, logits: usize) -> Result<Vec<String>> {
    let Some(text) = metadata.get("classes") else { return Ok(Vec::new()) };
    let fail = |detail: String| Err(Error::model("metadata `classes`", detail));
    match class_names(text) {
        Ok(names) if names.len() == logits => Ok(names),
        Ok(names) => fail(format!("{} names for {logits} logits", names.len())),
        Err(detail) => fail(detail),
    }
}

/// Class names out of a JSON list. Control characters are refused: the names end up in terminals.
pub(crate) fn class_names(text: &str) -> std::result::Result<Vec<String>, String> {
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| format!("not a JSON list of strings: {e}"))?;
    match names.iter().position(|name| name.chars().any(char::is_control)) {
        Some(i) => Err(format!("name {i} holds a control character")),
        None => Ok(names),
    }
}

/// Values of a floating-point tensor. Copied byte by byte: the data of a file may lie at an odd address.
fn floats(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    decode(view).ok_or_else(|| Error::model(name, format!("{} values; only floats are supported", view.dtype())))
}

/// Values of a floating-point tensor as f32; `None` for any other type.
pub(crate) fn decode(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}

/// Names and shapes of the tensors that layers ask for, in their order.
pub(crate) fn expected(layers: &[Layer]) -> Result<Vec<(String, Vec<usize>)>> {
    let mut list = Vec::new();
    collect(layers, &mut list);
    let mut names = BTreeSet::new();
    match list.iter().find(|(name, _)| !names.insert(name)) {
        Some((name, _)) => Err(Error::model(name, "two layers ask for this tensor")),
        None => Ok(list),
    }
}

fn collect<'a>(layers: impl IntoIterator<Item = &'a Layer>, list: &mut Vec<(String, Vec<usize>)>) {
    for layer in layers {
        let mut push = |name: &str, part: &str, shape: Vec<usize>| list.push((format!("{name}.{part}"), shape));
        match layer {
            Layer::Conv2d(Conv2d { name, inputs, outputs, kernel, bias, .. }) => {
                push(name, "weight", vec![*outputs, *inputs, *kernel, *kernel]);
                if *bias {
                    push(name, "bias", vec![*outputs]);
                }
            }
            Layer::Linear(Linear { name, inputs, outputs }) => {
                push(name, "weight", vec![*outputs, *inputs]);
                push(name, "bias", vec![*outputs]);
            }
            Layer::Affine { name, channels } => {
                push(name, "weight", vec![*channels]);
                push(name, "bias", vec![*channels]);
            }
            Layer::BatchNorm { name, channels } => {
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    push(name, part, vec![*channels]);
                }
            }
            Layer::Residual { .. } => collect(layer.inner(), list),
            Layer::Normalise { .. }
            | Layer::Relu
            | Layer::MaxPool { .. }
            | Layer::AvgPool { .. }
            | Layer::GlobalAvgPool
            | Layer::Flatten => {}
        }
    }
}

/// The first difference between the tensors asked for and those there are.
fn difference(expected: &[(String, Vec<usize>)], found: &BTreeMap<String, Vec<usize>>) -> Option<Error> {
    for (name, shape) in expected {
        match found.get(name) {
            None => return Some(Error::model(name, "this tensor is missing")),
            Some(other) if other != shape => {
                return Some(Error::model(name, format!("has shape {other:?}, but {shape:?} is expected")));
            }
            Some(_) => {}
        }
    }
    let asked: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let surplus = found.keys().find(|name| !asked.contains(name.as_str()))?;
    Some(Error::model(surplus, "this tensor is left over: no layer asks for it"))
}

fn build(arch: &str, layers: Vec<Layer>, input: Dims, mut tensors: Tensors, norms: Norms) -> Result<Model> {
    check_size("input", input)?;
    let out = check_layers(&layers, input, norms, true)?;
    if (out.h, out.w) != (1, 1) || out.c < 2 {
        let last = layers.last().map_or("layers".into(), Layer::label);
        return Err(Error::model(last, format!("gives {out}; a classifier ends with K×1×1, K at least 2")));
    }
    let found = tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
    if let Some(error) = difference(&expected(&layers)?, &found) {
        return Err(error);
    }
    for (name, (shape, values)) in &tensors {
        // Shapes equal those of checked layers by now, so the product cannot overflow.
        let count: usize = shape.iter().product();
        if values.len() != count {
            return Err(Error::model(name, format!("{} values for the shape {shape:?}", values.len())));
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::model(name, format!("value {i} is {}", values[i])));
        }
        if let Some(i) = values.iter().position(|v| *v < 0.0 && name.ends_with(".running_var")) {
            return Err(Error::model(name, format!("variance {i} is negative ({})", values[i])));
        }
    }
    let mut params = BTreeMap::new();
    let layers = take_params(layers, &mut tensors, &mut params, norms)?;
    let model = Model { arch: arch.into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None };
    model::output(&model.layers, input)?;
    Ok(model)
}

/// Refuses a shape that no sample has.
pub(crate) fn check_size(place: &str, d: Dims) -> Result<()> {
    let len = d.c.checked_mul(d.h).and_then(|n| n.checked_mul(d.w));
    match len {
        Some(n) if n > 0 && n <= MAX_VALUES => Ok(()),
        _ => Err(Error::model(place, format!("{d}: every side must be 1 or more, and at most {MAX_VALUES} values"))),
    }
}

/// Checks what [`Layer::output`] does not: sizes, order, and where a layer may stand.
pub(crate) fn check_layers(layers: &[Layer], input: Dims, norms: Norms, outermost: bool) -> Result<Dims> {
    let mut x = input;
    for (i, layer) in layers.iter().enumerate() {
        let after_conv = i > 0 && matches!(layers[i - 1], Layer::Conv2d(_));
        match layer {
            Layer::Normalise { .. } if i > 0 || !outermost => {
                return Err(Error::model(layer.label(), "only supported as the first layer"));
            }
            Layer::BatchNorm { .. } if norms == Norms::Apart && !after_conv => {
                let detail = "in training mode batch norm is only supported right after a convolution";
                return Err(Error::model(layer.label(), detail));
            }
            Layer::Residual { body, shortcut } => {
                if matches!(shortcut, Shortcut::Subsample { added } if *added > MAX_VALUES) {
                    return Err(Error::model(layer.label(), "too many added channels"));
                }
                let end = body.iter().rev().find(|l| !matches!(l, Layer::BatchNorm { .. }));
                if !matches!(end, Some(Layer::Conv2d(_))) {
                    return Err(Error::model(layer.label(), "the body must end with a convolution"));
                }
                check_layers(body, x, norms, false)?;
                if let Shortcut::Projection(layers) = shortcut {
                    let behind = layers.iter().skip(1).filter(|l| matches!(l, Layer::BatchNorm { .. })).count();
                    if !matches!(layers.first(), Some(Layer::Conv2d(_)))
                        || layers.len() > 2
                        || behind + 1 != layers.len()
                    {
                        let detail = "a projection must be one convolution, with a batch norm behind it or none";
                        return Err(Error::model(layer.label(), detail));
                    }
                    check_layers(layers, x, norms, false)?;
                }
            }
            // Guards the products in `Layer::output` and in the shapes of weights.
            Layer::Conv2d(Conv2d { inputs, outputs, .. })
                if inputs.checked_mul(*outputs).is_none_or(|n| n > MAX_VALUES / 49) =>
            {
                return Err(Error::model(layer.label(), "the weights are too large"));
            }
            Layer::Linear(Linear { inputs, outputs, .. })
                if inputs.checked_mul(*outputs).is_none_or(|n| n > MAX_VALUES) =>
            {
                return Err(Error::model(layer.label(), "the weights are too large"));
            }
            _ => {}
        }
        x = layer.output(x)?;
        check_size(&layer.label(), x)?;
    }
    Ok(x)
}

/// Moves tensors into `params`, and every batch norm that is to be folded into the convolution before it.
fn take_params(
    layers: Vec<Layer>,
    tensors: &mut Tensors,
    params: &mut BTreeMap<String, Params>,
    norms: Norms,
) -> Result<Vec<Layer>> {
    let mut folded: Vec<Layer> = Vec::new();
    let mut rest = layers.into_iter().peekable();
    while let Some(layer) = rest.next() {
        let mut take = |name: &str, part: &str| {
            let name = format!("{name}.{part}");
            tensors.remove(&name).map(|(_, values)| values).ok_or_else(|| Error::model(name, "this tensor is missing"))
        };
        match layer {
            Layer::Conv2d(mut conv) => {
                let mut p = Params { weight: take(&conv.name, "weight")?, bias: vec![0.0; conv.outputs] };
                if conv.bias {
                    p.bias = take(&conv.name, "bias")?;
                }
                conv.bias = true;
                let to_fold = |l: &Layer| norms == Norms::Folded && matches!(l, Layer::BatchNorm { .. });
                if let Some(Layer::BatchNorm { name, .. }) = rest.next_if(to_fold) {
                    BatchNorm::take(&name, &mut take)?.fold_into(&mut p);
                    if let Some(k) = not_finite(&p) {
                        let detail = format!("output {k} of {} is not finite once this is folded into it", conv.name);
                        return Err(Error::model(name, detail));
                    }
                }
                params.insert(conv.name.clone(), p);
                folded.push(Layer::Conv2d(conv));
            }
            // With nothing to fold it into it is a layer of its own.
            Layer::BatchNorm { name, channels } if norms == Norms::Folded => {
                let mut p = Params { weight: vec![1.0; channels], bias: vec![0.0; channels] };
                BatchNorm::take(&name, &mut take)?.fold_into(&mut p);
                if let Some(k) = not_finite(&p) {
                    return Err(Error::model(name, format!("channel {k} is not finite")));
                }
                params.insert(name.clone(), p);
                folded.push(Layer::Affine { name, channels });
            }
            Layer::Affine { name, channels } => {
                let p = Params { weight: take(&name, "weight")?, bias: take(&name, "bias")? };
                params.insert(name.clone(), p);
                folded.push(Layer::Affine { name, channels });
            }
            Layer::BatchNorm { name, channels } => {
                let p = Params { weight: take(&name, "weight")?, bias: take(&name, "bias")? };
                for part in ["running_mean", "running_var"] {
                    take(&name, part)?;
                }
                params.insert(name.clone(), p);
                folded.push(Layer::BatchNorm { name, channels });
            }
            Layer::Linear(linear) => {
                let p = Params { weight: take(&linear.name, "weight")?, bias: take(&linear.name, "bias")? };
                params.insert(linear.name.clone(), p);
                folded.push(Layer::Linear(linear));
            }
            Layer::Residual { body, shortcut } => {
                let body = take_params(body, tensors, params, norms)?;
                let shortcut = match shortcut {
                    Shortcut::Projection(layers) => Shortcut::Projection(take_params(layers, tensors, params, norms)?),
                    other => other,
                };
                folded.push(Layer::Residual { body, shortcut });
            }
            other => folded.push(other),
        }
    }
    Ok(folded)
}

struct BatchNorm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl BatchNorm {
    /// Its four tensors, with what takes one by its owner's name and its own.
    fn take(name: &str, take: &mut impl FnMut(&str, &str) -> Result<Vec<f32>>) -> Result<Self> {
        Ok(BatchNorm {
            gamma: take(name, "weight")?,
            beta: take(name, "bias")?,
            mean: take(name, "running_mean")?,
            variance: take(name, "running_var")?,
        })
    }

    /// γ·(conv(x) − μ)/√(σ² + eps) + β is a convolution again: one rounding to f32, at the end.
    fn fold_into(&self, p: &mut Params) {
        let taps = p.weight.len() / p.bias.len();
        for (k, filter) in p.weight.chunks_exact_mut(taps).enumerate() {
            let scale = f64::from(self.gamma[k]) / (f64::from(self.variance[k]) + BATCH_NORM_EPS).sqrt();
            for w in filter {
                *w = (f64::from(*w) * scale) as f32;
            }
            let shifted = f64::from(p.bias[k]) - f64::from(self.mean[k]);
            p.bias[k] = (shifted * scale + f64::from(self.beta[k])) as f32;
        }
    }
}

/// The first output with a weight or bias that is not finite.
fn not_finite(p: &Params) -> Option<usize> {
    let taps = p.weight.len() / p.bias.len();
    (0..p.bias.len())
        .find(|&k| !p.bias[k].is_finite() || p.weight[k * taps..(k + 1) * taps].iter().any(|w| !w.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Shortcuts;

    /// A file from a header as text and the bytes behind it.
    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    /// A sound file of f32 tensors.
    fn file(metadata: &[(&str, &str)], tensors: &Tensors) -> Vec<u8> {
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        let mut header = serde_json::json!({ "__metadata__": metadata });
        let mut data = Vec::new();
        for (name, (shape, values)) in tensors {
            let start = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            header[name] = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        }
        raw(&header.to_string(), &data)
    }

    /// Tensors of an architecture, every value different and every variance positive.
    fn tensors(layers: &[Layer]) -> Tensors {
        let mut seed = 0_u32;
        let mut value = || {
            seed += 1;
            (crate::attack::philox(1, [seed, 0, 0, 0])[0] >> 8) as f32 / 16_777_216.0 - 0.5
        };
        let fill = |(name, shape): (String, Vec<usize>)| {
            let offset = if name.ends_with("running_var") { 0.6 } else { 0.0 };
            let values = (0..shape.iter().product()).map(|_| value() + offset).collect();
            (name, (shape, values))
        };
        expected(layers).unwrap().into_iter().map(fill).collect()
    }

    fn message(result: Result<Model>) -> String {
        // Not `unwrap_err`: it would print every weight.
        let Err(error) = result else { panic!("must be refused") };
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }

    #[test]
    fn headers_that_the_format_forbids_are_refused() {
        let one = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let refused = |bytes: &[u8]| message(load(bytes));
        assert!(open(&raw(one, &[1])).is_ok());
        assert!(refused(&[1, 2, 3]).contains("shorter than"));
        assert!(refused(&u64::MAX.to_le_bytes()).contains("at most"));
        assert!(refused(&raw(one, &[1])[..20]).contains("cut off"));
        assert!(refused(&raw(&format!(" {one}"), &[1])).contains("does not start with"));
        assert!(refused(&raw("", &[])).contains("does not start with"));
        for (data, what) in [(&[][..], "missing byte"), (&[1, 2], "trailing byte")] {
            assert!(refused(&raw(one, data)).contains("not sound"), "{what}");
        }
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(refused(&raw(twice, &[1])).contains("`a` occurs twice"));
        let twice = r#"{"__metadata__":{"arch":"x","arch":"y"}}"#;
        assert!(refused(&raw(twice, &[])).contains("`arch` occurs twice"));
        let rank = r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}}"#;
        assert!(refused(&raw(rank, &[1])).contains("`a` has 5 axes"));
        let overflow = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(refused(&raw(overflow, &[])).contains("not sound"));
        let hole = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(refused(&raw(hole, &[1, 2])).contains("not sound"));
        for junk in ["{", "{\"", "{\"a\\", "{\"a\":[[[", "{]}", "{\"a\":1,,}", "{\"\\x\":1}"] {
            refused(&raw(junk, &[]));
        }
        let deep = "{\"a\":".repeat(100_000);
        refused(&raw(&deep, &[]));
    }

    #[test]
    fn four_thousand_tensors_and_no_more() {
        let many = |n: usize| {
            let entry = |i| format!(r#""t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
            raw(&format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(",")), &[])
        };
        assert!(open(&many(MAX_TENSORS)).is_ok());
        assert!(open(&many(MAX_TENSORS + 1)).unwrap_err().contains("more than 4096"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = file(&[], &tensors(&model::digits_cnn().layers));
        let header = bytes.len() - 4 * 20_730;
        for end in (0..header + 64).chain([bytes.len() - 1]) {
            message(load(&bytes[..end]));
        }
    }

    #[test]
    fn every_network_is_recognised_and_loaded() {
        for arch in model::known() {
            let plain = tensors(&arch.layers);
            let model = load(&file(&[], &plain)).unwrap();
            assert_eq!((model.arch.as_str(), model.input, model.logits()), (arch.name.as_str(), arch.input, 10));
            assert_eq!((model.classes.len(), model.eps.clone()), (0, None));
            assert!(!matches!(model.layers[0], Layer::Normalise { .. }));
            assert!(!format!("{:?}", model.layers).contains("BatchNorm"));
            assert!(!format!("{:?}", model.layers).contains("bias: false"));

            let prefixed = |prefix: &str| -> Tensors {
                let mut all: Tensors = plain.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect();
                all.insert(format!("{prefix}bn1.num_batches_tracked"), (vec![], vec![7.0]));
                all
            };
            assert_eq!(load(&file(&[("arch", &arch.name)], &prefixed("module."))).unwrap(), model);
            assert_eq!(load(&file(&[], &prefixed("model."))).unwrap(), model);
            assert_eq!(load(&file(&[], &prefixed("module.model."))).unwrap(), model);
            let mut mixed = prefixed("module.");
            mixed.insert("linear.bias".into(), (vec![10], vec![0.0; 10]));
            assert!(message(load(&file(&[("arch", &arch.name)], &mixed))).contains("missing"));
        }
    }

    #[test]
    fn families_are_recognised_by_their_own_names() {
        let networks = [
            (model::wide_resnet(1, 2, 100), "wrn-10-2"),
            (model::wide_resnet(2, 1, 10), "wrn-16-1"),
            (model::preact_resnet([1, 1, 1, 1], true, 7), "preact-resnet10"),
            (model::preact_resnet([1, 2, 1, 1], false, 10), "preact-resnet12"),
        ];
        for (arch, name) in networks {
            let plain = tensors(&arch.layers);
            let model = load(&file(&[], &plain)).unwrap();
            let Some(Layer::Linear(last)) = arch.layers.last() else { panic!("no last layer") };
            assert_eq!((model.arch.as_str(), model.input, model.logits()), (name, arch.input, last.outputs));
            assert!(!format!("{:?}", model.layers).contains("BatchNorm"));
            assert_eq!(load(&file(&[("arch", name)], &plain)).unwrap(), model);
            let other = message(load(&file(&[("arch", "vgg16-bn")], &plain)));
            assert!(other.contains("the tensors are none of a `vgg16-bn`"), "{other}");
            // Images of other sides where a mean over all pixels takes them in.
            assert_eq!(load(&file(&[("input", "3,48,40")], &plain)).unwrap().input, Dims::new(3, 48, 40));
            assert!(message(load(&file(&[("input", "1,32,32")], &plain))).contains("takes 3×32×32"));
            for missing in plain.keys() {
                let mut fewer = plain.clone();
                fewer.remove(missing);
                message(load(&file(&[], &fewer)));
            }
        }
        // Classes are as many as the last layer has rows, whatever the network.
        let mut twenty = model::resnet(3, Shortcuts::Subsample);
        let Some(Layer::Linear(last)) = twenty.layers.last_mut() else { panic!("no last layer") };
        last.outputs = 100;
        let model = load(&file(&[], &tensors(&twenty.layers))).unwrap();
        assert_eq!((model.arch.as_str(), model.logits()), ("resnet20", 100));
    }

    /// The layers of a wide ResNet whose names are as the layout has them, written down by hand.
    #[test]
    fn a_wide_resnet_is_what_its_layout_says() {
        let list = expected(&model::wide_resnet(4, 10, 10).layers).unwrap();
        let shape = |name: &str| list.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        for (name, want) in [
            ("conv1.weight", vec![16, 3, 3, 3]),
            ("block1.layer.0.bn1.running_var", vec![16]),
            ("block1.layer.0.convShortcut.weight", vec![160, 16, 1, 1]),
            ("block2.layer.0.conv1.weight", vec![320, 160, 3, 3]),
            ("block3.layer.3.bn2.bias", vec![640]),
            ("bn1.weight", vec![640]),
            ("fc.weight", vec![10, 640]),
        ] {
            assert_eq!(shape(name), Some(want), "{name}");
        }
        assert_eq!(shape("block3.layer.1.convShortcut.weight"), None);
        // 12 blocks of two norms and two convolutions, three projections, a stem, the last norm, the last layer.
        assert_eq!(list.len(), 12 * (2 * 4 + 2) + 3 + 1 + 4 + 2);
        assert_eq!(
            list.iter()
                .filter(|(n, _)| !n.contains("running"))
                .map(|(_, s)| s.iter().product::<usize>())
                .sum::<usize>(),
            36_479_194
        );
    }

    #[test]
    fn shapes_that_no_network_has_are_no_trouble() {
        let sides = [0, 1, 7, usize::MAX / 2, usize::MAX];
        let names = [
            "conv1",
            "layer1.0.conv1",
            "layer1.0.conv2",
            "block1.layer.0.conv1",
            "block1.layer.0.conv2",
            "fc",
            "linear",
        ];
        let others = ["features.0", "classifier", "0", "2", "5", "7", "classifier.fc3", "layer1.0.conv3"];
        for axes in 0..5 {
            for side in sides {
                let names = names.iter().chain(&others).map(|name| (format!("{name}.weight"), vec![side; axes]));
                for arch in model::families(&names.collect()) {
                    assert!(model::is_family(&arch.name), "{}", arch.name);
                    let tensors = Tensors::new();
                    assert!(from_layers(arch.layers, arch.input, tensors).is_err());
                }
            }
        }
    }

    #[test]
    fn what_wrappers_put_around_a_network_is_taken_off() {
        let plain = tensors(&model::wide_resnet(1, 1, 10).layers);
        let alone = load(&file(&[], &plain)).unwrap();
        let renamed =
            |prefix: &str| -> Tensors { plain.iter().map(|(n, t)| (format!("{prefix}{n}"), t.clone())).collect() };
        let with = |mut all: Tensors, more: &[(&str, &[usize], [f32; 3])]| {
            all.extend(more.iter().map(|(n, shape, v)| (n.to_string(), (shape.to_vec(), v.to_vec()))));
            all
        };
        let (mean, std) = ([0.5, 0.25, 0.75], [0.25, 0.5, 0.125]);
        let four: &[usize] = &[1, 3, 1, 1];
        for wrapped in [
            with(renamed("model."), &[("normalize.mean", four, mean), ("normalize.std", four, std)]),
            with(renamed("1."), &[("0.mean", &[3], mean), ("0.std", &[3], std)]),
            with(renamed("classifier."), &[("mu", four, mean), ("sigma", four, std)]),
            with(renamed("module._orig_mod."), &[("module.mu", four, mean), ("module.std", four, std)]),
            with(
                renamed("model."),
                &[("normalizer.new_mean", &[3, 1, 1], mean), ("normalizer.new_std", &[3, 1, 1], std)],
            ),
        ] {
            let model = load(&file(&[], &wrapped)).unwrap();
            let Layer::Normalise { mean: m, std: s } = &model.layers[0] else { panic!("{:?}", model.layers[0]) };
            assert_eq!((m.as_slice(), s.as_slice()), (&[0.5, 0.25, 0.75][..], &[0.25, 0.5, 0.125][..]));
            assert_eq!((&model.layers[1..], &model.params), (&alone.layers[..], &alone.params));
            // What flags say as well must be the same.
            let said = [("mean", "[0.5,0.25,0.75]"), ("std", "[0.25,0.5,0.125]")];
            assert_eq!(load(&file(&said, &wrapped)).unwrap(), model);
            let other = message(load(&file(&[("mean", "[0,0,0]"), ("std", "[1,1,1]")], &wrapped)));
            assert!(other.contains("the tensors bring [0.5, 0.25, 0.75]"), "{other}");
        }
        let suspect = with(plain.clone(), &[("average", four, mean), ("width", four, std)]);
        let refused = message(load(&file(&[], &suspect)));
        assert!(
            refused.contains("average: looks like a normalisation") && refused.contains("--mean and --std"),
            "{refused}"
        );
        let said = [("mean", "[0.5,0.25,0.75]"), ("std", "[0.25,0.5,0.125]")];
        assert!(matches!(load(&file(&said, &suspect)).unwrap().layers[0], Layer::Normalise { .. }));
        let zero = with(plain.clone(), &[("mu", four, mean), ("sigma", four, [0.0; 3])]);
        assert!(message(load(&file(&[], &zero))).contains("sigma: a deviation of 0"));
        // A prefix is one at the front of every name, and nowhere else.
        let within: Tensors = plain.iter().map(|(n, t)| (n.replace("block2.", "block2.module."), t.clone())).collect();
        let refused = message(load(&file(&[], &within)));
        assert!(refused.contains("block2.layer.0.bn1.weight: this tensor is missing"), "{refused}");

        // Dead weight after TRADES, of the shapes of what lives; an attacker's copy, to the bit.
        let dead = |t: &Tensors| -> Tensors {
            let of_first = t.iter().filter(|(n, _)| n.starts_with("block1."));
            of_first.map(|(n, (s, v))| (format!("sub_{n}"), (s.clone(), vec![0.5; v.len()]))).collect()
        };
        let mut trades = plain.clone();
        trades.extend(dead(&plain));
        assert_eq!(load(&file(&[], &trades)).unwrap(), alone);
        trades.insert("sub_block1.layer.0.bn1.bias".into(), (vec![2], vec![0.0; 2]));
        assert!(message(load(&file(&[], &trades))).contains("sub_block1.layer.0.bn1.bias: this tensor is left over"));
        let mut twice = renamed("model.");
        twice.extend(renamed("attacker.model."));
        assert_eq!(load(&file(&[], &twice)).unwrap(), alone);
        twice.get_mut("attacker.model.fc.bias").unwrap().1[3] += 1.0;
        message(load(&file(&[], &twice)));
    }

    /// γ·(x − μ)/√(σ² + eps) + β where no convolution takes it in: before a ReLU and behind a sum.
    #[test]
    fn batch_norm_alone_becomes_a_gain_and_a_bias() {
        let tensors = Tensors::from([
            ("b.weight".into(), (vec![2], vec![0.5, 2.0])),
            ("b.bias".into(), (vec![2], vec![0.25, -1.0])),
            ("b.running_mean".into(), (vec![2], vec![1.0, -2.0])),
            ("b.running_var".into(), (vec![2], vec![4.0, 0.0])),
        ]);
        let model = from_layers(vec![norm("b", 2)], Dims::new(2, 1, 1), tensors.clone()).unwrap();
        assert_eq!(model.layers, [Layer::Affine { name: "b".into(), channels: 2 }]);
        let scale = [0.5 / 4.00001_f64.sqrt(), 2.0 / 1e-5_f64.sqrt()];
        assert_eq!(model.params["b"].weight, scale.map(|s| s as f32));
        assert_eq!(model.params["b"].bias, [(0.25 - scale[0]) as f32, (2.0 * scale[1] - 1.0) as f32]);
        let mut large = tensors;
        large.get_mut("b.weight").unwrap().1[1] = f32::MAX;
        assert!(
            message(from_layers(vec![norm("b", 2)], Dims::new(2, 1, 1), large)).contains("b: channel 1 is not finite")
        );
    }

    #[test]
    fn metadata_is_read_and_checked() {
        let plain = tensors(&model::digits_cnn().layers);
        let with = |metadata: &[(&str, &str)]| load(&file(metadata, &plain));
        let names = r#"["0","1","2","3","4","5","6","7","8","neuf"]"#;
        let model = with(&[
            ("arch", "digits-cnn"),
            ("classes", names),
            ("mean", "[0.25]"),
            ("std", "[0.5]"),
            ("input", "1,8,8"),
            ("eps", "0.3"),
            ("step_size", "2/255"),
            ("format", "pt"),
        ])
        .unwrap();
        assert_eq!(model.layers[0], Layer::Normalise { mean: vec![0.25], std: vec![0.5] });
        assert_eq!((model.classes[9].as_str(), model.eps.as_deref()), ("neuf", Some("0.3")));
        assert_eq!(model.step_size.as_deref(), Some("2/255"));

        let unknown = message(with(&[("arch", "vgg")]));
        assert!(
            unknown.contains("`vgg`") && unknown.contains("digits-cnn, lenet5, resnet18, resnet20, resnet32"),
            "{unknown}"
        );
        assert!(message(with(&[("arch", "resnet20")])).contains("conv1.weight: has shape [16, 1, 3, 3]"));
        assert!(message(with(&[("classes", r#"["a"]"#)])).contains("1 names for 10 logits"));
        assert!(message(with(&[("classes", "a")])).contains("not a JSON list"));
        assert!(message(with(&[("mean", "[0.5]")])).contains("no `std`"));
        assert!(message(with(&[("std", "[0.5]")])).contains("no `mean`"));
        assert!(message(with(&[("mean", "[0,0]"), ("std", "[1,1]")])).contains("2 means"));
        assert!(message(with(&[("mean", "[0]"), ("std", "[0]")])).contains("positive"));
        assert!(message(with(&[("mean", "0"), ("std", "1")])).contains("JSON list of numbers"));
        assert!(message(with(&[("input", "3,32,32")])).contains("takes 1×8×8"));
        assert!(message(with(&[("input", "8,8")])).contains("C,H,W"));
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused_by_name() {
        let plain = tensors(&model::resnet(3, Shortcuts::Subsample).layers);
        let changed = |change: &dyn Fn(&mut Tensors)| {
            let mut tensors = plain.clone();
            change(&mut tensors);
            message(load(&file(&[], &tensors)))
        };
        let missing = changed(&|t| drop(t.remove("layer2.1.bn1.weight")));
        assert!(missing.contains("layer2.1.bn1.weight: this tensor is missing (as resnet20"), "{missing}");
        let surplus = changed(&|t| drop(t.insert("fc.bias".into(), (vec![1], vec![0.0]))));
        assert!(surplus.contains("fc.bias: this tensor is left over"), "{surplus}");
        let shape = changed(&|t| drop(t.insert("linear.bias".into(), (vec![2, 5], vec![0.0; 10]))));
        assert!(shape.contains("linear.bias: has shape [2, 5], but [10] is expected"), "{shape}");
        let nan = changed(&|t| t.get_mut("layer1.0.conv1.weight").unwrap().1[17] = f32::NAN);
        assert!(nan.contains("layer1.0.conv1.weight: value 17 is NaN"), "{nan}");
        let infinite = changed(&|t| t.get_mut("linear.weight").unwrap().1[3] = f32::NEG_INFINITY);
        assert!(infinite.contains("linear.weight: value 3 is -inf"), "{infinite}");
        let variance = changed(&|t| t.get_mut("bn1.running_var").unwrap().1[2] = -0.1);
        assert!(variance.contains("bn1.running_var: variance 2 is negative"), "{variance}");
        let folded = changed(&|t| {
            t.get_mut("bn1.weight").unwrap().1[5] = f32::MAX;
            t.get_mut("bn1.running_var").unwrap().1[5] = 0.0;
        });
        assert!(folded.contains("bn1: output 5 of conv1"), "{folded}");
        let nothing = message(load(&file(&[], &Tensors::new())));
        assert!(nothing.contains("no tensor of a known architecture"), "{nothing}");
        let named = load(&file(&[], &Tensors::new())).unwrap_err().in_file("w.safetensors").to_string();
        assert!(named.starts_with("model: w.safetensors: weights:"), "{named}");
    }

    #[test]
    fn every_float_type_is_read_at_any_address() {
        let value = 0.15625_f32; // exact in all four
        let types: [(&str, Vec<u8>); 4] = [
            ("F16", f16::from_f32(value).to_le_bytes().to_vec()),
            ("BF16", bf16::from_f32(value).to_le_bytes().to_vec()),
            ("F32", value.to_le_bytes().to_vec()),
            ("F64", f64::from(value).to_le_bytes().to_vec()),
        ];
        for (dtype, bytes) in &types {
            for padding in 0..8 {
                let end = bytes.len() * 2;
                let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{end}]}}}}"#);
                let file = raw(&(header + &" ".repeat(padding)), &bytes.repeat(2));
                let (file, _) = open(&file).unwrap();
                assert_eq!(decode(&file.tensor("a").unwrap()).unwrap(), [value; 2], "{dtype}");
            }
        }
        let layers = model::digits_cnn().layers;
        let integers = String::from_utf8_lossy(&file(&[], &tensors(&layers))[8..]).replace("F32", "I32");
        let header = integers.split_once("}}").unwrap().0.to_string() + "}}";
        let data: Vec<u8> = vec![0; 4 * 20_730];
        assert!(message(load(&raw(&header, &data))).contains("I32 values; only floats"));
    }

    fn conv(name: &str, inputs: usize, outputs: usize) -> Layer {
        Layer::Conv2d(Conv2d { name: name.into(), inputs, outputs, kernel: 1, stride: 1, padding: 0, bias: false })
    }

    fn norm(name: &str, channels: usize) -> Layer {
        Layer::BatchNorm { name: name.into(), channels }
    }

    #[test]
    fn batch_norm_is_folded_as_by_hand() {
        // x = 3: conv gives 6 and −3; (6 − 1)/√(4 + 1e-5)·0.5 + 0.25 and (−3 + 2)/√(0 + 1e-5)·2 − 1.
        let tensors = Tensors::from([
            ("c.weight".into(), (vec![2, 1, 1, 1], vec![2.0, -1.0])),
            ("b.weight".into(), (vec![2], vec![0.5, 2.0])),
            ("b.bias".into(), (vec![2], vec![0.25, -1.0])),
            ("b.running_mean".into(), (vec![2], vec![1.0, -2.0])),
            ("b.running_var".into(), (vec![2], vec![4.0, 0.0])),
        ]);
        let model = from_layers(vec![conv("c", 1, 2), norm("b", 2)], Dims::new(1, 1, 1), tensors).unwrap();
        assert_eq!(model.layers.len(), 1);
        let p = &model.params["c"];
        let wanted = [2.5 / 4.00001_f64.sqrt() + 0.25, -2.0 / 1e-5_f64.sqrt() - 1.0];
        for (k, want) in wanted.into_iter().enumerate() {
            let got = 3.0 * f64::from(p.weight[k]) + f64::from(p.bias[k]);
            // Two roundings to f32; the second output is a difference of numbers three times its size.
            assert!((got - want).abs() <= 4.0 * f64::from(f32::EPSILON) * want.abs(), "{got} {want}");
        }
        assert_eq!((model.arch.as_str(), model.parameters()), ("custom", 4));
    }

    #[test]
    fn layers_that_the_engine_does_not_have_are_refused_by_name() {
        let input = Dims::new(8, 1, 1);
        let refused = |layers: Vec<Layer>| {
            let tensors = expected(&layers).map(|_| tensors(&layers)).unwrap_or_default();
            message(from_layers(layers, input, tensors))
        };
        for layers in [
            vec![conv("c", 8, 8), Layer::Relu, norm("b", 8)],
            vec![conv("c", 8, 8), norm("d", 8), norm("b", 8)],
            vec![norm("b", 8)],
        ] {
            let tensors = tensors(&layers);
            let training = message(from_layers_training(layers, input, tensors));
            assert!(training.contains("b: in training mode batch norm is only supported right after"), "{training}");
        }
        assert!(refused(vec![conv("c", 8, 8), conv("c", 8, 8)]).contains("c.weight: two layers"));
        assert!(refused(vec![conv("c", 7, 8)]).contains("c: takes 7 channels"));
        assert!(refused(vec![conv("c", 8, 1)]).contains("K at least 2"));
        let late = Layer::Normalise { mean: vec![0.0; 8], std: vec![1.0; 8] };
        assert!(refused(vec![conv("c", 8, 8), late]).contains("normalise: only supported as the first"));
        let residual = |body| Layer::Residual { body, shortcut: Shortcut::Identity };
        assert!(refused(vec![residual(vec![conv("c", 8, 8), Layer::Relu])]).contains("must end with a convolution"));
        assert!(refused(vec![norm("b", 7)]).contains("b: 7 channels"));
        assert!(refused(vec![residual(vec![])]).contains("must end with a convolution"));
        let huge = vec![conv("c", 8, usize::MAX / 4)];
        assert!(message(from_layers(huge, input, Tensors::new())).contains("too large"));
        let short = Tensors::from([("c.weight".into(), (vec![8, 8, 1, 1], vec![0.0; 63]))]);
        assert!(message(from_layers(vec![conv("c", 8, 8)], input, short)).contains("c.weight: 63 values"));
        assert!(message(from_layers(vec![], Dims::new(0, 1, 1), Tensors::new())).contains("input: 0×1×1"));
    }
}
