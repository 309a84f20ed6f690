// What kernels that share values in a subgroup rely on, written down by every invocation for the host to look at.

//# kernel subgroup_check
// Lanes must lie in the order of invocations, eight or more to a subgroup, and be handed what they ask for.
//# seen: storage update array<vec4<u32>>  [invocations]: lane, values handed round that went wrong, neighbours left and right
@compute @workgroup_size(64)
fn subgroup_check(@builtin(global_invocation_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let first = id.x - lane;
    let hidden = seen[id.x].x; // zero, which compilers do not know
    var wrong = 0u;
//# for k in 0..8
    wrong += u32(subgroupShuffle(id.x, hidden + $(k)u) != first + $(k)u);
//# end
    let left = subgroupShuffle(id.x, (lane & ~7u) | ((lane - 1u) & 7u));
    let right = subgroupShuffle(id.x, (lane & ~7u) | ((lane + 1u) & 7u));
    seen[id.x] = vec4<u32>(lane, wrong, left, right);
}
