//! Data sets and checkpoints in, tensors out. The only part of the library that touches files; each file here knows one
//! format.
//!
//! A data set is opened once, when it is read from its first byte to its last, checked and hashed, and its pixels are
//! then read piece by piece: memory holds the labels, and what was asked for. Nothing is allocated from what a header
//! claims, and no file costs more memory than twice its size and a block: an image has at most 2^22 values, a set 2^24
//! samples, a header 8 MiB; a picture that is to be resized 2^26 values, of a byte each until it is. Errors name the
//! file and the record, sample or line.

mod archive;
mod checkpoint;
mod cifar;
mod description;
mod digits;
mod folder;
mod framing;
mod idx;
mod npy;
mod pickle;
mod picture;
mod records;
mod stream;
mod targets;
mod tensors;
mod write;

pub use checkpoint::{Checkpoint, is_checkpoint};
pub use description::Description;
pub use digits::digits;
pub use framing::Framing;
pub use targets::read_targets;
pub use write::{Slot, View, stream_safetensors, write_safetensors};
pub(crate) use write::{sweep_scratch, write_file, write_named};

use crate::error::{Error, Result};
use crate::model::Dims;
use sha2::{Digest, Sha256};
use std::fmt::{self, Debug};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Names of classes in a message.
const SHOWN: usize = 20;

/// Labelled images that are read piece by piece.
#[derive(Debug)]
pub struct Source {
    /// Shape of one image.
    pub dims: Dims,
    /// `[N]`, zero or more; all of them, for they are small.
    pub labels: Vec<i64>,
    /// Names of the classes; empty when the data have none.
    pub classes: Vec<String>,
    /// Where the data come from, for reports: the path as given, or `embedded digits`.
    pub name: String,
    /// SHA-256 of the files read, in hexadecimal. A limit does not change it. [`open`] says what is hashed.
    pub sha256: String,
    /// How pictures were brought to one size; nothing for data that are no pictures.
    pub framing: Option<Framing>,
    reader: Box<dyn Reader>,
}

/// What knows where the pixels of an open data set lie.
trait Reader: Debug + Send {
    /// Appends the pixels of the samples in `range`, all of which are there.
    fn read(&mut self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()>;
}

impl Source {
    /// Number of images (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when there are no images; never for a source that [`open`] gives.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images of the samples in `range`, `[n, C, H, W]`, each value in [0, 1]; bytes are exactly `k as f32 / 255.0`,
    /// floats are as they lie in the file. Ranges may come in any order; from gzip, one that lies before the last one
    /// read costs unpacking the file anew.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file, and the record or sample: a file that has changed since it was opened, a
    /// picture that cannot be decoded, a range that does not lie within the set.
    pub fn images(&mut self, range: Range<usize>) -> Result<Vec<f32>> {
        let fail = |detail: &str| Error::data(&self.name, format!("samples {range:?} of {}: {detail}", self.len()));
        if range.start > range.end || range.end > self.len() {
            return Err(fail("not within the set"));
        }
        let size = range.len().checked_mul(self.dims.len()).ok_or_else(|| fail("too many at once"))?;
        let mut images = Vec::new();
        images.try_reserve_exact(size).map_err(|_| fail("too many for this machine's memory"))?;
        self.reader.read(range.clone(), &mut images)?;
        // `labels` is anyone's to change; what was opened is not.
        if images.len() != size {
            return Err(Error::data(&self.name, format!("samples {range:?}: more than were opened")));
        }
        Ok(images)
    }

