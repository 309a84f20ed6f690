// Random numbers that belong to a sample: Philox4x32-10, as in `src/attack/random.rs`.

// The upper word of a·b, from halves of sixteen bits: WGSL has no wider integers.
fn mul_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (mid >> 16u) + (other >> 16u);
}

// Four words for (seed, counter); the counter is (sample id, restart, element / 4, stream).
fn philox(seed: vec2<u32>, counter: vec4<u32>) -> vec4<u32> {
    var key = seed;
    var c = counter;
    for (var i = 0u; i < 10u; i++) {
        let a = vec2<u32>(mul_high(c.x, 0xD2511F53u), c.x * 0xD2511F53u);
        let b = vec2<u32>(mul_high(c.z, 0xCD9E8D57u), c.z * 0xCD9E8D57u);
        c = vec4<u32>(b.x ^ c.y ^ key.x, b.y, a.x ^ c.w ^ key.y, a.y);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}
