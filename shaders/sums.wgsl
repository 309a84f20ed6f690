// What the WG invocations of a workgroup, a power of two, have between them. Sums run in one order whatever the device:
// each lane brings its own, then halves are added to halves.

var<workgroup> parts: array<f32, WG>;
var<workgroup> counts: array<u32, WG>;

fn total(lane: u32, v: f32) -> f32 {
    parts[lane] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            parts[lane] = parts[lane] + parts[lane + half];
        }
        workgroupBarrier();
    }
    let sum = parts[0];
    workgroupBarrier();
    return sum;
}

// Whole numbers; what is more than a word holds stays at the largest.
fn count(lane: u32, v: u32) -> u32 {
    counts[lane] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            let both = counts[lane] + counts[lane + half];
            counts[lane] = select(both, 0xffffffffu, both < counts[lane]);
        }
        workgroupBarrier();
    }
    let sum = counts[0];
    workgroupBarrier();
    return sum;
}

fn highest(lane: u32, v: u32) -> u32 {
    counts[lane] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            counts[lane] = max(counts[lane], counts[lane + half]);
        }
        workgroupBarrier();
    }
    let most = counts[0];
    workgroupBarrier();
    return most;
}
