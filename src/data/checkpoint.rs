//! Checkpoints of PyTorch (`torch.save` of a state dict), as data: the old format, five pickles and then the storages
//! one after the other, and the new one, a zip archive of a pickle and a file for each storage. Nothing is executed
//! (`pickle.rs`), nothing is unpacked (`archive.rs`), and every tensor is found to lie within its storage before one is
//! read.
//!
//! Memory: the pickle, at most 16 MiB, and what it says, at most 64 MiB more; then, for one tensor at a time, the piece
//! of its storage that it spans. The tensors of a file may come to twice its size, for some may share a storage, and
//! not to more.

use super::archive::{self, Entry, read_at};
use super::pickle::{Global, Id, Pickle, Storage, Value, shown};
use super::write::{Slot, safetensors_bytes};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Longest pickle that is read, in bytes.
const MAX_PICKLE: u64 = 16 << 20;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 30;
/// Most tensors in a state dict, their longest name, and most axes.
const MAX_TENSORS: usize = 4096;
const MAX_NAME: usize = 1024;
const MAX_RANK: usize = 8;
/// What the first pickle of the old format holds, behind its opcode and length.
const MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// What the second one holds.
const VERSION: i64 = 1001;
/// Where training programs put the state dict among other things.
const KEYS: [&str; 4] = ["state_dict", "model_state_dict", "net", "model"];

/// Why a checkpoint is refused.
type Detail<T> = std::result::Result<T, String>;

/// True for the first bytes of a checkpoint in either format; 32 are enough, and no other file that this crate reads
/// begins so.
pub fn is_checkpoint(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(32)];
    is_zip(head) || head.first() == Some(&0x80) && head.windows(MAGIC.len()).any(|window| window == MAGIC)
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// A checkpoint that was opened and found sound: its tensors can be read one by one.
#[derive(Debug)]
pub struct Checkpoint<F> {
    place: String,
    file: F,
    tensors: Vec<Tensor>,
}

/// A tensor as a view of its storage.
#[derive(Clone, Debug, PartialEq)]
struct Tensor {
    slot: Slot,
    /// Values between neighbours on each axis.
    stride: Vec<u64>,
    /// Where its first value lies in the file.
    start: u64,
    /// Values from its first to its last, both included.
    span: u64,
}

/// Where the storages of a file lie, by their keys: start and bytes.
type Places = BTreeMap<String, (u64, u64)>;

impl Checkpoint<File> {
    /// Opens a file. `key` names the entry that holds the tensors, where that is not plain.
    ///
    /// # Errors
    /// As [`Checkpoint::new`].
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        let place = path.display().to_string();
        let fail = |detail: String| Error::model(&place, format!("cannot be read: {detail}"));
        // Asked before it is opened: opening a pipe waits for whoever writes to it, and Windows opens no folder.
        if !fs::metadata(path).map_err(|e| fail(e.to_string()))?.is_file() {
            return Err(fail("not a regular file".into()));
        }
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        Checkpoint::new(&place, file, key)
    }
}

impl<F: Read + Seek> Checkpoint<F> {
    /// Reads everything but the values, and checks that these are there. Tensors `num_batches_tracked` are left out:
    /// they count what training did.
    ///
    /// # Errors
    /// [`Error::Model`] naming `place`, and the offset, entry or tensor: whatever is not a dictionary of tensors of
    /// floating point.
    pub fn new(place: &str, mut file: F, key: Option<&str>) -> Result<Self> {
        let tensors = open(&mut file, key).map_err(|detail| Error::model(place, detail))?;
        Ok(Checkpoint { place: place.to_string(), file, tensors })
    }

    /// Names, types and shapes.
    pub fn slots(&self) -> Vec<Slot> {
        self.tensors.iter().map(|tensor| tensor.slot.clone()).collect()
    }

    /// The tensors and `metadata` as a safetensors file: types as they are, values in order of their shapes.
    ///
    /// # Errors
    /// [`Error::Model`] naming the file and the tensor, where a value cannot be read any more.
    pub fn safetensors(&mut self, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let Checkpoint { place, file, tensors } = self;
        let slots: Vec<Slot> = tensors.iter().map(|tensor| tensor.slot.clone()).collect();
        safetensors_bytes(Path::new(place), &slots, metadata, &mut |slot, out| {
            let tensor = tensors.iter().find(|t| t.slot.name == slot.name).expect("a tensor for each slot");
            let fail = |detail: String| Error::model(format!("{place}: {}", slot.name), detail);
            tensor.values(file).and_then(|values| out.write_all(&values).map_err(|e| e.to_string())).map_err(fail)
        })
    }
}

