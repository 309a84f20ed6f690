//! Bindings: what is declared for one in shader text, and what a pipeline's layout says of it.

use super::Kernel;
use super::expression::Scope;
use crate::gpu::Storage;
use crate::tensor::texel_format;

/// The largest f16.
const HALF_MOST: f32 = 65_504.0;

/// How a kernel sees a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Activation, read.
    ActivationRead,
    /// Activation, written: to a buffer, wherever it lies (`tensor.rs`).
    ActivationWrite,
    /// Storage buffer, read only.
    StorageRead,
    /// Storage buffer, read and written.
    StorageUpdate,
    /// Uniform buffer.
    Uniform,
}

impl Access {
    /// The entry in a pipeline's layout.
    pub(super) fn binding_type(self, storage: Storage, is_half: bool) -> wgpu::BindingType {
        let buffer = |ty| wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
        match (self, storage) {
            (Access::Uniform, _) => buffer(wgpu::BufferBindingType::Uniform),
            // Storage textures, though nothing is stored: they have no levels of detail, which some adapters compute
            // for each load.
            (Access::ActivationRead, Storage::Texture) => wgpu::BindingType::StorageTexture {
                access: wgpu::StorageTextureAccess::ReadOnly,
                format: texel_format(is_half),
                view_dimension: wgpu::TextureViewDimension::D2,
            },
            (Access::StorageRead | Access::ActivationRead, _) => {
                buffer(wgpu::BufferBindingType::Storage { read_only: true })
            }
            (Access::StorageUpdate | Access::ActivationWrite, _) => {
                buffer(wgpu::BufferBindingType::Storage { read_only: false })
            }
        }
    }
}

/// The WGSL that stands for `//# NAME: WORDS`, the binding of that number; nothing where the words mean nothing.
pub(super) fn declared(
    kernel: &Kernel,
    scope: &Scope<'_>,
    number: usize,
    name: &str,
    words: &[&str],
) -> Option<(Access, String)> {
    let at = format!("@group(0) @binding({number}) var");
    let texels = Texels { at: &at, name, half: kernel.halves.contains(&name) };
    let (access, text) = match words {
        ["activation" | "texels", "read", ..] => {
            let text = match kernel.storage {
                Storage::Texture => texels.read_from_texture(),
                Storage::Buffer => texels.read_from_buffer(),
            };
            (Access::ActivationRead, text)
        }
        ["activation", "write", more @ ..] => {
            let pairs = match more.first().and_then(|word| word.strip_prefix("pairs")) {
                Some(extent) => scope.evaluate(extent)? % 2 == 0,
                None => false,
            };
            let text = if kernel.wide { texels.write_wide(pairs) } else { texels.write(pairs) };
            (Access::ActivationWrite, text)
        }
        ["weights", ty, ..] if scope.evaluate("UNIFORM")? == 0 => {
            (Access::StorageRead, format!("{at}<storage, read> {name}: {ty};"))
        }
        ["uniform" | "weights", ty, ..] => (Access::Uniform, format!("{at}<uniform> {name}: {ty};")),
        ["storage", "read", ty, ..] => (Access::StorageRead, format!("{at}<storage, read> {name}: {ty};")),
        ["storage", "update", ty, ..] => (Access::StorageUpdate, format!("{at}<storage, read_write> {name}: {ty};")),
        _ => return None,
    };
    Some((access, text))
}

/// A binding of texels: four f32 each, or four f16 in two words. Either way `NAME_at` gives and `NAME_put` takes f32.
struct Texels<'a> {
    at: &'a str,
    name: &'a str,
    half: bool,
}

impl Texels<'_> {
    fn read_from_texture(&self) -> String {
        let Texels { at, name, half } = self;
        let format = if *half { "rgba16float" } else { "rgba32float" };
        format!(
            "{at} {name}_tex: texture_storage_2d<{format}, read>;\n\
             fn {name}_at(i: u32) -> vec4<f32> {{ return textureLoad({name}_tex, vec2<u32>(i & 2047u, i >> 11u)); }}"
        )
    }

    fn read_from_buffer(&self) -> String {
        let Texels { at, name, half } = self;
        let (texel, unpacked) = if *half { ("vec2<u32>", "from_half") } else { ("vec4<f32>", "") };
        format!(
            "{at}<storage, read> {name}_buf: array<{texel}>;\n\
             fn {name}_at(i: u32) -> vec4<f32> {{ return {unpacked}({name}_buf[i]); }}"
        )
    }

    /// One texel a store, or two of them after each other.
    fn write(&self, pairs: bool) -> String {
        let (texel, packed) = if self.half { ("vec2<u32>", "to_half") } else { ("vec4<f32>", "") };
        let name = self.name;
        let stores = match pairs {
            true => format!("{name}_buf[2u * i + 0u] = {packed}(a); {name}_buf[2u * i + 1u] = {packed}(b);"),
            false => format!("{name}_buf[i] = {packed}(v);"),
        };
        self.written(texel, pairs, &stores)
    }

    /// The same in one store, of words of 64 bits (`shaders/wide.wgsl`).
    fn write_wide(&self, pairs: bool) -> String {
        let words = |v| match self.half {
            true => format!("wide(to_half({v}))"),
            false => format!("wide(bitcast<vec2<u32>>({v}.xy)), wide(bitcast<vec2<u32>>({v}.zw))"),
        };
        let element = match (self.half, pairs) {
            (true, false) => "u64",
            (true, true) | (false, false) => "vec2<u64>",
            (false, true) => "vec4<u64>",
        };
        let words = if pairs { format!("{}, {}", words("a"), words("b")) } else { words("v") };
        self.written(element, pairs, &format!("{}_buf[i] = {element}({words});", self.name))
    }

    fn written(&self, element: &str, pairs: bool, stores: &str) -> String {
        let Texels { at, name, half } = self;
        let (most, upper) = (if *half { HALF_MOST } else { f32::MAX }.to_bits(), name.to_uppercase());
        let put = match pairs {
            true => "put_pair(i: u32, a: vec4<f32>, b: vec4<f32>)",
            false => "put(i: u32, v: vec4<f32>)",
        };
        format!(
            "const {upper}_MOST: u32 = {most}u;\n\
             {at}<storage, read_write> {name}_buf: array<{element}>;\n\
             fn {name}_{put} {{ {stores} }}"
        )
    }
}
