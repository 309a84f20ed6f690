// Convolutions, forward and input gradient, on units that multiply whole matrices (`--math coop`): T×T numbers of f16
// by as many, added up in f32, by the invocations of a subgroup together. In which order a unit adds is its own affair,
// so these are not the bits of conv2d.wgsl; weights and what is read are f16 (`half.wgsl`).
//
// Pixels × channels read, times channels read × channels written. A *step* is one tap of the kernel over T channels
// that are read; steps run over (T channels, kernel row, kernel column). Pixels are taken four of a row at a time, a
// *group*, T/4 groups in a matrix. A matrix never has pixels of two samples, so what is multiplied for a sample is the
// same wherever it stands in whatever batch; which matrices of which samples share a workgroup is of no matter.
//
// A workgroup computes PIXELS pixels × CHANNELS channels, in rows of SC subgroups of MP × MC matrices each. It stages
// LS steps of pixels in workgroup memory, where what lies outside of the image, of the batch or of the channels becomes
// zero; weights come from memory as the matrices they are, column by column: a lane of the units holds numbers of one
// column, and reads side by side what of rows it would read one by one. Sums go to workgroup memory in the end, and
// from there through the epilogue.
//
// Backward with a stride, a workgroup has pixels of one phase, as in workgroup.wgsl.

//# kernel conv2d_forward_coop conv2d_input_grad_coop
//# enable f16
//# enable wgpu_cooperative_matrix
//# w: storage read array<vec4<f16>>           [tiles of channels, phases, steps, CHANNELS/T] matrices: T channels written × T read
//# b: texels read                             [tiles·CHANNELS/4] biases, of 4 output channels
//# x: activation read                         [N, IC4, IH, IW] of 4 channels
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# if RELU == 0
//# health: storage read array<u32>            [N], for its length alone
//# end

// ICT: channels read, in units of T; X_TURNS: pixels of a slab that an invocation stages; WORDS: words of signs of a
// tile.
const PH: u32 = (OH + STEP - 1u) / STEP;               // rows of a phase
const PW4: u32 = ((OW + STEP - 1u) / STEP + 3u) / 4u;  // groups in a row of a phase
const EACH: u32 = (PH * PW4 + T / 4u - 1u) / (T / 4u); // matrices of a sample
const T4: u32 = T / 4u;
// Rows of staged pixels and of sums; two (one) more than they hold, so that rows side by side lie in different banks.
const ROW: u32 = LS * T4 + 2u;
const SUMS: u32 = CHANNELS / 4u + 1u;

var<workgroup> x_tile: array<vec4<f16>, PIXELS * ROW>;  // [PIXELS, ROW] of 4 channels: LS steps of T
var<workgroup> y_tile: array<vec4<f32>, PIXELS * SUMS>; // [PIXELS, SUMS] of 4 channels

//# include phase

// A pixel of the tile: its sample, and its row and column among those of its phase.
struct Pixel {
    exists: bool,
    n: u32,
    row: u32,
    column: u32,
}

fn pixel(tile: u32, i: u32, samples: u32) -> Pixel {
    let matrix = tile * (PIXELS / T) + i / T;
    let n = matrix / EACH;
    let group = matrix % EACH * T4 + i % T / 4u;
    return Pixel((n < samples) & (group < PH * PW4), n, group / PW4, group % PW4 * 4u + i % 4u);
}

