//! GL has one context for all threads, and wgpu panics where a thread waits for it for 6 s. So on GL threads take turns
//! before they reach the library, in the order in which they came and for as long as it takes. Other back ends need
//! none of this.

use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// For all devices of a process: a context may be of several, where a host program handed over its device twice.
static TURNS: Turns = Turns::new();

/// Whose turn it is. A thread that has its turn may take it again, for what is dropped in the midst of a call takes
/// one, too.
#[derive(Debug)]
struct Turns {
    line: Mutex<Line>,
    moved: Condvar,
}

#[derive(Debug)]
struct Line {
    /// Numbers given out, and the one whose turn it is.
    given: u64,
    now: u64,
    /// Who has it, and how often.
    holder: Option<(ThreadId, u32)>,
}

/// A thread's turn, until it is dropped.
#[derive(Debug)]
#[must_use = "a turn ends when it is dropped"]
pub(crate) struct Turn {
    turns: &'static Turns,
    /// It ends on the thread that took it.
    _stays: std::marker::PhantomData<*const ()>,
}

/// Waits for this thread's turn, on GL. Whoever has it runs nobody else's code and takes no other lock that is held
/// while a turn is waited for.
pub(super) fn take(is_gl: bool) -> Option<Turn> {
    is_gl.then(|| TURNS.take())
}

/// Something of the library's, whose drop reaches the context as well.
#[derive(Debug)]
pub(crate) struct Held<T> {
    thing: Option<T>,
    is_gl: bool,
}

impl<T> Held<T> {
    pub(super) fn new(thing: T, is_gl: bool) -> Self {
        Held { thing: Some(thing), is_gl }
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.thing.as_ref().expect("there until it is dropped")
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _turn = take(self.is_gl);
        self.thing = None;
    }
}

impl Turns {
    const fn new() -> Self {
        Turns { line: Mutex::new(Line { given: 0, now: 0, holder: None }), moved: Condvar::new() }
    }

    /// Nothing under this lock panics; a turn itself is held by no lock, and ends with its holder's panic.
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self) -> Turn {
        let me = std::thread::current().id();
        let mut line = self.line();
        match &mut line.holder {
            Some((holder, times)) if *holder == me => *times += 1,
            _ => {
                let mine = line.given;
                line.given += 1;
                while line.now != mine {
                    line = self.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
                }
                line.holder = Some((me, 1));
            }
        }
        Turn { turns: self, _stays: std::marker::PhantomData }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        if let Some((_, times)) = &mut line.holder {
            *times -= 1;
            if *times == 0 {
                line.holder = None;
                line.now += 1;
                self.turns.moved.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn one_thread_at_a_time_whatever_panics_and_however_often_it_is_taken() {
        static LINE: Turns = Turns::new();
        let inside = AtomicU32::new(0);
        let work = |panics: bool| {
            let _turn = LINE.take();
            let _again = LINE.take();
            drop(LINE.take());
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            std::thread::yield_now();
            assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
            assert!(!panics, "on purpose");
        };
        std::thread::scope(|threads| {
            for i in 0..8 {
                threads.spawn(move || {
                    for j in 0..200 {
                        let panics = (i + j) % 50 == 0;
                        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(panics)));
                        assert_eq!(ended.is_err(), panics);
                    }
                });
            }
        });
        assert!(LINE.line().holder.is_none());
    }

    /// Who goes on and on lets others in.
    #[test]
    fn turns_come_in_order() {
        static LINE: Turns = Turns::new();
        let done = AtomicU32::new(0);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while done.load(Ordering::SeqCst) < 20 {
                    let _turn = LINE.take();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            for _ in 0..20 {
                let before = LINE.line().now;
                drop(LINE.take());
                let after = LINE.line().now;
                // The one who has it and, where it came in between, the next.
                assert!(after - before <= 4, "waited for {} turns", after - before);
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}
