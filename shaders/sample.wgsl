// What a sample has for itself, and what all have in common. The same bytes lie in Rust's `attack::Sample`.

struct Sample {
    class_index: u32,
    id: u32,         // index in the whole data set: random numbers follow it
    restart: u32,
    start: u32,      // 1: begins at a random place of its ball
    eps: f32,        // L∞ radius, pixel units
    step_size: f32,  // pixel units
    direction: f32,  // +1 ascends, -1 descends
    levels: u32,     // grey levels that the delivered image may move
}

struct Bounds {
    lo: f32,  // smallest pixel value
    hi: f32,  // largest pixel value
    seed_lo: u32,
    seed_hi: u32,
}
