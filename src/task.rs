//! Work on a thread of its own, as a future that any executor can poll: [`Task`]. Nothing but the standard library, so
//! a host program keeps its own runtime, or none.

use crate::attack::{Attack, Engine, Outcome};
use crate::error::{Error, Result};
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Work under way on a thread of its own. Await it, or [`Task::wait`] for it; dropping it cancels the work.
///
/// `Send`, `Sync` and `Unpin` for every `T: Send`. A panic of the work comes out as [`Error::Internal`].
///
/// # Cancelling
/// An attack looks at [`Control`] whenever a submission of steps has ended, and stops there: at most the one submission
/// that is under way already (well under a second on most devices) still runs. It looks as well before each chunk whose
/// logits are taken, and while it waits for its turn on a network that another one runs. Other work stops where it asks
/// the control.
///
/// ```no_run
/// # use signstep::{Attack, Network, Task, attack::Engine};
/// # use std::sync::Arc;
/// # async fn f(net: Arc<Network>, images: Vec<f32>, labels: Vec<i64>) -> signstep::Result<()> {
/// let logits = {
///     let (net, images) = (net.clone(), images.clone());
///     Task::spawn(move |_| net.logits(&images)).await?
/// };
/// let attack = Attack::ifgsm(0.3).spawn(net, images, labels);
/// println!("{} sample-steps so far", attack.done());
/// let outcome = attack.await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a task that is dropped is cancelled"]
#[derive(Debug)]
pub struct Task<T> {
    shared: Arc<Shared<T>>,
    control: Control,
}

/// What the work and its [`Task`] tell each other: progress one way, the wish to stop the other.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<Signals>);

#[derive(Debug, Default)]
struct Signals {
    done: AtomicU64,
    cancelled: AtomicBool,
}

#[derive(Debug)]
struct Shared<T> {
    stage: Mutex<Stage<T>>,
    ended: Condvar,
}

#[derive(Debug)]
enum Stage<T> {
    /// Whoever polled last is to be woken.
    Running(Option<Waker>),
    Ended(Result<T>),
    Taken,
}

impl Control {
    /// Tells that so much more is done (of an attack: sample-steps), and learns whether to go on. In the shape of a
    /// progress callback: `&mut |n| control.advance(n)`.
    pub fn advance(&self, done: u64) -> bool {
        self.0.done.fetch_add(done, Ordering::SeqCst);
        !self.is_cancelled()
    }

    /// True when the work should stop, with [`Error::Cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
}

impl<T> Shared<T> {
    fn stage(&self) -> MutexGuard<'_, Stage<T>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, result: Result<T>) {
        let before = std::mem::replace(&mut *self.stage(), Stage::Ended(result));
        self.ended.notify_all();
        if let Stage::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T: Send + 'static> Task<T> {
    /// Starts `work` on a thread of its own.
    pub fn spawn(work: impl FnOnce(&Control) -> Result<T> + Send + 'static) -> Self {
        let control = Control::default();
        let shared = Arc::new(Shared { stage: Mutex::new(Stage::Running(None)), ended: Condvar::new() });
        let (theirs, ours) = (control.clone(), shared.clone());
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&theirs)));
            ours.end(
                result.unwrap_or_else(|panic| Err(Error::Internal(format!("a task panicked: {}", words(&*panic))))),
            );
        };
        if let Err(e) = std::thread::Builder::new().name("signstep".into()).spawn(body) {
            shared.end(Err(Error::Internal(format!("no thread for a task: {e}"))));
        }
        Task { shared, control }
    }
}

impl<T> Task<T> {
    /// How much is done: of an attack, sample-steps (for the total see [`Attack::run_with`]).
    pub fn done(&self) -> u64 {
        self.control.0.done.load(Ordering::SeqCst)
    }

    /// Asks the work to stop. It ends soon, with [`Error::Cancelled`] unless it was through already.
    pub fn cancel(&self) {
        self.control.0.cancelled.store(true, Ordering::SeqCst);
    }

    /// True when awaiting or waiting would not have to wait.
    pub fn is_finished(&self) -> bool {
        !matches!(*self.shared.stage(), Stage::Running(_))
    }

    /// Blocks until the work has ended.
    ///
    /// # Errors
    /// Those of the work, and [`Error::Internal`] when it panicked.
    pub fn wait(self) -> Result<T> {
        let mut stage = self.shared.stage();
        while matches!(*stage, Stage::Running(_)) {
            stage = self.shared.ended.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        taken(&mut stage)
    }
}

fn taken<T>(stage: &mut Stage<T>) -> Result<T> {
    match std::mem::replace(stage, Stage::Taken) {
        Stage::Ended(result) => result,
        _ => Err(Error::Usage("a task gives its result once".into())),
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut stage = self.shared.stage();
        if let Stage::Running(waker) = &mut *stage {
            match waker {
                Some(known) => known.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(taken(&mut stage))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

impl Attack {
    /// Runs the attack as a [`Task`], with its progress in sample-steps.
    pub fn spawn(self, engine: Arc<dyn Engine + Send + Sync>, images: Vec<f32>, labels: Vec<i64>) -> Task<Outcome> {
        Task::spawn(move |control| self.run_with(&*engine, &images, &labels, &mut |n| control.advance(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_cross_threads() {
        fn crosses<T: Send + Sync + Unpin>() {}
        // A result need only be Send: it is handed over, never shared.
        crosses::<Task<std::cell::Cell<u8>>>();
        crosses::<Control>();
        crosses::<crate::Gpu>();
        crosses::<crate::Network>();
        crosses::<crate::Reference>();
        crosses::<crate::Model>();
        crosses::<crate::Plan>();
        crosses::<crate::Attack>();
        crosses::<crate::Outcome>();
        crosses::<crate::Error>();
    }

    #[test]
    fn a_panic_comes_out_as_an_error() {
        let said = |task: Task<u8>| task.wait().unwrap_err().to_string();
        assert!(said(Task::spawn(|_| panic!("of {}", "form"))).contains("of form"));
        assert!(said(Task::spawn(|_| panic!("plain"))).contains("plain"));
        assert!(said(Task::spawn(|_| std::panic::panic_any(7_u8))).contains("without a word"));
    }

    #[test]
    fn dropping_cancels_and_a_result_is_given_once() {
        let (send, receive) = std::sync::mpsc::channel();
        drop(Task::spawn(move |control| {
            while control.advance(1) {
                std::thread::yield_now();
            }
            send.send(()).expect("the test waits");
            Err::<(), _>(Error::Cancelled)
        }));
        receive.recv_timeout(std::time::Duration::from_secs(60)).expect("it was told to stop");

        let mut task = Task::spawn(|_| Ok(5));
        assert_eq!(pollster::block_on(&mut task), Ok(5));
        assert!(task.is_finished());
        assert!(matches!(pollster::block_on(&mut task), Err(Error::Usage(_))));
    }
}
