//! Bytes of a safetensors file, opened for weights and data sets alike: what its header says, and a refusal of headers
//! that the format forbids or that would take far more memory than they have bytes.

use safetensors::tensor::{self, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};

/// Largest header that is read, in bytes.
pub(crate) const MAX_HEADER: u64 = 8 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 4096;
/// Most axes of a tensor.
const MAX_RANK: usize = 4;
/// Most numbers in a list of a header, far more than axes: the few that are too many get a message of their own.
const MAX_NUMBERS: usize = 64;
/// The header, a tensor in it, its shape.
const MAX_DEPTH: usize = 3;

/// What a file says about itself, by key.
pub(super) type Metadata = BTreeMap<String, String>;

/// Opens a safetensors file with the checks that the crate does not make. The error is a detail without a place, for
/// weights and data sets alike.
pub(crate) fn open(bytes: &[u8]) -> std::result::Result<(SafeTensors<'_>, Metadata), String> {
    header(bytes)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unsound)?;
    let pairs = pairs(&metadata)?;
    Ok((SafeTensors::deserialize(bytes).map_err(unsound)?, pairs))
}

/// The same for a file that is read piece by piece: `bytes` are its first ones, at least to the end of the header. That
/// the data are as long as the header says is left to the caller.
#[cfg(feature = "cli")]
pub(crate) fn describe(bytes: &[u8]) -> std::result::Result<(tensor::Metadata, Metadata), String> {
    let metadata: tensor::Metadata = serde_json::from_slice(header(bytes)?).map_err(unsound)?;
    let pairs = pairs(&metadata)?;
    Ok((metadata, pairs))
}

fn unsound(e: impl std::fmt::Display) -> String {
    format!("not sound safetensors: {e}")
}

/// The header's text, as far as it can be judged before it is parsed.
fn header(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than a safetensors header")?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("not safetensors, or a header of {length} bytes; at most {MAX_HEADER} are read"));
    }
    let header = rest.get(..length as usize).ok_or("truncated: the header is cut off")?;
    if header.first() != Some(&b'{') {
        return Err("not safetensors: the header does not start with `{`".into());
    }
    scan(header)?;
    Ok(header)
}

fn pairs(metadata: &tensor::Metadata) -> std::result::Result<Metadata, String> {
    for (name, info) in metadata.tensors() {
        if info.shape.len() > MAX_RANK {
            return Err(format!("tensor `{name}` has {} axes; at most {MAX_RANK} are supported", info.shape.len()));
        }
    }
    Ok(metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Refuses a key that occurs twice in one object (JSON readers keep the last one silently), and what would take far
/// more memory read than it has bytes: too many tensors, entries or numbers, and depth. What is not JSON at all is left
/// for the reader proper to refuse.
fn scan(header: &[u8]) -> std::result::Result<(), String> {
    let mut open: Vec<Option<BTreeSet<String>>> = Vec::new();
    let mut numbers = 0;
    let mut key_next = false;
    let mut i = 0;
    while i < header.len() {
        match header[i] {
            b'{' => {
                open.push(Some(BTreeSet::new()));
                key_next = true;
            }
            b'[' => {
                open.push(None);
                (key_next, numbers) = (false, 0);
            }
            b'}' | b']' => {
                open.pop();
                key_next = false;
            }
            b',' => {
                key_next = matches!(open.last(), Some(Some(_)));
                numbers += 1;
                if !key_next && numbers > MAX_NUMBERS {
                    return Err(format!("more than {MAX_NUMBERS} numbers in a list of the header"));
                }
            }
            b'"' => {
                let start = i;
                i += 1;
                while i < header.len() && header[i] != b'"' {
                    i += if header[i] == b'\\' { 2 } else { 1 };
                }
                let text = header.get(start..=i).ok_or("the header ends inside a string")?;
                let outermost = open.len() == 1;
                if let (true, Some(Some(keys))) = (key_next, open.last_mut()) {
                    let key: String = serde_json::from_slice(text).map_err(|e| format!("header: {e}"))?;
                    if keys.contains(&key) {
                        return Err(format!("`{key}` occurs twice in the header"));
                    }
                    keys.insert(key);
                    if keys.len() > MAX_TENSORS + usize::from(keys.contains("__metadata__")) {
                        let what = if outermost { "tensors" } else { "entries" };
                        return Err(format!("more than {MAX_TENSORS} {what}"));
                    }
                }
                key_next = false;
            }
            _ => {}
        }
        if open.len() > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} brackets inside one another in the header"));
        }
        i += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made::raw;
    use super::*;

    #[test]
    fn headers_that_the_format_forbids_are_refused() {
        let one = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let refused = |bytes: &[u8]| open(bytes).map(drop).unwrap_err();
        assert!(open(&raw(one, &[1])).is_ok());
        assert!(refused(&[1, 2, 3]).contains("shorter than"));
        assert!(refused(&u64::MAX.to_le_bytes()).contains("at most"));
        assert!(refused(&raw(one, &[1])[..20]).contains("cut off"));
        assert!(refused(&raw(&format!(" {one}"), &[1])).contains("does not start with"));
        assert!(refused(&raw("", &[])).contains("does not start with"));
        for (data, what) in [(&[][..], "missing byte"), (&[1, 2], "trailing byte")] {
            assert!(refused(&raw(one, data)).contains("not sound"), "{what}");
        }
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(refused(&raw(twice, &[1])).contains("`a` occurs twice"));
        let twice = r#"{"__metadata__":{"arch":"x","arch":"y"}}"#;
        assert!(refused(&raw(twice, &[])).contains("`arch` occurs twice"));
        let rank = r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}}"#;
        assert!(refused(&raw(rank, &[1])).contains("`a` has 5 axes"));
        let overflow = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(refused(&raw(overflow, &[])).contains("not sound"));
        let hole = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(refused(&raw(hole, &[1, 2])).contains("not sound"));
        for junk in ["{", "{\"", "{\"a\\", "{\"a\":[[[", "{]}", "{\"a\":1,,}", "{\"\\x\":1}"] {
            refused(&raw(junk, &[]));
        }
        let deep = "{\"a\":".repeat(100_000);
        refused(&raw(&deep, &[]));
    }

    #[test]
    fn four_thousand_tensors_and_no_more() {
        let many = |n: usize| {
            let entry = |i| format!(r#""t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
            raw(&format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(",")), &[])
        };
        assert!(open(&many(MAX_TENSORS)).is_ok());
        assert!(open(&many(MAX_TENSORS + 1)).unwrap_err().contains("more than 4096"));
    }
}
