//! Pipelines of many dispatches, made on several threads: a compiler may take seconds for a large kernel (Microsoft's FXC
//! does), and knows nothing of the others.

use super::Dispatch;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As many at a time, for compilers take memory, too.
const MOST_THREADS: usize = 8;

/// Makes the pipelines of `dispatches` that `gpu` does not have yet. On GL, where threads take turns, it makes none:
/// each is made when it is bound.
///
/// # Errors
/// The first that a pipeline meets; what has not been begun by then is left.
pub(crate) fn compile<'a>(gpu: &Gpu, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<()> {
    if gpu.submits_and_waits() {
        return Ok(());
    }
    let mut seen = HashSet::new();
    let dispatches = dispatches.into_iter();
    let all: Vec<&Dispatch> =
        dispatches.filter(|&d| seen.insert(&d.kernel) && !gpu.has_pipeline(&d.kernel.key())).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(dispatch) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = dispatch.ready(gpu, None) {
                next.store(all.len(), Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(all.len());
    std::thread::scope(|scope| {
        // This thread is one of them.
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let panicked = |_| Err(Error::Internal("a thread that made pipelines panicked".into()));
        others.into_iter().map(|other| other.join().unwrap_or_else(panicked)).fold(mine, Result::and)
    })
}
