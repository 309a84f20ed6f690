// Fully connected layer over all texels of a sample, forward and input gradient.
//
// L texels of CB channels are read ([IC4, H, W] flattened), in the canonical order (texel, channel within it).

struct Slice {
    first: vec4<u32>,                         // x: first block of four outputs
    bias: array<vec4<f32>, SLICE>,            // [SLICE] of 4 outputs
    weight: array<vec4<f32>, SLICE * STRIP>,  // [SLICE, L, CB] of 4 outputs
}
const STRIP: u32 = L * CB;

//# kernel linear_forward linear_input_grad
// One invocation for eight outputs (one word of signs). Backward, the outputs are the texels of the input: block b of
// four outputs is texel b of dx, and each texel is masked by its own word.
//# w: weights Slice
//# x: activation read                         [N, L] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.z;
    if (2u * id.x >= SLICE) {
        return;
    }
    var acc_0 = vec4<f32>();
    var acc_1 = vec4<f32>();
    for (var l = 0u; l < L; l++) {
        let x = x_at(n * L + l);
        let base = (2u * id.x * L + l) * CB;
//# for i in 0..CB
        acc_0 = fma(vec4<f32>(x[$i]), w.weight[base + $(i)u], acc_0);
        acc_1 = fma(vec4<f32>(x[$i]), w.weight[base + STRIP + $(i)u], acc_1);
//# end
    }
    let b = w.first.x + 2u * id.x;
    acc_0 += w.bias[2u * id.x];
    acc_1 += w.bias[2u * id.x + 1u];
//# if RELU == 1
    // OH = OW = 1: the block is the channel block, and the two blocks share the word.
    if (not_finite(acc_0) || not_finite(acc_1)) {
        atomicOr(&health[n], 1u);
    }
    let bits_0 = positive(acc_0);
    let bits_1 = positive(acc_1);
    if (b < OC4) {
        y_put(out_index(n, b, 0u, 0u), gate(acc_0, bits_0));
        signs[sign_index(n, b / 2u, 0u, 0u)] = bits_0 | (bits_1 << 4u);
    }
    if (b + 1u < OC4) {
        y_put(out_index(n, b + 1u, 0u, 0u), gate(acc_1, bits_1));
    }
//# else
    put(n, b, acc_0);
    put(n, b + 1u, acc_1);
//# end
}

//# if RELU == 0
fn put(n: u32, b: u32, v: vec4<f32>) {
    if (b < OC4 * OH * OW) {
        let w_out = b % OW;
        let h = (b / OW) % OH;
        y_put(n * OC4 * OH * OW + b, mask(residual(v, n, b / (OH * OW), h, w_out), n, b / (OH * OW), h, w_out));
    }
}
//# end
