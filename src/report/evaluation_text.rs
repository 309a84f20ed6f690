//! An evaluation in words: the table of attacks, the rates, and the evidence.

use super::evaluation::{Evaluation, Rate, Struck};
use super::{blank, grouped, levels, percent, rounding};

const HEADER: [&str; 9] =
    ["", "tried", "turned", "robust", "turned (float)", "robust (float)", "gradients", "forwards", "time"];

/// A summary for people, ending without a newline.
pub fn evaluation_table(e: &Evaluation) -> String {
    let mut table = blank(HEADER);
    for row in rows(e) {
        table.add_row(row);
    }
    let mut lines = vec![headline(e), table.to_string()];
    lines.extend(rates(e));
    lines.push(format!("protocol: {}", e.protocol));
    lines.extend(evidence(e).into_iter().map(|(what, value)| format!("{what}: {value}")));
    lines.extend(cautions(e));
    lines.join("\n")
}

/// The same in Markdown.
pub fn evaluation_markdown(e: &Evaluation) -> String {
    let escaped = |text: &str| text.replace('|', "\\|");
    let line = |cells: &[String]| format!("| {} |", cells.iter().map(|c| escaped(c)).collect::<Vec<_>>().join(" | "));
    let mut lines = vec![
        format!("# {}", escaped(&headline(e))),
        String::new(),
        line(&HEADER.map(String::from)),
        format!("|---|{}", "---:|".repeat(HEADER.len() - 1)),
    ];
    lines.extend(rows(e).iter().map(|row| line(row)));
    lines.push(String::new());
    lines.extend(rates(e).into_iter().map(|rate| format!("- {rate}")));
    lines.push(format!("- protocol: {}", e.protocol));
    lines.extend(evidence(e).into_iter().map(|(what, value)| format!("- {what}: {value}")));
    lines.extend(cautions(e).into_iter().map(|caution| format!("- {caution}")));
    let i = &e.identity;
    lines.push(format!("- model: {}, SHA-256 `{}`", escaped(&i.model.arch), i.model.sha256));
    lines.push(format!("- data: {}, SHA-256 `{}`", escaped(&i.data.source), i.data.sha256));
    lines.extend(rounding(e.evidence.snapped).map(|what| format!("- {what}")));
    lines.join("\n")
}

/// A line of names, a line for each attack.
pub fn evaluation_csv(e: &Evaluation) -> String {
    let mut out = csv::Writer::from_writer(Vec::new());
    let names = [
        "attack",
        "begun",
        "tried",
        "turned",
        "robust",
        "turned_float",
        "robust_float",
        "samples",
        "gradients",
        "forward_passes",
        "samples_without_gradient",
        "samples_whose_loss_fell",
        "ms",
    ];
    let mut written = out.write_record(names);
    for (a, ms) in e.attacks.iter().zip(&e.timing.attacks_ms) {
        let t = &a.tally;
        let numbers = [t.tried, t.turned, a.robust, t.turned_float, a.robust_float, e.samples].map(|n| n.to_string());
        let [tried, turned, robust, turned_float, robust_float, samples] = numbers;
        written = written.and_then(|()| {
            out.write_record([
                a.attack.clone(),
                a.begun.to_string(),
                tried,
                turned,
                robust,
                turned_float,
                robust_float,
                samples,
                t.gradients.to_string(),
                t.forward_passes.to_string(),
                t.samples_without_gradient.to_string(),
                t.samples_whose_loss_fell.to_string(),
                ms.to_string(),
            ])
        });
    }
    // All rows have as many fields as there are names, and memory takes everything.
    let bytes = written.ok().and_then(|()| out.into_inner().ok()).expect("rows of one length");
    String::from_utf8_lossy(&bytes).trim_end().to_string()
}

fn headline(e: &Evaluation) -> String {
    let (i, c) = (&e.identity, &e.identity.config);
    let (images, source) = (grouped(e.samples as f64), &i.data.source);
    format!("{} on {}, {images} images of {source}, {} eps {}", i.model.arch, i.device.name, c.norm, c.eps.text)
}

fn rows(e: &Evaluation) -> Vec<[String; 9]> {
    let share = |part: usize| percent(Some(part as f64 / e.samples.max(1) as f64));
    let none = String::new;
    let clean = share(e.clean_accuracy.count);
    let seconds = |ms: f64| format!("{:.2} s", ms / 1e3);
    let passes = grouped(e.samples as f64);
    let mut rows = vec![[
        "clean".into(),
        none(),
        none(),
        clean.clone(),
        none(),
        clean,
        none(),
        passes,
        seconds(e.timing.clean_ms),
    ]];
    rows.extend(e.attacks.iter().zip(&e.timing.attacks_ms).map(|(a, ms)| {
        let Struck { attack, begun, tally: t, robust, robust_float, .. } = a;
        if !begun {
            return [attack.clone(), "not run".into(), none(), none(), none(), none(), none(), none(), none()];
        }
        [
            attack.clone(),
            t.tried.to_string(),
            t.turned.to_string(),
            share(*robust),
            t.turned_float.to_string(),
            share(*robust_float),
            grouped(t.gradients as f64),
            grouped(t.forward_passes as f64),
            seconds(*ms),
        ]
    }));
    rows
}

