// Convolutions and fully connected layers, forward and input gradient, as products of matrices: for devices where the
// invocations of a workgroup share fast memory. Outputs × (line, column, channel) times (line, column, channel) ×
// pixels; neither matrix is ever laid out as such.
//
// A *line* is one row of the kernel over one block of four input channels. Lines in order, columns in a line, channels
// in a column: that is the canonical order of shaders/conv2d.wgsl, and an output is accumulated in it by one
// invocation, so the bits are those of the naive kernels. Pixels are taken four of a row at a time, a *group* (what a
// word of signs holds), and the groups of all samples stand in one row, so that images smaller than a tile still fill
// it. In a fully connected layer a group is four samples.
//
// A workgroup computes BLOCKS blocks of four outputs × PIXELS pixels. It stages a *slab* of LS lines in workgroup
// memory, where a pixel outside of the image or of the batch becomes zero: nothing is tested in the inner loop. Each
// invocation holds QT blocks × PX pixels in registers and reads 4·QT + PX texels of workgroup memory for 16·QT·PX
// multiply-adds. While a slab is worked on, the next is on its way from memory to registers.
//
// Rows of a staged array are an odd number of texels long: invocations side by side read rows side by side, which then
// lie in different banks. Within a row the index is a constant wherever it can be, so that checks of bounds fall away.
//
// Backward with a stride, an output pixel meets only the taps of its own *phase*, its row and column modulo STEP. A
// workgroup has pixels of one phase only, for which the input gradient is a plain convolution with every STEP-th tap.

//# kernel conv2d_forward_workgroup conv2d_input_grad_workgroup linear_forward_workgroup linear_input_grad_workgroup
//# w: texels read                             [TILES·BLOCKS], biases; [TILES, STEP, STEP, lines, columns, TX, CB, QT] of 4 outputs
//# x: activation read                         [N, IC4, IH, IW] of 4 channels; fully connected: [N, IC4]
//# y: activation write                        [N, OC4, OH, OW] of 4 channels
//# include epilogue
//# if RELU == 0
//# health: storage read array<u32>            [N], for its length alone
//# end

// Of a tile: TX invocations along its outputs (next to each other, so that they read the same pixels) × TY along its
// pixels; G groups. COLUMNS texels of a row of x serve a group in one line, XSTEP apart for neighbouring pixels. Of a
// kernel row at most WIDEST taps are met, TAPS of them unrolled. TILES tiles of outputs; GROUPS groups of P4 pixels
// make the PX of an invocation; X_TURNS (W_TURNS) texels of a slab that an invocation fetches; WORDS words of signs in
// a tile; LINEAR 1: fully connected.
const PH: u32 = (OH + STEP - 1u) / STEP;               // rows of a phase
const PW4: u32 = ((OW + STEP - 1u) / STEP + 3u) / 4u;  // groups in a row of a phase

var<workgroup> x_tile: array<array<vec4<f32>, $(COLUMNS/2*2+1)>, LS * G>;         // [LS, G] of COLUMNS texels
var<workgroup> w_tile: array<array<vec4<f32>, $(CB*QT/2*2+1)>, LS * WIDEST * TX>; // [LS, columns, TX] of CB × QT texels
//# if RELU == 1
var<workgroup> words: array<atomic<u32>, WORDS>; // signs, put together from several invocations
//# end

//# include phase

// Where texel j of a slab of x comes from and where it goes.
struct Source {
    row: u32,     // of x_tile
    column: u32,
    line: u32,    // of the slab
    top: i32,     // row of the image in line 0; OUTSIDE for what is not there
    origin: i32,  // index of the texel in line 0
}

