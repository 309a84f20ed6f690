// A gain and a bias for each channel: batch norm with the statistics of training, where no convolution before it could take it in.
// Channels that do not exist have x = 0, a = b = 0: they stay zero.

//# kernel affine_forward
// y = a·x + b, in one `fma`; one invocation for each word of signs: 8 channels × 4 pixels of a row.
//# x: activation read                         [N, OC4, OH, OW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# affine: storage read array<vec4<f32>>      [OC4, 2] of 4 channels: a, b
//# include epilogue
@compute @workgroup_size(WG)
fn affine_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= OC8 * OH * OW4) {
        return;
    }
    let n = id.z;
    let w4 = id.x % OW4;
    let h = (id.x / OW4) % OH;
    let c8 = id.x / (OW4 * OH);
//# if RELU == 1
    var word = 0u;
    var bad = false;
//# end
//# for k in 0..2
    if (2u * c8 + $(k)u < OC4) {
        let c4 = 2u * c8 + $(k)u;
        let gain = affine[2u * c4];
        let bias = affine[2u * c4 + 1u];
//# for p in 0..4
        if (4u * w4 + $(p)u < OW) {
            let i = out_index(n, c4, h, 4u * w4 + $(p)u);
            let v = fma(x_at(i), gain, bias);
//# if RELU == 1
            bad |= not_finite(v);
            let bits = positive(v);
            word |= bits << $(8*p+4*k)u;
            y_put(i, gate(v, bits));
//# else
            y_put(i, v);
//# end
        }
//# end
    }
//# end
//# if RELU == 1
    if (bad) {
        atomicOr(&health[n], 1u);
    }
    signs[sign_index(n, c8, h, w4)] = word;
//# end
}

//# kernel affine_input_grad
// dx = a·dy; where this is the first layer of a residual body, what came round it is added in the same `fma`. Then the mask.
//# dy: activation read                        [N, OC4, OH, OW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# affine: storage read array<vec4<f32>>      [OC4, 2] of 4 channels: a, b
//# include epilogue
@compute @workgroup_size(WG)
fn affine_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= OC4 * OH * OW) {
        return;
    }
    let n = id.z;
    let w = id.x % OW;
    let h = (id.x / OW) % OH;
    let c4 = id.x / (OH * OW);
    let i = out_index(n, c4, h, w);
//# if RESIDUAL == 0
    let v = dy_at(i) * affine[2u * c4];
//# else
    let v = fma(dy_at(i), affine[2u * c4], added(n, c4, h, w));
//# end
    y_put(i, mask(v, n, c4, h, w));
}
