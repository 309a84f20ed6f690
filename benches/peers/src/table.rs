//! Comparisons: one row, one figure of the engine's beside a peer's.

use crate::cold::{ColdStarts, Start};
use crate::contest::{Contest, Kind, Outcome, Seat, Work};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

/// What came of every contest, seat by seat.
pub type Results = Vec<(Contest, Vec<std::result::Result<Outcome, (Seat, String)>>)>;

#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub peer: String,
    pub signstep: Option<f64>,
    /// The peer's figure.
    pub theirs: Option<f64>,
    /// signstep's figure divided by the peer's.
    pub ratio: Option<f64>,
    /// What the check found, or why there is no figure.
    pub note: String,
}

impl Row {
    fn new(what: &str, unit: &'static str, peer: &str, ours: f64, theirs: f64, note: &str) -> Self {
        Row {
            what: what.into(),
            unit,
            peer: peer.into(),
            signstep: Some(ours),
            theirs: Some(theirs),
            ratio: Some(ours / theirs),
            note: note.into(),
        }
    }

    fn missing(what: &str, unit: &'static str, peer: &str, why: &str) -> Self {
        let why = format!("no figure: {why}");
        Row { what: what.into(), unit, peer: peer.into(), signstep: None, theirs: None, ratio: None, note: why }
    }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// `software`: whether the adapter is the CPU, so that a second of its time is one of the process.
pub fn rows(results: &Results, cold: Option<&ColdStarts>, software: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = results.iter().flat_map(|(contest, seats)| speed(contest, seats, software)).collect();
    rows.extend(results.iter().flat_map(|(contest, seats)| memory(contest, seats)));
    rows.extend(cold.into_iter().flat_map(starts));
    rows
}

fn speed(contest: &Contest, seats: &[std::result::Result<Outcome, (Seat, String)>], software: bool) -> Vec<Row> {
    let [per_core_second, per_second] = match contest.work {
        Work::Step => ["sample-steps / core-second", "sample-steps / second"],
        Work::Forward => ["GFLOP / core-second", "GFLOP / second"],
    };
    let what = contest.title();
    let ours = |threads: usize| {
        let own = seats.iter().flatten().filter(|o| o.seat.kind == Kind::Signstep);
        own.clone().find(|o| o.seat.threads == threads).or_else(|| own.clone().next())
    };
    let mut rows = Vec::new();
    for seat in seats {
        let peer = match seat {
            Err((seat, why)) => {
                rows.push(Row::missing(&what, per_second, &name(*seat, None), why));
                continue;
            }
            Ok(peer) if peer.seat.kind == Kind::Signstep => continue,
            Ok(peer) => peer,
        };
        let Some(ours) = ours(peer.seat.threads) else { continue };
        let found = peer.errors.to_string();
        let peer_name = name(peer.seat, Some(peer));
        let row = |unit, figures: fn(&Outcome) -> &[f64]| {
            let [ours, theirs] = [ours, peer].map(|o| median(figures(o).iter().copied()));
            Row::new(&what, unit, &peer_name, ours, theirs, &found)
        };
        if software && peer.seat.kind != Kind::TorchCuda {
            rows.push(row(per_core_second, |o| &o.per_core_second));
        }
        if !software || peer.seat.threads == 0 {
            rows.push(row(per_second, |o| &o.per_second));
        }
    }
    rows
}

/// Device memory that grows with the batch, beside what PyTorch allocates and what its autograd saves.
fn memory(contest: &Contest, seats: &[std::result::Result<Outcome, (Seat, String)>]) -> Vec<Row> {
    // Told once for each network: of the batch that PyTorch runs with all threads too.
    let of = |kind| seats.iter().flatten().find(|o| o.seat.kind == kind && o.seat.threads == 0);
    let (Some(ours), Some(torch)) = (of(Kind::Signstep), of(Kind::Torch)) else { return Vec::new() };
    let what = format!("{}, memory", contest.title());
    let row = |of: &str, theirs: Option<f64>| {
        let peer = format!("{}, {of}", torch.ready.name);
        Some(Row::new(
            &what,
            "bytes / sample",
            &peer,
            ours.memory.bytes?,
            theirs?,
            "signstep: all that grows with the batch",
        ))
    };
    let theirs = torch.memory;
    let rows = [
        row("allocated at most", theirs.bytes),
        row("saved by autograd", theirs.saved),
        row("saved by autograd, batch norm not folded", theirs.saved_unfolded),
    ];
    rows.into_iter().flatten().collect()
}

fn starts(cold: &ColdStarts) -> Vec<Row> {
    let mut rows = Vec::new();
    for (caches, ours) in [("shader cache empty", &cold.cold_caches), ("shader cache filled", &cold.warm_caches)] {
        let what = format!("cold start to 450 digits attacked, {caches}");
        type Measure = fn(&Start) -> f64;
        let mebibytes: Measure = |s| s.peak_rss as f64 / f64::from(1 << 20);
        let measures: [(&str, Measure); 3] =
            [("seconds", |s| s.wall), ("core-seconds", |s| s.cpu), ("MiB at most", mebibytes)];
        for (unit, measure) in measures {
            rows.push(match (&cold.failed, cold.success_rates) {
                (None, [Some(a), Some(b)]) => {
                    let note = format!("success {:.1} % and {:.1} %", 100.0 * a, 100.0 * b);
                    let [ours, theirs] = [ours, &cold.pytorch].map(|starts| median(starts.iter().map(measure)));
                    Row::new(&what, unit, "PyTorch, CPU", ours, theirs, &note)
                }
                (why, _) => Row::missing(&what, unit, "PyTorch, CPU", why.as_deref().unwrap_or("it did not run")),
            });
        }
    }
    rows
}

/// What a peer is called in the table.
fn name(seat: Seat, outcome: Option<&Outcome>) -> String {
    let version = |name: &str| outcome.map_or_else(|| name.to_string(), |o| o.ready.name.clone());
    let threads = if seat.threads == 1 { ", 1 thread" } else { ", all threads" };
    match seat.kind {
        Kind::Signstep => "signstep".into(),
        Kind::Burn => format!("{}, wgpu", version("burn")),
        Kind::NcnnVulkan => format!("{}, Vulkan", version("ncnn")),
        Kind::NcnnCpu => format!("{}, CPU", version("ncnn")),
        Kind::Torch => format!("{}, CPU{threads}", version("PyTorch")),
        Kind::TorchCuda => format!("{}, CUDA", version("PyTorch")),
    }
}

/// Three significant digits, thousands apart.
fn figure(value: Option<f64>) -> String {
    let Some(v) = value else { return "–".into() };
    let decimals = (2 - v.abs().log10().floor() as i32).clamp(0, 4) as usize;
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

/// The rows as a Markdown table.
pub fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["what", "unit", "peer", "signstep", "the peer", "signstep / peer", "check"]);
    for row in rows {
        let [ours, theirs] = [row.signstep, row.theirs].map(figure);
        table.add_row([&row.what, row.unit, &row.peer, &ours, &theirs, &figure(row.ratio), &row.note]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        for (value, want) in
            [(0.088, "0.0880"), (1.1, "1.10"), (404.0, "404"), (4_700_000.0, "4,700,000"), (52.26, "52.3")]
        {
            assert_eq!(figure(Some(value)), want);
        }
        assert_eq!(figure(None), "–");
    }

    #[test]
    fn the_median_of_two_is_their_mean() {
        assert_eq!(median([3.0, 1.0]), 2.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert!(median([]).is_nan());
    }
}
