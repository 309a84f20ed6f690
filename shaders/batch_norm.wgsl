// Batch norm in training mode: mean and variance of the batch, forward and input gradient. Samples are coupled here and
// nowhere else; plans of `Network` have none of these kernels.
//
// M = N·PIXELS values of a channel. Forward: x̂ = (x − mean) / √(variance + eps), y = γ·x̂ + β. Backward, through the
// statistics:
//
//     dx = γ / √(variance + eps) · (dy − mean of dy − x̂ · mean of dy·x̂)
//
// Both ways it takes three dispatches: each sample's sums of a channel, those of all samples, and the values. All sums
// run in a fixed order: each lane adds up its own, then halves are added to halves (WG is a power of two). Squared
// deviations are taken from the mean, never as a difference of squares: first from the sample's own, and of these means
// from that of all.
//
// Channels that do not exist have x = 0, γ = β = 0: they stay zero.

//# kernel batch_norm_forward_sample batch_norm_forward_batch batch_norm_input_grad_sample batch_norm_input_grad_batch
var<workgroup> parts: array<vec4<f32>, WG>;

fn total(lane: u32, v: vec4<f32>) -> vec4<f32> {
    parts[lane] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            parts[lane] = parts[lane] + parts[lane + half];
        }
        workgroupBarrier();
    }
    let sum = parts[0];
    workgroupBarrier();
    return sum;
}

//# kernel batch_norm_forward_sample
// One workgroup for a plane of four channels.
//# x: activation read                         [N, C4, PIXELS] of 4 channels
//# part: activation write                     [N, C4, 2] of 4 channels: mean, and the sum of squared deviations from it
@compute @workgroup_size(WG)
fn $entry(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let plane = id.z * C4 + id.x;
    var sum = vec4<f32>();
    for (var i = lane; i < PIXELS; i += WG) {
        sum += x_at(plane * PIXELS + i);
    }
    let mean = total(lane, sum) * (1.0 / f32(PIXELS));
    var squares = vec4<f32>();
    for (var i = lane; i < PIXELS; i += WG) {
        let d = x_at(plane * PIXELS + i) - mean;
        squares = fma(d, d, squares);
    }
    let all = total(lane, squares);
    if (lane == 0u) {
        part_put(2u * plane, mean);
        part_put(2u * plane + 1u, all);
    }
}

//# kernel batch_norm_forward_batch
// One workgroup for four channels of the whole batch. EPS has the bits of eps.
//# part: activation read                      [N, C4, 2] of 4 channels: mean, and the sum of squared deviations from it
//# shared_sums: storage update array<vec4<f32>>  [C4, 4] of 4 channels: mean, 1/deviation; then what backward adds
//# health: storage read array<u32>            [N], for its length alone
@compute @workgroup_size(WG)
fn $entry(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let samples = arrayLength(&health);
    var sum = vec4<f32>();
    for (var n = lane; n < samples; n += WG) {
        sum += part_at(2u * (n * C4 + id.x));
    }
    let mean = total(lane, sum) / f32(samples);
    var squares = vec4<f32>();
    for (var n = lane; n < samples; n += WG) {
        let d = part_at(2u * (n * C4 + id.x)) - mean;
        squares += fma(d * f32(PIXELS), d, part_at(2u * (n * C4 + id.x) + 1u));
    }
    let variance = total(lane, squares) / (f32(samples) * f32(PIXELS));
    if (lane == 0u) {
        shared_sums[4u * id.x] = mean;
        shared_sums[4u * id.x + 1u] = vec4<f32>(1.0) / sqrt(variance + vec4<f32>(bitcast<f32>(EPS)));
    }
}

//# kernel batch_norm_forward
// y = γ·x̂ + β, x̂ = (x − mean) / deviation.
//# x: activation read                         [N, OC4, OH, OW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# shared_sums: storage read array<vec4<f32>>  [OC4, 4] of 4 channels: mean, 1/deviation, …
//# affine: storage read array<vec4<f32>>      [OC4, 2] of 4 channels: γ, β
//# include epilogue
struct Channel {
    mean: vec4<f32>,
    inverse: vec4<f32>,
    gain: vec4<f32>,
    bias: vec4<f32>,
}

