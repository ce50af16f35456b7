//! Pauses of a fraction of a millisecond, for which the runtime's timer is too coarse.
//!
//! The tasks of a core share one timer: the first one that pauses sets it, and when it fires, all
//! of them go on. So a pause takes [`PAUSE`] or less, and longer only while the core has something
//! else to do; and a core needs one descriptor for it, which it opens when it is first needed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::task;
use crate::sys::timer::FineTimer;

/// The length of a pause. Network cards that moderate their interrupts wait as long under load.
pub(crate) const PAUSE: Duration = Duration::from_micros(100);

struct Pauses {
    timer: FineTimer,
    is_set: Cell<bool>,
    /// Number of times that pauses have ended.
    ended: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
    /// Whether nobody waits for the timer any more.
    is_broken: Cell<bool>,
}

thread_local! {
    /// Never dropped, because the runtime that the timer belongs to ends first. A thread has one
    /// runtime; the tasks of a second one would wait for the timer of the first.
    static OF_THIS_CORE: ManuallyDrop<RefCell<Option<Rc<Pauses>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

/// Waits for [`PAUSE`], or until a pause ends that another task has begun. Cancel-safe.
///
/// # Errors
/// If there is no timer for it: the process has no descriptor left, for example. Nothing was waited
/// for then, and the caller must not simply try again.
pub(crate) async fn pause() -> io::Result<()> {
    let pauses = Pauses::of_this_core()?;
    if !pauses.is_set.get() {
        pauses.timer.set(PAUSE)?;
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
    Ok(())
}

#[cfg(test)]
thread_local! {
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

/// Has every pause of this thread fail, as if there were no descriptor for its timer.
#[cfg(test)]
pub(crate) fn fail_from_now_on() {
    FAILS.set(true);
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
        while self.timer.fired().await.is_ok() {
            self.end_pause();
        }
        self.give_up();
    }

    fn end_pause(&self) {
        self.is_set.set(false);
        self.ended.set(self.ended.get() + 1);
        // Taken out, because whoever is woken may pause again.
        let mut woken = self.waiting.take();
        for waker in woken.drain(..) {
            waker.wake();
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.capacity() == 0 {
            *waiting = woken;
        }
    }

    /// Nobody waits for the timer any more: ends the last pause. The next one is another timer's.
    fn give_up(&self) {
        self.is_broken.set(true);
        self.end_pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_timer_that_breaks_ends_the_pause_and_the_next_one_has_another() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let pauses = Pauses::of_this_core().expect("a timer");
            pauses.is_set.set(true); // Which nobody has done: it never fires.
            task::spawn(async move { pauses.give_up() });
            pause().await.expect("it ends");
            pause().await.expect("another timer");
        });
    }
}
