// Texels of four f16, where a plan keeps activations and gradients so; kernels see f32. What f16 cannot hold (more
// than 65504) becomes infinity, which marks the sample: left to themselves, conversions give whatever the adapter
// likes.

// Two numbers a word, each rounded to the nearest, to an even one between two. In whole numbers, for WGSL's
// pack2x16float rounds as the adapter likes: Direct3D's towards zero, which costs most of what f16 is worth. NaN
// becomes infinity.
fn to_half(v: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(v);
    let size = bits & vec4<u32>(0x7fffffffu);
    let even = (size >> vec4<u32>(13u)) & vec4<u32>(1u);
    let normal = (size + even - vec4<u32>(0x37fff001u)) >> vec4<u32>(13u);
    // Added to 0.5, a number is rounded at 2⁻²⁴, which is the spacing of f16's subnormals.
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(size) + vec4<f32>(0.5)) - vec4<u32>(0x3f000000u);
    let finite = select(normal, subnormal, size < vec4<u32>(0x38800000u));
    let rounded = select(finite, vec4<u32>(0x7c00u), size > vec4<u32>(0x477fe000u));
    let half = rounded | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
    return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}

fn from_half(texel: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(texel.x), unpack2x16float(texel.y));
}
