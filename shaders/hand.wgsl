// Inside of a kernel with a hidden `zero` (see conv2d.wgsl): the lanes that weights come from, as numbers that
// compilers do not know. Eight share (SHARE in src/ops/tile.rs), the first of a subgroup; in a larger one the others
// load the same texels, for nothing. Where LLVM knows one it picks the value out and spreads it, in two instructions
// for most lanes; a shuffle is one.
//# for k in 0..8
    let from_$k = bitcast<u32>(zero.x) + $(k)u;
//# end
