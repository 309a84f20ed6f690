//! How long a run will take, told before it starts, and how much of it is done at a time.

use super::engine::Runner;
use crate::attack::{Attack, Job};
use crate::error::Result;
use std::time::{Duration, Instant};

/// Long enough for a measurement to mean something.
const TELLING: Duration = Duration::from_millis(50);

/// A chunk takes no longer than this, as far as that can be foreseen: so much is lost when the run is interrupted.
const CHUNK: Duration = Duration::from_secs(30);

/// Copies of an image on the host at the peak of an attack, each of 4 bytes a pixel: as read (and the bytes of the
/// file), clean, the rows that move, their iterates (and the best so far), as rounded, as delivered.
const COPIES: u64 = 9;

/// Copies of an image's logits: clean, of the iterate, of what is delivered, each of the rows that move and of all.
const LOGITS: u64 = 8;

/// Everything else that is kept for an image.
const OTHER: u64 = 128;

/// The time that a step of one sample takes, by the attack's own rule, measured on the first images of the run. The
/// first measurement warms up; then the batch grows until it takes long enough to be told.
pub(super) fn step_time(runner: &Runner, attack: &Attack, images: &[f32], labels: &[i64]) -> Result<Duration> {
    let samples = attack.probes(labels, runner.engine().model().logits());
    let one = images.len() / labels.len().max(1);
    let measure = |n: usize| -> Result<Duration> {
        let (start, compiled) = (Instant::now(), runner.compile_time());
        // As if more steps were to follow: a look at where the last one led is no part of a step.
        let job = Job { steps: 1, goes_on: true, ..attack.job(&images[..n * one], &samples[..n]) };
        runner.engine().iterate(&job, &mut |_| true)?;
        Ok(start.elapsed().saturating_sub(runner.compile_time().saturating_sub(compiled)))
    };
    let mut n = 1;
    let mut time = measure(n)?;
    // However long the first takes: drivers compile when they first run something, for ten times as long as it then
    // takes. The reference has nothing to compile, and may take a minute.
    if time >= TELLING && matches!(runner, Runner::Reference(_)) {
        return Ok(time);
    }
    loop {
        time = time.min(measure(n)?);
        if time >= TELLING || n >= labels.len().min(runner.batch()) {
            return Ok(time / n as u32);
        }
        n = (4 * n).min(labels.len()).min(runner.batch());
        time = measure(n)?;
    }
}

/// The largest number of images to measure on.
pub(super) const PROBE: usize = 256;

/// Time for `samples` images of `steps` steps each: clean logits and the two of what is delivered count as a step.
pub(super) fn duration(step: Duration, samples: usize, steps: u64) -> Duration {
    Duration::from_secs_f64((step.as_secs_f64() * samples as f64 * (steps + 1) as f64).min(1e12))
}

/// Images that `memory` bytes hold at the peak of an attack; one at least.
pub(super) fn images_in(memory: u64, pixels: usize, classes: usize) -> usize {
    let each = 4 * (COPIES * pixels as u64 + LOGITS * classes as u64) + OTHER;
    usize::try_from(memory / each).unwrap_or(usize::MAX).max(1)
}

/// Images in one part: as many as memory holds, and no more than half a minute does, but enough of them to keep a
/// device busy; whole batches where there are several.
pub(super) fn chunk(held: usize, batch: usize, step: Duration, steps: u64) -> usize {
    let one = duration(step, 1, steps).as_secs_f64().max(1e-9);
    let timely = (CHUNK.as_secs_f64() / one) as usize;
    let n = timely.max(batch.min(64)).min(held).max(1);
    if n > batch { n - n % batch } else { n }
}

