//! The driver's compiled pipelines from one start of the program to the next (feature `pipeline-cache`): a file for
//! each adapter and driver beside the tunings, before what it holds the SHA-256 of that and of what it holds for. A
//! file that is damaged, or of another version, is as good as none, and made anew.

use super::cache::{folder, replace};
use crate::error::Result;
use crate::{Adapter, Gpu, data, kernel};
use std::path::PathBuf;
use std::sync::OnceLock;

/// What was opened, and where its pipelines are kept.
static OPENED: OnceLock<(Gpu, PathBuf, String)> = OnceLock::new();

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 28;

fn checksum(key: &str, compiled: &[u8]) -> String {
    data::sha256([key.as_bytes(), compiled])
}

/// Opens an adapter with what is kept for it.
pub(super) fn open(choice: &Adapter) -> Result<Gpu> {
    let Some(folder) = folder() else { return Gpu::new(choice) };
    // Which adapter it is, is known once it is open; so the file is of the request, of all adapters there are, and of
    // this program.
    let all: Vec<_> = Gpu::list().into_iter().map(|a| (a.name, a.backend, a.driver)).collect();
    let key = format!("{choice:?} {all:?} {} {:016x}", env!("CARGO_PKG_VERSION"), kernel::fingerprint());
    let path = folder.join(format!("pipelines-{:016x}.bin", kernel::hash(key.as_bytes())));
    let kept = data::read(&path, MAX_BYTES).ok();
    let sound = kept.as_deref().and_then(|bytes| {
        let (sum, rest) = bytes.split_at_checked(64)?;
        (checksum(&key, rest).as_bytes() == sum).then_some(rest)
    });
    #[allow(unsafe_code, reason = "the driver is given what it gave")]
    // SAFETY: the hash says that these are the bytes that `keep` wrote.
    let gpu = unsafe { Gpu::with_pipeline_cache(choice, sound) }?;
    let _ = OPENED.set((gpu.clone(), path, key));
    Ok(gpu)
}

/// Keeps what has been compiled. That nothing could be written is no error: it is compiled again.
pub(super) fn keep() {
    let Some((gpu, path, key)) = OPENED.get() else { return };
    if let Some(compiled) = gpu.pipeline_cache_data() {
        let _ = replace(path, &[checksum(key, &compiled).as_bytes(), &compiled].concat());
    }
}
