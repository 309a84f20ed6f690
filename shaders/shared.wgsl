// One perturbation for all images: it is put on each, the gradients are added up, and it takes a step along the sign of
// the sum. Only here does one sample's bits depend on another's.

//# include sample
//# include values

//# kernel shared_apply
// x <- x0 + perturbation, within the bounds. One invocation for one pixel value; z is the sample.
//# bounds: uniform Bounds
//# samples: storage read array<Sample>                [N]
//# x0: storage read array<f32>                        [N, LEN], clean images
//# perturbation: storage read array<f32>              [LEN]
//# x: storage update array<f32>                       [N, LEN]
@compute @workgroup_size(WG)
fn shared_apply(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let i = id.z * LEN + id.x;
    let moved = within(flushed(x0[i] + perturbation[id.x]), bounds.lo, bounds.hi);
    // What is no number stays none: a clamp would make one of it on some adapters.
    x[i] = select(moved, x0[i], exponent_of(x0[i]) == 255u);
}

//# kernel shared_sum
// sum <- sum ± dx, up for samples that ascend and down for those that descend. One invocation for one value of an
// image: it takes one sample after the other, in their order, and goes on from what the chunk before left. So the sum
// is the same however the samples are cut into chunks; a chunk has MOST of them at most.
//# samples: storage read array<Sample>                [N]
//# dx: storage read array<f32>                        [N, LEN], input gradient
//# health: storage read array<u32>                    [N], all marks of this gradient are made
//# sum: storage update array<f32>                     [LEN]
//# zero_gradients: storage update array<atomic<u32>>  [N], values without a sign, added up over the steps
@compute @workgroup_size(WG)
fn shared_sum(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    var so_far = sum[id.x];
    for (var n = 0u; n < MOST; n++) {
        if (n >= arrayLength(&health)) {
            break;
        }
        // NaN or infinity anywhere in a sample: nothing of it is added, now or later.
        if ((health[n] & 7u) == 0u) {
            let g = dx[n * LEN + id.x];
            let next = flushed(so_far + select(-sound(g), sound(g), samples[n].direction > 0.0));
            // What would overflow the sum is left out.
            so_far = select(next, so_far, exponent_of(next) == 255u);
            if (exponent_of(g) == 0u) {
                atomicAdd(&zero_gradients[n], 1u);
            }
        }
    }
    sum[id.x] = so_far;
}

//# kernel shared_step
// perturbation <- perturbation + step_size·sign(sum), within the ball; and a new sum begins. One invocation for one
// value of an image. All samples have one radius and one step size.
//# samples: storage read array<Sample>                [N]
//# sum: storage update array<f32>                     [LEN]
//# perturbation: storage update array<f32>            [LEN]
@compute @workgroup_size(WG)
fn shared_step(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let eps = samples[0].eps;
    let step = samples[0].step_size;
    // Decided from bits and chosen, as in the sign step.
    let bits = bitcast<u32>(sum[id.x]);
    let signed_step = select(0.0, select(-step, step, (bits >> 31u) == 0u), exponent_of(sum[id.x]) != 0u);
    perturbation[id.x] = within(flushed(perturbation[id.x] + signed_step), -eps, eps);
    sum[id.x] = 0.0;
}
