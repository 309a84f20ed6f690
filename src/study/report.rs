//! A study in JSON and in Markdown.

use super::lines::{Curve, Line, WATCHED};
use super::numbers::{Effect, Numbers, Row, share};
use super::verdict::losses;
use crate::error::{Error, Result};
use crate::report::{DataFacts, Device, Distance, ModelFacts, json_text, percent, rounding, wilson};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Raised by a change that could break a reader of `study.json`.
const SCHEMA_VERSION: u32 = 1;

/// What was asked for, after defaults were filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Radius in L∞.
    pub eps: Distance,
    /// Step length.
    pub step_size: Distance,
    /// Iterations.
    pub steps: u32,
    /// Images in a minibatch.
    pub minibatch: usize,
    /// Images of row 0.
    pub examples: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Largest number of images read, if it was limited.
    pub limit: Option<usize>,
    /// Rows.
    pub rows: Vec<u8>,
    /// Whether the figures' numbers are among it.
    pub figures: bool,
    /// Whether tensors for other programs are.
    pub tensors: bool,
}

/// What was studied with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Of this form of report.
    pub schema_version: u32,
    /// The program's.
    pub version: String,
    /// `f32` on a device, `f64` on the reference.
    pub math: String,
    /// What was asked for.
    pub config: Config,
    /// The network.
    pub model: ModelFacts,
    /// The images.
    pub data: DataFacts,
    /// What it ran on.
    pub device: Device,
}

impl Identity {
    /// The identity of a study by this version of the program.
    pub fn new(math: &str, config: Config, model: ModelFacts, data: DataFacts, device: Device) -> Self {
        let version = env!("CARGO_PKG_VERSION").into();
        Identity { schema_version: SCHEMA_VERSION, version, math: math.into(), config, model, data, device }
    }

    /// What decides the bytes: names and paths do not.
    pub(super) fn key(&self) -> Value {
        let config: Value = serde_json::from_str(&json_text(&self.config)).unwrap_or_default();
        serde_json::json!({
            "schema_version": self.schema_version,
            "version": self.version,
            "math": self.math,
            "config": config,
            "model": self.model.key(),
            "data": self.data.key(),
            "device": { "name": self.device.name, "driver": self.device.driver },
        })
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What was studied with what.
    #[serde(flatten)]
    pub identity: Identity,
    /// Images of rows 1 to 13.
    pub samples: usize,
    /// Largest distance by which an image moved when it was rounded to 8 bits.
    #[serde(default)]
    pub snapped: f32,
    /// The table.
    pub rows: Vec<Row>,
    /// Success by size of the batch.
    pub success_by_batch: Vec<Line>,
    /// Loss and success by iteration.
    pub steps: Vec<Curve>,
    /// SHA-256 of the files beside `study.json`.
    pub files: BTreeMap<String, String>,
    /// How long it took, in milliseconds.
    pub timing: Timing,
    /// Device memory at its peak; `None` when no device was used.
    pub gpu_bytes: Option<u64>,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Row 0, its network included.
    pub examples_ms: f64,
    /// Rows 1 to 13.
    pub rows_ms: f64,
    /// The figures' numbers.
    pub figures_ms: f64,
}

impl Findings {
    /// Reads `study.json`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |detail: String| Error::data(path.display().to_string(), detail);
        let bytes = fs::read(path).map_err(|e| fail(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| fail(format!("no study of this program: {e}")))
    }

    /// The file's text, without a newline at its end.
    pub fn json(&self) -> String {
        json_text(self)
    }

