//! Folders of pictures: a folder a class, or `labels.csv` beside them. Pictures are decoded when they are asked for.

use super::records::{check_label, pixel};
use super::{Framing, Reader, Source, extension, hexadecimal, picture, read};
use crate::error::{Error, Result};
use crate::model::Dims;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(super) const LABELS: &str = "labels.csv";

/// Largest file that is read as one picture, in bytes.
const MAX_FILE: u64 = 1 << 28;
/// Largest table of labels, and longest line in one, in bytes: a reader of tables notes the place of every field.
const MAX_TABLE: u64 = 1 << 26;
const MAX_LINE: usize = 1 << 12;

/// What lies in a folder, in bytewise order; without names that begin with a dot, which systems leave behind.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::data(path.display().to_string(), e.to_string());
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

pub(super) fn is_picture(path: &Path) -> bool {
    matches!(extension(path).as_str(), "png" | "jpg" | "jpeg") && !path.is_dir()
}

/// Whether this is a folder with pictures directly in it. One that cannot be looked into is not.
pub(super) fn holds_pictures(path: &Path) -> bool {
    path.is_dir() && entries(path).is_ok_and(|entries| entries.iter().any(|entry| is_picture(entry)))
}

pub(super) fn open(path: &Path, limit: usize, framing: Framing) -> Result<Source> {
    let place = path.display().to_string();
    let fail = |detail: String| Err(Error::data(&place, detail));
    let entries = entries(path)?;
    let beside: Vec<&PathBuf> = entries.iter().filter(|entry| is_picture(entry)).collect();
    let table = path.join(LABELS);
    let (mut hash, mut rows) = (Sha256::new(), None);
    let (mut names, labels, classes);
    if beside.is_empty() {
        if table.exists() {
            return fail(format!("ambiguous: `{LABELS}`, but the pictures lie in folders"));
        }
        let samples;
        (samples, classes) = in_classes(entries.iter().filter(|entry| entry.is_dir()))?;
        (names, labels) = samples.into_iter().unzip();
    } else {
        if let Some(folder) = entries.iter().find(|entry| holds_pictures(entry)) {
            let (picture, folder) = (name(beside[0])?, name(folder)?);
            return fail(format!("ambiguous: pictures both beside (`{picture}`) and in folders (`{folder}`)"));
        }
        if !table.exists() {
            return fail(format!(
                "`{LABELS}` is missing, which says what the pictures are; or make a folder for each class"
            ));
        }
        names = beside.iter().map(|file| name(file).map(String::from)).collect::<Result<Vec<_>>>()?;
        let bytes = read(&table, MAX_TABLE)?;
        (labels, classes) = labelled(&table.display().to_string(), &bytes, &names)?;
        rows = Some(bytes);
    }

    let dims = survey(path, &names, framing, &mut hash)?;
    if let Some(rows) = rows {
        add(&mut hash, LABELS, &rows);
    }
    let mut labels: Vec<i64> = labels;
    labels.truncate(limit);
    names.truncate(limit);
    let reader = Box::new(Pictures { folder: path.to_path_buf(), names, dims, framing });
    Ok(Source { dims, labels, classes, name: place, sha256: hexadecimal(hash), framing: Some(framing), reader })
}

/// Name of a file or folder, which ends up in messages and hashes.
fn name(path: &Path) -> Result<&str> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if !name.chars().any(char::is_control) => Ok(name),
        _ => Err(Error::data(format!("{path:?}"), "its name is not UTF-8, or holds a control character")),
    }
}

type Samples = Vec<(String, i64)>;

/// Paths (`class/file`) and labels of the pictures, in bytewise order of path, and the classes.
fn in_classes<'a>(folders: impl Iterator<Item = &'a PathBuf>) -> Result<(Samples, Vec<String>)> {
    let (mut samples, mut classes) = (Vec::new(), Vec::new());
    for folder in folders {
        let class = name(folder)?;
        let files = entries(folder)?;
        if files.is_empty() {
            return Err(Error::data(folder.display().to_string(), "a class without pictures"));
        }
        for file in files {
            let name = name(&file)?;
            if !is_picture(&file) {
                let detail = "neither a PNG nor a JPEG; a class holds nothing else, and no folders";
                return Err(Error::data(file.display().to_string(), detail));
            }
            samples.push((format!("{class}/{name}"), classes.len() as i64));
        }
        classes.push(class.to_string());
    }
    // Classes are in order, yet paths need not be: `a-b` comes after `a`, but `a-b/` before `a/`.
    samples.sort();
    Ok((samples, classes))
}