@compute @workgroup_size(WG)
fn $entry(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let samples = arrayLength(&health);
//# if STEP == 1
    let phase = vec2<u32>();
    let tile = id.y;
    const rows = R;
    const columns = S;
    let before = 0u;
//# else
    let phase = vec2<u32>(id.y / STEP % STEP, id.y % STEP);
    let tile = id.y / (STEP * STEP);
    let rows = taps(phase.x);
    let columns = taps(phase.y);
    let before = taps_before(phase);
//# end
    let offset = (vec2<i32>(phase) + vec2<i32>(i32(first_tap(phase.x)), i32(first_tap(phase.y))) - i32(PAD)) / i32(STEP);
    let steps = ICT * rows * columns;
    let slabs = (steps + LS - 1u) / LS;
    // Matrices of weights before those of this workgroup and phase, in vec4.
    let w_start = (tile * R * S + before) * ICT * (CHANNELS / T) * (T * T4);

    // What this invocation stages: pixel t % PIXELS in each turn, or another one in each where there are more pixels
    // than invocations.
//# for k in 0..X_TURNS
    let from_$k = pixel(id.x, (t + $(k*WG)u) % PIXELS, samples);
    let h_$k = select(OUTSIDE, i32(from_$k.row * STRIDE) + offset.x, from_$k.exists);
    let v_$k = i32(from_$k.column * STRIDE) + offset.y;
//# end
    let sp = subgroup / SC;
    let sc = subgroup % SC;
//# for m in 0..MP
//# for c in 0..MC
    var sum_$m_$c = coop_mat$(T)x$(T)<f32, C>();
//# end
//# end

    for (var slab = 0u; slab < slabs; slab++) {
        // Whoever read the slab before this one has done so.
        workgroupBarrier();
//# for k in 0..X_TURNS
        {
            let part = (t + $(k*WG)u) / PIXELS;
            let step = slab * LS + part / T4;
            let c4 = step / (rows * columns) * T4 + part % T4;
            let h = h_$k + i32(step / columns % rows);
            let v = v_$k + i32(step % columns);
            let inside = (step < steps) & (c4 < IC4) & (u32(h) < IH) & (u32(v) < IW);
            let i = ((from_$k.n * IC4 + c4) * IH + u32(h)) * IW + u32(v);
            // A choice, not a product: what lies at texel 0 leaves no trace.
            let texel = vec4<f16>(select(vec4<f32>(), x_at(select(0u, i, inside)), inside));
//# if PIXELS*LS*(T/4) < (k+1)*WG
            if (t + $(k*WG)u < PIXELS * LS * T4) {
                x_tile[(t + $(k*WG)u) % PIXELS * ROW + part] = texel;
            }
//# else
            x_tile[(t + $(k*WG)u) % PIXELS * ROW + part] = texel;
//# end
        }
//# end
        workgroupBarrier();
        let w_slab = w_start + slab * $(LS*(CHANNELS/T)*T*(T/4))u + sc * $(MC*T*(T/4))u;
//# for l in 0..LS
//# for m in 0..MP
        let x_$l_$m = coopLoadT<coop_mat$(T)x$(T)<f16, A>>(&x_tile[(sp * MP + $(m)u) * T * ROW + $(l*(T/4))u], ROW);
//# end
//# for c in 0..MC
        let w_$l_$c = coopLoad<coop_mat$(T)x$(T)<f16, B>>(&w[w_slab + $((l*(CHANNELS/T)+c)*T*(T/4))u], T4);
//# for m in 0..MP
        sum_$m_$c = coopMultiplyAdd(x_$l_$m, w_$l_$c, sum_$m_$c);
//# end
//# end
//# end
    }

//# for m in 0..MP
//# for c in 0..MC
    coopStoreT(sum_$m_$c, &y_tile[(sp * MP + $(m)u) * T * SUMS + (sc * MC + $(c)u) * T4], SUMS);
//# end
//# end
    workgroupBarrier();

    // A group of four pixels and eight channels, a word of signs, at a time.
    for (var j = t; j < WORDS; j += WG) {
        let first = j % (PIXELS / 4u) * 4u;
        let at = pixel(id.x, first, samples);
        let h = at.row * STEP + phase.x;
        var word = 0u;
        var bad = false;
//# for q in 0..2
        let c4_$q = tile * (CHANNELS / 4u) + j / (PIXELS / 4u) * 2u + $(q)u;
//# for p in 0..4
        {
            let column = (at.column + $(p)u) * STEP + phase.y;
            if (at.exists & (c4_$q < OC4) & (h < OH) & (column < OW)) {
                let sum = y_tile[(first + $(p)u) * SUMS + j / (PIXELS / 4u) * 2u + $(q)u];
                let v = residual(sum + b_at(c4_$q), at.n, c4_$q, h, column);
//# if RELU == 1
                bad |= not_finite(v);
                let bits = positive(v);
                word |= bits << $(8*p+4*q)u;
                y_put(out_index(at.n, c4_$q, h, column), gate(v, bits));
//# else
                y_put(out_index(at.n, c4_$q, h, column), mask(v, at.n, c4_$q, h, column));
//# end
            }
        }
//# end
//# end
//# if RELU == 1
        if (at.exists & (c4_0 < OC4)) {
            signs[sign_index(at.n, c4_0 / 2u, h, at.column / 4u)] = word;
            if (bad) {
                atomicOr(&health[at.n], 1u);
            }
        }
//# end
    }
}
