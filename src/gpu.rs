//! The device: which adapter, its limits, submission, reading back, and turning what the GPU library reports into errors.

pub mod fault;
mod pace;
mod turns;
mod witness;

use crate::error::{Error, Result};
use fault::{Fault, Faults};
use pace::Pace;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
pub(crate) use turns::Held;
use witness::Witness;

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// The one that `WGPU_ADAPTER_NAME` names, else discrete before integrated before virtual before software.
    #[default]
    Auto,
    /// The first whose name contains this text, in any case.
    Name(String),
    /// Its place in [`Gpu::list`].
    Index(usize),
}

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// Place in [`Gpu::list`].
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

/// Limits that a plan obeys. A plain value: plans can be made for a device that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest storage buffer binding, in bytes.
    pub storage_binding: u64,
    /// Largest uniform buffer binding, in bytes.
    pub uniform_binding: u64,
    /// Largest buffer, in bytes.
    pub buffer: u64,
    /// Largest side of a 2D texture, in texels.
    pub texture_side: u64,
    /// Workgroups in one dimension of a dispatch.
    pub workgroups: u64,
    /// Invocations in a workgroup along x.
    pub workgroup_size: u32,
    /// Memory that a workgroup shares, in bytes.
    pub workgroup_storage: u32,
    /// Storage buffers that a kernel binds.
    pub storage_buffers: u32,
    /// Storage textures that it binds.
    pub storage_textures: u32,
    /// Bindings of all kinds that it has.
    pub bindings: u32,
}

impl Default for Limits {
    /// What WebGPU guarantees everywhere.
    fn default() -> Self {
        Limits {
            storage_binding: 128 << 20,
            uniform_binding: 64 << 10,
            buffer: 256 << 20,
            texture_side: 8192,
            workgroups: 65_535,
            workgroup_size: 256,
            workgroup_storage: 16 << 10,
            storage_buffers: 8,
            storage_textures: 4,
            bindings: 1000,
        }
    }
}

impl Limits {
    fn of(l: &wgpu::Limits) -> Self {
        Limits {
            storage_binding: l.max_storage_buffer_binding_size,
            uniform_binding: l.max_uniform_buffer_binding_size,
            buffer: l.max_buffer_size,
            texture_side: u64::from(l.max_texture_dimension_2d),
            workgroups: u64::from(l.max_compute_workgroups_per_dimension),
            workgroup_size: l.max_compute_workgroup_size_x.min(l.max_compute_invocations_per_workgroup),
            workgroup_storage: l.max_compute_workgroup_storage_size,
            storage_buffers: l.max_storage_buffers_per_shader_stage,
            storage_textures: l.max_storage_textures_per_shader_stage,
            bindings: l.max_bindings_per_bind_group,
        }
    }
}

/// Texels in a row of a texture that holds an activation; a power of two, as the generated accessors assume.
pub(crate) const TEXTURE_WIDTH: u64 = 2048;

/// Where activations lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// A storage buffer of `vec4<f32>`.
    Buffer,
    /// A 2D texture of rgba32float, written by way of a buffer: up to a third faster on software adapters (`benches/NOTES.md`).
    Texture,
}

/// What a device multiplies at a time, by the invocations of a subgroup together: side × side numbers of f16 by as many, added up in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopMatrix {
    /// 8 or 16.
    pub side: u32,
    /// Invocations in a subgroup; all subgroups of the device have so many.
    pub lanes: u32,
}

