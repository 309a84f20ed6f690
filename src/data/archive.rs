//! The zip files that `torch.save` writes: every entry stored, none compressed. That is all that is read, so nothing
//! can unpack to more than the file holds. Strict where readers of zip differ from each other: headers at the entries
//! must agree with the directory at the end, entries must lie one behind the other without a gap, and every checksum
//! must hold.

use super::pickle::shown;
use flate2::Crc;
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

/// Largest directory that is read, in bytes.
const MAX_DIRECTORY: u64 = 8 << 20;
/// The last record of an archive, which may not have a comment behind it.
const END: u64 = 22;
/// Two more records before it, which PyTorch writes whether they are needed or not.
const END_64: u64 = 56 + 20;
/// Header of an entry, up to its name.
const LOCAL: u64 = 30;
/// What follows an entry whose header leaves its size open.
const DESCRIPTOR: u64 = 16;
/// Sizes come after the entry.
const LATE: u16 = 1 << 3;
/// Names are UTF-8.
const UTF8: u16 = 1 << 11;

/// Why an archive is refused.
type Result<T> = std::result::Result<T, String>;

/// A file in the archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    /// Where its bytes begin.
    pub start: u64,
    pub size: u64,
}

/// An entry as the directory has it.
struct Listed<'a> {
    name: &'a str,
    flags: u16,
    crc: u32,
    size: u64,
    /// Where its header begins.
    header: u64,
}

/// The entries of an archive of `length` bytes, every one of them checked.
pub(super) fn entries(file: &mut (impl Read + Seek), length: u64) -> Result<Vec<Entry>> {
    let (count, start, size) = directory(file, length)?;
    let mut bytes = vec![0; size as usize];
    read_at(file, start, &mut bytes)?;
    let mut listed = list(&bytes, count)?;
    listed.sort_by_key(|entry| entry.header);
    let mut names = BTreeSet::new();
    let (mut entries, mut at) = (Vec::new(), 0);
    for entry in &listed {
        let fail = |why: &str| format!("zip entry `{}`: {why}", shown(entry.name));
        if !names.insert(entry.name) {
            return Err(fail("there are two of this name"));
        }
        if entry.header != at {
            let overlaps = entry.header < at;
            return Err(fail(if overlaps {
                "overlaps the one before it"
            } else {
                "bytes before it belong to no entry"
            }));
        }
        let data = local(file, entry, start).map_err(|why| fail(&why))?;
        let end = data + entry.size;
        // No overflow: sizes and offsets have 32 bits.
        at = end + if entry.flags & LATE != 0 { DESCRIPTOR } else { 0 };
        if at > start {
            return Err(fail("runs into the directory"));
        }
        if entry.flags & LATE != 0 {
            let mut late = [0; DESCRIPTOR as usize];
            read_at(file, end, &mut late)?;
            let size = (entry.size as u32).to_le_bytes();
            if late != [&b"PK\x07\x08"[..], &entry.crc.to_le_bytes(), &size, &size].concat()[..] {
                return Err(fail("what follows it is not what the directory says"));
            }
        }
        if checksum(file, data, entry.size)? != entry.crc {
            return Err(fail("its checksum is wrong: the file is damaged"));
        }
        entries.push(Entry { name: entry.name.to_string(), start: data, size: entry.size });
    }
    if at != start {
        return Err("zip: bytes before the directory belong to no entry".into());
    }
    Ok(entries)
}

/// Number of entries, and where the directory begins and how long it is.
fn directory(file: &mut (impl Read + Seek), length: u64) -> Result<(u16, u64, u64)> {
    let mut end = [0; END as usize];
    let place = length.checked_sub(END).ok_or("zip: truncated")?;
    read_at(file, place, &mut end)?;
    if !end.starts_with(b"PK\x05\x06") {
        return Err("zip: truncated, or something follows the archive".into());
    }
    let (count, size, start) = (u16_at(&end, 10), u32_at(&end, 12), u32_at(&end, 16));
    if u32_at(&end, 4) != 0 || u16_at(&end, 8) != count || u16_at(&end, 20) != 0 {
        return Err("zip: in several parts, or with a comment".into());
    }
    if count == u16::MAX || size == u32::MAX || start == u32::MAX {
        return Err("zip64: an archive of 4 GiB or more is not read".into());
    }
    let mut tail = END;
    if length >= END + END_64 {
        let mut more = [0; END_64 as usize];
        read_at(file, length - END - END_64, &mut more)?;
        if more[56..60] == *b"PK\x06\x07" {
            tail += END_64;
            let (n, size, start) = (u64::from(count), u64::from(size), u64::from(start));
            let said = [u64_at(&more, 4), u64_at(&more, 24), u64_at(&more, 32), u64_at(&more, 40), u64_at(&more, 48)];
            if more[..4] != *b"PK\x06\x06"
                || said != [44, n, n, size, start]
                || (u32_at(&more, 60), u64_at(&more, 64), u32_at(&more, 72)) != (0, length - tail, 1)
            {
                return Err("zip64: its records do not say what the others do".into());
            }
        }
    }
    let (size, start) = (u64::from(size), u64::from(start));
    if start + size != length.saturating_sub(tail) {
        return Err("zip: the directory is not where the archive says".into());
    }
    if size > MAX_DIRECTORY {
        return Err(format!("zip: a directory of {size} bytes; at most {MAX_DIRECTORY} are read"));
    }
    Ok((count, start, size))
}

