// Grey levels k/255, on the bits of f32.

// The nearest k of k/255, halves up: ⌊255·x + ½⌋ of x's bits, within 0 to 255. x must be finite.
fn level(bits: u32) -> u32 {
    let exponent = (bits >> 23u) & 255u;
    if ((bits >> 31u) == 1u || exponent == 0u) {
        return 0u;
    }
    if (exponent > 127u) {
        return 255u;
    }
    // x is mantissa·2^(exponent − 150), and 255 mantissas fit in a word: 255·x in halves, then half of them, rounded
    // up.
    let product = 255u * ((bits & 0x7fffffu) | 0x800000u);
    let shift = 149u - exponent;
    let halves = select(product >> min(shift, 31u), 0u, shift > 31u);
    return min((halves + 1u) >> 1u, 255u);
}

// The bits of k/255, rounded to nearest: in base 256 it is 0.kkkk…
fn grey(k: u32) -> u32 {
    if (k == 0u) {
        return 0u;
    }
    let zeros = countLeadingZeros(k) - 24u;
    let word = ((k * 0x01010101u) << zeros) | (k >> (8u - zeros));
    // Never a tie: behind the word come more of the same digits.
    return ((126u - zeros) << 23u) + ((word >> 8u) & 0x7fffffu) + ((word >> 7u) & 1u);
}

fn finite(bits: u32) -> bool {
    return ((bits >> 23u) & 255u) != 255u;
}
