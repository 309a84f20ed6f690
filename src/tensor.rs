//! What lies on the device: resources as data ([`Resource`]), and as allocated memory ([`Allocated`]). No arithmetic.
//!
//! An activation is a row of texels of four channels, `[N, ⌈C/4⌉, H, W]`, addressed by one index. It lies in a storage
//! buffer or in a 2D texture [`TEXTURE_WIDTH`] texels wide, whichever the adapter reads faster; kernels see only the
//! index. Textures are only read. What kernels write lies in a buffer first, the stage, and is copied: where reading a
//! texture is cheap writing one is not (`benches/NOTES.md`).

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Held, Storage, TEXTURE_WIDTH};
use std::fmt;

/// Bytes of such a row, of f32.
pub(crate) const ROW: u64 = TEXTURE_WIDTH * 16;

/// Rows of a texture for so many texels: an odd number, and never one. Some drivers compile a kernel anew for textures
/// whose sides are powers of two; so every batch, of whatever size, runs what was compiled for the first.
fn rows(texels: u64) -> u64 {
    texels.div_ceil(TEXTURE_WIDTH).max(3) | 1
}

/// The most texels that a texture holds.
pub(crate) fn most_texels(texture_side: u64) -> u64 {
    if texture_side < TEXTURE_WIDTH { 0 } else { ((texture_side - 1) | 1) * TEXTURE_WIDTH }
}

/// What a resource holds.
#[derive(Clone, PartialEq)]
pub enum Kind {
    /// Texels of four f32.
    Activation,
    /// Texels of four f16.
    Half,
    /// u32: sign bits, pooling positions, counters, marks.
    Words,
    /// f32: images, gradients, logits, losses.
    Floats,
    /// f32 that only some rules need ([`crate::attack::Rule`]): allocated when the first of them runs.
    Memory,
    /// Blocks of sixteen bytes (`attack::Sample` is four of them).
    Samples,
    /// Eight bytes: texels on their way to textures, so many whatever the batch and the rest for each sample. One stage
    /// serves all that a plan writes, one after the other.
    Stage(u64),
    /// Texels of four f32, so many whatever the batch: what dispatches that do a part of it at a time hand on
    /// ([`crate::kernel::Grid::Parts`]).
    Passing(u64),
    /// The same bytes for every batch: weights and the like.
    Constant(Vec<u8>),
    /// Texels of four f32, the same for every batch; they lie where activations do.
    Texels(Vec<u8>),
    /// Sixteen bytes for the whole batch, set before a run.
    Uniform,
    /// So many f32 for the whole batch, and from one batch to the next.
    Whole(u64),
}

impl fmt::Debug for Kind {
    /// Of weights how many bytes there are: all of them would be megabytes wherever a plan is printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Activation => f.write_str("Activation"),
            Kind::Half => f.write_str("Half"),
            Kind::Words => f.write_str("Words"),
            Kind::Floats => f.write_str("Floats"),
            Kind::Memory => f.write_str("Memory"),
            Kind::Samples => f.write_str("Samples"),
            Kind::Stage(more) => write!(f, "Stage({more})"),
            Kind::Passing(texels) => write!(f, "Passing({texels})"),
            Kind::Constant(bytes) => write!(f, "Constant({} bytes)", bytes.len()),
            Kind::Texels(bytes) => write!(f, "Texels({} bytes)", bytes.len()),
            Kind::Uniform => f.write_str("Uniform"),
            Kind::Whole(values) => write!(f, "Whole({values})"),
        }
    }
}

impl Kind {
    /// Whether it lies in a texture where activations do.
    pub(crate) fn is_texels(&self) -> bool {
        matches!(self, Kind::Activation | Kind::Half | Kind::Passing(_) | Kind::Texels(_))
    }

    /// Bytes of a texel.
    pub(crate) fn texel_bytes(&self) -> u64 {
        if *self == Kind::Half { 8 } else { 16 }
    }
}

/// Of textures, by what a texel is made of.
pub(crate) fn texel_format(is_half: bool) -> wgpu::TextureFormat {
    if is_half { wgpu::TextureFormat::Rgba16Float } else { wgpu::TextureFormat::Rgba32Float }
}

/// One resource of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What it is called where a plan is printed.
    pub label: String,
    /// What it holds.
    pub kind: Kind,
    /// Elements for one sample (0 for what serves the whole batch).
    pub per_sample: u64,
}

