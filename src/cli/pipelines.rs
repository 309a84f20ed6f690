//! The driver's compiled pipelines from one start of the program to the next (feature `pipeline-cache`): a file for each adapter
//! and driver beside the tunings, the SHA-256 of what it holds before it. A file that is damaged is as good as none.

use super::cache::{folder, replace};
use crate::error::Result;
use crate::{Adapter, Gpu, data, kernel};
use std::path::PathBuf;
use std::sync::OnceLock;

/// What was opened, and where its pipelines are kept.
static OPENED: OnceLock<(Gpu, PathBuf)> = OnceLock::new();

/// Opens an adapter with what is kept for it.
pub(super) fn open(choice: &Adapter) -> Result<Gpu> {
    let Some(folder) = folder() else { return Gpu::new(choice) };
    // Which adapter it is, is known once it is open; so the file is of the request, of all adapters there are, and of this program.
    let all: Vec<_> = Gpu::list().into_iter().map(|a| (a.name, a.backend, a.driver)).collect();
    let key = format!("{choice:?} {all:?} {} {:016x}", env!("CARGO_PKG_VERSION"), kernel::fingerprint());
    let path = folder.join(format!("pipelines-{:016x}.bin", kernel::hash(key.as_bytes())));
    let kept = std::fs::read(&path).ok();
    let sound = kept.as_deref().and_then(|bytes| {
        let (sum, rest) = bytes.split_at_checked(64)?;
        (data::sha256([rest]).as_bytes() == sum).then_some(rest)
    });
    #[allow(unsafe_code, reason = "the driver is given what it gave")]
    // SAFETY: the hash says that these are the bytes that `keep` wrote.
    let gpu = unsafe { Gpu::with_pipeline_cache(choice, sound) }?;
    let _ = OPENED.set((gpu.clone(), path));
    Ok(gpu)
}

/// Keeps what has been compiled. That nothing could be written is no error: it is compiled again.
pub(super) fn keep() {
    let Some((gpu, path)) = OPENED.get() else { return };
    if let Some(compiled) = gpu.pipeline_cache_data() {
        let _ = replace(path, &[data::sha256([&compiled[..]]).as_bytes(), &compiled].concat());
    }
}
