//! Dispatches whose every binding lies between canaries: words that a kernel which keeps to its own memory neither writes nor
//! needs. For tests.
//!
//! Drivers and the shader compiler keep a kernel from writing outside of a *binding*, so words outside of it stay as they are
//! whatever a kernel does. Therefore bindings reach over the first words behind what a kernel was given, where it can do harm.
//! (Not where a kernel asks for the length of the binding: that is how it knows the batch.)

use super::{Written, fill, run_on_texels, texel_dispatch, uses, widened};
use crate::error::Result;
use crate::gpu::{Gpu, Storage};
use crate::kernel::Dispatch;
use crate::tensor::{Allocated, Kind, Resource};
use std::collections::BTreeMap;

/// Bytes of canaries before and behind a binding; offsets of bindings are multiples of no more.
const GUARD: u64 = 256;
/// Bytes of canaries inside a binding, behind what belongs to the kernel.
const SLACK: u64 = 4096;
/// NaN as a float, no zero as a sign.
const CANARY: u32 = 0x7fed_beef;

/// What was found after a run.
#[derive(Clone, Debug, Default)]
pub struct Guarded {
    /// Canaries that were looked at.
    pub words: usize,
    /// Bindings whose canaries changed: which, and where the first one lies.
    pub touched: Vec<String>,
    /// What was written, as [`super::Trial::outputs`] gives it; of textures nothing.
    pub outputs: Vec<Written>,
}

/// Memory with canaries around it.
struct Fenced {
    memory: Allocated,
    /// Bytes that belong to the kernels.
    bytes: u64,
    /// Of a texture: its texels before the run.
    texels: Vec<u8>,
}

/// Runs dispatches of one plan once, on the data that a [`super::Trial`] would give them, between canaries.
///
/// # Errors
/// Those of compiling, those of the device.
pub fn guarded(gpu: &Gpu, dispatches: &[Dispatch], resources: &[Resource], samples: u32) -> Result<Guarded> {
    let storage = dispatches.first().map_or(gpu.storage(), |d| d.kernel.storage);
    let bound = uses(dispatches)?;
    let mut exact = Vec::new();
    for d in dispatches {
        let text = d.kernel.source()?.text;
        exact
            .extend(d.bindings.iter().filter(|(name, _)| text.contains(&format!("arrayLength(&{name})"))).map(|b| b.1));
    }
    let mut all = BTreeMap::new();
    for (&id, used) in &bound {
        let slack = if exact.contains(&id) { 0 } else { SLACK };
        all.insert(id, fence(gpu, &resources[id], used.name, storage, samples, slack)?);
    }
    gpu.scope("a guarded run", || {
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let bind = |d: &Dispatch| d.bind(gpu, samples, |id| (&all[&id].memory, all[&id].bytes));
        let ready = dispatches.iter().map(bind).collect::<Result<Vec<_>>>()?;
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            ready.iter().for_each(|bound| bound.record(&mut pass));
        }
        gpu.wait(gpu.submit(encoder)?)
    })?;
    let mut found = Guarded::default();
    for (id, fenced) in &all {
        let (resource, name) = (&resources[*id], bound[id].name);
        match &fenced.memory {
            Allocated::Texture(_) => {
                let after = read_texture(gpu, &fenced.memory, &all_rows(resource, samples))?;
                found.look(name, &fenced.texels, &after, fenced.bytes as usize..after.len());
            }
            memory => {
                let whole = GUARD + fenced.bytes.next_multiple_of(4) + SLACK + GUARD;
                let after = gpu.read(&[(memory.buffer(), whole)])?.remove(0);
                let (start, end) = (GUARD as usize, (GUARD + fenced.bytes) as usize);
                let canaries = canaries(whole);
                found.look(name, &canaries, &after, 0..start);
                found.look(name, &canaries, &after, end..after.len());
                if bound[id].updated {
                    let floats = matches!(resource.kind, Kind::Activation | Kind::Half | Kind::Floats);
                    let bytes = widened(&resource.kind, after[start..end].to_vec());
                    found.outputs.push(Written { name, floats, bytes });
                }
            }
        }
    }
    found.outputs.sort_by_key(|w| (!w.floats, w.name));
    Ok(found)
}

