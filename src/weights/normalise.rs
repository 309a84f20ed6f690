//! Mean and deviation: metadata, a described architecture or tensors bring them, or several of these that say the same.

use super::header::Metadata;
use super::names::Views;
use super::wrappers;
use crate::error::{Error, Result};
use crate::model::{Arch, Layer};

/// The normalisation that metadata, a described architecture or tensors bring; several only if they agree.
pub(super) fn normalisation(
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

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::super::made::{file, message, tensors};
    use crate::model;

    #[test]
    fn mean_and_deviation_stand_beside_each_other() {
        let plain = tensors(&model::digits_cnn().layers);
        let with = |metadata: &[(&str, &str)]| message(load(&file(metadata, &plain)));
        assert!(with(&[("mean", "[0.5]")]).contains("no `std`"));
        assert!(with(&[("std", "[0.5]")]).contains("no `mean`"));
        assert!(with(&[("mean", "[0,0]"), ("std", "[1,1]")]).contains("2 means"));
        assert!(with(&[("mean", "[0]"), ("std", "[0]")]).contains("positive"));
        assert!(with(&[("mean", "0"), ("std", "1")]).contains("JSON list of numbers"));
    }
}
