//! The real CIFAR-10 files, which are not part of the repository. They lie in `../shared/data`, or where SIGNSTEP_DATA
//! says. Without them these tests fail; they are run by name (`--ignored`), so that nothing is skipped silently.

#![cfg(feature = "cli")]

use signstep::data::{self, Dataset};
use signstep::model::Dims;
use std::path::PathBuf;

fn cifar() -> PathBuf {
    let data = std::env::var_os("SIGNSTEP_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    data.join("cifar10")
}

/// Mean and standard deviation of one channel.
fn statistics(set: &Dataset, channel: usize) -> (f64, f64) {
    let plane = set.dims.h * set.dims.w;
    let values = || set.images.chunks_exact(plane).skip(channel).step_by(set.dims.c).flatten().copied().map(f64::from);
    let n = (set.len() * plane) as f64;
    let mean = values().sum::<f64>() / n;
    (mean, (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
#[ignore = "needs the CIFAR-10 files, see README"]
fn the_test_batch_is_whole_and_balanced() {
    let set = data::load(&cifar(), None).unwrap();
    assert_eq!((set.len(), set.dims, set.images.len()), (10_000, Dims::new(3, 32, 32), 10_000 * 3072));
    for class in 0..10 {
        assert_eq!(set.labels.iter().filter(|label| **label == class).count(), 1000, "class {class}");
    }
    assert_eq!((set.classes[0].as_str(), set.classes[9].as_str()), ("airplane", "truck"));
    assert_eq!(set.snapped, 0.0);
    for (channel, want) in [(0.4942, 0.2467), (0.4851, 0.2429), (0.4504, 0.2616)].into_iter().enumerate() {
        let (mean, deviation) = statistics(&set, channel);
        assert!((mean - want.0).abs() < 1e-4, "mean of channel {channel}: {mean}");
        assert!((deviation - want.1).abs() < 1e-4, "deviation of channel {channel}: {deviation}");
    }
}

#[test]
#[ignore = "needs the CIFAR-10 files, see README"]
fn a_training_batch_is_read_by_name_and_limited() {
    let set = data::load(&cifar().join("data_batch_1.bin"), Some(64)).unwrap();
    assert_eq!((set.len(), set.images.len()), (64, 64 * 3072));
    let whole = data::load(&cifar().join("data_batch_1.bin"), None).unwrap();
    assert_eq!((whole.len(), &whole.sha256), (10_000, &set.sha256));
    assert_eq!(whole.images[..set.images.len()], set.images);
}
