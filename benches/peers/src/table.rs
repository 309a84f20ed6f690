//! Comparisons: one row, signstep's figures beside one of a peer's.

use crate::cold::{ColdStarts, Start};
use crate::contest::{Contest, Kind, Outcome, Seat, Seated, Work};
use crate::peers::{Check, Each, Ours, Row};
use signstep::Math;

/// What came of every contest, seat by seat.
pub type Results = Vec<(Contest, Vec<Seated>)>;

fn missing(what: &str, unit: &str, peer: &str, why: &str) -> Row {
    Row {
        what: what.into(),
        unit: unit.into(),
        peer: peer.into(),
        theirs: None,
        signstep: Each::new(),
        check: format!("no figure: {why}"),
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

/// What signstep's other arithmetics were found to be beside its f32.
pub fn checks(results: &Results) -> Vec<Check> {
    let one = |(contest, seats): &(Contest, Vec<Seated>)| {
        let told = |seated: &Seated| match seated {
            Ok(o) => (o.seat.math.to_string(), o.errors.to_string()),
            Err((seat, why)) => (seat.math.to_string(), why.clone()),
        };
        let found: Each<String> = seats.iter().filter(|s| seat(s).math != Math::F32).map(told).collect();
        (!found.is_empty()).then(|| Check { what: contest.title(), found })
    };
    results.iter().filter_map(one).collect()
}

fn seat(seated: &Seated) -> Seat {
    match seated {
        Ok(outcome) => outcome.seat,
        Err((seat, _)) => *seat,
    }
}

/// signstep's figures beside a peer with so many threads.
fn ours(seats: &[Seated], threads: usize, figure: impl Fn(&Outcome) -> f64) -> Each<Ours> {
    let mut own: Vec<&Seated> = seats.iter().filter(|s| seat(s).kind == Kind::Signstep).collect();
    // With as many threads, where it ran so: the last of each arithmetic is the one that stays.
    own.sort_by_key(|s| seat(s).threads == threads);
    let told = |seated: &Seated| match seated {
        Ok(outcome) => Ours::Figure(figure(outcome)),
        Err((_, why)) => Ours::Without(why.clone()),
    };
    own.into_iter().map(|s| (seat(s).math.to_string(), told(s))).collect()
}

fn speed(contest: &Contest, seats: &[Seated], software: bool) -> Vec<Row> {
    let [per_core_second, per_second] = match contest.work {
        Work::Step => ["sample-steps / core-second", "sample-steps / second"],
        Work::Forward => ["GFLOP / core-second", "GFLOP / second"],
    };
    let what = contest.title();
    let mut rows = Vec::new();
    for seated in seats.iter().filter(|s| seat(s).kind != Kind::Signstep) {
        let peer = match seated {
            Ok(peer) => peer,
            Err((seat, why)) => {
                rows.push(missing(&what, per_second, &name(*seat, None), why));
                continue;
            }
        };
        let row = |unit: &str, figures: fn(&Outcome) -> &[f64]| {
            let figure = |o: &Outcome| median(figures(o).iter().copied());
            Row {
                what: what.clone(),
                unit: unit.into(),
                peer: name(peer.seat, Some(peer)),
                theirs: Some(figure(peer)),
                signstep: ours(seats, peer.seat.threads, figure),
                check: peer.errors.to_string(),
            }
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
fn memory(contest: &Contest, seats: &[Seated]) -> Vec<Row> {
    // Told once for each network: of the batch that PyTorch runs with all threads too.
    let torch = seats.iter().flatten().find(|o| o.seat.kind == Kind::Torch && o.seat.threads == 0);
    let Some(torch) = torch else { return Vec::new() };
    let row = |of: &str, theirs: Option<f64>| {
        Some(Row {
            what: format!("{}, memory", contest.title()),
            unit: "bytes / sample".into(),
            peer: format!("{}, {of}", torch.ready.name),
            theirs: Some(theirs?),
            signstep: ours(seats, 0, |o| o.memory.bytes.unwrap_or_default()),
            check: "signstep: all that grows with the batch".into(),
        })
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
                    let [ours, theirs] = [ours, &cold.pytorch].map(|starts| median(starts.iter().map(measure)));
                    Row {
                        what: what.clone(),
                        unit: unit.into(),
                        peer: "PyTorch, CPU".into(),
                        theirs: Some(theirs),
                        signstep: Each::from([(Math::F32.to_string(), Ours::Figure(ours))]),
                        check: format!("success {:.1} % and {:.1} %", 100.0 * a, 100.0 * b),
                    }
                }
                (why, _) => missing(&what, unit, "PyTorch, CPU", why.as_deref().unwrap_or("it did not run")),
            });
        }
    }
    rows
}

/// What a peer is called in the table.
fn name(seat: Seat, outcome: Option<&Outcome>) -> String {
    let version = |name: &str| outcome.map_or_else(|| name.to_string(), |o| o.ready.name.clone());
    // Hardware has no number of threads to be given.
    let threads = match seat.threads {
        1 => ", 1 thread",
        _ if seat.kind == Kind::Torch => ", all threads",
        _ => "",
    };
    match seat.kind {
        Kind::Signstep => "signstep".into(),
        Kind::Burn => format!("{}, wgpu{threads}", version("burn")),
        Kind::NcnnVulkan => format!("{}, Vulkan{threads}", version("ncnn")),
        Kind::NcnnCpu => format!("{}, CPU{threads}", version("ncnn")),
        Kind::Torch => format!("{}, CPU{threads}", version("PyTorch")),
        Kind::TorchCuda => format!("{}, CUDA", version("PyTorch")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_two_is_their_mean() {
        assert_eq!(median([3.0, 1.0]), 2.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert!(median([]).is_nan());
    }
}
