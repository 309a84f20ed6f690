// Losses of each sample on its own class, and the seeds of their backward passes. A loss is summed over the batch,
// never averaged: there is no 1/N in a seed.

//# include sample
//# include values

//# kernel cross_entropy_forward margin_forward dlr_forward difference_forward
// One invocation a sample, some passes over its logits in order.
//# x: activation read                         [N, K4] of 4 classes
//# samples: storage read array<Sample>        [N]
//# y: activation write                        [N, K4] of 4 classes, the gradient with respect to the logits
//# loss: storage update array<f32>            [N]
//# states: storage update array<State>        [N], the loss and the class predicted
//# health: storage update array<atomic<u32>>  [N]
const K4: u32 = (K + 3u) / 4u;
// No logit is below it.
const LOWEST: f32 = -0x1.fffffep+127f;

fn is_finite(v: f32) -> bool {
    return exponent_of(v) != 255u;
}

fn conclude(n: u32, l: f32, predicted: u32, bad: bool) {
    loss[n] = l;
    states[n].loss = l;
    states[n].predicted = predicted;
    if (bad || !is_finite(l)) {
        atomicOr(&health[n], 2u);
    }
}

//# kernel cross_entropy_forward
// −log softmax(x)[class], natural logarithm; the seed is softmax(x) − onehot(class). At the class itself that is −Σ of
// the others: the difference p − 1 would lose all its digits, and then the gradient, where the network is sure of the
// class.
@compute @workgroup_size(WG)
fn cross_entropy_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&loss)) {
        return;
    }
    var top = LOWEST;
    var predicted = 0u;
    var bad = false;
    var z_class = 0.0;
    for (var k = 0u; k < K; k++) {
        let z = x_at(n * K4 + k / 4u)[k % 4u];
        bad = bad || !is_finite(z);
        predicted = select(predicted, k, z > top);
        top = max(top, z);
        z_class = select(z_class, z, k == samples[n].class_index);
    }
    var sum = 0.0;
    var others = 0.0;
    for (var k = 0u; k < K; k++) {
        let e = exp(x_at(n * K4 + k / 4u)[k % 4u] - top);
        sum += e;
        others += select(e, 0.0, k == samples[n].class_index);
    }
    for (var k4 = 0u; k4 < K4; k4++) {
        let z = x_at(n * K4 + k4);
        var seed = vec4<f32>();
//# for i in 0..4
        if (4u * k4 + $(i)u < K) {
            seed[$i] = select(exp(z[$i] - top), -others, 4u * k4 + $(i)u == samples[n].class_index) / sum;
        }
//# end
        y_put(n * K4 + k4, seed);
    }
    // The difference first, or large logits would take the digits of the logarithm.
    conclude(n, log(sum) - bitcast<f32>(bits_of(z_class - top)), predicted, bad);
}

//# kernel margin_forward dlr_forward difference_forward
// What a seed is made of: +1 or another number at single classes.
fn one_at(k: u32, place: u32, v: f32) -> f32 {
    return select(0.0, v, k == place);
}

//# kernel margin_forward
// The highest other logit minus that of the class.
@compute @workgroup_size(WG)
fn margin_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&loss)) {
        return;
    }
    let class_index = samples[n].class_index;
    var top = LOWEST;
    var predicted = 0u;
    var rival = 0u;
    var z_rival = LOWEST;
    var z_class = 0.0;
    var bad = false;
    for (var k = 0u; k < K; k++) {
        let z = x_at(n * K4 + k / 4u)[k % 4u];
        bad = bad || !is_finite(z);
        predicted = select(predicted, k, z > top);
        top = max(top, z);
        let is_class = k == class_index;
        rival = select(rival, k, !is_class && z > z_rival);
        z_rival = select(z_rival, z, !is_class && z > z_rival);
        z_class = select(z_class, z, is_class);
    }
    for (var k4 = 0u; k4 < K4; k4++) {
        var seed = vec4<f32>();
//# for i in 0..4
        seed[$i] = one_at(4u * k4 + $(i)u, rival, 1.0) - one_at(4u * k4 + $(i)u, class_index, 1.0);
//# end
        y_put(n * K4 + k4, seed);
    }
    conclude(n, z_rival - z_class, predicted, bad);
}

