//! Files that somebody made to do harm: every reader there is, sound files for it to begin with, and mutations of them. Shared
//! by `tests/mutations.rs` and the fuzz targets in `fuzz/`.

use flate2::Compression;
use flate2::write::GzEncoder;
use signstep::attack::{Health, Logits};
use signstep::data::{self, View, write_safetensors};
use signstep::model::{Dims, Layer, Linear};
use signstep::report::{
    self, Config, DataFacts, Device, Distance, Folder, Identity, ModelFacts, Opened, Report, Shard,
};
use signstep::weights::{self, Tensors};
use signstep::{Attack, Error, Reference, cli};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// One reader, and the file that it is given.
pub struct Target {
    pub name: &'static str,
    /// The file that is mutated, in a folder that `scene` has filled with sound ones.
    pub file: &'static str,
    pub scene: fn(&Path),
    pub read: fn(&Path) -> Result<(), Error>,
    /// Makes checksums right again, so that what lies behind them is reached.
    pub mend: fn(Vec<u8>) -> Vec<u8>,
    /// Bytes of memory that a reader may take beside twice the file's: its blocks and tables, the largest image.
    pub cap: usize,
}

/// Blocks that are read at once and what is made of them, a JSON file of the largest size read.
const BLOCKS: usize = 12 << 20;
/// An image of as many values as are read, decoded, and as floats.
const PICTURE: usize = 96 << 20;

pub const TARGETS: [Target; 23] = [
    target("weights", "net.safetensors", network, read_weights, same, BLOCKS),
    target("header", "net.safetensors", small_network, read_weights, same, BLOCKS),
    target("safetensors", "x.safetensors", tensors, |at| read_data(&at.join("x.safetensors")), same, BLOCKS),
    target("idx-images", IDX_IMAGES, idx, read_data, same, BLOCKS),
    target("idx-labels", IDX_LABELS, idx, read_data, same, BLOCKS),
    target("idx-gzip", IDX_GZIP, idx_gzip, read_data, zip_again, BLOCKS),
    target("cifar", "test_batch.bin", cifar, read_data, same, BLOCKS),
    target("cifar-names", "batches.meta.txt", cifar, read_data, same, BLOCKS),
    target("npy-images", "images.npy", npy, read_data, same, BLOCKS),
    target("npy-labels", "labels.npy", npy, read_data, same, BLOCKS),
    target("png", "a/x.png", png, read_data, mend_png, PICTURE),
    target("jpeg", "a/x.jpg", jpeg, read_data, same, PICTURE),
    target("labels-csv", "labels.csv", table, read_data, same, BLOCKS),
    target("description", "net.toml", description, read_description, same, BLOCKS),
    target("targets", "targets.txt", targets, read_targets, same, BLOCKS),
    target("report", "s0/report.json", complete, read_run, same, BLOCKS),
    target("tensors", "s0/adversarial.safetensors", complete, read_tensors, same, BLOCKS),
    target("manifest", "run/parts/run.json", interrupted, resume, same, BLOCKS),
    target("part", "run/parts/0-4.safetensors", interrupted, resume, same, BLOCKS),
    target("evaluation", "eval.json", evaluation, read_evaluation, same, BLOCKS),
    target("tuning", "tiles.txt", tuning, read_tuning, mend_sealed, BLOCKS),
    target("habits", "habits.txt", habits, read_habits, mend_sealed, BLOCKS),
    target("baseline", "baseline.json", baseline, |at| cli::readers::baseline(&at.join("baseline.json")), same, BLOCKS),
];

type Read = fn(&Path) -> Result<(), Error>;

const fn target(
    name: &'static str,
    file: &'static str,
    scene: fn(&Path),
    read: Read,
    mend: fn(Vec<u8>) -> Vec<u8>,
    cap: usize,
) -> Target {
    Target { name, file, scene, read, mend, cap }
}

