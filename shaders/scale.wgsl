// Gradients that are kept as f16 between layers begin near one: a power of two for each sample, which its sign does not
// see, and which the last kernel (`normalise_input_grad`) takes away again. Where the network is sure of the class,
// seeds are of 1e-8 and less.

//# kernel scale_input_grad
// One invocation a sample, twice over its classes: for the largest, then for the products.
//# dy: activation read                        [N, K4] of 4 classes, seeds as the loss gave them
//# y: activation write                        [N, K4] of 4 classes, the largest in [1, 2)
//# unscale: storage update array<f32>         [N], what undoes it
const K4: u32 = (K + 3u) / 4u;

@compute @workgroup_size(WG)
fn scale_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&unscale)) {
        return;
    }
    var largest = 0u;
    for (var k4 = 0u; k4 < K4; k4++) {
        let i = n * K4 + k4;
        let bits = bitcast<vec4<u32>>(dy_at(i)) & vec4<u32>(0x7fffffffu);
        largest = max(largest, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }
    // Of the exponent e, kept by 127 too large, powers are put together by bits: 2^-e and 2^e. Zero is as good as the
    // smallest number; what is not finite, or has no reciprocal, stays as it is.
    let exponent = select(127u, max(largest >> 23u, 1u), largest < 0x7f000000u);
    let scale = bitcast<f32>((254u - exponent) << 23u);
    unscale[n] = bitcast<f32>(exponent << 23u);
    for (var k4 = 0u; k4 < K4; k4++) {
        let i = n * K4 + k4;
        y_put(i, dy_at(i) * scale);
    }
}
