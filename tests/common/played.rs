//! Kernels for units that multiply matrices, without such units.

/// A kernel's text with its units played by plain loops: an invocation has every LANES-th row of each sum, and reads of the two others what
/// it needs when it needs it.
pub fn played(text: &str, side: u32, lanes: u32) -> String {
    let matrix = format!("coop_mat{side}x{side}");
    let mut text = text.to_string();
    for (from, to) in [
        ("enable f16;", ""),
        ("enable wgpu_cooperative_matrix;", ""),
        ("array<vec4<f16>>;", "array<vec2<u32>>;"),
        ("vec4<f16>", "vec4<f32>"),
        ("@builtin(subgroup_id) subgroup: u32,", ""),
        (&format!("{matrix}<f32, C>()"), "Sum()"),
        (&format!("coopLoadT<{matrix}<f16, A>>(&x_tile["), "vec2<u32>("),
        (&format!("coopLoad<{matrix}<f16, B>>(&w["), "vec2<u32>("),
        ("], ROW)", ", ROW)"),
        ("], T4)", ", T4)"),
        ("coopMultiplyAdd(", "product("),
        ("coopStoreT(", "store("),
        (", &y_tile[", ", "),
        ("], SUMS)", ", SUMS)"),
        (
            "let samples = arrayLength",
            "lane = t % LANES;\n    let subgroup = t / LANES;\n    let samples = arrayLength",
        ),
    ] {
        assert!(text.contains(from), "no {from} in it");
        text = text.replace(from, to);
    }
    let each = |line: &str| -> String {
        let all = (0..side / lanes).flat_map(|r| (0..side / 4).map(move |c| (r, c)));
        all.map(|(r, c)| {
            let line = line.replace("$row", &format!("(lane + {}u)", r * lanes)).replace("$c", &format!("{c}u"));
            line.replace("$i", &format!("{}", r * side / 4 + c)) + "\n"
        })
        .collect()
    };
    let products = each(
        "m[$i] = fma(vec4<f32>(x_tile[x.x + $row * x.y + k / 4u][k % 4u]), \
         vec4<f32>(weight(u, k, 4u * $c), weight(u, k, 4u * $c + 1u), weight(u, k, 4u * $c + 2u), weight(u, k, 4u * $c + 3u)), m[$i]);",
    );
    let stores = each("y_tile[at + $row * step + $c] = m[$i];");
    text + &format!(
        "
const LANES: u32 = {lanes}u;
var<private> lane: u32;
alias Sum = array<vec4<f32>, T / LANES * T4>;
fn weight(u: vec2<u32>, k: u32, column: u32) -> f32 {{
    return unpack2x16float(w[u.x + column * u.y + k / 4u][k / 2u % 2u])[k % 2u];
}}
fn product(x: vec2<u32>, u: vec2<u32>, sum: Sum) -> Sum {{
    var m = sum;
    for (var k = 0u; k < T; k++) {{
{products}    }}
    return m;
}}
fn store(sum: Sum, at: u32, step: u32) {{
    var m = sum;
{stores}}}
"
    )
}
