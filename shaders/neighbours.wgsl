// Inside of a kernel: of the pixels x_0 to x_(READ − 1) of a row that a tile reads, those that the tiles beside it have
// loaded, where they are in the subgroup; zero beyond the row. OWN_0 to OWN_1 are loaded, all of them where neighbours
// are out of reach; those of the tile beside it lie OWN further on.
//# for i in 0..OWN_0
        let x_$i = select(vec4<f32>(), subgroupShuffle(x_$(i+OWN), (lane & ~7u) | ((lane - 1u) & 7u)), q0 > 0u);
//# end
//# for i in OWN_1..READ
        let x_$i = select(vec4<f32>(), subgroupShuffle(x_$(i-OWN), (lane & ~7u) | ((lane + 1u) & 7u)), q0 + PX < OW);
//# end