impl CoopMatrix {
    /// The largest that an opened device has, or why there is none.
    fn of(adapter: &wgpu::Adapter, device: &wgpu::Device) -> std::result::Result<Self, &'static str> {
        let (info, all) = (adapter.get_info(), adapter.cooperative_matrix_properties());
        // On Metal wgpu writes them in a language that cannot say them.
        if info.backend != wgpu::Backend::Vulkan || all.is_empty() {
            return Err("the device multiplies no matrices");
        }
        if !device.features().contains(COOPERATIVE | wgpu::Features::SUBGROUP) {
            return Err("the device was opened without cooperative matrices (Gpu::with_cooperative_matrix)");
        }
        if info.subgroup_min_size != info.subgroup_max_size {
            return Err("the device has subgroups of several sizes, and does not say which a kernel gets");
        }
        let is_there = |side: u32| {
            let (f16, f32) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
            all.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (f16, f32))
        };
        let side = [16, 8].into_iter().find(|side| is_there(*side));
        let side = side.ok_or("the device multiplies matrices, but none of f16, square, that are added up in f32")?;
        Ok(CoopMatrix { side, lanes: info.subgroup_max_size })
    }
}

/// What units that multiply matrices take: they, and f16 to feed them with.
const COOPERATIVE: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// What is asked for wherever it is there.
const WANTED: wgpu::Features =
    wgpu::Features::SUBGROUP.union(wgpu::Features::TIMESTAMP_QUERY).union(wgpu::Features::SHADER_INT64);

/// An opened device. Cheap to clone; `Send` and `Sync`.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    summary: AdapterSummary,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: Limits,
    storage: Storage,
    /// Smallest and largest subgroup; (0, 0) where the device has none.
    subgroup_sizes: (u32, u32),
    converts_f16: bool,
    /// Units that multiply matrices, or why they are not there.
    coop: std::result::Result<CoopMatrix, &'static str>,
    /// What was wrong with them when they were tried, if anything.
    coop_tried: OnceLock<Option<String>>,
    /// Smallest subgroup whose lanes were found sound; 0 for none.
    subgroup: OnceLock<u32>,
    /// What the adapter answered when it was asked about its habits.
    answers: OnceLock<Vec<u32>>,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    /// Of the driver, where it is asked for and has one.
    cache: Option<wgpu::PipelineCache>,
    /// Why the device went away, if it did. Written by the library's callback.
    lost: Arc<OnceLock<String>>,
    compile_time: Mutex<Duration>,
    /// What a submission may take before the device counts as lost.
    deadline: Mutex<Option<Duration>>,
    pace: Pace,
    /// Made for the first submission.
    witness: OnceLock<Witness>,
    /// Empty but in tests.
    faults: OnceLock<Faults>,
}

fn instance() -> wgpu::Instance {
    // Probing GL without a display prints; it is tried only when asked for.
    let native = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::from_env().unwrap_or(native),
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn enumerate() -> Vec<wgpu::Adapter> {
    let all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    all.into_iter()
        .filter(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS))
        .collect()
}

fn summarise(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
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
    AdapterSummary {
        index,
        name: info.name,
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
    }
}

/// Sides and types of a matrix product, as in `16x16x16 f16 to f32`.
fn told(p: &wgpu::CooperativeMatrixProperties) -> String {
    let name = |ty: &wgpu::CooperativeScalarType| format!("{ty:?}").to_lowercase();
    format!("{}x{}x{} {} to {}", p.m_size, p.n_size, p.k_size, name(&p.ab_type), name(&p.cr_type))
}

/// Ways out for someone whose machine has no adapter.
const NO_ADAPTER: &str = "no GPU adapter was found: install a Vulkan driver (Debian and Ubuntu: apt-get install \
                          mesa-vulkan-drivers libvulkan1; elsewhere the one of the GPU's vendor)";

/// An adapter, its place in the list, its device, and where it is noted that the device is lost.
type Opened = (wgpu::Adapter, usize, wgpu::Device, wgpu::Queue, Arc<OnceLock<String>>);

impl Gpu {
    /// The adapters of this machine, in the order that [`Adapter::Index`] counts. `WGPU_BACKEND` narrows the choice; GL
    /// is looked at only when it is named there.
    pub fn list() -> Vec<AdapterSummary> {
        enumerate().iter().enumerate().map(|(i, a)| summarise(i, a)).collect()
    }

    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is none, or none such.
    pub fn new(choice: &Adapter) -> Result<Self> {
        let (adapter, index, device, queue, lost) = Self::open(choice, wgpu::Features::empty(), None)?;
        Ok(Self::wrap(&adapter, index, device, queue, lost, None))
    }

