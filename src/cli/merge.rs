//! `signstep merge`

use super::{MergeArgs, complain, tell};
use crate::error::Result;
use crate::report;

pub(super) fn run(args: &MergeArgs) -> Result<()> {
    let (report, written) = report::merge(&args.folders, &args.out, args.fresh)?;
    let out = args.out.display();
    if written.is_empty() {
        complain("note", &format!("{out} holds this run already; --fresh makes it anew"));
        return tell(&report, &args.answer, &format!("complete in {out}"));
    }
    tell(&report, &args.answer, &format!("written to {out}: {}", written.join(", ")))
}
