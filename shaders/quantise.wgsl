// Pixels that come from a buffer of the host program and go back to one: looked at, snapped to grey levels, and rounded
// as they are delivered. The host's arithmetic (`src/attack/quantise.rs`) is f64; here it is whole numbers on the bits
// of the pixels, so that it comes to the same on every adapter.

//# include sample
//# include grey

//# kernel inspect
// One invocation for one value; z is the sample. MARK is the health mark for what is not finite; bit 31 says that a
// value is outside of the bounds (infinity is, NaN is not).
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
// The iterate as it is delivered: the nearest k/255, no further from the clean pixel than the sample's levels allow.
// One invocation for one value; z is the sample.
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

//# kernel quantise_l2
// The same within an L2 ball: a move of t grey levels, f of them a fraction, is rounded away from the clean pixel where
// f is no less than a threshold: a half, or as much more as it takes for the image to stay in the ball; at most one,
// which cuts fractions off. One workgroup a sample.
//# include sums
//# include values
//# samples: storage read array<Sample>              [N], levels is the largest sum of squares
//# x0: storage read array<u32>                      [N, LEN], clean images, snapped
//# x: storage update array<u32>                     [N, LEN], iterate

// Grey levels of the move at i, its fraction rounded by a threshold of 512ths.
fn moved(i: u32, threshold: u32) -> u32 {
    let t = times(255.0, abs(bitcast<f32>(x[i]) - bitcast<f32>(x0[i])));
    let whole = floor(t);
    return u32(whole) + select(0u, 1u, 512.0 * (t - whole) >= f32(threshold));
}

fn squares(n: u32, me: u32, threshold: u32) -> u32 {
    var sum = 0u;
    for (var i = n * LEN + me; i < (n + 1u) * LEN; i += WG) {
        let m = select(0u, moved(i, threshold), finite(x[i]) && finite(x0[i]));
        let both = sum + m * m;
        sum = select(both, 0xffffffffu, both < sum);
    }
    return count(me, sum);
}

@compute @workgroup_size(WG)
fn quantise_l2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let most = samples[n].levels;
    // The least threshold from 256 to 512 that stays within: 512 does.
    var low = 255u;
    var high = 512u;
    for (var k = 0u; k < 9u; k++) {
        let middle = (low + high) / 2u;
        let fits = squares(n, me, middle) <= most;
        // Where low and high are neighbours already, middle is low, and nothing changes.
        high = select(high, middle, fits && middle > low);
        low = select(middle, low, fits);
    }
    for (var i = n * LEN + me; i < (n + 1u) * LEN; i += WG) {
        if (finite(x[i]) && finite(x0[i])) {
            let k0 = level(x0[i]);
            let m = moved(i, high);
            let up = bitcast<f32>(x[i]) > bitcast<f32>(x0[i]);
            x[i] = grey(select(max(k0, m) - m, min(k0 + m, 255u), up));
        }
    }
}
