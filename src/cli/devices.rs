//! `signstep devices`

use super::tell::{answer, answer_json};
use crate::error::Result;
use crate::habits::Habits;
use crate::report;
use crate::{Adapter, AdapterSummary, Gpu};
use clap::Args;
use serde_json::{Map, Value, json};

#[derive(Args, Debug)]
pub(super) struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show limits and features too, and what adapters do where the standard leaves it open: asked now, whatever is
    /// kept (SIGNSTEP_CACHE)
    #[arg(short, long)]
    verbose: bool,
}

pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let list = Gpu::list();
    if args.json {
        let all = list.iter().map(|a| entry(a, args.verbose)).collect();
        answer_json(&Value::Array(all))?;
    } else if !list.is_empty() {
        answer(&text(&list, args.verbose))?;
    }
    if list.is_empty() {
        // Opening one gives the error that says what to do.
        Gpu::new(&Adapter::Auto).map_err(super::engine::or_the_reference)?;
    }
    Ok(())
}

/// What an adapter answers now, each by name; kept for the commands that follow. One that fails hides no other: what it
/// says is told beside its name.
fn habits(a: &AdapterSummary) -> Result<Vec<(&'static str, String)>> {
    let gpu = Gpu::new(&Adapter::Index(a.index))?;
    super::answers::ask(&gpu)?;
    Ok(Habits::of(&gpu)?.list())
}

fn entry(a: &AdapterSummary, verbose: bool) -> Value {
    let mut entry = json!({
        "index": a.index, "name": a.name, "backend": a.backend, "kind": a.kind, "driver": a.driver,
    });
    if verbose {
        let limits: Map<String, Value> = a.limits.iter().map(|(k, v)| ((*k).to_string(), json!(v))).collect();
        entry["limits"] = Value::Object(limits);
        entry["features"] = json!(a.features);
        entry["matrices"] = json!(a.matrices);
        match habits(a) {
            Ok(all) => entry["habits"] = all.into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect(),
            Err(e) => entry["error"] = json!(e.to_string()),
        }
    }
    entry
}

fn text(list: &[AdapterSummary], verbose: bool) -> String {
    let mut table = report::blank(["name", "index", "backend", "kind", "driver"]);
    for a in list {
        table.add_row([&a.name, &a.index.to_string(), &a.backend, &a.kind, &a.driver]);
    }
    let mut text = table.to_string();
    if verbose {
        for a in list {
            text += &format!("\n\n{} {}", a.index, a.name);
            for (name, value) in &a.limits {
                text += &format!("\n  {name} {value}");
            }
            text += &format!("\n  features: {}", a.features.join(", "));
            if !a.matrices.is_empty() {
                text += &format!("\n  matrices: {}", a.matrices.join(", "));
            }
            match habits(a) {
                Ok(all) => all.iter().for_each(|(name, answer)| text += &format!("\n  {name}: {answer}")),
                Err(e) => text += &format!("\n  does not answer: {e}"),
            }
        }
    }
    text
}