/// Labels of the files `names`, in that order, and the names of the classes, from the rows of a table.
fn labelled(place: &str, bytes: &[u8], names: &[String]) -> Result<(Vec<i64>, Vec<String>)> {
    let known: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut rows: BTreeMap<String, (String, u64)> = BTreeMap::new();
    if let Some(line) = bytes.split(|b| *b == b'\n').position(|line| line.len() > MAX_LINE) {
        let detail = format!("longer than {MAX_LINE} bytes");
        return Err(Error::data(format!("{place}: line {}", line + 1), detail));
    }
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(bytes);
    for (i, row) in reader.records().enumerate() {
        let row = row.map_err(|e| Error::data(place, e.to_string()))?;
        let line = row.position().map_or(0, csv::Position::line);
        let fail = |detail: String| Err(Error::data(format!("{place}: line {line}"), detail));
        let (file, label) = match row.iter().collect::<Vec<_>>()[..] {
            ["file", "label"] if i == 0 => continue,
            [file, label] => (file, label),
            _ => return fail(format!("{} fields; `file,label` is expected", row.len())),
        };
        if !known.contains(file) {
            return fail(format!("there is no picture {file:?} beside this file"));
        }
        if label.is_empty() || label.chars().any(char::is_control) {
            return fail(format!("{label:?} is no label"));
        }
        if rows.insert(file.to_string(), (label.to_string(), line)).is_some() {
            return fail(format!("`{file}` is labelled twice"));
        }
    }
    if let Some(name) = names.iter().find(|name| !rows.contains_key(*name)) {
        let detail = format!("{} rows for {} pictures; `{name}` has none", rows.len(), names.len());
        return Err(Error::data(place, detail));
    }

    let integer = |label: &str| label.parse::<i64>().ok();
    let numbers = rows.values().filter(|(label, _)| integer(label).is_some()).count();
    if numbers == rows.len() {
        let mut labels = Vec::new();
        for (label, line) in rows.values() {
            let label = integer(label).unwrap_or(-1);
            check_label(&format!("{place}: line {line}"), labels.len(), label, 0)?;
            labels.push(label);
        }
        return Ok((labels, Vec::new()));
    }
    // The few among the many are the mistake.
    let mistake = |(label, _): &&(String, u64)| integer(label).is_some() == (2 * numbers < rows.len());
    if let Some((label, line)) = rows.values().find(mistake).filter(|_| numbers > 0) {
        let detail = format!("`{label}`: labels are all integers, or all names of classes");
        return Err(Error::data(format!("{place}: line {line}"), detail));
    }
    let classes: BTreeSet<&str> = rows.values().map(|(label, _)| label.as_str()).collect();
    let classes: Vec<&str> = classes.into_iter().collect();
    let labels = rows.values().map(|(label, _)| classes.partition_point(|class| *class < label.as_str()) as i64);
    Ok((labels.collect(), classes.into_iter().map(String::from).collect()))
}

/// Reads every file, hashes it and looks at its header; gives the shape that all agree on once they are framed.
fn survey(folder: &Path, names: &[String], framing: Framing, hash: &mut Sha256) -> Result<Dims> {
    let mut first: Option<(&str, Dims)> = None;
    for name in names {
        let path = folder.join(name);
        let fail = |detail: String| Error::data(path.display().to_string(), detail);
        let bytes = read(&path, MAX_FILE)?;
        add(hash, name, &bytes);
        let dims = picture::header(&bytes, framing.most()).and_then(|dims| framing.output(dims)).map_err(fail)?;
        let (one, all) = first.get_or_insert((name, dims));
        if (dims.h, dims.w) != (all.h, all.w) {
            let way_out = match (framing.resize, framing.crop) {
                (None, None) => {
                    "--resize and --crop bring pictures to one size, such as --resize 256 --crop 224".into()
                }
                _ => format!("{framing} leaves them so; --crop cuts out squares"),
            };
            let detail = format!("{}×{} pixels, but `{one}` has {}×{}; {way_out}", dims.w, dims.h, all.w, all.h);
            return Err(fail(detail));
        }
        // Grey among colours is grey in three channels.
        all.c = all.c.max(dims.c);
    }
    first.map(|(_, dims)| dims).ok_or_else(|| Error::data(folder.display().to_string(), "no pictures"))
}

