//! What numbers say. Every sentence follows from the numbers it is given: other numbers, another verdict.

use super::numbers::{Effect, Numbers, share};

/// What a row's mechanism is called in the sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Said where success is lower.
    pub harm: &'static str,
    /// Said where success is as high, though bits differ.
    pub harmless: &'static str,
    /// Said where the images are the same, bit for bit.
    pub same: &'static str,
}

/// Rates no further apart than this are called equal.
const NEAR: f64 = 0.02;

/// The verdict on `row`, which ran beside `base`, called `name`.
pub fn verdict(row: &Numbers, base: &Numbers, name: &str, words: &Words) -> String {
    let mut said = match Effect::of(row, base) {
        Effect::Same => format!("Bit for bit the images of {name}: {}.", words.same),
        Effect::Alike if row.successes == base.successes => {
            format!("{}: as many hits as in {name}.", capital(words.harmless))
        }
        Effect::Alike if (row.success_rate - base.success_rate).abs() <= NEAR => {
            format!("{}: success {} beside {} in {name}.", capital(words.harmless), row.rate(), base.rate())
        }
        Effect::Alike => format!(
            "Undecided: success {} beside {} in {name}, which {} images cannot tell apart.",
            row.rate(),
            base.rate(),
            row.samples
        ),
        Effect::Worse => {
            format!("{}: success falls from {} in {name} to {}.", capital(words.harm), base.rate(), row.rate())
        }
        Effect::Better => format!("Success is {}, higher than the {} of {name}.", row.rate(), base.rate()),
    };
    if row.loss_after > row.loss_before {
        let (before, after) = losses(row);
        said += &format!(" The target's loss rises from {before} to {after}.");
    }
    for (fact, value) in &row.facts {
        said += &told(fact, *value).map(|text| format!(" {text}.")).unwrap_or_default();
    }
    said
}

/// The verdict on a row that others are compared with.
pub fn baseline(row: &Numbers) -> String {
    let (before, after) = losses(row);
    let loss = if row.loss_after < row.loss_before {
        format!("The target's loss falls from {before} to {after}")
    } else if row.loss_after > row.loss_before {
        format!("The target's loss rises from {before} to {after}")
    } else {
        format!("The target's loss stays at {after}")
    };
    format!("{loss}, and {} of {} reach their targets.", row.successes, row.samples)
}

/// The verdict on one of the question's examples: first what becomes of the loss, then how it agrees with example 1,
/// each image alone.
pub fn example(row: &Numbers) -> String {
    let mut said = baseline(row);
    if let Some(hits) = row.facts.get("hits_before").filter(|hits| **hits > 0.0) {
        said += &format!(" {hits} did so from the start.");
    }
    said += &match (row.same_bits, row.signs_differ) {
        (Some(true), _) => " Bit for bit example 1.".to_string(),
        (_, Some(differ)) => format!(" It moves {} of the pixels another way than example 1 does", share(differ)),
        _ => String::new(),
    };
    if row.same_bits == Some(false) {
        let agree = row.facts.get("pixels_agree");
        said += &agree.map_or(".".into(), |agree| format!(", and takes {} of them to the same value.", share(*agree)));
    }
    match row.facts.get("equals_example_2") {
        Some(1.0) => said += " Bit for bit example 2.",
        Some(_) => said += " Not the bits of example 2.",
        None => {}
    }
    said
}

/// A fact in words; `None` for those that say nothing, or have been told.
fn told(fact: &str, value: f64) -> Option<String> {
    Some(match fact {
        "changed_by_neighbours" => format!("{} of the first signs change when the neighbours do", share(value)),
        "fates_changed" if value > 0.0 => format!("{} of the images have another fate than alone", share(value)),
        "underflow" if value == 0.0 => "No gradient that is not zero becomes zero".into(),
        "underflow" => format!("At first {} of the gradients that are not zero become zero", share(value)),
        "steps_an_image" => format!("{value:.1} steps an image"),
        "other_bytes" => format!("{} of the bytes differ from rounded ones", share(value)),
        "outside" if value == 0.0 => "No pixel leaves the ball".into(),
        "outside" => format!("{} of the pixels leave the ball", share(value)),
        _ => return None,
    })
}

/// The loss before and after, with as many digits as show which way it went.
pub(super) fn losses(n: &Numbers) -> (String, String) {
    let digits = if (n.loss_after - n.loss_before).abs() < 0.05 { 4 } else { 2 };
    (format!("{:.digits$}", n.loss_before), format!("{:.digits$}", n.loss_after))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}
