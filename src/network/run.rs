//! Work cut into submissions, and what is read of its results.

use crate::attack::Health;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Dispatch, Recorder};
use std::time::{Duration, Instant};

/// Dispatches in one submission: small networks take many steps in it, and what is recorded takes memory.
const SUBMISSION_DISPATCHES: usize = 8192;

/// Records and submits `work` for a batch of `n`, as [`super::chunk::Chunk::run`] says.
pub(crate) fn run<'b>(
    gpu: &Gpu,
    n: usize,
    work: impl Iterator<Item = (&'b Bound, &'b Dispatch)>,
    counts: &Dispatch,
    mut done: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut work = work.peekable();
    let mut under_way: Option<Submission> = None;
    // When the one before had ended, and what the host did between.
    let (mut ended, mut busy) = (Instant::now(), Duration::ZERO);
    let mut end = |submission: Submission| {
        gpu.wait(submission.index)?;
        let now = Instant::now();
        let most = now - submission.start.max(ended);
        gpu.pace().learn(submission.flops, most.saturating_sub(busy), most);
        let told = done(submission.counted);
        (ended, busy) = (now, now.elapsed());
        told
    };
    while work.peek().is_some() {
        let start = Instant::now();
        let (most, mut flops, mut dispatches, mut counted) = (gpu.pace().flops(), 0, 0, 0);
        let index = gpu.scope("running the plan", || {
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut recorder = Recorder::new(&mut encoder, None);
            while recorder.waits() || (flops < most && dispatches < SUBMISSION_DISPATCHES) {
                let Some((bound, dispatch)) = work.next() else { break };
                recorder.dispatch(bound);
                flops += dispatch.flops * n as u64;
                dispatches += bound.runs();
                counted += u64::from(std::ptr::eq(dispatch, counts));
            }
            recorder.end(None);
            gpu.submit(encoder)
        })?;
        let submission = Submission { index, start, flops, counted };
        // Where the device has ended already, there is nothing to be gained by looking later.
        let before = if gpu.submits_and_waits() { Some(submission) } else { under_way.replace(submission) };
        before.map_or(Ok(()), &mut end)?;
    }
    under_way.map_or(Ok(()), end)
}

/// Work that the device was given.
struct Submission {
    index: wgpu::SubmissionIndex,
    start: Instant,
    flops: u64,
    counted: u64,
}

pub(crate) fn append<T: bytemuck::AnyBitPattern>(out: &mut Vec<T>, bytes: &[u8]) {
    out.extend(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
}

/// The device marks activations; what is read back, `one` values for each sample, is looked at here.
pub(crate) fn mark(health: &mut [Health], values: &[f32], one: usize, what: Health) {
    for (health, values) in health.iter_mut().zip(values.chunks(one)) {
        if !values.iter().all(|v| v.is_finite()) {
            health.0 |= what.0;
        }
    }
}
