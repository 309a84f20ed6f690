// x at (h, w), zero outside. The address is made valid first and the value chosen afterwards, without a branch; a
// choice, not a product, so that whatever lies at the valid address (a NaN of another sample, say) leaves no trace. Nor
// is there a branch in `inside`: each `&&` is one, and SwiftShader compiled a loop with some thirty of them for
// minutes. What is negative is far above IH as a u32.
fn x_pad(n: u32, c4: u32, h: i32, w: i32) -> vec4<f32> {
    let inside = (u32(h) < IH) & (u32(w) < IW);
    let i = ((n * IC4 + c4) * IH + u32(h)) * IW + u32(w);
    return select(vec4<f32>(), x_at(select(0u, i, inside)), inside);
}
