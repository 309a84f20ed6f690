//! Files that somebody made to do harm, given to every reader there is: thousands of mutations of sound ones, the same in every
//! run. Each is read or refused, never a panic, and never for more memory than twice the file's and a stated cap.

#![allow(unsafe_code, reason = "an allocator that counts")]

#[path = "common/counting.rs"]
mod counting;
#[path = "common/hostile.rs"]
mod hostile;

use hostile::{Random, TARGETS, Target, mutated};
use std::fs;
use std::path::Path;

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

/// Mutations of each target.
const MUTATIONS: usize = 4000;
/// Fewer where one takes longest: files of tens of kilobytes, runs that are joined anew.
const FEW: usize = 1000;

/// Where files are fastest.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Reads `bytes`; the most memory it took beside twice their number.
fn run(target: &Target, folder: &Path, bytes: &[u8], what: &str) -> (bool, usize) {
    let (sound, peak) = counting::peak(|| target.run(folder, bytes));
    let more = peak.saturating_sub(2 * bytes.len());
    assert!(more <= target.cap, "{}, {what}: {peak} bytes of memory for a file of {}", target.name, bytes.len());
    (sound, more)
}

fn mutate(names: &[&str], count: usize) {
    for target in names.iter().map(|name| Target::named(name)) {
        let folder = folder();
        let whole = target.set(folder.path());
        // (A header alone is no network.)
        let (read, _) = run(target, folder.path(), &whole, "as it was");
        assert_eq!(read, target.name != "header", "{} as it was", target.name);
        let (mut sound, mut most) = (0, 0);
        for i in 0..count {
            let bytes = mutated(target, &mut Random(i as u64), &whole);
            let (read, more) = run(target, folder.path(), &bytes, &format!("mutation {i}"));
            sound += usize::from(read);
            most = most.max(more);
        }
        println!("{}: {count} mutations, {sound} sound; at most {} KiB beside twice the file", target.name, most >> 10);
        // A mutation is no use that is never refused, or a reader that refuses everything.
        assert!(sound < count, "{}: nothing was refused", target.name);
    }
}

#[test]
fn weights() {
    mutate(&["header"], MUTATIONS);
    mutate(&["weights"], FEW);
}

#[test]
fn arrays() {
    let plain =
        ["safetensors", "idx-images", "idx-labels", "idx-gzip", "npy-images", "npy-labels", "cifar", "cifar-names"];
    mutate(&plain, MUTATIONS);
}

#[test]
fn pictures_tables_and_descriptions() {
    mutate(&["png", "jpeg", "labels-csv", "targets", "description"], MUTATIONS);
}

#[test]
fn what_the_program_wrote_itself() {
    mutate(&["manifest", "part", "evaluation", "tuning", "habits", "baseline"], MUTATIONS);
    mutate(&["report", "tensors"], FEW);
}

/// What was found once: a file for each target under `corpus/TARGET`.
#[test]
fn found_cases_stay_mended() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut cases = 0;
    for target in &TARGETS {
        let Ok(entries) = fs::read_dir(corpus.join(target.name)) else { continue };
        let folder = folder();
        target.set(folder.path());
        for path in entries.map(|e| e.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let (sound, _) = run(target, folder.path(), &fs::read(&path).unwrap(), &name);
            assert!(!sound, "{}/{name} is taken for sound", target.name);
            cases += 1;
        }
    }
    assert!(cases > 0, "no cases in {}", corpus.display());
}

/// Headers of the largest size that is read, made of what takes the most memory for a byte.
#[test]
fn the_largest_headers_take_no_more_than_they_may() {
    const MOST: usize = 8 << 20;
    let entry = |i: usize| format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let list = |n: usize, f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<Vec<_>>().join(",");
    let long = "x".repeat(MOST - 100);
    let cases = [
        ("a long value", format!("{{\"__metadata__\":{{\"a\":\"{long}\"}}}}")),
        ("a long name", format!("{{\"{long}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}}}")),
        ("many entries", format!("{{\"__metadata__\":{{{}}}}}", list(MOST / 12, &|i| format!("\"{i}\":\"\"")))),
        ("many tensors", format!("{{{}}}", list(MOST / 60, &entry))),
        ("as many tensors as may be", format!("{{{}}}", list(4096, &entry))),
        (
            "a long shape",
            format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{}]}}}}", list(MOST / 2 - 100, &|_| "1".into())),
        ),
        ("depth", "{\"a\":".repeat(MOST / 8)),
        ("depth of lists", format!("{{\"a\":{}", "[".repeat(MOST - 10))),
        ("escapes", format!("{{\"__metadata__\":{{\"a\":\"{}\"}}}}", "\\u0000".repeat(MOST / 6 - 20))),
    ];
    for (name, header) in &cases {
        assert!(header.len() <= MOST, "{name}: {}", header.len());
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        for reader in ["header", "safetensors"] {
            let target = Target { cap: 32 << 20, ..*Target::named(reader) };
            let folder = folder();
            target.set(folder.path());
            let (sound, more) = run(&target, folder.path(), &bytes, name);
            println!("{reader}: {name}: {} KiB beside twice the file", more >> 10);
            assert!(!sound, "{reader}: {name} is read");
        }
    }
}

/// A file of a few kilobytes that unpacks to gigabytes costs a block of memory.
#[test]
fn what_unpacks_to_far_more_is_read_in_blocks() {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    let target = Target::named("idx-gzip");
    let folder = folder();
    target.set(folder.path());
    for (n, h, w) in
        [(u32::MAX, 1, 1), (1 << 24, 4, 4), (1, 1 << 11, 1 << 11), (1, 1 << 16, 1 << 16), (1 << 20, 16, 16)]
    {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&[[0, 0, 8, 3], n.to_be_bytes(), u32::to_be_bytes(h), u32::to_be_bytes(w)].concat()).unwrap();
        (0..64).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
        let bytes = encoder.finish().unwrap();
        // (Five labels lie beside.)
        assert!(!run(target, folder.path(), &bytes, &format!("{n} of {h}x{w}")).0);
    }
}
