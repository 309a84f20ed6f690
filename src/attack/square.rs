//! The schedule of the Square attack: how large the squares are, and what is in them.

use super::norm::Norm;
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

/// Sides of the squares after 0 to 9 halvings, in pixels: a square covers a share of 0.8/2^k of each channel, and is
/// smaller than the image. In L2 sides are odd, and three at least where the image allows it.
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

/// Side of the tiles in which an attack in L2 begins: a fifth of the image's.
pub(crate) fn tile(d: Dims) -> usize {
    (d.h.min(d.w) / 5).max(1)
}

/// A hill above a valley in a square of `side`, `[side, side]`, each of length √½: the paper's η. Both fall from their
/// middle by sums of 1/k².
pub(crate) fn hills(side: usize) -> Vec<f32> {
    let half = |rows: usize| -> Vec<f64> {
        let (middle, centre) = (rows / 2, side / 2);
        let most = middle.max(centre) + 1;
        let height = |i: usize| -> f64 {
            let away = (i / side).abs_diff(middle).max((i % side).abs_diff(centre));
            (away + 1..=most).map(|k| 1.0 / (k * k) as f64).sum()
        };
        let values: Vec<f64> = (0..rows * side).map(height).collect();
        let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        values.into_iter().map(|v| v / length).collect()
    };
    let all: Vec<f64> = half(side / 2).into_iter().chain(half(side - side / 2).into_iter().map(|v| -v)).collect();
    let length = all.iter().map(|v| v * v).sum::<f64>().sqrt();
    all.into_iter().map(|v| (v / length) as f32).collect()
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

    /// `eta` of the paper's code, not transposed.
    #[test]
    fn hills_are_the_papers() {
        let close = |side: usize, want: &[f32]| {
            let got = hills(side);
            assert!(
                got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6) && got.len() == want.len(),
                "{side}: {got:?}"
            );
        };
        close(1, &[-1.0]);
        close(2, &[0.138675, 0.6933753, -0.138675, -0.6933753]);
        let (a, b, c, d) = (0.1360828, 0.6804138, -0.1290994, -0.6454972);
        close(3, &[a, b, a, c, c, c, c, d, c]);
        let (a, b, c) = (0.0491622, 0.159777, 0.6022365);
        let (d, e, f) = (-0.0455901, -0.148168, -0.5584793);
        close(5, &[[a, b, b, b, a], [a, b, c, b, a], [d, e, e, e, d], [d, e, f, e, d], [d, e, e, e, d]].concat());
        let length: f32 = hills(14).iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5);
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
        // h // 5 for the tiles.
        assert_eq!([32, 28, 8, 3].map(|side| tile(Dims::new(1, side, side + 9))), [6, 5, 1, 1]);
    }
}
