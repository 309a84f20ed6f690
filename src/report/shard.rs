//! Shards: a data set in contiguous pieces for several machines.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One piece of a data set: the samples ⌊index·n/count⌋ up to ⌊(index + 1)·n/count⌋.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which piece, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Its first sample.
    pub first: usize,
    /// Number of its samples.
    pub samples: usize,
}

impl Shard {
    /// The piece `index` of `count` of a data set of `n` samples.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is no such piece, or it would be empty.
    pub fn new(index: usize, count: usize, n: usize) -> Result<Self> {
        let asked = format!("--shard {index}/{count}");
        if index >= count {
            return Err(Error::Usage(format!("{asked}: the shards are 0/N to N-1/N")));
        }
        if count > n {
            return Err(Error::Usage(format!("{asked}: there are only {n} images")));
        }
        let edge = |i: usize| (i as u128 * n as u128 / count as u128) as usize;
        Ok(Shard { index, count, first: edge(index), samples: edge(index + 1) - edge(index) })
    }

    /// Reads `I/N`.
    ///
    /// # Errors
    /// [`Error::Usage`] for anything else.
    pub fn parse(text: &str) -> Result<(usize, usize)> {
        let pair = text.split_once('/').and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        pair.ok_or_else(|| Error::Usage(format!("--shard {text}: two whole numbers such as 0/4")))
    }

    /// Its samples, by index in the whole data set.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first.saturating_add(self.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_every_sample_once_and_differ_by_one_at_most() {
        for n in 1..60 {
            for count in 1..=n {
                let shards: Vec<Shard> = (0..count).map(|i| Shard::new(i, count, n).unwrap()).collect();
                let all: Vec<usize> = shards.iter().flat_map(Shard::range).collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>(), "{n} in {count}");
                assert!(shards.iter().all(|s| s.samples == n / count || s.samples == n.div_ceil(count)));
            }
        }
        // The product of index and n does not fit into 64 bits.
        let last = Shard::new((1 << 40) - 1, 1 << 40, usize::MAX / 2).unwrap();
        assert_eq!(last.range().end, usize::MAX / 2);
    }

    #[test]
    fn shards_that_are_none_are_refused() {
        for (index, count, n) in [(0, 0, 5), (2, 2, 5), (3, 2, 5), (0, 6, 5), (0, 1, 0)] {
            assert_eq!(Shard::new(index, count, n).unwrap_err().exit_code(), 2, "{index}/{count} of {n}");
        }
        assert_eq!(Shard::parse("2/7"), Ok((2, 7)));
        for bad in ["", "1", "1/", "/2", "-1/2", "1/2/3", "a/b", "1.0/2"] {
            assert!(Shard::parse(bad).unwrap_err().to_string().contains("--shard"), "{bad}");
        }
    }
}
