// Convolution, forward and input gradient. Both are the same gather: with the weights transposed and turned by 180° on
// the host, the input gradient of a convolution is a convolution of dy, spread out by the stride (DILATE).
//
// I* is the shape that is read, O* the shape that is written, channels in blocks of four. Grid: x runs over the rows
// and tiles of pixels of one sample, y over the tiles of output channels of one slice of weights, z over the samples;
// in the broadcast kernels x runs over those of all samples, one after the other, and the lowest bit of y is the parity
// of the rows where there are two. A tile is QT blocks of output channels × PX pixels of a row; OT tiles of blocks.
//
// Canonical order: an output is accumulated by one invocation from zero with fma, over (block of four input channels,
// kernel row, kernel column, channel within the block), then + bias, then + residual. Every variant keeps it, so every
// variant gives the same bits. Taps outside the image add w·0.

//# kernel conv2d_forward conv2d_input_grad conv2d_forward_tiled conv2d_input_grad_tiled conv2d_input_grad_parity
struct Slice {
    first: vec4<u32>,                         // x: first block of four output channels; y: 0
    bias: array<vec4<f32>, SLICE>,            // [SLICE] of 4 output channels
    weight: array<vec4<f32>, SLICE * STRIP>,  // [SLICE, IC4, R, S, CB] of 4 output channels
}
const STRIP: u32 = IC4 * R * S * CB; // CB: input channels in a block, 4 unless there are fewer in all

// Where sums begin: a zero that compilers cannot see. Where Mesa sees it, and two products are all there is, it adds
// the bias to the first one: x₁w₁ + (x₀w₀ + b).
fn zero() -> vec4<f32> {
    return vec4<f32>(bitcast<f32>(w.first.y));
}

//# kernel conv2d_forward conv2d_input_grad
// Naive: one invocation for each word of signs, 8 channels × 4 pixels of a row, in plain loops.
const EDGE: u32 = u32(max(i32(PAD), 0));
//# w: weights Slice
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let h = id.x / OW4;
    let w4 = id.x % OW4;
    let n = id.z;
    if (h >= OH) {
        return;
    }
    var acc: array<vec4<f32>, 8>; // [2 blocks of channels, 4 pixels]
    for (var k = 0u; k < 8u; k++) {
        acc[k] = zero();
    }
    for (var c = 0u; c < IC4; c++) {
        for (var r = 0u; r < R; r++) {
            for (var s = 0u; s < S; s++) {
                for (var p = 0u; p < 4u; p++) {
                    // Position in the input after it is spread out by DILATE; between its pixels there is nothing to
                    // add. Counted from EDGE pixels before it: GLSL has no remainders of negative numbers.
                    let u = h * STRIDE + r + EDGE * DILATE - PAD;
                    let v = (4u * w4 + p) * STRIDE + s + EDGE * DILATE - PAD;
                    if ((u % DILATE != 0u) | (v % DILATE != 0u)) {
                        continue;
                    }
                    let x = x_pad(n, c, i32(u / DILATE) - i32(EDGE), i32(v / DILATE) - i32(EDGE));
                    let base = (2u * id.y * IC4 + c) * R * S * CB + (r * S + s) * CB;
//# for i in 0..CB
                    acc[p] = fma(vec4<f32>(x[$i]), w.weight[base + $(i)u], acc[p]);
                    acc[4u + p] = fma(vec4<f32>(x[$i]), w.weight[base + STRIP + $(i)u], acc[4u + p]);
//# end
                }
            }
        }
    }
    let c8 = w.first.x / 2u + id.y;
    var word = 0u;
    var bad = false;
    for (var k = 0u; k < 2u; k++) {
        for (var p = 0u; p < 4u; p++) {
            let q = 4u * w4 + p;
            let c4 = 2u * c8 + k;
            if ((c4 < OC4) & (q < OW)) {
                let v = residual(acc[4u * k + p] + w.bias[2u * id.y + k], n, c4, h, q);
//# if RELU == 1
                bad |= not_finite(v);
                let bits = positive(v);
                word |= bits << (8u * p + 4u * k);
                y_put(out_index(n, c4, h, q), gate(v, bits));
//# else
                y_put(out_index(n, c4, h, q), mask(v, n, c4, h, q));
//# end
            }
        }
    }
//# if RELU == 1
    if (bad) {
        atomicOr(&health[n], 1u);
    }
    // The last slice may hold blocks that do not exist, whose word would be another sample's.
    if (c8 < OC8) {
        signs[sign_index(n, c8, h, w4)] = word;
    }
