// Normal numbers from random words (Box & Muller 1958), the same bits on every adapter: WGSL leaves the last digits of
// log and cos open, so these are series of sums and of products that are looked at. With `values.wgsl`; the twin is
// `src/reference/normal.rs`.

// −2·ln(u) for u in (0, 1] of 24 bits: what the squares of two normal numbers come to. u is m·2^e with m between √½ and
// √2, and ln(m) is 2·artanh((m − 1) / (m + 1)).
fn squares_of_two(word: u32) -> f32 {
    // 2⁻²⁴; the bits of √½.
    let bits = bitcast<i32>(f32((word >> 8u) + 1u) * 5.9604644775390625e-8) - 0x3f3504f3;
    let m = bitcast<f32>((bits & 0x007fffff) + 0x3f3504f3);
    let s = times(m - 1.0, inverse_of(m + 1.0));
    let z = times(s, s);
    var p = 1.0 / 7.0 + times(z, 1.0 / 9.0);
    p = 1.0 / 5.0 + times(z, p);
    p = 1.0 / 3.0 + times(z, p);
    // −2·ln 2.
    return flushed(times(f32(bits >> 23u), -1.3862943611198906) + times(-4.0, s + times(times(s, z), p)));
}

// cos(2π·u) for u in [0, 1) of 24 bits: by the series of cosine or sine, of the angle t from the nearest quarter turn,
// an eighth of a turn at most.
fn cosine(word: u32) -> f32 {
    let turn = word >> 8u;
    let quarter = (turn + 0x200000u) >> 22u;
    // 2π/2²⁴.
    let t = times(f32(i32(turn) - i32(quarter << 22u)), 3.7450702829238413e-7);
    let z = times(t, t);
    var c = -1.0 / 720.0 + times(z, 1.0 / 40320.0);
    c = 1.0 / 24.0 + times(z, c);
    c = -0.5 + times(z, c);
    var s = -1.0 / 5040.0 + times(z, 1.0 / 362880.0);
    s = 1.0 / 120.0 + times(z, s);
    s = -1.0 / 6.0 + times(z, s);
    let v = select(1.0 + times(z, c), t + times(times(t, z), s), (quarter & 1u) == 1u);
    return select(v, -v, ((quarter + 1u) & 2u) == 2u);
}

fn normal(a: u32, b: u32) -> f32 {
    return times(root(squares_of_two(a)), cosine(b));
}
