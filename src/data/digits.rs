//! The handwritten digits that come with the program: 8×8 pixels, origin and licence in `weights/README.md`.

use super::stream::Stream;
use super::{Source, tensors};
use crate::error::{Error, Result};
use crate::weights;

/// `images` u8 [1797, 1, 8, 8], `labels` i64; the metadata key `held_out` says how many of the first rows were kept
/// from training.
static BYTES: &[u8] = include_bytes!("../../weights/digits.safetensors");

/// The digits that the embedded network has never seen.
///
/// # Errors
/// None in a sound build; [`Error::Data`] when the embedded file is broken.
pub fn digits() -> Result<Source> {
    let name = "embedded digits";
    let (_, metadata) = weights::describe(BYTES).map_err(|detail| Error::data(name, detail))?;
    let held_out = metadata.get("held_out").and_then(|text| text.parse().ok());
    let Some(held_out) = held_out else { return Err(Error::data(name, "no number in metadata `held_out`")) };
    let mut set = tensors::read(Stream::memory(name, BYTES), held_out)?;
    if set.classes.is_empty() {
        set.classes = (0..10).map(|digit| digit.to_string()).collect();
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Dims;

    #[test]
    fn the_held_out_quarter_is_given() {
        let mut set = digits().unwrap();
        assert_eq!((set.len(), set.dims, set.name.as_str()), (450, Dims::new(1, 8, 8), "embedded digits"));
        let all = set.all().unwrap();
        assert_eq!(all.len(), 450 * 64);
        assert_eq!(set.images(449..450).unwrap(), all[449 * 64..]);
        assert_eq!((set.classes.len(), set.classes[9].as_str()), (10, "9"));
        assert!(set.labels.iter().all(|label| (0..10).contains(label)));
    }
}