impl Target {
    pub fn named(name: &str) -> &'static Target {
        TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no target {name}"))
    }

    /// Fills `folder` with sound files; gives the bytes of the one that is mutated.
    pub fn set(&self, folder: &Path) -> Vec<u8> {
        (self.scene)(folder);
        fs::read(folder.join(self.file)).unwrap()
    }

    /// Puts `bytes` in the file's place and reads it: sound or refused, and nothing else. Whether it was sound.
    ///
    /// # Panics
    /// For an error that is none of a file's.
    pub fn run(&self, folder: &Path, bytes: &[u8]) -> bool {
        fs::write(folder.join(self.file), bytes).unwrap();
        match (self.read)(folder) {
            Ok(()) => true,
            // Usage, model or data, output: a folder that holds something else.
            Err(e) => {
                assert!(matches!(e.exit_code(), 2 | 3 | 8), "{}: {e:?}", self.name);
                assert!(!e.to_string().is_empty(), "{}: nothing said", self.name);
                false
            }
        }
    }
}

/// A stream of random numbers, the same on every machine: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.word() % n as u64) as usize }
    }
}

const EXTREMES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff0,
    0xffff_ffff_ffff_ffff,
];

const NUMERALS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-400",
    "null",
];

/// A sound file with one to four things wrong: bits, bytes, lengths and numbers at their extremes, what is cut off, left out,
/// there twice or put in.
pub fn mutated(target: &Target, random: &mut Random, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..1 + random.below(4) {
        // Headers are short, and where the harm is.
        let reach = if random.below(3) > 0 { bytes.len().min(700) } else { bytes.len() };
        let at = random.below(reach);
        let extreme = EXTREMES[random.below(EXTREMES.len())];
        let width = [1, 2, 4, 8][random.below(4)];
        let longest = [300, 16, 16, 16][random.below(4)];
        let length = 1 + random.below(longest);
        let end = (at + length).min(bytes.len());
        match random.below(12) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.word() as u8,
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at.min(end)..end)),
            5 => {
                let extra: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
                bytes.splice(at..at, extra);
            }
            6 | 7 if at + width <= bytes.len() => {
                let (little, big) = (extreme.to_le_bytes(), extreme.to_be_bytes());
                let number = if random.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
                bytes[at..at + width].copy_from_slice(number);
            }
            8 | 9 => numeral(&mut bytes, at, NUMERALS[random.below(NUMERALS.len())]),
            10 => {
                let twice = bytes[at.min(end)..end].to_vec();
                let place = random.below(bytes.len() + 1);
                bytes.splice(place..place, twice);
            }
            11 => {
                let words: [&[u8]; 8] = [b"\"", b"{", b"[[[[[[[[", b"}", b",", b"\n", b"\\u0000", b"\xff\xfe"];
                bytes.splice(at..at, words[random.below(8)].iter().copied());
            }
            _ => {}
        }
    }
    if random.below(2) == 0 { (target.mend)(bytes) } else { bytes }
}

/// Puts another number in the place of the first one from `at` on.
fn numeral(bytes: &mut Vec<u8>, at: usize, other: &str) {
    let Some(start) = bytes[at.min(bytes.len())..].iter().position(u8::is_ascii_digit) else { return };
    let start = at + start;
    let end = bytes[start..].iter().position(|b| !b.is_ascii_digit() && *b != b'.').map_or(bytes.len(), |n| start + n);
    bytes.splice(start..end, other.bytes());
}

