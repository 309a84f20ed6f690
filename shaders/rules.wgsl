// Steps for which a sample is looked at as a whole before it moves: accumulated gradients, lengths, Auto-PGD. One
// workgroup a sample, and all samples in one dispatch.

//# include sample
//# include sums
//# include values

// +step where v says up, -step where down, 0 where v has no sign: decided from bits and chosen, never multiplied.
fn signed_step(v: f32, step: f32, direction: f32) -> f32 {
    let up = ((bitcast<u32>(v) >> 31u) == 0u) == (direction > 0.0);
    return select(0.0, select(-step, step, up), sound(v) != 0.0);
}

//# kernel momentum_step apgd_step l2_step
//# bounds: uniform Bounds
//# samples: storage read array<Sample>              [N]
//# x0: storage read array<f32>                      [N, LEN], clean images
//# dx: storage read array<f32>                      [N, LEN], input gradient at x
//# x: storage update array<f32>                     [N, LEN], where the gradient is taken
//# zero_gradients: storage update array<atomic<u32>>  [N], values without a sign, added up over the steps
//# health: storage update array<atomic<u32>>        [N]

//# include look

//# kernel momentum_step
// MI-FGSM, and with LOOKAHEAD NI-FGSM. The memory of a sample: the accumulated gradient, and with LOOKAHEAD the iterate
// (x is then the point ahead of it, until the last step).
//# memory: storage update array<f32>                [N, SLOTS, LEN]
//# states: storage update array<State>              [N]
@compute @workgroup_size(WG)
fn momentum_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    let iteration = states[n].iteration;
    // All have read the state before one writes it.
    storageBarrier();
    let scale = look(n, me, true);
    for (var lane = me; lane < LANES; lane += WG) {
        var sum = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            sum += abs(times(sound(dx[n * LEN + i]), scale));
        }
        bring(lane, sum);
    }
    let mean = total(me) * (1.0 / f32(LEN));
    let inverse = inverse_of(mean);

    let reach = times(sample.step_size, sample.momentum);
    for (var i = me; i < LEN; i += WG) {
        let at = n * LEN + i;
        let slot = n * SLOTS * LEN + i;
        let kept = select(memory[slot], 0.0, iteration == 0u);
        let g = flushed(times(sample.momentum, kept) + times(times(sound(dx[at]), scale), inverse));
        memory[slot] = g;
        let lo = max(bounds.lo, x0[at] - sample.eps);
        let hi = min(bounds.hi, x0[at] + sample.eps);
//# if LOOKAHEAD == 1
        let here = select(memory[slot + LEN], x[at], iteration == 0u);
        let next = within(here + signed_step(g, sample.step_size, sample.direction), lo, hi);
        memory[slot + LEN] = next;
        let ahead = next + times(select(-reach, reach, sample.direction > 0.0), g);
        x[at] = select(ahead, next, iteration + 1u >= sample.steps);
//# else
        x[at] = within(x[at] + signed_step(g, sample.step_size, sample.direction), lo, hi);
//# end
    }
    if (me == 0u) {
        states[n].iteration = iteration + 1u;
    }
}

//# kernel l2_step
// PGD in L2: a step along the gradient's direction, pulled back into the ball, then within the bounds.
@compute @workgroup_size(WG)
fn l2_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    let scale = look(n, me, true);
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let g = times(sound(dx[n * LEN + i]), scale);
            squares += times(g, g);
        }
        bring(lane, squares);
    }
    let inverse = inverse_of(root(total(me)));
    let step = select(-sample.step_size, sample.step_size, sample.direction > 0.0);

    for (var lane = me; lane < LANES; lane += WG) {
        var far = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let at = n * LEN + i;
            let y = flushed(x[at] + times(step, times(times(sound(dx[at]), scale), inverse)));
            x[at] = y;
            let d = y - x0[at];
            far += times(d, d);
        }
        bring(lane, far);
    }
    let distance = root(total(me));
    let pull = select(1.0, times(sample.eps, inverse_of(distance)), distance > sample.eps);
    for (var i = me; i < LEN; i += WG) {
        let at = n * LEN + i;
        x[at] = flushed(within(x0[at] + times(x[at] - x0[at], pull), bounds.lo, bounds.hi));
    }
}

