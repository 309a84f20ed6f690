//! Safetensors out: the same tensors give the same bytes, and a file is either whole or not there.

use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A tensor to be written: its values as little-endian bytes, outermost axis first.
#[derive(Clone, Debug)]
pub struct View<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> View<'a> {
    /// A tensor of f32. That the shape holds as many values as there are is checked when it is written.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        View { dtype: Dtype::F32, shape: shape.to_vec(), bytes: little_endian(values, |v| v.to_le_bytes()) }
    }

    /// A tensor of i64.
    pub fn i64(shape: &[usize], values: &'a [i64]) -> Self {
        View { dtype: Dtype::I64, shape: shape.to_vec(), bytes: little_endian(values, |v| v.to_le_bytes()) }
    }

    /// A tensor of u8.
    pub fn u8(shape: &[usize], values: &'a [u8]) -> Self {
        View { dtype: Dtype::U8, shape: shape.to_vec(), bytes: Cow::Borrowed(values) }
    }

    /// A tensor of booleans.
    pub fn bool(shape: &[usize], values: &'a [bool]) -> Self {
        View { dtype: Dtype::BOOL, shape: shape.to_vec(), bytes: Cow::Borrowed(bytemuck::cast_slice(values)) }
    }

    /// Its values as they will lie in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Values as they lie in memory where that is little-endian, else swapped.
fn little_endian<T: bytemuck::Pod, const B: usize>(values: &[T], swap: fn(&T) -> [u8; B]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(swap).collect())
    }
}

/// A tensor whose values come later: its name, type and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name in the file.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Outermost axis first.
    pub shape: Vec<usize>,
}

impl Slot {
    /// Bytes that the shape asks for, `None` where that overflows.
    pub fn size(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.bitsize() / 8, |size, side| size.checked_mul(*side))
    }
}

