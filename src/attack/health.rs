//! Health: whether NaN or infinity arose in a sample, and where. Imports nothing.

/// Where NaN or infinity arose in a sample; nothing set means healthy.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Health(pub u32);

impl Health {
    /// In an activation of the forward pass.
    pub const ACTIVATION: Health = Health(1);
    /// In the logits or the loss.
    pub const LOGITS: Health = Health(2);
    /// In the gradient.
    pub const GRADIENT: Health = Health(4);

    /// True when nothing is marked.
    pub fn is_healthy(self) -> bool {
        self.0 == 0
    }

    /// Where the first mark was made, in words.
    pub fn describe(self) -> &'static str {
        match self.0 {
            0 => "healthy",
            bits if bits & 1 != 0 => "an activation is NaN or infinite",
            bits if bits & 2 != 0 => "a logit or the loss is NaN or infinite",
            _ => "the input gradient is NaN or infinite",
        }
    }
}