impl Resource {
    /// Bytes on the device for `n` samples.
    pub fn bytes(&self, n: u64, storage: Storage) -> Option<u64> {
        let elements = self.per_sample.checked_mul(n)?;
        match (&self.kind, storage) {
            (Kind::Activation | Kind::Half, Storage::Texture) => {
                rows(elements).checked_mul(TEXTURE_WIDTH * self.kind.texel_bytes())
            }
            (Kind::Activation | Kind::Half, Storage::Buffer) => elements.checked_mul(self.kind.texel_bytes()),
            // Whole rows are copied, of whatever texels.
            (Kind::Stage(more), Storage::Texture) => {
                elements.checked_add(*more)?.checked_mul(8)?.checked_next_multiple_of(ROW)
            }
            (Kind::Stage(more), Storage::Buffer) => elements.checked_add(*more)?.checked_mul(8),
            (Kind::Passing(texels), Storage::Texture) => Some(rows(*texels) * TEXTURE_WIDTH * 16),
            (Kind::Passing(texels), Storage::Buffer) => texels.checked_mul(16),
            (Kind::Samples, _) => elements.checked_mul(16),
            (Kind::Words | Kind::Floats | Kind::Memory, _) => elements.checked_mul(4),
            (Kind::Texels(bytes), Storage::Texture) => Some(rows(bytes.len() as u64 / 16) * TEXTURE_WIDTH * 16),
            (Kind::Constant(bytes) | Kind::Texels(bytes), _) => Some(bytes.len() as u64),
            (Kind::Uniform, _) => Some(16),
            (Kind::Whole(values), _) => values.checked_mul(4),
        }
    }

    /// Bytes that a driver takes for it: those that keep textures in tiles of four by four texels round rows up, by a
    /// third where there are three.
    pub fn charged(&self, n: u64, storage: Storage) -> Option<u64> {
        let bytes = self.bytes(n, storage)?;
        match (&self.kind, storage) {
            (kind, Storage::Texture) if kind.is_texels() => {
                bytes.checked_next_multiple_of(4 * TEXTURE_WIDTH * kind.texel_bytes())
            }
            _ => Some(bytes),
        }
    }
}

/// Stages, of whatever stands for one. What is handed on within a part of a batch has a stage of its own, for what
/// leaves the parts is copied behind the last of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stages<T> {
    batch: Option<T>,
    part: Option<T>,
}

impl Stages<Resource> {
    /// For the largest activations that are `written`, where those lie in textures.
    pub fn of_all<'r>(written: impl IntoIterator<Item = &'r Resource>, storage: Storage) -> Self {
        let (mut batch, mut part) = (None, None);
        for r in written.into_iter().filter(|r| r.kind.is_texels() && storage == Storage::Texture) {
            match r.kind {
                Kind::Passing(texels) => part = part.max(Some(2 * texels)),
                _ => batch = batch.max(Some(r.per_sample.saturating_mul(r.kind.texel_bytes()) / 8)),
            }
        }
        let label = || "texels on their way to textures".into();
        let stage = |eights, per_sample| Resource { label: label(), kind: Kind::Stage(eights), per_sample };
        Stages { batch: batch.map(|each| stage(0, each)), part: part.map(|all| stage(all, 0)) }
    }
}

impl<T> Stages<T> {
    /// Where what goes to a texture of that kind is left.
    pub fn of(&self, kind: &Kind) -> Option<&T> {
        if let Kind::Passing(_) = kind { self.part.as_ref() } else { self.batch.as_ref() }
    }

    /// What stands for each instead.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Stages<U> {
        Stages { batch: self.batch.map(&mut f), part: self.part.map(f) }
    }

    /// The same, where it may fail.
    pub fn try_map<U>(self, mut f: impl FnMut(T) -> Result<U>) -> Result<Stages<U>> {
        Ok(Stages { batch: self.batch.map(&mut f).transpose()?, part: self.part.map(f).transpose()? })
    }

    /// Both, where they are there.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.batch.iter().chain(&self.part)
    }
}

/// What a dispatch binds: memory, the bytes of it that a batch takes, and the stage for what is written there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent<'a> {
    pub memory: &'a Allocated,
    pub bytes: u64,
    pub stage: Option<&'a Allocated>,
    /// Whether the parts of a batch have it one after the other.
    pub is_passing: bool,
}

impl<'a> Lent<'a> {
    /// For a batch of `n`.
    pub fn new(resource: &Resource, n: u64, memory: &'a Allocated, stage: Option<&'a Allocated>) -> Self {
        let is_passing = matches!(resource.kind, Kind::Passing(_));
        Lent { memory, bytes: resource.bytes(n, Storage::Buffer).unwrap_or(0), stage, is_passing }
    }
}

