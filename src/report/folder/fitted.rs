//! The one perturbation that all images share: a part of its own, sealed as the others are.

use super::names::{FACTS, SHARED};
use super::run::Run;
use crate::attack::{Health, Perturbation};
use crate::data::{View, sha256, write_safetensors};
use crate::error::Result;
use crate::model::Dims;
use crate::report::json_text;
use crate::report::tensors::TensorFile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A perturbation, and how long it took to find.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub perturbation: Perturbation,
    pub facts: FittedFacts,
}

/// What is known of a perturbation that has been fitted: as [`super::Part`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FittedFacts {
    run: String,
    pub fit_ms: f64,
    sha256: String,
}

impl Fitted {
    /// Reads a perturbation; `None` unless it is whole and of this run.
    pub(super) fn read(path: &Path, run: &Run) -> Option<Self> {
        let n = run.manifest.identity.range().len();
        let mut file = TensorFile::open(path).ok()?;
        let facts: FittedFacts = serde_json::from_str(file.metadata(FACTS)?).ok()?;
        let shape = [run.dims.c, run.dims.h, run.dims.w];
        if file.shape("perturbation")? != shape || file.slots().len() != 3 {
            return None;
        }
        let mut counts = |name: &str| -> Option<Vec<u64>> {
            let all = file.i64(name, 0..n).ok()?;
            (file.shape(name)? == [n]).then(|| all.iter().map(|v| v.cast_unsigned()).collect())
        };
        let (steps_taken, zero_gradients) = (counts("steps_taken")?, counts("zero_gradients")?);
        let values = file.f32("perturbation", 0..run.dims.c).ok()?;
        let health = vec![Health::default(); n];
        let perturbation = Perturbation { values, steps_taken, zero_gradients, health };
        let sealed = with_perturbation(&perturbation, run.dims, |views| facts.seal(views));
        (facts.run == run.sha256 && sealed == facts.sha256).then_some(Fitted { perturbation, facts })
    }

    /// Writes it among `parts`.
    pub(super) fn write(parts: &Path, perturbation: Perturbation, took: Duration, run: &Run) -> Result<Self> {
        let mut facts =
            FittedFacts { run: run.sha256.clone(), fit_ms: took.as_secs_f64() * 1e3, sha256: String::new() };
        with_perturbation(&perturbation, run.dims, |views| {
            facts.sha256 = facts.seal(views);
            let told = BTreeMap::from([(FACTS.to_string(), json_text(&facts))]);
            write_safetensors(&parts.join(SHARED), views, &told)
        })?;
        Ok(Fitted { perturbation, facts })
    }
}

impl FittedFacts {
    /// The hash that it must carry.
    fn seal(&self, views: &[(&str, View<'_>)]) -> String {
        let told = json_text(&FittedFacts { sha256: String::new(), ..self.clone() });
        sha256(std::iter::once(told.as_bytes()).chain(views.iter().map(|(_, view)| view.bytes())))
    }
}

/// Calls `f` with a perturbation and what was met in each sample, as tensors in sorted order.
fn with_perturbation<T>(p: &Perturbation, dims: Dims, f: impl FnOnce(&[(&str, View<'_>)]) -> T) -> T {
    let signed = |all: &[u64]| all.iter().map(|v| v.cast_signed()).collect::<Vec<i64>>();
    let (steps, zeros) = (signed(&p.steps_taken), signed(&p.zero_gradients));
    f(&[
        ("perturbation", View::f32(&[dims.c, dims.h, dims.w], &p.values)),
        ("steps_taken", View::i64(&[steps.len()], &steps)),
        ("zero_gradients", View::i64(&[zeros.len()], &zeros)),
    ])
}
