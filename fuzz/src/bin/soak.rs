//! Mutations without end, on stable Rust: `soak BYTES [SEED] [TARGET…]` gives each target so many bytes, or the bytes that so many
//! seconds allow (`SOAK_SECONDS`), and says what came of it. Ends at the first panic, with the file that led to it in
//! `fuzz/artifacts/`.

use signstep_fuzz::hostile::{Random, TARGETS, Target, mutated};
use signstep_fuzz::{counting, folder};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

/// Mutants that were read are mutated further, at most so many of them.
const KEPT: usize = 64;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |a| a.parse().expect("a number"));
    let (wanted, seed) = (number(100_000_000), number(1));
    let names: Vec<String> = std::env::args().skip(3).collect();
    let seconds = std::env::var("SOAK_SECONDS").map(|s| s.parse().expect("SOAK_SECONDS: a number"));
    let most = seconds.map_or(Duration::MAX, Duration::from_secs);
    let mut found = 0;
    println!("| target | executions | bytes | read | refused | KiB beside twice the file, at most | seconds |");
    println!("|---|---|---|---|---|---|---|");
    for target in TARGETS.iter().filter(|t| names.is_empty() || names.iter().any(|n| n == t.name)) {
        found += soak(target, wanted, most, seed);
    }
    std::process::exit(i32::from(found > 0));
}

fn soak(target: &Target, wanted: u64, longest: Duration, seed: u64) -> usize {
    let (folder, sound) = folder(target);
    let (mut pool, mut random) = (vec![sound], Random(seed));
    let (mut executions, mut bytes, mut read, mut most) = (0_u64, 0_u64, 0_u64, 0);
    let start = Instant::now();
    while bytes < wanted && start.elapsed() < longest {
        let whole = &pool[random.below(pool.len())];
        let mutant = mutated(target, &mut random, whole);
        let run = || counting::peak(|| target.run(folder.path(), &mutant));
        let Ok((sound, peak)) = catch_unwind(AssertUnwindSafe(run)) else { return keep(target, &mutant) };
        let more = peak.saturating_sub(2 * mutant.len());
        if more > target.cap {
            eprintln!("{}: {peak} bytes of memory for a file of {}", target.name, mutant.len());
            return keep(target, &mutant);
        }
        most = most.max(more);
        executions += 1;
        bytes += mutant.len() as u64;
        if sound {
            read += 1;
            let length = mutant.len();
            if pool.len() < KEPT {
                pool.push(mutant);
            } else if length < 4 * pool[0].len() {
                let at = 1 + random.below(KEPT - 1);
                pool[at] = mutant;
            }
        }
    }
    let (refused, kib, seconds) = (executions - read, most >> 10, start.elapsed().as_secs());
    println!("| {} | {executions} | {bytes} | {read} | {refused} | {kib} | {seconds} |", target.name);
    0
}

fn keep(target: &Target, mutant: &[u8]) -> usize {
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/artifacts");
    let path = format!("{place}/{}-{:016x}", target.name, signstep::kernel::hash(mutant));
    std::fs::create_dir_all(place).and_then(|()| std::fs::write(&path, mutant)).expect("a place to keep it");
    eprintln!("{}: found, and kept in {path}", target.name);
    1
}