impl Tensor {
    /// Its values, outermost axis first.
    fn values(&self, file: &mut (impl Read + Seek)) -> Detail<Vec<u8>> {
        let width = self.slot.dtype.bitsize() / 8;
        let spanned = read(file, self.start, self.span * width as u64)?;
        let size = self.slot.size().ok_or("too large")?;
        // A tensor that does not skip or repeat anything lies as it will be written.
        if self.is_contiguous() {
            return Ok(spanned);
        }
        let mut values = reserve(size)?;
        let mut place = vec![0_usize; self.stride.len()];
        while values.len() < size {
            let at: u64 = place.iter().zip(&self.stride).map(|(i, stride)| *i as u64 * stride).sum();
            let at = at as usize * width;
            values.extend_from_slice(&spanned[at..at + width]);
            // The next place: the last axis runs fastest.
            for (i, side) in place.iter_mut().zip(&self.slot.shape).rev() {
                *i += 1;
                if *i < *side {
                    break;
                }
                *i = 0;
            }
        }
        Ok(values)
    }

    fn is_contiguous(&self) -> bool {
        let mut below = 1;
        self.slot.shape.contains(&0)
            || self.slot.shape.iter().zip(&self.stride).rev().all(|(side, stride)| {
                let fits = *side == 1 || *stride == below;
                below *= *side as u64;
                fits
            })
    }
}

fn open(file: &mut (impl Read + Seek), key: Option<&str>) -> Detail<Vec<Tensor>> {
    let length = file.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    if length > MAX_FILE {
        return Err(format!("{length} bytes; at most {MAX_FILE} are read"));
    }
    let head = read(file, 0, length.min(32))?;
    let tensors = if is_zip(&head) {
        zip(file, length, key)
    } else if is_checkpoint(&head) {
        legacy(file, length, key)
    } else if head.get(8) == Some(&b'{') {
        Err("not a checkpoint of PyTorch; it looks like safetensors, which need not be converted".into())
    } else {
        Err("not a checkpoint of PyTorch: neither its zip format nor the one before that".into())
    }?;
    let sizes = tensors.iter().map(|tensor| tensor.slot.size().unwrap_or(usize::MAX) as u64);
    let total = sizes.fold(0, u64::saturating_add);
    if total > 2 * length {
        return Err(format!("tensors of {total} bytes, but the file has only {length}: they share too much"));
    }
    Ok(tensors)
}

/// The new format: `NAME/data.pkl`, and `NAME/data/KEY` for each storage.
fn zip(file: &mut (impl Read + Seek), length: u64, key: Option<&str>) -> Detail<Vec<Tensor>> {
    let entries = archive::entries(file, length)?;
    let root =
        |entry: &Entry| entry.name.strip_suffix("/data.pkl").filter(|root| !root.contains('/')).map(String::from);
    let root =
        entries.iter().find_map(root).ok_or("a zip archive, but without `data.pkl`: not a checkpoint of PyTorch")?;
    let mut inside = BTreeMap::new();
    for entry in &entries {
        let name = entry.name.strip_prefix(&root).and_then(|name| name.strip_prefix('/'));
        let name = name.ok_or_else(|| format!("zip entry `{}`: not in `{}`", shown(&entry.name), shown(&root)))?;
        inside.insert(name, entry);
    }
    if inside.contains_key("constants.pkl") {
        return Err("a TorchScript archive, which holds a program; save the state_dict() of its module instead".into());
    }
    if let Some(entry) = inside.get("byteorder")
        && read(file, entry.start, entry.size.min(16))? != b"little"
    {
        return Err("`byteorder`: only little-endian checkpoints are read".into());
    }
    let entry = inside["data.pkl"];
    if entry.size > MAX_PICKLE {
        return Err(format!("`data.pkl` has {} bytes; at most {MAX_PICKLE} are read", entry.size));
    }
    let bytes = read(file, entry.start, entry.size)?;
    let fail = |why| format!("`data.pkl`: {why}");
    let pickle = Pickle::read(&bytes).map_err(fail)?;
    if pickle.length < bytes.len() {
        return Err(fail(format!("offset {}: something follows the pickle", pickle.length)));
    }
    let mut places = Places::new();
    for (key, storage) in storages(&pickle)? {
        let entry =
            inside.get(&*format!("data/{key}")).ok_or_else(|| format!("storage `{}` is missing", shown(key)))?;
        if bytes_of(&storage) != Some(entry.size) {
            return Err(format!("storage `{}`: {} bytes for {}", shown(key), entry.size, values_of(&storage)));
        }
        places.insert(key.to_string(), (entry.start, entry.size));
    }
    tensors(&pickle, key, &places)
}

