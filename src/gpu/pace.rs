//! How much work a submission holds: near a quarter of a second of it, as submissions before it have shown on this
//! device. So watchdogs stay asleep (Windows ends work after 2 s, GL's fences are waited for no longer than 2.1 s),
//! progress is told and a wish to stop is heard in time. Where a plan is cut changes no bit: the same dispatches run in
//! the same order.

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

/// One dispatch, which cannot be cut, takes no longer than so many submissions should: a second.
const LONGEST: u64 = 4;

/// Floating-point operations of the next submission on a device.
#[derive(Debug)]
pub(crate) struct Pace {
    flops: AtomicU64,
    /// The same, whatever tests set.
    learned: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { flops: AtomicU64::new(FIRST), learned: AtomicU64::new(FIRST) }
    }
}

impl Pace {
    pub(crate) fn flops(&self) -> u64 {
        self.flops.load(Ordering::Relaxed)
    }

    /// The most samples of `flops` each that a dispatch should have; one at least.
    pub(crate) fn samples(&self, flops: u64) -> usize {
        let most = LONGEST.saturating_mul(self.learned.load(Ordering::Relaxed)) / flops.max(1);
        usize::try_from(most).unwrap_or(usize::MAX).max(1)
    }

    /// Learns that a submission of `flops` took between `least` and `most`: what the host did meanwhile may hide the
    /// device's end. It is shortened only for what it surely took, and lengthened only by what it surely did not.
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
        let next = (next as u64).clamp(LEAST, MOST);
        self.flops.store(next, Ordering::Relaxed);
        self.learned.store(next, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, flops: u64) {
        self.flops.store(flops, Ordering::Relaxed);
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

    /// WideResNet-28-10: 472 million operations of a sample in one dispatch, on a device of 100 GFLOP/s.
    #[test]
    fn a_dispatch_takes_a_second_at_most() {
        let (pace, each, rate) = (Pace::default(), 472_000_000, 1e11);
        assert_eq!(pace.samples(each), 8, "of a device that nothing is known of");
        for _ in 0..12 {
            let took = Duration::from_secs_f64(pace.flops() as f64 / rate);
            pace.learn(pace.flops(), took, took);
        }
        let seconds = pace.samples(each) as f64 * each as f64 / rate;
        assert!((0.8..1.1).contains(&seconds), "{seconds} s");
        assert_eq!((pace.samples(u64::MAX), pace.samples(0) > 1 << 30), (1, true));
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let pace = Pace::default();
        // The host was busy for so long that the device may have needed any part of the time.
        pace.learn(FIRST, ms(10), ms(900));
        // The last submission of a run is not full.
        pace.learn(FIRST / 2, ms(1), ms(1));
        assert_eq!(pace.flops(), FIRST);
        pace.learn(FIRST, ms(0), ms(1));
        assert_eq!(pace.flops(), 4 * FIRST, "by no more than four times what it was");
        pace.set(FIRST);
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
