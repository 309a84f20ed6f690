// Pooling, forward and input gradient, in a fixed order per sample. One invocation for one texel (a pixel of four
// channels) that is written, but where a kernel says otherwise. I* is the larger shape (the input), P×Q the pooled one,
// C4 blocks of channels in both.

//# kernel max_pool_forward
// The first maximum wins, row by row. Where it was (row·SIZE + column, one byte a channel) is all that backward needs.
//# x: activation read                         [N, C4, IH, IW] of 4 channels
//# y: activation write                        [N, C4, P, Q] of 4 channels
//# argmax: storage update array<u32>          [N, C4, P, Q]
//# health: storage update array<atomic<u32>>  [N]
@compute @workgroup_size(WG)
fn max_pool_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * P * Q) {
        return;
    }
    let n = id.z;
    let q = id.x % Q;
    let p = (id.x / Q) % P;
    let plane = (n * C4 + id.x / (P * Q)) * IH;
    var best = vec4<f32>();
    var at = vec4<u32>();
    var first = true;
    var exponent = vec4<u32>();
    for (var r = 0u; r < SIZE; r++) {
        for (var s = 0u; s < SIZE; s++) {
            // A row or column before the first wraps to a large number, and is outside as one after the last is.
            let h = p * STRIDE + r - PAD;
            let w = q * STRIDE + s - PAD;
            if ((h >= IH) | (w >= IW)) {
                continue;
            }
            let x = x_at((plane + h) * IW + w);
            exponent = max(exponent, bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u));
            let better = (x > best) | vec4<bool>(first);
            best = select(best, x, better);
            at = select(at, vec4<u32>(r * SIZE + s), better);
            first = false;
        }
    }
    // A comparison drops NaN: the sample is marked here, for nothing later would see it.
    if (any(exponent == vec4<u32>(0x7f800000u))) {
        atomicOr(&health[n], 1u);
    }
    let i = n * C4 * P * Q + id.x;
    y_put(i, best);
    argmax[i] = at.x | (at.y << 8u) | (at.z << 16u) | (at.w << 24u);
}

//# kernel max_pool_input_grad
// Gathers: each input pixel asks the windows that cover it whether it was their maximum.
//# dy: activation read                        [N, C4, P, Q] of 4 channels
//# argmax: storage read array<u32>            [N, C4, P, Q]
//# y: activation write                        [N, C4, IH, IW] of 4 channels
//# include epilogue
@compute @workgroup_size(WG)
fn max_pool_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * IH * IW) {
        return;
    }
    let n = id.z;
    let w = id.x % IW;
    let h = (id.x / IW) % IH;
    let c4 = id.x / (IH * IW);
    var sum = vec4<f32>();
    for (var a = 0u; a < COVER; a++) {
        for (var b = 0u; b < COVER; b++) {
            let p = first_window(h) + a;
            let q = first_window(w) + b;
            let covers = (p <= last_window(h, P)) & (q <= last_window(w, Q));
            let i = select(0u, ((n * C4 + c4) * P + p) * Q + q, covers);
            let here = vec4<u32>((h + PAD - p * STRIDE) * SIZE + w + PAD - q * STRIDE);
            let part = select(vec4<f32>(), dy_at(i), (places(argmax[i]) == here) & vec4<bool>(covers));
//# if COVER == 1
            sum = part; // nothing is added, so −0 stays what it is, as where a whole window is taken at once
//# else
            sum += part;
//# end
        }
    }
    y_put(out_index(n, c4, h, w), mask(sum, n, c4, h, w));
}

//# kernel max_pool_input_grad_windows
// The same where windows are 2×2, side by side: one invocation for a window's four pixels, or for what lies behind the
// last window of a row or column and belongs to none.
//# dy: activation read                        [N, C4, P, Q] of 4 channels
//# argmax: storage read array<u32>            [N, C4, P, Q]
//# y: activation write pairs(OW)              [N, C4, IH, IW] of 4 channels
//# include epilogue
const CP: u32 = (IH + 1u) / 2u;
const CQ: u32 = (IW + 1u) / 2u;
@compute @workgroup_size(WG)
fn max_pool_input_grad_windows(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * CP * CQ) {
        return;
    }
    let n = id.z;
    let q = id.x % CQ;
    let p = (id.x / CQ) % CP;
    let c4 = id.x / (CP * CQ);
    let is_window = (p < P) & (q < Q);
    let i = select(0u, ((n * C4 + c4) * P + p) * Q + q, is_window);
    let at = places(argmax[i]);
    let whole = select(vec4<f32>(), dy_at(i), is_window);
