//! The device: [`Gpu`], how it is opened, and what is known of it. Every call to the GPU library that can fail asks it
//! for the device or the queue first.
//!
//! | file | what it is |
//! |---|---|
//! | `gpu/limits.rs`, `gpu/storage.rs` | what a device allows, and where activations lie on it |
//! | `gpu/matrix.rs` | units that multiply matrices |
//! | `gpu/adapter.rs` | adapters: told, chosen, opened |
//! | `gpu/turns.rs` | turns of threads, on GL |
//! | `gpu/pipeline.rs` | what a device runs, made of text |
//! | `gpu/pace.rs` | how much work a submission holds |
//! | `gpu/witness.rs` | whether work that counts as done was done |
//! | `gpu/fault.rs` | faults on demand, for tests |
//! | `gpu/work.rs` | calls to the GPU library: submitted, waited for, read back; what it reports becomes errors |

mod adapter;
pub mod fault;
mod limits;
mod matrix;
mod pace;
mod pipeline;
mod storage;
mod turns;
mod witness;
mod work;

pub use adapter::{Adapter, AdapterSummary};
pub use limits::Limits;
pub(crate) use limits::MANY_REGISTERS;
pub use matrix::CoopMatrix;
pub(crate) use pipeline::Pipeline;
pub use storage::Storage;
pub(crate) use storage::TEXTURE_WIDTH;
pub(crate) use turns::Held;

use crate::error::{Error, Result};
use adapter::{Opened, enumerate, registers, summarise};
use fault::{Fault, Faults};
use pace::Pace;
use pipeline::Compiling;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use witness::Witness;

