// Images in, gradients out, and a ReLU that could not be fused into the layer before it.

//# kernel normalise_forward normalise_input_grad
struct Channels {
    mean: array<vec4<f32>, C4>,     // [C4] of 4 channels
    inv_std: array<vec4<f32>, C4>,  // [C4] of 4 channels; 0 for channels that do not exist
}

//# kernel normalise_forward
// Pixels become texels: (x − mean) · 1/std, a difference and a product, with nothing to contract.
//# channels: uniform Channels
//# x: storage read array<f32>                 [N, C, H, W], pixels in [0, 1]
//# y: activation write                        [N, C4, H, W] of 4 channels
@compute @workgroup_size(WG)
fn normalise_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * H * W) {
        return;
    }
    let c4 = id.x / (H * W);
    let i = (id.z * C + 4u * c4) * H * W + id.x % (H * W);
    var v = vec4<f32>();
//# for i in 0..4
    if (4u * c4 + $(i)u < C) {
        v[$i] = (x[i + $(i)u * H * W] - channels.mean[c4][$i]) * channels.inv_std[c4][$i];
    }
//# end
    y_put(id.z * C4 * H * W + id.x, v);
}

//# kernel normalise_input_grad
//# channels: uniform Channels
//# dy: activation read                        [N, C4, H, W] of 4 channels
//# dx: storage update array<f32>              [N, C, H, W], per pixel unit
//# if SCALED == 1
//# unscale: storage read array<f32>           [N], a power of two
//# end
@compute @workgroup_size(WG)
fn normalise_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * H * W) {
        return;
    }
    let c4 = id.x / (H * W);
    let i = (id.z * C + 4u * c4) * H * W + id.x % (H * W);
//# if SCALED == 1
    let v = dy_at(id.z * C4 * H * W + id.x) * channels.inv_std[c4] * unscale[id.z];
//# else
    let v = dy_at(id.z * C4 * H * W + id.x) * channels.inv_std[c4];
//# end
//# for i in 0..4
    if (4u * c4 + $(i)u < C) {
        dx[i + $(i)u * H * W] = v[$i];
    }
//# end
}

//# kernel relu_forward
// Backward there is nothing to do: whoever computes the gradient of this ReLU's output masks it with the signs as it
// stores it.
//# x: activation read                         [N, OC4, OH, OW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
alias Channel = u32;

fn channel(c4: u32) -> Channel {
    return c4;
}

fn value(its: Channel, i: u32) -> vec4<f32> {
    return x_at(i);
}

//# include words

//# kernel logits_forward
// Texels become plain numbers, for reading back.
//# x: activation read                         [N, K4] of 4 classes
//# z: storage update array<f32>               [N, K]
@compute @workgroup_size(WG)
fn logits_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= K) {
        return;
    }
    let v = x_at(id.z * ((K + 3u) / 4u) + id.x / 4u);
    z[id.z * K + id.x] = v[id.x % 4u];
}
