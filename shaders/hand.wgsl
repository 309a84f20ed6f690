// Inside of a kernel with a hidden `zero` (see conv2d.wgsl): the lanes that weights come from. The first SHARE of a
// subgroup share (`Target::share`); in a larger one the others load the same texels, for nothing. Where LLVM knows a
// lane it picks the value out and spreads it, in two instructions for most lanes. Among eight llvmpipe has one that
// shuffles, and so does what is asked of it where the lane is a number that compilers do not know. Among sixteen it
// would walk from lane to lane.
//# if SHARE == 8
//# for k in 0..SHARE
    let from_$k = bitcast<u32>(zero.x) + $(k)u;
//# end
//# end
