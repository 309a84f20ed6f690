// The step: every sample of the batch moves along the sign of its own gradient and is clamped to its own ball, all in
// one dispatch.

//# include sample

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

    // The sign is decided from the bits, for adapters differ on subnormals and on NaN: exponent 0 (zero, subnormal)
    // gives no sign and is counted, exponent 255 (Inf, NaN) gives no sign and marks the sample.
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

//# kernel random_start
// One invocation for four pixel values, which share the four words of one counter; z is the sample. A sample that asks
// for no random start stays where it is.
//# bounds: uniform Bounds
//# samples: storage read array<Sample>      [N]
//# x0: storage read array<f32>              [N, LEN], clean images
//# x: storage update array<f32>             [N, LEN], where the steps begin

//# include philox

@compute @workgroup_size(WG)
fn random_start(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.z;
    let sample = samples[n];
    if (4u * id.x >= LEN || sample.start == 0u) {
        return;
    }
    // The last word is the stream: 0 is for starts.
    let words = philox(vec2<u32>(bounds.seed_lo, bounds.seed_hi), vec4<u32>(sample.id, sample.restart, id.x, 0u));
//# for j in 0..4
    if (4u * id.x + $(j)u < LEN) {
        let i = n * LEN + 4u * id.x + $(j)u;
        // 2u − 1 for u in [0, 1) with 24 bits: exact.
        let v = f32(i32(words[$j] >> 8u) - 8388608) * 1.1920928955078125e-7;
        // Between the product and the sum stand a clamp and a choice by bits, so that nothing can be contracted and
        // no adapter's subnormals decide.
        let d = min(max(v * sample.eps, -sample.eps), sample.eps);
        let moves = ((bitcast<u32>(d) >> 23u) & 255u) != 0u;
        let lo = max(bounds.lo, x0[i] - sample.eps);
        let hi = min(bounds.hi, x0[i] + sample.eps);
        x[i] = min(max(x0[i] + select(0.0, d, moves), lo), hi);
    }
//# end
}
