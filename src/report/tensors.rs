//! `adversarial.safetensors`: every image, every logit, every flag, for other programs.

use super::Run;
use crate::data::{View, write_safetensors};
use crate::error::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the file: the same bytes for the same outcome.
pub(super) fn write(path: &Path, run: &Run<'_>) -> Result<()> {
    let (o, d) = (run.outcome, run.model.input);
    let n = o.len();
    let k = o.clean_logits.len() / n.max(1);
    let flags = |flags: &[bool]| flags.iter().map(|f| u8::from(*f)).collect::<Vec<u8>>();
    let (attacked, success) = (flags(&o.attacked), flags(&o.success));
    let image = [n, d.c, d.h, d.w];
    let tensors = [
        ("clean", View::f32(&image, &o.clean)),
        ("adversarial", View::f32(&image, &o.adversarial)),
        ("labels", View::i64(&[n], &o.labels)),
        ("targets", View::i64(&[n], &o.targets)),
        ("clean_logits", View::f32(&[n, k], &o.clean_logits)),
        ("adversarial_logits", View::f32(&[n, k], &o.adversarial_logits)),
        ("attacked", View::u8(&[n], &attacked)),
        ("success", View::u8(&[n], &success)),
        ("loss", View::f32(&[n], &o.loss)),
        ("linf", View::f32(&[n], &o.linf)),
        ("l2", View::f32(&[n], &o.l2)),
    ];
    write_safetensors(path, &tensors, &BTreeMap::new())
}