/// An opened device. Cheap to clone; `Send` and `Sync`. It keeps what it compiled, for networks to share, as long as
/// it lives: some megabytes for each shape of a network.
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
    /// Registers of an invocation.
    registers: u32,
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
    compiling: Mutex<Compiling>,
    /// What a submission may take before the device counts as lost.
    deadline: Mutex<Option<Duration>>,
    pace: Pace,
    /// Made for the first submission.
    witness: OnceLock<Witness>,
    /// Empty but in tests.
    faults: OnceLock<Faults>,
}

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
        Ok(Self::wrap(adapter::open(choice, wgpu::Features::empty(), None)?, None))
    }

    /// As [`Gpu::new`], with units that multiply matrices where the adapter has them, for [`crate::Math::Coop`]. Where
    /// it has none, it is a device as any other.
    ///
    /// # Safety
    /// The GPU library calls this experimental: there may be mistakes in it that make kernels, ours among them, do what
    /// they must not ([`wgpu::ExperimentalFeatures::enabled`]).
    ///
    /// # Errors
    /// As [`Gpu::new`].
    #[cfg(feature = "cooperative-matrix")]
    #[allow(unsafe_code, reason = "the library wants what is experimental to be asked for so")]
    pub unsafe fn with_cooperative_matrix(choice: &Adapter) -> Result<Self> {
        // SAFETY: the caller's promise.
        let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        Ok(Self::wrap(adapter::open(choice, matrix::COOPERATIVE, Some(experimental))?, None))
    }

    /// As [`Gpu::new`], with a cache of pipelines where the adapter has one (Vulkan): what an earlier process compiled
    /// and kept ([`Gpu::pipeline_cache_data`]) is not compiled again. Data of another adapter or driver are passed by.
    /// Most drivers keep a cache of their own on disk, and gain nothing.
    ///
    /// # Safety
    /// `data` must be bytes that [`Gpu::pipeline_cache_data`] gave, unchanged: drivers trust them.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    #[cfg(feature = "pipeline-cache")]
    #[allow(unsafe_code, reason = "no safe way to hand a driver what it compiled earlier")]
    pub unsafe fn with_pipeline_cache(choice: &Adapter, data: Option<&[u8]>) -> Result<Self> {
        let opened = adapter::open(choice, wgpu::Features::PIPELINE_CACHE, None)?;
        let cache = opened.device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let descriptor = wgpu::PipelineCacheDescriptor { label: Some("signstep"), data, fallback: true };
            // SAFETY: the caller's promise; wgpu itself looks at the adapter and the driver that the data are of.
            unsafe { opened.device.create_pipeline_cache(&descriptor) }
        });
        Ok(Self::wrap(opened, cache))
    }

    /// What the driver has compiled so far, for [`Gpu::with_pipeline_cache`] of a later process. `None` without such a
    /// cache.
    #[cfg(feature = "pipeline-cache")]
    pub fn pipeline_cache_data(&self) -> Option<Vec<u8>> {
        self.0.cache.as_ref()?.get_data()
    }

    /// Uses a device that the host program has opened already, within the limits it was opened with. Its callbacks stay
    /// the host's: that the device is lost is then noticed when a wait or a copy fails. What goes wrong in calls made
    /// here is caught in error scopes and comes out as [`Error`]; the host's own scopes and handlers see nothing of it.
    /// Waiting for the device may run callbacks of the host's own (of buffers that it maps) on the thread that waits.
    ///
    /// What WebGPU guarantees everywhere ([`wgpu::Limits::default`]) is enough for all there is. With less (six storage
    /// buffers a stage in the place of eight, workgroups of fewer than 256 invocations) some attacks are not there, and
    /// a network that cannot run says which limit it is: with fewer than six storage buffers a stage none can.
    ///
    /// On GL a device has one context for all threads, and the library panics where a thread waits for it for 6 s.
    /// Networks take turns there, whichever threads run them; of the host's own calls nothing is known. So on GL a host
    /// should leave the device alone while another thread runs a network, should submit nothing that takes seconds, and
    /// its callbacks must not wait for another thread's run.
    pub fn from_device(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::wrap(Opened { adapter: adapter.clone(), index: 0, device, queue, lost: Arc::default() }, None)
    }

    fn wrap(opened: Opened, cache: Option<wgpu::PipelineCache>) -> Self {
        let Opened { adapter, index, device, queue, lost } = opened;
        let summary = summarise(index, &adapter);
        let info = adapter.get_info();
        let has_subgroups = device.features().contains(wgpu::Features::SUBGROUP);
        let limits = Limits::of(&device.limits());
        let takes_textures = limits.texture_side >= TEXTURE_WIDTH && limits.storage_textures > 0;
        // Software adapters pay for loads more than for arithmetic, and load texels faster than they load from buffers.
        let storage = if summary.kind == "software" && takes_textures { Storage::Texture } else { Storage::Buffer };
        let coop = CoopMatrix::of(&adapter, &device);
        Gpu(Arc::new(Inner {
            summary,
            device,
            queue,
            limits,
            storage,
            registers: registers(&info),
            subgroup_sizes: if has_subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
            converts_f16: adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32),
            coop,
            coop_tried: OnceLock::new(),
            subgroup: OnceLock::new(),
            answers: OnceLock::new(),
            pipelines: Mutex::default(),
            cache,
            lost,
            compiling: Mutex::default(),
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

    /// Registers that an invocation is taken to have.
    pub(crate) fn registers(&self) -> u32 {
        self.0.registers
    }

    /// Whether shaders can use u64.
    pub(crate) fn has_u64(&self) -> bool {
        self.0.device.features().contains(wgpu::Features::SHADER_INT64)
    }

    /// Invocations in the largest subgroup; 0 where there are none.
    pub(crate) fn largest_subgroup(&self) -> u32 {
        self.0.subgroup_sizes.1
    }

    /// The smallest subgroup that kernels can rely on, found once by `check`, which is given the smallest size; 0 for
    /// none.
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

    /// Time in which pipelines were made so far, on one thread or on several.
    pub fn compile_time(&self) -> Duration {
        self.0.compiling.lock().unwrap_or_else(PoisonError::into_inner).time
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

    /// Work that does not end within this time ends in [`Error::DeviceLost`]; `None`, as at first, waits for ever. It
    /// counts for each submission, and a submission is cut to about a quarter of a second where it can be cut at all:
    /// between two dispatches. On GL, where handing work over waits for it, the time is looked at when it has ended.
    ///
    /// After such an error the same context may be tried again, which works where the device was but slow; what hangs
    /// stays hung. The error comes when the work has ended after all, two seconds later at most; where it has not, the
    /// device is kept until the process ends, for giving it back would wait as well.
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

    /// The pipeline known under `key`, made at its first use: `make` gives the entry point, its WGSL and its bindings
    /// in order. Every pipeline of a device is made once.
    pub(crate) fn pipeline(
        &self,
        key: String,
        make: impl FnOnce() -> Result<(&'static str, String, Vec<wgpu::BindingType>)>,
    ) -> Result<Arc<Pipeline>> {
        let known = || self.0.pipelines.lock().map_err(|_| Error::Internal("an earlier run panicked".into()));
        if let Some(pipeline) = known()?.get(&key) {
            return Ok(pipeline.clone());
        }
        let _timed = Compiling::begin(&self.0.compiling);
        let (entry, text, bindings) = make()?;
        let made = Arc::new(self.scope(entry, || {
            Ok(Pipeline::new(self.device(), self.submits_and_waits(), self.0.cache.as_ref(), entry, text, &bindings))
        })?);
        // Where another thread was faster: dropped when the lock is free again.
        let _other = known()?.insert(key, made.clone());
        Ok(made)
    }

    /// Whether the pipeline of `key` is there already.
    pub(crate) fn has_pipeline(&self, key: &str) -> bool {
        self.0.pipelines.lock().is_ok_and(|known| known.contains_key(key))
    }

    /// Lets go of all pipelines that no network holds: a device keeps what it has made for the next network of the same
    /// shapes, about a megabyte for each whose shapes are new. Networks that are there hold their own and run on; what
    /// they or others need from now on is made again.
    pub fn forget_pipelines(&self) {
        let mut known = self.0.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = std::mem::take(&mut *known);
        // Dropped when the lock is free again.
        drop(known);
        drop(forgotten);
    }
}
