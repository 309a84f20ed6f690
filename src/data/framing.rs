//! Pictures of different sizes to one: the shorter side resized, then the middle cut out, to the byte as torchvision's
//! `Resize` and `CenterCrop` do it on pictures of Pillow. That is a filter in fixed point, one pass along the rows and
//! one along the columns, each rounded to bytes, so that no machine comes to other pixels. Only what the crop shows is
//! computed. Rows go first, as in every Pillow up to 12; 13 begins with the columns of pictures much taller than wide,
//! where a byte may then be one off.

use super::records::{MAX_VALUES, image_dims};
use crate::error::{Error, Result};
use crate::model::Dims;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most values of a picture that is resized. It is held as bytes, and one at a time.
const MAX_PICTURE: u64 = 1 << 26;
/// Digits of a weight behind the binary point: as many as 32 bits have beside eight of a pixel and two for what exceeds
/// it.
const PRECISION: u32 = 32 - 8 - 2;

type Framed<T> = std::result::Result<T, String>;

/// How pictures are brought to one size. Another one is another data set, so it is part of what a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framing {
    /// Pixels that the shorter side gets, the other in proportion (cut to whole pixels): bilinear, over all pixels that
    /// fall together where it gets smaller (`Resize`, bilinear with antialiasing).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<u32>,
    /// Sides of the square that is cut out of the middle; where that is half a pixel off, to the even one
    /// (`CenterCrop`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
}

impl Framing {
    /// Whether pictures stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Framing::default()
    }

    /// # Errors
    /// [`Error::Usage`] for what no picture can be brought to.
    pub(super) fn check(&self) -> Result<()> {
        for (flag, value) in [("--resize", self.resize), ("--crop", self.crop)] {
            if value == Some(0) {
                return Err(Error::Usage(format!("{flag} must be one or more pixels")));
            }
        }
        match (self.resize, self.crop) {
            (Some(resize), Some(crop)) if crop > resize => {
                Err(Error::Usage(format!("--crop {crop}: the shorter side has {resize} pixels (--resize)")))
            }
            _ => Ok(()),
        }
    }

    /// Most values that a picture may have.
    pub(super) fn most(&self) -> u64 {
        if self.resize.is_some() { MAX_PICTURE } else { MAX_VALUES }
    }

    /// Shape of a picture of `dims` once it is framed.
    pub(super) fn output(&self, dims: Dims) -> Framed<Dims> {
        let (rows, columns) = (self.window(dims.h, dims)?, self.window(dims.w, dims)?);
        image_dims(dims.c as u64, rows.count as u64, columns.count as u64, MAX_VALUES)
    }

    /// Frames a picture, row by row, the channels of a pixel side by side.
    pub(super) fn apply(&self, dims: Dims, pixels: Vec<u8>) -> Framed<(Dims, Vec<u8>)> {
        let to = self.output(dims)?;
        let (rows, columns) = (self.window(dims.h, dims)?, self.window(dims.w, dims)?);
        let (down, across) = (weights(&rows), weights(&columns));
        // Rows of the picture that any row of the result looks at.
        let first = down.first().map_or(0, |w| w.first);
        let last = down.last().map_or(0, |w| w.first + w.parts.len());
        let c = dims.c;
        let mut narrow = Vec::with_capacity((last - first) * to.w * c);
        for row in pixels.chunks_exact(dims.w * c).take(last).skip(first) {
            for w in &across {
                (0..c).for_each(|channel| narrow.push(w.sum(|x| row[x * c + channel])));
            }
        }
        let mut out = Vec::with_capacity(to.len());
        for w in &down {
            (0..to.w * c).for_each(|x| out.push(w.sum(|y| narrow[(y - first) * to.w * c + x])));
        }
        Ok((to, out))
    }

    /// What of a side of `n` pixels is shown, of a picture of `dims`.
    fn window(&self, n: usize, dims: Dims) -> Framed<Window> {
        let shorter = dims.h.min(dims.w) as u64;
        // The quotient of whole numbers is that of the floats, cut off: these are exact far beyond.
        let whole = self.resize.map_or(n as u64, |size| u64::from(size) * n as u64 / shorter);
        let count = self.crop.map_or(whole, u64::from);
        let Some(gap) = whole.checked_sub(count) else {
            return Err(format!(
                "{}×{} pixels are less than --crop {count}; --resize makes more of them",
                dims.w, dims.h
            ));
        };
        // Half of an odd gap goes to the even one of its neighbours.
        let first = gap / 2 + if gap % 2 == 1 { gap / 2 % 2 } else { 0 };
        let fits = |n: u64| usize::try_from(n).map_err(|_| format!("{n} pixels are too many"));
        Ok(Window { from: n, whole: fits(whole)?, first: fits(first)?, count: fits(count)? })
    }
}

impl fmt::Display for Framing {
    /// As the command line has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [("--resize", self.resize), ("--crop", self.crop)];
        let flags = flags.iter().filter_map(|(flag, value)| value.map(|value| format!("{flag} {value}")));
        f.write_str(&flags.collect::<Vec<_>>().join(" "))
    }
}

/// Of a side of `from` pixels that is resized to `whole`, `count` from `first` on.
struct Window {
    from: usize,
    whole: usize,
    first: usize,
    count: usize,
}

/// A pixel of the result along one side: neighbours from `first` on, each with its part.
struct Weights {
    first: usize,
    parts: Vec<i32>,
}

impl Weights {
    fn sum(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION - 1);
        let sum = (self.first..).zip(&self.parts).fold(half, |sum, (i, part)| sum + i32::from(pixel(i)) * part);
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}

/// A triangle around each pixel's middle, as wide as a pixel of the larger of both pictures on either side.
fn weights(window: &Window) -> Vec<Weights> {
    let scale = window.from as f64 / window.whole as f64;
    let reach = scale.max(1.0);
    let one = |i: usize| {
        if window.from == window.whole {
            return Weights { first: i, parts: vec![1 << PRECISION] };
        }
        let middle = (i as f64 + 0.5) * scale;
        let first = (middle - reach + 0.5).max(0.0) as usize;
        let end = ((middle + reach + 0.5) as usize).min(window.from);
        let height = |x: usize| (1.0 - ((x as f64 - middle + 0.5) * (1.0 / reach)).abs()).max(0.0);
        let sum: f64 = (first..end).map(height).sum();
        let part = |x: usize| (height(x) / sum * f64::from(1 << PRECISION) + 0.5) as i32;
        Weights { first, parts: (first..end).map(part).collect() }
    };
    (window.first..window.first + window.count).map(one).collect()
}
