// Cross-entropy of each sample on its own class, and the seed of its backward pass.

struct Sample {
    class_index: u32,
    id: u32,         // index in the whole data set: random numbers follow it
    restart: u32,
    start: u32,      // 1: begins at a random place of its ball
    eps: f32,        // L∞ radius, pixel units
    step_size: f32,  // pixel units
    direction: f32,  // +1 ascends, -1 descends
    levels: u32,     // grey levels that the delivered image may move
}

//# kernel cross_entropy_forward
// One invocation a sample, three passes over its logits in order. The loss is summed over the batch, never averaged: the
// seed of sample n is softmax(z_n) − onehot(class_n), with no 1/N in it. At the class itself that is −Σ of the others: the
// difference p − 1 would lose all its digits, and then the gradient, where the network is sure of the class.
//# x: activation read                         [N, K4] of 4 classes
//# samples: storage read array<Sample>        [N]
//# y: activation write                        [N, K4] of 4 classes, the gradient with respect to the logits
//# loss: storage update array<f32>            [N], natural logarithm
//# health: storage update array<atomic<u32>>  [N]
const K4: u32 = (K + 3u) / 4u;

@compute @workgroup_size(WG)
fn cross_entropy_forward(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x;
    if (n >= arrayLength(&loss)) {
        return;
    }
    var top = -3.4e38;
    var bad = false;
    var z_class = 0.0;
    for (var k = 0u; k < K; k++) {
        let z = x_at(n * K4 + k / 4u)[k % 4u];
        bad = bad || (bitcast<u32>(z) & 0x7f800000u) == 0x7f800000u;
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
    let l = log(sum) - (z_class - top);
    loss[n] = l;
    if (bad || (bitcast<u32>(l) & 0x7f800000u) == 0x7f800000u) {
        atomicOr(&health[n], 2u);
    }
}
