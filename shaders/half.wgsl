// Texels of four f16, where a plan keeps activations and gradients so; kernels see f32. What f16 cannot hold (more than 65504) becomes
// infinity, which marks the sample: left to themselves, conversions give whatever the adapter likes.

// Two numbers a word. NaN stays NaN or becomes infinity.
fn to_half(v: vec4<f32>) -> vec2<u32> {
    let exceeds = (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x477fe000u);
    let infinite = select(vec4<u32>(), vec4<u32>(0x7c00u), exceeds);
    return vec2<u32>(
        pack2x16float(v.xy) | infinite.x | infinite.y << 16u,
        pack2x16float(v.zw) | infinite.z | infinite.w << 16u,
    );
}

fn from_half(texel: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(texel.x), unpack2x16float(texel.y));
}