    /// Numbers the classes of pictures as a network does, which has `names` for its `count` classes, or none. Where
    /// every class of the data is one of the names, labels become those of the names. Where none is, or there are no
    /// names, classes stay in the order of their own names, provided that there are `count` of them: `true` where names
    /// were there and none was known. Labels that are numbers in the data stay what they are.
    ///
    /// # Errors
    /// [`Error::Data`] where it is not known which class is which: some names are the network's and others are not, or
    /// there are more or fewer classes than the network has.
    pub fn number_as(&mut self, names: &[String], count: usize) -> Result<bool> {
        if self.framing.is_none() || self.classes.is_empty() {
            return Ok(false);
        }
        let places: Vec<Option<usize>> =
            self.classes.iter().map(|class| names.iter().position(|name| name == class)).collect();
        let known = places.iter().flatten().count();
        if known == places.len() {
            for label in &mut self.labels {
                // `labels` is anyone's to change.
                let place = usize::try_from(*label).ok().and_then(|class| places.get(class).copied().flatten());
                *label = place.map_or(*label, |place| place as i64);
            }
            self.classes = names.to_vec();
            return Ok(false);
        }
        if known == 0 && places.len() == count {
            return Ok(!names.is_empty());
        }
        let detail = match places.iter().position(Option::is_none) {
            Some(unknown) if !names.is_empty() => {
                let more = if names.len() > SHOWN { ", …" } else { "" };
                let names = names[..names.len().min(SHOWN)].join(", ");
                format!("class `{}` is none of the network's: {names}{more}", self.classes[unknown])
            }
            _ => {
                let numbers = "labels.csv with numbers says which is which";
                format!("{} classes of pictures, and a network of {count} without names: {numbers}", places.len())
            }
        };
        Err(Error::data(&self.name, detail))
    }

