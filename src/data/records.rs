//! Samples of one size, one after another in one file, and how their values become pixels and labels. Several formats
//! are this, behind different headers.

use super::Reader;
use super::stream::{Stream, Survey};
use crate::error::{Error, Result};
use crate::model::Dims;
use crate::weights;
use safetensors::tensor::{Dtype, TensorView};
use std::ops::Range;

/// About as many bytes are read at once.
const BLOCK: usize = 1 << 20;
/// Most values of one image: 65,535 workgroups of 64 invocations step no more. Sizes of records stay small integers,
/// and a file of a few bytes that promises or unpacks to more costs no more memory than such an image does.
pub(super) const MAX_VALUES: u64 = 1 << 22;
/// Most samples of a set: labels take 8 bytes each, however few a compressed file takes.
const MAX_SAMPLES: u64 = 1 << 24;

/// What values are stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Values {
    pub dtype: Dtype,
    pub big_endian: bool,
}

impl Values {
    pub(super) const BYTES: Values = Values { dtype: Dtype::U8, big_endian: false };

    fn size(self) -> usize {
        self.dtype.bitsize() / 8
    }

    fn little_endian(self, bytes: &mut [u8]) {
        if self.big_endian {
            bytes.chunks_exact_mut(self.size().max(1)).for_each(<[u8]>::reverse);
        }
    }

    fn can_be_pixels(self) -> bool {
        matches!(self.dtype, Dtype::U8 | Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Bytes are exactly `k as f32 / 255.0`, floats are kept as they are; nothing for any other type.
    fn pixels(self, bytes: &mut [u8]) -> Vec<f32> {
        if self.dtype == Dtype::U8 {
            return bytes.iter().map(|byte| pixel(*byte)).collect();
        }
        self.little_endian(bytes);
        let shape = vec![bytes.len() / self.size().max(1)];
        TensorView::new(self.dtype, shape, bytes).ok().and_then(|view| weights::decode(&view)).unwrap_or_default()
    }

    /// Integers of any width. What does not fit into i64 becomes negative, and is refused as such.
    fn integers(self, bytes: &mut [u8]) -> Option<Vec<i64>> {
        self.little_endian(bytes);
        Some(match self.dtype {
            Dtype::U8 => bytes.iter().map(|b| i64::from(*b)).collect(),
            Dtype::I8 => bytes.iter().map(|b| i64::from(b.cast_signed())).collect(),
            Dtype::U16 => bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))).collect(),
            Dtype::I16 => bytes.as_chunks().0.iter().map(|b| i64::from(i16::from_le_bytes(*b))).collect(),
            Dtype::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::U64 => {
                let integers = bytes.as_chunks().0.iter().map(|b| i64::try_from(u64::from_le_bytes(*b)));
                integers.map(|label| label.unwrap_or(-1)).collect()
            }
            _ => return None,
        })
    }
}

/// The value that is delivered for a byte.
pub(super) fn pixel(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}

/// Shape of one image, none of its sides zero, their product no more than `most`.
pub(super) fn image_dims(c: u64, h: u64, w: u64, most: u64) -> std::result::Result<Dims, String> {
    let values = c.checked_mul(h).and_then(|n| n.checked_mul(w));
    match (values, usize::try_from(c), usize::try_from(h), usize::try_from(w)) {
        (Some(0), ..) => Err(format!("empty: images of {c}×{h}×{w}")),
        (Some(n), Ok(c), Ok(h), Ok(w)) if n <= most => Ok(Dims::new(c, h, w)),
        _ => Err(format!("images of {c}×{h}×{w}; at most {most} values are read")),
    }
}

/// Where samples lie in a file: from `start` one record after another, each `lead` bytes of something else and then its
/// pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub start: u64,
    pub count: usize,
    pub dims: Dims,
    lead: usize,
    values: Values,
}

impl Layout {
    /// `shape` is [N, C, H, W], as a header claims it. Then no product of these sizes overflows.
    pub(super) fn new(start: u64, shape: [u64; 4], lead: usize, values: Values) -> std::result::Result<Self, String> {
        let [n, c, h, w] = shape;
        if !values.can_be_pixels() {
            return Err(format!("{} values; u8 and floats are supported", values.dtype));
        }
        if n == 0 {
            return Err(format!("empty: shape {shape:?}"));
        }
        if n > MAX_SAMPLES {
            return Err(format!("{n} images; at most {MAX_SAMPLES} are read"));
        }
        let dims = image_dims(c, h, w, MAX_VALUES)?;
        let record = lead + dims.len() * values.size();
        match (usize::try_from(n), n.checked_mul(record as u64).and_then(|size| size.checked_add(start))) {
            (Ok(count), Some(_)) => Ok(Layout { start, count, dims, lead, values }),
            _ => Err(format!("{n} images of {dims}: more than a file holds")),
        }
    }

    fn record(&self) -> usize {
        self.lead + self.dims.len() * self.values.size()
    }

    /// Records that are read at once.
    fn block(&self) -> usize {
        (BLOCK / self.record()).max(1)
    }

    /// Reads all records and checks them; gives the lead of each to `each`.
    pub(super) fn survey(
        &self,
        place: &str,
        survey: &mut Survey<'_>,
        mut each: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut block = Vec::new();
        let mut at = 0;
        while at < self.count {
            let n = self.block().min(self.count - at);
            survey.next(n * self.record(), &mut block)?;
            let whole = block.len() / self.record();
            if whole < n {
                let detail = format!("truncated: {} images are promised, sample {} is cut off", self.count, at + whole);
                return Err(Error::data(place, detail));
            }
            for (i, record) in block.chunks_exact(self.record()).enumerate() {
                each(at + i, &record[..self.lead])?;
            }
            if self.values.dtype != Dtype::U8 {
                self.decode(place, at, &mut block, |_| {})?;
            }
            at += n;
        }
        Ok(())
    }

