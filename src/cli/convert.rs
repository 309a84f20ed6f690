//! `signstep convert`: a checkpoint of PyTorch into safetensors, read as data and recognised by the engine before it is
//! written.

use super::apart;
use super::flags::distance;
use super::tell::{answer, answer_json, warn};
use crate::data::{self, Checkpoint, Description};
use crate::error::{Error, Result};
use crate::{model, weights};
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const HELP: &str = "\
The checkpoint is a state dict that torch.save wrote, in its zip format or the one before that, or a dictionary with one under \
state_dict, model_state_dict, net or model. It is read as data: nothing in it is executed, and whatever is not needed for tensors \
is refused. Names, types and values stay as they are; num_batches_tracked is left out. The network is recognised by names and \
shapes: nothing has to be renamed, and classes are as many as the last layer has.

Examples:
  signstep convert mnist_lenet5.pt lenet5.safetensors
  signstep convert ckpt.pth net.safetensors --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 --eps 8/255";

#[derive(Args, Debug)]
pub(super) struct ConvertArgs {
    /// Checkpoint: .pt, .pth, .th or .bin, whatever its name
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Weights to write (safetensors)
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Entry of the checkpoint that holds the tensors [default: the one of state_dict, model_state_dict, net and model
    /// that is there, else the whole; behind a dot, an entry of an entry: ema.model]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Name of the architecture, or the layers of one of your own, as they are described in a file, which later
    /// commands are to be given too [default: none is written, for the tensors tell it]
    #[arg(long, value_name = "NAME|FILE.toml", help_heading = "Metadata")]
    arch: Option<String>,
    /// Mean of each channel, in pixels of [0, 1]: the network reads (x - mean) / std
    #[arg(long, value_name = "A,B,C", allow_hyphen_values = true, requires = "std", help_heading = "Metadata")]
    mean: Option<String>,
    /// Deviation of each channel
    #[arg(long, value_name = "A,B,C", allow_hyphen_values = true, requires = "mean", help_heading = "Metadata")]
    std: Option<String>,
    /// Shape of an image, where the network takes any sides [default: that of its layout]
    #[arg(long, value_name = "C,H,W", help_heading = "Metadata")]
    input_shape: Option<String>,
    /// Names of the classes, with commas between them, or a file with one a line
    #[arg(long, value_name = "NAME,…|FILE", help_heading = "Metadata")]
    classes: Option<String>,
    /// Radius in linf that attacks shall take where none is asked for
    #[arg(long, value_name = "DISTANCE", allow_hyphen_values = true, help_heading = "Metadata")]
    eps: Option<String>,
    /// Step length to go with it: `attack` takes it for ifgsm, pgd and uap, where neither an --eps nor other --steps than
    /// 10 are asked for, and no --min-eps
    #[arg(
        long,
        visible_aliases = ["alpha", "eps-step"],
        requires = "eps",
        value_name = "DISTANCE",
        allow_hyphen_values = true,
        help_heading = "Metadata"
    )]
    step_size: Option<String>,
    /// Write the tensors even if they are no network that the engine knows
    #[arg(long, conflicts_with_all = ["arch", "mean", "std", "input_shape", "classes", "eps", "step_size"], help_heading = "Output")]
    any: bool,
    /// Replace OUT if it is there
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    check_output(args)?;
    let description = described(args).map(Description::open).transpose()?;
    let metadata = metadata(args)?;
    let mut checkpoint = Checkpoint::open(&args.input, args.key.as_deref())?;
    let tensors = checkpoint.slots().len();
    let bytes = checkpoint.safetensors(&metadata)?;
    let model = match &description {
        _ if args.any => None,
        None => Some(weights::load(&bytes).map_err(|e| refused(e, &args.input, weights::is_known(&bytes)))?),
        Some(d) => Some(weights::load_as(&bytes, &d.arch).map_err(|e| e.in_file(&args.input.display().to_string()))?),
    };
    data::write_named(&args.output, &bytes)?;

    let (out, sha256) = (args.output.display().to_string(), data::sha256([&bytes[..]]));
    if args.json {
        return answer_json(&json!({
            "schema_version": 1,
            "output": out,
            "sha256": sha256,
            "bytes": bytes.len(),
            "tensors": tensors,
            "arch": model.as_ref().map(|model| &model.arch),
            "logits": model.as_ref().map(model::Model::logits),
            "parameters": model.as_ref().map(model::Model::parameters),
            "description_sha256": description.as_ref().map(|d| &d.sha256),
        }));
    }
    let what = model.map_or("not looked at by the engine".into(), |model| {
        let (parameters, input, logits) = (model.parameters(), model.input, model.logits());
        format!("{}: {input} in, {logits} logits, {parameters} parameters, batch norm folded", model.arch)
    });
    answer(&format!("{what}\nwritten to {out}: {tensors} tensors, sha256 {sha256}"))
}