//# for r in 0..2
    if (2u * p + $(r)u < IH) {
        let h = 2u * p + $(r)u;
//# for s in 0..2
        let v_$s = select(vec4<f32>(), whole, at == vec4<u32>($(2*r+s)u));
//# end
//# if MASK == 1
        // Both pixels' signs are in one word.
        let bits = signs[sign_index(n, c4 / 2u, h, q / 2u)] >> (16u * (q % 2u) + 4u * (c4 % 2u));
        let y_0 = gate(v_0, bits);
        let y_1 = gate(v_1, bits >> 8u);
//# else
        let y_0 = v_0;
        let y_1 = v_1;
//# end
//# if OW % 2 == 0
        y_put_pair(out_index(n, c4, h, 2u * q) / 2u, y_0, y_1);
//# else
        y_put(out_index(n, c4, h, 2u * q), y_0);
        if (2u * q + 1u < IW) {
            y_put(out_index(n, c4, h, 2u * q + 1u), y_1);
        }
//# end
    }
//# end
}

//# kernel max_pool_input_grad max_pool_input_grad_windows
// Where in a window the maxima of four channels were.
fn places(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}

//# kernel avg_pool_forward
// Row by row, the zeros of the padding counted in.
//# x: activation read                         [N, C4, IH, IW] of 4 channels
//# y: activation write                        [N, C4, P, Q] of 4 channels
@compute @workgroup_size(WG)
fn avg_pool_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * P * Q) {
        return;
    }
    let n = id.z;
    let q = id.x % Q;
    let p = (id.x / Q) % P;
    let plane = (n * C4 + id.x / (P * Q)) * IH;
    var sum = vec4<f32>();
    for (var r = 0u; r < SIZE; r++) {
        for (var s = 0u; s < SIZE; s++) {
            let h = p * STRIDE + r - PAD;
            let w = q * STRIDE + s - PAD;
            if ((h < IH) & (w < IW)) {
                let i = (plane + h) * IW + w;
                sum += x_at(i);
            }
        }
    }
    y_put(n * C4 * P * Q + id.x, sum * (1.0 / f32(SIZE * SIZE)));
}

//# kernel avg_pool_input_grad
// Gathers: each input pixel takes its share from the windows that cover it, row by row.
//# dy: activation read                        [N, C4, P, Q] of 4 channels
//# y: activation write                        [N, C4, IH, IW] of 4 channels
//# include epilogue
@compute @workgroup_size(WG)
fn avg_pool_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * IH * IW) {
        return;
    }
    let n = id.z;
    let w = id.x % IW;
    let h = (id.x / IW) % IH;
    let c4 = id.x / (IH * IW);
    var sum = vec4<f32>();
    for (var a = 0u; a < COVER; a++) {
        for (var b = 0u; b < COVER; b++) {
            let p = first_window(h) + a;
            let q = first_window(w) + b;
            let covers = (p <= last_window(h, P)) & (q <= last_window(w, Q));
            let i = select(0u, ((n * C4 + c4) * P + p) * Q + q, covers);
            sum += select(vec4<f32>(), dy_at(i), covers);
        }
    }
    y_put(out_index(n, c4, h, w), mask(sum * (1.0 / f32(SIZE * SIZE)), n, c4, h, w));
}

//# kernel max_pool_input_grad avg_pool_input_grad
// The first of `windows` that reaches row (column) h; the last one starts at or before it. There are COVER at most.
fn first_window(h: u32) -> u32 {
    return select(0u, (h + PAD + STRIDE - SIZE) / STRIDE, h + PAD + 1u > SIZE);
}

fn last_window(h: u32, windows: u32) -> u32 {
    return min((h + PAD) / STRIDE, windows - 1u);
}

//# kernel global_avg_pool_forward
// One invocation adds a whole plane, row by row.
//# x: activation read                         [N, C4, IH, IW] of 4 channels
//# y: activation write                        [N, C4] of 4 channels
@compute @workgroup_size(WG)
fn global_avg_pool_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4) {
        return;
    }
    let i = id.z * C4 + id.x;
    var sum = vec4<f32>();
    for (var k = 0u; k < IH * IW; k++) {
        sum += x_at(i * IH * IW + k);
    }
    y_put(i, sum * (1.0 / f32(IH * IW)));
}

//# kernel global_avg_pool_input_grad
//# dy: activation read                        [N, C4] of 4 channels
//# y: activation write                        [N, C4, IH, IW] of 4 channels
//# include epilogue
@compute @workgroup_size(WG)
fn global_avg_pool_input_grad(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= C4 * IH * IW) {
        return;
    }
    let n = id.z;
    let w = id.x % IW;
    let h = (id.x / IW) % IH;
    let c4 = id.x / (IH * IW);
    y_put(out_index(n, c4, h, w), mask(dy_at(n * C4 + c4) * (1.0 / f32(IH * IW)), n, c4, h, w));
}