/// The old format: magic number, version, facts about the machine, the state dict, keys of storages; the storages in
/// that order, each behind its number of values.
fn legacy(file: &mut (impl Read + Seek), length: u64, key: Option<&str>) -> Detail<Vec<Tensor>> {
    let bytes = read(file, 0, length.min(MAX_PICKLE))?;
    let mut at = 0;
    let mut next = |what: &str| -> Detail<Pickle<'_>> {
        let pickle = Pickle::read(&bytes[at..]).map_err(|why| format!("{what}, from byte {at}: {why}"))?;
        at += pickle.length;
        Ok(pickle)
    };
    if *next("magic number")?.root() != Value::Bytes(&MAGIC[2..]) {
        return Err("the first pickle is not PyTorch's magic number".into());
    }
    match next("version")?.root() {
        Value::Int(VERSION) => {}
        _ => return Err(format!("a version of the format that is not {VERSION}")),
    }
    let machine = next("facts")?;
    match machine.root() {
        Value::Dict(facts) if machine.entry(facts, "little_endian") == Some(&Value::Bool(true)) => {}
        _ => {
            return Err(
                "written on a big-endian machine, or it does not say: only little-endian checkpoints are read".into()
            );
        }
    }
    let pickle = next("state dict")?;
    let keys = next("keys of storages")?;
    let storages = storages(&pickle)?;
    let Value::List(list) = keys.root() else { return Err("the keys of storages are no list".into()) };
    let (mut places, mut at) = (Places::new(), at as u64);
    for id in list {
        let Value::Text(key) = keys.get(*id) else { return Err("a key of a storage is no text".into()) };
        let fail = |why: String| format!("storage `{}`: {why}", shown(key));
        let storage = storages.get(key).ok_or_else(|| fail("no tensor knows it".into()))?;
        let size = bytes_of(storage).filter(|size| *size <= length).ok_or_else(|| fail("too large".into()))?;
        if at + 8 + size > length {
            return Err(fail(format!("truncated: {} from byte {at}, but the file has {length}", values_of(storage))));
        }
        let mut len = [0; 8];
        read_at(file, at, &mut len)?;
        if u64::from_le_bytes(len) != storage.len {
            return Err(fail(format!("{} values for {}", u64::from_le_bytes(len), values_of(storage))));
        }
        if places.insert((*key).to_string(), (at + 8, size)).is_some() {
            return Err(fail("is there twice".into()));
        }
        at += 8 + size;
    }
    if let Some(key) = storages.keys().find(|key| !places.contains_key(**key)) {
        return Err(format!("storage `{}` is missing", shown(key)));
    }
    if at != length {
        return Err(format!("something follows the last storage, from byte {at}"));
    }
    tensors(&pickle, key, &places)
}

/// Every storage that a pickle speaks of.
fn storages<'a>(pickle: &Pickle<'a>) -> Detail<BTreeMap<&'a str, Storage<'a>>> {
    let mut storages = BTreeMap::new();
    for value in pickle.values() {
        if let Value::Storage(storage) = value
            && *storages.entry(storage.key).or_insert(*storage) != *storage
        {
            return Err(format!("storage `{}` is described in two ways", shown(storage.key)));
        }
    }
    Ok(storages)
}

fn bytes_of(storage: &Storage<'_>) -> Option<u64> {
    storage.len.checked_mul(storage.dtype.bitsize() as u64 / 8)
}

fn values_of(storage: &Storage<'_>) -> String {
    format!("{} values of {}", storage.len, storage.dtype)
}

