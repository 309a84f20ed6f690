//! Weights: safetensors bytes in, a [`Model`] out, or an error that names the tensor. No files, no GPU.
//!
//! Strict on purpose: a tensor that is missing, left over, of another shape or not finite is refused, and so is a
//! header that the format forbids but common readers let pass. Batch norm is folded here, in f64, into the convolution
//! before it, unless the network is loaded for training mode ([`load_training`]). Names stay as a checkpoint has them:
//! what wrappers put around them is taken off, and the layouts of the common families are known by their own names
//! ([`model::families`]). Imports only `error` and `model`; of the files below, each imports only from those above it.
//!
//! | file | what it is |
//! |---|---|
//! | `weights/header.rs` | bytes opened, and hostile headers refused |
//! | `weights/values.rs` | values in f32, and those that are refused |
//! | `weights/names.rs` | the tensors that layers ask for, and what differs from them |
//! | `weights/wrappers.rs` | what programs put around a network's tensors |
//! | `weights/normalise.rs` | mean and deviation |
//! | `weights/metadata.rs` | the shape of an image, and names of classes |
//! | `weights/recognise.rs` | which architecture tensors are of |
//! | `weights/fold.rs` | tensors become parameters, batch norm folded |
//! | `weights/layers.rs` | where a layer may stand, and how large it may be |
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

mod fold;
mod header;
mod layers;
#[cfg(test)]
mod made;
mod metadata;
mod names;
mod normalise;
mod recognise;
mod values;
mod wrappers;

pub use names::Tensors;

pub(crate) use fold::Norms;
#[cfg(feature = "cli")]
pub(crate) use header::{MAX_HEADER, describe};
pub(crate) use layers::{check_layers, check_size};
#[cfg(feature = "cli")]
pub(crate) use metadata::class_names;
pub(crate) use names::expected;
#[cfg(feature = "cli")]
pub(crate) use values::decode;

use crate::error::{Error, Result};
use crate::model::{self, Arch, Dims, Layer, Model};
use fold::take_params;
use header::open;
use metadata::{check_input, classes};
use names::difference;
use normalise::normalisation;
use recognise::recognise;
use std::collections::BTreeMap;
use values::{check_values, floats};
use wrappers::unwrapped;

/// Reads the bytes of a safetensors file. Floating-point tensors of 16 to 64 bits are converted to f32;
/// `num_batches_tracked` is ignored; what all names begin with (`module.`, `model.`, `backbone.`) is dropped, until they
/// are those of the network.
///
/// # Errors
/// [`Error::Model`] naming the tensor or the metadata key. The caller adds the file's name with [`Error::in_file`].
pub fn load(bytes: &[u8]) -> Result<Model> {
    load_bytes(bytes, None, Norms::Folded)
}

/// Reads the same bytes as the weights of `arch`, a network of one's own, whose layers name the tensors. What the
/// metadata say of an architecture is not looked at. Mean and deviation may stand in the metadata or in front of the
/// layers ([`Layer::Normalise`]); where they stand in both they must be the same.
///
/// # Errors
/// As [`load`] and [`from_layers`].
pub fn load_as(bytes: &[u8], arch: &Arch) -> Result<Model> {
    load_bytes(bytes, Some(arch), Norms::Folded)
}

/// Reads the same bytes for training mode ([`crate::Training`]): every [`Layer::BatchNorm`] stays a layer, with its
/// gain and bias among the parameters. Its running statistics are checked as in [`load`], and dropped.
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

/// Whether the tensors are those of a network that is known, whatever else may be wrong.
#[cfg(feature = "cli")]
pub(crate) fn is_known(bytes: &[u8]) -> bool {
    let Ok((file, metadata)) = open(bytes) else { return false };
    let Ok((mut views, _)) = unwrapped(file.tensors(), None) else { return false };
    wrappers::take_suspects(&mut views);
    recognise(&metadata, &views).is_ok()
}

fn load_bytes(bytes: &[u8], arch: Option<&Arch>, norms: Norms) -> Result<Model> {
    let (file, metadata) = open(bytes).map_err(|detail| Error::model("weights", detail))?;
    let names = |arch: &Arch| Ok(expected(&arch.layers)?.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    let wanted = arch.map(names).transpose()?;
    let (mut views, own) = unwrapped(file.tensors(), wanted.as_deref())?;
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

/// Builds a network of one's own (`arch` is `custom`) from layers and tensors named as [`Conv2d`](model::Conv2d),
/// [`Linear`](model::Linear) and [`Layer::BatchNorm`] say. `input` is the shape of one image.
///
/// ```
/// use signstep::model::{Conv2d, Dims, Layer, Linear};
/// use signstep::weights::{Tensors, from_layers};
///
/// let conv = Conv2d { name: "conv".into(), inputs: 1, outputs: 4, kernel: 3, stride: 1, padding: 1, bias: false };
/// let linear = Linear { name: "fc".into(), inputs: 4, outputs: 2, bias: true };
/// let layers = vec![Layer::Conv2d(conv), Layer::Relu, Layer::GlobalAvgPool, Layer::Flatten, Layer::Linear(linear)];
/// let tensors = Tensors::from([
///     ("conv.weight".into(), (vec![4, 1, 3, 3], vec![0.1; 36])), // [K, C, R, S]
///     ("fc.weight".into(), (vec![2, 4], vec![0.5, -0.5, 0.5, -0.5, 1.0, 0.0, 0.0, 1.0])), // [K, C]
///     ("fc.bias".into(), (vec![2], vec![0.0, 0.1])),
/// ]);
/// let model = from_layers(layers, Dims::new(1, 8, 8), tensors)?;
/// assert_eq!(model.logits(), 2);
/// // Network::new(&gpu, model), or Reference::new(model) on the CPU
/// # Ok::<(), signstep::Error>(())
/// ```
///
/// # Errors
/// [`Error::Model`] naming the layer or tensor: shapes that do not fit, two layers of one name, tensors missing, left
/// over or not finite, a body of a residual block that does not end with a convolution, a [`Layer::Normalise`] that is
/// not first.
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
        check_values(name, shape, values)?;
    }
    let mut params = BTreeMap::new();
    let layers = take_params(layers, &mut tensors, &mut params, norms)?;
    let model = Model { arch: arch.into(), input, layers, params, classes: Vec::new(), eps: None, step_size: None };
    model::output(&model.layers, input)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::made::{file, message, tensors};
    use super::*;
    use crate::model::Shortcuts;

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = file(&[], &tensors(&model::digits_cnn().layers));
        let header = bytes.len() - 4 * 20_730;
        for end in (0..header + 64).chain([bytes.len() - 1]) {
            message(load(&bytes[..end]));
        }
    }

    #[test]
    fn metadata_are_part_of_a_model() {
        let names = r#"["0","1","2","3","4","5","6","7","8","neuf"]"#;
        let metadata = [
            ("arch", "digits-cnn"),
            ("classes", names),
            ("mean", "[0.25]"),
            ("std", "[0.5]"),
            ("input", "1,8,8"),
            ("eps", "0.3"),
            ("step_size", "2/255"),
            ("format", "pt"),
        ];
        let model = load(&file(&metadata, &tensors(&model::digits_cnn().layers))).unwrap();
        assert_eq!(model.layers[0], Layer::Normalise { mean: vec![0.25], std: vec![0.5] });
        assert_eq!((model.classes[9].as_str(), model.eps.as_deref()), ("neuf", Some("0.3")));
        assert_eq!(model.step_size.as_deref(), Some("2/255"));
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
}
