//! What a device can do at most, measured: arithmetic, copies, and what dispatches cost by themselves. Kernels are told
//! as shares of these, for data sheets are about other machines.

use crate::error::Result;
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Dispatch, Grid, Kernel};
use crate::tensor::{Kind, Resource};
use crate::trial::{Clock, Setup, Trial, texel_dispatch};

/// Rounds of the loop in the probe of arithmetic, and how far its text is unrolled.
const ROUNDS: u32 = 24;
const UNROLL: u32 = 24;

/// Texels of a sample in the probe of arithmetic, one for each invocation, and in that of copies.
const FMA_LENGTH: u32 = 1 << 14;
const COPY_LENGTH: u32 = 1 << 16;

/// Workgroups of a sample in the probe of empty kernels.
const EMPTY_GROUPS: u32 = 256;

/// One kernel of `shaders/probe.wgsl`, and what a run of it amounts to.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `fma`, `copy` (or `copy-buffer`, `copy-texture`), `empty` or `dispatch`.
    pub name: &'static str,
    /// What a figure of it is in.
    pub unit: &'static str,
    /// Whether larger figures are faster.
    pub rate: bool,
    /// How much of the unit's work one run does.
    pub amount: f64,
    /// What runs.
    pub dispatch: Dispatch,
    /// What it binds.
    pub resources: Vec<Resource>,
    /// The batch it runs on.
    pub samples: u32,
}

impl Probe {
    /// The figure of a run that took `seconds`, in the probe's unit.
    pub fn figure(&self, seconds: f64) -> f64 {
        if self.rate { self.amount / seconds } else { seconds / self.amount }
    }

    /// A trial of it. What is read lies there several times, up to `working_set` bytes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn trial(&self, gpu: &Gpu, working_set: u64, memory: u64) -> Result<Trial> {
        let setup = Setup { samples: self.samples, working_set, memory };
        Trial::new(gpu, std::slice::from_ref(&self.dispatch), &self.resources, &setup)
    }

    /// How long one run takes, in seconds, measured once.
    ///
    /// # Errors
    /// Those of the device.
    pub fn seconds(&self, gpu: &Gpu, clock: &Clock<'_>) -> Result<f64> {
        let trial = self.trial(gpu, 0, 0)?;
        Ok(trial.time(clock, trial.runs(clock)?)?.time)
    }
}

/// The probes, for activations that lie in `storage`. A software adapter gets less to do.
pub fn all(storage: Storage, software: bool) -> Vec<Probe> {
    vec![fma(storage, if software { 4 } else { 64 }), copy(storage, 16), empty(storage, 16), dispatch(storage)]
}

fn texels(label: &str, per_sample: u32) -> Resource {
    Resource { label: label.into(), kind: Kind::Activation, per_sample: u64::from(per_sample) }
}

fn probe(
    entry: &'static str,
    consts: &[(&'static str, u32)],
    storage: Storage,
    bindings: &[&'static str],
    groups: u32,
) -> Dispatch {
    Dispatch {
        kernel: Kernel::new(entry, [&[("WG", 64)], consts].concat(), storage),
        layer: "probe".into(),
        bindings: bindings.iter().copied().zip(0..).collect(),
        grid: Grid::PerSample(groups, 1),
        flops: 0,
    }
}

fn fma(storage: Storage, samples: u32) -> Probe {
    let consts = [("LEN", FMA_LENGTH), ("ROUNDS", ROUNDS), ("UNROLL", UNROLL)];
    // Four chains of four numbers, two operations each.
    let flops = f64::from(samples) * f64::from(FMA_LENGTH) * f64::from(ROUNDS * UNROLL * 32);
    Probe {
        name: "fma",
        unit: "GFLOP/s",
        rate: true,
        amount: flops / 1e9,
        dispatch: probe("probe_fma", &consts, storage, &["y"], FMA_LENGTH / 64),
        resources: vec![texels("probe", FMA_LENGTH)],
        samples,
    }
}

/// The probe of copies, by a name that says where the texels lie.
pub fn copy_in(storage: Storage) -> Probe {
    let name = match storage {
        Storage::Buffer => "copy-buffer",
        Storage::Texture => "copy-texture",
    };
    Probe { name, ..copy(storage, 16) }
}

fn copy(storage: Storage, samples: u32) -> Probe {
    let consts = [("LEN", COPY_LENGTH)];
    Probe {
        name: "copy",
        unit: "GB/s",
        rate: true,
        // Read and written.
        amount: f64::from(samples) * f64::from(COPY_LENGTH) * 32.0 / 1e9,
        dispatch: probe("probe_copy", &consts, storage, &["x", "y"], COPY_LENGTH / 4 / 64),
        resources: vec![texels("from", COPY_LENGTH), texels("to", COPY_LENGTH)],
        samples,
    }
}

fn empty(storage: Storage, samples: u32) -> Probe {
    Probe {
        name: "empty",
        unit: "ns/workgroup",
        rate: false,
        amount: f64::from(EMPTY_GROUPS * samples) / 1e9,
        dispatch: probe("probe_empty", &[], storage, &[], EMPTY_GROUPS),
        resources: Vec::new(),
        samples,
    }
}

fn dispatch(storage: Storage) -> Probe {
    Probe {
        name: "dispatch",
        unit: "us/dispatch",
        rate: false,
        amount: 1e-6,
        dispatch: probe("probe_empty", &[], storage, &[], 1),
        resources: Vec::new(),
        samples: 1,
    }
}

/// Every kernel of `shaders/probe.wgsl`, for tests of shader text.
pub fn kernels(storage: Storage) -> Vec<Kernel> {
    let one = texels("texel", 1);
    let helpers = [texel_dispatch("probe_fill", "y", &one, storage), texel_dispatch("probe_read", "x", &one, storage)];
    all(storage, true).into_iter().map(|p| p.dispatch).chain(helpers).map(|d| d.kernel).collect()
}
