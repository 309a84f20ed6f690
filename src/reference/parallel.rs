//! Work on many samples, spread over all cores. Imports nothing.

/// Results of `work` for 0..n in order, computed on all cores.
pub(super) fn parallel<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(n).max(1);
    let share = n.div_ceil(threads);
    let work = &work;
    std::thread::scope(|scope| {
        let start = |t: usize| (t * share).min(n);
        let handles: Vec<_> =
            (0..threads).map(|t| scope.spawn(move || (start(t)..start(t + 1)).map(work).collect::<Vec<T>>())).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}
