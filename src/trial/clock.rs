//! Clocks that a device's work is timed by.

use crate::error::Result;
use crate::gpu::{Gpu, Held};
use std::fmt;
use std::time::Duration;

/// Where times come from.
#[derive(Clone, Copy)]
pub enum Clock<'a> {
    /// Timestamps of the device.
    Timestamps,
    /// CPU time of this process so far: where the device is the process.
    Process(&'a dyn Fn() -> Duration),
    /// Wall time, from the submission to its end.
    Wall,
}

impl fmt::Debug for Clock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'a> Clock<'a> {
    /// The best clock for a device: `process` (CPU time of this process) on software adapters, timestamps where there
    /// are some, else wall time.
    pub fn of(gpu: &Gpu, process: &'a dyn Fn() -> Duration) -> Self {
        if gpu.summary().kind == "software" {
            Clock::Process(process)
        } else if gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            Clock::Timestamps
        } else {
            Clock::Wall
        }
    }

    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Clock::Timestamps => "device timestamps",
            Clock::Process(_) => "process CPU time",
            Clock::Wall => "wall time",
        }
    }
}

/// How long one run took, in seconds: a mean over the runs of one submission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// By the clock that was asked for.
    pub time: f64,
    /// From the submission to its end.
    pub wall: f64,
}

/// Begin and end of a submission's passes, by the device's own clock.
pub(super) struct Timestamps {
    set: Held<wgpu::QuerySet>,
    buffer: Held<wgpu::Buffer>,
}

impl Timestamps {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        gpu.scope("timestamps", || {
            let set = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            Ok(Timestamps { set: gpu.hold(set), buffer: gpu.hold(buffer) })
        })
    }

    pub fn writes(&self, begin: bool, end: bool) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: begin.then_some(0),
            end_of_pass_write_index: end.then_some(1),
        }
    }

    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.set, 0..2, &self.buffer, 0);
    }

    pub fn seconds(&self, gpu: &Gpu) -> Result<f64> {
        let ticks = bytemuck::pod_collect_to_vec::<u8, u64>(&gpu.read(&[(&self.buffer, 16)])?[0]);
        Ok(ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(gpu.queue().get_timestamp_period()) * 1e-9)
    }
}
