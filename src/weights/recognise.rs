//! Which of the known architectures tensors are of, and what to say where they are of none.

use super::header::Metadata;
use super::names::{Views, difference, expected};
use crate::error::{Error, Result};
use crate::model::{self, Arch, Shapes};

/// The network that the metadata name, or that the tensors are of; with as many classes as its last tensor says.
pub(super) fn recognise(metadata: &Metadata, views: &Views<'_>) -> Result<Arch> {
    let found: Shapes = views.iter().map(|(n, v)| (n.clone(), v.shape().to_vec())).collect();
    let known = model::known();
    let names = || {
        let names: Vec<&str> = known.iter().map(|a| a.name.as_str()).chain(model::FAMILIES).collect();
        names.join(", ")
    };
    let candidates = known.iter().map(|arch| model::with_classes_of(arch.clone(), &found));
    let mut candidates: Vec<Arch> = candidates.chain(model::families(&found)).collect();
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
    let mut closest: Option<(usize, &Arch, Error)> = None;
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

#[cfg(test)]
mod tests {
    use super::super::made::{file, message, tensors};
    use super::super::names::Tensors;
    use super::super::{from_layers, load};
    use super::*;
    use crate::model::{Dims, Layer, Shortcuts};

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
            for prefix in ["module.model.", "backbone.", "net.1."] {
                assert_eq!(load(&file(&[], &prefixed(prefix))).unwrap(), model, "{prefix}");
            }
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

    #[test]
    fn what_metadata_name_is_known_and_fits() {
        let plain = tensors(&model::digits_cnn().layers);
        let named = |name: &str| message(load(&file(&[("arch", name)], &plain)));
        let unknown = named("vgg");
        assert!(
            unknown.contains("`vgg`") && unknown.contains("digits-cnn, lenet5, resnet18, resnet20, resnet32"),
            "{unknown}"
        );
        assert!(named("resnet20").contains("conv1.weight: has shape [16, 1, 3, 3]"));
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
}
