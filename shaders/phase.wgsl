// Backward with a stride, an output pixel meets only the taps of its own *phase*, its row and column modulo STEP: every
// STEP-th row (column) of the kernel from `first_tap` on. GLSL has no remainders of negative numbers; this one is taken
// before it is GLSL. A row far outside of any image: where what is not there lies.
const OUTSIDE: i32 = -65536;
const FIRST: u32 = u32((i32(PAD) % i32(STEP) + i32(STEP)) % i32(STEP));
fn first_tap(phase: u32) -> u32 {
    return (FIRST + STEP - phase) % STEP;
}
fn taps(phase: u32) -> u32 {
    return (R + STEP - 1u - first_tap(phase)) / STEP;
}

// Taps of the phases before this one.
fn taps_before(phase: vec2<u32>) -> u32 {
    var before = 0u;
    for (var other = 0u; other < STEP; other++) {
        before += select(0u, taps(other) * S, other < phase.x) + select(0u, taps(phase.x) * taps(other), other < phase.y);
    }
    return before;
}
