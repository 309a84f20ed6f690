//! `samples.csv`: one line a sample, for spreadsheets and data frames. Numbers only, so nothing needs quotes.

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

/// Writes the samples of `tensors`, which are those of `ids` in the whole data set.
pub(super) fn write(path: &Path, tensors: &mut TensorFile, ids: Range<usize>) -> Result<()> {
    let fail = |e: std::io::Error| Error::Output { place: path.display().to_string(), detail: e.to_string() };
    let mut out = BufWriter::new(File::create(path).map_err(fail)?);
    writeln!(out, "{HEADER}").map_err(fail)?;
    for start in (0..ids.len()).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(ids.len());
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
        for i in 0..rows.len() {
            writeln!(
                out,
                "{},{},{},{},{},{},{},{},{},{}",
                ids.start + rows.start + i,
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
        }
    }
    out.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)
}
