//! The arguments of `signstep attack`.

use crate::cli::engine::PlaceArgs;
use crate::cli::images::DataArgs;
use crate::cli::network::NetworkArgs;
use crate::cli::tell::AnswerArgs;
use clap::{Args, Parser};
use std::path::PathBuf;

/// What `attack` can be told. Distances are in pixel units of [0, 1], as decimals or fractions (8/255).
#[derive(Args, Debug)]
pub(in crate::cli) struct AttackArgs {
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Read only the first N images
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub(super) limit: Option<usize>,
    /// Attack: fgsm, ifgsm, pgd, mifgsm, nifgsm, apgd, apgd-t, fab-t, square, or uap (one perturbation for all images)
    #[arg(long, value_name = "NAME", default_value = "ifgsm", help_heading = "Attack")]
    pub(super) method: String,
    /// What eps is measured in: linf, the largest change of any pixel value, or l2, the Euclidean length of the change
    #[arg(long, value_name = "NAME", default_value = "linf", help_heading = "Attack")]
    pub(super) norm: String,
    /// Class to aim at: none (untargeted), random, next, least-likely, second, one class for all images by its number or
    /// name, or a file with one class a line (-1: none) [default: random; for apgd-t and fab-t: none, they aim at
    /// one class after the other; for uap: none]
    #[arg(long, value_name = "RULE|CLASS|FILE", help_heading = "Attack")]
    pub(super) targets: Option<String>,
    /// Any class but the label will do: the same as --targets none
    #[arg(long, conflicts_with = "targets", help_heading = "Attack")]
    pub(super) untargeted: bool,
    /// What is followed: ce (cross-entropy), margin (Carlini & Wagner) or dlr (difference of logits ratio) [default:
    /// ce; for apgd-t: dlr; for square: margin; fab-t follows the difference of two logits]
    #[arg(long, value_name = "NAME", help_heading = "Attack")]
    pub(super) loss: Option<String>,
    /// Radius in the norm, or inf; several with commas between them, 0 among them, are run at once, with a row for each
    /// image and radius [default: what the weights suggest for linf, else 8/255; for l2: 0.5]
    #[arg(long, value_name = "DISTANCE[,…]", allow_hyphen_values = true, help_heading = "Attack")]
    pub(super) eps: Option<String>,
    /// Find the smallest radius up to eps that turns each image, by bisection: in whole grey levels, or in l2 and
    /// without 8-bit values in 64ths of eps. What turns an image at one radius is taken to do so at every larger one:
    /// an attack of which that is not true may turn it at a smaller one that was not looked at
    #[arg(long, help_heading = "Attack")]
    pub(super) min_eps: bool,
    /// Step length [default: 2.5·eps/steps; for fgsm: eps; for mifgsm and nifgsm: eps/steps; for apgd and apgd-t, of
    /// the first step: 2·eps; fab-t and square have none]. One that the weights suggest is taken by ifgsm, pgd and uap,
    /// where eps is the weights' as well, steps are 10, and there is no --min-eps
    #[arg(
        long,
        visible_aliases = ["alpha", "eps-step"],
        value_name = "DISTANCE",
        allow_hyphen_values = true,
        help_heading = "Attack"
    )]
    pub(super) step_size: Option<String>,
    /// Number of steps [default: 10; for fgsm: 1; for apgd, apgd-t and fab-t: 100; for square: 5000]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    pub(super) steps: Option<u32>,
    /// How often an image is tried from another random start, until it is turned (pgd, apgd, apgd-t, fab-t,
    /// square) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Attack")]
    pub(super) restarts: Option<u32>,
    /// Begin at the clean image (pgd, apgd, apgd-t, square; fab-t does so anyway, but for further restarts)
    #[arg(long, help_heading = "Attack")]
    pub(super) no_random_start: bool,
    /// Share of the accumulated gradient that is kept, from 0 to 1 (mifgsm, nifgsm) [default: 1]
    #[arg(long, value_name = "F", allow_hyphen_values = true, help_heading = "Attack")]
    pub(super) momentum: Option<f32>,
    /// Stop with an image once it is turned as delivered: looked at after a tenth of the steps, two, four and seven
    #[arg(long, help_heading = "Attack")]
    pub(super) early_stop: bool,
    /// Smallest and largest pixel value, or none for inputs that are no pixels; files of images hold values in [0, 1]
    /// whatever they are. With others than 0,1 floats are delivered, as with --no-quantize
    #[arg(long, value_name = "LO,HI|none", default_value = "0,1", allow_hyphen_values = true, help_heading = "Attack")]
    pub(super) bounds: String,
    /// Deliver floats instead of 8-bit values
    #[arg(long, alias = "no-quantise", help_heading = "Attack")]
    pub(super) no_quantize: bool,
    /// Attack images that the network gets wrong when clean as well: they are moved too, but count neither as attacked
    /// nor as turned
    #[arg(long, help_heading = "Attack")]
    pub(super) attack_all: bool,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Attack")]
    pub(super) seed: u64,
    /// Deliver images in which NaN or infinity arises as they were, marked in the tensor `health`, in place of ending
    /// with exit code 7; the others are as they would be without them
    #[arg(long, help_heading = "Attack")]
    pub(super) keep_going: bool,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Largest number of images that run at once; results do not depend on it [default: what the device takes]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub(super) batch: Option<usize>,
    /// Largest memory on the host, and as much on the device, weights included: 512M, 2G, 1GiB
    #[arg(long, value_name = "BYTES", default_value = "1G", help_heading = "Running")]
    pub(super) memory: String,
    /// Largest number of images between two savings; results do not depend on it [default: what memory holds and half a
    /// minute does]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub(super) chunk: Option<usize>,
    /// Run only piece I (from 0) of N of the data, to be joined by `signstep merge`
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    pub(super) shard: Option<String>,
    /// Folder for the results; an interrupted run that it holds is gone on with
    #[arg(long, value_name = "DIR", default_value = "signstep-out", help_heading = "Output")]
    pub(super) out: PathBuf,
    /// Discard the results that the folder holds, whatever run they are of
    #[arg(long, help_heading = "Output")]
    pub(super) fresh: bool,
    #[command(flatten)]
    pub(super) answer: AnswerArgs,
}

/// The arguments of `signstep attack` without any.
pub(in crate::cli) fn defaults() -> AttackArgs {
    /// Only this command's arguments, so that none can be missing.
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        args: AttackArgs,
    }
    Defaults::parse_from(["signstep"]).args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_without_arguments_has_defaults() {
        let args = defaults();
        assert_eq!((args.method.as_str(), args.targets, args.seed), ("ifgsm", None, 0));
    }
}
