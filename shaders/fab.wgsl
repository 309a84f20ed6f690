// FAB, aimed at one class: how small a move turns a sample (Croce & Hein 2020). The network is taken for linear at x; x
// and the clean image are both moved to the plane where the class and the label change places, and the next x lies
// beyond, between the two. Whenever it is a success x goes back towards the clean image. One workgroup a sample, all
// samples in one dispatch.

//# include sample
//# include sums
//# include values

// As in the authors' code: the largest share of the clean image's way (alpha), how far beyond the plane (eta), what is
// left of a move that was a success (beta).
const SHARE: f32 = 0.1;
const BEYOND: f32 = 1.05;
const LEFT: f32 = 0.9;

//# kernel fab_step
// Behind a gradient: the next x. The memory of a sample: the nearest success within the ball, before any the clean
// image.
//# bounds: uniform Bounds
//# samples: storage read array<Sample>              [N]
//# x0: storage read array<f32>                      [N, LEN], clean images
//# dx: storage read array<f32>                      [N, LEN], gradient at x of the class's logit minus the label's
//# x: storage update array<f32>                     [N, LEN]
//# zero_gradients: storage update array<atomic<u32>>  [N], values without a sign, added up over the steps
//# health: storage update array<atomic<u32>>        [N]
//# memory: storage update array<f32>                [N, 1, LEN]
//# states: storage update array<State>              [N]

//# include look

// Farther than any move, 2^99, where products are still finite; and its bits.
const FAR: f32 = 6.338253e29;
const FAR_BITS: u32 = 0x71000000u;

// As `lanes` and `parts`, for three steps at a time.
var<private> lanes_x: array<vec3<f32>, EACH>;
var<private> lanes_x0: array<vec3<f32>, EACH>;
var<workgroup> parts_x: array<vec3<f32>, WG>;
var<workgroup> parts_x0: array<vec3<f32>, WG>;

// By how much a value v moves towards a plane below (or above) it, for a step t: along w, no farther than the bounds.
// It never becomes smaller as t grows.
fn move_of(w: f32, v: f32, below: bool, t: f32) -> f32 {
    let falls = (w > 0.0) == below;
    let room = within(select(bounds.hi - v, v - bounds.lo, falls), 0.0, FAR);
//# if NORM == 0
    return select(0.0, min(t, room), w != 0.0);
//# else
    return min(t * abs(w), room);
//# end
}

fn moved(w: f32, v: f32, below: bool, t: f32) -> f32 {
    let d = move_of(w, v, below, t);
    return v + times(BEYOND, select(d, -d, (w > 0.0) == below));
}

// The norm of a move, no less than 1e-8, as in the authors' code.
fn size(me: u32, n: u32, scale: f32, from_clean: bool, below: bool, t: f32) -> f32 {
//# if NORM == 0
    var farthest = 0.0;
    for (var i = n * LEN + me; i < (n + 1u) * LEN; i += WG) {
        let w = times(sound(dx[i]), scale);
        farthest = max(farthest, move_of(w, select(x[i], x0[i], from_clean), below, t));
    }
    // Of zeros either may be the larger, and the bits of -0 are above all others.
    return max(bitcast<f32>(highest(me, bitcast<u32>(farthest) & 0x7fffffffu)), 1e-8);
//# else
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var i = n * LEN + lane; i < (n + 1u) * LEN; i += LANES) {
            let w = times(sound(dx[i]), scale);
            let d = move_of(w, select(x[i], x0[i], from_clean), below, t);
            squares += times(d, d);
        }
        bring(lane, squares);
    }
    return max(root(total(me)), 1e-8);
//# end
}

