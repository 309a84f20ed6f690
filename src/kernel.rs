//! Kernels and [`Dispatch`], the noun that plans are lists of.
//!
//! | file | what it is |
//! |---|---|
//! | `kernel/files.rs` | the files in `shaders/` |
//! | `kernel/text.rs` | the directives in them, and the text that is made for one shape |
//! | `kernel/expression.rs` | arithmetic in directives |
//! | `kernel/binding.rs` | what is declared for a binding |
//! | `kernel/rounds.rs` | how long loops are |
//! | `kernel/compile.rs` | pipelines, made on several threads |
//! | `kernel/record.rs` | a dispatch bound to memory, and recorded |

mod binding;
mod compile;
mod expression;
mod files;
mod record;
mod rounds;
mod text;

pub use binding::Access;
pub use files::fingerprint;
pub use text::Source;

pub(crate) use compile::compile;
pub(crate) use record::{Bound, Ready, Recorder, submit};
pub(crate) use rounds::{MAX_BATCH, MAX_ROUNDS};

use crate::error::Result;
use crate::gpu::{Gpu, Limits, Storage};
use crate::tensor::{Allocated, Lent, Resource};
use std::ops::Range;

/// No kernel has more bindings than this.
const BINDINGS: u32 = 12;

/// One kernel for one shape: entry point, constants, and where activations lie. Equal kernels share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// `<op>_<pass>[_<variant>]`
    pub entry: &'static str,
    /// Become `const NAME: u32 = …;`. Negative numbers are two's complement; text that uses one takes `i32(NAME)`.
    pub consts: Vec<(&'static str, u32)>,
    /// Where activations lie.
    pub storage: Storage,
    /// Bindings whose texels are four f16; the kernel's own text sees f32 all the same.
    pub halves: Vec<&'static str>,
    /// Whether texels are stored two words at a time, which takes a device with u64.
    pub wide: bool,
}

/// Extent of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// x and y workgroups for each sample; z is the sample.
    PerSample(u32, u32),
    /// `items` pieces of work for each group of `samples`, one after the other along x, `size` of them to a workgroup;
    /// `y` workgroups. A piece is an invocation, four pixels of a row (`workgroup.wgsl`) or a matrix of pixels
    /// (`coop.wgsl`).
    Flat {
        /// Pieces for a group.
        items: u32,
        /// Samples in a group.
        samples: u32,
        /// Pieces of a workgroup.
        size: u32,
        /// Workgroups along y.
        y: u32,
    },
    /// `part` samples at a time: what is handed on from one dispatch to the next is of a part, and lies in memory that
    /// the next part gets, so that caches hold it. The length of `health` tells a kernel where its part ends. The items
    /// of all samples of a part lie side by side along x, `each` of them for an invocation.
    Parts {
        /// Samples in a part.
        part: u32,
        /// Items of a sample.
        items: u32,
        /// Items of an invocation.
        each: u32,
        /// Invocations in a workgroup.
        size: u32,
        /// Workgroups along y.
        y: u32,
    },
    /// So many workgroups, whatever the batch.
    Once(u32),
}

impl Grid {
    /// Parts that a batch of `n` is done in, and the samples of each.
    pub fn parts(self, n: u32) -> impl Iterator<Item = Range<u32>> {
        let size = if let Grid::Parts { part, .. } = self { part } else { n.max(1) };
        (0..n.div_ceil(size)).map(move |i| i * size..n.min((i + 1) * size))
    }

    /// Workgroups for a batch of `n`, or for a part of so many samples.
    pub fn workgroups(self, n: u32) -> [u32; 3] {
        match self {
            Grid::PerSample(x, y) => [x, y, n],
            Grid::Flat { items, samples, size, y } => [(n.div_ceil(samples) * items).div_ceil(size), y, 1],
            Grid::Parts { items, each, size, y, .. } => [(n * items).div_ceil(each * size), y, 1],
            Grid::Once(x) => [x, 1, 1],
        }
    }

    /// The largest batch that `limit` workgroups in a dimension allow.
    pub fn most(self, limit: u64) -> u64 {
        match self {
            Grid::PerSample(..) => limit,
            Grid::Flat { items, samples, size, .. } => limit * u64::from(size) / u64::from(items) * u64::from(samples),
            Grid::Parts { part, items, each, size, .. } => {
                let most = limit * u64::from(each * size) / u64::from(items);
                if most < u64::from(part) { most } else { u64::MAX }
            }
            Grid::Once(_) => u64::MAX,
        }
    }
}

/// Pipeline, bindings and grid of one piece of work, as data: what a plan is a list of.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// What runs.
    pub kernel: Kernel,
    /// Which layer it is for.
    pub layer: String,
    /// Names in the shader, and resources of the plan.
    pub bindings: Vec<(&'static str, usize)>,
    /// Workgroups for a batch.
    pub grid: Grid,
    /// Floating-point operations for one sample (a multiply-add counts two).
    pub flops: u64,
}

