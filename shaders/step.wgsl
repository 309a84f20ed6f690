// The step: every sample of the batch moves along the sign of its own gradient and is clamped to its own ball, all in one
// dispatch.

struct Sample {
    class_index: u32,
    eps: f32,        // L∞ radius, pixel units
    step_size: f32,  // pixel units
    direction: f32,  // +1 ascends, -1 descends
}

struct Bounds {
    lo: f32,  // smallest pixel value
    hi: f32,  // largest pixel value
    pad_0: f32,
    pad_1: f32,
}

//# kernel sign_step
// One invocation for one pixel value; z is the sample.
//# bounds: uniform Bounds
//# samples: storage read array<Sample>              [N]
//# x0: storage read array<f32>                      [N, LEN], clean images
//# dx: storage read array<f32>                      [N, LEN], input gradient
//# x: storage update array<f32>                     [N, LEN], iterate
//# zero_gradients: storage update array<atomic<u32>>  [N], values without a sign, added up over the steps
//# health: storage update array<atomic<u32>>        [N]
@compute @workgroup_size(WG)
fn sign_step(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= LEN) {
        return;
    }
    let n = id.z;
    let i = n * LEN + id.x;
    let sample = samples[n];

    // The sign is decided from the bits, for adapters differ on subnormals and on NaN: exponent 0 (zero, subnormal) gives
    // no sign and is counted, exponent 255 (Inf, NaN) gives no sign and marks the sample.
    let bits = bitcast<u32>(dx[i]);
    let exponent = (bits >> 23u) & 255u;
    let moves = exponent != 0u && exponent != 255u;
    // direction·sign is +1 or -1; the product with the step size is a choice of ±step, so nothing can be contracted.
    let up = ((bits >> 31u) == 0u) == (sample.direction > 0.0);
    let step = select(0.0, select(-sample.step_size, sample.step_size, up), moves);

    // The ball and the bounds around the clean pixel: they depend on x0 alone and are the same in every step.
    let lo = max(bounds.lo, x0[i] - sample.eps);
    let hi = min(bounds.hi, x0[i] + sample.eps);
    x[i] = min(max(x[i] + step, lo), hi);

    if (exponent == 0u) {
        atomicAdd(&zero_gradients[n], 1u);
    }
    if (exponent == 255u) {
        atomicOr(&health[n], 4u);
    }
}
