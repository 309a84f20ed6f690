//! Pipelines: what a device runs, made of text.

use super::turns::Held;

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
