//! Other engines' figures beside ours, as data and as a table. `benches/peers` measures them and has this file in it
//! too, so that what it writes is what is read here: nothing but serde and the standard library.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Raised by a change that could break a reader.
pub(super) const SCHEMA: u32 = 1;

/// What a file of them is called begins with this, and goes on with the adapter.
pub(super) const PREFIX: &str = "peers-";

/// What the engine ran on, and those peers that run on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Adapter {
    pub name: String,
    pub backend: String,
    /// `discrete`, `software`, …
    pub kind: String,
    pub driver: String,
}

/// By arithmetic.
pub(super) type Each<T> = BTreeMap<String, T>;

/// A figure of signstep's, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Ours {
    Figure(f64),
    Without(String),
}

/// One figure of a peer's beside signstep's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub what: String,
    pub unit: String,
    pub peer: String,
    pub theirs: Option<f64>,
    pub signstep: Each<Ours>,
    /// What the check of the peer found, or why it has no figure.
    pub check: String,
}

/// How far signstep's other arithmetics are from its f32 in one contest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Check {
    pub what: String,
    pub found: Each<String>,
}

/// Everything of one run that is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Peers {
    pub schema_version: u32,
    pub date: String,
    pub adapter: Adapter,
    pub cpus: usize,
    /// Before and after.
    pub load_average: [String; 2],
    pub rounds: usize,
    /// signstep's arithmetics.
    pub math: Vec<String>,
    /// Everyone who took part, with version, device, threads and configuration.
    pub peers: Vec<String>,
    pub rows: Vec<Row>,
    pub checks: Vec<Check>,
}

impl Peers {
    pub(super) fn markdown(&self) -> String {
        let [before, after] = &self.load_average;
        let head = format!(
            "{}, {}, {} CPUs, medians of {} interleaved rounds, load average before and after {before} and {after}; in brackets signstep's \
             figure divided by the peer's.",
            self.date, self.adapter.driver, self.cpus, self.rounds
        );
        let ours = self.math.iter().map(|math| format!("signstep, {math}"));
        let header = ["what", "unit", "peer", "the peer"].map(String::from).into_iter().chain(ours);
        let rows = self.rows.iter().map(|row| {
            let theirs = row.theirs.map_or_else(|| NONE.into(), figure);
            let ours = self.math.iter().map(|math| row.ours(math));
            let cells = [row.what.clone(), row.unit.clone(), row.peer.clone(), theirs].into_iter().chain(ours);
            cells.chain([row.check.clone()]).collect()
        });
        let mut parts = vec![head, table(header.chain(["check".into()]).collect(), rows)];
        if !self.checks.is_empty() {
            let other: Vec<&String> = self.math.iter().filter(|m| *m != "f32").collect();
            let header = ["signstep, beside its f32"].into_iter().chain(other.iter().map(|m| m.as_str()));
            let rows = self.checks.iter().map(|check| {
                let found = other.iter().map(|math| check.found.get(*math).cloned().unwrap_or_else(|| NONE.into()));
                [check.what.clone()].into_iter().chain(found).collect()
            });
            parts.push(table(header.map(String::from).collect(), rows));
        }
        parts.push(self.peers.iter().map(|peer| format!("- {peer}")).collect::<Vec<_>>().join("\n"));
        parts.retain(|part| !part.is_empty());
        parts.join("\n\n")
    }
}

impl Row {
    fn ours(&self, math: &str) -> String {
        match (self.signstep.get(math), self.theirs) {
            (Some(Ours::Figure(ours)), Some(theirs)) => format!("{} ({})", figure(*ours), figure(ours / theirs)),
            (Some(Ours::Figure(ours)), None) => figure(*ours),
            (Some(Ours::Without(why)), _) => why.clone(),
            (None, _) => NONE.into(),
        }
    }
}

const NONE: &str = "–";

fn table(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let rule = vec!["---".to_string(); header.len()];
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | ").replace('\n', " "));
    [header, rule].into_iter().chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

/// Three significant digits, thousands apart.
fn figure(v: f64) -> String {
    if !v.is_finite() {
        return NONE.into();
    }
    let decimals = 2_i32.saturating_sub(v.abs().log10().floor() as i32).clamp(0, 4) as usize;
    let text = format!("{v:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(w, r)| (w, Some(r)));
    let digits = whole.len();
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (digits - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    rest.map_or(out.clone(), |rest| format!("{out}.{rest}"))
}

/// An adapter in a file name.
pub(super) fn slug(name: &str, backend: &str) -> String {
    let name = format!("{name} {backend}").to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        for (value, want) in [
            (0.088, "0.0880"),
            (1.1, "1.10"),
            (404.0, "404"),
            (4_700_000.0, "4,700,000"),
            (52.26, "52.3"),
            (0.0, "0.0000"),
            (f64::INFINITY, "–"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(figure(value), want);
        }
    }
}