/// The tensors of the state dict, in order of their names.
fn tensors(pickle: &Pickle<'_>, key: Option<&str>, places: &Places) -> Detail<Vec<Tensor>> {
    let dict = state_dict(pickle, key)?;
    let (mut names, mut tensors) = (BTreeSet::new(), Vec::new());
    for (name, value) in dict {
        let Value::Text(name) = pickle.get(*name) else { return Err("an entry whose name is no text".into()) };
        let fail = |why: String| format!("{}: {why}", shown(name));
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) || *name == "__metadata__" {
            return Err(fail("not a name for a tensor".into()));
        }
        if !names.insert(name) {
            return Err(fail("there are two of this name".into()));
        }
        if names.len() > MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors"));
        }
        let tensor = tensor(pickle, name, *value, places).map_err(fail)?;
        if *name == "num_batches_tracked" || name.ends_with(".num_batches_tracked") {
            continue;
        }
        if !matches!(tensor.slot.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            return Err(fail(format!("{} values; only floats are supported", tensor.slot.dtype)));
        }
        tensors.push(tensor);
    }
    if tensors.is_empty() {
        return Err("holds no tensors".into());
    }
    tensors.sort_by(|a, b| a.slot.name.cmp(&b.slot.name));
    Ok(tensors)
}

/// The dictionary of tensors: what `key` names, else what lies under one of the usual keys, else the whole.
fn state_dict<'p>(pickle: &'p Pickle<'_>, key: Option<&str>) -> Detail<&'p [(Id, Id)]> {
    let Value::Dict(whole) = pickle.root() else {
        return Err(format!("holds {} in place of a dictionary of tensors", kind(pickle.root())));
    };
    // The key that leads to the dictionary, with a dot behind it.
    let (mut dict, mut path) = (whole.as_slice(), String::new());
    if let Some(key) = key {
        match named(pickle, dict, key) {
            Some(Value::Dict(inner)) => dict = inner,
            Some(other) => return Err(format!("`{}` holds {}, not a dictionary", shown(key), kind(other))),
            None => return Err(format!("has no entry `{}`; there are {}", shown(key), entries(pickle, dict, ""))),
        }
        path = format!("{key}.");
    }
    // Some wrap what is wrapped already; more than three times has no sense.
    for _ in 0..3 {
        let mut inner = KEYS.iter().filter_map(|key| match pickle.entry(dict, key) {
            Some(Value::Dict(inner)) => Some((key, inner)),
            _ => None,
        });
        match (inner.next(), inner.next()) {
            (None, _) => break,
            (Some((key, inner)), None) => {
                dict = inner;
                path += &format!("{key}.");
            }
            (Some((a, _)), Some((b, _))) => {
                let path = shown(&path);
                return Err(format!("`{path}{a}` and `{path}{b}` could both be meant; --key says which"));
            }
        }
    }
    let is_tensor = |value: &Value<'_>| matches!(value, Value::Call(Global::Tensor | Global::Parameter, _));
    if dict.iter().any(|(_, value)| is_tensor(pickle.get(*value))) {
        return Ok(dict);
    }
    let there = entries(pickle, dict, &path);
    Err(format!("no tensors where they are expected; --key NAME says where: there are {there}"))
}

/// What `key` names: the entry of that name, else, behind a dot, an entry of an entry.
fn named<'p>(pickle: &'p Pickle<'_>, dict: &[(Id, Id)], key: &str) -> Option<&'p Value<'p>> {
    let deeper = |(dot, _)| match pickle.entry(dict, &key[..dot]) {
        Some(Value::Dict(inner)) => named(pickle, inner, &key[dot + 1..]),
        _ => None,
    };
    pickle.entry(dict, key).or_else(|| key.match_indices('.').find_map(deeper))
}

/// Some keys of a dictionary, for a message, each behind the `path` that leads there.
fn entries(pickle: &Pickle<'_>, dict: &[(Id, Id)], path: &str) -> String {
    let names = dict.iter().filter_map(|(key, _)| match pickle.get(*key) {
        Value::Text(key) => Some(format!("`{}`", shown(&format!("{path}{key}")))),
        _ => None,
    });
    let names: Vec<String> = names.take(8).collect();
    match names.len() {
        0 => "no entries with a name".into(),
        n if n < dict.len() => format!("{}, …", names.join(", ")),
        _ => names.join(", "),
    }
}