    /// As [`Gpu::new`], with units that multiply matrices where the adapter has them, for [`crate::Math::Coop`]. Where it has none, it is
    /// a device as any other.
    ///
    /// # Safety
    /// The GPU library calls this experimental: there may be mistakes in it that make kernels, ours among them, do what they must not
    /// ([`wgpu::ExperimentalFeatures::enabled`]).
    ///
    /// # Errors
    /// As [`Gpu::new`].
    #[cfg(feature = "cooperative-matrix")]
    #[allow(unsafe_code, reason = "the library wants what is experimental to be asked for so")]
    pub unsafe fn with_cooperative_matrix(choice: &Adapter) -> Result<Self> {
        // SAFETY: the caller's promise.
        let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let (adapter, index, device, queue, lost) = Self::open(choice, COOPERATIVE, Some(experimental))?;
        Ok(Self::wrap(&adapter, index, device, queue, lost, None))
    }

    /// As [`Gpu::new`], with a cache of pipelines where the adapter has one (Vulkan): what an earlier process compiled and kept
    /// ([`Gpu::pipeline_cache_data`]) is not compiled again. Data of another adapter or driver are passed by. Most drivers keep a
    /// cache of their own on disk, and gain nothing.
    ///
    /// # Safety
    /// `data` must be bytes that [`Gpu::pipeline_cache_data`] gave, unchanged: drivers trust them.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    #[cfg(feature = "pipeline-cache")]
    #[allow(unsafe_code, reason = "no safe way to hand a driver what it compiled earlier")]
    pub unsafe fn with_pipeline_cache(choice: &Adapter, data: Option<&[u8]>) -> Result<Self> {
        let (adapter, index, device, queue, lost) = Self::open(choice, wgpu::Features::PIPELINE_CACHE, None)?;
        let cache = device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let descriptor = wgpu::PipelineCacheDescriptor { label: Some("signstep"), data, fallback: true };
            // SAFETY: the caller's promise; wgpu itself looks at the adapter and the driver that the data are of.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        Ok(Self::wrap(&adapter, index, device, queue, lost, cache))
    }

    /// What the driver has compiled so far, for [`Gpu::with_pipeline_cache`] of a later process. `None` without such a cache.
    #[cfg(feature = "pipeline-cache")]
    pub fn pipeline_cache_data(&self) -> Option<Vec<u8>> {
        self.0.cache.as_ref()?.get_data()
    }

    /// Opens an adapter, with features of `more` as well where it has them, experimental ones among them if they are allowed.
    fn open(
        choice: &Adapter,
        more: wgpu::Features,
        experimental: Option<wgpu::ExperimentalFeatures>,
    ) -> Result<Opened> {
        let adapters = enumerate();
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
        let index = match choice {
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
        };
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
        Ok((adapter, index, device, queue, lost))
    }

    /// Uses a device that the host program has opened already, within the limits it was opened with. Its callbacks stay the
    /// host's: that the device is lost is then noticed when a wait or a copy fails. What goes wrong in calls made here is
    /// caught in error scopes and comes out as [`Error`]; the host's own scopes and handlers see nothing of it. Waiting for
    /// the device may run callbacks of the host's own (of buffers that it maps) on the thread that waits.
    ///
    /// What WebGPU guarantees everywhere ([`wgpu::Limits::default`]) is enough for all there is. With less (six storage buffers a stage
    /// in the place of eight, workgroups of fewer than 256 invocations) some attacks are not there, and a network that cannot run says
    /// which limit it is: at four storage buffers a stage none can.
    ///
    /// On GL a device has one context for all threads, and the library panics where a thread waits for it for 6 s. Networks take
    /// turns there, whichever threads run them; of the host's own calls nothing is known. So on GL a host should leave the
    /// device alone while another thread runs a network, should submit nothing that takes seconds, and its callbacks must not
    /// wait for another thread's run.
    pub fn from_device(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::wrap(adapter, 0, device, queue, Arc::default(), None)
    }