impl Kernel {
    /// A kernel whose texels are all of f32.
    pub fn new(entry: &'static str, consts: Vec<(&'static str, u32)>, storage: Storage) -> Self {
        Kernel { entry, consts, storage, halves: Vec::new(), wide: false }
    }

    /// Under what a device keeps its pipeline.
    fn key(&self) -> String {
        format!("{self:?}")
    }

    fn types(&self, source: &Source) -> Vec<wgpu::BindingType> {
        let is_half = |name: &String| self.halves.iter().any(|half| half == name);
        source.bindings.iter().map(|(name, access)| access.binding_type(self.storage, is_half(name))).collect()
    }

    /// What it binds more of than a device allows, if anything.
    ///
    /// # Errors
    /// As [`Kernel::source`].
    pub(crate) fn exceeds(&self, limits: &Limits) -> Result<Option<String>> {
        let usual = Limits::default();
        let is_generous = limits.storage_buffers >= usual.storage_buffers
            && limits.storage_textures >= usual.storage_textures
            && limits.bindings >= BINDINGS;
        // No kernel binds more than WebGPU guarantees, and looking takes as long as making the text.
        if is_generous {
            return Ok(None);
        }
        let types = self.types(&self.source()?);
        let count = |kind: fn(&wgpu::BindingType) -> bool| types.iter().filter(|ty| kind(ty)).count();
        let buffers = count(|ty| {
            use wgpu::BufferBindingType::Storage;
            matches!(ty, wgpu::BindingType::Buffer { ty: Storage { .. }, .. })
        });
        let textures = count(|ty| matches!(ty, wgpu::BindingType::StorageTexture { .. }));
        let all = [
            (buffers, limits.storage_buffers, "storage buffers"),
            (textures, limits.storage_textures, "storage textures"),
            (types.len(), limits.bindings, "bindings"),
        ];
        let over = all.into_iter().find(|(bound, allowed, _)| *bound > *allowed as usize);
        Ok(over.map(|(bound, allowed, what)| format!("{} has {bound} {what}, {allowed} allowed", self.entry)))
    }

    /// The value of a constant, where there is one of that name.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.consts.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// Bytes of a sample that it writes to `y`, where its constants tell.
    fn writes(&self, name: &str) -> Option<u64> {
        if name != "y" {
            return None;
        }
        let [blocks, h, w] = ["OC4", "OH", "OW"].map(|side| self.constant(side).map(u64::from));
        Some(blocks? * h? * w? * if self.halves.contains(&name) { 8 } else { 16 })
    }
}

impl std::fmt::Display for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = if let Grid::Parts { part, .. } = self.grid { format!(" {part} at a time") } else { String::new() };
        let grid = match self.grid {
            Grid::PerSample(x, y) => format!("{x}×{y}×N"),
            Grid::Once(x) => format!("{x}"),
            Grid::Flat { items: 1, samples: 1, size, y: 1 } => format!("⌈N/{size}⌉"),
            Grid::Flat { items, samples: 1, size, y } => format!("⌈{items}·N/{size}⌉×{y}"),
            Grid::Flat { items, samples, size, y } => format!("⌈{items}·⌈N/{samples}⌉/{size}⌉×{y}"),
            Grid::Parts { items, each, size, y, .. } => format!("⌈{items}·N/{}⌉×{y}", each * size),
        };
        write!(f, "{:<32} {:<18} {grid:<10}{parts}", self.kernel.entry, self.layer)
    }
}

/// Runs one dispatch on its own for a batch of `n`, `data` being written to buffers first, and reads one back: for
/// tests and benches of single kernels. Resources that `data` does not name are zero. Activations cannot be written or
/// read here where they lie in textures.
///
/// # Errors
/// Those of the device.
pub fn run_alone(
    gpu: &Gpu,
    dispatch: &Dispatch,
    resources: &[Resource],
    n: u32,
    data: &[(usize, Vec<u8>)],
    read: usize,
) -> Result<Vec<u8>> {
    let storage = dispatch.kernel.storage;
    let memory = gpu.scope("memory for one kernel", || {
        resources.iter().map(|r| Allocated::new(gpu, r, u64::from(n), storage)).collect::<Result<Vec<_>>>()
    })?;
    let lent = |id: usize| Lent::new(&resources[id], n.into(), &memory[id], None);
    gpu.scope(dispatch.kernel.entry, || {
        for (id, bytes) in data {
            gpu.queue().write_buffer(memory[*id].buffer(), 0, bytes);
        }
        let bound = dispatch.bind(gpu, n, lent)?;
        gpu.wait(submit(gpu, [&bound])?)
    })?;
    Ok(gpu.read(&[(memory[read].buffer(), lent(read).bytes)])?.remove(0))
}

/// FNV-1a: for names of files, not for secrets.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