fn same(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn read_data(path: &Path) -> Result<(), Error> {
    let mut set = data::open(path, None)?;
    let n = set.len();
    assert_eq!(set.images(0..1)?.len(), set.dims.len());
    set.images(n - 1..n).map(|_| ())
}

const IDX_IMAGES: &str = "x-images-idx3-ubyte";
const IDX_LABELS: &str = "x-labels-idx1-ubyte";
const IDX_GZIP: &str = "x-images-idx3-ubyte.gz";

fn idx_images() -> Vec<u8> {
    let mut file = vec![0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 3];
    file.extend((0..60).map(|i| i * 4));
    file
}

fn idx(at: &Path) {
    fs::write(at.join(IDX_IMAGES), idx_images()).unwrap();
    fs::write(at.join(IDX_LABELS), [0, 0, 8, 1, 0, 0, 0, 5, 0, 1, 2, 1, 0]).unwrap();
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx_gzip(at: &Path) {
    idx(at);
    fs::remove_file(at.join(IDX_IMAGES)).unwrap();
    fs::write(at.join(IDX_GZIP), zipped(&idx_images())).unwrap();
}

/// Unpacked as far as it can be, changed where the packed file was not, and packed again; now and then a great deal of zeros.
fn zip_again(bytes: Vec<u8>) -> Vec<u8> {
    let mut random = Random(bytes.iter().fold(7, |h, b| h * 31 + u64::from(*b)));
    let mut inside = idx_images();
    for _ in 0..1 + random.below(2) {
        let (at, extreme) = (4 * random.below(4), EXTREMES[random.below(EXTREMES.len())] as u32);
        inside[at..at + 4].copy_from_slice(&extreme.to_be_bytes());
    }
    if random.below(50) == 0 {
        inside.resize(3 << 20, 0);
    }
    let mut file = zipped(&inside);
    let at = random.below(file.len());
    if random.below(4) == 0 {
        file.truncate(at);
    }
    file
}

fn cifar(at: &Path) {
    let mut file = vec![100; 3 * 3073];
    file.iter_mut().step_by(3073).zip([3, 9, 0]).for_each(|(b, label)| *b = label);
    fs::write(at.join("test_batch.bin"), file).unwrap();
    let names: Vec<String> = (0..10).map(|i| format!("class {i}\n")).collect();
    fs::write(at.join("batches.meta.txt"), names.concat()).unwrap();
}

fn array(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    [&b"\x93NUMPY\x01\0"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), values].concat()
}

fn npy(at: &Path) {
    let floats: Vec<u8> = (0..24).flat_map(|i| (i as f32 / 23.0).to_le_bytes()).collect();
    fs::write(at.join("images.npy"), array("<f4", "(4, 1, 2, 3)", &floats)).unwrap();
    fs::write(at.join("labels.npy"), array("<i2", "(4,)", &[0, 0, 1, 0, 2, 0, 1, 0])).unwrap();
}

fn tensors(at: &Path) {
    let (bytes, labels) = ([0, 17, 255, 34, 51, 68, 85, 102], [1, 0, 2]);
    let list = [
        ("images", View::u8(&[2, 1, 2, 2], &bytes)),
        ("labels", View::i64(&[2], &labels[..2])),
        ("other", View::f32(&[1, 1], &[0.5])),
    ];
    let classes = BTreeMap::from([("classes".to_string(), r#"["a","b","c"]"#.to_string())]);
    write_safetensors(&at.join("x.safetensors"), &list, &classes).unwrap();
}

fn picture() -> image::RgbImage {
    image::RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 20) as u8, (y * 30) as u8, (x * y) as u8]))
}

fn png(at: &Path) {
    fs::create_dir_all(at.join("a")).unwrap();
    picture().save(at.join("a/x.png")).unwrap();
}

fn jpeg(at: &Path) {
    fs::create_dir_all(at.join("a")).unwrap();
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 60).encode_image(&picture()).unwrap();
    fs::write(at.join("a/x.jpg"), bytes).unwrap();
}

/// Checksums of the chunks, as far as there are chunks.
fn mend_png(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        if end.checked_add(4).is_none_or(|end| end > bytes.len()) {
            break;
        }
        let mut sum = flate2::Crc::new();
        sum.update(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&sum.sum().to_be_bytes());
        at = end + 4;
    }
    bytes
}

fn table(at: &Path) {
    for (name, grey) in [("a.png", 1), ("b c.png", 2), ("d.png", 3)] {
        image::GrayImage::from_pixel(2, 2, image::Luma([grey])).save(at.join(name)).unwrap();
    }
    fs::write(at.join("labels.csv"), "file,label\na.png,4\n\"b c.png\",0\r\nd.png,12\n").unwrap();
}

/// With every kind of layer and shortcut, close together: headers are where mutations fall.
fn description(at: &Path) {
    let text = r##"name = "own"
input = [2, 9, 9]
classes = 3
mean = [0.5, 0.25]
std = [1.0, 2]
layers = [
{ conv = "a", outputs = 8, kernel = 3, padding = 1, bias = false },
{ batch_norm = "b" }, "relu",
{ repeat = 3, from = 1, layers = [
{ residual = [{ conv = "c#", outputs = 8, kernel = 1 }], shortcut = "identity" } ] },
{ residual = [{ conv = "d", outputs = 16, kernel = 3, stride = 2, padding = 1 }], shortcut = { subsample = 8 } },
{ residual = [{ conv = "e", outputs = 4, kernel = 1 }], shortcut = [{ conv = "f", outputs = 4, kernel = 1 }] },
{ max_pool = 2, stride = 1 }, { avg_pool = 3, padding = 1 }, "global_avg_pool", "flatten",
{ linear = "g", outputs = 3 } ]
"##;
    fs::write(at.join("net.toml"), text).unwrap();
}