//# kernel apgd_step
// Auto-PGD. A call looks at the loss of x, keeps what is worth keeping, checks the step size when it is time, and moves
// on; the call after the last step only looks, and leaves in x what is delivered. The memory of a sample: the iterate
// before, the one with the highest loss, its gradient, the latest that is a success.
//# memory: storage update array<f32>                [N, 4, LEN]
//# states: storage update array<State>              [N]
@compute @workgroup_size(WG)
fn apgd_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    var s = states[n];
    // All have read the state before one writes it.
    storageBarrier();
    let loss = select(-s.loss, s.loss, sample.direction > 0.0);
    let is_first = s.iteration == 0u;
    let is_last = s.iteration >= sample.steps;

    let succeeds = select(s.predicted != sample.label, s.predicted == sample.class_index, sample.aimed == 1u);
    s.found = select(s.found, 1u, succeeds);
    let improves = is_first || loss > s.best;
    s.best = select(s.best, loss, improves);
    var halves = false;
    if (is_first) {
        // The first rise is counted from zero, as in the paper's code.
        s.best_at_check = loss;
        s.last = 0.0;
    } else {
        s.rises += select(0u, 1u, loss > s.last);
        s.last = loss;
        s.since_check += 1u;
        if (s.since_check == s.period) {
            let few = f32(s.rises) <= 0.75 * f32(s.period);
            halves = few || (s.halved == 0u && s.best_at_check >= s.best);
            s.halved = select(0u, 1u, halves);
            s.step_size = select(s.step_size, 0.5 * s.step_size, halves);
            s.best_at_check = s.best;
            s.period = max(s.period - min(s.shorter_by, s.period), s.shortest);
            s.since_check = 0u;
            s.rises = 0u;
        }
    }

    // Where x is kept, and where the next step begins.
    let scale = look(n, me, !is_last);
    let first = n * LEN;
    let old = n * 4u * LEN;
    let best = old + LEN;
    let best_dx = best + LEN;
    let found = best_dx + LEN;
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let here = x[first + i];
            if (succeeds) {
                memory[found + i] = here;
            }
            if (improves) {
                memory[best + i] = here;
                // Brought near 1, for the best may be taken up much later, with another scale.
                memory[best_dx + i] = times(sound(dx[first + i]), scale);
            }
            let begins = select(here, memory[best + i], halves);
            let g = select(times(sound(dx[first + i]), scale), memory[best_dx + i], halves);
            squares += times(g, g);
            x[first + i] = begins;
            if (is_first) {
                memory[old + i] = here;
            }
            if (is_last) {
                x[first + i] = select(memory[best + i], memory[found + i], s.found == 1u);
            }
        }
        bring(lane, squares);
    }
    let share = select(0.75, 1.0, is_first);
    let rest = select(0.25, 0.0, is_first);

//# if NORM == 0
    if (!is_last) {
        for (var i = me; i < LEN; i += WG) {
            let here = x[first + i];
            let g = select(times(sound(dx[first + i]), scale), memory[best_dx + i], halves);
            let lo = max(bounds.lo, x0[first + i] - sample.eps);
            let hi = min(bounds.hi, x0[first + i] + sample.eps);
            let z = within(here + signed_step(g, s.step_size, sample.direction), lo, hi);
            let drift = here - memory[old + i];
            let mixed = flushed(here + times(z - here, share)) + times(drift, rest);
            memory[old + i] = here;
            x[first + i] = within(mixed, lo, hi);
        }
    }
