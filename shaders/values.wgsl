// Values whatever an adapter makes of subnormals, infinities and NaN. For kernels that bind samples.

// The bits of v, each with a zero in it that no compiler knows. Without them LLVM 22 sees what is asked of a number, and
// where it may assume that there is no infinity, or that a subnormal is a zero, it asks nothing: products are looked at
// no longer, and contracted. One bit with such a zero is not enough: it leaves out those that a question is not about.
fn bits_of(v: f32) -> u32 {
    return bitcast<u32>(v) ^ select(0u, 0xffffffffu, arrayLength(&samples) == 0u);
}

fn exponent_of(v: f32) -> u32 {
    return (bits_of(v) >> 23u) & 255u;
}

// Adapters differ on subnormals: to all of them they are zero. And a sum that is looked at so is a sum: compilers that
// take additions in another order than they are written in (DXC, Metal's) cannot where something is chosen in between.
fn flushed(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u);
}

// A product, rounded: whether a device has fused multiply-adds or contracts sums of products, it cannot where the
// product is looked at.
fn times(a: f32, b: f32) -> f32 {
    return flushed(a * b);
}

// 1/v for v > 0, and 0 where v or 1/v is none. Rounded to the nearest number, where WGSL leaves the last digits of a
// division open: 2^48 is divided by the digits of v, eight bits at a time, and its 25th bit decides.
fn inverse_of(v: f32) -> f32 {
    let digits = (bitcast<u32>(v) & 0x007fffffu) | 0x00800000u;
    var quotient = 0x1000000u / digits;
    var left = 0x1000000u - quotient * digits;
//# for i in 0..3
    let next_$i = (left << 8u) / digits;
    quotient = (quotient << 8u) | next_$i;
    left = (left << 8u) - next_$i * digits;
//# end
    // Rounding up may carry into the exponent, as it should. Half way between two numbers is no quotient.
    let nearest = ((quotient + 1u) >> 1u) - 0x00800000u;
    let is_number = bitcast<u32>(v) - 0x00800000u < 0x7e800000u;
    return select(0.0, flushed(bitcast<f32>(((253u - exponent_of(v)) << 23u) + nearest)), is_number);
}

// √v for a sum of squares v, rounded to the nearest number, where WGSL leaves the last digits open: 25 binary digits
// one by one, of which the last decides. Infinity and NaN stay what they are.
fn root(v: f32) -> f32 {
    let exponent = exponent_of(v);
    // v is digits times a power of four; two digits of it are looked at in a round.
    var digits = ((bitcast<u32>(v) & 0x007fffffu) | 0x00800000u) << (8u - (exponent & 1u));
    var found = 0u;
    var left = 0u;
    var fits = false;
//# for i in 0..25
    left = (left << 2u) | (digits >> 30u);
    digits <<= 2u;
    fits = left > 4u * found;
    left -= select(0u, 4u * found + 1u, fits);
    found = 2u * found + select(0u, 1u, fits);
//# end
    let nearest = ((found + 1u) >> 1u) - 0x00800000u;
    let of_number = bitcast<f32>((((exponent + 127u) >> 1u) << 23u) + nearest);
    return select(select(of_number, v, exponent == 255u), 0.0, exponent == 0u);
}

// A gradient's value without what is none: subnormals, infinities and NaN are zero.
fn sound(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u && exponent_of(v) != 255u);
}

fn within(v: f32, lo: f32, hi: f32) -> f32 {
    return min(max(v, lo), hi);
}
