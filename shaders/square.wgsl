// The Square attack (Andriushchenko et al. 2020): random search by squares that become smaller. It looks at losses
// alone, never at gradients. One workgroup a sample, and all samples in one dispatch.

//# include sample
//# include values
//# include philox
//# include sums

//# kernel square_start square_step
//# bounds: uniform Bounds
//# samples: storage read array<Sample>      [N]
//# x0: storage read array<f32>              [N, LEN], clean images
//# x: storage update array<f32>             [N, LEN], whose loss is looked at next
//# if NORM == 1
//# windows: storage read array<f32>         [TILE, TILE], then [side, side] for each side: hills beside valleys, of length 1
//# end

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
// L∞: stripes, every column of every channel at one end of its way. L2: tiles of hills and valleys, each channel of
// each tile with a sign of its own, of length eps together.
fn start_words(sample: Sample, k: u32) -> vec4<u32> {
    return philox(vec2<u32>(bounds.seed_lo, bounds.seed_hi), vec4<u32>(sample.id, sample.restart, k, 0u));
}

@compute @workgroup_size(WG)
fn square_start(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    if (sample.start == 0u) {
        return;
    }
//# if NORM == 0
    for (var stripe = me; stripe < C * W; stripe += WG) {
        let up = bit(start_words(sample, stripe / 128u), stripe % 128u);
        for (var row = 0u; row < H; row++) {
            let at = n * LEN + (stripe / W * H + row) * W + stripe % W;
            x[at] = select(lowest(x0[at], sample.eps), greatest(x0[at], sample.eps), up);
        }
    }
//# else
    let height = times(sample.eps, bitcast<f32>(UNIT));
    for (var tile = 0u; tile < TILES; tile++) {
        let k = TILES * C + tile;
        let turned = bit(start_words(sample, k / 128u), k % 128u);
        for (var channel = 0u; channel < C; channel++) {
            let j = tile * C + channel;
            let up = bit(start_words(sample, j / 128u), j % 128u);
            for (var i = me; i < TILE * TILE; i += WG) {
                let row = H % TILE / 2u + tile / (W / TILE) * TILE + i / TILE;
                let column = W % TILE / 2u + tile % (W / TILE) * TILE + i % TILE;
                let at = n * LEN + (channel * H + row) * W + column;
                let hill = windows[select(i, i % TILE * TILE + i / TILE, turned)];
                x[at] = flushed(min(max(x0[at] + times(select(-hill, hill, up), height), bounds.lo), bounds.hi));
            }
        }
    }
//# end
}

//# kernel square_step
// A call looks at the loss of x, keeps x where it is better than the best so far or a success, and makes the next
// proposal. L∞: the best with a square of each channel at one end of its way. L2: a hill and a valley are added to a
// square of each channel, which gets the length that another square loses. Who has succeeded stays there; the call
// behind the last step only looks, and leaves the best in x. The memory of a sample: the best so far.
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

