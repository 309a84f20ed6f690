//! What is told, and where: answers on standard output, everything else on standard error, without anything that could
//! move a terminal's cursor.

use crate::error::{Error, Result};
use crate::report::{self, Report};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// How a run is told on standard output.
#[derive(Args, Debug)]
pub(super) struct AnswerArgs {
    /// What to print on standard output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub format: Format,
    /// Print JSON, as it is written to the folder: the same as --format json
    #[arg(long, conflicts_with = "format", help_heading = "Output")]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
    Csv,
    Markdown,
}

/// One line on standard error, whatever the message holds.
pub(super) fn complain(kind: &str, message: &dyn Display) {
    let line: Vec<String> = message.to_string().lines().map(|l| printable(l.trim())).collect();
    let _ = writeln!(io::stderr(), "{kind}: {}", line.join(" "));
}

/// Text for a terminal: names out of files must not move its cursor. Lines stay lines.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A number of things in words: `1 step`, `2 steps`.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Something that a user should know before trusting a result.
pub(super) fn warn(message: impl Display) {
    complain("warning", &message);
}

/// Writes an answer and a newline to standard output.
pub(super) fn answer(text: &str) -> Result<()> {
    written(writeln!(io::stdout(), "{}", printable(text)))
}

/// What came of writing to standard output. A reader that has gone away (`| head`) is no error.
pub(super) fn written(result: io::Result<()>) -> Result<()> {
    match result.and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Output { place: "standard output".into(), detail: e.to_string() })
        }
        _ => Ok(()),
    }
}

/// Writes JSON as an answer.
pub(super) fn answer_json(value: &serde_json::Value) -> Result<()> {
    answer(&serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?)
}

/// Tells of a run as it was asked for; `written` is told below the table.
pub(super) fn tell(report: &Report, args: &AnswerArgs, written: &str) -> Result<()> {
    match (args.json, args.format) {
        (true, _) | (_, Format::Json) => answer(&report.json()),
        (_, Format::Table) => answer(&format!("{}\n{written}", report::table(report))),
        (_, Format::Csv) => answer(&report::csv(report)),
        (_, Format::Markdown) => answer(&report::markdown(report)),
    }
}

/// A bar on standard error, drawn only on a terminal.
pub(super) fn bar(total: u64, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

/// A bar of sample-steps; `done` were done by an earlier process.
pub(super) fn progress_bar(total: u64, done: u64) -> ProgressBar {
    let bar = bar(total, "{bar:40} {percent:>3} % of {len} sample-steps, {eta} left").with_position(done);
    bar.reset_eta();
    bar
}