//# else
    let inverse = inverse_of(root(total(me)));
    let step = select(-s.step_size, s.step_size, sample.direction > 0.0);
    for (var lane = me; lane < LANES; lane += WG) {
        var far = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let g = select(times(sound(dx[first + i]), scale), memory[best_dx + i], halves);
            let d = flushed(x[first + i] + times(step, times(g, inverse))) - x0[first + i];
            far += times(d, d);
        }
        bring(lane, far);
    }
    let distance = root(total(me));
    let pull = select(1.0, times(sample.eps, inverse_of(distance)), distance > sample.eps);
    for (var lane = me; lane < LANES; lane += WG) {
        var farther = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let here = x[first + i];
            let clean = x0[first + i];
            let g = select(times(sound(dx[first + i]), scale), memory[best_dx + i], halves);
            let moved = flushed(here + times(step, times(g, inverse))) - clean;
            let z = within(clean + times(moved, pull), bounds.lo, bounds.hi);
            let drift = here - memory[old + i];
            let mixed = flushed(flushed(here + times(z - here, share)) + times(drift, rest));
            let d = mixed - clean;
            farther += times(d, d);
            // Its place is taken by `here` below.
            if (!is_last) {
                memory[old + i] = mixed;
            }
        }
        bring(lane, farther);
    }
    let second = root(total(me));
    let pull_again = select(1.0, times(sample.eps, inverse_of(second)), second > sample.eps);
    if (!is_last) {
        for (var i = me; i < LEN; i += WG) {
            let here = x[first + i];
            let clean = x0[first + i];
            let mixed = memory[old + i];
            memory[old + i] = here;
            x[first + i] = flushed(within(clean + times(mixed - clean, pull_again), bounds.lo, bounds.hi));
        }
    }
//# end
    if (me == 0u) {
        s.iteration += 1u;
        states[n] = s;
    }
}

//# kernel ball_start
// A random place for attacks that need the whole image to know its size: KIND 0 on the edge of the L∞ ball (every
// sample's largest move is eps), 1 on the edge of the L2 ball, 2 uniform within the L2 ball; with HALVES halfway there.
// Numbers of the sample's own; x is within the bounds afterwards. A sample that asks for no random start stays where it
// is.
//# include philox
//# include normal
//# bounds: uniform Bounds
//# samples: storage read array<Sample>      [N]
//# x0: storage read array<f32>              [N, LEN], clean images
//# x: storage update array<f32>             [N, LEN], where the steps begin

fn words_at(sample: Sample, k: u32) -> vec4<u32> {
    return philox(vec2<u32>(bounds.seed_lo, bounds.seed_hi), vec4<u32>(sample.id, sample.restart, k, 0u));
}

// Value i of the sample's noise.
fn noise(sample: Sample, i: u32) -> f32 {
//# if KIND == 0
    return f32(i32(words_at(sample, i / 4u)[i % 4u] >> 8u) - 8388608) * 1.1920928955078125e-7;
//# else
    let words = words_at(sample, i / 2u);
    return normal(words[2u * (i % 2u)], words[2u * (i % 2u) + 1u]);
//# end
}

@compute @workgroup_size(WG)
fn ball_start(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) me: u32) {
    let n = group.z;
    let sample = samples[n];
    var most = 0u;
    for (var lane = me; lane < LANES; lane += WG) {
        var squares = 0.0;
        for (var i = lane; i < LEN; i += LANES) {
            let v = noise(sample, i);
            // Bits of positive numbers are in the order of the numbers.
            most = max(most, bitcast<u32>(abs(v)));
            squares += times(v, v);
        }
        bring(lane, squares);
    }
    let top = bitcast<f32>(highest(me, most));
    let all_squares = total(me);
    if (sample.start == 0u) {
        return;
    }
//# if KIND == 0
    let size = top;
//# else
//# if KIND == 1
    let size = root(all_squares);
//# else
    // On a sphere in two dimensions more, all but these two coordinates of a point are uniform within the ball.
    let size = root(all_squares + squares_of_two(words_at(sample, 0xffffffffu).x));
//# end
//# end
//# if HALVES == 1
    let reach = 0.5 * sample.eps;
//# else
    let reach = sample.eps;
//# end
    for (var i = me; i < LEN; i += WG) {
        let at = n * LEN + i;
        let d = times(times(noise(sample, i), inverse_of(size)), reach);
//# if KIND == 0
        let lo = max(bounds.lo, x0[at] - sample.eps);
        let hi = min(bounds.hi, x0[at] + sample.eps);
        x[at] = within(x0[at] + d, lo, hi);
//# else
        x[at] = within(x0[at] + d, bounds.lo, bounds.hi);
//# end
    }
}