//# kernel dlr_forward
// z1 to z4 are the logits in order. Untargeted (z_o − z_y) / (z1 − z3 + 1e-12), z_o being the highest but the label's,
// which climbs; with a target (z_y − z_t) / (z1 − (z3 + z4)/2 + 1e-12), which descends.
@compute @workgroup_size(WG)
fn dlr_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&loss)) {
        return;
    }
    let sample = samples[n];
    // The four highest, the first of equals first.
    var z = vec4<f32>(LOWEST);
    var at = vec4<u32>();
    var z_label = 0.0;
    var z_class = 0.0;
    var bad = false;
    for (var k = 0u; k < K; k++) {
        let v = x_at(n * K4 + k / 4u)[k % 4u];
        bad = bad || !is_finite(v);
        z_label = select(z_label, v, k == sample.label);
        z_class = select(z_class, v, k == sample.class_index);
        // Places below the new one move down.
        let above = vec4<bool>(v > z.x, v > z.y, v > z.z, v > z.w);
        let old_z = z;
        let old_at = at;
        z = vec4<f32>(
            select(old_z.x, v, above.x),
            select(old_z.y, select(v, old_z.x, above.x), above.y),
            select(old_z.z, select(v, old_z.y, above.y), above.z),
            select(old_z.w, select(v, old_z.z, above.z), above.w),
        );
        at = vec4<u32>(
            select(old_at.x, k, above.x),
            select(old_at.y, select(k, old_at.x, above.x), above.y),
            select(old_at.z, select(k, old_at.y, above.y), above.z),
            select(old_at.w, select(k, old_at.z, above.z), above.w),
        );
    }
    let aims = sample.direction < 0.0;
    // The numerator is z[plus] − z[minus].
    let other = select(at.x, at.y, at.x == sample.label);
    let z_other = select(z.x, z.y, at.x == sample.label);
    let plus = select(other, sample.label, aims);
    let minus = select(sample.label, sample.class_index, aims);
    // Differences of large logits, each taken before anything is added to it.
    let third_gap = flushed(z.x - z.z);
    let both_gaps = third_gap + flushed(z.x - z.w);
    let above_line = select(z_other - z_label, z_label - z_class, aims);
    let below_line = select(third_gap, 0.5 * both_gaps, aims) + 1e-12;
    let l = above_line / below_line;
    let slope = 1.0 / below_line;
    let third = select(1.0, 0.5, aims);
    for (var k4 = 0u; k4 < K4; k4++) {
        var seed = vec4<f32>();
//# for i in 0..4
        let k_$i = 4u * k4 + $(i)u;
        let outer_$i = one_at(k_$i, plus, slope) - one_at(k_$i, minus, slope);
        let inner_$i = one_at(k_$i, at.z, third) + one_at(k_$i, at.w, 1.0 - third) - one_at(k_$i, at.x, 1.0);
        seed[$i] = select(0.0, fma(inner_$i, l * slope, outer_$i), k_$i < K);
//# end
        y_put(n * K4 + k4, seed);
    }
    conclude(n, l, at.x, bad);
}

//# kernel difference_forward
// The logit of the class minus that of the label: zero where the two change places.
@compute @workgroup_size(WG)
fn difference_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&loss)) {
        return;
    }
    let sample = samples[n];
    var top = LOWEST;
    var predicted = 0u;
    var z_class = 0.0;
    var z_label = 0.0;
    var bad = false;
    for (var k = 0u; k < K; k++) {
        let z = x_at(n * K4 + k / 4u)[k % 4u];
        bad = bad || !is_finite(z);
        predicted = select(predicted, k, z > top);
        top = max(top, z);
        z_class = select(z_class, z, k == sample.class_index);
        z_label = select(z_label, z, k == sample.label);
    }
    for (var k4 = 0u; k4 < K4; k4++) {
        var seed = vec4<f32>();
//# for i in 0..4
        seed[$i] = one_at(4u * k4 + $(i)u, sample.class_index, 1.0) - one_at(4u * k4 + $(i)u, sample.label, 1.0);
//# end
        y_put(n * K4 + k4, seed);
    }
    conclude(n, z_class - z_label, predicted, bad);
}
