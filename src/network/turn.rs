//! Turns: a network runs for one thread at a time.

use super::memory::State;
use crate::error::{Error, Result};
use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

/// How long a thread that waits for its turn goes without asking whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(10);

thread_local! {
    /// Networks that this thread is in the middle of running.
    static RUNS: Cell<usize> = const { Cell::new(0) };
}

/// Whose turn it is to run.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The thread whose run it is.
    running: Mutex<Option<ThreadId>>,
    ended: Condvar,
}

/// A run under way: the state is this thread's alone.
pub(super) struct Running<'a> {
    pub state: MutexGuard<'a, State>,
    pub turn: &'a Turn,
}

impl Turn {
    fn running(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody runs, and has the run for this thread. `progress` is asked now and then, with nothing held.
    pub fn take(&self, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let me = std::thread::current().id();
        let mut running = self.running();
        while let Some(thread) = *running {
            if thread == me {
                return Err(Error::Usage("a network cannot be run from the progress callback of its own run".into()));
            }
            if RUNS.get() > 0 {
                let why = "a network that is busy cannot be waited for from the progress callback of another";
                return Err(Error::Usage(why.into()));
            }
            drop(self.ended.wait_timeout(running, PATIENCE).unwrap_or_else(PoisonError::into_inner));
            if !progress(0) {
                return Err(Error::Cancelled);
            }
            running = self.running();
        }
        *running = Some(me);
        RUNS.set(RUNS.get() + 1);
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.turn.running() = None;
        self.turn.ended.notify_one();
        RUNS.set(RUNS.get() - 1);
    }
}
