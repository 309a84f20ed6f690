//! Limits of devices, as plain values. Imports nothing.

/// Registers of 32 bits of an invocation, where there are many.
pub(crate) const MANY_REGISTERS: u32 = 256;

/// Limits that a plan obeys. A plain value: plans can be made for a device that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest storage buffer binding, in bytes.
    pub storage_binding: u64,
    /// Largest uniform buffer binding, in bytes.
    pub uniform_binding: u64,
    /// Largest buffer, in bytes.
    pub buffer: u64,
    /// Largest side of a 2D texture, in texels.
    pub texture_side: u64,
    /// Workgroups in one dimension of a dispatch.
    pub workgroups: u64,
    /// Invocations in a workgroup along x.
    pub workgroup_size: u32,
    /// Memory that a workgroup shares, in bytes.
    pub workgroup_storage: u32,
    /// Storage buffers that a kernel binds.
    pub storage_buffers: u32,
    /// Storage textures that it binds.
    pub storage_textures: u32,
    /// Bindings of all kinds that it has.
    pub bindings: u32,
}

impl Default for Limits {
    /// What WebGPU guarantees everywhere.
    fn default() -> Self {
        Limits {
            storage_binding: 128 << 20,
            uniform_binding: 64 << 10,
            buffer: 256 << 20,
            texture_side: 8192,
            workgroups: 65_535,
            workgroup_size: 256,
            workgroup_storage: 16 << 10,
            storage_buffers: 8,
            storage_textures: 4,
            bindings: 1000,
        }
    }
}

impl Limits {
    pub(super) fn of(l: &wgpu::Limits) -> Self {
        Limits {
            storage_binding: l.max_storage_buffer_binding_size,
            uniform_binding: l.max_uniform_buffer_binding_size,
            buffer: l.max_buffer_size,
            texture_side: u64::from(l.max_texture_dimension_2d),
            workgroups: u64::from(l.max_compute_workgroups_per_dimension),
            workgroup_size: l.max_compute_workgroup_size_x.min(l.max_compute_invocations_per_workgroup),
            workgroup_storage: l.max_compute_workgroup_storage_size,
            storage_buffers: l.max_storage_buffers_per_shader_stage,
            storage_textures: l.max_storage_textures_per_shader_stage,
            bindings: l.max_bindings_per_bind_group,
        }
    }
}
