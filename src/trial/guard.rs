//! Dispatches whose every binding lies between canaries: words that a kernel which keeps to its own memory neither
//! writes nor needs. For tests.
//!
//! Drivers and the shader compiler keep a kernel from writing outside of a *binding*, so words outside of it stay as
//! they are whatever a kernel does. Therefore bindings reach over the first words behind what a kernel was given, where
//! it can do harm. (Not where a kernel asks for the length of the binding: that is how it knows the batch.)

use super::data::fill;
use super::{Used, Written, uses, widened};
use crate::error::Result;
use crate::gpu::{Gpu, Storage};
use crate::kernel::{Dispatch, submit};
use crate::tensor::{Allocated, Kind, Lent, Resource};
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
    /// What was written, as [`super::Trial::outputs`] gives it.
    pub outputs: Vec<Written>,
}

/// Memory with canaries around it.
struct Fenced {
    /// What kernels read: a texture has no canaries, for nobody can write to it.
    memory: Allocated,
    /// What kernels write: the stage of a texture, else the same.
    written: Option<Allocated>,
    /// Bytes that belong to the kernels.
    bytes: u64,
    /// Bytes in all, of a buffer.
    whole: u64,
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
        all.insert(id, fence(gpu, &resources[id], used, storage, samples, slack)?);
    }
    let lent = |id: usize| Lent::new(&resources[id], samples.into(), &all[&id].memory, all[&id].written.as_ref());
    let bind = |d: &Dispatch| d.bind(gpu, samples, lent);
    gpu.scope("a guarded run", || {
        let ready = dispatches.iter().map(bind).collect::<Result<Vec<_>>>()?;
        gpu.wait(submit(gpu, &ready)?)
    })?;
    let mut found = Guarded::default();
    for (id, fenced) in &all {
        let (resource, name) = (&resources[*id], bound[id].name);
        let memory = fenced.written.as_ref().unwrap_or(&fenced.memory);
        if let Allocated::Texture(_) = memory {
            continue;
        }
        let after = gpu.read(&[(memory.buffer(), fenced.whole)])?.remove(0);
        let (start, end) = (GUARD as usize, (GUARD + fenced.bytes) as usize);
        let canaries = canaries(fenced.whole);
        found.look(name, &canaries, &after, 0..start);
        found.look(name, &canaries, &after, end..after.len());
        if bound[id].updated {
            let floats = matches!(resource.kind, Kind::Activation | Kind::Half | Kind::Floats);
            let bytes = widened(&resource.kind, after[start..end].to_vec());
            found.outputs.push(Written { name, floats, bytes });
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
fn fence(gpu: &Gpu, resource: &Resource, used: &Used, storage: Storage, samples: u32, slack: u64) -> Result<Fenced> {
    let n = u64::from(samples);
    let memory = gpu.scope(&resource.label, || Allocated::new(gpu, resource, n, storage))?;
    fill(gpu, resource, &memory, used.name, storage, samples, 0)?;
    let bytes = resource.bytes(n, Storage::Buffer).unwrap_or(0);
    // A stage is copied in whole rows, canaries and all.
    let is_texture = matches!(memory, Allocated::Texture(_));
    let copied = if is_texture { resource.bytes(n, storage).unwrap_or(0) } else { bytes.next_multiple_of(4) };
    let whole = GUARD + copied + SLACK + GUARD;
    if is_texture && !used.updated {
        return Ok(Fenced { memory, written: None, bytes, whole });
    }
    let buffer = gpu.scope("canaries", || {
        let usage = wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST
            | match &resource.kind {
                Kind::Uniform => wgpu::BufferUsages::UNIFORM,
                Kind::Constant(_) | Kind::Texels(_) => wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE,
                _ => wgpu::BufferUsages::STORAGE,
            };
        let label = Some("canaries");
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label,
            size: whole,
            usage,
            mapped_at_creation: false,
        });
        gpu.queue().write_buffer(&buffer, 0, &canaries(whole));
        if !is_texture {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(memory.buffer(), 0, &buffer, GUARD, bytes);
            gpu.submit(encoder)?;
        }
        Ok(gpu.hold(buffer))
    })?;
    // Uniform bindings are read only, and no larger than they may be.
    let slack = if matches!(resource.kind, Kind::Uniform | Kind::Constant(_)) { 0 } else { slack };
    let fenced = Allocated::Part { buffer, offset: GUARD, slack };
    Ok(match is_texture {
        true => Fenced { memory, written: Some(fenced), bytes, whole },
        false => Fenced { memory: fenced, written: None, bytes, whole },
    })
}
