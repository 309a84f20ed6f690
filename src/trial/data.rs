//! Random data where kernels find it.

use crate::attack::{Sample, State};
use crate::error::Result;
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Dispatch, Grid, Kernel, submit};
use crate::tensor::{Allocated, Kind, Lent, Resource, Stages};

/// Numbers that look random, one after the other: splitmix64.
pub(crate) struct Scatter(pub u64);

impl Scatter {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [−1, 1), never zero.
    pub fn signed(&mut self) -> f32 {
        (((self.word() >> 40) | 1) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    }
}

/// Puts random data where a kernel called `name` finds it: texels and gradients in [−1, 1), pixels in [0, 1), sign bits
/// of any kind, places in a pooling window of at least 2×2. Counters and marks begin at zero, as before every run.
pub(super) fn fill(
    gpu: &Gpu,
    resource: &Resource,
    memory: &Allocated,
    name: &str,
    storage: Storage,
    samples: u32,
    seed: u32,
) -> Result<()> {
    let seed = name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let count = (resource.per_sample * u64::from(samples)) as usize;
    let mut scatter = Scatter(u64::from(seed) << 32);
    let bytes: Vec<u8> = match &resource.kind {
        // What is handed on is written first.
        Kind::Constant(_) | Kind::Texels(_) | Kind::Stage(_) | Kind::Passing(_) => return Ok(()),
        Kind::Activation | Kind::Half => {
            let dispatch = texel_dispatch("probe_fill", "y", resource, storage);
            return run_on_texels(gpu, &dispatch, resource, seed, samples, memory, None);
        }
        Kind::Words if matches!(name, "health" | "zero_gradients") => vec![0; 4 * count],
        Kind::Words => {
            let mask = if name == "argmax" { 0x0303_0303 } else { u32::MAX };
            bytemuck::cast_slice(&(0..count).map(|_| scatter.word() as u32 & mask).collect::<Vec<_>>()).to_vec()
        }
        Kind::Floats | Kind::Memory => {
            let pixels = name != "dx";
            let value = |s: &mut Scatter| if pixels { s.signed().abs() } else { s.signed() };
            bytemuck::cast_slice(&(0..count).map(|_| value(&mut scatter)).collect::<Vec<_>>()).to_vec()
        }
        Kind::Samples => {
            let sample = Sample { eps: 8.0 / 255.0, step_size: 1.0 / 255.0, direction: -1.0, ..Sample::default() };
            let one = |id| Sample { id, start: 1, levels: 8, steps: 10, stretch: 10, ..sample };
            let all: Vec<Sample> = (0..samples).map(one).collect();
            if name == "states" {
                bytemuck::cast_slice(&all.iter().map(|s| State { loss: -3.0, ..State::begin(s) }).collect::<Vec<_>>())
                    .to_vec()
            } else {
                bytemuck::cast_slice(&all).to_vec()
            }
        }
        Kind::Uniform => bytemuck::cast_slice(&[0, 1.0_f32.to_bits(), 1, 2]).to_vec(),
        Kind::Whole(values) => vec![0; 4 * *values as usize],
    };
    gpu.scope("random data", || {
        gpu.queue().write_buffer(memory.buffer(), 0, &bytes);
        Ok(())
    })
}

/// A dispatch over all texels of an activation (`shaders/probe.wgsl`).
pub(crate) fn texel_dispatch(entry: &'static str, name: &'static str, texels: &Resource, storage: Storage) -> Dispatch {
    let halves = if texels.kind == Kind::Half { vec![name] } else { Vec::new() };
    Dispatch {
        kernel: Kernel { halves, ..Kernel::new(entry, vec![("WG", 64)], storage) },
        layer: "probe".into(),
        bindings: vec![("params", 0), (name, 1), ("z", 2)],
        grid: Grid::PerSample(texels.per_sample.div_ceil(64) as u32, 1),
        flops: 0,
    }
}

pub(super) fn run_on_texels(
    gpu: &Gpu,
    dispatch: &Dispatch,
    resource: &Resource,
    seed: u32,
    samples: u32,
    texels: &Allocated,
    plain: Option<&Allocated>,
) -> Result<()> {
    let words = [resource.per_sample as u32, seed, 0, 0];
    let params =
        Resource { label: "params".into(), kind: Kind::Constant(bytemuck::cast_slice(&words).to_vec()), per_sample: 0 };
    let n = u64::from(samples);
    let as_numbers = Resource { kind: Kind::Samples, ..resource.clone() };
    gpu.scope(dispatch.kernel.entry, || {
        let memory = Allocated::new(gpu, &params, 1, dispatch.kernel.storage)?;
        let stages = Stages::of_all(plain.is_none().then_some(resource), dispatch.kernel.storage);
        let stages = stages.try_map(|stage| Allocated::new(gpu, &stage, n, dispatch.kernel.storage))?;
        let bound = dispatch.bind(gpu, samples, |id| match id {
            0 => Lent::new(&params, 1, &memory, None),
            1 => Lent::new(resource, n, texels, stages.of(&resource.kind)),
            _ => Lent::new(&as_numbers, n, plain.unwrap_or(texels), None),
        })?;
        // Whoever uses the texels comes later on the same queue.
        submit(gpu, [&bound]).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_numbers_are_never_zero_and_lie_on_both_sides() {
        let mut scatter = Scatter(1);
        let values: Vec<f32> = (0..1000).map(|_| scatter.signed()).collect();
        assert!(values.iter().all(|v| *v != 0.0 && v.abs() <= 1.0));
        assert!((400..600).contains(&values.iter().filter(|v| **v > 0.0).count()));
    }
}