// start: the first group of the tile; offset: row and column that the kernel's first tap meets for the output (0, 0).
fn source(j: u32, start: u32, samples: u32, offset: vec2<i32>) -> Source {
//# if LINEAR == 1
    // Along the lines, as they lie in memory.
    let n = 4u * start + j / LS;
    let top = select(OUTSIDE, 0, n < samples);
    return Source(j % LS * G + j / LS / 4u, j / LS % 4u, j % LS, top, i32(n * IC4));
//# else
    let group = start + j / COLUMNS % G;
    let n = group / (PH * PW4);
    let top = i32(group / PW4 % PH * STRIDE) + offset.x;
    let left = i32(group % PW4 * 4u * STRIDE + j % COLUMNS * $(STRIDE/XSTEP)u) + offset.y;
    let inside = (n < samples) & (u32(left) < IW);
    let origin = i32(n * IC4 * IH * IW) + top * i32(IW) + left;
    return Source(j / COLUMNS, j % COLUMNS, j / (COLUMNS * G), select(OUTSIDE, top, inside), origin);
//# end
}

// Which texel of y pixel p of a group is, in block b of the outputs.
struct Texel {
    exists: bool,
    n: u32,
    c4: u32,
    h: u32,
    w: u32,
}

fn texel(group: u32, p: u32, b: u32, phase: vec2<u32>, samples: u32) -> Texel {
//# if LINEAR == 1
    let n = 4u * group + p;
    return Texel((n < samples) & (b < OC4 * OH * OW), n, b / (OH * OW), b / OW % OH, b % OW);
//# else
    let n = group / (PH * PW4);
    let h = group / PW4 % PH * STEP + phase.x;
    let w = (group % PW4 * 4u + p) * STEP + phase.y;
    return Texel((n < samples) & (b < OC4) & (h < OH) & (w < OW), n, b, h, w);
//# end
}

