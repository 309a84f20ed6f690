//! `signstep merge`

use super::advice::tell_missing;
use super::apart;
use super::tell::{AnswerArgs, complain, tell};
use crate::error::Result;
use crate::report;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct MergeArgs {
    /// Folders of all shards of one run, in any order
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// Folder for the whole run
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Discard the results that the folder holds, whatever run they are of
    #[arg(long, help_heading = "Output")]
    fresh: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(super) fn run(args: &MergeArgs) -> Result<()> {
    // Of a shard these two are read; what else its folder holds may lie anywhere.
    let read: Vec<PathBuf> = args.folders.iter().flat_map(|f| report::MERGED.map(|name| f.join(name))).collect();
    let inputs: Vec<apart::Input<'_>> = read.iter().map(|path| ("shard", path.as_path())).collect();
    apart::check(&args.out, &report::RUN_NAMES, &inputs)?;
    let (report, written) = report::merge(&args.folders, &args.out, args.fresh)?;
    let out = args.out.display();
    if written.is_empty() {
        complain("note", &format!("{out} holds this run already; --fresh makes it anew"));
        tell_missing(&args.out, &report);
        return tell(&report, &args.answer, &format!("complete in {out}"));
    }
    tell(&report, &args.answer, &format!("written to {out}: {}", written.join(", ")))
}
