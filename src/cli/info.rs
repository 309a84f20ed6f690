//! `signstep info`

use super::flags::positive;
use super::network::{NetworkArgs, load_model};
use super::tell::{answer, answer_json};
use crate::error::Result;
use crate::model::{Dims, Layer, Model, Shortcut};
use crate::plan::{Plan, Target};
use crate::report;
use clap::Args;
use serde_json::json;

#[derive(Args, Debug)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show the dispatches of a forward and a backward pass
    #[arg(long)]
    plan: bool,
    /// Batch whose memory is shown
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
}

/// One row of the table of layers.
struct Row {
    /// Layers inside a residual block are indented.
    depth: usize,
    name: String,
    output: Dims,
    parameters: usize,
}

pub(super) fn run(args: &InfoArgs) -> Result<()> {
    positive("--batch", Some(args.batch))?;
    let (model, facts) = load_model(&args.network)?;
    let plan = Plan::new(&model, &Target::default())?;
    let mut rows = Vec::new();
    layers(&model, &model.layers, model.input, 0, &mut rows)?;
    if args.json {
        let mut info = json!({
            "schema_version": 1,
            "arch": model.arch,
            "sha256": facts.sha256,
            "description_sha256": facts.description_sha256,
            "input": [model.input.c, model.input.h, model.input.w],
            "logits": model.logits(),
            "classes": model.classes,
            "parameters": model.parameters(),
            "eps": model.eps,
            "step_size": model.step_size,
            "layers": rows.iter().map(|r| json!({
                "name": r.name,
                "depth": r.depth,
                "output": [r.output.c, r.output.h, r.output.w],
                "parameters": r.parameters,
            })).collect::<Vec<_>>(),
            "flops_forward": plan.flops_forward(),
            "flops_backward": plan.flops_backward(),
            "bytes_per_sample": plan.bytes_per_sample(),
            "batch": args.batch,
            "bytes": plan.bytes(args.batch as u64),
        });
        if args.plan {
            info["plan"] = json!(plan.to_string().lines().collect::<Vec<_>>());
        }
        return answer_json(&info);
    }
    let mut table = report::blank(["layer", "output", "parameters"]);
    for r in &rows {
        let parameters = if r.parameters > 0 { r.parameters.to_string() } else { String::new() };
        table.add_row([format!("{}{}", "  ".repeat(r.depth), r.name), r.output.to_string(), parameters]);
    }
    let mut text = format!(
        "{}: {} in, {} logits, {} parameters, batch norm folded\n{table}\n\
         per image: {} forward, {} backward, {} on a device that keeps activations in buffers; a batch of {} with weights: {}",
        model.arch,
        model.input,
        model.logits(),
        model.parameters(),
        flops(plan.flops_forward()),
        flops(plan.flops_backward()),
        bytes(plan.bytes_per_sample()),
        args.batch,
        bytes(plan.bytes(args.batch as u64)),
    );
    if let Some(eps) = &model.eps {
        text += &format!("\nsuggested eps {eps}");
    }
    if let Some(step) = &model.step_size {
        text += &format!(", step size {step}");
    }
    if args.plan {
        text += &format!("\n\n{plan}");
    }
    answer(text.trim_end())
}

/// Adds a row for each layer and gives the shape that leaves the last one.
fn layers(model: &Model, list: &[Layer], mut x: Dims, depth: usize, rows: &mut Vec<Row>) -> Result<Dims> {
    for layer in list {
        let name = layer.label();
        let output = layer.output(x)?;
        let parameters = model.params.get(&name).map_or(0, |p| p.weight.len() + p.bias.len());
        rows.push(Row { depth, name, output, parameters });
        if let Layer::Residual { body, shortcut } = layer {
            layers(model, body, x, depth + 1, rows)?;
            if let Shortcut::Projection(projection) = shortcut {
                layers(model, projection, x, depth + 1, rows)?;
            }
        }
        x = output;
    }
    Ok(x)
}

fn flops(n: u64) -> String {
    scaled(n as f64, 1000.0, ["FLOP", "kFLOP", "MFLOP", "GFLOP"])
}

fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, ["B", "KiB", "MiB", "GiB"])
}

fn scaled(mut x: f64, base: f64, units: [&str; 4]) -> String {
    let mut unit = 0;
    while x >= base && unit < 3 {
        x /= base;
        unit += 1;
    }
    if unit == 0 { format!("{x:.0} {}", units[0]) } else { format!("{x:.1} {}", units[unit]) }
}