@compute @workgroup_size(WG)
fn $entry(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let samples = arrayLength(&health);
    let tx = t % TX;
    let ty = t / TX;
    let start = id.x * G;
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
    let lines = IC4 * rows;
    let slabs = (lines + LS - 1u) / LS;
    let strip = columns * $(BLOCKS*CB)u; // texels of w in a line
    let w_start = TILES * BLOCKS + (tile * R * S + before) * IC4 * $(BLOCKS*CB)u;

//# for k in 0..X_TURNS
    let from_$k = source(t + $(k*WG)u, start, samples, offset);
    var next_x_$k = vec4<f32>();
//# end
//# for k in 0..W_TURNS
    var next_w_$k = vec4<f32>();
//# end
    // See `zero` in conv2d.wgsl.
    let zero = w_at(TILES * BLOCKS + TILES * R * S * IC4 * $(BLOCKS*CB)u);
//# for q in 0..QT
//# for p in 0..PX
    var acc_$q_$p = zero;
//# end
//# end
//# if RELU == 1
    for (var j = t; j < WORDS; j += WG) {
        atomicStore(&words[j], 0u);
    }
//# end

    // One round more than there are slabs: in the first there is nothing to work on yet, in the last nothing to fetch.
    for (var slab = 0u; slab < slabs + 1u; slab++) {
        if (slab < slabs) {
//# for k in 0..X_TURNS
            {
                let line = slab * LS + from_$k.line;
                let u = from_$k.top + i32(line % rows);
                let inside = (line < lines) & (u32(u) < IH);
                let i = u32(from_$k.origin + i32(line / rows * IH * IW + line % rows * IW));
                // A choice, not a product: what lies at texel 0 (a NaN of another sample, say) leaves no trace.
                next_x_$k = select(vec4<f32>(), x_at(select(0u, i, inside)), inside);
            }
//# end
//# for k in 0..W_TURNS
            if (t + $(k*WG)u < LS * strip) {
                next_w_$k = w_at(w_start + slab * LS * strip + t + $(k*WG)u);
            }
//# end
        }
        if (slab > 0u) {
            let here = min(LS, lines - (slab - 1u) * LS);
            for (var line = 0u; line < here; line++) {
                for (var s = 0u; s < columns; s += TAPS) {
//# for g in 0..GROUPS
//# if PX == 1
                    let row_$g = line * G + ty / 4u;
                    let first_$g = ty % 4u * XSTEP + s;
//# else
                    let row_$g = line * G + ty + $(g*TY)u;
//# if TAPS == S
                    const first_$g = 0u;
//# else
                    let first_$g = s;
//# end
//# end
//# for v in 0..(P4-1)*XSTEP+TAPS
                    let x_$g_$v = x_tile[row_$g][first_$g + $(v)u];
//# end
//# end
//# for s in 0..TAPS
                    let strip_$s = (line * columns + s + $(s)u) * TX + tx;
//# for i in 0..CB
//# for q in 0..QT
                    let w_$s_$i_$q = w_tile[strip_$s][$(i*QT+q)];
//# for g in 0..GROUPS
//# for p in 0..P4
                    acc_$q_$(g*4+p) = fma(vec4<f32>(x_$g_$(p*XSTEP+s)[$i]), w_$s_$i_$q, acc_$q_$(g*4+p));
//# end
//# end
//# end
//# end
//# end
                }
            }
        }
        workgroupBarrier();
//# for k in 0..X_TURNS
//# if LS*G*COLUMNS < (k+1)*WG
        if (t + $(k*WG)u < LS * G * COLUMNS) {
            x_tile[from_$k.row][from_$k.column] = next_x_$k;
        }
//# else
        x_tile[from_$k.row][from_$k.column] = next_x_$k;
//# end
//# end
//# for k in 0..W_TURNS
        if (t + $(k*WG)u < LS * strip) {
            w_tile[(t + $(k*WG)u) / $(CB*QT)u][(t + $(k*WG)u) % $(CB*QT)u] = next_w_$k;
        }
//# end
        workgroupBarrier();
    }

//# for g in 0..GROUPS
    {
//# if PX == 1
        let group = start + ty / 4u;
        let p_0 = ty % 4u;
//# else
        let group = start + ty + $(g*TY)u;
        let p_0 = 0u;
//# end
        var word = 0u;
//# for p in 0..P4
//# for q in 0..QT
        {
            let b = tile * BLOCKS + tx * QT + $(q)u;
            let at = texel(group, p_0 + $(p)u, b, phase, samples);
            if (at.exists) {
                let v = residual(acc_$q_$(4*g+p) + w_at(b), at.n, at.c4, at.h, at.w);
//# if RELU == 1
                if (not_finite(v)) {
                    atomicOr(&health[at.n], 1u);
                }
                let bits = positive(v);
                word |= bits << (8u * (p_0 + $(p)u) + 4u * (b % 2u));
                y_put(out_index(at.n, at.c4, at.h, at.w), gate(v, bits));
//# else
                y_put(out_index(at.n, at.c4, at.h, at.w), mask(v, at.n, at.c4, at.h, at.w));
//# end
            }
        }
//# end
//# end
//# if RELU == 1
//# if LINEAR == 1
        // A word for each sample.
//# for p in 0..P4
        atomicOr(&words[tx * QT / 2u * PIXELS + (group - start) * 4u + p_0 + $(p)u], (word >> (8u * (p_0 + $(p)u))) & 0xffu);
//# end
//# else
        atomicOr(&words[tx * QT / 2u * G + group - start], word);
//# end
//# end
    }
//# end
//# if RELU == 1
    // Each word is written once, whoever computed its parts.
    workgroupBarrier();
    for (var j = t; j < WORDS; j += WG) {
//# if LINEAR == 1
        let at = texel(start + j % PIXELS / 4u, j % 4u, tile * BLOCKS + j / PIXELS * 2u, phase, samples);
//# else
        let at = texel(start + j % G, 0u, tile * BLOCKS + j / G * 2u, phase, samples);
//# end
        if (at.exists) {
            signs[sign_index(at.n, at.c4 / 2u, at.h, at.w / 4u)] = atomicLoad(&words[j]);
        }
    }
//# end
}