    /// All images at once, for data that are small.
    ///
    /// # Errors
    /// As [`Source::images`].
    pub fn all(&mut self) -> Result<Vec<f32>> {
        self.images(0..self.len())
    }
}

/// Opens a data set, of which at most the first `limit` images will be read. What it is, its path tells:
///
/// | path | what is read |
/// |---|---|
/// | a folder with `test_batch.bin` or `data_batch_1.bin` … `data_batch_5.bin`; a file `*.bin` | CIFAR-10 in binary: the test batch where there is one, else the training batches in order. Class names from `batches.meta.txt` beside them, where that is there |
/// | a folder with `*-images-idx3-ubyte` and `*-labels-idx1-ubyte`; the images file itself | IDX (MNIST and kin), one channel, gzip or not, with or without `.gz` at the name. `t10k-*` is preferred; a folder with several others is ambiguous. The labels lie beside, under the same name |
/// | a folder with `images.npy` and `labels.npy`; a file `*.npy` | NumPy arrays in C order, of either byte order: u1, or f2, f4, f8 in [0, 1], as `[N, C, H, W]`, or `[N, H, W]` for one channel; labels are integers of any width, `[N]`. Beside `X.npy`, labels are the first that exists of `X` with its last `images` turned into `labels`, `X_labels.npy` and `labels.npy` |
/// | a file `*.safetensors` | `images` (u8, or f16, bf16, f32, f64 in [0, 1]; `[N, C, H, W]`) and `labels` (integers of any width, `[N]`); other tensors are ignored. Metadata `classes` (JSON list) names the classes |
/// | a folder of folders with `*.png`, `*.jpg`, `*.jpeg` | pictures, `class/file`: each folder is a class, in bytewise order of the names ([`Source::number_as`]: in a network's) |
/// | a folder with `*.png`, `*.jpg`, `*.jpeg` and `labels.csv` | pictures, with one row `file,label` for each in `labels.csv`, after a header row `file,label` or none. Labels are all integers, or all names of classes, which are then numbered in bytewise order |
///
/// A folder that holds several of these is refused as ambiguous; names that begin with a dot are not looked at.
///
/// Pictures are samples in bytewise order of their path (`class/file`), and all of one size ([`open_framed`] takes
/// others). They have one channel where all are grey, else three. Alpha, 16 bits, CMYK and animation are refused, and
/// so is anything else inside the folder of a class. Pixels are taken as they are stored, as PyTorch's usual loaders
/// do: no colour profile, no gamma, and no EXIF orientation is applied. JPEG leaves decoders some freedom, so that
/// others may come to other pixels, a few grey levels away.
///
/// The whole of every file is checked, also beyond the limit: sizes, counts, labels (zero or more, and below the number
/// of classes where these have names), floats (in [0, 1], not NaN); of pictures the headers, and that they have an end;
/// their pixels when they are read. [`Source::sha256`] is that of the files' bytes one after the other (images, then
/// labels, where they are apart), as `cat FILES | sha256sum` gives it; for pictures it is taken over each one's path
/// (`class/file`), a zero byte, its length (u64, little-endian) and its bytes, in order, and then the same for
/// `labels.csv`.
///
/// # Errors
/// [`Error::Data`] naming the file and the record, sample or line; [`Error::Usage`] for a limit of 0.
pub fn open(path: &Path, limit: Option<usize>) -> Result<Source> {
    open_framed(path, limit, Framing::default())
}

/// The same for a folder of pictures that need not be of one size, for `framing` brings them to one. Only then a
/// picture may be larger than an image: up to 2^26 values where it is resized. The hash is that of the files, whatever
/// the framing.
///
/// # Errors
/// As [`open`]; [`Error::Usage`] for a framing that makes no sense, or for data that are no pictures.
pub fn open_framed(path: &Path, limit: Option<usize>, framing: Framing) -> Result<Source> {
    framing.check()?;
    if limit == Some(0) {
        return Err(Error::Usage("the limit must be one or more images".into()));
    }
    let limit = limit.unwrap_or(usize::MAX);
    let place = path.display().to_string();
    let what = fs::metadata(path).map_err(|e| Error::data(&place, e.to_string()))?;
    let source = if let Some(file) = tensors::of_run(path) {
        stream::Stream::open(&file).and_then(|file| tensors::read(file, limit))
    } else if what.is_dir() {
        match kind_of_folder(path)? {
            Kind::Cifar => cifar::folder(path, limit),
            Kind::Idx => idx::folder(path, limit),
            Kind::Npy => npy::file(&path.join(npy::IMAGES), limit),
            Kind::Pictures => folder::open(path, limit, framing),
        }
    } else if idx::is_images(path) {
        idx::file(path, limit)
    } else {
        match extension(path).as_str() {
            "bin" => cifar::file(path, limit),
            "safetensors" => stream::Stream::open(path).and_then(|file| tensors::read(file, limit)),
            "npy" => npy::file(path, limit),
            extension => Err(Error::data(&place, unknown(extension))),
        }
    };
    match source? {
        Source { framing: None, .. } if !framing.is_none() => {
            Err(Error::Usage(format!("{framing}: for folders of pictures alone, and {place} is none")))
        }
        source => Ok(Source { name: place, ..source }),
    }
}

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Cifar,
    Idx,
    Npy,
    Pictures,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Cifar => "CIFAR-10 batches",
            Kind::Idx => "IDX files",
            Kind::Npy => "NumPy arrays",
            Kind::Pictures => "pictures",
        })
    }
}

