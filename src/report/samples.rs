//! `samples.csv`: one line a sample, for spreadsheets and data frames. Numbers only, so nothing needs quotes.

use super::Config;
use super::tensors::TensorFile;
use crate::attack::argmax;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

const HEADER: &str = "id,label,target,clean_prediction,adversarial_prediction,attacked,success,loss,linf,l2";

/// Samples that are read at once.
const BLOCK: usize = 4096;

/// Writes the samples of `tensors`, which are those of `ids` in the whole data set, row after row.
pub(super) fn write(path: &Path, tensors: &mut TensorFile, ids: Range<usize>, config: &Config) -> Result<()> {
    let fail = |e: std::io::Error| Error::Output { place: path.display().to_string(), detail: e.to_string() };
    let mut out = BufWriter::new(File::create(path).map_err(fail)?);
    let (each, all) = (config.rows_each(), ids.len() * config.rows_each());
    let more = [("eps", !config.radii.is_empty()), ("min_eps", config.ladder.is_some())];
    let more: Vec<&str> = more.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    let header = more.iter().fold(HEADER.to_string(), |header, name| format!("{header},{name}"));
    writeln!(out, "{header}").map_err(fail)?;
    for start in (0..all).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(all);
        let predictions = |tensors: &mut TensorFile, name: &str| -> Result<Vec<usize>> {
            let logits = tensors.f32(name, rows.clone())?;
            Ok(logits.chunks(logits.len() / rows.len()).map(argmax).collect())
        };
        let clean = predictions(tensors, "clean_logits")?;
        let adversarial = predictions(tensors, "adversarial_logits")?;
        let (labels, targets) = (tensors.i64("labels", rows.clone())?, tensors.i64("targets", rows.clone())?);
        let (attacked, success) = (tensors.flags("attacked", rows.clone())?, tensors.flags("success", rows.clone())?);
        let loss = tensors.f32("loss", rows.clone())?;
        let (linf, l2) = (tensors.f32("linf", rows.clone())?, tensors.f32("l2", rows.clone())?);
        let more = more.iter().map(|name| tensors.f32(name, rows.clone())).collect::<Result<Vec<_>>>()?;
        for i in 0..rows.len() {
            write!(
                out,
                "{},{},{},{},{},{},{},{},{},{}",
                ids.start + (rows.start + i) / each,
                labels[i],
                targets[i],
                clean[i],
                adversarial[i],
                u8::from(attacked[i]),
                u8::from(success[i]),
                loss[i],
                linf[i],
                l2[i]
            )
            .map_err(fail)?;
            more.iter().try_for_each(|column| write!(out, ",{}", column[i])).map_err(fail)?;
            writeln!(out).map_err(fail)?;
        }
    }
    out.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)
}
