//! NumPy arrays, one a file: `images.npy` and `labels.npy`. The header is a Python dictionary of three known keys, so
//! it is read here, strictly: crates that read it bring a grammar of Python literals with them.

use super::records::{Layout, Records, Values, labels};
use super::stream::{Stream, Survey};
use super::{Source, hexadecimal};
use crate::error::{Error, Result};
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The file that a folder of arrays holds.
pub(super) const IMAGES: &str = "images.npy";
const LABELS: &str = "labels.npy";

/// Longest dictionary that is read, in bytes: 150 are common, NumPy itself reads 10,000.
const MAX_HEADER: usize = 10_000;

pub(super) fn file(path: &Path, limit: usize) -> Result<Source> {
    let candidates = labels_of(path);
    let Some(beside) = candidates.iter().find(|path| path.exists()) else {
        let names: Vec<_> = candidates.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let detail = format!("its labels are missing: looked for beside it are {}", names.join(", "));
        return Err(Error::data(path.display().to_string(), detail));
    };

    let mut hash = Sha256::new();
    let mut stream = Stream::open(path)?;
    let place = stream.place.clone();
    let layout = stream.survey(&mut hash, |survey| {
        let header = header(&place, survey)?;
        let fail = |detail| Error::data(&place, detail);
        let shape = images_shape(&header.shape).map_err(fail)?;
        let layout = Layout::new(header.length, shape, 0, header.values).map_err(fail)?;
        layout.survey(&place, survey, |_, _| Ok(()))?;
        Ok(layout)
    })?;
    let mut file = Stream::open(beside)?;
    let labels_place = file.place.clone();
    let labels = file.survey(&mut hash, |survey| {
        let header = header(&labels_place, survey)?;
        if header.shape != [layout.count as u64] {
            let detail = format!("shape {:?}, but {place} holds {} images", header.shape, layout.count);
            return Err(Error::data(&labels_place, detail));
        }
        labels(&labels_place, survey, header.values, layout.count, limit, 0)
    })?;
    Ok(Source {
        dims: layout.dims,
        labels,
        classes: Vec::new(),
        name: place.clone(),
        sha256: hexadecimal(hash),
        framing: None,
        reader: Box::new(Records { place, stream, layout }),
    })
}

/// Where the labels of an array may lie, best first.
fn labels_of(images: &Path) -> Vec<PathBuf> {
    let name = images.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let mut names = vec![format!("{name}_labels.npy"), LABELS.into()];
    if let Some(at) = name.rfind("images") {
        names.insert(0, format!("{}labels{}.npy", &name[..at], &name[at + "images".len()..]));
    }
    names.into_iter().map(|name| images.with_file_name(name)).collect()
}

/// [N, C, H, W] as it is; three axes are images of one channel. Channels that come last are told from their number.
fn images_shape(shape: &[u64]) -> std::result::Result<[u64; 4], String> {
    match *shape {
        [n, h, w] => Ok([n, 1, h, w]),
        [_, c, _, 1 | 3] if !matches!(c, 1 | 3) => {
            Err(format!("shape {shape:?} looks like [N, H, W, C]; save x.transpose(0, 3, 1, 2).copy()"))
        }
        [n, c, h, w] => Ok([n, c, h, w]),
        _ => Err(format!("shape {shape:?}, but [N, C, H, W] or [N, H, W] is expected")),
    }
}

#[derive(Debug)]
struct Header {
    values: Values,
    shape: Vec<u64>,
    /// Bytes before the values.
    length: u64,
}

