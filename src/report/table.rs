//! The table at the end of a run: what a person wants to know first, delivered bytes beside floats.

use super::{Device, EpsRow, Report, Statistics, decimal, levels, rounding};
use crate::attack::Norm;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Row, Table, TableStyle};
use serde_json::Value;

/// An empty table as this program draws them: three rules, the first column to the left, the others to the right.
pub fn blank<const N: usize>(header: [&str; N]) -> Table {
    empty(Row::from(header))
}

fn empty(header: Row) -> Table {
    let rule = || LineStyle::none().fill('─').junction('─');
    let style = TableStyle::new().top_border(rule()).header_separator(rule()).bottom_border(rule());
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A short summary for people, ending without a newline.
pub fn table(report: &Report) -> String {
    let mut lines = vec![headline(report), place(report)];
    for (header, rows) in grids(report) {
        let mut table = empty(Row::from(header));
        for row in rows {
            table.add_row(row);
        }
        lines.push(table.to_string());
    }
    lines.push(format!("{}; {}", reach(report), pace(report)));
    lines.extend(cautions(report));
    lines.join("\n")
}

/// The same in Markdown, with everything that says what was run: fit for pasting.
pub fn markdown(report: &Report) -> String {
    let i = &report.identity;
    let line = |cells: &[String]| format!("| {} |", cells.iter().map(|c| escaped(c)).collect::<Vec<_>>().join(" | "));
    let mut lines = vec![format!("# {}", escaped(&headline(report))), String::new()];
    for (header, rows) in grids(report) {
        lines.extend([line(&header), format!("|---|{}", "---:|".repeat(header.len() - 1))]);
        lines.extend(rows.iter().map(|row| line(row)));
        lines.push(String::new());
    }
    lines.push(format!("{}.", reach(report)));
    lines.extend(cautions(report).iter().map(|c| format!("{c}.")));
    lines.push(String::new());
    let c = &i.config;
    let bounds = c.bounds.map_or("none".into(), |(lo, hi)| format!("{lo},{hi}"));
    let scope = if c.attack_all { "all images" } else { "images that are right when clean" };
    lines.push(format!(
        "- attack: norm {}, loss {}, bounds {bounds}, seed {}, on {scope}",
        c.norm.name(),
        c.loss.name(),
        c.seed
    ));
    let facts = |what: &str, name: &str, amount: String, sha256: &str| {
        format!("- {what}: {}, {amount}, SHA-256 `{sha256}`", escaped(name))
    };
    let parameters = format!("{} parameters", grouped(i.model.parameters as f64));
    lines.push(facts("model", &i.model.arch, parameters, &i.model.sha256));
    lines.push(facts("data", &i.data.source, format!("{} images", i.data.samples), &i.data.sha256));
    lines.extend(rounding(report.statistics.snapped).map(|what| format!("- {what}")));
    if let Some(shard) = i.shard {
        let range = shard.range();
        lines.push(format!("- shard: {} of {}, images {} to {}", shard.index, shard.count, range.start, range.end - 1));
    }
    lines.push(format!("- program: signstep {}, {}", i.version, i.math));
    for device in report.all_devices() {
        lines
            .push(format!("- device: {}", escaped(&format!("{} ({}) {}", device.name, device.backend, device.driver))));
    }
    lines.push(format!("- time: {}", pace(report)));
    lines.join("\n")
}

const EPS: &str = "/config/eps/value";
const QUARTILES: &str = "/min_eps/quartiles/";

/// Columns of [`csv()`], and where they are found in `report.json`. New ones come last, for readers count them.
const COLUMNS: [(&str, &str); 34] = [
    ("arch", "/model/arch"),
    ("data", "/data/source"),
    ("method", "/config/method"),
    ("norm", "/config/norm"),
    ("targets", "/config/targets"),
    ("eps", EPS),
    ("step_size", "/config/step_size/value"),
    ("steps", "/config/steps"),
    ("restarts", "/config/restarts"),
    ("seed", "/config/seed"),
    ("samples", "/samples"),
    ("clean_correct", "/clean_correct"),
    ("attacked", "/attacked"),
    ("successes", "/successes"),
    ("successes_float", "/successes_float"),
    ("robust", "/robust"),
    ("robust_float", "/robust_float"),
    ("clean_accuracy", "/clean_accuracy"),
    ("success_rate", "/success_rate"),
    ("success_rate_float", "/success_rate_float"),
    ("robust_accuracy", "/robust_accuracy"),
    ("robust_accuracy_float", "/robust_accuracy_float"),
    ("max_perturbation", "/max_perturbation"),
    ("device", "/device/name"),
    ("attack_ms", "/timing/attack_ms"),
    ("images_per_s", "/timing/images_per_s"),
    ("sample_steps_per_s", "/timing/sample_steps_per_s"),
    ("math", "/math"),
    ("loss", "/config/loss"),
    ("max_l2", "/max_l2"),
    ("nonfinite_samples", "/nonfinite_samples"),
    ("min_eps_quarter", "/min_eps/quartiles/0"),
    ("min_eps_half", "/min_eps/quartiles/1"),
    ("min_eps_three_quarters", "/min_eps/quartiles/2"),
];

/// The figures as a line of names and a line of values (one for each radius), so that the last lines of several runs
/// make one table.
pub fn csv(report: &Report) -> String {
    let json: Value = serde_json::from_str(&report.json()).unwrap_or_default();
    let radii = json["eps"].as_array().cloned().unwrap_or_default();
    let at = |radius: &Value| {
        let mut whole = json.clone();
        for (name, value) in radius.as_object().into_iter().flatten() {
            let place = if matches!(name.as_str(), "eps" | "step_size") { &mut whole["config"] } else { &mut whole };
            place[name.as_str()] = value.clone();
        }
        whole
    };
    let lines = if radii.is_empty() { vec![json] } else { radii.iter().map(at).collect() };
    // JSON has no infinity: a radius that is none is written as null, and so is a quartile of no images.
    let is_boundless = |json: &Value, pointer: &str| {
        let is_radius = pointer == EPS || pointer.starts_with(QUARTILES) && json["attacked"] != 0;
        is_radius && json.pointer(pointer) == Some(&Value::Null)
    };
    let cell = |json: &Value, pointer: &str| match json.pointer(pointer) {
        _ if is_boundless(json, pointer) => "inf".into(),
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    };
    let mut out = csv::Writer::from_writer(Vec::new());
    let mut written = out.write_record(COLUMNS.map(|(name, _)| name));
    for json in &lines {
        written = written.and_then(|()| out.write_record(COLUMNS.map(|(_, pointer)| cell(json, pointer))));
    }
    // All rows have as many fields as there are columns, and memory takes everything.
    let bytes = written.ok().and_then(|()| out.into_inner().ok()).expect("rows of one length");
    String::from_utf8_lossy(&bytes).trim_end().to_string()
}

/// A header and its rows.
type Grid = (Vec<String>, Vec<Vec<String>>);

/// The tables of a report: of its rates or its radii, and of the smallest radii where they were looked for.
fn grids(report: &Report) -> Vec<Grid> {
    if !report.eps.is_empty() {
        return vec![radii(report)];
    }
    let owned = |cells: &[String]| cells.to_vec();
    let rates = (header(report).map(String::from).to_vec(), rows(report).iter().map(|row| owned(row)).collect());
    std::iter::once(rates).chain(least(report)).collect()
}

/// A line for each radius.
fn radii(report: &Report) -> Grid {
    let delivered = if report.identity.config.delivers_bytes() { "robust (8 bit)" } else { "robust" };
    let header = ["eps", delivered, "95 %", "robust (float)", "95 %", "turned", "turned (float)"];
    let interval = |ends: Option<(f64, f64)>| {
        let (lo, hi) = ends.unwrap_or((0.0, 1.0));
        format!("{} to {}", percent(Some(lo)), percent(Some(hi)))
    };
    let row = |row: &EpsRow| {
        let s = &row.statistics;
        vec![
            row.eps.text.clone(),
            percent(s.robust_accuracy()),
            interval(row.robust_accuracy_95),
            percent(s.robust_accuracy_float()),
            interval(row.robust_accuracy_float_95),
            percent(s.success_rate()),
            percent(s.success_rate_float()),
        ]
    };
    (header.map(String::from).to_vec(), report.eps.iter().map(row).collect())
}

/// The smallest radii, if they were looked for.
fn least(report: &Report) -> Option<Grid> {
    let (found, ladder) = (report.min_eps.as_ref()?, report.identity.config.ladder?);
    let attacked = report.statistics.attacked;
    let header = ["smallest eps that turns", "a quarter", "half", "three quarters", "turned at all"];
    let mut row = vec!["of the attacked images".to_string()];
    row.extend(found.words(&ladder, attacked));
    row.push(percent(found.turned(attacked)));
    Some((header.map(String::from).to_vec(), vec![row]))
}

fn header(report: &Report) -> [&'static str; 5] {
    let delivered = if report.identity.config.delivers_bytes() { "delivered (8 bit)" } else { "delivered" };
    ["", delivered, "", "float", ""]
}

fn rows(report: &Report) -> [[String; 5]; 3] {
    let s = &report.statistics;
    let of = |n: usize, whole: usize| format!("{n} of {whole}");
    let none = String::new;
    let config = &report.identity.config;
    let turned = match config.targets.as_str() {
        "none" => "turned to another class",
        // Some of its lines may aim at nothing.
        "file" => "turned, to their target where they have one",
        _ => "turned to their target",
    };
    let still = if config.is_untargeted() { "still right (robust)" } else { "still right (robust to these targets)" };
    let fooling = if config.method.shares_perturbation() { " (fooling rate)" } else { "" };
    [
        ["right when clean".into(), percent(s.clean_accuracy()), of(s.clean_correct, s.samples), none(), none()],
        [
            format!("{turned}{fooling}"),
            percent(s.success_rate()),
            of(s.successes, s.attacked),
            percent(s.success_rate_float()),
            of(s.successes_float, s.attacked),
        ],
        [
            still.into(),
            percent(s.robust_accuracy()),
            of(s.robust, s.samples),
            percent(s.robust_accuracy_float()),
            of(s.robust_float, s.samples),
        ],
    ]
}

/// The attack in one line: `ifgsm, targets random, eps 0.3, 10 steps of 0.075`. The norm is said where it is not L∞.
pub(super) fn headline(report: &Report) -> String {
    let c = &report.identity.config;
    let aim = if c.is_untargeted() { "untargeted".to_string() } else { format!("targets {}", c.targets) };
    let steps = if c.steps == 1 { "1 step".to_string() } else { format!("{} steps", c.steps) };
    let restarts = if c.restarts == 1 { String::new() } else { format!(", {} restarts", c.restarts) };
    let of_length = || if c.method.has_step_size() { format!(" of {}", c.step_size.text) } else { String::new() };
    let (eps, length) = if c.ladder.is_some() {
        (c.eps.text.clone(), String::new())
    } else if c.radii.is_empty() {
        (c.eps.text.clone(), of_length())
    } else {
        (c.radii.iter().map(|radius| radius.eps.text.as_str()).collect::<Vec<_>>().join(", "), String::new())
    };
    let least = if c.ladder.is_some() { "the smallest up to " } else { "" };
    let norm = if c.norm == Norm::L2 { " in l2" } else { "" };
    format!("{}, {aim}, eps {least}{eps}{norm}, {steps}{length}{restarts}", c.method.name())
}

fn place(report: &Report) -> String {
    let i = &report.identity;
    let device = |d: &Device| {
        if i.math == "f64" { format!("{} (CPU, f64)", d.name) } else { format!("{} ({})", d.name, d.backend) }
    };
    let devices: Vec<String> = report.all_devices().iter().map(device).collect();
    let images = report.statistics.samples;
    let shard = i.shard.map(|s| format!(" (shard {} of {})", s.index, s.count)).unwrap_or_default();
    format!("{} on {}, {images} images of {}{shard}", i.model.arch, devices.join(", "), i.data.source)
}

/// How far images moved, in the norm that eps is measured in.
fn reach(report: &Report) -> String {
    let (s, c) = (&report.statistics, &report.identity.config);
    let (linf, eps) = (levels(s.max_perturbation), &c.eps.text);
    match c.norm {
        Norm::Linf => format!("largest change {linf} of eps {eps}"),
        // Of a report that was written before it was measured.
        Norm::L2 if s.max_l2 == 0.0 && s.max_perturbation > 0.0 => format!("largest change of a pixel {linf}"),
        Norm::L2 => format!("largest l2 distance {} of eps {eps}", decimal(s.max_l2)),
    }
}

fn pace(report: &Report) -> String {
    let t = &report.timing;
    let per_second = |n: Option<f64>| n.map_or("-".into(), grouped);
    format!(
        "{:.2} s, {} images/s, {} sample-steps/s",
        t.attack_ms / 1e3,
        per_second(t.images_per_s),
        per_second(t.sample_steps_per_s)
    )
}

/// What stands against the rates.
fn cautions(report: &Report) -> Vec<String> {
    let s = &report.statistics;
    let counted = |s: &Statistics, place: String| {
        let n = s.nonfinite_samples;
        (n > 0).then(|| format!("{n}{place}"))
    };
    let at = |row: &EpsRow| counted(&row.statistics, format!(" at eps {}", row.eps.text));
    let marked: Vec<String> = if report.eps.is_empty() {
        counted(s, String::new()).into_iter().collect()
    } else {
        report.eps.iter().filter_map(at).collect()
    };
    let mut lines = Vec::new();
    if !marked.is_empty() {
        let marked = marked.join(", ");
        lines.push(format!("images with NaN or infinity: {marked}; they count neither as turned nor as robust"));
    }
    let n = s.samples_without_gradient;
    if n > 0 {
        lines.push(format!("images that never had a gradient: {n}; for them this attack proves nothing"));
    }
    lines
}

/// Text for a cell of a Markdown table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A fraction as percent with one decimal. Never 100 % or 0 % by rounding: a single exception must show.
pub(crate) fn percent(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(r) if r < 1.0 && r > 0.9995 => "99.9 %".into(),
        Some(r) if r > 0.0 && r < 0.0005 => "0.1 %".into(),
        Some(r) => format!("{:.1} %", r * 100.0),
    }
}

