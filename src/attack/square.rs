//! The schedule of the Square attack: how large the squares are.

use super::Norm;
use crate::model::Dims;

/// Share of the image that the first squares cover, as in the paper's code for L∞.
const FIRST_SHARE: f64 = 0.8;

/// Ten-thousandths of the steps from which on squares are half as large as before.
pub(crate) const HALVINGS: [u32; 9] = [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001];

/// The first of `steps` queries that is not before `share` ten-thousandths of them.
fn first_at(share: u32, steps: u32) -> u32 {
    (u64::from(share) * u64::from(steps)).div_ceil(10_000) as u32
}

/// How often the share of the image has been halved at query `iteration` (from 0) of `steps`.
pub(crate) fn halvings(iteration: u32, steps: u32) -> usize {
    HALVINGS.iter().filter(|share| iteration >= first_at(**share, steps)).count()
}

/// Sides of the squares after 0 to 9 halvings, in pixels: a square covers a share of 0.8/2^k of each channel, and is smaller
/// than the image. In L2 sides are odd, and three at least where the image allows it.
pub(crate) fn sides(norm: Norm, d: Dims) -> [u32; 10] {
    let most = (d.h.min(d.w) as u32).saturating_sub(1).max(1);
    std::array::from_fn(|k| {
        let share = FIRST_SHARE / f64::from(1 << k);
        let side = (share * (d.h * d.w) as f64).sqrt().round_ties_even() as u32;
        match norm {
            Norm::Linf => side.clamp(1, most),
            Norm::L2 => (side.max(3) | 1).min(most - (most + 1) % 2),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `p_selection` of the paper's code, told from where on it has another value.
    #[test]
    fn the_schedule_is_the_papers() {
        // p_selection(i) for 10,000 queries, 0.8 first: the first i of each value.
        let changes = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001];
        let first = |steps: u32| -> Vec<u32> {
            (0..10).map(|k| (0..steps).find(|&i| halvings(i, steps) >= k).unwrap_or(steps)).collect()
        };
        assert_eq!(first(10_000), changes);
        // The same for 5000 and 1000, where int(i / n · 10000) goes by leaps.
        assert_eq!(first(5000), [0, 6, 26, 101, 251, 501, 1001, 2001, 3001, 4001]);
        assert_eq!(first(1000), [0, 2, 6, 21, 51, 101, 201, 401, 601, 801]);
        assert_eq!(halvings(u32::MAX - 1, u32::MAX), 9);
        assert_eq!(halvings(0, 1), 0);
    }

    #[test]
    fn sides_are_the_papers() {
        // max(round(sqrt(p · h · w)), 1) for CIFAR, MNIST and the embedded digits.
        assert_eq!(sides(Norm::Linf, Dims::new(3, 32, 32)), [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]);
        assert_eq!(sides(Norm::Linf, Dims::new(1, 28, 28)), [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]);
        assert_eq!(sides(Norm::Linf, Dims::new(1, 8, 8)), [7, 5, 4, 3, 2, 1, 1, 1, 1, 1]);
        assert_eq!(sides(Norm::Linf, Dims::new(5, 1, 9)), [1; 10]);
        // Made odd, three at least.
        assert_eq!(sides(Norm::L2, Dims::new(3, 32, 32)), [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]);
        assert_eq!(sides(Norm::L2, Dims::new(1, 8, 8)), [7, 5, 5, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!(sides(Norm::L2, Dims::new(1, 3, 3)), [1; 10]);
    }
}