    fn wrap(
        adapter: &wgpu::Adapter,
        index: usize,
        device: wgpu::Device,
        queue: wgpu::Queue,
        lost: Arc<OnceLock<String>>,
        cache: Option<wgpu::PipelineCache>,
    ) -> Self {
        let summary = summarise(index, adapter);
        let info = adapter.get_info();
        let has_subgroups = device.features().contains(wgpu::Features::SUBGROUP);
        // Software adapters pay for loads more than for arithmetic, and load texels faster than they load from buffers.
        let limits = Limits::of(&device.limits());
        let takes_textures = limits.texture_side >= TEXTURE_WIDTH && limits.storage_textures > 0;
        let storage = if summary.kind == "software" && takes_textures { Storage::Texture } else { Storage::Buffer };
        let coop = CoopMatrix::of(adapter, &device);
        Gpu(Arc::new(Inner {
            summary,
            device,
            queue,
            limits,
            storage,
            subgroup_sizes: if has_subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
            converts_f16: adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32),
            coop,
            coop_tried: OnceLock::new(),
            subgroup: OnceLock::new(),
            answers: OnceLock::new(),
            pipelines: Mutex::default(),
            cache,
            lost,
            compile_time: Mutex::new(Duration::ZERO),
            deadline: Mutex::new(None),
            pace: Pace::default(),
            witness: OnceLock::new(),
            faults: Faults::planned().map_or_else(OnceLock::new, OnceLock::from),
        }))
    }

    /// Which adapter this is.
    pub fn summary(&self) -> &AdapterSummary {
        &self.0.summary
    }

    /// Limits that plans for this device obey.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Whether shaders may turn f32 into f16 and back.
    pub(crate) fn converts_f16(&self) -> bool {
        self.0.converts_f16
    }

    /// Units that multiply matrices, once that `try_out` has found nothing wrong with them: it answers in words.
    pub(crate) fn coop_once(
        &self,
        try_out: impl FnOnce(CoopMatrix) -> Result<std::result::Result<(), String>>,
    ) -> Result<CoopMatrix> {
        let refuse = |why: &str| Err(Error::Usage(format!("math coop: {}: {why}", self.0.summary.name)));
        let matrix = match self.0.coop {
            Ok(matrix) => matrix,
            Err(why) => return refuse(why),
        };
        if self.0.coop_tried.get().is_none() {
            let found = try_out(matrix)?.err();
            let _ = self.0.coop_tried.set(found);
        }
        match self.0.coop_tried.get().and_then(Option::as_ref) {
            Some(wrong) => refuse(wrong),
            None => Ok(matrix),
        }
    }

    /// Where activations lie unless a plan says otherwise.
    pub fn storage(&self) -> Storage {
        self.0.storage
    }

    /// Whether shaders can use u64.
    pub(crate) fn has_u64(&self) -> bool {
        self.0.device.features().contains(wgpu::Features::SHADER_INT64)
    }

    /// Invocations in the largest subgroup; 0 where there are none.
    pub(crate) fn largest_subgroup(&self) -> u32 {
        self.0.subgroup_sizes.1
    }

    /// The smallest subgroup that kernels can rely on, found once by `check`, which is given the smallest size; 0 for none.
    pub(crate) fn subgroup_once(&self, check: impl FnOnce(u32) -> Result<u32>) -> Result<u32> {
        if let Some(known) = self.0.subgroup.get() {
            return Ok(*known);
        }
        let (least, most) = self.0.subgroup_sizes;
        // Workgroups of 64 must be whole subgroups, with all lanes at work.
        let found = if least >= 8 && most <= 64 { check(least)? } else { 0 };
        Ok(*self.0.subgroup.get_or_init(|| found))
    }

    /// The answers of the adapter, which `ask` gets once.
    pub(crate) fn answers_once(&self, ask: impl FnOnce() -> Result<Vec<u32>>) -> Result<&[u32]> {
        if let Some(known) = self.0.answers.get() {
            return Ok(known);
        }
        let answers = ask()?;
        Ok(self.0.answers.get_or_init(|| answers))
    }

    /// Time spent on making pipelines so far.
    pub fn compile_time(&self) -> Duration {
        self.0.compile_time.lock().map(|t| *t).unwrap_or_default()
    }

    /// The device, for buffers to attack from and to.
    pub fn device(&self) -> &wgpu::Device {
        self.call();
        &self.0.device
    }

    /// The device's one queue.
    pub fn queue(&self) -> &wgpu::Queue {
        self.call();
        &self.0.queue
    }

    /// Work that does not end within this time ends in [`Error::DeviceLost`]; `None`, as at first, waits for ever. It counts for
    /// each submission, and a submission is cut to about a quarter of a second where it can be cut at all: between two
    /// dispatches. On GL, where handing work over waits for it, the time is looked at when it has ended.
    ///
    /// After such an error the same context may be tried again, which works where the device was but slow; what hangs stays
    /// hung. The device is then kept until the process ends, for giving it back would wait as well.
    pub fn set_deadline(&self, deadline: Option<Duration>) {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// The time that [`Gpu::set_deadline`] gave.
    pub fn deadline(&self) -> Option<Duration> {
        *self.0.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much work a submission holds.
    pub(crate) fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// Whether handing over work waits for it.
    pub(crate) fn submits_and_waits(&self) -> bool {
        self.0.summary.backend == "gl"
    }

    /// Something of the library's that is dropped when it is this thread's turn.
    pub(crate) fn hold<T>(&self, thing: T) -> Held<T> {
        Held::new(thing, self.submits_and_waits())
    }

    /// For tests: the next submission holds so many floating-point operations, whatever was measured.
    #[doc(hidden)]
    pub fn cut_at(&self, flops: u64) {
        self.0.pace.set(flops);
    }

    /// For tests: the `call`-th call from now on (from 1) fails.
    #[doc(hidden)]
    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.0.faults.get_or_init(|| Faults::new(call, fault)).plan(call, fault);
    }

    /// For tests: calls since the last plan to fail.
    #[doc(hidden)]
    pub fn calls(&self) -> u64 {
        self.0.faults.get().map_or(0, Faults::calls)
    }

    /// A call to the library is about to be made: every one that can fail asks for the device or the queue.
    fn call(&self) {
        if let Some(faults) = self.0.faults.get() {
            faults.strike(&self.0.device, true);
        }
    }

    fn fails(&self, fault: Fault) -> bool {
        self.0.faults.get().is_some_and(|faults| faults.take(fault))
    }

    /// The pipeline known under `key`, made at its first use: `make` gives the entry point, its WGSL and its bindings in
    /// order. Every pipeline of a device is made once.
    pub(crate) fn pipeline(
        &self,
        key: String,
        make: impl FnOnce() -> Result<(&'static str, String, Vec<wgpu::BindingType>)>,
    ) -> Result<Arc<Pipeline>> {
        let known = || self.0.pipelines.lock().map_err(|_| Error::Internal("an earlier run panicked".into()));
        if let Some(pipeline) = known()?.get(&key) {
            return Ok(pipeline.clone());
        }
        let start = Instant::now();
        let (entry, text, bindings) = make()?;
        let made =
            Arc::new(self.scope(entry, || Ok(Pipeline::new(self, self.0.cache.as_ref(), entry, text, &bindings)))?);
        if let Ok(mut time) = self.0.compile_time.lock() {
            *time += start.elapsed();
        }
        // Where another thread was faster: dropped when the lock is free again.
        let _other = known()?.insert(key, made.clone());
        Ok(made)
    }

    /// Lets go of all pipelines that no network holds: a device keeps what it has made for the next network of the same shapes,
    /// about a megabyte for each whose shapes are new. Networks that are there hold their own and run on; what they or others need
    /// from now on is made again.
    pub fn forget_pipelines(&self) {
        let mut known = self.0.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = std::mem::take(&mut *known);
        // Dropped when the lock is free again.
        drop(known);
        drop(forgotten);
    }

    /// Runs calls to the GPU library, in turn where there are turns, and gives whatever it complains of as an error. Scopes
    /// belong to a thread: `calls` must not hand work to another one, nor wait for it.
    pub(crate) fn scope<T>(&self, what: &str, calls: impl FnOnce() -> Result<T>) -> Result<T> {
        let _turn = turns::take(self.submits_and_waits());
        self.alive()?;
        let scope = |filter| self.0.device.push_error_scope(filter);
        let memory = scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = scope(wgpu::ErrorFilter::Internal);
        let validation = scope(wgpu::ErrorFilter::Validation);
        let made = calls();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if memory.is_some() || validation.is_some() || internal.is_some() {
            // What is made on a lost device is invalid, and that it is lost is told when all that it had to do has ended.
            let _ = self.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(FAREWELL) });
            self.alive()?;
            // A host's device tells its host alone.
            if let Some(why) = self.refuses_everything() {
                return Err(Error::DeviceLost(why));
            }
            // A submission that was refused has not handed it on.
            if let Some(witness) = self.0.witness.get() {
                witness.renew(&self.0.queue);
            }
        }
        self.alive()?;
        let short = memory.map(|e| e.to_string()).or_else(|| self.fails(Fault::Memory).then(|| "a test".into()));
        if let Some(limit) = short {
            return Err(Error::OutOfMemory { what: what.into(), bytes: 0, limit });
        }
        if let Some(e) = validation.or(internal) {
            return Err(Error::Internal(format!("{what}: {e}")));
        }
        made
    }

    /// What a device says to four bytes for a buffer, which every device takes, where it does not: it is gone.
    fn refuses_everything(&self) -> Option<String> {
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("is anybody there"),
            size: 4,
            usage: wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.0.queue.write_buffer(&buffer, 0, &[0; 4]);
        pollster::block_on(scope.pop()).map(|e| e.to_string())
    }

    /// Looks at the device, whose library panics where a device is lost while it is waited for. `None` for that.
    fn poll(&self, how: wgpu::PollType) -> Option<std::result::Result<(), wgpu::PollError>> {
        let is_gl = self.submits_and_waits();
        let poll = |how| {
            let _turn = turns::take(is_gl);
            let poll = || self.0.device.poll(how).map(drop);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).ok()
        };
        if let Some(faults) = self.0.faults.get() {
            let _turn = turns::take(is_gl);
            faults.strike(&self.0.device, false);
        }
        let (index, timeout) = match how {
            wgpu::PollType::Wait { submission_index, timeout } if is_gl => (submission_index, timeout),
            other => return poll(other),
        };
        // In slices, so that others have their turns in between; and GL itself waits for no longer than 2.1 s.
        let start = Instant::now();
        loop {
            let left = timeout.map_or(SLICE, |most| most.saturating_sub(start.elapsed()).min(SLICE));
            let ended = poll(wgpu::PollType::Wait { submission_index: index.clone(), timeout: Some(left) });
            let late = matches!(ended, Some(Err(wgpu::PollError::Timeout)));
            if !late || self.alive().is_err() || timeout.is_some_and(|most| start.elapsed() >= most) {
                return ended;
            }
        }
    }

    fn alive(&self) -> Result<()> {
        self.0.lost.get().map_or(Ok(()), |why| Err(Error::DeviceLost(why.clone())))
    }

    /// Submits what was recorded; the index is for [`Gpu::wait`].
    pub(crate) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        self.submit_with(encoder, None)
    }

    /// The same; where results are read, `staging` gets a word at an offset that says whether all work up to here was done.
    fn submit_with(
        &self,
        mut encoder: wgpu::CommandEncoder,
        staging: Option<(&wgpu::Buffer, u64)>,
    ) -> Result<wgpu::SubmissionIndex> {
        let start = Instant::now();
        let queue = self.queue();
        let witness = self.0.witness.get_or_init(|| Witness::new(&self.0.device, self.submits_and_waits()));
        let mut turn = witness.turn();
        witness.hand_on(&mut turn, &mut encoder, staging);
        if self.fails(Fault::Dropped) {
            encoder = self.0.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        }
        let index = queue.submit([encoder.finish()]);
        drop(turn);
        // Where this waits, the deadline is looked at here.
        match self.deadline() {
            Some(deadline) if self.submits_and_waits() && start.elapsed() > deadline => Err(late(deadline)),
            _ => Ok(index),
        }
    }

    /// Waits until a submission has ended.
    pub(crate) fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let deadline = self.deadline();
        let ended = self.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: deadline });
        self.alive()?;
        match ended {
            Some(Err(wgpu::PollError::Timeout)) => {
                // Whoever drops a device waits for it, and what hangs would be waited for for ever.
                std::mem::forget(self.clone());
                Err(late(deadline.unwrap_or_default()))
            }
            _ if self.fails(Fault::Timeout) => Err(late(deadline.unwrap_or_default())),
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(Error::DeviceLost(e.to_string())),
            None => Err(Error::DeviceLost("while its work was waited for".into())),
        }
    }

    /// Reads the first bytes of several buffers, in one submission.
    pub(crate) fn read(&self, parts: &[(&wgpu::Buffer, u64)]) -> Result<Vec<Vec<u8>>> {
        self.scope("reading back", || {
            let results = parts.iter().map(|(_, bytes)| bytes.next_multiple_of(8)).sum::<u64>();
            let total = results + witness::BYTES;
            let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size: total,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            });
            let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            for (buffer, bytes) in parts {
                encoder.copy_buffer_to_buffer(buffer, 0, &staging, at, *bytes);
                at += bytes.next_multiple_of(8);
            }
            let index = self.submit_with(encoder, Some((&staging, results)))?;
            self.call();
            let (send, receive) = std::sync::mpsc::channel();
            staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
                let _ = send.send(mapped);
            });
            self.wait(index)?;
            match receive.recv() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(Error::DeviceLost(format!("reading back: {e}"))),
                Err(_) => return Err(Error::DeviceLost("reading back: no answer".into())),
            }
            self.call();
            let view = staging.get_mapped_range(..).map_err(|e| Error::Internal(format!("reading back: {e}")))?;
            if !witness::is_whole(&view[results as usize..]) {
                return Err(Error::DeviceLost(
                    "the system ended a submission early, and said nothing: what was read would be stale".into(),
                ));
            }
            let mut out = Vec::with_capacity(parts.len());
            let mut at = 0;
            for (_, bytes) in parts {
                out.push(view[at as usize..(at + bytes) as usize].to_vec());
                at += bytes.next_multiple_of(8);
            }
            Ok(out)
        })
    }
}

/// How long a device may take to say that it is lost, after it has refused something.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long GL's context is held at most for looking at the device.
const SLICE: Duration = Duration::from_millis(20);

fn late(deadline: Duration) -> Error {
    Error::DeviceLost(format!("a submission did not end within the deadline of {deadline:?}"))
}

/// A compute pipeline and the layout of its one bind group.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: Held<wgpu::ComputePipeline>,
    pub layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    pub(crate) fn new(
        gpu: &Gpu,
        cache: Option<&wgpu::PipelineCache>,
        entry: &str,
        text: String,
        bindings: &[wgpu::BindingType],
    ) -> Self {
        let device = gpu.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(entry),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(bindings)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: *ty,
                count: None,
            })
            .collect();
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(entry), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache,
        });
        Pipeline { pipeline: gpu.hold(pipeline), layout }
    }
}
