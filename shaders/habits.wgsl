// What an adapter does where WGSL leaves it open. The numbers come from a buffer: no compiler knows them beforehand.

//# kernel habits_check
// One invocation that writes down what it gets. `src/habits.rs` knows what is given and what each answer means.
//# given: storage read array<u32>     [14]
//# seen: storage update array<u32>    [17]
fn number(i: u32) -> f32 {
    return bitcast<f32>(given[i]);
}

// As in values.wgsl and epilogue.wgsl.
fn bits_of(v: f32) -> u32 {
    return bitcast<u32>(v) ^ select(0u, 0xffffffffu, arrayLength(&given) == 0u);
}

fn flushed(v: f32) -> f32 {
    return select(0.0, v, ((bits_of(v) >> 23u) & 255u) != 0u);
}

fn not_finite(v: f32) -> u32 {
    return select(0u, 1u, (bits_of(v) & 0x7fffffffu) > 0x7f7fffffu);
}

@compute @workgroup_size(1)
fn habits_check() {
    // No compiler sums up these rounds: whoever leaves the loop early is found out by the number.
    var n = given[0];
    for (var r = 0u; r < given[1]; r++) {
        n ^= n << 13u;
        n ^= n >> 17u;
        n ^= n << 5u;
    }
    seen[0] = n;

    let one = number(2u);
    let tiny = number(3u);
    seen[1] = bitcast<u32>(tiny * one);
    seen[2] = bitcast<u32>(tiny + tiny);
    seen[3] = bitcast<u32>(sign(tiny) * one); // HLSL has whole numbers for signs

    let nan = number(4u);
    seen[4] = bitcast<u32>(max(nan, 0.0));
    seen[5] = bitcast<u32>(min(nan, 1.0));
    seen[6] = bitcast<u32>(clamp(nan, 0.0, 1.0));
    seen[7] = bitcast<u32>(sign(nan) * one);
    seen[8] = u32(nan != nan);

    let a = number(5u);
    let c = number(6u);
    seen[9] = bitcast<u32>(a * a + c);
    // The same number from another place: of one place NVK takes the product that it has already.
    let b = number(13u);
    seen[10] = bitcast<u32>(fma(b, b, c));
    seen[11] = bitcast<u32>((number(7u) + number(8u)) - number(7u));
    seen[12] = bitcast<u32>(number(9u) / number(10u));

    // Of what was just computed: an overflow, and infinity times zero.
    let infinity = number(11u) * number(11u);
    seen[13] = not_finite(infinity);
    seen[14] = not_finite(infinity * number(12u));

    // A product and a sum that are looked at before they are added to.
    seen[15] = bitcast<u32>(flushed(a * a) + c);
    seen[16] = bitcast<u32>(flushed(number(7u) + number(8u)) - number(7u));
}