//# end
}

//# kernel conv2d_forward_tiled conv2d_input_grad_tiled
// Stride 1 or 2 forward, stride 1 backward: QT blocks of four channels × PX pixels of one row in registers. One row of
// the input serves all S taps of a kernel row; weights are the same address for all invocations of a tile column.
//# w: weights Slice
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let h = id.x / ((OW + PX - 1u) / PX);
    let q0 = (id.x % ((OW + PX - 1u) / PX)) * PX;
    let n = id.z;
    if (h >= OH) {
        return;
    }
//# for q in 0..QT
//# for p in 0..PX
    var acc_$q_$p = zero();
//# end
//# end
    for (var cr = 0u; cr < IC4 * R; cr++) {
        let u = i32(h * STRIDE + cr % R) - i32(PAD);
        let v = i32(q0 * STRIDE) - i32(PAD);
//# for i in 0..(PX-1)*STRIDE+S
        let x_$i = x_pad(n, cr / R, u, v + $i);
//# end
        let base = (id.y * QT * IC4 * R + cr) * S * CB;
//# for s in 0..S
//# for i in 0..CB
//# for q in 0..QT
        let w_$q_$s_$i = w.weight[base + $(q)u * STRIP + $(s*CB+i)u];
//# for p in 0..PX
        acc_$q_$p = fma(vec4<f32>(x_$(p*STRIDE+s)[$i]), w_$q_$s_$i, acc_$q_$p);
//# end
//# end
//# end
//# end
    }
    let live = true;
    let c4_0 = w.first.x + id.y * QT;
//# for q in 0..QT
    let b_$q = w.bias[id.y * QT + $(q)u];
//# end
//# include store
}

//# kernel conv2d_input_grad_parity
// Stride 2 backward: an output pixel meets only the taps of its own parity. One invocation does two rows × PX pixels,
// so that all parities occur in it and none of its work is wasted: 9 taps for four pixels instead of 36.
//# w: weights Slice
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let h0 = id.x / ((OW + PX - 1u) / PX) * 2u;
    let q0 = (id.x % ((OW + PX - 1u) / PX)) * PX;
    let n = id.z;
    if (h0 >= OH) {
        return;
    }
//# for q in 0..QT
//# for y in 0..2
//# for p in 0..PX
    var acc_$q_$y_$p = zero();
//# end
//# end
//# end
    for (var c = 0u; c < IC4; c++) {
        let base = (id.y * QT * IC4 + c) * R * S * CB;
        // The rows and columns of dy that the taps reach, from (h0, q0) / 2 − PAD / 2 on.
//# for u in 0..(R-PAD)/2+PAD/2+1
//# for v in 0..(PX+S-2-PAD)/2+PAD/2+1
        let x_$u_$v = x_pad(n, c, i32(h0 / 2u) + $u - ($(PAD/2)), i32(q0 / 2u) + $v - ($(PAD/2)));
//# end
//# end
//# for y in 0..2
//# for r in 0..R
//# if (y + r + PAD) % 2 == 0
//# for s in 0..S
//# for i in 0..CB
//# for q in 0..QT
        let w_$y_$r_$s_$i_$q = w.weight[base + $(q)u * STRIP + $((r*S+s)*CB+i)u];
//# for p in 0..PX
//# if (p + s + PAD) % 2 == 0
        acc_$q_$y_$p = fma(vec4<f32>(x_$((y+r-PAD)/2+PAD/2)_$((p+s-PAD)/2+PAD/2)[$i]), w_$y_$r_$s_$i_$q, acc_$q_$y_$p);
//# end
//# end
//# end
//# end
//# end
//# end
//# end
//# end
    }
    let c4_0 = w.first.x + id.y * QT;
//# for q in 0..QT
    let b_$q = w.bias[id.y * QT + $(q)u];
//# end
//# for y in 0..2
    {
        let h = h0 + $(y)u;
        let live = h < OH;
//# for q in 0..QT
//# for p in 0..PX
        let acc_$q_$p = acc_$q_$y_$p;
//# end
//# end
//# include store
    }
//# end
}