//# if NORM == 1
var<workgroup> goes_on: u32;
//# end
@compute @workgroup_size(WG)
fn square_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
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

    // The paper's schedule (HALVINGS in src/attack/square.rs): the share of the image halves after 10, 50, 200, … 8,000
    // of 10,000 queries.
    var halvings = 0u;
    halvings += select(0u, 1u, query >= first_at(11u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(51u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(201u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(501u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(1001u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(2001u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(4001u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(6001u, sample.stretch));
    halvings += select(0u, 1u, query >= first_at(8001u, sample.stretch));
    var sides = array<u32, 10>(
        SIDE_0, SIDE_1, SIDE_2, SIDE_3, SIDE_4, SIDE_5, SIDE_6, SIDE_7, SIDE_8, SIDE_9,
    );
    let side = sides[halvings];
    let places = square_words(sample, query, 0u);
    let top = mul_high(places.x, H - side + 1u);
    let left = mul_high(places.y, W - side + 1u);

//# if NORM == 0
    // As many channels at a time as there are bits.
    for (var part = 0u; part <= C / 128u; part++) {
        let signs = square_words(sample, query, 1u + part);
        let first = part * 128u * H * W;
        for (var i = first + me; i < min(first + 128u * H * W, LEN); i += WG) {
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
    if (me == 0u) {
        s.iteration += 1u;
        states[n] = s;
    }
//# else
    let top_2 = mul_high(places.z, H - side + 1u);
    let left_2 = mul_high(places.w, W - side + 1u);
    let turned = bit(square_words(sample, query, 1u + C / 128u), C % 128u);
    // Windows lie one after the other: the tile's, then each side's.
    var place = TILE * TILE;
    for (var k = 0u; k < 9u; k++) {
        place += select(0u, sides[k] * sides[k], k < halvings);
    }

    for (var channel = 0u; channel < C; channel++) {
        for (var i = me; i < H * W; i += WG) {
            let at = n * LEN + channel * H * W + i;
            if (keeps) {
                memory[at] = x[at];
            }
            x[at] = memory[at];
        }
    }
    if (me == 0u) {
        s.iteration += 1u;
        states[n] = s;
        goes_on = select(0u, 1u, proposes);
    }
    // Sums are long; who has succeeded takes part in none. All invocations say the same, but a compiler must see that
    // they do.
    if (workgroupUniformLoad(&goes_on) == 0u) {
        return;
    }

    // Squares of the length of the whole, and of what lies in the two squares.
    for (var lane = me; lane < LANES; lane += WG) {
        var whole = 0.0;
        for (var channel = 0u; channel < C; channel++) {
            for (var i = lane; i < H * W; i += LANES) {
                let at = n * LEN + channel * H * W + i;
                let d = memory[at] - x0[at];
                whole += times(d, d);
            }
        }
        bring(lane, whole);
    }
    let unused = max(times(sample.eps, sample.eps) - total(me), 0.0);
    for (var lane = me; lane < LANES; lane += WG) {
        var part = 0.0;
        for (var channel = 0u; channel < C; channel++) {
            for (var i = lane; i < H * W; i += LANES) {
                let at = n * LEN + channel * H * W + i;
                let inside = i / W - top < side && i % W - left < side;
                let inside_2 = i / W - top_2 < side && i % W - left_2 < side;
                let d = select(0.0, memory[at] - x0[at], inside || inside_2);
                part += times(d, d);
            }
        }
        bring(lane, part);
    }
    let reach = root(times(unused, 1.0 / f32(C)) + total(me));

    // Until it has its length, x is the difference from the clean image.
    for (var channel = 0u; channel < C; channel++) {
        let up = bit(square_words(sample, query, 1u + channel / 128u), channel % 128u);
        for (var lane = me; lane < LANES; lane += WG) {
            var before = 0.0;
            for (var i = lane; i < H * W; i += LANES) {
                let at = n * LEN + channel * H * W + i;
                let inside = i / W - top < side && i % W - left < side;
                let d = select(0.0, memory[at] - x0[at], inside);
                before += times(d, d);
            }
            bring(lane, before);
        }
        let inverse = inverse_of(root(total(me)));
        for (var lane = me; lane < LANES; lane += WG) {
            var after = 0.0;
            for (var i = lane; i < H * W; i += LANES) {
                let at = n * LEN + channel * H * W + i;
                let row = i / W - top;
                let column = i % W - left;
                if (row < side && column < side) {
                    let hill = windows[place + select(row * side + column, column * side + row, turned)];
                    let d = select(-hill, hill, up) + times(memory[at] - x0[at], inverse);
                    x[at] = d;
                    after += times(d, d);
                }
            }
            bring(lane, after);
        }
        let size = times(reach, inverse_of(root(total(me))));
        for (var i = me; i < H * W; i += WG) {
            let at = n * LEN + channel * H * W + i;
            let inside = i / W - top < side && i % W - left < side;
            let inside_2 = i / W - top_2 < side && i % W - left_2 < side;
            let kept = select(memory[at] - x0[at], 0.0, inside_2);
            x[at] = flushed(select(kept, x[at] * size, inside));
        }
    }
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var channel = 0u; channel < C; channel++) {
            for (var i = lane; i < H * W; i += LANES) {
                let d = x[n * LEN + channel * H * W + i];
                squares += times(d, d);
            }
        }
        bring(lane, squares);
    }
    let pull = times(sample.eps, inverse_of(root(total(me))));
    for (var channel = 0u; channel < C; channel++) {
        for (var i = me; i < H * W; i += WG) {
            let at = n * LEN + channel * H * W + i;
            x[at] = flushed(min(max(x0[at] + times(x[at], pull), bounds.lo), bounds.hi));
        }
    }
//# end
}
