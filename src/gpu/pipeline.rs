//! Pipelines: what a device runs, made of text.

use super::turns::Held;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A compute pipeline and the layout of its one bind group.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: Held<wgpu::ComputePipeline>,
    pub layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    pub(crate) fn new(
        device: &wgpu::Device,
        is_gl: bool,
        cache: Option<&wgpu::PipelineCache>,
        entry: &str,
        text: String,
        bindings: &[wgpu::BindingType],
    ) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(entry),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(bindings)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: *ty,
                count: None,
            })
            .collect();
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(entry), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache,
        });
        Pipeline { pipeline: Held::new(pipeline, is_gl), layout }
    }
}

/// How long pipelines were made, whoever made them: what two threads do at a time counts once.
#[derive(Debug, Default)]
pub(super) struct Compiling {
    pub time: Duration,
    /// How many are being made, and since when there is one.
    now: u32,
    since: Option<Instant>,
}

/// Counts as making a pipeline until it is dropped.
pub(super) struct Timed<'a>(&'a Mutex<Compiling>);

impl Compiling {
    pub(super) fn begin(all: &Mutex<Compiling>) -> Timed<'_> {
        let mut compiling = all.lock().unwrap_or_else(PoisonError::into_inner);
        compiling.now += 1;
        compiling.since.get_or_insert_with(Instant::now);
        Timed(all)
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let mut compiling = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        compiling.now -= 1;
        if compiling.now == 0 {
            let began = compiling.since.take();
            compiling.time += began.map_or(Duration::ZERO, |at| at.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn what_is_made_at_a_time_counts_once() {
        let all = Mutex::default();
        let began = Instant::now();
        let first = Compiling::begin(&all);
        let second = Compiling::begin(&all);
        sleep(Duration::from_millis(20));
        drop(first);
        assert_eq!(all.lock().unwrap().time, Duration::ZERO, "one is still being made");
        sleep(Duration::from_millis(20));
        drop(second);
        let whole = all.lock().unwrap().time;
        assert!(whole >= Duration::from_millis(40) && whole <= began.elapsed(), "{whole:?}");
    }
}
