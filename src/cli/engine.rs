//! What a command runs on: a device, or the f64 reference on the CPU.

use super::flags::some_duration;
use super::tell::{complain, warn};
use crate::attack::Engine;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::Device;
use crate::{Adapter, Gpu, Math, Network, Options, Reference};
use clap::Args;
use std::time::Duration;

/// What a command runs on.
#[derive(Args, Debug)]
pub(super) struct DeviceArgs {
    /// Device: part of its name, its index in `signstep devices`, or reference (CPU, f64, slow; `tune` and `bench` have
    /// no use for it)
    #[arg(long, value_name = "NAME|INDEX|reference", help_heading = "Running")]
    pub device: Option<String>,
    /// Give up where one submission, of about a quarter of a second, takes the device longer than this (30s, 5m): exit
    /// code 6
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = some_duration, help_heading = "Running")]
    pub deadline: Duration,
}

/// What a command runs on, and how it computes there.
#[derive(Args, Debug)]
pub(super) struct PlaceArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Arithmetic: f32, where every sum has one order whatever the device; fast, whatever is fastest on this one, with
    /// other roundings; f16, activations kept in half the memory; coop, f16 on units that multiply matrices, in
    /// programs that have the feature cooperative-matrix
    #[arg(long, value_name = "f32|fast|f16|coop", default_value_t, help_heading = "Running")]
    pub math: Math,
}

/// Where to run, and in which arithmetic; opened but without a network.
pub(super) enum Place {
    Gpu(Gpu, Math),
    Reference,
}

/// A network that can run.
pub(super) enum Runner {
    Gpu(Box<Network>),
    Reference(Box<Reference>),
}

impl Place {
    /// Opens the device asked for, and gives it up where it does not answer in time.
    pub(super) fn open(args: &DeviceArgs, math: Math) -> Result<Self> {
        let adapter = match args.device.as_deref() {
            Some("reference") if math != Math::F32 => {
                return Err(Error::Usage(format!("--math {math}: the reference computes in f64")));
            }
            Some("reference") => {
                warn("running the f64 reference on the CPU: right, but slow");
                return Ok(Place::Reference);
            }
            None => Adapter::Auto,
            Some(d) => d.parse().map_or_else(|_| Adapter::Name(d.to_string()), Adapter::Index),
        };
        let gpu = open(&adapter, math).map_err(or_the_reference)?;
        gpu.set_deadline(Some(args.deadline));
        super::answers::known(&gpu)?;
        Ok(Place::Gpu(gpu, math))
    }

    /// Arithmetic of networks there.
    pub(super) fn math(&self) -> &'static str {
        match self {
            Place::Gpu(_, math) => math.name(),
            Place::Reference => "f64",
        }
    }

    pub(super) fn device(&self) -> Device {
        match self {
            Place::Gpu(gpu, _) => {
                let a = gpu.summary();
                let [name, backend, kind, driver] = [&a.name, &a.backend, &a.kind, &a.driver].map(String::clone);
                Device { name, backend, kind, driver }
            }
            Place::Reference => {
                let [name, backend, kind, driver] = ["reference", "cpu", "software", ""].map(String::from);
                Device { name, backend, kind, driver }
            }
        }
    }

    /// Puts a network there; batches and their memory are bounded.
    pub(super) fn load(&self, model: Model, batch: Option<usize>, memory: u64) -> Result<Runner> {
        Ok(match self {
            Place::Gpu(gpu, math) => {
                let tuning = super::tunings::known(gpu);
                let options = Options { math: *math, tuning, memory, batch, ..Options::default() };
                let network = Network::with_options(gpu, model, &options)?;
                if *math == Math::Fast && !network.plan().is_fast() {
                    complain(
                        "note",
                        &"--math fast: nothing faster than f32 is known for this network and device: it runs in f32",
                    );
                }
                // FXC knows no subgroups; whatever DXC compiles for has them.
                let summary = gpu.summary();
                if summary.backend == "dx12" && !summary.features.contains(&"subgroup") {
                    let what =
                        "dx12 without dxcompiler.dll: shaders take ten times as long to compile, a ResNet's minutes";
                    complain("note", &what);
                }
                Runner::Gpu(Box::new(network))
            }
            Place::Reference => Runner::Reference(Box::new(Reference::new(model)?)),
        })
    }
}

/// The way out that is not the library's to tell of.
pub(super) fn or_the_reference(e: Error) -> Error {
    match e {
        Error::NoAdapter(why) => Error::NoAdapter(format!("{why}; --device reference is slow, and needs none")),
        other => other,
    }
}

/// Opens an adapter for networks in such arithmetic.
pub(super) fn open(adapter: &Adapter, math: Math) -> Result<Gpu> {
    #[cfg(feature = "cooperative-matrix")]
    if math == Math::Coop {
        // SAFETY: whoever built the program with this feature and asks for this arithmetic wants what is experimental.
        #[allow(unsafe_code, reason = "the library's own call is unsafe")]
        return unsafe { Gpu::with_cooperative_matrix(adapter) };
    }
    if math == Math::Coop {
        let detail = "--math coop: this program was built without the feature cooperative-matrix";
        return Err(Error::Usage(detail.into()));
    }
    #[cfg(feature = "pipeline-cache")]
    return super::pipelines::open(adapter);
    #[cfg(not(feature = "pipeline-cache"))]
    Gpu::new(adapter)
}

impl Runner {
    pub(super) fn engine(&self) -> &dyn Engine {
        match self {
            Runner::Gpu(network) => network.as_ref(),
            Runner::Reference(reference) => reference.as_ref(),
        }
    }

    /// The largest batch that runs at once.
    pub(super) fn batch(&self) -> usize {
        match self {
            Runner::Gpu(network) => network.chunk(),
            Runner::Reference(_) => 1,
        }
    }

    /// Device memory that is taken, if there is a device.
    pub(super) fn gpu_bytes(&self) -> Option<u64> {
        match self {
            Runner::Gpu(network) => Some(network.gpu_bytes()),
            Runner::Reference(_) => None,
        }
    }

    /// Time that kernels have taken to compile so far: they are compiled when they are first needed.
    pub(super) fn compile_time(&self) -> Duration {
        match self {
            Runner::Gpu(network) => network.gpu().compile_time(),
            Runner::Reference(_) => Duration::ZERO,
        }
    }
}
