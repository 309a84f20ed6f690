//! Between a run and its images: a run says which samples are tried and judges what became of them, and whoever has the
//! images takes the steps.

use super::engine::Logits;
use super::health::Health;
use super::sample::Sample;
use crate::error::Result;

/// The images of a run, wherever they lie.
pub(crate) trait Pixels {
    /// Snaps the clean images to k/255 where bytes are delivered, and looks at them: their logits, and the largest
    /// move. From here on what would be delivered is the clean images.
    fn clean(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(Logits, f32)>;

    /// Takes an attack's steps with the images of `rows`. `verdict` is told of one after the other; where it says so
    /// the image, rounded where bytes are delivered, takes the place of what would have been delivered.
    fn attempt(
        &mut self,
        rows: &[usize],
        samples: &[Sample],
        progress: &mut dyn FnMut(u64) -> bool,
        verdict: &mut dyn Verdict,
    ) -> Result<()>;
}

/// What decides over an attempt.
pub(crate) trait Verdict {
    /// Whether these logits are what the attack on row `i` is after: then it may stop.
    fn is_hit(&self, i: usize, logits: &[f32]) -> bool;

    /// What became of row `i`; whether its image is to be delivered.
    fn judge(&mut self, i: usize, tried: Tried<'_>) -> bool;
}

/// What became of one row in one restart.
pub(crate) struct Tried<'a> {
    /// Logits of the last iterate.
    pub float: &'a [f32],
    /// Logits of what would be delivered.
    pub rounded: &'a [f32],
    /// Steps taken.
    pub steps: u32,
    pub zero_gradients: u64,
    pub health: Health,
}
