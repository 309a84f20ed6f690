//! Calls to the GPU library: in turn and in scopes, submitted, waited for and read back. What it reports becomes
//! errors.

use super::fault::Fault;
use super::witness::{self, Witness};
use super::{Gpu, turns};
use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// How long a device may take to say that it is lost, after it has refused something, or to end what took too long.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long GL's context is held at most for looking at the device.
const SLICE: Duration = Duration::from_millis(20);

impl Gpu {
    /// A call to the library is about to be made: every one that can fail asks for the device or the queue.
    pub(super) fn call(&self) {
        if let Some(faults) = self.0.faults.get() {
            faults.strike(&self.0.device, true);
        }
    }

    fn fails(&self, fault: Fault) -> bool {
        self.0.faults.get().is_some_and(|faults| faults.take(fault))
    }

    /// Runs calls to the GPU library, in turn where there are turns, and gives whatever it complains of as an error.
    /// Scopes belong to a thread: `calls` must not hand work to another one, nor wait for it.
    pub(crate) fn scope<T>(&self, what: &str, calls: impl FnOnce() -> Result<T>) -> Result<T> {
        let _turn = turns::take(self.submits_and_waits());
        self.alive()?;
        let scope = |filter| self.0.device.push_error_scope(filter);
        let memory = scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = scope(wgpu::ErrorFilter::Internal);
        let validation = scope(wgpu::ErrorFilter::Validation);
        let made = calls();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if memory.is_some() || validation.is_some() || internal.is_some() {
            // What is made on a lost device is invalid, and that it is lost is told when all that it had to do has
            // ended.
            let _ = self.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(FAREWELL) });
            self.alive()?;
            // A host's device tells its host alone.
            if let Some(why) = self.refuses_everything() {
                return Err(Error::DeviceLost(why));
            }
            // A submission that was refused has not handed it on.
            if let Some(witness) = self.0.witness.get() {
                witness.renew(&self.0.queue);
            }
        }
        self.alive()?;
        let short = memory.map(|e| e.to_string()).or_else(|| self.fails(Fault::Memory).then(|| "a test".into()));
        if let Some(limit) = short {
            return Err(Error::OutOfMemory { what: what.into(), bytes: 0, limit });
        }
        if let Some(e) = validation.or(internal) {
            return Err(Error::Internal(format!("{what}: {e}")));
        }
        made
    }

    /// What a device says to four bytes for a buffer, which every device takes, where it does not: it is gone.
    fn refuses_everything(&self) -> Option<String> {
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("is anybody there"),
            size: 4,
            usage: wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.0.queue.write_buffer(&buffer, 0, &[0; 4]);
        pollster::block_on(scope.pop()).map(|e| e.to_string())
    }

    /// Looks at the device, whose library panics where a device is lost while it is waited for. `None` for that.
    fn poll(&self, how: wgpu::PollType) -> Option<std::result::Result<(), wgpu::PollError>> {
        let is_gl = self.submits_and_waits();
        let poll = |how| {
            let _turn = turns::take(is_gl);
            let poll = || self.0.device.poll(how).map(drop);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).ok()
        };
        if let Some(faults) = self.0.faults.get() {
            let _turn = turns::take(is_gl);
            faults.strike(&self.0.device, false);
        }
        let (index, timeout) = match how {
            wgpu::PollType::Wait { submission_index, timeout } if is_gl => (submission_index, timeout),
            other => return poll(other),
        };
        // In slices, so that others have their turns in between; and GL itself waits for no longer than 2.1 s.
        let start = Instant::now();
        loop {
            let left = timeout.map_or(SLICE, |most| most.saturating_sub(start.elapsed()).min(SLICE));
            let ended = poll(wgpu::PollType::Wait { submission_index: index.clone(), timeout: Some(left) });
            let late = matches!(ended, Some(Err(wgpu::PollError::Timeout)));
            if !late || self.alive().is_err() || timeout.is_some_and(|most| start.elapsed() >= most) {
                return ended;
            }
        }
    }

    fn alive(&self) -> Result<()> {
        self.0.lost.get().map_or(Ok(()), |why| Err(Error::DeviceLost(why.clone())))
    }

    /// Submits what was recorded; the index is for [`Gpu::wait`].
    pub(crate) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        self.submit_with(encoder, None)
    }

    /// The same; where results are read, `staging` gets a word at an offset that says whether all work up to here was
    /// done.
    fn submit_with(
        &self,
        mut encoder: wgpu::CommandEncoder,
        staging: Option<(&wgpu::Buffer, u64)>,
    ) -> Result<wgpu::SubmissionIndex> {
        let start = Instant::now();
        let queue = self.queue();
        let witness = self.0.witness.get_or_init(|| Witness::new(&self.0.device, self.submits_and_waits()));
        let mut turn = witness.turn();
        witness.hand_on(&mut turn, &mut encoder, staging);
        if self.fails(Fault::Dropped) {
            encoder = self.0.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        }
        let index = queue.submit([encoder.finish()]);
        drop(turn);
        // Where this waits, the deadline is looked at here.
        match self.deadline() {
            Some(deadline) if self.submits_and_waits() && start.elapsed() > deadline => Err(late(deadline)),
            _ => Ok(index),
        }
    }

    /// Waits until a submission has ended.
    pub(crate) fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let deadline = self.deadline();
        let ended = self.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: deadline });
        self.alive()?;
        match ended {
            Some(Err(wgpu::PollError::Timeout)) => {
                // A software adapter that still computes while its process ends takes it along. Whoever drops a device waits
                // for it, and what hangs would be waited for for ever.
                let farewell = wgpu::PollType::Wait { submission_index: None, timeout: Some(FAREWELL) };
                if !matches!(self.poll(farewell), Some(Ok(_))) {
                    std::mem::forget(self.clone());
                }
                Err(late(deadline.unwrap_or_default()))
            }
            _ if self.fails(Fault::Timeout) => Err(late(deadline.unwrap_or_default())),
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(Error::DeviceLost(e.to_string())),
            None => Err(Error::DeviceLost("while its work was waited for".into())),
        }
    }

    /// Reads the first bytes of several buffers, in one submission.
    pub(crate) fn read(&self, parts: &[(&wgpu::Buffer, u64)]) -> Result<Vec<Vec<u8>>> {
        self.scope("reading back", || {
            let results = parts.iter().map(|(_, bytes)| bytes.next_multiple_of(8)).sum::<u64>();
            let total = results + witness::BYTES;
            let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size: total,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            });
            let mut encoder = self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            for (buffer, bytes) in parts {
                encoder.copy_buffer_to_buffer(buffer, 0, &staging, at, *bytes);
                at += bytes.next_multiple_of(8);
            }
            let index = self.submit_with(encoder, Some((&staging, results)))?;
            self.call();
            let (send, receive) = std::sync::mpsc::channel();
            staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
                let _ = send.send(mapped);
            });
            self.wait(index)?;
            match receive.recv() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(Error::DeviceLost(format!("reading back: {e}"))),
                Err(_) => return Err(Error::DeviceLost("reading back: no answer".into())),
            }
            self.call();
            let view = staging.get_mapped_range(..).map_err(|e| Error::Internal(format!("reading back: {e}")))?;
            if !witness::is_whole(&view[results as usize..]) {
                return Err(Error::DeviceLost(
                    "the system ended a submission early, and said nothing: what was read would be stale".into(),
                ));
            }
            let mut out = Vec::with_capacity(parts.len());
            let mut at = 0;
            for (_, bytes) in parts {
                out.push(view[at as usize..(at + bytes) as usize].to_vec());
                at += bytes.next_multiple_of(8);
            }
            Ok(out)
        })
    }
}

fn late(deadline: Duration) -> Error {
    Error::DeviceLost(format!("a submission did not end within the deadline of {deadline:?}"))
}
