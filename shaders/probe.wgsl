// What the bench needs beside the kernels themselves: the ceilings of a device (`src/probe.rs`), and random data for a
// kernel that runs alone (`src/trial.rs`). No network runs any of this.

//# kernel probe_empty
// Nothing: what a dispatch and its workgroups cost by themselves.
@compute @workgroup_size(WG)
fn probe_empty() {
}

//# kernel probe_fma
// Arithmetic in registers and nothing else. The four chains feed each other: where chains are independent, LLVM's
// scheduler puts one behind the other and every operation waits for the last one, so that a software adapter shows less
// than a third of what it can do. The factors are small: numbers go round the ring and hardly grow, however long it
// runs.
//# y: activation write                        [N, LEN]
@compute @workgroup_size(WG)
fn probe_fma(@builtin(global_invocation_id) id: vec3<u32>) {
    let k = vec4<f32>(0.001, -0.0013, 0.0007, -0.0009);
    var a = vec4<f32>(f32(id.x & 255u) * 0.01) + vec4<f32>(0.1, 0.2, 0.3, 0.4);
    var b = a.yzwx + vec4<f32>(0.5);
    var c = b.yzwx + vec4<f32>(0.25);
    var d = c.yzwx + vec4<f32>(0.125);
    for (var r = 0u; r < ROUNDS; r++) {
//# for u in 0..UNROLL
        a = fma(a, k, b.yzwx);
        b = fma(b, k, c.zwxy);
        c = fma(c, k, d.wxyz);
        d = fma(d, k, a.yzwx);
//# end
    }
    y_put(id.z * LEN + id.x, (a + b) + (c + d));
}

//# kernel probe_copy
// Texels from one activation to another, as every kernel reads and writes them; four for each invocation.
//# x: activation read                         [N, LEN]
//# y: activation write                        [N, LEN]
@compute @workgroup_size(WG)
fn probe_copy(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.z * LEN + id.x;
//# for j in 0..4
    y_put(i + $(j)u * (LEN / 4u), x_at(i + $(j)u * (LEN / 4u)));
//# end
}

//# kernel probe_fill
// Random texels in [−1, 1), never zero: the same for the same seed and place. params: length, seed.
//# params: uniform vec4<u32>
//# y: activation write                        [N, params.x]
fn scrambled(v: u32) -> u32 {
    // Rounds of multiply, add and shift; every bit of the place reaches every bit of the word.
    var h = v * 0x9E3779B1u + params.y;
    h = (h ^ (h >> 15u)) * 0x85EBCA77u;
    h = (h ^ (h >> 13u)) * 0xC2B2AE3Du;
    return h ^ (h >> 16u);
}

@compute @workgroup_size(WG)
fn probe_fill(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.x) {
        return;
    }
    let i = id.z * params.x + id.x;
    let words = vec4<u32>(scrambled(4u * i), scrambled(4u * i + 1u), scrambled(4u * i + 2u), scrambled(4u * i + 3u));
    // Odd multiples of 2⁻²³: exact, and none is zero.
    y_put(i, vec4<f32>(vec4<i32>((words >> vec4<u32>(8u)) | vec4<u32>(1u)) - vec4<i32>(8388608)) * 1.1920928955078125e-7);
}

//# kernel probe_read
// Texels to plain memory, to be read back wherever they lie.
//# params: uniform vec4<u32>
//# x: activation read                         [N, params.x]
//# z: storage update array<vec4<f32>>         [N, params.x]
@compute @workgroup_size(WG)
fn probe_read(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.x) {
        return;
    }
    z[id.z * params.x + id.x] = x_at(id.z * params.x + id.x);
}
