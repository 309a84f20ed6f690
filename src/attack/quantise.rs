//! 8 bits: what is delivered is bytes, and bytes must stay inside the ball.

/// Nearest k/255 of every value in [0, 1], and the largest move. NaN stays NaN (its sample is marked when it runs).
pub fn snap(images: &[f32]) -> (Vec<f32>, f32) {
    let mut largest = 0.0_f32;
    let snapped = images
        .iter()
        .map(|&x| {
            let y = level(x).map_or(x, |k| k as f32 / 255.0);
            largest = largest.max((y - x).abs());
            y
        })
        .collect();
    (snapped, largest)
}

fn level(x: f32) -> Option<i32> {
    x.is_finite().then(|| (f64::from(x) * 255.0).round().clamp(0.0, 255.0) as i32)
}

/// Whole grey levels that an L∞ radius (pixel units of [0, 1]) allows: floor(255·eps), with room for eps = k/255
/// having been rounded down to f32. Never more than 255.
pub fn budget(eps: f32) -> i32 {
    (f64::from(eps) * 255.0 + 1e-6).floor().clamp(0.0, 255.0) as i32
}

/// The delivered value of a pixel: `x` rounded to k/255, no further than `budget` levels from the clean `x0`
/// (which lies on the grid already), within [0, 255]. A budget below 0 counts as 0.
pub fn quantise(x: f32, x0: f32, budget: i32) -> f32 {
    let budget = budget.clamp(0, 255);
    match (level(x), level(x0)) {
        (Some(k), Some(k0)) => k.clamp((k0 - budget).max(0), (k0 + budget).min(255)) as f32 / 255.0,
        _ => x,
    }
}

/// Sum of squared grey levels that an L2 radius (pixel units of [0, 1]) allows: ⌊(255·eps)²⌋, with room for eps having
/// been rounded to f32.
pub fn budget_l2(eps: f32) -> u32 {
    // As large as it gets, it stays the largest word.
    ((255.0 * f64::from(eps)).powi(2) * (1.0 + 1e-6) + 1e-6).floor() as u32
}

/// One delivered image: `x` rounded to k/255 with a sum of squared grey levels from the clean `x0` (which lies on the
/// grid already) of `budget` at most. A fraction of a level is rounded away from the clean pixel where it is no less
/// than a threshold: a half, or as much more (in 512ths) as it takes to stay in the ball; where one is reached
/// fractions are cut off, which never leaves the ball.
pub fn quantise_l2(x: &[f32], x0: &[f32], budget: u32) -> Vec<f32> {
    // As `shaders/quantise.wgsl`, in f32.
    let moved = |(x, x0): (&f32, &f32), threshold: u32| {
        let t = 255.0 * (x - x0).abs();
        (t.floor() as u32).saturating_add(u32::from(512.0 * (t - t.floor()) >= threshold as f32))
    };
    let is_sound = |(x, x0): &(&f32, &f32)| x.is_finite() && x0.is_finite();
    let squares = |threshold| -> u64 {
        let squares = x.iter().zip(x0).filter(is_sound).map(|pair| u64::from(moved(pair, threshold)).pow(2));
        squares.fold(0, u64::saturating_add)
    };
    let fits = |threshold: &u32| squares(*threshold) <= u64::from(budget) || budget == u32::MAX;
    let (mut low, mut high) = (255, 512);
    while high - low > 1 {
        let middle = u32::midpoint(low, high);
        if fits(&middle) { high = middle } else { low = middle }
    }
    let round = |(x, x0): (&f32, &f32)| match level(*x0) {
        Some(k0) if x.is_finite() => {
            let m = moved((x, x0), high).min(255) as i32;
            (if x > x0 { k0 + m } else { k0 - m }).clamp(0, 255) as f32 / 255.0
        }
        _ => *x,
    };
    x.iter().zip(x0).map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_whole_levels_rounds_to_itself_and_never_leaves_the_ball() {
        for k0 in 0..=255_i32 {
            let x0 = k0 as f32 / 255.0;
            for e in 0..=32 {
                let eps = e as f32 / 255.0;
                assert_eq!(budget(eps), e);
                for x in [(x0 + eps).min(1.0), (x0 - eps).max(0.0), x0, x0 + eps * 0.37] {
                    let k = quantise(x, x0, budget(eps)) * 255.0;
                    assert!(
                        (k - k.round()).abs() < 1e-4
                            && (k.round() as i32 - k0).abs() <= e
                            && (0.0..=255.1).contains(&k)
                    );
                }
                let up = (quantise((x0 + eps).min(1.0), x0, e) * 255.0).round() as i32;
                assert_eq!(up, (k0 + e).min(255));
            }
        }
    }

    #[test]
    fn half_a_level_delivers_nothing() {
        assert_eq!(budget(0.5 / 255.0), 0);
        assert_eq!(quantise(100.5 / 255.0, 100.0 / 255.0, 0), 100.0 / 255.0);
    }

    /// However eps was rounded when it became f32.
    #[test]
    fn radii_of_whole_levels_allow_all_of_them() {
        for e in 0..=255_i32 {
            assert_eq!(budget(e as f32 / 255.0), e);
        }
        for squares in (0..3000).chain([65_025, 250_000]) {
            assert_eq!(budget_l2((f64::from(squares).sqrt() / 255.0) as f32), squares);
        }
    }

    #[test]
    fn an_l2_ball_is_used_to_its_edge_and_without_one_pixels_are_rounded_to_the_nearest() {
        let levels = |x: &[f32], budget| -> Vec<f32> {
            let clean = vec![0.0; x.len()];
            quantise_l2(x, &clean, budget).iter().map(|y| (255.0 * y).round()).collect()
        };
        // Two levels are on the edge, and outside of the ball that is smaller by one.
        assert_eq!((levels(&[1.75 / 255.0], 4), levels(&[1.75 / 255.0], 3)), (vec![2.0], vec![1.0]));
        // Half a level is rounded away; as much as this has no ball but an infinite one.
        assert_eq!((levels(&[0.5], u32::MAX), levels(&[0.5, 1e9], u32::MAX)), (vec![128.0], vec![128.0, 255.0]));
        assert_eq!(levels(&[0.5, 1e9], u32::MAX - 1), [127.0, 255.0]);
    }

    /// What no attack asks for, but any caller may.
    #[test]
    fn budgets_and_values_of_any_size() {
        for (budget, want) in [(i32::MIN, 0.0), (-1, 0.0), (0, 0.0), (300, 1.0), (i32::MAX, 1.0)] {
            assert_eq!(quantise(0.9, 0.0, budget).ceil(), want, "{budget}");
        }
        for far in [1e9, f32::MAX] {
            assert_eq!(quantise_l2(&[far, -far, far], &[0.0, 1.0, 1.0], u32::MAX), [1.0, 0.0, 1.0]);
            assert_eq!(quantise_l2(&[far, -far], &[0.0, 0.0], 100), [1.0, 0.0]);
        }
    }

    #[test]
    fn snapping_reports_the_largest_move() {
        let (y, moved) = snap(&[0.0, 1.0, 0.5, 17.0 / 255.0]);
        assert_eq!(y, [0.0, 1.0, 128.0 / 255.0, 17.0 / 255.0]);
        assert!((moved - 0.5 / 255.0).abs() < 1e-7);
        let (y, moved) = snap(&[10.4 / 255.0]);
        assert!(y == [10.0 / 255.0] && (moved - 0.4 / 255.0).abs() < 1e-7, "down as well as up");
    }
}
