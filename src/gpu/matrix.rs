//! Units that multiply matrices: which a device has. Imports nothing.

/// What units that multiply matrices take: they, and f16 to feed them with.
pub(super) const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// What a device multiplies at a time, by the invocations of a subgroup together: side × side numbers of f16 by as
/// many, added up in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopMatrix {
    /// 8 or 16.
    pub side: u32,
    /// Invocations in a subgroup; all subgroups of the device have so many.
    pub lanes: u32,
}

impl CoopMatrix {
    /// The largest that an opened device has, or why there is none.
    pub(super) fn of(adapter: &wgpu::Adapter, device: &wgpu::Device) -> std::result::Result<Self, &'static str> {
        let (info, all) = (adapter.get_info(), adapter.cooperative_matrix_properties());
        // On Metal wgpu writes them in a language that cannot say them.
        if info.backend != wgpu::Backend::Vulkan || all.is_empty() {
            return Err("the device multiplies no matrices");
        }
        if !device.features().contains(COOPERATIVE | wgpu::Features::SUBGROUP) {
            return Err("the device was opened without cooperative matrices (Gpu::with_cooperative_matrix)");
        }
        if info.subgroup_min_size != info.subgroup_max_size {
            return Err("the device has subgroups of several sizes, and does not say which a kernel gets");
        }
        let is_there = |side: u32| {
            let (f16, f32) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
            all.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (f16, f32))
        };
        let side = [16, 8].into_iter().find(|side| is_there(*side));
        let side = side.ok_or("the device multiplies matrices, but none of f16, square, that are added up in f32")?;
        Ok(CoopMatrix { side, lanes: info.subgroup_max_size })
    }
}
