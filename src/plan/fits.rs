//! What fits a device: dispatches of any batch, and how large a batch may be.

use crate::error::{Error, Result};
use crate::gpu::{Storage, TEXTURE_WIDTH};
use crate::kernel::Dispatch;
use crate::model::Dims;
use crate::ops::Target;
use crate::tensor::{Kind, ROW, Resource, most_texels};

/// Results are read back through one buffer: the largest of them, and up to two words and their alignment beside it;
/// and the word of `gpu/witness.rs` once.
pub(super) fn read_back(input: Dims, classes: usize) -> u64 {
    input.len().max(classes) as u64 * 4 + 8
}

/// Checks what no batch size can mend: grids, workgroups, uniform bindings and loops.
pub(super) fn check_dispatches<'d>(
    dispatches: impl Iterator<Item = &'d Dispatch>,
    resources: &[Resource],
    target: &Target,
) -> Result<()> {
    let limits = &target.limits;
    for d in dispatches {
        let fail = |detail: String| Err(Error::model(&d.layer, format!("too large for this device: {detail}")));
        let [x, y, _] = d.grid.workgroups(1);
        if u64::from(x.max(y)) > limits.workgroups {
            return fail(format!("{x}×{y} workgroups, {} in a dimension", limits.workgroups));
        }
        if let Some(over) = d.kernel.exceeds(limits)? {
            return fail(over);
        }
        let size = d.kernel.constant("WG").unwrap_or(1);
        if size > limits.workgroup_size {
            return fail(format!("{size} invocations in a workgroup, {} allowed", limits.workgroup_size));
        }
        // Weights are cut to fit; the means and deviations of the channels are not.
        for (_, id) in d.bindings.iter().filter(|(name, _)| *name == "channels") {
            let bytes = resources[*id].bytes(1, Storage::Buffer).unwrap_or(u64::MAX);
            if bytes > limits.uniform_binding {
                return fail(format!("{bytes} bytes in a uniform binding, {} allowed", limits.uniform_binding));
            }
        }
        let rounds = d.kernel.rounds();
        let allowed = target.rounds;
        if rounds >= allowed {
            return fail(format!("{rounds} rounds of loops in one invocation, fewer than {allowed} allowed"));
        }
    }
    Ok(())
}

/// The largest binding, whatever a device allows: what 32 bits count, in whole texels.
const BINDING: u64 = (1 << 32) - 16;

/// The largest batch that fits the limits and `memory` bytes, `read_back` bytes of each sample being read at a time.
pub(super) fn largest_batch<'d>(
    dispatches: impl Iterator<Item = &'d Dispatch>,
    resources: &[&Resource],
    target: &Target,
    read_back: u64,
    memory: u64,
) -> Result<usize> {
    let limits = &target.limits;
    // Metal tells kernels the sizes of bindings in 32 bits, and what lies beyond would be read as the last texel.
    let binding = limits.storage_binding.min(BINDING);
    let mut most = limits.workgroups.min(1 << 30);
    let mut tightest = ("dispatch", 0, "workgroups in a dimension".to_string());
    for r in resources {
        let (allowed, limit) = match (&r.kind, target.storage) {
            (kind, Storage::Texture) if kind.is_texels() => {
                (kind.texel_bytes() * most_texels(limits.texture_side), "texture side")
            }
            (Kind::Constant(_) | Kind::Uniform | Kind::Texels(_), _) => (binding.min(limits.buffer), "binding"),
            (Kind::Stage(_), _) => (binding.min(limits.buffer / ROW * ROW), "storage binding"),
            _ => (binding.min(limits.buffer), "storage binding"),
        };
        let one = r.bytes(1, Storage::Buffer).unwrap_or(u64::MAX);
        let fits = match r.per_sample {
            0 => {
                if one <= allowed {
                    u64::MAX
                } else {
                    0
                }
            }
            // Indices in a kernel are u32, and some back ends treat them as signed.
            _ => (allowed / one).min((1 << 31) / r.per_sample),
        };
        if fits < most {
            most = fits;
            let narrow = allowed == 0 && limit == "texture side";
            let limit = if narrow {
                format!("textures {} texels wide, where {TEXTURE_WIDTH} are needed", limits.texture_side)
            } else {
                format!("{limit} of {allowed} bytes")
            };
            tightest = (&r.label, one, limit);
        }
    }
    for d in dispatches {
        let fits = d.grid.most(limits.workgroups);
        if fits < most {
            most = fits;
            tightest = (&d.layer, 0, "workgroups in a dimension".into());
        }
    }
    let fits = limits.buffer.saturating_sub(32) / read_back;
    if fits < most {
        most = fits;
        tightest = ("reading back", read_back, format!("buffer of {} bytes", limits.buffer));
    }
    // Textures grow by rows: the largest batch is looked for, never falling short of what `bytes` says of it.
    let bytes = |n: u64| {
        let charged = |r: &&Resource| r.charged(n, target.storage).unwrap_or(u64::MAX);
        resources.iter().map(charged).fold(0, u64::saturating_add)
    };
    if most > 0 && bytes(most) > memory {
        let (mut fits, mut larger) = (0, most);
        while larger - fits > 1 {
            let middle = fits + (larger - fits) / 2;
            if bytes(middle) <= memory { fits = middle } else { larger = middle }
        }
        most = fits;
        tightest = ("one sample", bytes(1), format!("memory budget of {memory} bytes"));
    }
    if most == 0 {
        return Err(Error::OutOfMemory { what: tightest.0.into(), bytes: tightest.1, limit: tightest.2 });
    }
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}