    /// The numbers of the row that a row is compared with.
    fn base(&self, row: &Row) -> Option<&Numbers> {
        self.rows.iter().find(|other| other.id == row.against)?.numbers.as_ref()
    }
}

/// The one line that the answer rests on.
const DERIVATION: &str = "∂(1/N · Σⱼ Lⱼ)/∂xᵢ = (1/N) · ∂Lᵢ/∂xᵢ, and sign() does not see the 1/N.";

/// The mended attack.
const MENDED: &str = "\
```python
model.eval()                                                                        # batch norm by its running statistics
grad, = torch.autograd.grad(F.cross_entropy(model(x), target, reduction=\"sum\"), x)  # a mean has the same signs
x = torch.clamp(x - alpha * grad.sign(), min=x0 - eps, max=x0 + eps).clamp(0, 1)    # minus: the target's loss is to fall
```";

/// Success rates in the words of figures and tables.
pub(super) fn mechanism(name: &str) -> &str {
    match name {
        "own" => "own gradients",
        "training" => "training-mode batch norm",
        "shared" => "one shared perturbation",
        "first" => "whole batch stops at first success",
        "unnormalised" => "L2 steps under a mean",
        other => other,
    }
}

/// The study in Markdown, ending without a newline; `figures` lie beside it.
pub fn markdown(f: &Findings, figures: &[&str]) -> String {
    let i = &f.identity;
    let c = &i.config;
    let mut lines = vec![
        "# Why isn't iterative targeted FGSM effective on minibatches?".to_string(),
        String::new(),
        DERIVATION.into(),
        String::new(),
        MENDED.into(),
        String::new(),
    ];
    lines.extend(summary(f));
    if !figures.is_empty() {
        lines.extend(figures.iter().map(|name| format!("![{}]({name})\n", alt(name))));
    }
    for (title, rows) in [
        ("The three examples (row 0)", 0..=0),
        ("The claim: does a mean over the batch dilute? (rows 1 to 3)", 1..=3),
        ("What does break it, and what does not (rows 4 to 13)", 4..=13),
    ] {
        let part: Vec<&Row> = f.rows.iter().filter(|row| rows.contains(&row.number())).collect();
        if part.is_empty() {
            continue;
        }
        lines.push(format!("## {title}\n"));
        lines.push(
            "| | experiment | success (95 %) | target's loss | signs that differ: first, at the end | verdict |".into(),
        );
        lines.push("|---|---|---|---|---|---|".into());
        lines.extend(part.iter().map(|row| line(row)));
        lines.push(String::new());
    }
    lines.extend(by_batch(&f.success_by_batch));
    lines.extend(by_step(&f.steps, f.samples.min(WATCHED)));
    lines.push("## How it was measured\n".into());
    lines.push(format!(
        "- {} images that are right when clean, each with a random target; eps {}, {} steps of {}; minibatches of {}; seed {}. \
         Float images, judged in evaluation mode.",
        f.samples, c.eps.text, c.steps, c.step_size.text, c.minibatch, c.seed
    ));
    if c.rows.contains(&0) {
        lines.push(format!(
            "- row 0: {} images from N(0, 1), ResNet-18 never trained (seed {}), ten steps of 0.01, no ball, no bounds. Examples 2 and 3 \
             ask for the same gradients as long as they agree; a gradient at the same bits is computed once. Running statistics stay \
             as they were; PyTorch's would drift.",
            c.examples, c.seed
        ));
    }
    lines.push(
        "- signs that differ: share of pixel values whose sign differs from the row compared with, in the first gradient, and in what \
         the image was moved by at the end."
            .into(),
    );
    lines.push("- verdicts: lower or higher where Wilson's intervals of 95 % do not overlap.".into());
    lines.push(format!("- model: {}, SHA-256 `{}`", escaped(&i.model.arch), i.model.sha256));
    lines.push(format!(
        "- data: {}, {} images read, SHA-256 `{}`",
        escaped(&i.data.source),
        i.data.samples,
        i.data.sha256
    ));
    lines.extend(rounding(f.snapped).map(|what| format!("- {what}")));
    let d = &i.device;
    lines.push(format!(
        "- program: signstep {}, {}; device: {}",
        i.version,
        i.math,
        escaped(&format!("{} ({}) {}", d.name, d.backend, d.driver))
    ));
    lines.join("\n")
}

fn alt(figure: &str) -> &'static str {
    if figure.starts_with("success") { "Success by size of the batch" } else { "Loss and success by iteration" }
}

/// Which rows cost hits, and which do not.
fn summary(f: &Findings) -> Vec<String> {
    let with_rates = |row: &Row, n: &Numbers, b: &Numbers| {
        format!("{} ({}: {} → {})", lower(&row.experiment), row.id, b.rate(), n.rate())
    };
    let named = |row: &Row, _: &Numbers, _: &Numbers| format!("{} ({})", lower(&row.experiment), row.id);
    let numbered = |row: &Row, _: &Numbers, _: &Numbers| format!("row {}", row.id);
    type Told<'a> = &'a dyn Fn(&Row, &Numbers, &Numbers) -> String;
    let groups: [(&str, Effect, Told<'_>); 4] = [
        ("Changes no bit", Effect::Same, &named),
        ("Costs hits", Effect::Worse, &with_rates),
        ("Gains hits", Effect::Better, &with_rates),
        ("Changes bits, but not the number of hits by more than chance", Effect::Alike, &numbered),
    ];
    let mut lines = Vec::new();
    for (title, effect, told) in groups {
        let of = |row: &Row| {
            let (numbers, base) = (row.numbers.as_ref()?, f.base(row)?);
            (row.number() > 0 && Effect::of(numbers, base) == effect).then(|| told(row, numbers, base))
        };
        let rows: Vec<String> = f.rows.iter().filter_map(of).collect();
        if !rows.is_empty() {
            lines.push(format!("**{title}**: {}.\n", rows.join("; ")));
        }
    }
    lines
}

fn lower(text: &str) -> String {
    // A name in capitals stays.
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.into(),
    }
}

fn line(row: &Row) -> String {
    let cells = match &row.numbers {
        None => [String::new(), String::new(), String::new()],
        Some(n) => {
            let (low, high) = n.success_95;
            let (before, after) = losses(n);
            let signs = match (n.first_signs_differ, n.signs_differ) {
                (None, None) => String::new(),
                (first, last) => [first, last].map(|d| d.map_or("–".into(), share)).join(", "),
            };
            [format!("{} ({:.1}–{:.1})", n.rate(), 100.0 * low, 100.0 * high), [before, after].join(" → "), signs]
        }
    };
    let cells: Vec<String> = cells.iter().map(|c| escaped(c)).collect();
    format!("| {} | {} | {} | {} |", row.id, escaped(&row.experiment), cells.join(" | "), escaped(&row.verdict))
}

fn by_batch(all: &[Line]) -> Vec<String> {
    let Some(longest) = all.iter().max_by_key(|line| line.points.len()) else { return Vec::new() };
    let sizes: Vec<String> = longest.points.iter().map(|p| p.batch.to_string()).collect();
    let mut lines = vec!["## Success by size of the batch\n".to_string()];
    lines.push(format!("| | {} |", sizes.join(" | ")));
    lines.push(format!("|---|{}", "---:|".repeat(sizes.len())));
    for line in all {
        let name = mechanism(&line.mechanism);
        match &line.missing {
            Some(why) => lines.push(format!("| {name} | {why} |{}", " |".repeat(sizes.len() - 1))),
            None => {
                let rate = |p: &super::Point| percent(Some(p.successes as f64 / p.samples.max(1) as f64));
                let cells: Vec<String> = line.points.iter().map(rate).collect();
                lines.push(format!("| {name} | {} |", cells.join(" | ")));
            }
        }
    }
    let same: Vec<&str> = all
        .iter()
        .filter(|line| line.points.len() > 1 && line.points.iter().all(|p| p.same_bits))
        .map(|line| mechanism(&line.mechanism))
        .collect();
    lines.push(if same.is_empty() {
        "\nNo mechanism gives the same images at every size.\n".to_string()
    } else {
        format!("\nThe same images, bit for bit, at every size: {}.\n", same.join(", "))
    });
    lines
}

fn by_step(curves: &[Curve], images: usize) -> Vec<String> {
    if curves.is_empty() {
        return Vec::new();
    }
    let mut lines = vec!["## Loss and success by iteration\n".to_string()];
    let shown = [0, 1, 2, 5, 10, 15, 20];
    let there = |curve: &Curve| shown.into_iter().filter(|t| *t < curve.loss.len()).collect::<Vec<usize>>();
    let first = there(&curves[0]);
    lines.push(format!("Mean loss on the targets of {images} images, and the share that reaches them.\n"));
    lines.push(format!("| step size | {} |", first.iter().map(usize::to_string).collect::<Vec<_>>().join(" | ")));
    lines.push(format!("|---|{}", "---:|".repeat(first.len())));
    for curve in curves {
        let cell = |t: &usize| format!("{:.2}, {}", curve.loss[*t], percent(Some(curve.success_rate[*t])));
        let cells: Vec<String> = there(curve).iter().map(cell).collect();
        lines.push(format!("| {} | {} |", curve.schedule, cells.join(" | ")));
    }
    lines.push(String::new());
    lines
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Wilson's interval of a point, in percent.
pub(super) fn interval(part: usize, whole: usize) -> (f64, f64) {
    let (low, high) = wilson(part, whole).unwrap_or((0.0, 1.0));
    (100.0 * low, 100.0 * high)
}
