// A kernel that goes over an activation once and writes it out with all that the epilogue does to it: one invocation
// for one word of signs, 8 channels × 4 pixels of a row. Whoever includes it says what a block of four channels has in
// common, `channel(c4)`, and what becomes of texel i, `value(channel, i)`.
@compute @workgroup_size(WG)
fn $entry(@builtin(global_invocation_id) id: vec3<u32>) {
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
        let its = channel(c4);
//# for p in 0..4
        if (4u * w4 + $(p)u < OW) {
            let w = 4u * w4 + $(p)u;
            let i = out_index(n, c4, h, w);
            let v = residual(value(its, i), n, c4, h, w);
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