//# kernel conv2d_forward_broadcast conv2d_input_grad_broadcast
// For adapters where a load costs far more than a multiply-add. The invocations of a subgroup lie side by side in a row
// and need the same weights: each of SHARE loads one texel in SHARE of a kernel row's weights and hands it round, and
// takes the pixels beyond its own from its neighbours where they are in the subgroup. Kernel rows are a loop, not
// unrolled, so that its body fits an instruction cache; one block's accumulators at a time fit the registers.
//# w: texels read                             [OT·QT] biases, then [OT, IC4, R, S, CB, QT] of 4 output channels
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
//# if RELU == 0
//# health: storage read array<u32>            [N], for its length alone
//# end
const TILES: u32 = (OW + PX - 1u) / PX;
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    // Invocations without work do that of the first one, and store nothing: all lanes must be there to hand round.
    let live = id.x < arrayLength(&health) * OH * TILES;
    let item = select(0u, id.x, live);
    let n = item / (OH * TILES);
    let h = item / TILES % OH;
    let q0 = item % TILES * PX;
    // Past the weights lie zeros. See `zero` above.
    let zero = w_at(OT * QT + OT * IC4 * R * TEXELS);
//# include hand
//# for q in 0..QT
//# for p in 0..PX
    var acc_$q_$p = zero;
//# end
//# end
    for (var cr = 0u; cr < IC4 * R; cr++) {
        let base = OT * QT + (id.y * IC4 * R + cr) * TEXELS;
//# include handed
        let u = i32(h * STRIDE + cr % R) - i32(PAD);
        let v = i32(q0 * STRIDE) - i32(PAD);
//# for i in OWN_0..OWN_1
        let x_$i = x_pad(n, cr / R, u, v + $i);
//# end
//# include neighbours
//# for q in 0..QT
//# for s in 0..S
//# for i in 0..CB
//# for p in 0..PX
        acc_$q_$p = fma(vec4<f32>(x_$(p*STRIDE+s)[$i]), u_$((s*CB+i)*QT+q), acc_$q_$p);
//# end
//# end
//# end
//# end
    }
    let c4_0 = id.y * QT;
//# for q in 0..QT
    let b_$q = w_at(c4_0 + $(q)u);
//# end
//# include store
}

//# kernel conv2d_input_grad_parity_broadcast
// Stride 2 backward in the same way. All rows of a workgroup have one parity, so that they meet the same kernel rows;
// columns of both parities are in every tile, each with its own taps.
//# w: texels read                             [OT·QT] biases, then [OT, IC4, R, S, CB, QT] of 4 output channels
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
//# health: storage read array<u32>            [N], for its length alone
const TILES: u32 = (OW + PX - 1u) / PX;
const ROWS: u32 = (OH + 1u) / 2u; // of one parity
@compute @workgroup_size(WG)
fn $entry(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let odd = group.y % 2u;
    let item = select(0u, id.x, id.x < arrayLength(&health) * ROWS * TILES);
    let n = item / (ROWS * TILES);
    let h = item / TILES % ROWS * 2u + odd;
    let q0 = item % TILES * PX;
    let live = (id.x < arrayLength(&health) * ROWS * TILES) & (h < OH);
    // Past the weights lie zeros. See `zero` above.
    let zero = w_at(OT * QT + OT * IC4 * R * TEXELS);
//# include hand
//# for q in 0..QT
//# for p in 0..PX
    var acc_$q_$p = zero;
//# end
//# end
    // One loop, not two: at the end of each llvmpipe blends all sums with what they were in lanes that had left it.
    let r_0 = (odd + PAD) & 1u;
    let rounds = IC4 * ((R + 1u - r_0) / 2u);
    var r = r_0;
    var c = 0u;
    for (var round = 0u; round < rounds; round++) {
        let base = OT * QT + ((group.y / 2u * IC4 + c) * R + r) * TEXELS;
//# include handed
        // h + r − PAD is even, and so is q0.
        let u = (i32(h + r) - i32(PAD)) / 2;
        let v = i32(q0 / 2u) - ($(PAD/2));
//# for i in OWN_0..OWN_1
        let x_$i = x_pad(n, c, u, v + $i);
//# end
//# include neighbours
//# for q in 0..QT
//# for s in 0..S
//# for i in 0..CB
//# for p in 0..PX
//# if (p + s + PAD) % 2 == 0
        acc_$q_$p = fma(vec4<f32>(x_$((p+s-PAD)/2+PAD/2)[$i]), u_$((s*CB+i)*QT+q), acc_$q_$p);
//# end
//# end
//# end
//# end
//# end
        r += 2u;
        c += select(0u, 1u, r >= R);
        r = select(r, r_0, r >= R);
    }
    let c4_0 = group.y / 2u * QT;
//# for q in 0..QT
    let b_$q = w_at(c4_0 + $(q)u);
//# end
//# include store
}