/// Writes tensors by name, and `metadata`, as a safetensors file: header keys in sorted order, every tensor aligned.
/// The file appears at `path` whole, by rename, or not at all; a file that was there before is replaced.
///
/// # Errors
/// [`Error::Output`] naming the file: what the system said, or a tensor whose shape does not fit its values, or one
/// name twice.
pub fn write_safetensors(path: &Path, tensors: &[(&str, View<'_>)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let slot = |(name, view): &(&str, View<'_>)| Slot {
        name: (*name).to_string(),
        dtype: view.dtype,
        shape: view.shape.clone(),
    };
    let slots: Vec<Slot> = tensors.iter().map(slot).collect();
    replace(path, |file| {
        safetensors(file, path, &slots, metadata, &mut |slot, out| {
            let (_, view) = tensors.iter().find(|(name, _)| *name == slot.name).expect("a slot for each tensor");
            out.write_all(&view.bytes).map_err(|e| output(path, e))
        })
    })
}

/// As [`write_safetensors`], for tensors that need not be in memory at once: `fill` writes the values of one after the
/// other. Gives the SHA-256 of the file, in hexadecimal.
///
/// # Errors
/// As [`write_safetensors`], and those of `fill`.
pub fn stream_safetensors(
    path: &Path,
    slots: &[Slot],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(&Slot, &mut dyn Write) -> Result<()>,
) -> Result<String> {
    let mut sha256 = String::new();
    replace(path, |file| {
        let mut out = Hashing { out: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new() };
        safetensors(&mut out, path, slots, metadata, fill)?;
        out.flush().map_err(|e| output(path, e))?;
        sha256 = super::hexadecimal(out.hash);
        Ok(())
    })?;
    Ok(sha256)
}

/// As [`stream_safetensors`], in memory: the bytes of the file. `path` is only named.
pub(super) fn safetensors_bytes(
    path: &Path,
    slots: &[Slot],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(&Slot, &mut dyn Write) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    safetensors(&mut bytes, path, slots, metadata, fill)?;
    Ok(bytes)
}

/// The file's bytes: header, then what `fill` writes for each slot, the right number of bytes each.
fn safetensors(
    out: &mut impl Write,
    path: &Path,
    slots: &[Slot],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(&Slot, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<&Slot> = slots.iter().collect();
    // The widest values first: then each tensor is aligned without holes, which the format forbids.
    order.sort_by_key(|slot| (Reverse(slot.dtype.bitsize()), &slot.name));
    let header = header(&order, metadata).map_err(|e| output(path, e))?;
    let start = (header.len() as u64).to_le_bytes();
    out.write_all(&start).and_then(|()| out.write_all(header.as_bytes())).map_err(|e| output(path, e))?;
    for slot in order {
        let mut counted = Counting { out: &mut *out, bytes: 0 };
        fill(slot, &mut counted)?;
        if slot.size() != Some(counted.bytes) {
            let Slot { name, dtype, shape } = slot;
            return Err(output(path, format!("`{name}`: {} bytes for {dtype} of shape {shape:?}", counted.bytes)));
        }
    }
    Ok(())
}

fn header(order: &[&Slot], metadata: &BTreeMap<String, String>) -> std::result::Result<String, String> {
    let text = |s: &str| serde_json::Value::from(s).to_string();
    let mut entries = BTreeMap::new();
    if !metadata.is_empty() {
        let pairs: Vec<String> = metadata.iter().map(|(k, v)| format!("{}:{}", text(k), text(v))).collect();
        entries.insert("__metadata__", format!("{{{}}}", pairs.join(",")));
    }
    let mut names = BTreeSet::from(["__metadata__"]);
    let mut offset = 0_usize;
    for slot in order {
        let Slot { name, dtype, shape } = slot;
        if !names.insert(name) {
            return Err(format!("two tensors are named `{name}`"));
        }
        let Some(end) = slot.size().and_then(|size| offset.checked_add(size)) else {
            return Err(format!("`{name}`: too large: {dtype} of shape {shape:?}"));
        };
        let entry = format!(r#"{{"data_offsets":[{offset},{end}],"dtype":"{dtype}","shape":{shape:?}}}"#);
        entries.insert(name, entry.replace(", ", ","));
        offset = end;
    }
    let entries: Vec<String> = entries.iter().map(|(name, entry)| format!("{}:{entry}", text(name))).collect();
    let mut header = format!("{{{}}}", entries.join(","));
    // The length before the header has eight bytes, so the data start aligned when the header's length is a multiple of
    // 8.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    Ok(header)
}

struct Counting<'a, W> {
    out: &'a mut W,
    bytes: usize,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a small file whole or not at all.
///
/// # Errors
/// [`Error::Output`] naming the file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes).map_err(|e| output(path, e)))
}

/// Writes a file that a user names: as [`write_file`], but a device, a pipe or a link is written to, not replaced.
///
/// # Errors
/// As [`write_file`].
pub(crate) fn write_named(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return fs::write(path, bytes).map_err(|e| output(path, e));
    }
    sweep_abandoned(path);
    write_file(path, bytes)
}

/// Removes what is left of files of these `names` that were being written to `folder` when their process was killed.
/// Only for who has the folder alone: one that is being written goes, too.
pub(crate) fn sweep_scratch(folder: &Path, names: &[&str]) {
    for left in scratch(folder, names) {
        let _ = fs::remove_file(left);
    }
}

/// Removes what is left of a file that was being written to `path`, whoever else may be writing it now: a scratch file
/// is locked by the process that writes it, and the lock goes with the process. Where there are no locks it stays; where
/// they are known to one host alone, another must not write to the same name.
fn sweep_abandoned(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    for left in scratch(folder_of(path), &[name]) {
        // Nothing else has such a name, but opening a pipe would wait for whoever writes to it.
        let is_file = left.symlink_metadata().is_ok_and(|facts| facts.is_file());
        let file = if is_file { OpenOptions::new().write(true).open(&left).ok() } else { None };
        // Of several who look, one may have removed it, and another written anew, since it was opened.
        if file.is_some_and(|file| fs4::FileExt::try_lock(&file).is_ok() && is_at(&file, &left)) {
            let _ = fs::remove_file(left);
        }
    }
}

/// Whether an open file is still the one that a path names.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (open.dev(), open.ino()) == (named.dev(), named.ino())
    }
    #[cfg(not(unix))]
    {
        open.created().ok() == named.created().ok()
    }
}

