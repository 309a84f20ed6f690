//! Faults on demand, for tests: the n-th call to the GPU library fails as it could fail, for every n. Without a plan
//! there is nothing here but one question to an empty cell.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Memory is short: said at the end of the scope that the call is in, as drivers do.
    Memory,
    /// The call is refused: a real complaint of the library, from a buffer that cannot be.
    Refused,
    /// The device goes away, really, before the call.
    Lost,
    /// The next submission that is waited for does not end in time.
    Timeout,
    /// The work of the next submission is not done, and it counts as finished all the same.
    Dropped,
}

thread_local! {
    static NEXT: Cell<Option<(u64, Fault)>> = const { Cell::new(None) };
}

/// The device that is opened next on this thread is to fail at its `call`-th call (from 1).
pub fn plan_for_next(call: u64, fault: Fault) {
    NEXT.set(Some((call, fault)));
}

/// Calls that are counted, the one that is to fail, and a fault that has yet to be told.
#[derive(Debug)]
pub(super) struct Faults {
    calls: AtomicU64,
    plan: Mutex<Option<(u64, Fault)>>,
    pending: Mutex<Option<Fault>>,
}

impl Faults {
    /// As planned for this thread's next device, if anything is.
    pub(super) fn planned() -> Option<Self> {
        NEXT.take().map(|(call, fault)| Self::new(call, fault))
    }

    pub(super) fn new(call: u64, fault: Fault) -> Self {
        Faults { calls: AtomicU64::new(0), plan: Mutex::new(Some((call, fault))), pending: Mutex::new(None) }
    }

    /// Counts anew.
    pub(super) fn plan(&self, call: u64, fault: Fault) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, fault));
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.calls.store(0, Ordering::SeqCst);
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Counts a call, and lets it fail if it is the one; a fault that this call cannot have waits for the next one that
    /// can.
    pub(super) fn strike(&self, device: &wgpu::Device, can_be_refused: bool) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let is_due = |(n, fault): &mut (u64, Fault)| *n <= call && (can_be_refused || *fault != Fault::Refused);
        let due = self.plan.lock().unwrap_or_else(PoisonError::into_inner).take_if(is_due);
        let Some((_, fault)) = due else { return };
        match fault {
            Fault::Lost => device.destroy(),
            Fault::Refused => drop(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("what cannot be"),
                size: 4,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })),
            Fault::Memory | Fault::Timeout | Fault::Dropped => {
                *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
            }
        }
    }

    /// Whether `fault` is to be told now.
    pub(super) fn take(&self, fault: Fault) -> bool {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.take_if(|f| *f == fault).is_some()
    }
}
