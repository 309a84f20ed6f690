// Convolution 3×3, stride 1, padding 1, by Winograd's F(4×4, 3×3), forward and input gradient: sixteen outputs from 36
// products for an input channel, where the definition takes 144. Its roundings are not those of conv2d.wgsl: only for
// `--math fast`.
//
// A tile is 4×4 outputs of one channel. Of each input channel the 6×6 pixels from (h − 1, w − 1) on are transformed,
// V = Bᵀ d B, columns first. At each of the 36 places the products with the transformed weights U = G g Gᵀ (made on the
// host in f64) are summed from zero with fma over (block of four input channels, channel within the block). The outputs
// are Aᵀ M A, columns first, then + bias, then + residual. Every kernel here keeps this order, so every one gives the
// same bits, whatever the batch.
//
// For the input gradient the weights are transposed and turned by 180° before they are transformed.

struct Six {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    a4: vec4<f32>,
    a5: vec4<f32>,
}

struct Four {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
}

// Bᵀ d, for the points 0, 1, −1, 2, −2 and infinity.
fn before(d: Six) -> Six {
    let a = fma(vec4<f32>(-4.0), d.a2, d.a4);
    let b = fma(vec4<f32>(-4.0), d.a1, d.a3);
    let c = d.a4 - d.a2;
    let e = d.a3 - d.a1;
    return Six(
        fma(vec4<f32>(4.0), d.a0, fma(vec4<f32>(-5.0), d.a2, d.a4)),
        a + b,
        a - b,
        fma(vec4<f32>(2.0), e, c),
        fma(vec4<f32>(-2.0), e, c),
        fma(vec4<f32>(4.0), d.a1, fma(vec4<f32>(-5.0), d.a3, d.a5)),
    );
}

// Aᵀ m.
fn after(m: Six) -> Four {
    let a = m.a1 + m.a2;
    let b = m.a1 - m.a2;
    let c = m.a3 + m.a4;
    let e = m.a3 - m.a4;
    return Four(
        (m.a0 + a) + c,
        fma(vec4<f32>(2.0), e, b),
        fma(vec4<f32>(4.0), c, a),
        fma(vec4<f32>(8.0), e, b) + m.a5,
    );
}

// Tiles of one sample, across and down.
const ACROSS: u32 = (OW + 3u) / 4u;
const DOWN: u32 = (OH + 3u) / 4u;

//# kernel conv2d_forward_winograd conv2d_input_grad_winograd
// Naive: one invocation for each tile of QT = 2 blocks of channels, in plain loops.
//# w: texels read                             [OT·QT] biases, then [OT, IC4, QT, 36, 4] of 4 output channels
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# include pad
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.z;
    let h0 = id.x / ACROSS * 4u;
    let q0 = id.x % ACROSS * 4u;
    if (h0 >= OH) {
        return;
    }
    let u = i32(h0) - 1;
    let v = i32(q0) - 1;
    var m: array<vec4<f32>, 72>; // [2 blocks of channels, 36 places]
    for (var k = 0u; k < 72u; k++) {
        m[k] = w_at(OT * QT + OT * IC4 * QT * 144u); // a zero, see conv2d.wgsl
    }
    for (var c = 0u; c < IC4; c++) {
        var d: array<vec4<f32>, 36>;
        for (var j = 0u; j < 6u; j++) {
            let w = v + i32(j);
            let t = before(Six(
//# for i in 0..6
                x_pad(n, c, u + $i, w),
//# end
            ));
//# for i in 0..6
            d[$(6*i)u + j] = t.a$i;
//# end
        }
        for (var i = 0u; i < 36u; i += 6u) {
            let t = before(Six(d[i], d[i + 1u], d[i + 2u], d[i + 3u], d[i + 4u], d[i + 5u]));
//# for j in 0..6
            d[i + $(j)u] = t.a$j;
//# end
        }
        let base = OT * QT + (id.y * IC4 + c) * (QT * 144u);
        for (var k = 0u; k < 72u; k++) {
//# for i in 0..4
            m[k] = fma(vec4<f32>(d[k % 36u][$i]), w_at(base + 4u * k + $(i)u), m[k]);
//# end
        }
    }
    var y: array<vec4<f32>, 32>; // [2 blocks of channels, 4 rows, 4 pixels]
    for (var q = 0u; q < 2u; q++) {
        var s: array<vec4<f32>, 24>; // [4 rows, 6 columns]
        for (var j = 0u; j < 6u; j++) {
            let k = 36u * q + j;
            let t = after(Six(m[k], m[k + 6u], m[k + 12u], m[k + 18u], m[k + 24u], m[k + 30u]));
//# for i in 0..4
            s[$(6*i)u + j] = t.a$i;
//# end
        }
        for (var i = 0u; i < 4u; i++) {
            let k = 6u * i;
            let t = after(Six(s[k], s[k + 1u], s[k + 2u], s[k + 3u], s[k + 4u], s[k + 5u]));
//# for p in 0..4
            y[16u * q + 4u * i + $(p)u] = t.a$p;
//# end
        }
    }
    let c4_0 = id.y * QT;
//# for q in 0..QT
    let b_$q = w_at(c4_0 + $(q)u);
//# end
    for (var i = 0u; i < 4u; i++) {
        let h = h0 + i;
        let live = h < OH;
//# for q in 0..QT
//# for p in 0..4
        let acc_$q_$p = y[$(16*q+p)u + 4u * i];
//# end
//# end
//# include store
    }
}

