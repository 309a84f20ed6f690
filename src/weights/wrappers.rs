//! What programs put around a network's tensors: prefixes, copies that nothing reads, and a normalisation as tensors. Everything
//! here is taken off because names and values say so; what is not understood stays, and is refused by name later.

use super::Views;
use super::floats;
use crate::error::{Error, Result};
use crate::model::Layer;
use safetensors::tensor::TensorView;

/// Prefixes of wrappers.
const PREFIXES: [&str; 3] = ["module.", "model.", "_orig_mod."];
/// What the two tensors of a normalisation are called.
const PAIRS: [(&str, &str); 4] = [("mean", "std"), ("mu", "sigma"), ("mu", "std"), ("new_mean", "new_std")];

/// The network's own tensors under its own names, and its normalisation where that is among the tensors.
pub(super) fn unwrapped(tensors: Vec<(String, TensorView<'_>)>) -> Result<(Views<'_>, Option<Layer>)> {
    let mut views: Views<'_> = tensors.into_iter().collect();
    // Counters that evaluation does not need.
    views.retain(|name, _| name != "num_batches_tracked" && !name.ends_with(".num_batches_tracked"));
    without_prefixes(&mut views);
    drop_copies(&mut views);
    let normalise = take_normalisation(&mut views)?;
    if normalise.is_some() {
        // The network is a part of what normalises: whatever that part is called.
        let first = views.keys().next().and_then(|name| Some(name.split_once('.')?.0)).map(|part| format!("{part}."));
        if let Some(prefix) = first {
            without_prefix(&mut views, &prefix);
        }
    }
    without_prefixes(&mut views);
    drop_dead(&mut views);
    Ok((views, normalise))
}

/// Drops a prefix that every name has; at the front of names, and nowhere else.
fn without_prefix(views: &mut Views<'_>, prefix: &str) -> bool {
    let all = !views.is_empty() && views.keys().all(|name| name.len() > prefix.len() && name.starts_with(prefix));
    if all {
        *views = std::mem::take(views).into_iter().map(|(n, view)| (n[prefix.len()..].to_string(), view)).collect();
    }
    all
}

fn without_prefixes(views: &mut Views<'_>) {
    while PREFIXES.iter().any(|prefix| without_prefix(views, prefix)) {}
}

/// One way of training for robustness keeps the network a second time within its attacker. A copy goes if it is one to the bit.
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

/// Wide ResNets after TRADES hold a first stage that their forward pass never runs, of the shapes of the one that it does.
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

/// Tensors that look like a normalisation of another name: one value for each channel of an image, in the shape that is taken
/// from images.
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
