//! Results as tables, for a terminal, for Markdown and as csv.

use super::peers::Peers;
use super::results::{DispatchRow, KernelRow, ProbeRow, Results, StepRow};
use crate::cli::tell::counted;
use crate::report;

/// A table before it is drawn.
struct Sheet<const N: usize> {
    title: &'static str,
    header: [String; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Sheet<N> {
    fn text(&self) -> String {
        let mut table = report::blank(self.header.each_ref().map(String::as_str));
        for row in &self.rows {
            table.add_row(row);
        }
        format!("{}\n{table}", self.title)
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String; N]| format!("| {} |", cells.join(" | ").replace('\n', " "));
        let mut lines = vec![format!("**{}**\n", self.title), line(&self.header)];
        lines.push(format!("|---|{}", "---:|".repeat(N - 1)));
        lines.extend(self.rows.iter().map(line));
        lines.join("\n")
    }
}

/// Three digits that matter.
fn short(x: f64) -> String {
    if !x.is_finite() {
        return "-".into();
    }
    match x.abs() {
        a if a >= 9999.5 => report::grouped(x),
        a if a >= 99.95 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        a if a >= 0.0995 || a == 0.0 => format!("{x:.2}"),
        _ => format!("{x:.2e}"),
    }
}

fn maybe(x: Option<f64>) -> String {
    x.map_or_else(String::new, short)
}

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

fn probes(r: &Results) -> Sheet<5> {
    let row =
        |p: &ProbeRow| [p.name.clone(), short(p.value.median), short(p.value.p10), short(p.value.p90), p.unit.clone()];
    Sheet {
        title: "Ceilings, as measured",
        header: ["probe", "median", "p10", "p90", "unit"].map(String::from),
        rows: r.probes.iter().map(row).collect(),
    }
}

fn kernels(r: &Results) -> Sheet<12> {
    // One batch for all, unless one of that size does not fit.
    let samples = r.kernels.first().map_or(0, |k| k.samples);
    let is_one = r.kernels.iter().all(|k| k.samples == samples);
    let row = |k: &KernelRow| {
        let tile = k.tile.as_ref().map_or_else(String::new, |t| format!(" ({t})"));
        [
            k.kernel.clone(),
            if is_one { k.shape.clone() } else { format!("{}, {}", k.shape, k.samples) },
            format!("{}{tile}", k.variant),
            k.storage.clone(),
            short(1e6 * k.time.median),
            short(1e6 * k.time.p10),
            short(1e6 * k.time.p90),
            maybe(k.gflops_per_s),
            short(k.gbytes_per_s),
            percent(k.share),
            k.bound.clone(),
            maybe(k.speedup),
        ]
    };
    let median = if is_one { format!("median of {samples} samples, us") } else { "median, us".into() };
    let header = [
        "kernel",
        if is_one { "shape" } else { "shape, samples" },
        "variant (tile)",
        "in",
        &median,
        "p10",
        "p90",
        "GFLOP/s",
        "GB/s",
        "of ceiling",
        "bound by",
        "x naive",
    ];
    Sheet { title: "Kernels", header: header.map(String::from), rows: r.kernels.iter().map(row).collect() }
}

fn steps(r: &Results) -> Sheet<12> {
    let second = if r.device.kind == "software" { "CPU" } else { "device" };
    let row = |s: &StepRow| {
        if let Some(why) = &s.skipped {
            let mut cells: [String; 12] = std::array::from_fn(|_| String::new());
            (cells[0], cells[1], cells[2]) = (s.network.clone(), s.batch.to_string(), format!("skipped: {why}"));
            return cells;
        }
        let ms = |x: Option<super::results::Spread>| maybe(x.map(|t| 1e3 * t.median));
        let spread = s.time().map_or_else(String::new, |t| percent((t.p90 - t.p10) / t.median));
        [
            s.network.clone(),
            if s.chunk < s.batch { format!("{} ({} at once)", s.batch, s.chunk) } else { s.batch.to_string() },
            maybe(s.rate(s.device)),
            maybe(s.rate(s.wall)),
            ms(s.device),
            ms(s.wall),
            if s.rounds == 1 { "one round".into() } else { spread },
            maybe(s.gflops_per_s),
            s.other_share.map_or_else(String::new, percent),
            maybe(s.growth),
            short(s.start_up),
            report::grouped(s.bytes_per_sample as f64),
        ]
    };
    let header = [
        "network".into(),
        "batch".into(),
        format!("sample-steps/{second} s"),
        "/wall s".into(),
        format!("{second}, ms/step"),
        "wall, ms/step".into(),
        "p10 to p90".into(),
        "GFLOP/s".into(),
        "not convolution".into(),
        "each, x largest".into(),
        "start-up, s".into(),
        "bytes/sample".into(),
    ];
    Sheet { title: "Whole steps: forward, input gradient, sign step", header, rows: r.steps.iter().map(row).collect() }
}

fn dispatches(r: &Results) -> Sheet<9> {
    let row = |d: &DispatchRow| {
        [
            d.network.clone(),
            d.samples.to_string(),
            d.place.to_string(),
            d.kernel.clone(),
            d.layer.clone(),
            short(1e6 * d.time.median),
            percent((d.time.p90 - d.time.p10) / d.time.median),
            percent(d.share),
            maybe(d.gflops_per_s),
        ]
    };
    let header = ["network", "samples", "place", "kernel", "layer", "median, us", "p10 to p90", "of all", "GFLOP/s"];
    Sheet {
        title: "Dispatches of a step, each alone",
        header: header.map(String::from),
        rows: r.dispatches.iter().map(row).collect(),
    }
}

/// The dispatches of a step by kernel, the longest first.
fn by_kernel(r: &Results) -> Sheet<7> {
    struct Sum<'a> {
        first: &'a DispatchRow,
        dispatches: usize,
        seconds: f64,
        share: f64,
        gflops: f64,
    }
    let mut sums: Vec<Sum<'_>> = Vec::new();
    for d in &r.dispatches {
        let same =
            |s: &Sum<'_>| (&s.first.network, s.first.samples, &s.first.kernel) == (&d.network, d.samples, &d.kernel);
        let at = sums.iter().position(same).unwrap_or_else(|| {
            sums.push(Sum { first: d, dispatches: 0, seconds: 0.0, share: 0.0, gflops: 0.0 });
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.dispatches += 1;
        sum.seconds += d.time.median;
        sum.share += d.share;
        sum.gflops += d.gflops_per_s.unwrap_or(0.0) * d.time.median;
    }
    // Steps stay in their order.
    let step = |d: &DispatchRow| r.dispatches.iter().position(|o| (&o.network, o.samples) == (&d.network, d.samples));
    sums.sort_by(|a, b| step(a.first).cmp(&step(b.first)).then(b.seconds.total_cmp(&a.seconds)));
    let row = |s: &Sum<'_>| {
        [
            s.first.network.clone(),
            s.first.samples.to_string(),
            s.first.kernel.clone(),
            s.dispatches.to_string(),
            short(1e6 * s.seconds),
            percent(s.share),
            maybe((s.gflops > 0.0).then(|| s.gflops / s.seconds)),
        ]
    };
    let header = ["network", "samples", "kernel", "dispatches", "sum of medians, us", "of all", "GFLOP/s"];
    Sheet {
        title: "Dispatches of a step, by kernel",
        header: header.map(String::from),
        rows: sums.iter().map(row).collect(),
    }
}

fn headline(r: &Results) -> String {
    let d = &r.device;
    let (name, backend, driver) = (&d.name, &d.backend, &d.driver);
    let rounds = counted(r.rounds as u64, "round", "rounds");
    format!("{name} ({backend}), {driver}; signstep {}, {}, {rounds}", r.version, r.clock)
}

/// For a terminal.
pub(super) fn text(r: &Results) -> String {
    let mut parts = vec![headline(r)];
    parts.extend((!r.probes.is_empty()).then(|| probes(r).text()));
    parts.extend((!r.kernels.is_empty()).then(|| kernels(r).text()));
    parts.extend((!r.steps.is_empty()).then(|| steps(r).text()));
    parts.extend((!r.dispatches.is_empty()).then(|| dispatches(r).text()));
    parts.extend((!r.dispatches.is_empty()).then(|| by_kernel(r).text()));
    parts.join("\n\n")
}

/// For pasting; with those peers that ran on the same adapter.
pub(super) fn markdown(r: &Results, peers: &[Peers]) -> String {
    let mut parts = vec![format!("## {}", r.device.name), format!("{}.", headline(r))];
    parts.extend((!r.probes.is_empty()).then(|| probes(r).markdown()));
    parts.extend((!r.steps.is_empty()).then(|| steps(r).markdown()));
    parts.extend((!r.dispatches.is_empty()).then(|| dispatches(r).markdown()));
    parts.extend((!r.dispatches.is_empty()).then(|| by_kernel(r).markdown()));
    parts.extend(peers.iter().filter(|p| p.are_of(r)).map(|p| format!("**Beside peers**\n\n{}", p.markdown())));
    parts.extend((!r.kernels.is_empty()).then(|| kernels(r).markdown()));
    parts.extend(r.warnings.iter().map(|w| format!("Warning: {w}.")));
    parts.join("\n\n")
}

/// One page for several adapters.
pub(super) fn page(all: &[Results], peers: &[Peers]) -> String {
    let intro = "# Measured speed\n\n\
        Made by `signstep bench --table` of the files in `results/`, which `signstep bench --save` writes. Medians of interleaved \
        rounds on random data. On a software adapter a second is one of process CPU time, for there the device is the process; on \
        hardware times are timestamps of the device. \"Of ceiling\" is the share of what the probes reached on the same adapter in \
        the same run: of arithmetic, of copies, or of dispatches that do nothing, whichever allows least; a kernel that reads more \
        than it writes may pass the copies, and a short one the dispatches, whose probe is no faster than the machine was just then. GB/s counts inputs, \
        outputs and weights once; GFLOP/s counts what is done, which in Winograd's convolution is less than its definition. \"x naive\" is \
        beside the naive kernel of f32, where that was timed, whatever the arithmetic. \"Each, x largest\" is the time for one sample as a multiple of \
        that in the largest batch. \"Beside peers\" is made by `peers/`, whose README says what is compared and how it is checked.";
    let pages = all.iter().map(|r| markdown(r, peers));
    [intro.to_string()].into_iter().chain(pages).collect::<Vec<_>>().join("\n\n") + "\n"
}

/// All rows in one table of numbers, in SI units; what a row does not have is empty.
pub(super) fn csv(r: &Results) -> String {
    let header = [
        "kind",
        "name",
        "shape",
        "variant",
        "storage",
        "samples",
        "median",
        "p10",
        "p90",
        "unit",
        "wall_s",
        "gflops_per_s",
        "gbytes_per_s",
        "share",
        "bound",
        "other_share",
        "growth",
        "start_up_s",
        "bytes_per_sample",
        "skipped",
    ];
    let maybe = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
    let none = String::new;
    let spread = |s: Option<super::results::Spread>| {
        [maybe(s.map(|s| s.median)), maybe(s.map(|s| s.p10)), maybe(s.map(|s| s.p90))]
    };
    let mut rows: Vec<Vec<String>> = vec![header.map(String::from).to_vec()];
    for p in &r.probes {
        let mut row = vec!["probe".into(), p.name.clone(), none(), none(), none(), none()];
        row.extend(spread(Some(p.value)));
        row.push(p.unit.clone());
        rows.push(row);
    }
    for k in &r.kernels {
        let [kernel, shape, variant, storage] = [&k.kernel, &k.shape, &k.variant, &k.storage].map(String::clone);
        let mut row = vec!["kernel".into(), kernel, shape, variant, storage, k.samples.to_string()];
        row.extend(spread(Some(k.time)));
        row.extend(["s".into(), k.wall.median.to_string(), maybe(k.gflops_per_s), k.gbytes_per_s.to_string()]);
        row.extend([k.share.to_string(), k.bound.clone()]);
        rows.push(row);
    }
    for s in &r.steps {
        let mut row = vec!["step".into(), s.network.clone(), none(), none(), none(), s.batch.to_string()];
        row.extend(spread(s.device));
        row.extend(["s".into(), maybe(s.wall.map(|w| w.median)), maybe(s.gflops_per_s), none(), none(), none()]);
        row.extend([maybe(s.other_share), maybe(s.growth), s.start_up.to_string(), s.bytes_per_sample.to_string()]);
        row.push(s.skipped.clone().unwrap_or_default());
        rows.push(row);
    }
    for d in &r.dispatches {
        let mut row = vec!["dispatch".into(), d.kernel.clone(), d.network.clone(), d.layer.clone(), none()];
        row.push(d.samples.to_string());
        row.extend(spread(Some(d.time)));
        row.extend(["s".into(), none(), maybe(d.gflops_per_s), none(), d.share.to_string()]);
        rows.push(row);
    }
    let mut out = csv::Writer::from_writer(Vec::new());
    for mut row in rows {
        row.resize(header.len(), String::new());
        out.write_record(row).expect("rows of one length, into memory");
    }
    let bytes = out.into_inner().expect("memory takes everything");
    String::from_utf8_lossy(&bytes).trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn every_format_has_every_row() {
        let mut results = sample();
        results.steps.push(StepRow {
            batch: 2048,
            skipped: Some("4 steps would take 99 s".into()),
            device: None,
            wall: None,
            other_share: None,
            gflops_per_s: None,
            growth: None,
            ..results.steps[0].clone()
        });
        for text in [text(&results), markdown(&results, &[]), csv(&results), page(&[results.clone()], &[])] {
            for word in ["fma", "conv2d_forward", "conv3x3s1-16-16-32x32", "resnet20", "linear_forward", "99 s"] {
                assert!(text.contains(word), "{word} is missing from\n{text}");
            }
        }
        let csv = csv(&results);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 6);
        assert!(lines.iter().all(|l| l.matches(',').count() == 19), "{csv}");
        let text = text(&results);
        assert!(text.contains("sample-steps/CPU s") && text.contains("257,092"), "{text}");
    }

