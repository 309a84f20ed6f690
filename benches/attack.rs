//! Whole attacks: sample-steps (forward, backward, sign step of one sample) for each second of process CPU time and of wall
//! time, device memory for each sample, and the time to the first result.
//!
//!     cargo bench --bench attack [-- MODEL.safetensors …]
//!
//! Without arguments: the shipped networks.

#[path = "../tests/common/mod.rs"]
mod common;

use common::Rng;
use signstep::attack::{Engine, Job, Sample};
use signstep::{Network, weights};
use std::time::Instant;

const STEPS: u32 = 4;
const ROUNDS: usize = 5;

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() {
    let mut files: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if files.is_empty() {
        files = ["digits-cnn", "resnet20-cifar10"].map(|n| format!("weights/{n}.safetensors")).to_vec();
    }
    let s = common::gpu().summary();
    println!("{} ({}), {STEPS} steps, {ROUNDS} rounds, medians\n", s.name, s.driver);
    println!(
        "{:<14} {:>6} {:>14} {:>14} {:>14} {:>12} {:>12}",
        "network", "batch", "steps/CPU s", "steps/wall s", "GFLOP/CPU s", "bytes/sample", "first, ms"
    );
    for file in files {
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        let model = weights::load(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        for batch in [1, 8, 64] {
            let images = Rng::new(1).images(batch * model.input.len());
            let (eps, step_size) = (8.0 / 255.0, 1.0 / 255.0);
            let sample = Sample { class: 1, eps, step_size, direction: -1.0, ..Sample::default() };
            let samples = vec![sample; batch];
            let job = Job { x0: &images, samples: &samples, steps: STEPS, bounds: (0.0, 1.0), seed: 0 };
            let start = Instant::now();
            let net = Network::new(common::gpu(), model.clone()).expect("a network");
            let run = || drop(net.iterate(&job, &mut |_| true).expect("runs"));
            run();
            let first = start.elapsed().as_secs_f64() * 1e3;
            let (mut cpu, mut wall) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let (c, w) = (cpu_time::ProcessTime::now(), Instant::now());
                run();
                cpu.push(c.elapsed().as_secs_f64());
                wall.push(w.elapsed().as_secs_f64());
            }
            let done = batch as f64 * f64::from(STEPS);
            let flops = (net.plan().flops_forward() + net.plan().flops_backward()) as f64;
            println!(
                "{:<14} {batch:>6} {:>14.1} {:>14.1} {:>14.2} {:>12} {first:>12.0}",
                model.arch,
                done / median(cpu.clone()),
                done / median(wall),
                done * flops / median(cpu) / 1e9,
                net.plan().bytes_per_sample(),
            );
        }
    }
}
