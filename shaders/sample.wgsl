// What a sample has for itself, and what all have in common. The same bytes lie in Rust's `attack::Sample` and
// `attack::State`.

struct Sample {
    class_index: u32, // whose loss is followed: the target, or the label
    id: u32,         // index in the whole data set: random numbers follow it
    restart: u32,
    start: u32,      // 1: begins at a random place of its ball
    eps: f32,        // radius, pixel units
    step_size: f32,  // pixel units
    direction: f32,  // +1 ascends, -1 descends
    levels: u32,     // grey levels that the delivered image may move; in L2 the sum of their squares
    label: u32,
    aimed: u32,      // 1: only class_index is a success; 0: any class but the label is
    momentum: f32,   // share of the accumulated gradient that is kept
    steps: u32,      // of the whole attack
    stretch: u32,    // steps over which a schedule is stretched
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

struct State {
    iteration: u32,      // steps taken
    loss: f32,           // at the point that was looked at last
    predicted: u32,      // there
    step_size: f32,
    best: f32,           // highest direction·loss so far; in FAB the distance of the nearest success
    best_at_check: f32,  // `best` at the last check
    last: f32,           // direction·loss of the point before
    rises: u32,          // since the last check
    since_check: u32,    // steps
    period: u32,         // steps from one check to the next
    shortest: u32,       // least period
    shorter_by: u32,     // what each check takes off the period
    halved: u32,         // by the last check
    found: u32,          // whether any point is a success
    unused_0: u32,
    unused_1: u32,
}

struct Bounds {
    lo: f32,  // smallest pixel value
    hi: f32,  // largest pixel value
    seed_lo: u32,
    seed_hi: u32,
}
