//! Checkpoints as `torch.save` writes them, and as it never would: a small pickler, the old format and the zip format.

use flate2::Crc;

/// What is to be pickled.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "not every test of checkpoints pickles everything")]
pub enum Py {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Py>),
    List(Vec<Py>),
    Dict(Vec<(Py, Py)>),
    Global(&'static str, &'static str),
    Call(Box<Py>, Vec<Py>),
    /// Class, key, number of values.
    Storage(&'static str, String, i64),
    /// A persistent id of one's own.
    Persistent(Box<Py>),
    /// Opcodes as they are.
    Raw(Vec<u8>),
}

use Py::{Bool, Call, Dict, Global, Int, List, None, Persistent, Raw, Storage, Text, Tuple};

pub fn text(text: &str) -> Py {
    Text(text.into())
}

pub fn ints(values: &[i64]) -> Py {
    Tuple(values.iter().map(|v| Int(*v)).collect())
}

pub fn ordered() -> Py {
    Call(Box::new(Global("collections", "OrderedDict")), vec![])
}

/// A tensor; `at` are its shape and its strides.
pub fn tensor(storage: Py, offset: i64, (shape, stride): (&[i64], &[i64])) -> Py {
    let arguments = vec![storage, Int(offset), ints(shape), ints(stride), Bool(false), ordered()];
    Call(Box::new(Global("torch._utils", "_rebuild_tensor_v2")), arguments)
}

pub fn dict(entries: Vec<(&str, Py)>) -> Py {
    Dict(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
}

impl Py {
    /// A pickle of protocol 2. In the old format the id of a storage has one part more.
    pub fn pickle(&self, old: bool) -> Vec<u8> {
        let mut out = vec![0x80, 2];
        self.dump(old, &mut out);
        out.push(b'.');
        out
    }

    fn dump(&self, old: bool, out: &mut Vec<u8>) {
        match self {
            None => out.push(b'N'),
            Bool(value) => out.push(if *value { 0x88 } else { 0x89 }),
            Int(value) => match i32::try_from(*value) {
                Ok(value) => out.extend([&[b'J'][..], &value.to_le_bytes()].concat()),
                Err(_) => out.extend([&[0x8a, 8][..], &value.to_le_bytes()].concat()),
            },
            Py::Float(value) => out.extend([&[b'G'][..], &value.to_be_bytes()].concat()),
            Text(text) => out.extend([&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()),
            Tuple(items) => {
                out.push(b'(');
                items.iter().for_each(|item| item.dump(old, out));
                out.push(b't');
            }
            List(items) => {
                out.extend(b"](");
                items.iter().for_each(|item| item.dump(old, out));
                out.push(b'e');
            }
            Dict(pairs) => {
                out.extend(b"}(");
                pairs.iter().for_each(|(key, value)| {
                    key.dump(old, out);
                    value.dump(old, out);
                });
                out.push(b'u');
            }
            Global(module, name) => out.extend(format!("c{module}\n{name}\n").bytes()),
            Call(function, arguments) => {
                function.dump(old, out);
                Tuple(arguments.clone()).dump(old, out);
                out.push(b'R');
            }
            Storage(class, key, len) => {
                let mut id = vec![text("storage"), Global("torch", class), text(key), text("cpu"), Int(*len)];
                if old {
                    id.push(None);
                }
                Persistent(Box::new(Tuple(id))).dump(old, out);
            }
            Persistent(id) => {
                id.dump(old, out);
                out.push(b'Q');
            }
            Raw(opcodes) => out.extend(opcodes),
        }
    }
}

/// Storages of a file: key, number of values, bytes.
pub type Storages = Vec<(String, u64, Vec<u8>)>;

/// The pickles that the old format has before the state dict.
pub fn head() -> Vec<u8> {
    let facts = dict(vec![
        ("protocol_version", Int(1001)),
        ("little_endian", Bool(true)),
        ("type_sizes", dict(vec![("short", Int(2)), ("int", Int(4)), ("long", Int(4))])),
    ]);
    [&b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."[..], b"\x80\x02M\xe9\x03.", &facts.pickle(true)].concat()
}

/// The old format.
pub fn legacy(root: &Py, storages: &Storages) -> Vec<u8> {
    let keys = List(storages.iter().map(|(key, ..)| text(key)).collect());
    let mut file = [head(), root.pickle(true), keys.pickle(true)].concat();
    for (_, len, bytes) in storages {
        file.extend(len.to_le_bytes());
        file.extend(bytes);
    }
    file
}

/// The zip format.
pub fn modern(root: &Py, storages: &Storages) -> Vec<u8> {
    modern_of(root.pickle(false), storages)
}

pub fn modern_of(pickle: Vec<u8>, storages: &Storages) -> Vec<u8> {
    let mut entries = vec![("net/data.pkl".to_string(), pickle), ("net/byteorder".to_string(), b"little".to_vec())];
    entries.extend(storages.iter().map(|(key, _, bytes)| (format!("net/data/{key}"), bytes.clone())));
    entries.push(("net/version".to_string(), b"3\n".to_vec()));
    zip(&entries)
}

/// A zip archive as PyTorch's writer makes it: stored entries that begin at multiples of 64 bytes, their sizes behind them, and
/// the records of zip64 whether needed or not.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let start = file.len() as u32;
        let (size, length) = ((bytes.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let crc = crc(bytes);
        let padding = 64 - (file.len() + 30 + name.len() + 4) % 64;
        file.extend(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([&length[..], &(padding as u16 + 4).to_le_bytes(), name.as_bytes(), b"FB"].concat());
        file.extend([&(padding as u16).to_le_bytes()[..], &vec![b'Z'; padding], bytes].concat());
        file.extend([&b"PK\x07\x08"[..], &crc, &size, &size].concat());
        directory.extend([&b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0"[..], &crc, &size, &size, &length].concat());
        directory.extend([&[0; 12][..], &start.to_le_bytes(), name.as_bytes()].concat());
    }
    let (n, size, start) = (entries.len() as u64, directory.len() as u64, file.len() as u64);
    file.extend(&directory);
    let end = file.len() as u64;
    file.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x1e\x03\x2d\0\0\0\0\0\0\0\0\0");
    file.extend([n, n, size, start].map(u64::to_le_bytes).concat());
    file.extend([&b"PK\x06\x07\0\0\0\0"[..], &end.to_le_bytes(), &[1, 0, 0, 0]].concat());
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &(n as u16).to_le_bytes(), &(n as u16).to_le_bytes()].concat());
    file.extend([&(size as u32).to_le_bytes()[..], &(start as u32).to_le_bytes(), &[0, 0]].concat());
    file
}

pub fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Where the entries of the directory of an archive of [`zip`] begin.
pub fn listed(zip: &[u8]) -> Vec<usize> {
    let mut at = u32_at(zip, zip.len() - 6) as usize;
    let mut places = Vec::new();
    while zip[at..].starts_with(b"PK\x01\x02") {
        places.push(at);
        at += 46 + usize::from(u16::from_le_bytes([zip[at + 28], zip[at + 29]]));
    }
    places
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