fn read_description(at: &Path) -> Result<(), Error> {
    let description = data::Description::open(&at.join("net.toml"))?;
    // Whatever it says, its layers fit one another.
    let logits = signstep::model::output(&description.arch.layers, description.arch.input)?.len();
    assert!(logits >= 2 && (description.classes.is_empty() || description.classes.len() == logits));
    Ok(())
}

fn targets(at: &Path) {
    fs::write(at.join("targets.txt"), "3\n-1\n0\r\n 9\n").unwrap();
}

fn read_targets(at: &Path) -> Result<(), Error> {
    data::read_targets(&at.join("targets.txt"), 4, 10).map(|_| ())
}

const DIGITS: &[u8] = include_bytes!("../../weights/digits-cnn.safetensors");

fn network(at: &Path) {
    fs::write(at.join("net.safetensors"), DIGITS).unwrap();
}

/// A header like that of weights with little behind it: all of it is read, and the network is not known.
fn small_network(at: &Path) {
    let list = [
        ("conv1.weight", View::f32(&[2, 1, 1, 1], &[0.5, -0.5])),
        ("conv1.bias", View::f32(&[2], &[0.0, 1.0])),
        ("linear.weight", View::f32(&[2, 2], &[1.0, 0.0, 0.0, 1.0])),
    ];
    let metadata = [("mean", "[0.5]"), ("std", "[0.25]"), ("classes", "[\"a\",\"b\"]"), ("eps", "8/255")];
    let metadata = metadata.map(|(k, v)| (k.to_string(), v.to_string())).into_iter().collect();
    write_safetensors(&at.join("net.safetensors"), &list, &metadata).unwrap();
}

fn read_weights(at: &Path) -> Result<(), Error> {
    let bytes = fs::read(at.join("net.safetensors")).unwrap();
    weights::load(&bytes).map(|_| ())
}

const DIMS: Dims = Dims::new(1, 2, 2);

/// A run of four samples of a tiny network on the CPU, the only shard of one.
fn begun(path: &Path) -> Box<Folder> {
    let model = tiny();
    let distance = |text: &str, value| Distance { text: text.into(), value };
    let config = Config {
        method: signstep::Method::Ifgsm,
        norm: signstep::Norm::Linf,
        loss: signstep::attack::Loss::CrossEntropy,
        targets: "none".into(),
        targets_sha256: None,
        eps: distance("0.3", 0.3),
        step_size: distance("0.2", 0.2),
        steps: 2,
        restarts: 1,
        random_start: false,
        momentum: None,
        early_stop: false,
        bounds: Some((0.0, 1.0)),
        quantise: true,
        attack_all: false,
        keep_going: false,
        seed: 7,
        limit: None,
        radii: Vec::new(),
        ladder: None,
    };
    let facts = ModelFacts { arch: "custom".into(), sha256: "aa".into(), parameters: 10, description_sha256: None };
    let classes = vec!["cat".into(), "dog".into()];
    let data =
        DataFacts { source: "made up".into(), sha256: "bb".into(), samples: 4, classes, framing: Default::default() };
    let identity = Identity::new("f64", config, facts, data, Shard::new(0, 1, 4).ok());
    let [name, backend, kind, driver] = ["reference", "cpu", "software", ""].map(String::from);
    let device = Device { name, backend, kind, driver };
    let Opened::Ready(mut folder) = Folder::open(path, identity, device, DIMS, 2, false).unwrap() else {
        panic!("a folder that is there already")
    };
    let images: Vec<f32> = (0..16).map(|i| (i * 16) as f32 / 255.0).collect();
    let attack = Attack::ifgsm(0.3).steps(2).step_size(0.2).untargeted();
    let outcome = attack.run(&Reference::new(model).unwrap(), &images, &[0, 1, 0, 1]).unwrap();
    folder.add(&outcome, &[], Duration::from_millis(2)).unwrap();
    folder
}

