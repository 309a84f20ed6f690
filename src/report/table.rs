//! The table at the end of a run: what a person wants to know first, delivered bytes beside floats.

use super::{Run, Statistics, levels};
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Row, Table, TableStyle};

/// An empty table as this program draws them: three rules, the first column to the left, the others to the right.
pub fn blank<const N: usize>(header: [&str; N]) -> Table {
    let rule = || LineStyle::none().fill('─').junction('─');
    let style = TableStyle::new().top_border(rule()).header_separator(rule()).bottom_border(rule());
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled).set_header(Row::from(header));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A short summary for people, ending without a newline.
pub fn table(run: &Run<'_>) -> String {
    let s = Statistics::new(run.outcome);
    let c = run.config;
    let delivered = if run.delivers_bytes() { "delivered (8 bit)" } else { "delivered" };
    let mut table = blank(["", delivered, "", "float", ""]);
    let clean = percent(s.clean_accuracy());
    let of = |n: usize, whole: usize| format!("{n} of {whole}");
    table.add_row(["right when clean", &clean, &of(s.clean_correct, s.samples), "", ""]);
    let success = if c.targets == "none" { "turned to another class" } else { "turned to their target" };
    table.add_row([
        success,
        &percent(s.success_rate()),
        &of(s.successes, s.attacked),
        &percent(s.success_rate_float()),
        &of(s.successes_float, s.attacked),
    ]);
    let robust = |rate: f64| of((rate * s.samples as f64).round() as usize, s.samples);
    table.add_row([
        "still right (robust)",
        &percent(Some(s.robust_accuracy)),
        &robust(s.robust_accuracy),
        &percent(Some(s.robust_accuracy_float)),
        &robust(s.robust_accuracy_float),
    ]);
    let t = run.timing;
    let per_second = |n: f64| if t.attack.is_zero() { "-".into() } else { grouped(n / t.attack.as_secs_f64()) };
    let mut lines = vec![
        headline(run),
        format!("{} on {}, {} images of {}", run.model.arch, device(run), s.samples, run.data_source),
        table.to_string(),
        format!(
            "largest change {} of eps {}; {:.2} s, {} images/s, {} sample-steps/s",
            levels(s.max_perturbation),
            c.eps.text,
            t.attack.as_secs_f64(),
            per_second(s.samples as f64),
            per_second(t.sample_steps as f64),
        ),
    ];
    if s.samples_without_gradient > 0 {
        lines.push(format!(
            "images that never had a gradient: {}; for them this attack proves nothing",
            s.samples_without_gradient
        ));
    }
    lines.join("\n")
}

/// The attack in one line: `ifgsm, targets random, eps 0.3, 10 steps of 0.075`.
pub(super) fn headline(run: &Run<'_>) -> String {
    let c = run.config;
    let aim = if c.targets == "none" { "untargeted".to_string() } else { format!("targets {}", c.targets) };
    let steps = if c.steps == 1 { "1 step".to_string() } else { format!("{} steps", c.steps) };
    format!("{}, {aim}, eps {}, {steps} of {}", c.method.name(), c.eps.text, c.step_size.text)
}

fn device(run: &Run<'_>) -> String {
    let d = run.device;
    if d.math == "f64" { format!("{} (CPU, f64)", d.name) } else { format!("{} ({})", d.name, d.backend) }
}

/// A fraction as percent with one decimal. Never 100 % or 0 % by rounding: a single exception must show.
pub(super) fn percent(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(r) if r < 1.0 && r > 0.9995 => "99.9 %".into(),
        Some(r) if r > 0.0 && r < 0.0005 => "0.1 %".into(),
        Some(r) => format!("{:.1} %", r * 100.0),
    }
}

/// A whole number with thousands apart.
fn grouped(x: f64) -> String {
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
    use super::super::tests::with_run;
    use super::*;
    use crate::model::Dims;

    #[test]
    fn a_table_shows_both_rates() {
        let text = with_run(Dims::new(1, 2, 2), table);
        assert!(text.contains("33.3 %") && text.contains("66.7 %") && text.contains("1 of 3"), "{text}");
        assert!(text.contains("never had a gradient: 1;"), "{text}");
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