/// Hashes a file so that no other name, length or content gives the same.
fn add(hash: &mut Sha256, name: &str, bytes: &[u8]) {
    hash.update(name);
    hash.update([0]);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[derive(Debug)]
struct Pictures {
    folder: PathBuf,
    /// Paths inside the folder.
    names: Vec<String>,
    /// Of every one, framed.
    dims: Dims,
    framing: Framing,
}

impl Reader for Pictures {
    fn read(&mut self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        for name in self.names.get(range).unwrap_or_default() {
            let path = self.folder.join(name);
            let fail = |detail: String| Error::data(path.display().to_string(), detail);
            let decoded = picture::decode(&read(&path, MAX_FILE)?, self.framing.most());
            let (dims, pixels) = decoded.and_then(|(dims, pixels)| self.framing.apply(dims, pixels)).map_err(fail)?;
            if dims != (Dims { c: dims.c, ..self.dims }) || dims.c > self.dims.c {
                return Err(fail(format!("{dims}, and not what it was when it was opened")));
            }
            for channel in 0..self.dims.c {
                out.extend(pixels.iter().skip(channel.min(dims.c - 1)).step_by(dims.c).map(|byte| pixel(*byte)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use image::{GrayImage, ImageFormat, RgbImage};

    fn grey(path: &Path, value: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_pixel(2, 1, image::Luma([value])).save_with_format(path, ImageFormat::Png).unwrap();
    }

    fn colour(path: &Path, rgb: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(2, 1, image::Rgb(rgb)).save_with_format(path, ImageFormat::Png).unwrap();
    }

    fn refused(path: &Path) -> String {
        let error = open(path, None).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    #[test]
    fn a_folder_is_a_class_and_paths_are_in_bytewise_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("b/2.PNG", 4), ("b/10.png", 3), ("a/x.png", 2), ("a-b/y.png", 1)] {
            grey(&at(name), value);
        }
        fs::write(at("a/.DS_Store"), "x").unwrap();
        fs::write(at("README.txt"), "x").unwrap();
        fs::create_dir(at(".git")).unwrap();
        let mut set = open(folder.path(), None).unwrap();
        assert_eq!((set.dims, set.classes.join(" ")), (Dims::new(1, 1, 2), "a a-b b".into()));
        assert_eq!(set.labels, [1, 0, 2, 2]);
        let bytes = |images: Vec<f32>| images.iter().step_by(2).map(|v| (v * 255.0) as u8).collect::<Vec<_>>();
        assert_eq!(bytes(set.all().unwrap()), [1, 2, 3, 4]);
        assert_eq!(bytes(set.images(2..4).unwrap()), [3, 4]);
        assert_eq!(bytes(set.images(0..1).unwrap()), [1]);
        let mut two = open(folder.path(), Some(2)).unwrap();
        assert_eq!((bytes(two.all().unwrap()), &two.sha256), (vec![1, 2], &set.sha256));

        fs::rename(at("b/2.PNG"), at("b/3.png")).unwrap();
        let renamed = open(folder.path(), None).unwrap();
        assert_eq!(renamed.labels, set.labels);
        assert_ne!(renamed.sha256, set.sha256);
        // One colour among greys: three channels for all.
        colour(&at("b/2.PNG"), [10, 20, 30]);
        let mut set = open(folder.path(), None).unwrap();
        assert_eq!(set.dims, Dims::new(3, 1, 2));
        assert_eq!(set.images(0..1).unwrap(), [1.0 / 255.0; 6]);
        let want: Vec<f32> = [10, 10, 20, 20, 30, 30_u8].map(|b| f32::from(b) / 255.0).to_vec();
        assert_eq!(set.images(3..4).unwrap(), want);
    }

    #[test]
    fn classes_are_numbered_as_a_network_numbers_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("cat/1.png", 1), ("dog/1.png", 2), ("dog/2.png", 3)] {
            grey(&at(name), value);
        }
        let numbered = |names: &[&str], count: usize| {
            let mut set = open(folder.path(), None).unwrap();
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            set.number_as(&names, count).map(|in_order| (set.labels, set.classes.join(" "), in_order))
        };
        let said = |names: &[&str], count: usize| numbered(names, count).unwrap_err().to_string();
        let by_name = numbered(&["dog", "bird", "cat"], 3).unwrap();
        assert_eq!(by_name, (vec![2, 0, 0], "dog bird cat".into(), false));
        assert_eq!(numbered(&[], 2).unwrap(), (vec![0, 1, 1], "cat dog".into(), false));
        assert_eq!(numbered(&["n01", "n02"], 2).unwrap(), (vec![0, 1, 1], "cat dog".into(), true));
        assert!(said(&[], 3).contains("2 classes of pictures, and a network of 3 without names"));
        assert!(said(&["bird", "cat"], 2).contains("class `dog` is none of the network's: bird, cat"));
        assert!(said(&["a", "b", "c"], 3).contains("class `cat` is none of the network's: a, b, c"));
        // Names in a table are numbered like folders; numbers are left as they are.
        for name in ["cat/1.png", "dog/1.png"] {
            fs::rename(at(name), at(&name.replace('/', "-"))).unwrap();
        }
        ["cat", "dog"].iter().for_each(|name| fs::remove_dir_all(at(name)).unwrap());
        let table = |text: &str| fs::write(at(LABELS), text).unwrap();
        table("cat-1.png,cat\ndog-1.png,dog\n");
        assert_eq!(numbered(&["dog", "bird", "cat"], 3).unwrap().0, [2, 0]);
        table("cat-1.png,1\ndog-1.png,0\n");
        assert_eq!(numbered(&["dog", "bird", "cat"], 3).unwrap(), (vec![1, 0], String::new(), false));
    }

    #[test]
    fn a_table_labels_by_number_or_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("b.png", 2), ("a, 1.png", 1), ("c.png", 3)] {
            grey(&at(name), value);
        }
        let table = |text: &str| fs::write(at(LABELS), text).unwrap();
        let read = || open(folder.path(), None).unwrap();
        table("file,label\nc.png,7\n\"a, 1.png\",0\r\nb.png, 300\n");
        let (by_number, hash) = (read(), read().sha256);
        assert_eq!((by_number.labels.as_slice(), by_number.classes.len()), ([0, 300, 7].as_slice(), 0));
        assert_eq!(read().all().unwrap(), [1, 1, 2, 2, 3, 3_u8].map(|b| f32::from(b) / 255.0));
        // With the mark that spreadsheets put in front.
        table("\u{feff}c.png,zebra\n\"a, 1.png\",Ant\nb.png,Ant");
        let by_name = read();
        assert_eq!((by_name.labels.as_slice(), by_name.classes.join(" ")), ([0, 0, 1].as_slice(), "Ant zebra".into()));
        assert_ne!(by_name.sha256, hash);

        let bad = |text: &str| {
            table(text);
            refused(folder.path())
        };
        assert!(bad("").contains("0 rows for 3 pictures; `a, 1.png`"));
        assert!(bad("c.png,1\nb.png,1\n").contains("2 rows for 3 pictures"));
        assert!(bad("c.png,1\nb.png,1\nd.png,1").contains("line 3: there is no picture \"d.png\""));
        assert!(bad("c.png,1\nc.png,1").contains("line 2: `c.png` is labelled twice"));
        assert!(bad("c.png,1,2").contains("line 1: 3 fields"));
        assert!(bad("c.png").contains("line 1: 1 fields"));
        assert!(bad("c.png,").contains("is no label"));
        assert!(bad("c.png,\"a\u{1b}[2J\"").contains("is no label"));
        assert!(bad("c.png,1\nfile,label").contains("line 2"));
        assert!(bad("\"a, 1.png\",1\nb.png,-1\nc.png,2").contains("line 2: sample 1: label -1"));
        assert!(bad("\"a, 1.png\",1\nb.png,l0\nc.png,2").contains("line 2: `l0`"));
        assert!(bad("\"a, 1.png\",cat\nb.png,dog\nc.png,2").contains("line 3: `2`"));
        fs::write(at(LABELS), [b'c', 255]).unwrap();
        assert!(refused(folder.path()).contains("UTF-8"), "{}", refused(folder.path()));
        fs::remove_file(at(LABELS)).unwrap();
        assert!(refused(folder.path()).contains("`labels.csv` is missing"));
        table("a.png,1");
        for name in ["a, 1.png", "b.png", "c.png"] {
            fs::remove_file(at(name)).unwrap();
        }
        assert!(refused(folder.path()).contains("no PNG or JPEG beside it"));
    }

    #[test]
    fn pictures_that_do_not_belong_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        grey(&at("a/1.png"), 0);
        grey(&at("b/2.png"), 0);
        // Removes what it has put there.
        let with = |name: &str, write: &dyn Fn(&Path)| {
            write(&at(name));
            let message = refused(folder.path());
            let _ = fs::remove_file(at(name)).or_else(|_| fs::remove_dir_all(at(name)));
            assert!(open(folder.path(), None).is_ok(), "{name}");
            message
        };
        let save = |w, h| move |path: &Path| GrayImage::new(w, h).save_with_format(path, ImageFormat::Png).unwrap();
        let size = with("b/3.png", &save(1, 2));
        assert!(size.contains("3.png: 1×2 pixels, but `a/1.png` has 2×1"), "{size}");
        assert!(with("b/empty.png", &|path| fs::write(path, "").unwrap()).contains("empty.png: empty file"));
        assert!(with("b/no.jpg", &|path| fs::write(path, "GIF89a").unwrap()).contains("neither PNG nor JPEG"));
        assert!(with("b/notes.txt", &|path| fs::write(path, "").unwrap()).contains("notes.txt"));
        assert!(with("b/deep", &|path| fs::create_dir(path).unwrap()).contains("no folders"));
        assert!(with("c", &|path| fs::create_dir(path).unwrap()).contains("a class without pictures"));
        assert!(with("x.png", &save(2, 1)).contains("ambiguous: pictures both beside (`x.png`) and in folders (`a`)"));
        assert!(with(LABELS, &|path| fs::write(path, "").unwrap()).contains("ambiguous: `labels.csv`"));
        let ambiguous = with("images.npy", &|path| fs::write(path, "").unwrap());
        assert!(ambiguous.contains("ambiguous: pictures and NumPy arrays"), "{ambiguous}");
        assert!(with("a\u{7}", &|path| fs::create_dir(path).unwrap()).contains("control character"));
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_and_links_in_a_circle_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        grey(&at("a/1.png"), 9);
        std::os::unix::fs::symlink(at("a"), at("b")).unwrap();
        assert_eq!(open(folder.path(), None).unwrap().classes, ["a", "b"], "links are followed");
        fs::remove_file(at("b")).unwrap();
        std::os::unix::fs::symlink(at("a/loop.png"), at("a/loop.png")).unwrap();
        assert!(refused(folder.path()).contains("loop.png"));
        fs::remove_file(at("a/loop.png")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("a/up")).unwrap();
        assert!(refused(folder.path()).contains("no folders"));
        fs::remove_file(at("a/up")).unwrap();
        std::os::unix::fs::symlink(at("circle"), at("circle")).unwrap();
        assert_eq!(open(&at("circle"), None).unwrap_err().exit_code(), 3);
        fs::remove_file(at("circle")).unwrap();
        let odd = at("a").join(std::ffi::OsStr::from_bytes(b"\xff.png"));
        grey(&odd, 9);
        assert!(refused(folder.path()).contains("not UTF-8"));
    }

    #[test]
    fn a_picture_that_changes_after_it_was_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/1.png");
        grey(&path, 9);
        let mut set = open(folder.path(), None).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
        assert!(set.all().unwrap_err().to_string().contains("broken PNG"));
        colour(&path, [1, 2, 3]);
        assert!(set.all().unwrap_err().to_string().contains("not what it was"));
        fs::remove_file(&path).unwrap();
        assert_eq!(set.all().unwrap_err().exit_code(), 3);
    }
}