fn kind_of_folder(path: &Path) -> Result<Kind> {
    let place = path.display().to_string();
    let mut kinds: Vec<Kind> = Vec::new();
    let mut labelled = false;
    for entry in folder::entries(path)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let kind = match () {
            () if cifar::BATCHES.contains(&&*name) => Kind::Cifar,
            () if idx::is_images(&entry) => Kind::Idx,
            () if name == npy::IMAGES => Kind::Npy,
            () if folder::is_picture(&entry) || folder::holds_pictures(&entry) => Kind::Pictures,
            () => {
                labelled |= name == folder::LABELS;
                continue;
            }
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    match *kinds {
        [kind] => Ok(kind),
        [one, other, ..] => {
            Err(Error::data(place, format!("ambiguous: {one} and {other} in one folder; move one of them elsewhere")))
        }
        // The reason is more helpful than a list.
        [] if labelled => Err(Error::data(place, format!("`{}`, but no PNG or JPEG beside it", folder::LABELS))),
        [] => Err(Error::data(
            place,
            "no known data set in this folder. Looked for: `test_batch.bin`, `data_batch_1.bin` (CIFAR-10); \
             `*-images-idx3-ubyte`, `*-images-idx3-ubyte.gz` (IDX); `images.npy`; PNG and JPEG pictures with `labels.csv`, \
             or in one folder a class",
        )),
    }
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

fn unknown(extension: &str) -> String {
    let hint = match extension {
        "npz" => "; save the arrays by themselves, as .npy",
        "png" | "jpg" | "jpeg" => "; pictures are read as a folder, which holds their labels too",
        "pt" | "pth" | "pkl" | "pickle" => "; pickles are programs, and not run here",
        _ => "",
    };
    format!(
        "unknown kind of data{hint}. Files read: .bin (CIFAR-10), .safetensors, .npy, *-images-idx3-ubyte[.gz]; \
         folders: of these, and of PNG or JPEG pictures"
    )
}

/// The bytes of a regular file that has no more than `most`.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let fail = |detail: String| Error::data(path.display().to_string(), detail);
    // Asked before it is opened: opening a pipe waits for whoever writes to it.
    let metadata = fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !metadata.is_file() {
        return Err(fail("cannot be read: not a regular file".into()));
    }
    if metadata.len() > most {
        return Err(fail(format!("cannot be read: {} bytes, at most {most} allowed", metadata.len())));
    }
    let mut bytes = Vec::new();
    let read = bytes.try_reserve_exact(metadata.len() as usize).map_err(std::io::Error::from);
    // A file that grows meanwhile is cut off here, and refused for what it then is.
    let read = read.and_then(|()| File::open(path)?.take(most).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|e| fail(format!("cannot be read: {e}")))
}

/// SHA-256 of byte strings, one after the other, in hexadecimal.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hexadecimal(hash)
}

/// A hash as it is written everywhere.
pub(crate) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_can_be_sent_and_gives_what_it_has() {
        fn sent<T: Send>(value: T) -> T {
            value
        }
        let mut set = sent(digits().unwrap());
        assert!(set.images(3..3).unwrap().is_empty());
        assert_eq!(set.images(448..450).unwrap().len(), 2 * 64);
        #[allow(clippy::reversed_empty_ranges, reason = "what is refused")]
        for range in [449..451, 451..451, 4..3, 0..usize::MAX] {
            let error = set.images(range).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains("embedded digits"), "{error}");
        }
        set.labels.truncate(2);
        assert_eq!((set.len(), set.all().unwrap().len()), (2, 2 * 64));
        set.labels.resize(1 << 20, 0);
        assert_eq!(set.images(1 << 19..(1 << 19) + 1).unwrap_err().exit_code(), 3);
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_what_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |path: &Path| {
            let error = open(path, None).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{error}");
            error.to_string()
        };
        let nothing = refused(folder.path());
        for what in ["test_batch.bin", "idx3-ubyte", "images.npy", "labels.csv"] {
            assert!(nothing.contains(what), "{nothing}");
        }
        for (name, hint) in [("x.npz", ".npy"), ("x.png", "folder"), ("x.pt", "pickles"), ("x", "unknown kind")] {
            fs::write(at(name), "").unwrap();
            assert!(refused(&at(name)).contains(hint), "{name}");
        }
        for name in ["x.bin", "x.npy", "x.safetensors", "x-images-idx3-ubyte", "x-images-idx3-ubyte.gz"] {
            fs::write(at(name), "").unwrap();
            fs::write(at("labels.npy"), "").unwrap();
            fs::write(at("x-labels-idx1-ubyte"), "").unwrap();
            assert!(refused(&at(name)).contains(name), "{name}");
            fs::remove_file(at(name)).unwrap();
            fs::create_dir(at(name)).unwrap();
            refused(&at(name));
            fs::remove_dir(at(name)).unwrap();
        }
        assert!(refused(&at("missing.npy")).contains("missing.npy"));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("images.npy"), "").unwrap();
        fs::write(folder.path().join("data_batch_1.bin"), "").unwrap();
        assert!(refused(folder.path()).contains("ambiguous: CIFAR-10 batches and NumPy arrays"));
    }
}
