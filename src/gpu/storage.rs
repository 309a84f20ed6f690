//! Where activations lie on a device. Imports nothing.

/// Texels in a row of a texture that holds an activation; a power of two, as the generated accessors assume.
pub(crate) const TEXTURE_WIDTH: u64 = 2048;

/// Where activations lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// A storage buffer of `vec4<f32>`.
    Buffer,
    /// A 2D texture of rgba32float, written by way of a buffer: up to a third faster on software adapters
    /// (`benches/NOTES.md`).
    Texture,
}