/// The entries that the directory names.
fn list(mut bytes: &[u8], count: u16) -> Result<Vec<Listed<'_>>> {
    let mut listed = Vec::new();
    for i in 0..count {
        let cut = || format!("zip: entry {i} of the directory is cut off");
        let (head, rest) = bytes.split_first_chunk::<46>().ok_or_else(cut)?;
        if !head.starts_with(b"PK\x01\x02") {
            return Err(format!("zip: entry {i} of the directory does not begin as one"));
        }
        let lengths = [28, 30, 32].map(|at| usize::from(u16_at(head, at)));
        let name = rest.get(..lengths[0]).ok_or_else(cut)?;
        bytes = rest.get(lengths.iter().sum()..).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| format!("zip: the name of entry {i} is not UTF-8"))?;
        let fail = |why: String| Err(format!("zip entry `{}`: {why}", shown(name)));
        let sound =
            |part: &str| !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == '\\');
        if !name.split('/').all(sound) {
            return fail("not a name that PyTorch gives".into());
        }
        let (flags, method) = (u16_at(head, 8), u16_at(head, 10));
        let (crc, packed, size, header) = (u32_at(head, 16), u32_at(head, 20), u32_at(head, 24), u32_at(head, 42));
        if flags & (1 | 1 << 6 | 1 << 13) != 0 {
            return fail("encrypted".into());
        }
        if flags & !(LATE | UTF8) != 0 {
            return fail(format!("flags {flags:#06x} are not known"));
        }
        if method != 0 {
            return fail(format!("compressed (method {method}); PyTorch only stores"));
        }
        if packed == u32::MAX || size == u32::MAX || header == u32::MAX {
            return fail("zip64: 4 GiB or more are not read".into());
        }
        if packed != size || u16_at(head, 34) != 0 {
            return fail("stored, but with two sizes, or in several parts".into());
        }
        listed.push(Listed { name, flags, crc, size: size.into(), header: header.into() });
    }
    if bytes.is_empty() { Ok(listed) } else { Err("zip: the directory holds more than its entries".into()) }
}

/// Where the bytes of an entry begin, once its own header has been found to agree. Nothing lies at `limit` and beyond.
fn local(file: &mut (impl Read + Seek), entry: &Listed<'_>, limit: u64) -> Result<u64> {
    let name = entry.name.as_bytes();
    let mut head = vec![0; LOCAL as usize + name.len()];
    if entry.header + head.len() as u64 > limit {
        return Err("its header runs into the directory".into());
    }
    read_at(file, entry.header, &mut head)?;
    let (crc, packed, size) = (u32_at(&head, 14), u32_at(&head, 18), u32_at(&head, 22));
    let late = entry.flags & LATE != 0 && (crc, packed, size) == (0, 0, 0);
    let agrees = late || (crc, u64::from(packed), u64::from(size)) == (entry.crc, entry.size, entry.size);
    if !head.starts_with(b"PK\x03\x04")
        || u16_at(&head, 6) != entry.flags
        || u16_at(&head, 8) != 0
        || usize::from(u16_at(&head, 26)) != name.len()
        || head[LOCAL as usize..] != *name
        || !agrees
    {
        return Err("its header is not what the directory says".into());
    }
    Ok(entry.header + head.len() as u64 + u64::from(u16_at(&head, 28)))
}

fn checksum(file: &mut (impl Read + Seek), start: u64, size: u64) -> Result<u32> {
    let (mut crc, mut left) = (Crc::new(), size);
    let mut block = vec![0; size.min(1 << 20) as usize];
    file.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    while left > 0 {
        let n = left.min(block.len() as u64) as usize;
        file.read_exact(&mut block[..n]).map_err(|e| e.to_string())?;
        crc.update(&block[..n]);
        left -= n as u64;
    }
    Ok(crc.sum())
}

pub(super) fn read_at(file: &mut (impl Read + Seek), start: u64, into: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(into)).map_err(|e| e.to_string())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
