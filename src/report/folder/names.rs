//! What files are called, in a complete folder and among the parts of one that is not.

pub(in super::super) const REPORT: &str = "report.json";
pub(in super::super) const TENSORS: &str = "adversarial.safetensors";
pub(super) const MARKDOWN: &str = "report.md";
/// The one perturbation that all images share, where they do. Among the parts it is a part of its own.
pub(super) const SHARED: &str = "perturbation.safetensors";
pub(super) const SAMPLES: &str = "samples.csv";
pub(super) const SHEET: &str = "sheet.png";
pub(super) const CURVE: &str = "curve.svg";
pub(super) const IMAGES: &str = "images";
/// All that a complete folder may hold, the report last.
pub(super) const NAMES: [&str; 8] = [TENSORS, SHARED, SAMPLES, SHEET, CURVE, IMAGES, MARKDOWN, REPORT];

pub(super) const PARTS: &str = "parts";
/// What a run writes and discards in its folder.
pub(crate) const RUN_NAMES: [&str; 9] = [TENSORS, SHARED, SAMPLES, SHEET, CURVE, IMAGES, MARKDOWN, REPORT, PARTS];
pub(super) const MANIFEST: &str = "run.json";
pub(super) const LOCK: &str = "lock";
/// Where the files of a complete folder are made, so that an abandoned one is swept away like any other leftover.
pub(super) const STAGING: &str = "join";
/// Key of a part's own facts in its metadata.
pub(super) const FACTS: &str = "part";
