//! Values and sums as the kernels take them, in f32 and by bits: `shaders/values.wgsl` and `shaders/sums.wgsl`.

/// What the sign of a gradient says, decided from its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Positive and normal.
    Plus,
    /// Negative and normal.
    Minus,
    /// Zero or subnormal: no step. Devices may flush subnormals, so they all count as zero.
    Zero,
    /// NaN or infinite: no step, and the sample is marked.
    Broken,
}

impl Sign {
    /// From the bits of an f32.
    pub fn of(gradient: f32) -> Self {
        let bits = gradient.to_bits();
        match (bits >> 23) & 0xff {
            0 => Sign::Zero,
            0xff => Sign::Broken,
            _ if bits >> 31 == 1 => Sign::Minus,
            _ => Sign::Plus,
        }
    }
}

/// Invocations that look at one sample together: sums are taken as they take them.
pub(super) const LANES: usize = 256;

/// The sum of `term(i, so far)` over a sample's values: every lane adds up every 256th, then halves are added to
/// halves.
pub(super) fn total(len: usize, term: impl Fn(usize, f32) -> f32) -> f32 {
    halved(|lane| (lane..len).step_by(LANES).fold(0.0, |sum, i| term(i, sum)))
}

/// The sum of what the lanes bring, halves added to halves.
pub(super) fn halved(of_lane: impl Fn(usize) -> f32) -> f32 {
    let mut parts: [f32; LANES] = std::array::from_fn(of_lane);
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            parts[lane] += parts[lane + half];
        }
        half /= 2;
    }
    parts[0]
}

/// Zero for subnormals, on which devices differ.
pub(super) fn flushed(v: f32) -> f32 {
    if Sign::of(v) == Sign::Zero { 0.0 } else { v }
}

/// A product, rounded before anything is added to it.
pub(super) fn times(a: f32, b: f32) -> f32 {
    flushed(a * b)
}

/// A gradient's value without what is none: subnormals, infinities and NaN are zero.
pub(super) fn sound(v: f32) -> f32 {
    if matches!(Sign::of(v), Sign::Plus | Sign::Minus) { v } else { 0.0 }
}

/// What to multiply with to divide by `v`; 0 where v, or what to multiply with, is none.
pub(super) fn inverse_of(v: f32) -> f32 {
    if v.is_normal() && v > 0.0 { flushed(1.0 / v) } else { 0.0 }
}

/// The root of a sum of squares.
pub(super) fn root(v: f32) -> f32 {
    flushed(v).sqrt()
}

/// A power of two that brings the largest value near 1.
pub(super) fn scale_of(gradient: &[f32]) -> f32 {
    let exponents = gradient.iter().map(|g| (g.to_bits() >> 23) & 255).filter(|e| *e != 255);
    f32::from_bits((254 - exponents.max().unwrap_or(0).clamp(1, 253)) << 23)
}
