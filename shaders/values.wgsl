// Values whatever an adapter makes of subnormals, infinities and NaN.

fn exponent_of(v: f32) -> u32 {
    return (bitcast<u32>(v) >> 23u) & 255u;
}

// Adapters differ on subnormals: to all of them they are zero.
fn flushed(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u);
}

// A gradient's value without what is none: subnormals, infinities and NaN are zero.
fn sound(v: f32) -> f32 {
    return select(0.0, v, exponent_of(v) != 0u && exponent_of(v) != 255u);
}

fn within(v: f32, lo: f32, hi: f32) -> f32 {
    return min(max(v, lo), hi);
}
