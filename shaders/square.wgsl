// The Square attack (Andriushchenko et al. 2020): random search by squares that become smaller. It looks at losses alone, never
// at gradients. One workgroup a sample, and all samples in one dispatch.

//# include sample
//# include philox

//# kernel square_start square_step
//# bounds: uniform Bounds
//# samples: storage read array<Sample>      [N]
//# x0: storage read array<f32>              [N, LEN], clean images
//# x: storage update array<f32>             [N, LEN], whose loss is looked at next

// Bit k of 128.
fn bit(words: vec4<u32>, k: u32) -> bool {
    return ((words[k / 32u % 4u] >> (k % 32u)) & 1u) == 1u;
}

// The two ends of a pixel's way.
fn lowest(clean: f32, eps: f32) -> f32 {
    return max(bounds.lo, clean - eps);
}

fn greatest(clean: f32, eps: f32) -> f32 {
    return min(bounds.hi, clean + eps);
}

//# kernel square_start
// Stripes: every column of every channel is at one end of its way.
fn start_words(sample: Sample, k: u32) -> vec4<u32> {
    return philox(vec2<u32>(bounds.seed_lo, bounds.seed_hi), vec4<u32>(sample.id, sample.restart, k, 0u));
}

@compute @workgroup_size(WG)
fn square_start(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.z;
    let sample = samples[n];
    if (sample.start == 0u) {
        return;
    }
    for (var stripe = lane; stripe < C * W; stripe += WG) {
        let up = bit(start_words(sample, stripe / 128u), stripe % 128u);
        for (var row = 0u; row < H; row++) {
            let at = n * LEN + (stripe / W * H + row) * W + stripe % W;
            x[at] = select(lowest(x0[at], sample.eps), greatest(x0[at], sample.eps), up);
        }
    }
}

//# kernel square_step
// A call looks at the loss of x, keeps x where it is better than the best so far or a success, and makes the next proposal: the
// best with a square of each channel at one end of its way. Who has succeeded stays there; the call behind the last step only
// looks, and leaves the best in x. The memory of a sample: the best so far.
//# memory: storage update array<f32>        [N, LEN]
//# states: storage update array<State>      [N]

// Words of a query: the first four are for places, the others have a bit for each channel and one more.
fn square_words(sample: Sample, query: u32, k: u32) -> vec4<u32> {
    let index = query * (2u + C / 128u) + k;
    return philox(vec2<u32>(bounds.seed_lo, bounds.seed_hi), vec4<u32>(sample.id, sample.restart, index, 2u));
}

// The first of `steps` queries that is not before `share` ten-thousandths of them.
fn first_at(share: u32, steps: u32) -> u32 {
    return share * (steps / 10000u) + (share * (steps % 10000u) + 9999u) / 10000u;
}

@compute @workgroup_size(WG)
fn square_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.z;
    let sample = samples[n];
    var s = states[n];
    // All have read the state before one writes it.
    storageBarrier();
    let query = s.iteration;
    let loss = select(-s.loss, s.loss, sample.direction > 0.0);
    let succeeds = select(s.predicted != sample.label, s.predicted == sample.class_index, sample.aimed == 1u);
    let keeps = s.found == 0u && (query == 0u || succeeds || loss > s.best);
    s.best = select(s.best, loss, keeps);
    s.found = select(s.found, 1u, succeeds);
    let proposes = s.found == 0u && query < sample.steps;

    var side = SIDE_0;
    side = select(side, SIDE_1, query >= first_at(11u, sample.steps));
    side = select(side, SIDE_2, query >= first_at(51u, sample.steps));
    side = select(side, SIDE_3, query >= first_at(201u, sample.steps));
    side = select(side, SIDE_4, query >= first_at(501u, sample.steps));
    side = select(side, SIDE_5, query >= first_at(1001u, sample.steps));
    side = select(side, SIDE_6, query >= first_at(2001u, sample.steps));
    side = select(side, SIDE_7, query >= first_at(4001u, sample.steps));
    side = select(side, SIDE_8, query >= first_at(6001u, sample.steps));
    side = select(side, SIDE_9, query >= first_at(8001u, sample.steps));
    let places = square_words(sample, query, 0u);
    let top = mul_high(places.x, H - side + 1u);
    let left = mul_high(places.y, W - side + 1u);

    // As many channels at a time as there are bits.
    for (var part = 0u; part <= C / 128u; part++) {
        let signs = square_words(sample, query, 1u + part);
        let first = part * 128u * H * W;
        for (var i = first + lane; i < min(first + 128u * H * W, LEN); i += WG) {
            let at = n * LEN + i;
            if (keeps) {
                memory[at] = x[at];
            }
            let up = bit(signs, i / (H * W) % 128u);
            // Above and to the left the differences wrap around.
            let inside = i / W % H - top < side && i % W - left < side;
            let end = select(lowest(x0[at], sample.eps), greatest(x0[at], sample.eps), up);
            x[at] = select(memory[at], end, proposes && inside);
        }
    }
    if (lane == 0u) {
        s.iteration += 1u;
        states[n] = s;
    }
}