/// A duration in words: `3 min 20 s`.
pub(super) fn words(time: Duration) -> String {
    let s = time.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{} s", s.max(1)),
        60..3600 => two(s / 60, "min", s % 60, "s"),
        3600..86_400 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, unit: &str, small: u64, part: &str) -> String {
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {part}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;
    use crate::attack::{Loss, Method, Norm};
    use crate::model::{Dims, Layer, Linear, Model, Params};
    use std::collections::BTreeMap;

    /// An image of many pixels, and next to no network: what takes time is what a rule does with the gradient.
    #[test]
    fn a_step_takes_what_its_rule_takes() {
        let linear = Linear { name: "z".into(), inputs: 1, outputs: 3, bias: true };
        let params = Params { weight: vec![1.0, -1.0, 0.5], bias: vec![0.0, 0.1, 0.2] };
        let model = Model {
            arch: "mean".into(),
            input: Dims::new(1, 256, 256),
            layers: vec![Layer::GlobalAvgPool, Layer::Linear(linear)],
            params: BTreeMap::from([("z".to_string(), params)]),
            classes: Vec::new(),
            eps: None,
            step_size: None,
        };
        let image: Vec<f32> = (0..model.input.len()).map(|i| (i * 7919 % 256) as f32 / 255.0).collect();
        let runner = Runner::Reference(Box::new(Reference::new(model).unwrap()));
        let least = |attack: &Attack| (0..3).map(|_| step_time(&runner, attack, &image, &[1]).unwrap()).min().unwrap();
        let (pgd, fab) = (least(&Attack::pgd(Norm::Linf, 0.1)), least(&Attack::fab_t(Norm::Linf, 0.1)));
        assert!(2 * fab > 3 * pgd, "pgd {pgd:?}, fab-t {fab:?}");
        // Every method has a step that can be timed, however few its own are, and with whatever loss it follows.
        for method in Method::ALL {
            let attack = Attack::new(method, Norm::Linf, 0.1).steps(1);
            let attack = if method == Method::ApgdT { attack.loss(Loss::CrossEntropy) } else { attack };
            assert!(step_time(&runner, &attack, &image, &[1]).unwrap() > Duration::ZERO, "{method}");
        }
    }

    #[test]
    fn durations_are_told_in_two_units() {
        let told = |s: f64| words(Duration::from_secs_f64(s));
        assert_eq!(told(0.1), "1 s");
        assert_eq!(told(59.4), "59 s");
        assert_eq!(told(59.6), "1 min");
        assert_eq!(told(200.0), "3 min 20 s");
        assert_eq!(told(3600.0), "1 h");
        assert_eq!(told(5000.0), "1 h 23 min");
        assert_eq!(told(90_000.0), "1 d 1 h");
        assert_eq!(words(duration(Duration::MAX, usize::MAX, u64::MAX - 1)), "11574074 d 1 h");
    }

    #[test]
    fn a_chunk_is_bounded_by_memory_and_by_time() {
        let ms = Duration::from_millis;
        // 9 steps of a millisecond and the logits: a hundredth of a second for an image, 3,000 in half a minute.
        assert_eq!(chunk(usize::MAX, 1, ms(1), 9), 3000);
        assert_eq!(chunk(1000, 1, ms(1), 9), 1000);
        assert_eq!(chunk(usize::MAX, 256, ms(1), 9), 2816, "whole batches");
        assert_eq!((chunk(257, 256, ms(1), 9), chunk(256, 256, ms(1), 9)), (256, 256), "no batch of one");
        assert_eq!(chunk(usize::MAX, 256, ms(1000), 9), 64, "a device kept busy");
        assert_eq!(chunk(10, 256, ms(1000), 9), 10, "memory comes first");
        assert_eq!(chunk(usize::MAX, 1, ms(60_000), 9), 1);
        assert!(chunk(1 << 40, 64, Duration::ZERO, 1) > 1 << 30);
    }

    #[test]
    fn memory_holds_at_least_one_image() {
        assert_eq!(images_in(1, 1 << 20, 1000), 1);
        let n = images_in(1 << 30, 3 * 32 * 32, 10);
        assert!((9_000..10_000).contains(&n), "{n}");
    }
}
