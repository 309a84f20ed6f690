//! The network that a command is given: weights out of a file or out of the program, and layers of the user's own.

use crate::data::{self, Description};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::ModelFacts;
use crate::weights;
use clap::Args;
use std::path::{Path, PathBuf};

/// Weights that are used when no others are named.
const DIGITS_CNN: &[u8] = include_bytes!("../../weights/digits-cnn.safetensors");

/// Largest file of weights, in bytes: a billion of them.
const MAX_WEIGHTS: u64 = 4 << 30;

/// The network.
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    /// Weights (safetensors) [default: digits-cnn, inside the program]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub model: Option<PathBuf>,
    /// Layers of the network whose weights --model names, one of your own (TOML) [default: the network, among those
    /// known, that the tensors tell]
    #[arg(long, value_name = "FILE.toml", help_heading = "Input")]
    pub arch: Option<PathBuf>,
}

/// Weights as they were asked for, and the description of their network if there is one.
pub(super) struct Weights {
    pub bytes: Vec<u8>,
    /// What the file is called.
    pub name: String,
    pub description: Option<Description>,
}

impl Weights {
    /// Reads a file; without one, the weights inside the program.
    pub(super) fn open(file: Option<&Path>, arch: Option<&Path>) -> Result<Self> {
        if let (Some(arch), None) = (arch, file) {
            let why = "needs --model: it describes the layers of weights of your own";
            return Err(Error::Usage(format!("--arch {} {why}", arch.display())));
        }
        let description = arch.map(Description::open).transpose()?;
        let Some(path) = file else {
            return Ok(Weights { bytes: DIGITS_CNN.to_vec(), name: "digits-cnn".into(), description });
        };
        let name = path.display().to_string();
        let bytes = data::read(path, MAX_WEIGHTS).map_err(|e| match e {
            Error::Data { place, detail } => Error::Model { place, detail },
            other => other,
        })?;
        if data::is_checkpoint(&bytes) {
            let out = path.with_extension("safetensors").display().to_string();
            let detail = format!("this is a checkpoint of PyTorch: signstep convert {name} {out} makes weights of it");
            return Err(Error::Model { place: name, detail });
        }
        Ok(Weights { bytes, name, description })
    }

    /// The network.
    pub(super) fn model(&self) -> Result<Model> {
        let mut model = match &self.description {
            None => weights::load(&self.bytes),
            Some(description) => weights::load_as(&self.bytes, &description.arch),
        }
        .map_err(|e| e.in_file(&self.name))?;
        if let Some(description) = &self.description
            && model.classes.is_empty()
        {
            model.classes = description.classes.clone();
        }
        Ok(model)
    }

    /// What a report says of it.
    pub(super) fn facts(&self, model: &Model) -> ModelFacts {
        ModelFacts {
            arch: model.arch.clone(),
            sha256: data::sha256([&self.bytes[..]]),
            parameters: model.parameters(),
            description_sha256: self.description.as_ref().map(|d| d.sha256.clone()),
        }
    }
}

/// A network, and what a report says of it.
pub(super) fn load_model(args: &NetworkArgs) -> Result<(Model, ModelFacts)> {
    let weights = Weights::open(args.model.as_deref(), args.arch.as_deref())?;
    let model = weights.model()?;
    let facts = weights.facts(&model);
    Ok((model, facts))
}