fn header(place: &str, survey: &mut Survey<'_>) -> Result<Header> {
    let fail = |detail: String| Error::data(place, detail);
    if survey.header::<6>()? != *b"\x93NUMPY" {
        return Err(fail("not an .npy file".into()));
    }
    let [major, minor] = survey.header::<2>()?;
    let (length, before) = match (major, minor) {
        (1, 0) => (usize::from(u16::from_le_bytes(survey.header()?)), 10),
        (2 | 3, 0) => (u32::from_le_bytes(survey.header()?) as usize, 12),
        _ => return Err(fail(format!("version {major}.{minor} of the format; 1.0, 2.0 and 3.0 are read"))),
    };
    if length > MAX_HEADER {
        return Err(fail(format!("a header of {length} bytes; at most {MAX_HEADER} are read")));
    }
    let mut text = Vec::new();
    survey.next(length, &mut text)?;
    if text.len() < length {
        return Err(fail("truncated in its header".into()));
    }
    let (values, shape) = Literal { rest: &text }.dictionary().map_err(|detail| fail(format!("header: {detail}")))?;
    Ok(Header { values, shape, length: before + length as u64 })
}

/// What of Python's literals a header is made of.
struct Literal<'a> {
    rest: &'a [u8],
}

type Parsed<T> = std::result::Result<T, String>;

