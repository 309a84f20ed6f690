// Inside of a kernel: writes a tile of QT blocks of four channels × PX pixels of row h, from pixel q0 of sample n on, with all
// that the epilogue does to it. Takes acc_Q_P, biases b_Q, the first block c4_0, and whether the invocation is live.
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
//# for p in 0..4
        if (live & (2u * c8 + $(q)u < OC4) & (4u * w4 + $(p)u < OW)) {
            let c4 = 2u * c8 + $(q)u;
            let w_out = 4u * w4 + $(p)u;
            let v = residual(acc_$(2*k+q)_$(4*j+p) + b_$(2*k+q), n, c4, h, w_out);
//# if RELU == 1
            bad |= not_finite(v);
            let bits = positive(v);
            word |= bits << $(8*p+4*q)u;
            y_put(out_index(n, c4, h, w_out), gate(v, bits));
//# end
//# if MASK == 1
            y_put(out_index(n, c4, h, w_out), gate(v, word >> $(8*p+4*q)u));
//# end
//# if RELU + MASK == 0
            y_put(out_index(n, c4, h, w_out), v);
//# end
        }
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