    /// Gives `each` the pixels of whole records, of which the first is sample `at`.
    fn decode(&self, place: &str, at: usize, block: &mut [u8], mut each: impl FnMut(Vec<f32>)) -> Result<()> {
        for (i, record) in block.chunks_exact_mut(self.record()).enumerate() {
            let pixels = self.values.pixels(&mut record[self.lead..]);
            if let Some(value) = pixels.iter().find(|value| !(0.0..=1.0).contains(*value)) {
                let hint = match *value {
                    v if v > 1.0 && v.fract() == 0.0 => "; grey levels are saved as uint8, or divided by 255",
                    v if v.is_finite() => "; mean and deviation belong to the network, not to its images",
                    _ => "",
                };
                let detail = format!("sample {}: value {value} lies outside [0, 1]{hint}", at + i);
                return Err(Error::data(place, detail));
            }
            each(pixels);
        }
        Ok(())
    }
}

/// Records and the file that they are read from.
#[derive(Debug)]
pub(super) struct Records {
    /// For messages: the file, and what in it.
    pub place: String,
    pub stream: Stream,
    pub layout: Layout,
}

impl Reader for Records {
    fn read(&mut self, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let layout = self.layout;
        let mut block = vec![0; layout.block().min(range.len()) * layout.record()];
        let mut at = range.start;
        while at < range.end {
            let n = layout.block().min(range.end - at);
            let block = &mut block[..n * layout.record()];
            self.stream.read_at(layout.start + at as u64 * layout.record() as u64, block)?;
            layout.decode(&self.place, at, block, |pixels| out.extend(pixels))?;
            at += n;
        }
        Ok(())
    }
}

/// Reads `n` labels, checks all of them, and keeps the first `limit`. `classes`, where it is not zero, is how many
/// there are.
pub(super) fn labels(
    place: &str,
    survey: &mut Survey<'_>,
    values: Values,
    n: usize,
    limit: usize,
    classes: usize,
) -> Result<Vec<i64>> {
    let (mut labels, mut block) = (Vec::new(), Vec::new());
    let per_block = BLOCK / values.size().max(1);
    let mut at = 0;
    while at < n {
        let want = per_block.min(n - at);
        survey.next(want * values.size(), &mut block)?;
        let Some(read) = values.integers(&mut block) else {
            return Err(Error::data(place, format!("{} values; only integers are supported", values.dtype)));
        };
        for (i, label) in read.iter().enumerate() {
            check_label(place, at + i, *label, classes)?;
        }
        at += read.len();
        if read.len() < want {
            return Err(Error::data(place, format!("truncated: {n} labels are promised, {at} are there")));
        }
        labels.extend(read.iter().take(limit - labels.len()));
    }
    Ok(labels)
}

pub(super) fn check_label(place: &str, sample: usize, label: i64, classes: usize) -> Result<()> {
    let detail = if label < 0 {
        format!("sample {sample}: label {label} is negative, or too large")
    } else if classes > 0 && label >= classes as i64 {
        format!("sample {sample}: label {label}, but there are {classes} classes")
    } else {
        return Ok(());
    };
    Err(Error::data(place, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_headers_claim_are_checked_before_anything_is_made_of_them() {
        let new = |shape, dtype| Layout::new(8, shape, 0, Values { dtype, big_endian: false });
        assert!(new([2, 3, 4, 5], Dtype::F32).is_ok());
        assert!(new([1 << 24, 1, 1, 1], Dtype::U8).is_ok(), "possible, for a header");
        assert!(new([(1 << 24) + 1, 1, 1, 1], Dtype::U8).unwrap_err().contains("at most 16777216"));
        for shape in [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]] {
            assert!(new(shape, Dtype::U8).unwrap_err().contains("empty"), "{shape:?}");
        }
        for shape in [[1, 1 << 32, 1 << 32, 1], [1, u64::MAX, 2, 2], [1, 1, 1, (1 << 22) + 1], [u64::MAX, 1, 1, 9]] {
            assert!(new(shape, Dtype::F64).is_err(), "{shape:?}");
        }
        assert!(new([1, 1, 1, 1], Dtype::I64).unwrap_err().contains("I64"));
    }

    #[test]
    fn integers_of_every_width_and_order_are_read() {
        let read = |dtype, big_endian, bytes: &[u8]| Values { dtype, big_endian }.integers(&mut bytes.to_vec());
        assert_eq!(read(Dtype::U8, false, &[255]), Some(vec![255]));
        assert_eq!(read(Dtype::I8, true, &[255, 1]), Some(vec![-1, 1]));
        assert_eq!(read(Dtype::U16, true, &[1, 2]), Some(vec![258]));
        assert_eq!(read(Dtype::I16, false, &[2, 1, 255, 255]), Some(vec![258, -1]));
        assert_eq!(read(Dtype::U32, true, &[0, 0, 1, 0]), Some(vec![256]));
        assert_eq!(read(Dtype::I32, true, &[255; 4]), Some(vec![-1]));
        assert_eq!(read(Dtype::I64, true, &[0, 0, 0, 0, 0, 0, 0, 9]), Some(vec![9]));
        assert_eq!(read(Dtype::U64, false, &[255; 8]), Some(vec![-1]));
        assert_eq!(read(Dtype::F32, false, &[0; 4]), None);
    }
}
