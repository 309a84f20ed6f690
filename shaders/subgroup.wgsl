// What kernels that share values in a subgroup rely on, written down by every invocation for the host to look at.

//# kernel subgroup_check
// Lanes must lie in the order of invocations, SHARE or more to a subgroup, and be handed what they ask for, as
// handed.wgsl and neighbours.wgsl ask for it.
//# seen: storage update array<vec4<u32>>  [invocations]: lane, values handed round that went wrong, neighbours left and right
@compute @workgroup_size(64)
fn subgroup_check(@builtin(global_invocation_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let first = id.x - lane;
    let zero = bitcast<vec4<f32>>(seen[id.x]); // which compilers do not know
//# include hand
    var wrong = 0u;
//# for k in 0..SHARE
//# if SHARE == 8
    wrong += u32(subgroupShuffle(id.x, from_$k) != first + $(k)u);
//# else
    wrong += u32(subgroupBroadcast(id.x, $(k)u) != first + $(k)u);
//# end
//# end
    let left = subgroupShuffle(id.x, (lane & ~7u) | ((lane - 1u) & 7u));
    let right = subgroupShuffle(id.x, (lane & ~7u) | ((lane + 1u) & 7u));
    seen[id.x] = vec4<u32>(lane, wrong, left, right);
}
