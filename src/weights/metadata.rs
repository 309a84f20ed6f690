//! What metadata say of a network's input and its classes.

use super::header::Metadata;
use crate::error::{Error, Result};
use crate::model::{Arch, Dims, Layer};

/// The shape of an image as the metadata say it: the architecture's own, or any sides where a mean over all pixels
/// takes them in.
pub(super) fn check_input(text: &str, arch: &Arch) -> Result<Dims> {
    let input = arch.input;
    let any_side = arch.layers.iter().any(|layer| matches!(layer, Layer::GlobalAvgPool));
    let sides: Option<Vec<usize>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides.as_deref() {
        Some(&[c, h, w]) if (c, h, w) == (input.c, input.h, input.w) => Ok(input),
        Some(&[c, h, w]) if any_side && c == input.c => Ok(Dims::new(c, h, w)),
        Some(&[c, h, w]) => Err(Error::model(
            "metadata `input`",
            format!("{} given, but the architecture takes {input}", Dims::new(c, h, w)),
        )),
        _ => Err(Error::model("metadata `input`", "not of the form C,H,W")),
    }
}

pub(super) fn classes(metadata: &Metadata, logits: usize) -> Result<Vec<String>> {
    let Some(text) = metadata.get("classes") else { return Ok(Vec::new()) };
    let fail = |detail: String| Err(Error::model("metadata `classes`", detail));
    match class_names(text) {
        Ok(names) if names.len() == logits => Ok(names),
        Ok(names) => fail(format!("{} names for {logits} logits", names.len())),
        Err(detail) => fail(detail),
    }
}

/// Class names out of a JSON list. Control characters are refused: the names end up in terminals.
pub(crate) fn class_names(text: &str) -> std::result::Result<Vec<String>, String> {
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| format!("not a JSON list of strings: {e}"))?;
    match names.iter().position(|name| name.chars().any(char::is_control)) {
        Some(i) => Err(format!("name {i} holds a control character")),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::super::made::{file, message, tensors};
    use crate::model;

    #[test]
    fn what_they_say_must_fit_the_network() {
        let plain = tensors(&model::digits_cnn().layers);
        let with = |key: &str, value: &str| message(load(&file(&[(key, value)], &plain)));
        assert!(with("classes", r#"["a"]"#).contains("1 names for 10 logits"));
        assert!(with("classes", "a").contains("not a JSON list"));
        assert!(with("input", "3,32,32").contains("takes 1×8×8"));
        assert!(with("input", "8,8").contains("C,H,W"));
    }
}