impl<'a> Literal<'a> {
    fn dictionary(mut self) -> Parsed<(Values, Vec<u64>)> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.accept(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let again = match key {
                b"descr" => descr.replace(self.values()?).is_some(),
                b"fortran_order" => fortran.replace(self.boolean()?).is_some(),
                b"shape" => shape.replace(self.tuple()?).is_some(),
                _ => return Err(format!("unknown key `{}`", key.escape_ascii())),
            };
            if again {
                return Err(format!("`{}` occurs twice", key.escape_ascii()));
            }
            if !self.accept(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        if self.peek().is_some() {
            return Err("something follows the dictionary".into());
        }
        match (descr, fortran, shape) {
            (Some(_), Some(true), Some(_)) => {
                Err("the values are in Fortran order; save numpy.ascontiguousarray(x)".into())
            }
            (Some(values), Some(false), Some(shape)) => Ok((values, shape)),
            _ => Err("`descr`, `fortran_order` and `shape` are expected".into()),
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.rest = &self.rest[usize::from(found)..];
        found
    }

    fn expect(&mut self, byte: u8) -> Parsed<()> {
        if self.accept(byte) {
            return Ok(());
        }
        let found = self.peek().map_or("its end".into(), |byte| format!("`{}`", byte.escape_ascii()));
        Err(format!("`{}` is expected, and {found} found", char::from(byte)))
    }

    fn string(&mut self) -> Parsed<&'a [u8]> {
        let quote = if self.peek() == Some(b'"') { b'"' } else { b'\'' };
        self.expect(quote)?;
        let end = self.rest.iter().position(|byte| *byte == quote).ok_or("a string without an end")?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(text)
    }

    fn boolean(&mut self) -> Parsed<bool> {
        self.peek();
        for (text, value) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("True or False is expected for `fortran_order`".into())
    }

    fn tuple(&mut self) -> Parsed<Vec<u64>> {
        let mut sides = Vec::new();
        self.expect(b'(')?;
        while !self.accept(b')') {
            self.peek();
            let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = self.rest.split_at(digits);
            let side = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
            sides.push(side.ok_or("`shape` is no tuple of sizes")?);
            self.rest = rest;
            if !self.accept(b',') {
                // (3) is a number, not a tuple.
                if sides.len() == 1 {
                    return Err("`shape` is no tuple of sizes".into());
                }
                self.expect(b')')?;
                break;
            }
        }
        Ok(sides)
    }

    fn values(&mut self) -> Parsed<Values> {
        if self.peek() == Some(b'[') {
            return Err("structured values; plain numbers are read".into());
        }
        let text = self.string()?;
        let (order, code) = text.split_at(text.len().min(1));
        let dtype = match code {
            b"u1" => Dtype::U8,
            b"u2" => Dtype::U16,
            b"u4" => Dtype::U32,
            b"u8" => Dtype::U64,
            b"i1" => Dtype::I8,
            b"i2" => Dtype::I16,
            b"i4" => Dtype::I32,
            b"i8" => Dtype::I64,
            b"f2" => Dtype::F16,
            b"f4" => Dtype::F32,
            b"f8" => Dtype::F64,
            _ => return Err(format!("values of type `{}`; integers and floats are read", text.escape_ascii())),
        };
        match (order, code.ends_with(b"1")) {
            (b"<", _) | (b"|", true) => Ok(Values { dtype, big_endian: false }),
            (b">", _) => Ok(Values { dtype, big_endian: true }),
            _ => Err(format!("values of type `{}`, without an order of bytes", text.escape_ascii())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::model::Dims;
    use std::fs;

    fn npy(major: u8, dictionary: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = [&b"\x93NUMPY"[..], &[major, 0]].concat();
        match major {
            1 => bytes.extend((dictionary.len() as u16).to_le_bytes()),
            _ => bytes.extend((dictionary.len() as u32).to_le_bytes()),
        }
        [&bytes, dictionary.as_bytes(), data].concat()
    }

    fn array(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        npy(1, &format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}      \n"), data)
    }

    fn read(images: &[u8], labels: &[u8]) -> Result<(Source, Vec<f32>)> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("images.npy"), images).unwrap();
        fs::write(folder.path().join("labels.npy"), labels).unwrap();
        let mut set = open(folder.path(), None)?;
        let all = set.all()?;
        let one = set.dims.len();
        for i in (0..set.len()).rev() {
            assert_eq!(set.images(i..i + 1)?, all[i * one..(i + 1) * one]);
        }
        Ok((set, all))
    }

    fn refused(images: &[u8], labels: &[u8]) -> String {
        let error = read(images, labels).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    fn labels_file() -> Vec<u8> {
        array("<i8", "(2,)", &[3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    }

    #[test]
    fn bytes_and_floats_of_either_order_are_read() {
        let (set, all) = read(&array("|u1", "(2, 1, 1, 2)", &[0, 255, 51, 17]), &labels_file()).unwrap();
        assert_eq!((set.labels.as_slice(), set.dims), ([3, 1].as_slice(), Dims::new(1, 1, 2)));
        assert_eq!(all, [0.0, 1.0, 51.0 / 255.0, 17.0 / 255.0]);

        let values = [0.25_f32, 1.0, 0.0, 0.1];
        let little: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let big: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
        let wide: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_be_bytes()).collect();
        for (descr, data) in [("<f4", &little), (">f4", &big), (">f8", &wide)] {
            assert_eq!(read(&array(descr, "(2, 2, 1)", data), &labels_file()).unwrap().1, values, "{descr}");
        }
        let half = array("<f2", "(2, 1, 1, 1)", &[0, 0x3c, 0, 0x38]);
        assert_eq!(read(&half, &array(">u2", "(2,)", &[0, 9, 0, 8])).unwrap().1, [1.0, 0.5]);
        let (set, _) = read(&half, &array(">u2", "(2,)", &[0, 9, 1, 0])).unwrap();
        assert_eq!(set.labels, [9, 256]);

        for major in [2, 3] {
            let images = npy(major, r#"{"shape":(2,1,1,1),"fortran_order":False,"descr":"|u1"}"#, &[0, 255]);
            assert_eq!(read(&images, &labels_file()).unwrap().1, [0.0, 1.0]);
        }
    }

    #[test]
    fn labels_are_found_beside_by_name() {
        let names = |path: &str| labels_of(Path::new(path)).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(names("images.npy"), ["labels.npy", "images_labels.npy", "labels.npy"]);
        assert_eq!(names("test_images_1.npy")[0], "test_labels_1.npy");
        assert_eq!(names("x.npy"), ["x_labels.npy", "labels.npy"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        fs::write(&path, array("|u1", "(2, 1, 1, 1)", &[0, 255])).unwrap();
        let message = open(&path, None).unwrap_err().to_string();
        assert!(message.contains("x_labels.npy, labels.npy"), "{message}");
        fs::write(folder.path().join("labels.npy"), array("|u1", "(2,)", &[7, 8])).unwrap();
        assert_eq!(open(&path, None).unwrap().labels, [7, 8]);
        fs::write(folder.path().join("x_labels.npy"), array("|u1", "(2,)", &[5, 6])).unwrap();
        assert_eq!(open(&path, Some(1)).unwrap().labels, [5]);
    }

    #[test]
    fn bad_arrays_are_refused_by_name() {
        let (images, labels) = (array("|u1", "(2, 1, 1, 1)", &[0, 255]), labels_file());
        let bad_images = |bytes: &[u8]| refused(bytes, &labels);
        let shaped = |shape: &str| bad_images(&array("|u1", shape, &[0, 255]));
        assert!(shaped("(2, 4, 4, 3)").contains("[N, H, W, C]"));
        for shape in ["(2,)", "(2, 1)", "(2, 1, 1, 1, 1)", "()"] {
            assert!(shaped(shape).contains("is expected"), "{shape}");
        }
        for shape in ["(2)", "2", "[2, 1, 1]", "(-2, 1, 1)", "(2L, 1, 1)", "(2 1 1)", "(99999999999999999999, 1, 1)"] {
            assert!(shaped(shape).contains("header: "), "{shape}: {}", shaped(shape));
        }
        assert!(shaped("(16777216, 1, 1)").contains("sample 2 is cut off"));
        assert!(shaped("(1099511627776, 1, 1)").contains("at most 16777216"));
        assert!(shaped("(0, 1, 1)").contains("empty"));
        assert!(shaped("(1, 1, 1)").contains("longer"));
        for descr in ["|O", "<c8", "|b1", "<U3", "", "u1", "=f4", "|f4", "<f16"] {
            assert!(bad_images(&array(descr, "(2, 1, 1)", &[0; 8])).contains("values of type"), "{descr}");
        }
        assert!(bad_images(&array("<i2", "(2, 1, 1)", &[0; 4])).contains("I16 values"));
        assert!(
            bad_images(&npy(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", &[]))
                .contains("structured")
        );
        let fortran = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 1, 1)}";
        assert!(bad_images(&npy(1, fortran, &[0, 1])).contains("ascontiguousarray"));
        for text in [
            "",
            "{}",
            "{'descr': '|u1'}",
            "{'descr': '|u1', 'descr': '|u1'}",
            "{'x': 1}",
            "{'descr",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 1)} 1",
        ] {
            assert!(bad_images(&npy(1, text, &[0, 1])).contains("header: "), "{text}");
        }
        assert!(bad_images(&npy(4, "{}", &[])).contains("version 4.0"));
        assert!(bad_images(&[&b"\x93NUMPY\x02\0"[..], &[255; 4]].concat()).contains("at most"));
        let nan: Vec<u8> = [0.5, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(bad_images(&array("<f4", "(2, 1, 1)", &nan)).contains("images.npy: sample 1: value NaN"));

        let bad_labels = |bytes: &[u8]| refused(&images, bytes);
        assert!(bad_labels(&array("|i1", "(2,)", &[0, 255])).contains("labels.npy: sample 1: label -1"));
        assert!(bad_labels(&array("|i1", "(3,)", &[0; 3])).contains("holds 2 images"));
        assert!(bad_labels(&array("|i1", "(2, 1)", &[0; 2])).contains("shape [2, 1]"));
        assert!(bad_labels(&array("<f4", "(2,)", &[0; 8])).contains("only integers"));
    }

    #[test]
    fn files_cut_anywhere_are_refused() {
        let (images, labels) = (array("|u1", "(2, 1, 1, 1)", &[0, 255]), labels_file());
        assert!(read(&images, &labels).is_ok());
        for end in 0..images.len() {
            assert!(refused(&images[..end], &labels).contains("images.npy"), "cut at {end}");
        }
        for end in 0..labels.len() {
            assert!(refused(&images, &labels[..end]).contains("labels.npy"), "cut at {end}");
        }
    }
}
