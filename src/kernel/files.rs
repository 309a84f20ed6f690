//! The files in `shaders/`, which the library carries within it.

use super::{Kernel, hash};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

const FILES: &[(&str, &str)] = &[
    ("affine", include_str!("../../shaders/affine.wgsl")),
    ("batch_norm", include_str!("../../shaders/batch_norm.wgsl")),
    ("conv2d", include_str!("../../shaders/conv2d.wgsl")),
    ("coop", include_str!("../../shaders/coop.wgsl")),
    ("epilogue", include_str!("../../shaders/epilogue.wgsl")),
    ("fab", include_str!("../../shaders/fab.wgsl")),
    ("grey", include_str!("../../shaders/grey.wgsl")),
    ("habits", include_str!("../../shaders/habits.wgsl")),
    ("half", include_str!("../../shaders/half.wgsl")),
    ("hand", include_str!("../../shaders/hand.wgsl")),
    ("handed", include_str!("../../shaders/handed.wgsl")),
    ("linear", include_str!("../../shaders/linear.wgsl")),
    ("look", include_str!("../../shaders/look.wgsl")),
    ("loss", include_str!("../../shaders/loss.wgsl")),
    ("neighbours", include_str!("../../shaders/neighbours.wgsl")),
    ("normal", include_str!("../../shaders/normal.wgsl")),
    ("pad", include_str!("../../shaders/pad.wgsl")),
    ("phase", include_str!("../../shaders/phase.wgsl")),
    ("philox", include_str!("../../shaders/philox.wgsl")),
    ("pointwise", include_str!("../../shaders/pointwise.wgsl")),
    ("pool", include_str!("../../shaders/pool.wgsl")),
    ("probe", include_str!("../../shaders/probe.wgsl")),
    ("quantise", include_str!("../../shaders/quantise.wgsl")),
    ("rules", include_str!("../../shaders/rules.wgsl")),
    ("sample", include_str!("../../shaders/sample.wgsl")),
    ("scale", include_str!("../../shaders/scale.wgsl")),
    ("shared", include_str!("../../shaders/shared.wgsl")),
    ("square", include_str!("../../shaders/square.wgsl")),
    ("step", include_str!("../../shaders/step.wgsl")),
    ("store", include_str!("../../shaders/store.wgsl")),
    ("subgroup", include_str!("../../shaders/subgroup.wgsl")),
    ("sums", include_str!("../../shaders/sums.wgsl")),
    ("values", include_str!("../../shaders/values.wgsl")),
    ("wide", include_str!("../../shaders/wide.wgsl")),
    ("winograd", include_str!("../../shaders/winograd.wgsl")),
    ("words", include_str!("../../shaders/words.wgsl")),
    ("workgroup", include_str!("../../shaders/workgroup.wgsl")),
];

/// The text of `shaders/NAME.wgsl`.
pub(super) fn named(name: &str) -> Result<&'static str> {
    let file = FILES.iter().find(|(file, _)| *file == name);
    file.map(|(_, text)| *text).ok_or_else(|| Error::Internal(format!("no shader file {name}")))
}

/// The text of the file that declares an entry point.
pub(super) fn declaring(entry: &str) -> Result<&'static str> {
    let declares = |text: &str| text.lines().filter_map(entries).any(|mut names| names.any(|name| name == entry));
    let file = FILES.iter().find(|(_, text)| declares(text));
    file.map(|(_, text)| *text).ok_or_else(|| Error::Internal(format!("no kernel {entry}")))
}

/// The entry points that a line declares, where it is of the kind that does.
pub(super) fn entries(line: &str) -> Option<std::str::SplitWhitespace<'_>> {
    line.strip_prefix("//# kernel ").map(str::split_whitespace)
}

impl Kernel {
    /// Every entry point there is.
    pub fn entries() -> Vec<&'static str> {
        let lines = FILES.iter().flat_map(|(_, text)| text.lines());
        lines.filter_map(entries).flatten().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// A number that changes when the text of any shader does.
pub fn fingerprint() -> u64 {
    FILES.iter().fold(0, |sum, (name, text)| sum ^ hash(name.as_bytes()).rotate_left(1) ^ hash(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_file_is_known_and_part_of_the_fingerprint() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
            .collect();
        names.sort();
        let known: Vec<&str> = super::FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, names);
    }
}