//# kernel conv2d_forward_winograd_before conv2d_input_grad_winograd_before
// The fast kernels are three, for adapters where a load costs far more than a multiply-add, as the broadcast kernels of
// conv2d.wgsl. They do a part of the batch at a time, PART samples: the caches hold V and M then. First V of every tile
// of the part, one block of channels in an invocation.
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# v: activation write pairs(2)               [18, IC4, tiles of the part, 2 places] of 4 channels
//# include pad
//# health: storage read array<u32>            [N], to the end of the part, for its length alone
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let end = arrayLength(&health);
    let start = (end - 1u) / PART * PART;
    let tiles = (end - start) * DOWN * ACROSS;
    if (id.x >= tiles * IC4) {
        return;
    }
    let g = id.x % tiles;
    let c = id.x / tiles;
    let n = start + g / (DOWN * ACROSS);
    let h = i32(g / ACROSS % DOWN * 4u) - 1;
    let w = i32(g % ACROSS * 4u) - 1;
//# for j in 0..6
    let d_$j = before(Six(
//# for i in 0..6
        x_pad(n, c, h + $i, w + $j),
//# end
    ));
//# end
//# for i in 0..6
    let v_$i = before(Six(d_0.a$i, d_1.a$i, d_2.a$i, d_3.a$i, d_4.a$i, d_5.a$i));
//# for j in 0..3
    v_put_pair(($(3*i+j)u * IC4 + c) * tiles + g, v_$i.a$(2*j), v_$i.a$(2*j+1));
//# end
//# end
}

//# kernel conv2d_forward_winograd_products conv2d_input_grad_winograd_products
// M = U V: at each place a product of matrices, QT blocks of channels × PX tiles in an invocation. The tiles of a
// subgroup lie side by side, those of an invocation SHARE apart; weights are handed round.
//# w: texels read                             [36, OT, IC4, 4, QT] of 4 output channels
//# v: activation read                         [18, IC4, tiles of the part, 2 places] of 4 channels
//# m: activation write pairs(2)               [36, OT·QT/2, tiles of the part, 2 blocks] of 4 channels
//# health: storage read array<u32>            [N], to the end of the part, for its length alone
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let end = arrayLength(&health);
    let start = (end - 1u) / PART * PART;
    let tiles = (end - start) * DOWN * ACROSS;
    let place = id.y / OT;
    let first = id.x / SHARE * (SHARE * PX) + id.x % SHARE;
    // Past the weights lie zeros. See `zero` in conv2d.wgsl.
    let zero = w_at(36u * OT * IC4 * TEXELS);
//# include hand
//# for p in 0..PX
    let g_$p = first + $(SHARE*p)u;
    let at_$p = 2u * (place / 2u * IC4 * tiles + select(0u, g_$p, g_$p < tiles)) + place % 2u;
//# for q in 0..QT
    var m_$q_$p = zero;
//# end
//# end
    for (var c = 0u; c < IC4; c++) {
        let base = (id.y * IC4 + c) * TEXELS;
//# include handed
//# for p in 0..PX
        let v_$p = v_at(at_$p + 2u * c * tiles);
//# end
//# for q in 0..QT
//# for k in 0..4
//# for p in 0..PX
        m_$q_$p = fma(vec4<f32>(v_$p[$k]), u_$(k*QT+q), m_$q_$p);
//# end
//# end
//# end
    }
//# for p in 0..PX
    if (g_$p < tiles) {
//# for q in 0..QT/2
        m_put_pair((place * (OT * QT / 2u) + id.y % OT * (QT / 2u) + $(q)u) * tiles + g_$p, m_$(2*q)_$p, m_$(2*q+1)_$p);
//# end
    }
//# end
}

//# kernel conv2d_forward_winograd_after conv2d_input_grad_winograd_after
// From M to the outputs: a tile of QT = 2 blocks of channels in an invocation.
//# b: texels read                             [M4] biases, of 4 output channels; M4 blocks in M, the OT·QT of the products
//# m: activation read                         [36, M4/2, tiles of the part, 2 blocks] of 4 channels
//# y: activation write pairs(OW)              [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# if RELU == 0
//# health: storage read array<u32>            [N], to the end of the part, for its length alone
//# end
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
    let end = arrayLength(&health);
    let start = (end - 1u) / PART * PART;
    let tiles = (end - start) * DOWN * ACROSS;
    if (id.x >= tiles * OC8) {
        return;
    }
    let g = id.x % tiles;
    let c4_0 = id.x / tiles * 2u;
    let n = start + g / (DOWN * ACROSS);
    let h0 = g / ACROSS % DOWN * 4u;
    let q0 = g % ACROSS * 4u;
//# for q in 0..QT
    let b_$q = b_at(c4_0 + $(q)u);
//# for j in 0..6
    let s_$q_$j = after(Six(
//# for i in 0..6
        m_at(2u * (($(6*i+j)u * M4 + c4_0) / 2u * tiles + g) + $(q)u),
//# end
    ));
//# end
//# for i in 0..4
    let y_$q_$i = after(Six(s_$q_0.a$i, s_$q_1.a$i, s_$q_2.a$i, s_$q_3.a$i, s_$q_4.a$i, s_$q_5.a$i));
//# end
//# end
//# for y in 0..4
    {
        let h = h0 + $(y)u;
        let live = h < OH;
//# for q in 0..QT
//# for p in 0..4
        let acc_$q_$p = y_$q_$y.a$p;
//# end
//# end
//# include store
    }
//# end
}