fn rates(e: &Evaluation) -> [String; 3] {
    let delivered = if e.identity.config.delivers_bytes() { "delivered (8 bit)" } else { "delivered" };
    let line = |what: &str, r: &Rate| {
        let (lo, hi) = r.interval_95;
        let [rate, lo, hi] = [r.rate, lo, hi].map(|r| percent(Some(r)));
        format!("{what}: {rate} ({} of {}; 95 %: {lo} to {hi})", r.count, e.samples)
    };
    [
        line("clean accuracy", &e.clean_accuracy),
        line("robust accuracy, float", &e.robust_accuracy_float),
        line(&format!("robust accuracy, {delivered}"), &e.robust_accuracy),
    ]
}

fn evidence(e: &Evaluation) -> Vec<(&'static str, String)> {
    let v = &e.evidence;
    let check = match v.eight_bit {
        Some(true) => "passed".into(),
        Some(false) => format!("FAILED for {} images", v.unsound_images),
        None => format!("floats are delivered; outside of the ball: {} images", v.unsound_images),
    };
    vec![
        ("largest change", format!("{} (linf), {:.4} (l2)", levels(v.max_linf), v.max_l2)),
        ("delivered values", format!("{} to {}", levels(v.delivered_min), levels(v.delivered_max))),
        ("8-bit check", check),
        ("images with NaN or infinity", v.nonfinite_samples.to_string()),
        ("images without any gradient", v.samples_without_gradient.to_string()),
        ("images held whose loss fell", v.samples_whose_loss_fell.to_string()),
    ]
}

/// What stands against the rates.
fn cautions(e: &Evaluation) -> Vec<String> {
    let v = &e.evidence;
    let mut lines = Vec::new();
    let left: Vec<&str> = e.attacks.iter().filter(|a| !a.begun).map(|a| a.attack.as_str()).collect();
    if !left.is_empty() {
        let left = left.join(", ");
        lines.push(format!(
            "incomplete: {left} did not fit into the time budget; the robust accuracy is an upper bound"
        ));
    }
    if v.samples_without_gradient > 0 {
        lines.push("a gradient of zero hides how an image could be turned: follow another loss (margin, dlr)".into());
    }
    if v.logits_look_like_probabilities {
        lines.push(
            "the logits look like the output of a softmax (nonnegative, sum 1): attacks are weak against it; remove it"
                .into(),
        );
    }
    if !e.is_autoattack {
        lines.push("this is not AutoAttack (see --suite autoattack)".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::{device, identity};
    use super::super::statistics::tests::outcome;
    use super::super::{EvalConfig, EvalIdentity, EvalTiming, Ledger};
    use super::*;
    use crate::attack::{Attack, Logits, Method, Norm};
    use crate::model::Dims;

    fn evaluation(begun: bool) -> Evaluation {
        let i = identity(4);
        let config = EvalConfig {
            attacks: vec!["ifgsm".into(), "apgd".into()],
            norm: "linf".into(),
            eps: i.config.eps.clone(),
            bounds: Some((0.0, 1.0)),
            quantise: true,
            seed: 7,
            limit: None,
            keep_going: false,
        };
        let o = outcome(Dims::new(1, 2, 2));
        let mut ledger = Ledger::default();
        let health = vec![Default::default(); o.labels.len()];
        ledger.open(&o.labels, &o.clean, &Logits { logits: o.clean_logits.clone(), health }, 0.0);
        let attack = Attack::new(Method::Ifgsm, Norm::Linf, 2.0 / 255.0);
        let tally = ledger.add(0, &attack, &[0, 1, 2, 3], &o, |_, _| Ok::<_, ()>(())).unwrap();
        let struck = |name: &str, begun| Struck {
            attack: name.into(),
            description: format!("{name} (10 steps)"),
            begun,
            tally,
            robust: 2,
            robust_float: 1,
        };
        let timing = EvalTiming { attacks_ms: vec![1.0, 2.0], ..EvalTiming::default() };
        let identity = EvalIdentity::new("f64", config, i.model, i.data, device());
        Evaluation::new(identity, true, &ledger, vec![struck("ifgsm", true), struck("a|b", begun)], timing, None)
    }

    #[test]
    fn every_form_tells_both_rates_and_an_evaluation_reads_as_it_was_written() {
        let e = evaluation(true);
        let text = evaluation_table(&e);
        for words in ["robust accuracy, float: 25.0 % (1 of 4; 95 %: 4.6 % to 69.9 %)", "50.0 %", "AutoAttack: ifgsm"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("is not AutoAttack") && e.is_autoattack);
        let markdown = evaluation_markdown(&e);
        for line in markdown.lines().filter(|l| l.starts_with('|')) {
            assert_eq!(line.replace("\\|", "").matches('|').count(), 10, "{line}");
        }
        let csv = evaluation_csv(&e);
        assert!(csv.lines().all(|l| l.split(',').count() == 13) && csv.lines().count() == 3, "{csv}");
        assert_eq!(serde_json::from_str::<Evaluation>(&e.json()).unwrap(), e);
    }

    #[test]
    fn what_was_left_out_is_said_everywhere() {
        let e = evaluation(false);
        assert!(!e.is_complete && !e.is_autoattack);
        let text = evaluation_table(&e);
        for words in
            ["not run", "incomplete: a|b", "is not AutoAttack", "upper bound", "(incomplete: 1 attacks not run)"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
