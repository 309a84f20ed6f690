// Fully connected layer over all texels of a sample, forward and input gradient.
//
// L texels of CB channels are read ([IC4, H, W] flattened), in the canonical order (texel, channel within it).

//# kernel linear_forward linear_input_grad
struct Slice {
    first: vec4<u32>,                         // x: first block of four outputs; y: 0
    bias: array<vec4<f32>, SLICE>,            // [SLICE] of 4 outputs
    weight: array<vec4<f32>, SLICE * STRIP>,  // [SLICE, L, CB] of 4 outputs
}
const STRIP: u32 = L * CB;

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
    // Sums begin at a zero that compilers cannot see: `zero` in conv2d.wgsl.
    var acc_0 = vec4<f32>(bitcast<f32>(w.first.y));
    var acc_1 = acc_0;
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
    put_relu(n, b, acc_0, acc_1);
//# else
    put(n, b, acc_0);
    put(n, b + 1u, acc_1);
//# end
}

//# kernel linear_forward linear_input_grad linear_forward_broadcast linear_input_grad_broadcast
//# if RELU == 1
// Two blocks from an even one on, which share a word of signs. OH = OW = 1: blocks are blocks of channels.
fn put_relu(n: u32, b: u32, v_0: vec4<f32>, v_1: vec4<f32>) {
    if (not_finite(v_0) || not_finite(v_1)) {
        atomicOr(&health[n], 1u);
    }
    let bits_0 = positive(v_0);
    let bits_1 = positive(v_1);
    if (b < OC4) {
        y_put(out_index(n, b, 0u, 0u), gate(v_0, bits_0));
        signs[sign_index(n, b / 2u, 0u, 0u)] = bits_0 | (bits_1 << 4u);
    }
    if (b + 1u < OC4) {
        y_put(out_index(n, b + 1u, 0u, 0u), gate(v_1, bits_1));
    }
}
//# end
//# if RELU == 0
fn put(n: u32, b: u32, v: vec4<f32>) {
    if (b < OC4 * OH * OW) {
        let w_out = b % OW;
        let h = (b / OW) % OH;
        y_put(n * OC4 * OH * OW + b, mask(residual(v, n, b / (OH * OW), h, w_out), n, b / (OH * OW), h, w_out));
    }
}
//# end

//# kernel linear_forward_broadcast linear_input_grad_broadcast
// QT blocks of four outputs × PX samples in registers. Invocations side by side have other samples and the same
// weights: each loads one texel in SHARE of them and hands it round.
//# w: texels read                             [OT·QT] biases, then [OT, L, CB, QT] of 4 outputs
//# x: activation read                         [N, L] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# if RELU == 0
//# health: storage read array<u32>            [N], for its length alone
//# end
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let last = arrayLength(&health) - 1u;
    // Past the weights lie zeros.
    let zero = w_at(OT * QT + OT * L * TEXELS);
//# include hand
//# for p in 0..PX
    let n_$p = min(id.x * PX + $(p)u, last);
//# for q in 0..QT
    var acc_$q_$p = zero;
//# end
//# end
    for (var l = 0u; l < L; l++) {
        let base = OT * QT + (id.y * L + l) * TEXELS;
//# include handed
//# for p in 0..PX
        let x_$p = x_at(n_$p * L + l);
//# end
//# for q in 0..QT
//# for i in 0..CB
//# for p in 0..PX
        acc_$q_$p = fma(vec4<f32>(x_$p[$i]), u_$(i*QT+q), acc_$q_$p);
//# end
//# end
//# end
    }
    let b = id.y * QT;
//# for q in 0..QT
    let b_$q = w_at(b + $(q)u);
//# end
//# for p in 0..PX
    if (id.x * PX + $(p)u <= last) {
//# if RELU == 1
//# for k in 0..QT/2
        put_relu(n_$p, b + $(2*k)u, acc_$(2*k)_$p + b_$(2*k), acc_$(2*k+1)_$p + b_$(2*k+1));
//# end
//# else
//# for q in 0..QT
        put(n_$p, b + $(q)u, acc_$q_$p + b_$q);
//# end
//# end
    }
//# end
}