/// Memory on the device.
#[derive(Debug)]
pub(crate) enum Allocated {
    Buffer(Held<wgpu::Buffer>),
    Texture(Held<wgpu::TextureView>),
    /// A part of a buffer; bindings reach over `slack` bytes more than are asked for. For tests
    /// ([`crate::trial::guarded`]).
    Part {
        buffer: Held<wgpu::Buffer>,
        offset: u64,
        slack: u64,
    },
}

impl Allocated {
    /// Allocates `resource` for `n` samples. Errors of the device are the caller's to catch, in a scope.
    pub fn new(gpu: &Gpu, resource: &Resource, n: u64, storage: Storage) -> Result<Self> {
        let bytes = resource.bytes(n, storage).ok_or_else(|| Error::OutOfMemory {
            what: resource.label.clone(),
            bytes: u64::MAX,
            limit: "more than any address".into(),
        })?;
        if resource.kind.is_texels() && storage == Storage::Texture {
            let size = wgpu::Extent3d {
                width: TEXTURE_WIDTH as u32,
                height: (bytes / resource.kind.texel_bytes() / TEXTURE_WIDTH) as u32,
                depth_or_array_layers: 1,
            };
            let texture = gpu.device().create_texture(&wgpu::TextureDescriptor {
                label: Some(&resource.label),
                size,
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: texel_format(resource.kind == Kind::Half),
                usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
                view_formats: &[],
            });
            if let Kind::Texels(data) = &resource.kind {
                let mut rows = data.clone();
                rows.resize(bytes as usize, 0);
                let row = wgpu::TexelCopyBufferLayout { bytes_per_row: Some(ROW as u32), ..Default::default() };
                gpu.queue().write_texture(texture.as_image_copy(), &rows, row, size);
            }
            let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
            return Ok(Allocated::Texture(gpu.hold(view)));
        }
        let mut usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        usage |= match &resource.kind {
            Kind::Constant(_) | Kind::Texels(_) => wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE,
            Kind::Uniform => wgpu::BufferUsages::UNIFORM,
            _ => wgpu::BufferUsages::STORAGE,
        };
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(&resource.label),
            size: bytes.max(16),
            usage,
            mapped_at_creation: false,
        });
        if let Kind::Constant(data) | Kind::Texels(data) = &resource.kind {
            gpu.queue().write_buffer(&buffer, 0, data);
        }
        Ok(Allocated::Buffer(gpu.hold(buffer)))
    }

    /// The buffer, where it is one.
    ///
    /// # Panics
    /// For a texture; no resource that the host reads or writes is one.
    pub fn buffer(&self) -> &wgpu::Buffer {
        match self {
            Allocated::Buffer(buffer) | Allocated::Part { buffer, .. } => buffer,
            Allocated::Texture(_) => unreachable!("the host reads and writes buffers only"),
        }
    }

    fn offset(&self) -> u64 {
        if let Allocated::Part { offset, .. } = self { *offset } else { 0 }
    }

    /// What a bind group takes; of a buffer the first `bytes`, so that a kernel sees the length of the batch that runs.
    pub fn binding(&self, bytes: u64) -> wgpu::BindingResource<'_> {
        match self {
            Allocated::Buffer(buffer) => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: 0,
                size: std::num::NonZeroU64::new(bytes),
            }),
            Allocated::Texture(view) => wgpu::BindingResource::TextureView(view),
            Allocated::Part { buffer, offset, slack } => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: *offset,
                size: std::num::NonZeroU64::new(bytes + slack),
            }),
        }
    }
}

/// A copy of staged texels to the texture where kernels read them.
#[derive(Debug)]
pub(crate) struct Staged {
    buffer: wgpu::Buffer,
    layout: wgpu::TexelCopyBufferLayout,
    texture: wgpu::Texture,
    size: wgpu::Extent3d,
}

impl Staged {
    /// Of the first `bytes` of `stage` to `texels`, rounded up to rows. Kernels that write some channels each follow
    /// one another, so behind the last of them all lie on the stage.
    pub fn new(stage: &Allocated, texels: &wgpu::TextureView, bytes: u64) -> Self {
        let texture = texels.texture().clone();
        let row = TEXTURE_WIDTH * u64::from(texture.format().block_copy_size(None).unwrap_or(16));
        let layout = wgpu::TexelCopyBufferLayout {
            offset: stage.offset(),
            bytes_per_row: Some(row as u32),
            rows_per_image: None,
        };
        let size = wgpu::Extent3d { height: bytes.div_ceil(row) as u32, ..texture.size() };
        Staged { buffer: stage.buffer().clone(), layout, texture, size }
    }

    /// Records it.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let from = wgpu::TexelCopyBufferInfo { buffer: &self.buffer, layout: self.layout };
        encoder.copy_buffer_to_texture(from, self.texture.as_image_copy(), self.size);
    }
}