fn tiny() -> signstep::Model {
    let layers = vec![Layer::Flatten, Layer::Linear(Linear { name: "z".into(), inputs: 4, outputs: 2, bias: true })];
    let weight = (vec![2, 4], vec![1.0, -1.0, 0.5, 0.0, -1.0, 1.0, 0.0, 0.5]);
    let tensors = Tensors::from([("z.weight".into(), weight), ("z.bias".into(), (vec![2], vec![0.0, 0.1]))]);
    weights::from_layers(layers, DIMS, tensors).unwrap()
}

fn complete(at: &Path) {
    begun(&at.join("s0")).finish(Duration::ZERO, Duration::ZERO, None).unwrap();
}

fn interrupted(at: &Path) {
    drop(begun(&at.join("run")));
}

/// What is there is told in every form, taken for the run that it says it is of, and merged.
fn read_run(at: &Path) -> Result<(), Error> {
    let (shard, out) = (at.join("s0"), at.join("out"));
    let report = Report::read(&shard.join("report.json"))?;
    tell(&report);
    Folder::open(&shard, report.identity.clone(), report.device.clone(), DIMS, 2, false)?;
    let merged = report::merge(&[shard], &out, true);
    let _ = fs::remove_dir_all(&out);
    tell(&merged?.0);
    Ok(())
}

fn tell(report: &Report) {
    let told = [report::table(report).to_string(), report::csv(report), report::markdown(report), report.json()];
    assert!(told.iter().all(|text| !text.is_empty()));
}

fn read_tensors(at: &Path) -> Result<(), Error> {
    let shard = at.join("s0");
    let mut file = report::TensorFile::open(&shard.join("adversarial.safetensors"))?;
    for slot in file.slots() {
        let n = slot.shape.first().copied().unwrap_or(0);
        let end = n.min(4);
        let _ = (file.f64(&slot.name, 0..end), file.i64(&slot.name, 0..end), file.flags(&slot.name, 0..end));
        let mut size = 0;
        file.copy(&slot.name, &mut |block| {
            size += block.len();
            Ok(())
        })?;
        assert_eq!(Some(size), slot.size(), "{}", slot.name);
    }
    let merged = report::merge(&[shard], &at.join("out"), true);
    let _ = fs::remove_dir_all(at.join("out"));
    merged.map(|_| ())
}

/// The run is gone on with: what is damaged is not taken up. Ready for the next one: the folder is as it was.
fn resume(at: &Path) -> Result<(), Error> {
    let path = at.join("run");
    let kept: Vec<_> = ["run.json", "0-4.safetensors"]
        .map(|name| (path.join("parts").join(name), fs::read(path.join("parts").join(name)).unwrap()))
        .into();
    let identity = serde_json::from_slice::<serde_json::Value>(&kept[0].1).ok();
    let read = identity.and_then(|value| {
        let device = serde_json::from_value::<Device>(value.get("device")?.clone()).ok()?;
        Some((serde_json::from_value::<Identity>(value).ok()?, device))
    });
    let (identity, device) = read.unwrap_or_else(|| (sound_identity(), sound_device()));
    let opened = Folder::open(&path, identity, device, DIMS, 2, false).map(|opened| match opened {
        Opened::Ready(folder) => folder.parts().len(),
        Opened::Complete(_) => panic!("complete, without a report"),
    });
    fs::create_dir_all(path.join("parts")).unwrap();
    kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    match opened? {
        1 => Ok(()),
        _ => Err(Error::Usage("the part was not taken up".into())),
    }
}

fn sound_identity() -> Identity {
    static KNOWN: OnceLock<Identity> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        drop(begun(&folder.path().join("run")));
        serde_json::from_slice(&fs::read(folder.path().join("run/parts/run.json")).unwrap()).unwrap()
    };
    KNOWN.get_or_init(make).clone()
}

fn sound_device() -> Device {
    let [name, backend, kind, driver] = ["reference", "cpu", "software", ""].map(String::from);
    Device { name, backend, kind, driver }
}

