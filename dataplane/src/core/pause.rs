//! Pauses of a fraction of a millisecond, for which the runtime's timer is too coarse.
//!
//! The tasks of a core share one timer: the first one that pauses sets it, and when it fires, all
//! of them go on. So a pause takes [`PAUSE`] or less, and longer only while the core has something
//! else to do. A core needs one descriptor for the timer, which it opens at its first pause.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{panics, task};
use crate::sys::timer::FineTimer;

/// The length of a pause. Network cards that moderate their interrupts wait as long under load.
pub(crate) const PAUSE: Duration = Duration::from_micros(100);

struct Pauses {
    timer: FineTimer,
    is_set: Cell<bool>,
    /// Number of times that pauses have ended.
    ended: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
    /// Whether the task that waits for the timer has ended.
    is_broken: Cell<bool>,
}

thread_local! {
    /// Never dropped, because the runtime that the timer belongs to ends first. A thread has one
    /// runtime; the tasks of a second one would wait for the timer of the first.
    static OF_THIS_CORE: ManuallyDrop<RefCell<Option<Rc<Pauses>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
    static SAID: Cell<bool> = const { Cell::new(false) };
}

/// The error of a core that has no timer for pauses, for example because the process has no
/// descriptor left. It was logged.
#[derive(Debug)]
pub(crate) struct NoTimer;

/// Waits for [`PAUSE`], or until the end of a pause that another task has begun. Cancel-safe.
///
/// # Errors
/// If there is no timer. The caller then does without pauses: trying again would not wait either.
pub(crate) async fn pause() -> Result<(), NoTimer> {
    let pauses = Pauses::of_this_core().map_err(|error| no_timer(&error))?;
    if !pauses.is_set.get() {
        pauses.timer.set(PAUSE).map_err(|error| no_timer(&error))?;
        pauses.is_set.set(true);
    }
    let before = pauses.ended.get();
    poll_fn(|cx| {
        if pauses.ended.get() != before {
            return Poll::Ready(());
        }
        let mut waiting = pauses.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    })
    .await;
    if pauses.is_broken.get() {
        return Err(NoTimer);
    }
    Ok(())
}

/// Logs, once for each core, that there is no timer.
fn no_timer(error: &io::Error) -> NoTimer {
    if !SAID.replace(true) {
        tracing::warn!(%error, "no timer for pauses; busy UDP sockets are read more often than they should be");
    }
    NoTimer
}

#[cfg(test)]
thread_local! {
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

/// Makes every pause of this thread fail, as if there were no descriptor for its timer.
#[cfg(test)]
pub(crate) fn fail_from_now_on() {
    FAILS.set(true);
}

/// Makes the next pause of this thread last for ever.
#[cfg(test)]
pub(crate) fn last_for_ever() {
    let pauses = Pauses::of_this_core().expect("a timer");
    pauses.is_set.set(true);
}

impl Pauses {
    fn of_this_core() -> io::Result<Rc<Pauses>> {
        #[cfg(test)]
        if FAILS.get() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        OF_THIS_CORE.with(|cell| {
            let mut of_this_core = cell.borrow_mut();
            if let Some(pauses) = &*of_this_core
                && !pauses.is_broken.get()
            {
                return Ok(Rc::clone(pauses));
            }
            let pauses = Rc::new(Pauses {
                timer: FineTimer::new()?,
                is_set: Cell::new(false),
                ended: Cell::new(0),
                waiting: RefCell::default(),
                is_broken: Cell::new(false),
            });
            let broken = Rc::clone(&pauses);
            task::spawn_or(Rc::clone(&pauses).end_pauses(), move || broken.give_up());
            *of_this_core = Some(Rc::clone(&pauses));
            Ok(pauses)
        })
    }

    async fn end_pauses(self: Rc<Self>) {
        loop {
            let fired = self.timer.fired().await;
            panics::may_be_injected("pause");
            if let Err(error) = fired {
                no_timer(&error);
                return self.give_up();
            }
            self.end_pause();
        }
    }

    fn end_pause(&self) {
        self.is_set.set(false);
        self.ended.set(self.ended.get() + 1);
        for waker in self.waiting.borrow_mut().drain(..) {
            super::busy_poll::woken();
            waker.wake();
        }
    }

    /// Ends the pause under way, because the task that waits for the timer has ended. The next
    /// pause gets a new timer.
    fn give_up(&self) {
        self.is_broken.set(true);
        self.end_pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::panics::injected;

    #[test]
    fn tasks_that_pause_together_go_on_together_and_can_pause_again() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let over = Rc::new(Cell::new(0));
            for _ in 0..3 {
                let over = Rc::clone(&over);
                task::spawn(async move {
                    pause().await.expect("a timer");
                    over.set(over.get() + 1);
                });
            }
            for _ in 0..3 {
                pause().await.expect("a timer");
            }
            assert_eq!(over.get(), 3);
            let pauses = Pauses::of_this_core().expect("a timer");
            assert_eq!(pauses.ended.get(), 3);
            assert!(pauses.waiting.borrow().is_empty());
        });
    }

    #[test]
    fn a_timer_that_fails_ends_the_pause_and_the_next_pause_has_a_new_timer() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            injected::expect_at("pause");
            assert!(pause().await.is_err(), "it ends, and says so");
            pause().await.expect("another timer");
        });
    }
}
