//! What came of a run, in numbers, text and pictures. A run is many parts: statistics of a part's
//! [`Outcome`](crate::attack::Outcome) add up, tensors of parts are joined on disk, and everything else ([`Report`],
//! table, sheet, pictures) is made from those two. Nothing here runs a network.

mod config;
mod curve;
mod evaluation;
mod evaluation_folder;
mod evaluation_text;
mod folder;
mod json;
mod ledger;
mod merge;
mod pictures;
mod radii;
mod recount;
mod samples;
mod shard;
mod sheet;
mod statistics;
mod table;
mod tensors;

pub(crate) use config::differences;
pub use config::{Config, DataFacts, Device, Distance, Identity, ModelFacts};
pub use evaluation::{EvalConfig, EvalIdentity, EvalTiming, Evaluation, Rate, Struck};
pub(crate) use evaluation_folder::EVALUATION_NAMES;
pub use evaluation_folder::{EvalFolder, EvalOpened};
pub use evaluation_text::{evaluation_csv, evaluation_markdown, evaluation_table};
pub(crate) use folder::RUN_NAMES;
pub use folder::{Folder, Opened, Part, missing};
pub(crate) use json::{MAX_BYTES, text as json_text};
pub use json::{Rates, Report, Timing};
pub use ledger::{Evidence, Ledger, Tally};
pub(crate) use merge::MERGED;
pub use merge::merge;
pub use radii::{EpsRow, Figures, Ladder, MinEps, Radius};
pub use shard::Shard;
pub use statistics::{Statistics, wilson};
pub use table::{blank, csv, markdown, table};
pub(crate) use table::{grouped, percent};
pub use tensors::TensorFile;

/// A distance of [0, 1] in words: `76/255` when it is one of 8 bits, else a decimal.
fn levels(x: f32) -> String {
    let k = f64::from(x) * 255.0;
    if x.is_finite() && (k - k.round()).abs() < 1e-3 { format!("{}/255", k.round()) } else { decimal(x) }
}

/// What 8 bits did to clean images, if anything.
pub(crate) fn rounding(snapped: f32) -> Option<String> {
    let most = snapped * 255.0;
    (snapped > 0.0)
        .then(|| format!("clean images were rounded to 8 bits before anything else, by at most {most:.3}/255"))
}

/// Four digits at most.
fn decimal(x: f32) -> String {
    let rounded = format!("{x:.4}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_read_as_grey_levels_where_they_are() {
        assert_eq!(levels(76.0 / 255.0), "76/255");
        assert_eq!(levels(0.3), "0.3");
        assert_eq!(levels(0.0), "0/255");
    }
}
