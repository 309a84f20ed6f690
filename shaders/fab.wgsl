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

var<workgroup> from_x: array<vec3<f32>, WG>;
var<workgroup> from_x0: array<vec3<f32>, WG>;

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

// The norm of a move that each lane knows a part of; no less than 1e-8, as in the authors' code.
fn size(lane: u32, part: f32) -> f32 {
//# if NORM == 0
    return max(bitcast<f32>(highest(lane, bitcast<u32>(part))), 1e-8);
//# else
    return max(root(total(lane, part)), 1e-8);
//# end
}

fn grown(part: f32, d: f32) -> f32 {
//# if NORM == 0
    return max(part, d);
//# else
    return part + times(d, d);
//# end
}

@compute @workgroup_size(WG)
fn fab_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.z;
    let is_first = states[n].iteration == 0u;
    let scale = look(n, lane, true);
    let first = n * LEN;

    // How far above the plane x is, and the clean image, in the scale of the gradient; no more than what sums can hold:
    // 2^120 before it is scaled, and no more than nearly the largest f32.
    let most = select(times(1.329228e36, inverse_of(scale)), 3e38, scale < 1.0);
    let here = within(flushed(states[n].loss), -most, most);
    var part = 0.0;
    for (var i = lane; i < LEN; i += WG) {
        part += times(times(sound(dx[first + i]), scale), x0[first + i] - x[first + i]);
    }
    let height = vec2<f32>(times(here, scale), times(here, scale) + total(lane, part));
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
        var sums = vec3<f32>();
        var sums0 = vec3<f32>();
        for (var i = lane; i < LEN; i += WG) {
            let w = times(sound(dx[first + i]), scale);
            let v = x[first + i];
            let v0 = x0[first + i];
//# for j in 0..3
            sums[$j] += times(abs(w), move_of(w, v, below.x, t[$j]));
            sums0[$j] += times(abs(w), move_of(w, v0, below.y, t0[$j]));
//# end
        }
        from_x[lane] = sums;
        from_x0[lane] = sums0;
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (lane < half) {
                from_x[lane] = from_x[lane] + from_x[lane + half];
                from_x0[lane] = from_x0[lane] + from_x0[lane + half];
            }
            workgroupBarrier();
        }
        sums = from_x[0];
        sums0 = from_x0[0];
        workgroupBarrier();
//# for j in 0..3
        bits.x += select(0u, unit, a[$j] <= FAR_BITS && sums[$j] <= needed.x);
        bits.y += select(0u, unit, b[$j] <= FAR_BITS && sums0[$j] <= needed.y);
//# end
    }
    // Below 2^-63 there is nothing to go, and adapters would differ on what they multiply.
    let goes = (bits >= vec2<u32>(0x20000000u)) & (needed > vec2<f32>());
    let t = select(vec2<f32>(), bitcast<vec2<f32>>(bits), goes);

    var farthest = vec2<f32>();
    for (var i = lane; i < LEN; i += WG) {
        let w = times(sound(dx[first + i]), scale);
        farthest.x = grown(farthest.x, move_of(w, x[first + i], below.x, t.x));
        farthest.y = grown(farthest.y, move_of(w, x0[first + i], below.y, t.y));
    }
    let way = size(lane, farthest.x);
    let way0 = size(lane, farthest.y);
    let share = min(times(way, inverse_of(way + way0)), SHARE);
    for (var i = lane; i < LEN; i += WG) {
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
fn fab_look(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = group.z;
    let sample = samples[n];
    var s = states[n];
    let first = n * LEN;
    var part = 0.0;
    for (var i = lane; i < LEN; i += WG) {
        let d = abs(x[first + i] - x0[first + i]);
//# if NORM == 0
        part = max(part, d);
//# else
        part += times(d, d);
//# end
    }
//# if NORM == 0
    let distance = bitcast<f32>(highest(lane, bitcast<u32>(part)));
//# else
    let distance = root(total(lane, part));
//# end
    let succeeds = select(s.predicted != sample.label, s.predicted == sample.class_index, sample.aimed == 1u);
    let is_nearest = succeeds && (s.found == 0u || distance < s.best);
    s.found = select(s.found, 1u, succeeds);
    s.best = select(s.best, distance, is_nearest);
    s.iteration += 1u;
    for (var i = lane; i < LEN; i += WG) {
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
    if (lane == 0u) {
        states[n] = s;
    }
}
