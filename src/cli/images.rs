//! The images that a command is given: opened, framed, and held against its network.

use super::tell::warn;
use crate::data::{self, Framing};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::DataFacts;
use clap::Args;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

/// The images.
#[derive(Args, Debug)]
pub(super) struct DataArgs {
    /// Images and labels: a folder of PNG or JPEG pictures (class/file, or with labels.csv), of IDX files (MNIST,
    /// gzipped or not), of CIFAR-10 batches or of NumPy arrays; a .safetensors with `images` and `labels`; what `attack`
    /// or `eval` left, its adversarial images [default: the 450 held-out digits inside the program]
    #[arg(long, value_name = "PATH", help_heading = "Input")]
    pub data: Option<PathBuf>,
    /// Resize pictures so that the shorter side has N pixels, to the byte as torchvision does it (bilinear,
    /// antialiased)
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub resize: Option<u32>,
    /// Cut a square of N×N pixels out of the middle of pictures, resized ones where they are
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub crop: Option<u32>,
}

/// Labelled images, of which at most the first `limit` count.
pub(super) struct Images {
    pub source: data::Source,
    /// How many of them.
    pub samples: usize,
}

impl Images {
    /// What a report says of them, on `model`.
    pub(super) fn facts(&self, model: &Model) -> DataFacts {
        let source = &self.source;
        DataFacts {
            source: source.name.clone(),
            sha256: source.sha256.clone(),
            samples: self.samples,
            classes: if source.classes.is_empty() { model.classes.clone() } else { source.classes.clone() },
            framing: source.framing.unwrap_or_default(),
        }
    }

    /// Pixels of the samples in `range`, all within the bounds.
    pub(super) fn pixels(&mut self, range: Range<usize>, bounds: Option<(f32, f32)>) -> Result<Vec<f32>> {
        let first = range.start;
        let pixels = self.source.images(range)?;
        if let Some((lo, hi)) = bounds
            && let Some(i) = pixels.iter().position(|x| *x < lo || *x > hi)
        {
            let sample = first + i / self.source.dims.len();
            let detail =
                format!("pixel value {} of sample {sample} lies outside of the bounds {lo} to {hi}", pixels[i]);
            return Err(Error::Data { place: self.source.name.clone(), detail });
        }
        Ok(pixels)
    }
}

/// Opens the data asked for, and checks that the network can take the images, and knows their labels.
pub(super) fn load_images(args: &DataArgs, limit: Option<usize>, model: &Model) -> Result<Images> {
    let framing = Framing { resize: args.resize, crop: args.crop };
    let mut source: data::Source = match &args.data {
        Some(path) => data::open_framed(path, limit, framing)?,
        None if !framing.is_none() => return Err(Error::Usage(format!("{framing}: pictures are missing (--data)"))),
        None => data::digits()?,
    };
    let classes = model.logits();
    let samples = limit.unwrap_or(usize::MAX).min(source.len());
    let place = source.name.clone();
    let fail = |detail: String| Err(Error::data(&place, detail));
    if samples == 0 {
        return fail("holds no images".into());
    }
    if source.dims != model.input {
        let way_out = match source.framing {
            None => "",
            // No flag changes those.
            Some(_) if source.dims.c != model.input.c => {
                "; pictures keep their channels, one if all of them are grey, else three"
            }
            Some(_) => "; --resize and --crop bring pictures to another size",
        };
        return fail(format!("images are {}, but {} takes {}{way_out}", source.dims, model.arch, model.input));
    }
    if source.number_as(&model.classes, classes)? {
        let (data, network) = (&source.classes[0], &model.classes[0]);
        let order = "classes are numbered in the order of their own names";
        warn(format!(
            "none of the names of the data's classes is one of the network's: {order}, so `{data}` is `{network}`"
        ));
    }
    let labels = &source.labels[..samples];
    // Folders are read one class after the other.
    let (seen, known) = (labels.iter().collect::<BTreeSet<_>>().len(), source.classes.len());
    if limit == Some(samples) && source.framing.is_some() && seen < known {
        warn(format!("the first {samples} images are of {seen} of {known} classes"));
    }
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| !(0..classes as i64).contains(*l)) {
        return fail(format!("label {label} of sample {i} is none of the {classes} classes of {}", model.arch));
    }
    Ok(Images { source, samples })
}
