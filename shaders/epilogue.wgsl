// What a kernel does with a finished value before it is stored. Included by the kernels of layers that may have a
// residual, a ReLU or a mask behind them; the constants say which parts there are:
//
//   RESIDUAL  0 none, 1 same shape, 2 every second pixel with new zero channels around (forward), 3 the adjoint of 2
//   RELU      1: max(v, 0); the sign is kept as one bit and a value that is not finite marks the sample
//   MASK      1: v is a gradient and passes only where the sign bit of the ReLU before it is set
//   REORDERS  1: the device's compiler may take additions in another order than they are written in
//
// Signs: one word holds 8 channels × 4 pixels of a row, bit = 8·(pixel mod 4) + (channel mod 8).
// O* is the shape that is written, in blocks of four channels (OC4) and of eight (OC8 = ⌈OC4/2⌉).

//# if RESIDUAL != 0
//# res: activation read                       [N, RC4, RH, RW] of 4 channels; with RESIDUAL 1 [N, OC4, OH, OW]
//# end
//# if RELU == 1
//# signs: storage update array<u32>           [N, OC8, OH, ⌈OW/4⌉]
//# health: storage update array<atomic<u32>>  [N]
//# end
//# if MASK == 1
//# signs: storage read array<u32>             [N, OC8, OH, ⌈OW/4⌉]
//# end

const OC8: u32 = (OC4 + 1u) / 2u;
const OW4: u32 = (OW + 3u) / 4u;

fn out_index(n: u32, c4: u32, h: u32, w: u32) -> u32 {
    return ((n * OC4 + c4) * OH + h) * OW + w;
}

fn sign_index(n: u32, c8: u32, h: u32, w4: u32) -> u32 {
    return ((n * OC8 + c8) * OH + h) * OW4 + w4;
}

//# if RESIDUAL == 0
fn residual(v: vec4<f32>, n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    return v;
}
//# end
//# if RESIDUAL == 1
fn added(n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    return res_at(out_index(n, c4, h, w));
}
//# end
//# if RESIDUAL == 2
// RSHIFT blocks of new channels come first, then the old ones, then as many new ones again.
fn added(n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    let old = c4 >= RSHIFT && c4 < RSHIFT + RC4;
    let rc4 = select(0u, c4 - RSHIFT, old);
    let r = res_at(((n * RC4 + rc4) * RH + 2u * h) * RW + 2u * w);
    return select(vec4<f32>(), r, old);
}
//# end
//# if RESIDUAL == 3
fn added(n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    let kept = ((h | w) & 1u) == 0u;
    let r = res_at(((n * RC4 + c4 + RSHIFT) * RH + h / 2u) * RW + w / 2u);
    return select(vec4<f32>(), r, kept);
}
//# end
//# if RESIDUAL != 0
fn residual(v: vec4<f32>, n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
//# if REORDERS == 0
    return v + added(n, c4, h, w);
//# end
//# if REORDERS == 1
    // v is a sum itself. Compilers that take additions in another order than they are written in (DXC, Metal's) cannot
    // where a zero lies between that they do not know.
    let hidden = select(0u, 0xffffffffu, arrayLength(&y_buf) == 0u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) ^ vec4<u32>(hidden)) + added(n, c4, h, w);
//# end
}
//# end

//# if RELU == 1
// Of positive numbers the bits are in the order of the numbers: infinity and NaN are above the most that y holds. By
// bits, for compilers may assume that there are none; and with zeros in them that no compiler knows, for LLVM takes
// this for the question whether v is a number, and answers it by the same assumption where v was just computed
// (`habits.wgsl` asks whether that is enough).
fn not_finite(v: vec4<f32>) -> bool {
    let hidden = select(0u, 0xffffffffu, arrayLength(&signs) == 0u);
    return any(((bitcast<vec4<u32>>(v) ^ vec4<u32>(hidden)) & vec4<u32>(0x7fffffffu)) > vec4<u32>(Y_MOST));
}
//# end

// Four bits: which of the four channels are positive.
fn positive(v: vec4<f32>) -> u32 {
    let b = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), v > vec4<f32>());
    return b.x | b.y | b.z | b.w;
}

// v where its bit is set, else +0.
fn gate(v: vec4<f32>, bits: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>());
}

//# if MASK == 1
// The gradient v of one texel, stopped where the ReLU was.
fn mask(v: vec4<f32>, n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    let word = signs[sign_index(n, c4 / 2u, h, w / 4u)];
    return gate(v, word >> (8u * (w % 4u) + 4u * (c4 % 2u)));
}
//# end
//# if MASK == 0
fn mask(v: vec4<f32>, n: u32, c4: u32, h: u32, w: u32) -> vec4<f32> {
    return v;
}
//# end