impl Guarded {
    fn look(&mut self, name: &str, before: &[u8], after: &[u8], range: std::ops::Range<usize>) {
        self.words += range.len() / 4;
        if let Some(at) = range.clone().find(|&i| before[i] != after[i]) {
            self.touched.push(format!("{name}: byte {at} of {range:?}"));
        }
    }
}

fn canaries(bytes: u64) -> Vec<u8> {
    CANARY.to_ne_bytes().repeat((bytes / 4) as usize)
}

/// Random data where a kernel finds them, canaries all around.
fn fence(gpu: &Gpu, resource: &Resource, name: &str, storage: Storage, samples: u32, slack: u64) -> Result<Fenced> {
    let n = u64::from(samples);
    let memory = gpu.scope(&resource.label, || Allocated::new(gpu, resource, n, storage))?;
    fill(gpu, resource, &memory, name, storage, samples, 0)?;
    if let Allocated::Texture(_) = memory {
        let whole = all_rows(resource, samples);
        if !matches!(resource.kind, Kind::Texels(_)) {
            run_on_texels(gpu, &texel_dispatch("probe_fill", "y", &whole, storage), &whole, 7, 1, &memory, None)?;
        }
        let texels = read_texture(gpu, &memory, &whole)?;
        // As they are read: f32 each.
        let bytes = match &resource.kind {
            Kind::Texels(data) => data.len() as u64,
            _ => resource.per_sample * n * 16,
        };
        return Ok(Fenced { memory, bytes, texels });
    }
    let bytes = resource.bytes(n, Storage::Buffer).unwrap_or(0);
    let size = GUARD + bytes.next_multiple_of(4) + SLACK + GUARD;
    let buffer = gpu.scope("canaries", || {
        let usage = wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST
            | match &resource.kind {
                Kind::Uniform => wgpu::BufferUsages::UNIFORM,
                Kind::Constant(_) | Kind::Texels(_) => wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE,
                _ => wgpu::BufferUsages::STORAGE,
            };
        let label = Some("canaries");
        let buffer =
            gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false });
        gpu.queue().write_buffer(&buffer, 0, &canaries(size));
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(memory.buffer(), 0, &buffer, GUARD, bytes);
        gpu.submit(encoder)?;
        Ok(gpu.hold(buffer))
    })?;
    // Uniform bindings are read only, and no larger than they may be.
    let slack = if matches!(resource.kind, Kind::Uniform | Kind::Constant(_)) { 0 } else { slack };
    Ok(Fenced { memory: Allocated::Part { buffer, offset: GUARD, slack }, bytes, texels: Vec::new() })
}

/// All that a texture holds, as texels of one sample.
fn all_rows(resource: &Resource, samples: u32) -> Resource {
    let whole = resource.bytes(u64::from(samples), Storage::Texture).unwrap_or(0);
    let kind = if resource.kind == Kind::Half { Kind::Half } else { Kind::Activation };
    Resource { label: "texels".into(), per_sample: whole / kind.texel_bytes(), kind }
}

/// Every texel as f32.
fn read_texture(gpu: &Gpu, memory: &Allocated, texels: &Resource) -> Result<Vec<u8>> {
    let plain = Resource { label: "texels".into(), kind: Kind::Samples, per_sample: texels.per_sample };
    let copy = gpu.scope("memory for reading", || Allocated::new(gpu, &plain, 1, Storage::Texture))?;
    let dispatch = texel_dispatch("probe_read", "x", texels, Storage::Texture);
    run_on_texels(gpu, &dispatch, texels, 0, 1, memory, Some(&copy))?;
    Ok(gpu.read(&[(copy.buffer(), texels.per_sample * 16)])?.remove(0))
}