/// Makes a scratch file, empty, and locks it.
fn scratch_file(path: &Path) -> io::Result<File> {
    let mut tries = 0..100;
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        // Who sweeps has it for a moment, and then it is gone. Not every file system has locks, or the same number for
        // a file whenever it is asked.
        let _ = fs4::FileExt::lock(&file);
        if is_at(&file, path) || tries.next().is_none() {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Scratch files of these names in a folder.
fn scratch(folder: &Path, names: &[&str]) -> Vec<PathBuf> {
    let process = |found: &str| {
        let of = |name: &&str| found.strip_prefix('.')?.strip_prefix(*name)?.strip_prefix('.')?.strip_suffix(".tmp");
        names.iter().find_map(of).and_then(|id| id.parse::<u32>().ok())
    };
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_str().and_then(process).is_some()).map(|entry| entry.path()).collect()
}

/// Writes beside `path`, then renames: readers see the old file or the whole new one.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let fail = |e: io::Error| output(path, e);
    let name = path.file_name().ok_or_else(|| output(path, "not the name of a file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    let temporary = Temporary(path.with_file_name(hidden));
    let mut file = scratch_file(&temporary.0).map_err(fail)?;
    write(&mut file)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&temporary.0, path).map_err(fail)?;
    // Until it had its name it was locked.
    drop(file);
    // The rename itself is safe on disk only once the folder is; not every system can open a folder.
    if let Ok(folder) = File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The folder that a file lies in, by a name that can be opened.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn output(place: &Path, detail: impl ToString) -> Error {
    Error::Output { place: place.display().to_string(), detail: detail.to_string() }
}

/// Removes the file it names, if that is still there, however the writing ended.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    fn left_in(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_scratch_file_that_somebody_sweeps_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".x.7.tmp");
        let held = scratch_file(&path).unwrap();
        let made = std::thread::scope(|threads| {
            let waits = threads.spawn(|| scratch_file(&path).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            fs::remove_file(&path).unwrap();
            drop(held);
            waits.join().unwrap()
        });
        assert!(is_at(&made, &path));
        // What an earlier process of the same number left is not what is written now.
        drop(made);
        fs::write(&path, "left").unwrap();
        assert_eq!(scratch_file(&path).unwrap().metadata().unwrap().len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "before").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        write_named(&at("link"), b"after").unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"after");
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_one_is_writing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [".x.7.tmp", ".x.8.tmp", ".y.7.tmp", ".x.mine.tmp", "x.7.tmp"] {
            fs::write(at(name), "half").unwrap();
        }
        let held = OpenOptions::new().write(true).open(at(".x.8.tmp")).unwrap();
        fs4::FileExt::try_lock(&held).unwrap();
        let left = || {
            let mut left = left_in(folder.path());
            left.sort();
            left
        };
        write_named(&at("x"), b"whole").unwrap();
        assert_eq!(left(), [".x.8.tmp", ".x.mine.tmp", ".y.7.tmp", "x", "x.7.tmp"]);
        drop(held);
        write_named(&at("x"), b"whole").unwrap();
        assert_eq!(left(), [".x.mine.tmp", ".y.7.tmp", "x", "x.7.tmp"]);
        // While one is written, another finds it locked.
        let mut other = Vec::new();
        replace(&at("x"), |_| {
            sweep_abandoned(&at("x"));
            other = left();
            Ok(())
        })
        .unwrap();
        assert_eq!(other[0], format!(".x.{}.tmp", std::process::id()));
        assert_eq!(left(), [".x.mine.tmp", ".y.7.tmp", "x", "x.7.tmp"]);
    }

    #[test]
    fn what_is_written_is_sorted_aligned_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("b".to_string(), "\"é\n".to_string()), ("a".to_string(), "1".to_string())]);
        let tensors = [
            ("flags", View::u8(&[3], &[1, 0, 1])),
            ("x", View::f32(&[1, 2], &[0.5, -1.0])),
            ("labels", View::i64(&[2], &[-1, 7])),
            ("empty", View::f32(&[0, 4], &[])),
        ];
        fs::write(&path, "old").unwrap();
        write_safetensors(&path, &tensors, &metadata).unwrap();
        assert_eq!(left_in(folder.path()), ["x.safetensors"]);

        let bytes = fs::read(&path).unwrap();
        let header = String::from_utf8(bytes[8..8 + bytes[0] as usize + 256 * bytes[1] as usize].to_vec()).unwrap();
        let places: Vec<_> = ["{\"__metadata__\":{\"a\":", "\"empty\":", "\"flags\":", "\"labels\":", "\"x\":"]
            .map(|key| header.find(key).expect(key))
            .to_vec();
        assert!(places.is_sorted(), "{header}");
        assert!(header.contains(r#""x":{"data_offsets":[16,24],"dtype":"F32","shape":[1,2]}"#), "{header}");
        assert_eq!(header.len() % 8, 0);

        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("labels").unwrap().data(), bytemuck::cast_slice::<i64, u8>(&[-1, 7]));
        assert_eq!(file.tensor("flags").unwrap().data(), [1, 0, 1]);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["b"], "\"é\n");

        let mut reversed = tensors.clone();
        reversed.reverse();
        write_safetensors(&path, &reversed, &metadata).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let none = BTreeMap::new();
        let refused = |tensors: &[(&str, View<'_>)]| {
            let error = write_safetensors(&path, tensors, &none).unwrap_err();
            assert_eq!(error.exit_code(), 8);
            error.to_string()
        };
        assert!(refused(&[("a", View::f32(&[3], &[0.0; 2]))]).contains("`a`: 8 bytes"));
        assert!(refused(&[("a", View::f32(&[1 << 32, 1 << 32], &[]))]).contains("`a`"));
        assert!(refused(&[("a", View::u8(&[0], &[])), ("a", View::u8(&[0], &[]))]).contains("two tensors"));
        assert!(refused(&[("__metadata__", View::u8(&[0], &[]))]).contains("__metadata__"));
        assert!(left_in(folder.path()).is_empty());

        let nowhere = folder.path().join("missing").join("x.safetensors");
        assert_eq!(write_safetensors(&nowhere, &[], &none).unwrap_err().exit_code(), 8);
        // The rename fails on a folder: the temporary file goes.
        fs::create_dir(&path).unwrap();
        assert_eq!(write_safetensors(&path, &[], &none).unwrap_err().exit_code(), 8);
        assert_eq!(left_in(folder.path()), ["x.safetensors"]);
    }
}