fn tensor(pickle: &Pickle<'_>, name: &str, id: Id, places: &Places) -> Detail<Tensor> {
    let arguments = |id: Id| match pickle.get(id) {
        Value::Tuple(items) => items.as_slice(),
        // The machine lets no other through.
        _ => &[],
    };
    let mut value = pickle.get(id);
    // A parameter is a tensor that is trained.
    if let Value::Call(Global::Parameter, given) = value {
        value = arguments(*given).first().map(|id| pickle.get(*id)).ok_or("a parameter of nothing")?;
    }
    let Value::Call(Global::Tensor, given) = value else { return Err(format!("is {}, not a tensor", kind(value))) };
    let given: Vec<&Value<'_>> = arguments(*given).iter().take(8).map(|id| pickle.get(*id)).collect();
    // Whether it is trained, and what hooks hang on it, is nothing to us.
    let (storage, offset, shape, stride, rest) = match given[..] {
        [Value::Storage(storage), Value::Int(offset), shape, stride, ref rest @ ..] => {
            (storage, *offset, shape, stride, rest)
        }
        _ => return Err("not described as PyTorch does: storage, offset, shape, stride".into()),
    };
    if !matches!(rest.get(2), None | Some(Value::None)) && !matches!(rest.get(2), Some(Value::Dict(d)) if d.is_empty())
    {
        return Err("a view that negates or conjugates its values".into());
    }
    let (shape, stride) = (numbers(pickle, shape)?, numbers(pickle, stride)?);
    if shape.len() != stride.len() {
        return Err(format!("{} sides, but {} strides", shape.len(), stride.len()));
    }
    if shape.len() > MAX_RANK {
        return Err(format!("has {} axes; at most {MAX_RANK} are supported", shape.len()));
    }
    let offset = u64::try_from(offset).map_err(|_| "a negative offset")?;
    let width = storage.dtype.bitsize() as u64 / 8;
    let size = shape.iter().try_fold(width, |size, side| size.checked_mul(*side)).filter(|size| *size <= MAX_FILE);
    size.ok_or_else(|| format!("too large: {} of shape {shape:?}", storage.dtype))?;
    let span = if shape.contains(&0) {
        Some(0)
    } else {
        let reach = |reach: u64, (side, stride): (&u64, &u64)| (side - 1).checked_mul(*stride)?.checked_add(reach);
        shape.iter().zip(&stride).try_fold(1, reach)
    };
    let span =
        span.filter(|span| offset.checked_add(*span).is_some_and(|end| end <= storage.len)).ok_or_else(|| {
            format!(
                "shape {shape:?}, strides {stride:?} and offset {offset} lie outside its storage of {} values",
                storage.len
            )
        })?;
    let (start, _) = places.get(storage.key).ok_or("its storage is missing")?;
    let shape = shape.into_iter().map(|side| side as usize).collect();
    let slot = Slot { name: name.to_string(), dtype: storage.dtype, shape };
    // A storage lies within the file, so that this does not overflow.
    Ok(Tensor { slot, stride, start: start + offset * width, span })
}

/// A tuple of numbers, none negative.
fn numbers(pickle: &Pickle<'_>, value: &Value<'_>) -> Detail<Vec<u64>> {
    let fail = || "a shape or strides that are no tuple of numbers".to_string();
    let tuple = match value {
        Value::Call(Global::Size, given) => match pickle.get(*given) {
            Value::Tuple(one) if one.len() == 1 => pickle.get(one[0]),
            _ => return Err(fail()),
        },
        other => other,
    };
    let Value::Tuple(items) = tuple else { return Err(fail()) };
    let number = |id: &Id| match pickle.get(*id) {
        Value::Int(n) => u64::try_from(*n).map_err(|_| format!("a side or stride of {n}")),
        _ => Err(fail()),
    };
    items.iter().map(number).collect()
}

/// What a value is, for a message.
fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "a bool",
        Value::Int(_) => "a number",
        Value::Float(_) => "a float",
        Value::Bytes(_) => "bytes",
        Value::Text(_) => "text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) => "a dictionary",
        Value::Global(_) => "a class or function",
        Value::Call(Global::Tensor | Global::Parameter, _) => "a tensor",
        Value::Call(..) => "an object",
        Value::Storage(_) => "a storage",
    }
}

fn reserve(size: usize) -> Detail<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| format!("{size} bytes are more than this machine's memory"))?;
    Ok(bytes)
}

/// Bytes that the file is known to hold.
fn read(file: &mut (impl Read + Seek), start: u64, size: u64) -> Detail<Vec<u8>> {
    let mut bytes = reserve(size as usize)?;
    bytes.resize(size as usize, 0);
    read_at(file, start, &mut bytes)?;
    Ok(bytes)
}
