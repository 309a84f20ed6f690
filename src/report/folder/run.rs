//! The run that parts are of.

use crate::model::Dims;
use crate::report::{Device, Identity};
use serde::{Deserialize, Serialize};

/// What `run.json` says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    pub identity: Identity,
    pub device: Device,
}

/// A run, as far as parts are held against it.
#[derive(Debug)]
pub(super) struct Run {
    pub manifest: Manifest,
    /// SHA-256 of what decides its bytes.
    pub sha256: String,
    /// What its networks take.
    pub dims: Dims,
    /// How many logits they give.
    pub classes: usize,
}
