// Values whatever an adapter makes of subnormals, infinities and NaN.

fn exponent_of(v: f32) -> u32 {
    return (bitcast<u32>(v) >> 23u) & 255u;
}

// Adapters differ on subnormals: to all of them they are zero.
fn flushed(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u);
}

// A product, rounded: whether a device has fused multiply-adds or contracts sums of products, it cannot where the product is
// looked at.
fn times(a: f32, b: f32) -> f32 {
    return flushed(a * b);
}

// Numbers are divided by multiplying with 1/v, which is what some adapters make of a division anyway; 0 where v is none.
fn inverse_of(v: f32) -> f32 {
    return select(0.0, 1.0 / v, v > 0.0);
}

// A gradient's value without what is none: subnormals, infinities and NaN are zero.
fn sound(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u && exponent_of(v) != 255u);
}

fn within(v: f32, lo: f32, hi: f32) -> f32 {
    return min(max(v, lo), hi);
}
