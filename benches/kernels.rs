//! Convolutions forward and backward, fast beside naive: GFLOP for each second of process CPU time (the figure that holds on
//! a software adapter), and for each second of wall time.
//!
//!     cargo bench --bench kernels [-- FILTER]
//!
//! Each row is a chain of equal convolutions, so that loading, pooling and the loss weigh little; images are random. The
//! rounds of all rows are interleaved, and medians are printed.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Rng, conv, linear, network, random_model};
use signstep::attack::Engine;
use signstep::model::{Dims, Layer};
use signstep::{Network, Storage, Variant};
use std::time::{Duration, Instant};

const BATCH: usize = 16;
const ROUNDS: usize = 5;

struct Row {
    name: String,
    net: Network,
    images: Vec<f32>,
    /// CPU and wall time: forward, and forward with backward.
    times: [Vec<(Duration, Duration)>; 2],
}

fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (cpu, wall) = (cpu_time::ProcessTime::now(), Instant::now());
    work();
    (cpu.elapsed(), wall.elapsed())
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() {
    let filter = std::env::args().nth(1).filter(|a| !a.starts_with("--")).unwrap_or_default();
    // Channels, side, stride, length of the chain: the shapes of ResNet-20, and one of ResNet-18's.
    let shapes = [(16, 32, 1, 6), (32, 16, 1, 6), (64, 8, 1, 6), (16, 32, 2, 1), (32, 16, 2, 1), (64, 32, 1, 2)];
    let storage = common::gpu().storage();
    let other = if storage == Storage::Texture { Storage::Buffer } else { Storage::Texture };
    let mut rng = Rng::new(1);
    let mut rows = Vec::new();
    for (c, side, stride, chain) in shapes {
        let outputs = c * stride;
        let mut layers: Vec<Layer> = Vec::new();
        for i in 0..chain {
            layers.extend([conv(&format!("c{i}"), c, outputs, 3, stride, 1), Layer::Relu]);
        }
        layers.extend([Layer::GlobalAvgPool, linear("z", outputs, 2)]);
        let model = random_model(&mut rng, Dims::new(c, side, side), layers);
        for (storage, variant) in [(storage, Variant::Fast), (other, Variant::Fast), (storage, Variant::Naive)] {
            let name = format!("3×3 {c}→{outputs} /{stride} {side}×{side} {variant:?} {storage:?}").to_lowercase();
            if !name.contains(&filter) {
                continue;
            }
            let images = rng.images(BATCH * model.input.len());
            rows.push(Row { name, net: network(&model, storage, variant), images, times: [Vec::new(), Vec::new()] });
        }
    }
    let classes = [0_u32; BATCH];
    for round in 0..=ROUNDS {
        for row in &mut rows {
            let forward = timed(|| drop(row.net.logits(&row.images).expect("runs")));
            let both = timed(|| drop(row.net.input_gradient(&row.images, &classes).expect("runs")));
            // The first round compiles.
            if round > 0 {
                row.times[0].push(forward);
                row.times[1].push(both);
            }
        }
    }
    let s = common::gpu().summary();
    println!("{} ({}), batch {BATCH}, {ROUNDS} rounds\n", s.name, s.driver);
    println!("{:<44} {:>22} {:>22}", "", "forward", "forward + backward");
    println!("{:<44} {:>11} {:>10} {:>11} {:>10}", "GFLOP for each second of", "CPU time", "wall", "CPU time", "wall");
    for row in rows {
        let (f, b) = (row.net.plan().flops_forward() as f64, row.net.plan().flops_backward() as f64);
        let rate = |flops: f64, times: &[(Duration, Duration)], wall: bool| {
            let seconds = times.iter().map(|(c, w)| if wall { w } else { c }.as_secs_f64()).collect();
            flops * BATCH as f64 / median(seconds) / 1e9
        };
        let [forward, both] = &row.times;
        println!(
            "{:<44} {:>11.2} {:>10.2} {:>11.2} {:>10.2}",
            row.name,
            rate(f, forward, false),
            rate(f, forward, true),
            rate(f + b, both, false),
            rate(f + b, both, true)
        );
    }
}
