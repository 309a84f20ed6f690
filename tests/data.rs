//! The real CIFAR-10 and MNIST files, which are not part of the repository. They lie in `../shared/data`, or where
//! SIGNSTEP_DATA says. Without them these tests fail; they are run by name (`--ignored`), so that nothing is skipped
//! silently.

#![cfg(feature = "cli")]

use signstep::data::{self, Source};
use signstep::model::Dims;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn shared(name: &str) -> PathBuf {
    let data = std::env::var_os("SIGNSTEP_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    data.join(name)
}

/// Mean and standard deviation of one channel, read in pieces that do not divide the set.
fn statistics(set: &mut Source, channel: usize) -> (f64, f64) {
    let plane = set.dims.h * set.dims.w;
    let (mut sum, mut squares) = (0.0, 0.0);
    for start in (0..set.len()).step_by(999) {
        let images = set.images(start..set.len().min(start + 999)).unwrap();
        for value in images.chunks_exact(plane).skip(channel).step_by(set.dims.c).flatten().copied().map(f64::from) {
            sum += value;
            squares += value * value;
        }
    }
    let n = (set.len() * plane) as f64;
    (sum / n, (squares / n - (sum / n).powi(2)).sqrt())
}

fn same(a: &mut Source, b: &mut Source) {
    assert_eq!((a.dims, &a.labels), (b.dims, &b.labels));
    for start in (0..a.len()).step_by(1000) {
        let range = start..a.len().min(start + 1000);
        assert!(a.images(range.clone()).unwrap() == b.images(range).unwrap(), "from {start}");
    }
}

#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn the_test_batch_is_whole_and_balanced() {
    let mut set = data::open(&shared("cifar10"), None).unwrap();
    assert_eq!((set.len(), set.dims), (10_000, Dims::new(3, 32, 32)));
    for class in 0..10 {
        assert_eq!(set.labels.iter().filter(|label| **label == class).count(), 1000, "class {class}");
    }
    assert_eq!((set.classes[0].as_str(), set.classes[9].as_str()), ("airplane", "truck"));
    for (channel, want) in [(0.4942, 0.2467), (0.4851, 0.2429), (0.4504, 0.2616)].into_iter().enumerate() {
        let (mean, deviation) = statistics(&mut set, channel);
        assert!((mean - want.0).abs() < 1e-4, "mean of channel {channel}: {mean}");
        assert!((deviation - want.1).abs() < 1e-4, "deviation of channel {channel}: {deviation}");
    }
}

#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn a_training_batch_is_read_by_name_and_limited() {
    let mut set = data::open(&shared("cifar10/data_batch_1.bin"), Some(64)).unwrap();
    let images = set.all().unwrap();
    assert_eq!((set.len(), images.len()), (64, 64 * 3072));
    let mut whole = data::open(&shared("cifar10/data_batch_1.bin"), None).unwrap();
    assert_eq!((whole.len(), &whole.sha256), (10_000, &set.sha256));
    assert_eq!(whole.images(0..64).unwrap(), images);
}

#[test]
#[ignore = "needs the MNIST files, see tests/README.md"]
fn mnist_is_whole_packed_or_not() {
    let mut test = data::open(&shared("mnist"), None).unwrap();
    assert_eq!((test.len(), test.dims), (10_000, Dims::new(1, 28, 28)));
    assert_eq!(test.labels[..5], [7, 2, 1, 0, 4]);
    let mut train = data::open(&shared("mnist/train-images-idx3-ubyte.gz"), None).unwrap();
    assert_eq!((train.len(), &train.labels[..5]), (60_000, &[5, 0, 4, 1, 9][..]));
    let (mean, deviation) = statistics(&mut train, 0);
    assert!((mean - 0.1307).abs() < 1e-4 && (deviation - 0.3081).abs() < 1e-4, "{mean}, {deviation}");

    let folder = tempfile::tempdir().unwrap();
    for name in ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
        let packed = File::open(shared("mnist").join(format!("{name}.gz"))).unwrap();
        let mut plain = File::create(folder.path().join(name)).unwrap();
        std::io::copy(&mut flate2::read::MultiGzDecoder::new(packed), &mut plain).unwrap();
    }
    let mut plain = data::open(folder.path(), None).unwrap();
    assert_ne!(plain.sha256, test.sha256);
    same(&mut test, &mut plain);
    // Backwards: gzip starts again for every range.
    for start in [9_000, 5_000, 0] {
        assert_eq!(test.images(start..start + 3).unwrap(), plain.images(start..start + 3).unwrap());
    }
}

/// Samples by class, in the order of the set within each: the order of paths.
fn by_class(set: &Source) -> Vec<usize> {
    let mut order: Vec<usize> = (0..set.len()).collect();
    order.sort_by_key(|i| set.labels[*i]);
    order
}

fn write_png(path: &Path, image: &[f32]) {
    let byte = |x: u32, y: u32, c: usize| (image[(c * 32 + y as usize) * 32 + x as usize] * 255.0).round() as u8;
    let pixel = |x, y| image::Rgb([byte(x, y, 0), byte(x, y, 1), byte(x, y, 2)]);
    image::RgbImage::from_fn(32, 32, pixel).save(path).unwrap();
}

#[test]
#[ignore = "needs the CIFAR-10 files, see tests/README.md"]
fn pictures_give_back_every_byte() {
    let mut set = data::open(&shared("cifar10"), Some(200)).unwrap();
    let all = set.all().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (classes, table) = (folder.path().join("classes"), folder.path().join("table"));
    fs::create_dir(&table).unwrap();
    let mut rows = String::from("file,label\n");
    for (i, (image, label)) in all.chunks_exact(3072).zip(&set.labels).enumerate() {
        let class = classes.join(&set.classes[*label as usize]);
        fs::create_dir_all(&class).unwrap();
        write_png(&class.join(format!("{i:03}.png")), image);
        write_png(&table.join(format!("{i:03}.png")), image);
        writeln!(rows, "{i:03}.png,{label}").unwrap();
    }
    fs::write(table.join("labels.csv"), rows).unwrap();

    same(&mut data::open(&table, None).unwrap(), &mut set);

    let mut pictures = data::open(&classes, None).unwrap();
    // They are in bytewise order already.
    assert_eq!((pictures.len(), &pictures.classes), (200, &set.classes));
    for (at, i) in by_class(&set).into_iter().enumerate() {
        assert_eq!(pictures.labels[at], set.labels[i]);
        assert_eq!(pictures.images(at..at + 1).unwrap(), all[i * 3072..(i + 1) * 3072], "sample {at}");
    }
}