@compute @workgroup_size(WG)
fn fab_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let is_first = states[n].iteration == 0u;
    let scale = look(n, me, true);
    let first = n * LEN;

    // How far above the plane x is, and the clean image, in the scale of the gradient; no more than what sums can hold:
    // 2^120 before it is scaled, and no more than nearly the largest f32.
    let most = select(times(1.329228e36, inverse_of(scale)), 3e38, scale < 1.0);
    let here = within(flushed(states[n].loss), -most, most);
    for (var lane = me; lane < LANES; lane += WG) {
        var sum = 0.0;
        for (var i = first + lane; i < first + LEN; i += LANES) {
            sum += times(times(sound(dx[i]), scale), x0[i] - x[i]);
        }
        bring(lane, sum);
    }
    let height = vec2<f32>(times(here, scale), times(here, scale) + total(me));
    let below = height >= vec2<f32>(0.0);
    let needed = abs(height);

    // The largest steps that do not pass the plane, two bits a round, the highest first: bits of positive numbers are
    // in their order, and rounding leaves sums in the order of the steps.
    var bits = vec2<u32>();
    for (var round = 0u; round < 16u; round++) {
        let unit = 1u << (30u - 2u * round);
        let a = bits.x + vec3<u32>(unit, 2u * unit, 3u * unit);
        let b = bits.y + vec3<u32>(unit, 2u * unit, 3u * unit);
        let t = bitcast<vec3<f32>>(min(a, vec3<u32>(FAR_BITS)));
        let t0 = bitcast<vec3<f32>>(min(b, vec3<u32>(FAR_BITS)));
        for (var lane = me; lane < LANES; lane += WG) {
            var sums = vec3<f32>();
            var sums0 = vec3<f32>();
            for (var i = first + lane; i < first + LEN; i += LANES) {
                let w = times(sound(dx[i]), scale);
                let v = x[i];
                let v0 = x0[i];
//# for j in 0..3
                sums[$j] += times(abs(w), move_of(w, v, below.x, t[$j]));
                sums0[$j] += times(abs(w), move_of(w, v0, below.y, t0[$j]));
//# end
            }
            lanes_x[lane / WG] = sums;
            lanes_x0[lane / WG] = sums0;
        }
        for (var half = EACH / 2u; half > 0u; half /= 2u) {
            for (var k = 0u; k < half; k++) {
                lanes_x[k] = lanes_x[k] + lanes_x[k + half];
                lanes_x0[k] = lanes_x0[k] + lanes_x0[k + half];
            }
        }
        parts_x[me] = lanes_x[0];
        parts_x0[me] = lanes_x0[0];
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (me < half) {
                parts_x[me] = parts_x[me] + parts_x[me + half];
                parts_x0[me] = parts_x0[me] + parts_x0[me + half];
            }
            workgroupBarrier();
        }
        let sums = parts_x[0];
        let sums0 = parts_x0[0];
        workgroupBarrier();
//# for j in 0..3
        bits.x += select(0u, unit, a[$j] <= FAR_BITS && sums[$j] <= needed.x);
        bits.y += select(0u, unit, b[$j] <= FAR_BITS && sums0[$j] <= needed.y);
//# end
    }
    // Below 2^-63 there is nothing to go, and adapters would differ on what they multiply.
    let goes = (bits >= vec2<u32>(0x20000000u)) & (needed > vec2<f32>());
    let t = select(vec2<f32>(), bitcast<vec2<f32>>(bits), goes);

    let way = size(me, n, scale, false, below.x, t.x);
    let way0 = size(me, n, scale, true, below.y, t.y);
    let share = min(times(way, inverse_of(way + way0)), SHARE);
    for (var i = me; i < LEN; i += WG) {
        let w = times(sound(dx[first + i]), scale);
        let clean = x0[first + i];
        let y = times(moved(w, x[first + i], below.x, t.x), 1.0 - share);
        let y0 = times(moved(w, clean, below.y, t.y), share);
        x[first + i] = within(y + y0, bounds.lo, bounds.hi);
        if (is_first) {
            memory[first + i] = clean;
        }
    }
}

//# kernel fab_look
// Behind the logits of the new x: where it is a success it may be the nearest one, and x goes back. Behind the last
// step x becomes what is delivered.
//# bounds: uniform Bounds
//# samples: storage read array<Sample>      [N]
//# x0: storage read array<f32>              [N, LEN], clean images
//# x: storage update array<f32>             [N, LEN]
//# memory: storage update array<f32>        [N, 1, LEN]
//# states: storage update array<State>      [N]
@compute @workgroup_size(WG)
fn fab_look(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    var s = states[n];
    // All have read the state before one writes it.
    storageBarrier();
    let first = n * LEN;
//# if NORM == 0
    var farthest = 0.0;
    for (var i = first + me; i < first + LEN; i += WG) {
        farthest = max(farthest, abs(x[i] - x0[i]));
    }
    let distance = bitcast<f32>(highest(me, bitcast<u32>(farthest)));
//# else
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var i = first + lane; i < first + LEN; i += LANES) {
            let d = x[i] - x0[i];
            squares += times(d, d);
        }
        bring(lane, squares);
    }
    let distance = root(total(me));
//# end
    let succeeds = select(s.predicted != sample.label, s.predicted == sample.class_index, sample.aimed == 1u);
    let is_nearest = succeeds && (s.found == 0u || distance < s.best);
    s.found = select(s.found, 1u, succeeds);
    s.best = select(s.best, distance, is_nearest);
    s.iteration += 1u;
    for (var i = me; i < LEN; i += WG) {
        let here = x[first + i];
        let clean = x0[first + i];
        if (is_nearest && distance <= sample.eps) {
//# if NORM == 0
            // The edges of the ball are rounded, too.
            memory[first + i] = within(here, clean - sample.eps, clean + sample.eps);
//# else
            memory[first + i] = here;
//# end
        }
        x[first + i] = select(here, clean + times(here - clean, LEFT), succeeds);
        if (s.iteration >= sample.steps) {
            x[first + i] = memory[first + i];
        }
    }
    if (me == 0u) {
        states[n] = s;
    }
}
