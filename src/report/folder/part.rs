//! A part: the samples of one chunk in one file, sealed with a hash, so that it is whole or none.

use super::names::FACTS;
use super::run::Run;
use crate::attack::Outcome;
use crate::data::{hexadecimal, write_safetensors};
use crate::error::Result;
use crate::report::tensors::{Columns, TensorFile, slots, with_views};
use crate::report::{Figures, json_text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// What is known of a chunk of samples that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Which run it is of: the SHA-256 of what decides its bytes.
    run: String,
    /// Its first sample, by index in the whole data set.
    pub first: usize,
    /// The sample after its last.
    pub end: usize,
    /// What came of it.
    pub figures: Figures,
    pub(super) attack_ms: f64,
    pub(super) sample_steps: u64,
    /// SHA-256 of all of the above and the values of its tensors.
    sha256: String,
}

impl Part {
    /// Reads a part to its end; `None` unless it is whole, of this run, and of the samples that its name says.
    pub(super) fn read(path: &Path, range: Range<usize>, run: &Run) -> Option<Self> {
        let mut file = TensorFile::open(path).ok()?;
        let part: Part = serde_json::from_str(file.metadata(FACTS)?).ok()?;
        let mut found = file.slots();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let fits = part.run == run.sha256
            && (part.first..part.end) == range
            && range.start < range.end
            && range.end <= run.manifest.identity.range().end
            && part.figures.whole.samples == range.len()
            && found == slots(range.len(), run.dims, run.classes, &run.manifest.identity.config);
        let hash = |hash: &mut Sha256| {
            found.iter().try_for_each(|slot| {
                file.copy(&slot.name, &mut |bytes| {
                    hash.update(bytes);
                    Ok(())
                })
            })
        };
        (fits && part.seal(hash).ok()? == part.sha256).then_some(part)
    }

    /// Writes the outcome of the samples that begin at `first` among `parts`; `rungs` and `attack` as
    /// [`super::Folder::add`].
    pub(super) fn write(
        parts: &Path,
        first: usize,
        outcome: &Outcome,
        rungs: &[Option<usize>],
        attack: Duration,
        run: &Run,
    ) -> Result<Self> {
        let config = &run.manifest.identity.config;
        let columns = Columns::new(config, first, outcome, rungs);
        let mut part = Part {
            run: run.sha256.clone(),
            first,
            end: first + outcome.len() / config.rows_each(),
            figures: Figures::new(config, outcome, rungs),
            attack_ms: attack.as_secs_f64() * 1e3,
            sample_steps: outcome.sample_steps(),
            sha256: String::new(),
        };
        with_views(outcome, &columns, run.dims, |views| {
            part.sha256 = part.seal(|hash| {
                views.iter().for_each(|(_, view)| hash.update(view.bytes()));
                Ok(())
            })?;
            let facts = BTreeMap::from([(FACTS.to_string(), json_text(&part))]);
            write_safetensors(&parts.join(part.file()), views, &facts)
        })?;
        Ok(part)
    }

    /// The hash that the part must carry; `feed` hands over its tensors' bytes.
    fn seal(&self, feed: impl FnOnce(&mut Sha256) -> Result<()>) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(json_text(&Part { sha256: String::new(), ..self.clone() }));
        feed(&mut hash)?;
        Ok(hexadecimal(hash))
    }

    pub(super) fn file(&self) -> String {
        format!("{}-{}.safetensors", self.first, self.end)
    }
}

/// `FIRST-END.safetensors`
pub(super) fn range(name: &str) -> Option<Range<usize>> {
    let (first, end) = name.strip_suffix(".safetensors")?.split_once('-')?;
    Some(first.parse().ok()?..end.parse().ok()?)
}
