// Inside of a round of a kernel that has included hand.wgsl: u_0 to u_(TEXELS − 1), the texels of weights from `base`
// on. Of SHARE lanes each loads one in SHARE of them and hands it round.
//# for k in 0..(TEXELS+SHARE-1)/SHARE
        let w_$k = w_at(base + $(SHARE*k)u + (lane & (SHARE - 1u)));
//# end
//# for t in 0..TEXELS
//# if SHARE == 8
        let u_$t = subgroupShuffle(w_$(t/SHARE), from_$(t%SHARE));
//# else
        let u_$t = subgroupBroadcast(w_$(t/SHARE), $(t%SHARE)u);
//# end
//# end
