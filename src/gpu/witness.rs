//! Whether work that counts as done was done. Metal does not say: a submission that the system ends early, because it
//! took long or memory was short, counts as finished like any other (wgpu issue 9545), and what it had to write is
//! stale. So every submission of a network's work (not what `trial.rs` times) ends by handing on a word, from where the
//! one before it left it, and whoever reads results reads the word with them. Where a submission was ended early the
//! word is lost, and stays lost until a call is refused.

use super::turns::Held;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The word.
const WORD: u64 = 0x5157_e55e_d0e5_1f00;

/// Its bytes.
pub(super) const BYTES: u64 = 8;

/// Places that the word goes round: from where it is, to where it goes, and one that is cleared for the next.
#[derive(Debug)]
pub(super) struct Witness {
    places: [Held<wgpu::Buffer>; 3],
    /// Where it is. Held while a submission is recorded and handed over, so that the word goes the way that submissions
    /// go.
    at: Mutex<usize>,
}

impl Witness {
    pub(super) fn new(device: &wgpu::Device, is_gl: bool) -> Self {
        let place = |has_word: bool| {
            let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("witness"),
                size: BYTES,
                usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: has_word,
            });
            if has_word {
                // Where there is no such range the buffer is none either, which the scope around this tells.
                if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
                    range.copy_from_slice(&WORD.to_le_bytes());
                }
                buffer.unmap();
            }
            Held::new(buffer, is_gl)
        };
        Witness { places: [place(true), place(false), place(false)], at: Mutex::new(0) }
    }

    /// From now until the guard goes, no other submission is recorded.
    pub(super) fn turn(&self) -> MutexGuard<'_, usize> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the word on at the end of a submission, and to `staging` at `offset` where results are read.
    pub(super) fn hand_on(
        &self,
        at: &mut usize,
        encoder: &mut wgpu::CommandEncoder,
        staging: Option<(&wgpu::Buffer, u64)>,
    ) {
        let (from, to, next) = (*at, (*at + 1) % 3, (*at + 2) % 3);
        encoder.copy_buffer_to_buffer(&self.places[from], 0, &self.places[to], 0, BYTES);
        encoder.clear_buffer(&self.places[next], 0, None);
        if let Some((staging, offset)) = staging {
            encoder.copy_buffer_to_buffer(&self.places[to], 0, staging, offset, BYTES);
        }
        *at = to;
    }

    /// Puts the word where it should be, for a submission that was refused has not handed it on. Which one was refused
    /// nobody tells: a word that was lost in work that nobody has read yet is found again, too.
    pub(super) fn renew(&self, queue: &wgpu::Queue) {
        let at = self.turn();
        queue.write_buffer(&self.places[*at], 0, &WORD.to_le_bytes());
    }
}

/// Whether this is the word.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    bytes == WORD.to_le_bytes()
}