fn channel(c4: u32) -> Channel {
    return Channel(shared_sums[4u * c4], shared_sums[4u * c4 + 1u], affine[2u * c4], affine[2u * c4 + 1u]);
}

fn value(its: Channel, i: u32) -> vec4<f32> {
    return fma((x_at(i) - its.mean) * its.inverse, its.gain, its.bias);
}

//# include words

//# kernel batch_norm_input_grad_sample
// One workgroup for a plane of four channels.
//# x: activation read                         [N, C4, PIXELS] of 4 channels, what entered forward
//# dy: activation read                        [N, C4, PIXELS] of 4 channels
//# shared_sums: storage read array<vec4<f32>>  [C4, 4] of 4 channels: mean, 1/deviation, …
//# part: activation write                     [N, C4, 2] of 4 channels: sums of dy and of dy·x̂
@compute @workgroup_size(WG)
fn $entry(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let plane = id.z * C4 + id.x;
    let mean = shared_sums[4u * id.x];
    let inverse = shared_sums[4u * id.x + 1u];
    var sum = vec4<f32>();
    var product = vec4<f32>();
    for (var i = lane; i < PIXELS; i += WG) {
        let at = plane * PIXELS + i;
        let d = dy_at(at);
        sum += d;
        product = fma((x_at(at) - mean) * inverse, d, product);
    }
    let all = total(lane, sum);
    let products = total(lane, product);
    if (lane == 0u) {
        part_put(2u * plane, all);
        part_put(2u * plane + 1u, products);
    }
}

//# kernel batch_norm_input_grad_batch
// One workgroup for four channels of the whole batch.
//# part: activation read                      [N, C4, 2] of 4 channels: sums of dy and of dy·x̂
//# shared_sums: storage update array<vec4<f32>>  [C4, 4] of 4 channels: mean, 1/deviation; means of dy and of dy·x̂
//# health: storage read array<u32>            [N], for its length alone
@compute @workgroup_size(WG)
fn $entry(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let samples = arrayLength(&health);
    var sum = vec4<f32>();
    var product = vec4<f32>();
    for (var n = lane; n < samples; n += WG) {
        sum += part_at(2u * (n * C4 + id.x));
        product += part_at(2u * (n * C4 + id.x) + 1u);
    }
    let values = f32(samples) * f32(PIXELS);
    let all = total(lane, sum) / values;
    let products = total(lane, product) / values;
    if (lane == 0u) {
        shared_sums[4u * id.x + 2u] = all;
        shared_sums[4u * id.x + 3u] = products;
    }
}

//# kernel batch_norm_input_grad
// One invocation for a texel. Before batch norm there is a convolution: nothing to mask, nothing to add.
//# x: activation read                         [N, C4, PIXELS] of 4 channels, what entered forward
//# dy: activation read                        [N, C4, PIXELS] of 4 channels
//# y: activation write                        [N, C4, PIXELS] of 4 channels, dx
//# shared_sums: storage read array<vec4<f32>>  [C4, 4] of 4 channels: mean, 1/deviation, means of dy and of dy·x̂
//# affine: storage read array<vec4<f32>>      [C4, 2] of 4 channels: γ, β
@compute @workgroup_size(WG)
fn batch_norm_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * PIXELS) {
        return;
    }
    let c4 = id.x / PIXELS;
    let i = id.z * C4 * PIXELS + id.x;
    let inverse = shared_sums[4u * c4 + 1u];
    let normal = (x_at(i) - shared_sums[4u * c4]) * inverse;
    let mean_dy = shared_sums[4u * c4 + 2u];
    let centred = dy_at(i) - mean_dy;
    y_put(i, fma(-normal, shared_sums[4u * c4 + 3u], centred) * (affine[2u * c4] * inverse));
}