fn evaluation(at: &Path) {
    let data = DataFacts {
        source: "made up".into(),
        sha256: "bb".into(),
        samples: 2,
        classes: Vec::new(),
        framing: Default::default(),
    };
    let config = report::EvalConfig {
        attacks: vec!["fgsm".into()],
        norm: "linf".into(),
        eps: Distance { text: "8/255".into(), value: 8.0 / 255.0 },
        bounds: Some((0.0, 1.0)),
        quantise: true,
        seed: 1,
        limit: None,
        keep_going: false,
    };
    let model = ModelFacts { arch: "custom".into(), sha256: "aa".into(), parameters: 10, description_sha256: None };
    let identity = report::EvalIdentity::new("f64", config, model, data, sound_device());
    let mut ledger = report::Ledger::default();
    let seen = Logits { logits: vec![1.0, 0.0, 0.5, 0.25], health: vec![Health::default(); 2] };
    ledger.open(&[0, 1], &[0.0; 8], &seen, 0.0);
    let struck = report::Struck {
        attack: "fgsm".into(),
        description: "fgsm (ce, 1 step)".into(),
        begun: true,
        tally: report::Tally { tried: 1, ..Default::default() },
        robust: 1,
        robust_float: 1,
    };
    let mut made = report::Evaluation::new(identity, false, &ledger, vec![struck], Default::default(), None);
    made.files.insert("eval.safetensors".into(), NOTHING.into());
    fs::write(at.join("eval.json"), made.json()).unwrap();
    fs::write(at.join("eval.safetensors"), "").unwrap();
}

fn read_evaluation(at: &Path) -> Result<(), Error> {
    let made = report::Evaluation::read(&at.join("eval.json"))?;
    let told = [report::evaluation_table(&made), report::evaluation_csv(&made), report::evaluation_markdown(&made)];
    assert!(told.iter().all(|text| !text.is_empty()));
    report::EvalFolder::open(at, &made.identity, DIMS, false).map(|_| ())
}

/// SHA-256 of a file without a byte.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const KEY: &str = "signstep, a device";

fn tuning(at: &Path) {
    let tiles = "conv 3x3 16 to 16: register-4x8\nlinear 64: broadcast-2x4\n";
    fs::write(at.join("tiles.txt"), mend_sealed(format!("{KEY}\n-\n{tiles}").into_bytes())).unwrap();
}

fn mend_sealed(bytes: Vec<u8>) -> Vec<u8> {
    let Ok(text) = String::from_utf8(bytes.clone()) else { return bytes };
    let mut lines = text.splitn(3, '\n');
    let (Some(key), Some(_), Some(rest)) = (lines.next(), lines.next(), lines.next()) else { return bytes };
    cli::readers::sealed(key, rest).into_bytes()
}

fn read_tuning(at: &Path) -> Result<(), Error> {
    let tuning = cli::readers::tuning(&at.join("tiles.txt"), KEY);
    // Whatever it says, a plan is one that can run.
    let plan = signstep::Plan::new(&tiny(), &signstep::Target { tuning: tuning.clone(), ..Default::default() })?;
    assert!(plan.largest_batch(1 << 30).is_ok());
    if tuning.is_empty() { Err(Error::Usage("as good as none".into())) } else { Ok(()) }
}

/// Those of lavapipe.
fn habits(at: &Path) {
    let words = "486f7637 000116c2 00022d84 3f800000 00000000 3f800000 00000000 \
                 00000000 00000000 00000000 00000000 3f800000 3df9c190 00000001 \
                 00000001 00000000 00000000 00000008 ";
    fs::write(at.join("habits.txt"), cli::readers::sealed(KEY, &words.replace(' ', "\n"))).unwrap();
}

fn read_habits(at: &Path) -> Result<(), Error> {
    let answers = cli::readers::answers(&at.join("habits.txt"), KEY);
    let answers = answers.ok_or_else(|| Error::Usage("as good as none".into()))?;
    // What is read is what would be written.
    assert_eq!(answers.to_string().parse(), Ok(answers));
    Ok(())
}

fn baseline(at: &Path) {
    let text = include_str!("../../benches/results/llvmpipe-llvm-15-0-6-256-bits-vulkan.json");
    let mut results: serde_json::Value = serde_json::from_str(text).unwrap();
    for rows in ["kernels", "steps"] {
        results[rows].as_array_mut().unwrap().truncate(2);
    }
    fs::write(at.join("baseline.json"), serde_json::to_string_pretty(&results).unwrap()).unwrap();
}
