//! Adapters: which there are, what is known of each before it is opened, and how one is chosen and opened.

use super::limits::{Limits, MANY_REGISTERS};
use crate::error::{Error, Result};
use std::sync::{Arc, OnceLock};

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// The one that `WGPU_ADAPTER_NAME` names, else discrete before integrated before virtual before software.
    #[default]
    Auto,
    /// The first whose name contains this text, in any case.
    Name(String),
    /// Its place in [`Gpu::list`](crate::Gpu::list).
    Index(usize),
}

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// Place in [`Gpu::list`](crate::Gpu::list).
    pub index: usize,
    /// As the driver gives it.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: String,
    /// Driver and its version.
    pub driver: String,
    /// Limits that matter here, in bytes or counts.
    pub limits: Vec<(&'static str, u64)>,
    /// Features that matter here.
    pub features: Vec<&'static str>,
    /// Matrices that its units multiply: sides, what they multiply, and what they add up in.
    pub matrices: Vec<String>,
}

/// What is asked for wherever it is there.
const WANTED: wgpu::Features =
    wgpu::Features::SUBGROUP.union(wgpu::Features::TIMESTAMP_QUERY).union(wgpu::Features::SHADER_INT64);

/// Ways out for someone whose machine has no adapter.
const NO_ADAPTER: &str = "no GPU adapter was found: install a Vulkan driver (Debian and Ubuntu: apt-get install \
                          mesa-vulkan-drivers libvulkan1; elsewhere the one of the GPU's vendor)";

fn instance() -> wgpu::Instance {
    // Probing GL without a display prints; it is tried only when asked for.
    let native = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::from_env().unwrap_or(native),
        flags: wgpu::InstanceFlags::empty(),
        backend_options: wgpu::BackendOptions {
            // DXC, where dxcompiler.dll is there, or FXC, which Windows has, and which takes ten times as long.
            dx12: wgpu::Dx12BackendOptions {
                shader_compiler: wgpu::Dx12Compiler::default().with_env(),
                ..Default::default()
            },
            ..Default::default()
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

pub(super) fn enumerate() -> Vec<wgpu::Adapter> {
    let all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    all.into_iter()
        .filter(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS))
        .collect()
}

/// Registers of 32 bits that an invocation is taken to have: those of NVIDIA and AMD some 256. Intel's and Apple's have
/// 128, beyond which their compilers keep values in memory, and others no more (`benches/NOTES.md`, "Compilers of
/// hardware").
pub(super) fn registers(info: &wgpu::AdapterInfo) -> u32 {
    const NVIDIA: u32 = 0x10de;
    const AMD: u32 = 0x1002;
    // Metal gives no vendor.
    if matches!(info.vendor, NVIDIA | AMD) { MANY_REGISTERS } else { MANY_REGISTERS / 2 }
}

pub(super) fn summarise(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let limits = Limits::of(&adapter.limits());
    let features = adapter.features();
    let named = [
        (wgpu::Features::SHADER_F16, "shader-f16"),
        (wgpu::Features::SHADER_INT64, "shader-int64"),
        (wgpu::Features::SUBGROUP, "subgroup"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamp-query"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative-matrix"),
    ];
    let mut summary = AdapterSummary {
        index,
        name: info.name.clone(),
        backend: info.backend.to_str().to_string(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        }
        .into(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        limits: vec![
            ("storage_binding", limits.storage_binding),
            ("uniform_binding", limits.uniform_binding),
            ("buffer", limits.buffer),
            ("texture_side", limits.texture_side),
            ("workgroups", limits.workgroups),
            ("workgroup_size", u64::from(limits.workgroup_size)),
            ("workgroup_storage", u64::from(limits.workgroup_storage)),
            ("subgroup_min", u64::from(info.subgroup_min_size)),
            ("subgroup_max", u64::from(info.subgroup_max_size)),
        ],
        features: named.iter().filter(|(f, _)| features.contains(*f)).map(|(_, n)| *n).collect(),
        matrices: adapter.cooperative_matrix_properties().iter().map(told).collect(),
    };
    // A software adapter has what its processor has, and no tile asks for it.
    if summary.kind != "software" {
        summary.limits.push(("registers", u64::from(registers(&info))));
    }
    summary
}

/// Sides and types of a matrix product, as in `16x16x16 f16 to f32`.
fn told(p: &wgpu::CooperativeMatrixProperties) -> String {
    let name = |ty: &wgpu::CooperativeScalarType| format!("{ty:?}").to_lowercase();
    format!("{}x{}x{} {} to {}", p.m_size, p.n_size, p.k_size, name(&p.ab_type), name(&p.cr_type))
}

/// An adapter, and its device.
pub(super) struct Opened {
    pub adapter: wgpu::Adapter,
    /// Its place in the list.
    pub index: usize,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// Why the device went away, if it did.
    pub lost: Arc<OnceLock<String>>,
}

/// The adapter that is asked for among those that are there, by its place.
fn choose(choice: &Adapter, adapters: &[wgpu::Adapter]) -> Result<usize> {
    if adapters.is_empty() {
        return Err(Error::NoAdapter(NO_ADAPTER.into()));
    }
    let names = || adapters.iter().enumerate().map(|(i, a)| format!("{i} is {}", a.get_info().name));
    let unknown = |wanted: &str| {
        let list = names().collect::<Vec<_>>().join(", ");
        Error::NoAdapter(format!("no adapter {wanted}; {list}"))
    };
    let by_name = |name: &str| {
        let wanted = name.to_lowercase();
        adapters
            .iter()
            .position(|a| a.get_info().name.to_lowercase().contains(&wanted))
            .ok_or_else(|| unknown(&format!("is called {name:?}")))
    };
    Ok(match choice {
        Adapter::Index(i) if *i < adapters.len() => *i,
        Adapter::Index(i) => return Err(unknown(&format!("has the number {i}"))),
        Adapter::Name(name) => by_name(name)?,
        Adapter::Auto => match std::env::var("WGPU_ADAPTER_NAME") {
            Ok(name) if !name.is_empty() => by_name(&name)?,
            _ => {
                let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
                    wgpu::DeviceType::DiscreteGpu => 0,
                    wgpu::DeviceType::IntegratedGpu => 1,
                    wgpu::DeviceType::VirtualGpu => 2,
                    wgpu::DeviceType::Other => 3,
                    wgpu::DeviceType::Cpu => 4,
                };
                (0..adapters.len()).min_by_key(|&i| rank(&adapters[i])).expect("not empty")
            }
        },
    })
}

/// Opens an adapter, with features of `more` as well where it has them, experimental ones among them if they are
/// allowed.
pub(super) fn open(
    choice: &Adapter,
    more: wgpu::Features,
    experimental: Option<wgpu::ExperimentalFeatures>,
) -> Result<Opened> {
    let adapters = enumerate();
    let index = choose(choice, &adapters)?;
    let adapter = adapters[index].clone();
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("signstep"),
        required_limits: adapter.limits(),
        // What is there is taken; kernels that need it are offered only then.
        required_features: adapter.features() & (WANTED | more),
        experimental_features: experimental.unwrap_or_default(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
        .map_err(|e| Error::NoAdapter(format!("adapter {} does not open: {e}", adapter.get_info().name)))?;
    let lost = Arc::new(OnceLock::new());
    let note = lost.clone();
    device.set_device_lost_callback(move |reason, message| {
        let _ = note.set(format!("{reason:?} {message}").trim().to_string());
    });
    Ok(Opened { adapter, index, device, queue, lost })
}
