//! Clean images as they are attacked, and what the network says of them.

use super::engine::{Engine, Logits};
use super::health::Health;
use super::quantise::snap;
use super::settings::Attack;
use crate::error::Result;

impl Attack {
    /// Clean images as they are attacked: snapped to k/255 where bytes are delivered; and the largest move.
    pub(super) fn as_attacked(&self, images: &[f32]) -> (Vec<f32>, f32) {
        if self.delivers_bytes() { snap(images) } else { (images.to_vec(), 0.0) }
    }
}

/// What the network says of clean images.
pub(super) fn look_at_clean(
    engine: &dyn Engine,
    clean: &[f32],
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Logits> {
    let mut seen = engine.logits_with(clean, progress)?;
    for (health, image) in seen.health.iter_mut().zip(clean.chunks(engine.model().input.len())) {
        // A network may never look at this pixel (a stride can pass it by), but the image is not sound.
        if !image.iter().all(|x| x.is_finite()) {
            health.0 |= Health::ACTIVATION.0;
        }
    }
    Ok(seen)
}
