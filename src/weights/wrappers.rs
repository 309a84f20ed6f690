//! What programs put around a network's tensors: prefixes, copies that nothing reads, and a normalisation as tensors.
//! Everything here is taken off because names and values say so; what is not understood stays, and is refused by name
//! later.

use super::names::Views;
use super::values::floats;
use crate::error::{Error, Result};
use crate::model::Layer;
use safetensors::tensor::TensorView;

/// What the two tensors of a normalisation are called.
const PAIRS: [(&str, &str); 4] = [("mean", "std"), ("mu", "sigma"), ("mu", "std"), ("new_mean", "new_std")];

/// The network's own tensors under its own names, and its normalisation where that is among the tensors. `wanted` are
/// the names of a network of the user's own.
pub(super) fn unwrapped<'data>(
    tensors: Vec<(String, TensorView<'data>)>,
    wanted: Option<&[String]>,
) -> Result<(Views<'data>, Option<Layer>)> {
    let mut views: Views<'_> = tensors.into_iter().collect();
    // Counters that evaluation does not need.
    views.retain(|name, _| name != "num_batches_tracked" && !name.ends_with(".num_batches_tracked"));
    without_prefixes(&mut views, wanted);
    drop_copies(&mut views);
    let normalise = take_normalisation(&mut views)?;
    // The network is a part of what normalises, or its copy is gone.
    without_prefixes(&mut views, wanted);
    drop_dead(&mut views);
    Ok((views, normalise))
}

/// Drops the parts that every name begins with, whatever they are called: no network that is known is one part alone,
/// and one of the user's own says how far its names go.
fn without_prefixes(views: &mut Views<'_>, wanted: Option<&[String]>) {
    let is_there = |views: &Views<'_>| wanted.is_some_and(|wanted| wanted.iter().any(|name| views.contains_key(name)));
    while !is_there(views) {
        let first = views.keys().next().and_then(|name| name.split_once('.'));
        let Some(prefix) = first.map(|(part, _)| format!("{part}.")) else { return };
        if !views.keys().all(|name| name.len() > prefix.len() && name.starts_with(&prefix)) {
            return;
        }
        *views = std::mem::take(views).into_iter().map(|(n, view)| (n[prefix.len()..].to_string(), view)).collect();
    }
}

/// One way of training for robustness keeps the network a second time within its attacker. A copy goes if it is one to
/// the bit.
fn drop_copies(views: &mut Views<'_>) {
    let of = |name: &str| {
        let rest = name.strip_prefix("attacker.")?;
        Some(rest.strip_prefix("normalize.").map_or(rest.to_string(), |part| format!("normalizer.{part}")))
    };
    let is_copy = |name: &str| {
        let original = of(name).and_then(|original| views.get(&original));
        original.is_some_and(|original| {
            let copy = &views[name];
            (copy.dtype(), copy.shape(), copy.data()) == (original.dtype(), original.shape(), original.data())
        })
    };
    let copies: Vec<String> = views.keys().filter(|name| is_copy(name)).cloned().collect();
    copies.iter().for_each(|name| drop(views.remove(name)));
}

/// Wide ResNets after TRADES hold a first stage that their forward pass never runs, of the shapes of the one that it
/// does.
fn drop_dead(views: &mut Views<'_>) {
    let is_dead = |name: &str| {
        let twin = name.strip_prefix("sub_block1.").and_then(|rest| views.get(&format!("block1.{rest}")));
        twin.is_some_and(|twin| twin.shape() == views[name].shape())
    };
    let dead: Vec<String> = views.keys().filter(|name| is_dead(name)).cloned().collect();
    dead.iter().for_each(|name| drop(views.remove(name)));
}

/// Channels, if the shape is one value for each: `[C]`, `[C, 1, 1]` or `[1, C, 1, 1]`.
fn channels(shape: &[usize]) -> Option<usize> {
    match *shape {
        [c] | [c, 1, 1] | [1, c, 1, 1] if (1..=4).contains(&c) => Some(c),
        _ => None,
    }
}

fn take_normalisation(views: &mut Views<'_>) -> Result<Option<Layer>> {
    let pair = views.iter().find_map(|(name, view)| {
        let c = channels(view.shape())?;
        let (owner, part) =
            name.rsplit_once('.').map_or(("", name.as_str()), |(_, part)| name.split_at(name.len() - part.len()));
        let others = |std: &str| {
            let std = format!("{owner}{std}");
            let fits = channels(views.get(&std)?.shape()) == Some(c);
            // Whoever normalises has these two and nothing else, or has the network as a part.
            let alone = owner.is_empty() || views.keys().filter(|other| other.starts_with(owner)).count() == 2;
            (fits && alone).then_some((name.clone(), std))
        };
        PAIRS.iter().filter(|(mean, _)| *mean == part).find_map(|(_, std)| others(std))
    });
    let Some((mean, std)) = pair else { return Ok(None) };
    let mut take = |name: &str| -> Result<Vec<f64>> {
        let values = views.remove(name).map(|view| floats(name, &view)).transpose()?.unwrap_or_default();
        Ok(values.into_iter().map(f64::from).collect())
    };
    let (mean_values, std_values) = (take(&mean)?, take(&std)?);
    if let Some(bad) = std_values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
        return Err(Error::model(std, format!("a deviation of {bad}: deviations are finite and positive")));
    }
    Ok(Some(Layer::Normalise { mean: mean_values, std: std_values }))
}

/// Tensors that look like a normalisation of another name: one value for each channel of an image, in the shape that is
/// taken from images.
pub(super) fn take_suspects(views: &mut Views<'_>) -> Vec<String> {
    let is_one = |view: &TensorView<'_>| view.shape().len() > 1 && channels(view.shape()).is_some();
    let names: Vec<String> = views
        .iter()
        .filter(|(name, view)| !name.ends_with(".weight") && is_one(view))
        .map(|(name, _)| name.clone())
        .collect();
    names.iter().for_each(|name| drop(views.remove(name)));
    names
}

#[cfg(test)]
mod tests {
    use super::super::made::{conv, file, message, tensors};
    use super::super::names::Tensors;
    use super::super::{load, load_as};
    use super::*;
    use crate::model;

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

        // A network of the user's own has the names that it has, prefixes among them.
        let own = |prefix: &str| model::Arch {
            name: "own".into(),
            input: model::Dims::new(1, 1, 1),
            layers: vec![conv(&format!("{prefix}model.a"), 1, 2), conv(&format!("{prefix}model.b"), 2, 3)],
        };
        let of_file = |prefix: &str| file(&[], &tensors(&own(prefix).layers));
        let params = load_as(&of_file(""), &own("")).unwrap().params;
        for prefix in ["module.", "backbone.net."] {
            assert_eq!(load_as(&of_file(prefix), &own("")).unwrap().params, params);
            assert!(load_as(&of_file(prefix), &own(prefix)).is_ok());
            assert!(message(load_as(&of_file(""), &own(prefix))).contains("model.a.weight: this tensor is missing"));
        }

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
}