    #[test]
    fn a_table_tells_how_many_samples_each_row_has() {
        let mut results = sample();
        let one = &results.kernels[0];
        results.kernels = [(one.samples, "a"), (one.samples, "b")]
            .map(|(samples, shape)| KernelRow { samples, shape: shape.into(), ..one.clone() })
            .into();
        let all = |r: &Results| kernels(r).rows.iter().map(|row| row[1].clone()).collect::<Vec<_>>();
        assert_eq!(all(&results), ["a", "b"]);
        assert!(kernels(&results).header[4].contains(&results.kernels[0].samples.to_string()));
        results.kernels[1].samples = 77;
        assert_eq!(all(&results), [format!("a, {}", results.kernels[0].samples), "b, 77".into()]);
        assert_eq!(kernels(&results).header[1], "shape, samples");
    }

    #[test]
    fn dispatches_add_up_by_kernel() {
        let mut results = sample();
        let time = |seconds: f64| crate::cli::bench::results::Spread::of(&[seconds]);
        let one = results.dispatches[0].clone();
        let conv = |seconds, gflops| DispatchRow {
            kernel: "conv2d_forward".into(),
            time: time(seconds),
            share: 0.25,
            gflops_per_s: Some(gflops),
            ..one.clone()
        };
        let other = DispatchRow { network: "digits-cnn".into(), time: time(9.0), ..one.clone() };
        results.dispatches =
            vec![DispatchRow { time: time(2.5), ..one.clone() }, conv(1.0, 10.0), conv(3.0, 30.0), other];
        let rows = by_kernel(&results).rows;
        let cells = |row: &[String; 7]| row.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        // The longest first within a step: 100 GFLOP in 4 s.
        assert_eq!(
            rows.iter().map(cells).collect::<Vec<_>>(),
            [
                "resnet20 8 conv2d_forward 2 4,000,000 50.0 % 25.0",
                "resnet20 8 linear_forward 1 2,500,000 1.0 % ",
                "digits-cnn 8 linear_forward 1 9,000,000 1.0 % ",
            ]
        );
    }

    #[test]
    fn numbers_keep_three_digits() {
        let told = [123_456.0, 123.4, 12.34, 1.234, 0.1234, 0.01234, 0.0, f64::NAN].map(short);
        assert_eq!(told, ["123,456", "123", "12.3", "1.23", "0.12", "1.23e-2", "0.00", "-"]);
    }
}
