// Inside of a kernel: writes a tile of QT blocks of four channels × PX pixels of row h, from pixel q0 of sample n on,
// with all that the epilogue does to it. Takes acc_Q_P, biases b_Q, the first block c4_0, and whether the invocation is
// live. `for e` is one round, in which e is 2 where rows are of an even number of pixels (a store takes two
// neighbours), else 1.
//# if RELU == 1
    var bad = false; // one atomic at the end: some adapters pay for each, taken or not
//# end
//# for k in 0..(QT+1)/2
//# for j in 0..PX/4
    {
        let w4 = q0 / 4u + $(j)u;
        let c8 = c4_0 / 2u + $(k)u;
//# if RELU == 1
        var word = 0u;
//# end
//# if MASK == 1
        let word = signs[sign_index(n, min(c8, OC8 - 1u), min(h, OH - 1u), min(w4, OW4 - 1u))];
//# end
//# for q in 0..2
//# if 2*k+q < QT
//# for e in 2-OW%2..3-OW%2
//# for o in 0..4/e
        if (live & (2u * c8 + $(q)u < OC4) & (4u * w4 + $(e*o)u < OW)) {
            let c4 = 2u * c8 + $(q)u;
            let w_out = 4u * w4 + $(e*o)u;
//# for p in e*o..e*o+e
            let v_$p = residual(acc_$(2*k+q)_$(4*j+p) + b_$(2*k+q), n, c4, h, w_out + $(p-e*o)u);
//# if RELU == 1
            bad |= not_finite(v_$p);
            let bits_$p = positive(v_$p);
            word |= bits_$p << $(8*p+4*q)u;
            let y_$p = gate(v_$p, bits_$p);
//# end
//# if MASK == 1
            let y_$p = gate(v_$p, word >> $(8*p+4*q)u);
//# end
//# if RELU + MASK == 0
            let y_$p = v_$p;
//# end
//# end
//# if e == 2
            y_put_pair(out_index(n, c4, h, w_out) / 2u, y_$(2*o), y_$(2*o+1));
//# else
            y_put(out_index(n, c4, h, w_out), y_$o);
//# end
        }
//# end
//# end
//# end
//# end
//# if RELU == 1
        if (live & (c8 < OC8) & (w4 < OW4)) {
            signs[sign_index(n, c8, h, w4)] = word;
        }
//# end
    }
//# end
//# end
//# if RELU == 1
    if (bad) {
        atomicOr(&health[n], 1u);
    }
//# end