/// A whole number with thousands apart.
pub(crate) fn grouped(x: f64) -> String {
    let digits = format!("{x:.0}");
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::report;
    use super::super::{Config, Distance, Ladder, MinEps, Radius};
    use super::*;

    #[test]
    fn a_table_shows_both_rates() {
        let text = table(&report());
        assert!(text.contains("33.3 %") && text.contains("66.7 %") && text.contains("1 of 3"), "{text}");
        assert!(text.contains("never had a gradient: 1;"), "{text}");
    }

    #[test]
    fn markdown_holds_the_same_rates_and_what_was_run() {
        let mut report = report();
        report.identity.data.source = "a|b".into();
        let text = markdown(&report);
        assert!(text.contains("| turned to their target | 33.3 % | 1 of 3 | 66.7 % | 2 of 3 |"), "{text}");
        assert!(text.contains("- data: a\\|b, 4 images, SHA-256 `bb`"), "{text}");
        for line in text.lines().filter(|l| l.starts_with('|')) {
            assert_eq!(line.matches('|').count(), 6, "{line}");
        }
    }

    #[test]
    fn l2_is_said_and_measured_in_l2() {
        let mut report = report();
        assert!(headline(&report).contains("eps 2/255, 10 steps"), "{}", headline(&report));
        assert_eq!(reach(&report), "largest change 2/255 of eps 2/255");
        report.identity.config.norm = Norm::L2;
        report.identity.config.eps.text = "0.5".into();
        report.statistics.max_l2 = 0.25;
        assert!(headline(&report).contains("eps 0.5 in l2, 10 steps"), "{}", headline(&report));
        assert_eq!(reach(&report), "largest l2 distance 0.25 of eps 0.5");
        report.statistics.max_l2 = 0.0;
        assert_eq!(reach(&report), "largest change of a pixel 2/255");
    }

    #[test]
    fn csv_has_a_value_for_each_name() {
        let mut report = report();
        report.identity.data.source = "a \"b\", c".into();
        let text = csv(&report);
        let (names, values) = text.split_once('\n').unwrap();
        assert!(values.contains("\"a \"\"b\"\", c\""), "{values}");
        let values = values.replace("\"a \"\"b\"\", c\"", "source");
        assert_eq!(names.split(',').count(), values.split(',').count());
        let missing = |(name, value): (&str, &str)| value.is_empty() && !name.starts_with("min_eps");
        let is_missing = names.split(',').zip(values.split(',')).any(missing);
        assert!(!is_missing, "a column that is not in the report: {values}");
    }

    /// Where nobody was asked there is no answer, and where the largest radius is not enough it is infinite.
    #[test]
    fn csv_holds_the_quartiles_of_smallest_radii() {
        let cells = |attacked: usize, counts: Vec<usize>| {
            let ladder = Ladder { scale: 1.0, of: 4, rungs: 2 };
            let mut report = report();
            report.statistics.attacked = attacked;
            report.min_eps = Some(MinEps::new(&ladder, counts, attacked));
            csv(&report).lines().last().unwrap().rsplit(',').take(3).map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(cells(4, vec![1, 1]), ["inf", "0.5", "0.25"]);
        assert_eq!(cells(0, vec![0, 0]), ["", "", ""]);
    }

    #[test]
    fn images_with_nan_are_told_at_each_radius() {
        let mut report = report();
        assert!(cautions(&report).iter().all(|line| !line.contains("NaN")));
        report.statistics.nonfinite_samples = 2;
        for text in [table(&report), markdown(&report)] {
            assert!(text.contains("\nimages with NaN or infinity: 2; they count neither"), "{text}");
        }
        let radius = |k: u32| Distance { text: format!("{k}/255"), value: f64::from(k) / 255.0 };
        let radii = [1, 2].map(|k| Radius { eps: radius(k), step_size: radius(k) }).to_vec();
        let config = Config { radii, ..report.identity.config.clone() };
        report.eps = EpsRow::all(&config, &[Statistics::default(), report.statistics]);
        assert!(cautions(&report)[0].contains("infinity: 2 at eps 2/255;"), "{:?}", cautions(&report));
    }

    #[test]
    fn a_file_of_targets_may_leave_some_out() {
        let mut report = report();
        report.identity.config.targets = "file".into();
        assert!(table(&report).contains("turned, to their target where they have one"), "{}", table(&report));
    }

    #[test]
    fn csv_says_where_no_radius_bounds_a_run() {
        let mut report = report();
        report.identity.config.eps = Distance { text: "inf".into(), value: f64::INFINITY };
        let text = csv(&report);
        let (names, values) = text.split_once('\n').unwrap();
        let at = names.split(',').position(|name| name == "eps").unwrap();
        assert_eq!(values.split(',').nth(at), Some("inf"), "{values}");
    }

    #[test]
    fn one_exception_shows() {
        assert_eq!(percent(Some(0.99999)), "99.9 %");
        assert_eq!(percent(Some(0.00001)), "0.1 %");
        assert_eq!(percent(Some(1.0)), "100.0 %");
        assert_eq!(percent(None), "-");
        assert_eq!(grouped(1234567.2), "1,234,567");
        assert_eq!(grouped(12.0), "12");
    }
}
