// Pixels that come from a buffer of the host program and go back to one: looked at, snapped to grey levels, and rounded as
// they are delivered. The host's arithmetic (`src/attack/quantise.rs`) is f64; here it is whole numbers on the bits of the
// pixels, so that it comes to the same on every adapter.

//# include sample

// The nearest k of k/255, halves up: ⌊255·x + ½⌋ of x's bits, within 0 to 255. x must be finite.
fn level(bits: u32) -> u32 {
    let exponent = (bits >> 23u) & 255u;
    if ((bits >> 31u) == 1u || exponent == 0u) {
        return 0u;
    }
    if (exponent > 127u) {
        return 255u;
    }
    // x is mantissa·2^(exponent − 150), and 255 mantissas fit in a word: 255·x in halves, then half of them, rounded up.
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

//# kernel inspect
// One invocation for one value; z is the sample. MARK is the health mark for what is not finite; bit 31 says that a value is
// outside of the bounds (infinity is, NaN is not).
//# bounds: uniform Bounds
//# values: storage read array<u32>                 [N, LEN]
//# health: storage update array<atomic<u32>>       [N]

// Bits in the order of their numbers, zeros being one number: adapters may compare subnormals as zeros.
fn ordered(bits: u32) -> u32 {
    let b = select(bits, 0u, (bits << 1u) == 0u);
    return select(b | 0x80000000u, ~b, (b >> 31u) == 1u);
}

@compute @workgroup_size(WG)
fn inspect(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let bits = values[id.z * LEN + id.x];
    let nan = (bits & 0x7fffffffu) > 0x7f800000u;
    let low = ordered(bits) < ordered(bitcast<u32>(bounds.lo));
    let high = ordered(bits) > ordered(bitcast<u32>(bounds.hi));
    let marks = select(MARK, 0u, finite(bits)) | select(0u, 0x80000000u, (low || high) && !nan);
    if (marks != 0u) {
        atomicOr(&health[id.z], marks);
    }
}

//# kernel snap
// Clean pixels to the nearest k/255. One invocation for one value; z is the sample.
//# x0: storage update array<u32>                    [N, LEN]
//# moved: storage update array<atomic<u32>>         [N], bits of the largest move, which are in the order of the moves
@compute @workgroup_size(WG)
fn snap(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let i = id.z * LEN + id.x;
    let bits = x0[i];
    let k = level(bits);
    let snapped = grey(k);
    if (!finite(bits) || bits == snapped) {
        return;
    }
    // A move to zero is the pixel itself, which may be subnormal.
    let move_bits = select(bitcast<u32>(bitcast<f32>(snapped) - bitcast<f32>(bits)), bits, k == 0u) & 0x7fffffffu;
    atomicMax(&moved[id.z], move_bits);
    x0[i] = snapped;
}

//# kernel quantise
// The iterate as it is delivered: the nearest k/255, no further from the clean pixel than the sample's levels allow. One
// invocation for one value; z is the sample.
//# samples: storage read array<Sample>              [N]
//# x0: storage read array<u32>                      [N, LEN], clean images, snapped
//# x: storage update array<u32>                     [N, LEN], iterate
@compute @workgroup_size(WG)
fn quantise(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let i = id.z * LEN + id.x;
    if (!finite(x[i]) || !finite(x0[i])) {
        return;
    }
    let k0 = level(x0[i]);
    let reach = min(samples[id.z].levels, 255u);
    x[i] = grey(min(max(level(x[i]), max(k0, reach) - reach), min(k0 + reach, 255u)));
}
