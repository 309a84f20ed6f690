// A gain and a bias for each channel: batch norm with the statistics of training, where no convolution before it could
// take it in. Channels that do not exist have x = 0, a = b = 0: they stay zero.

//# kernel affine_forward
// y = a·x + b, in one `fma`.
//# x: activation read                         [N, OC4, OH, OW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# affine: storage read array<vec4<f32>>      [OC4, 2] of 4 channels: a, b
//# include epilogue
struct Channel {
    gain: vec4<f32>,
    bias: vec4<f32>,
}

fn channel(c4: u32) -> Channel {
    return Channel(affine[2u * c4], affine[2u * c4 + 1u]);
}

fn value(its: Channel, i: u32) -> vec4<f32> {
    return fma(x_at(i), its.gain, its.bias);
}

//# include words

//# kernel affine_input_grad
// dx = a·dy; where this is the first layer of a residual body, what came round it is added in the same `fma`. Then the
// mask.
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
