// One look at the gradient of a whole sample, for kernels that bind dx, zero_gradients and health.

// Counts and marks what has no sign, and gives a power of two that brings the largest value near 1: squares of small
// gradients would vanish.
fn look(n: u32, me: u32, counts_it: bool) -> f32 {
    var most = 0u;
    var zeros = 0u;
    var broken = 0u;
    for (var i = me; i < LEN; i += WG) {
        let exponent = exponent_of(dx[n * LEN + i]);
        zeros += select(0u, 1u, exponent == 0u);
        broken |= select(0u, 1u, exponent == 255u);
        most = max(most, select(exponent, 0u, exponent == 255u));
    }
    let all_zeros = count(me, zeros);
    let any_broken = highest(me, broken);
    let top = highest(me, most);
    if (me == 0u && counts_it) {
        atomicAdd(&zero_gradients[n], all_zeros);
        atomicOr(&health[n], 4u * any_broken);
    }
    return bitcast<f32>((254u - min(max(top, 1u), 253u)) << 23u);
}
