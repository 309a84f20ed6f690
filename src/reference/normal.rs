//! Normal numbers from random words, in f32 and by bits as `shaders/normal.wgsl` makes them.

use super::values::{flushed, inverse_of, root, times};

/// −2·ln(u) for u in (0, 1] of the word's upper 24 bits: what the squares of two normal numbers come to.
pub fn squares_of_two(word: u32) -> f32 {
    // u is m·2^e with m between √½ and √2, and ln(m) is 2·artanh((m − 1) / (m + 1)).
    let bits = (((word >> 8) + 1) as f32 / (1 << 24) as f32).to_bits() as i32 - 0x3f35_04f3;
    let m = f32::from_bits(((bits & 0x007f_ffff) + 0x3f35_04f3) as u32);
    let s = times(m - 1.0, inverse_of(m + 1.0));
    let z = times(s, s);
    let p = [1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0].into_iter().fold(1.0 / 9.0, |p, c: f32| c + times(z, p));
    flushed(times((bits >> 23) as f32, -2.0 * std::f32::consts::LN_2) + times(-4.0, s + times(times(s, z), p)))
}

/// cos(2π·u) for u in [0, 1) of the word's upper 24 bits.
pub fn cosine(word: u32) -> f32 {
    // By the series of cosine or sine, an eighth of a turn at most from a quarter.
    let turn = word >> 8;
    let quarter = (turn + (1 << 21)) >> 22;
    let t = times((turn as i32 - (quarter << 22) as i32) as f32, std::f32::consts::TAU / (1 << 24) as f32);
    let z = times(t, t);
    let series = |first: f32, rest: [f32; 3]| rest.into_iter().fold(first, |p, c| c + times(z, p));
    let v = if quarter % 2 == 1 {
        t + times(times(t, z), series(1.0 / 362_880.0, [-1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0]))
    } else {
        1.0 + times(z, series(1.0 / 40320.0, [-1.0 / 720.0, 1.0 / 24.0, -0.5]))
    };
    if (quarter + 1) & 2 == 2 { -v } else { v }
}

/// One normal number (Box & Muller 1958).
pub fn normal(a: u32, b: u32) -> f32 {
    times(root(squares_of_two(a)), cosine(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::philox;

    /// Over every argument there is, in units in the last place of the true value.
    #[test]
    fn logarithms_and_cosines_are_exact_but_for_a_few_roundings() {
        let (mut log, mut cos) = (0.0_f64, 0.0_f64);
        let off = |got: f32, want: f64| {
            let unit = f32::from_bits((want.abs() as f32).to_bits() + 1) - want.abs() as f32;
            (f64::from(got) - want).abs() / f64::from(unit)
        };
        for k in 0..1_u32 << 24 {
            let u = f64::from(k + 1) / f64::from(1 << 24);
            log = log.max(off(squares_of_two(k << 8), -2.0 * u.ln()));
            // Quarters of a turn are exact; f64's π is not.
            let angle = std::f64::consts::TAU * f64::from(k) / f64::from(1 << 24);
            let want = if k % (1 << 23) == 1 << 22 { 0.0 } else { angle.cos() };
            cos = cos.max(off(cosine(k << 8), want));
        }
        assert_eq!(squares_of_two(u32::MAX), 0.0);
        // Found: 2.48 and 1.93.
        assert!(log < 2.6 && cos < 2.0, "{log} and {cos}");
    }

    /// Four million numbers: moments, and shares beyond one to five deviations, each within five standard errors.
    #[test]
    fn numbers_are_normal() {
        let n = 1 << 22;
        let numbers = (0..n / 2).flat_map(|k| {
            let w = philox(2026, [k as u32, 0, 0, 99]);
            [f64::from(normal(w[0], w[1])), f64::from(normal(w[2], w[3]))]
        });
        let (mut moments, mut beyond) = ([0.0; 4], [0_u32; 5]);
        for v in numbers {
            (0..4).for_each(|k| moments[k] += v.powi(k as i32 + 1) / f64::from(n));
            (0..5).for_each(|k| beyond[k] += u32::from(v.abs() > (k + 1) as f64));
        }
        let near = |got: f64, want: f64, variance: f64| (got - want).abs() < 5.0 * (variance / f64::from(n)).sqrt();
        // E v^2k is 1, 3, 15, 105.
        let [mean, square, cube, fourth] = moments;
        assert!(near(mean, 0.0, 1.0) && near(square, 1.0, 2.0) && near(cube, 0.0, 15.0) && near(fourth, 3.0, 96.0));
        let shares = [0.317_310_5, 0.045_500_26, 2.699_796e-3, 6.334_248e-5, 5.733_031e-7];
        for (count, share) in beyond.iter().zip(shares) {
            assert!(near(f64::from(*count) / f64::from(n), share, share), "{beyond:?}");
        }
    }
}