/// What the tensors lack to be a network, with the way out where they are of none that is known.
fn refused(error: Error, input: &Path, is_known: bool) -> Error {
    match error.in_file(&input.display().to_string()) {
        Error::Model { place, detail } if !is_known => Error::Model {
            place,
            detail: format!("{detail}; --arch FILE.toml describes another network, --any writes the tensors alone"),
        },
        other => other,
    }
}

/// The description, if that is what the architecture is told by.
fn described(args: &ConvertArgs) -> Option<&Path> {
    args.arch.as_deref().filter(|arch| arch.ends_with(".toml")).map(Path::new)
}

/// Refuses to write over what is there.
fn check_output(args: &ConvertArgs) -> Result<()> {
    if apart::same(&args.input, &args.output) {
        return Err(Error::Usage("IN and OUT are the same file".into()));
    }
    let classes = args.classes.as_deref().filter(|text| !text.contains(',')).map(Path::new);
    for (flag, file) in [("--arch", described(args)), ("--classes", classes)] {
        if file.is_some_and(|file| apart::same(file, &args.output)) {
            return Err(Error::Usage(format!("{flag} and OUT are the same file")));
        }
    }
    if args.output.symlink_metadata().is_ok() && !args.fresh {
        let detail = "is there already; choose another name, or replace it with --fresh".into();
        return Err(Error::Output { place: args.output.display().to_string(), detail });
    }
    Ok(())
}

/// What the flags say of the network, as the weights will have it (`weights.rs`).
fn metadata(args: &ConvertArgs) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::new();
    let mut put = |key: &str, value: Option<String>| metadata.extend(value.map(|value| (key.to_string(), value)));
    let name = args.arch.as_ref().filter(|_| described(args).is_none());
    if let Some(arch) = name
        && !model::known().iter().any(|known| known.name == *arch)
        && !model::is_family(arch)
    {
        let known = model::known().into_iter().map(|arch| arch.name);
        let known: Vec<String> = known.chain(model::FAMILIES.map(String::from)).collect();
        let known = known.join(", ");
        return Err(Error::Usage(format!("--arch {arch}: not known; known are {known} (# is a number)")));
    }
    put("arch", name.cloned());
    let list = |flag: &str, text: &Option<String>| {
        let Some(text) = text.as_deref() else { return Ok(None) };
        let list = numbers(flag, text)?;
        if list.iter().any(|value| value.abs() > 1.0) {
            let how = "in pixels of [0, 1] none is more than 1; of 255 grey levels they are written as 128/255";
            warn(format!("{flag} {text}: {how}"));
        }
        Ok::<_, Error>(Some(json!(list).to_string()))
    };
    put("mean", list("--mean", &args.mean)?);
    put("std", list("--std", &args.std)?);
    if let Some(text) = &args.input_shape {
        let sides: Vec<Option<usize>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
        if sides.len() != 3 || sides.iter().any(|side| side.is_none_or(|side| side == 0)) {
            return Err(Error::Usage(format!("--input-shape {text}: not of the form C,H,W")));
        }
        put("input", Some(text.clone()));
    }
    let names = args.classes.as_deref().map(classes).transpose()?;
    // No reason to refuse them: two pairs of ImageNet's classes share a name.
    if let Some(name) = names.as_deref().and_then(repeated) {
        warn(format!("--classes: {name:?} is there twice, and reports will not tell which is meant"));
    }
    put("classes", names.map(|names| json!(names).to_string()));
    put("eps", args.eps.as_deref().map(|text| length("--eps", text)).transpose()?);
    put("step_size", args.step_size.as_deref().map(|text| length("--step-size", text)).transpose()?);
    Ok(metadata)
}

