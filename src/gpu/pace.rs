//! How much work a submission holds: near a quarter of a second of it, as submissions before it have shown on this device. So
//! watchdogs stay asleep (Windows ends work after 2 s, GL's fences are waited for no longer than 2.1 s), progress is told and a wish to
//! stop is heard in time. Where a plan is cut changes no bit: the same dispatches run in the same order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a submission should take.
const TARGET: Duration = Duration::from_millis(250);

/// Floating-point operations of the first submission: a tenth of a second on a slow processor.
const FIRST: u64 = 1_000_000_000;
const LEAST: u64 = 1_000_000;
const MOST: u64 = 100_000_000_000_000;

/// One measurement changes it by no more than this.
const CHANGE: f64 = 4.0;

/// Floating-point operations of the next submission on a device.
#[derive(Debug)]
pub(crate) struct Pace(AtomicU64);

impl Default for Pace {
    fn default() -> Self {
        Pace(AtomicU64::new(FIRST))
    }
}

impl Pace {
    pub(crate) fn flops(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns that a submission of `flops` took between `least` and `most`: what the host did meanwhile may hide the device's
    /// end. It is shortened only for what it surely took, and lengthened only by what it surely did not.
    pub(crate) fn learn(&self, flops: u64, least: Duration, most: Duration) {
        let (now, target) = (self.flops(), TARGET.as_secs_f64());
        let factor = |took: Duration| (target / took.as_secs_f64().max(1e-9)).clamp(1.0 / CHANGE, CHANGE);
        let next = if least > TARGET {
            flops.min(now) as f64 * factor(least)
        } else if most < TARGET && flops >= now {
            // A submission that was not full says little of a full one.
            now as f64 * factor(most)
        } else {
            return;
        };
        self.0.store((next as u64).clamp(LEAST, MOST), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, flops: u64) {
        self.0.store(flops, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A device of any speed is at its pace after few submissions, and stays there.
    #[test]
    fn submissions_approach_a_quarter_of_a_second() {
        for rate in [2e8, 5e9, 3e11, 5e13] {
            let pace = Pace::default();
            for _ in 0..12 {
                let took = Duration::from_secs_f64(pace.flops() as f64 / rate);
                pace.learn(pace.flops(), took, took);
            }
            let seconds = pace.flops() as f64 / rate;
            assert!((0.2..0.3).contains(&seconds), "{rate}: {seconds} s");
        }
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let pace = Pace::default();
        // The host was busy for so long that the device may have needed any part of the time.
        pace.learn(FIRST, ms(10), ms(900));
        // The last submission of a run is not full.
        pace.learn(FIRST / 2, ms(1), ms(1));
        assert_eq!(pace.flops(), FIRST);
        // But one that takes too long does, full or not.
        pace.learn(FIRST / 2, ms(500), ms(500));
        assert_eq!(pace.flops(), FIRST / 4);
        pace.learn(FIRST, ms(60_000), ms(60_000));
        assert_eq!(pace.flops(), FIRST / 16, "by no more than a quarter of what it was");
        (0..100).for_each(|_| pace.learn(1, ms(9000), ms(9000)));
        assert_eq!(pace.flops(), LEAST);
        (0..100).for_each(|_| pace.learn(MOST, ms(0), ms(0)));
        assert_eq!(pace.flops(), MOST);
    }
}
