// What the invocations of a workgroup have between them. Sums run in one order whatever the device, and however many
// invocations there are: LANES lanes add up every LANES-th value each, then halves are added to halves. Of these lanes
// an invocation takes every WG-th, and brings their sums one after the other. LANES and WG are powers of two.

const EACH: u32 = LANES / WG;
var<private> lanes: array<f32, EACH>;
var<workgroup> parts: array<f32, WG>;
var<workgroup> counts: array<u32, WG>;

fn bring(lane: u32, sum: f32) {
    lanes[lane / WG] = sum;
}

// The sum of what all lanes have brought.
fn total(me: u32) -> f32 {
    for (var half = EACH / 2u; half > 0u; half /= 2u) {
        for (var k = 0u; k < half; k++) {
            lanes[k] = lanes[k] + lanes[k + half];
        }
    }
    parts[me] = lanes[0];
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (me < half) {
            parts[me] = parts[me] + parts[me + half];
        }
        workgroupBarrier();
    }
    let sum = parts[0];
    workgroupBarrier();
    return sum;
}

// Whole numbers, one from each invocation; what is more than a word holds stays at the largest.
fn count(me: u32, v: u32) -> u32 {
    counts[me] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (me < half) {
            let both = counts[me] + counts[me + half];
            counts[me] = select(both, 0xffffffffu, both < counts[me]);
        }
        workgroupBarrier();
    }
    let sum = counts[0];
    workgroupBarrier();
    return sum;
}

fn highest(me: u32, v: u32) -> u32 {
    counts[me] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (me < half) {
            counts[me] = max(counts[me], counts[me + half]);
        }
        workgroupBarrier();
    }
    let most = counts[0];
    workgroupBarrier();
    return most;
}
