//! Ctrl-C: the first one ends a run as soon as the chunk under way is kept, an evaluation and a study as soon as it is
//! heard; the second one ends the program at once.

use super::tell::complain;
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell gives for a program that ended by Ctrl-C.
const CODE: i32 = 130;

/// Whether Ctrl-C was pressed, and whether that was answered.
#[derive(Default)]
pub(super) struct Interrupt {
    asked: Arc<AtomicBool>,
    answered: AtomicBool,
}

impl Interrupt {
    /// From now on. Where signals cannot be heard, Ctrl-C does what it did.
    pub(super) fn listen() -> Self {
        let interrupt = Interrupt::default();
        // In this order: the first Ctrl-C finds the flag down and raises it, the second one finds it up.
        if flag::register_conditional_shutdown(SIGINT, CODE, interrupt.asked.clone()).is_ok() {
            let _ = flag::register(SIGINT, interrupt.asked.clone());
        }
        interrupt
    }

    /// Whether to stop; `then` is what happens next, told once.
    pub(super) fn is_asked(&self, then: &str) -> bool {
        let asked = self.asked.load(Ordering::SeqCst);
        if asked && !self.answered.swap(true, Ordering::SeqCst) {
            complain("note", &format!("interrupted: {then}; once more, and the program ends at once"));
        }
        asked
    }
}