/// A distance that every command can take, as it was written.
fn length(flag: &str, text: &str) -> Result<String> {
    let distance = distance(flag, text)?;
    if distance.value > 0.0 && distance.value.is_finite() {
        Ok(distance.text)
    } else {
        Err(Error::Usage(format!("{flag} {text}: must be more than zero and finite")))
    }
}

/// One number a channel, as decimals or fractions (125.3/255); deviations are positive. How many, the network says.
fn numbers(flag: &str, text: &str) -> Result<Vec<f64>> {
    let number = |one: &str| {
        let value = match one.split_once('/') {
            Some((a, b)) => a.trim().parse::<f64>().ok().zip(b.trim().parse::<f64>().ok()).map(|(a, b)| a / b),
            None => one.trim().parse().ok(),
        };
        value.filter(|value| value.is_finite() && (flag != "--std" || *value > 0.0))
    };
    let sort = if flag == "--std" { "positive numbers" } else { "numbers" };
    let fail = || Error::Usage(format!("{flag} {text}: {sort} with commas between them, one for each channel"));
    text.split(',').map(number).collect::<Option<_>>().ok_or_else(fail)
}

/// Names of classes: a network has two or more, so a list of them has a comma, and what has none is a file.
fn classes(text: &str) -> Result<Vec<String>> {
    let names: Vec<String> = if text.contains(',') {
        text.split(',').map(|name| name.trim().to_string()).collect()
    } else {
        let fail =
            |e: std::io::Error| Error::Usage(format!("--classes {text}: no list of names, and no file either: {e}"));
        fs::read_to_string(text).map_err(fail)?.lines().map(|name| name.trim().to_string()).collect()
    };
    match names.iter().position(|name| name.is_empty() || name.contains(char::is_control)) {
        Some(i) => Err(Error::Usage(format!("--classes: name {i} is empty, or holds a control character"))),
        None => Ok(names),
    }
}

/// The first name that was there before.
fn repeated(names: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_channels_are_decimals_or_fractions() {
        assert_eq!(numbers("--mean", "0.5"), Ok(vec![0.5]));
        assert_eq!(numbers("--mean", "-0.5, 0 ,125.3/255"), Ok(vec![-0.5, 0.0, 125.3 / 255.0]));
        assert_eq!(numbers("--std", "0.25,63/255"), Ok(vec![0.25, 63.0 / 255.0]));
        for bad in ["", "a", "0.5,", "1/0", "0/0", "nan", "inf", "1;2"] {
            let message = numbers("--mean", bad).unwrap_err().to_string();
            assert!(message.starts_with("--mean"), "{message}");
        }
        assert!(numbers("--std", "0.5,0").unwrap_err().to_string().contains("positive"));
        assert!(numbers("--std", "-1").is_err());
    }

    #[test]
    fn classes_are_a_list_or_a_file() {
        assert_eq!(classes("cat, dog"), Ok(vec!["cat".to_string(), "dog".to_string()]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.txt");
        fs::write(&path, "cat\r\ndog\n").unwrap();
        assert_eq!(classes(path.to_str().unwrap()), classes("cat,dog"));
        assert!(classes("cat,,dog").unwrap_err().to_string().contains("name 1 is empty"));
        assert!(classes("cat,\u{1b}[2J").is_err());
        assert!(classes("no-such-file").unwrap_err().to_string().contains("no-such-file"));
    }
}
