//! Pauses of a fraction of a millisecond, for which the runtime's timer is too coarse.
//!
//! The tasks of a core share one timer: the first one that pauses sets it, and when it fires, all
//! of them go on. So a pause takes [`PAUSE`] or less, and a core needs one descriptor for it, which
//! it opens when it is first needed.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::task;
use crate::sys::timer::FineTimer;

/// The longest pause. Network cards that moderate their interrupts wait as long under load.
pub(crate) const PAUSE: Duration = Duration::from_micros(100);

struct Pauses {
    timer: FineTimer,
    is_set: Cell<bool>,
    /// Number of times that the timer has fired.
    fired: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
    /// Whether waiting for the timer has failed, so that nobody may wait any more.
    is_broken: Cell<bool>,
}

thread_local! {
    /// Never dropped, because the runtime that the timer belongs to ends first.
    static OF_THIS_CORE: ManuallyDrop<OnceCell<Option<Rc<Pauses>>>> =
        const { ManuallyDrop::new(OnceCell::new()) };
}

/// Waits for [`PAUSE`] at most; not at all if the process has no descriptor left for a timer.
/// Cancel-safe.
pub(crate) async fn pause() {
    let pauses = OF_THIS_CORE.with(|cell| cell.get_or_init(Pauses::start).clone());
    let Some(pauses) = pauses else { return };
    if pauses.is_broken.get() {
        return;
    }
    if !pauses.is_set.replace(true) && pauses.timer.set(PAUSE).is_err() {
        pauses.is_set.set(false);
        return;
    }
    let before = pauses.fired.get();
    poll_fn(|cx| {
        if pauses.fired.get() != before {
            return Poll::Ready(());
        }
        let mut waiting = pauses.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    })
    .await;
}

impl Pauses {
    fn start() -> Option<Rc<Pauses>> {
        let pauses = Rc::new(Pauses {
            timer: FineTimer::new().ok()?,
            is_set: Cell::new(false),
            fired: Cell::new(0),
            waiting: RefCell::default(),
            is_broken: Cell::new(false),
        });
        task::spawn(Rc::clone(&pauses).end_pauses());
        Some(pauses)
    }

    async fn end_pauses(self: Rc<Self>) {
        let mut woken = Vec::new();
        loop {
            let result = self.timer.fired().await;
            self.is_broken.set(result.is_err());
            self.is_set.set(false);
            self.fired.set(self.fired.get() + 1);
            std::mem::swap(&mut woken, &mut *self.waiting.borrow_mut());
            for waker in woken.drain(..) {
                waker.wake();
            }
            if result.is_err() {
                return;
            }
        }
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
                    pause().await;
                    over.set(over.get() + 1);
                });
            }
            for _ in 0..3 {
                pause().await;
            }
            assert_eq!(over.get(), 3);
            let pauses = OF_THIS_CORE.with(|cell| cell.get().cloned().flatten());
            let pauses = pauses.expect("a timer");
            assert_eq!(pauses.fired.get(), 3);
            assert!(pauses.waiting.borrow().is_empty());
        });
    }
}
