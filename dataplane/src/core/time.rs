//! The core's timers: the only ones that tasks wait for.
//!
//! The runtime looks at its own timers only when it goes to sleep, and it does not sleep while a
//! task is ready. On a core that always has something to do, for example under a flood, no timer
//! would fire: no heartbeat, no end of a drain, no expiry. So the deadlines are kept here, and
//! checked after every turn of every task ([`super::task`]), at the cost of one comparison with the
//! time that the turn reads anyway. A single timer of the runtime is left, which ends an idle
//! core's sleep.
//!
//! Deadlines are exact while the core is busy. An idle core wakes up to a millisecond late, which
//! is the step of the runtime's timer.

mod deadlines;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use deadlines::{Deadlines, Key};

/// The most tasks that one check wakes; the others are woken by the next check, one turn later.
/// Waking one takes some 50 ns.
const WOKEN_PER_LOOK_MAX: usize = 1_024;

/// The step of the runtime's timer.
const STEP: Duration = Duration::from_millis(1);

/// A year: a timer that is set to this never fires in practice.
const FAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// The timers of this thread.
struct Timers {
    deadlines: RefCell<Deadlines>,
    /// The earliest deadline.
    next: Cell<Option<Instant>>,
    /// The timer of the runtime that wakes an idle core.
    alarm: RefCell<Option<Pin<Box<monoio::time::Sleep>>>>,
    /// The time at which it fires: not later than `next`.
    alarm_at: Cell<Option<Instant>>,
    /// Whether the task that waits for it has been started.
    driven: Cell<bool>,
}

thread_local! {
    /// The timers are never dropped: a thread has one runtime and ends with it, and the tasks that
    /// it leaves must not be dropped after it.
    static TIMERS: ManuallyDrop<Timers> = const {
        ManuallyDrop::new(Timers {
            deadlines: RefCell::new(Deadlines::new()),
            next: Cell::new(None),
            alarm: RefCell::new(None),
            alarm_at: Cell::new(None),
            driven: Cell::new(false),
        })
    };
}

/// Waits for `duration` from now.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    let now = Instant::now();
    sleep_until(now.checked_add(duration).unwrap_or_else(|| now + FAR))
}

/// Waits until `at`.
pub(crate) fn sleep_until(at: Instant) -> Sleep {
    Sleep {
        at,
        key: None,
        _of_this_thread: PhantomData,
    }
}

/// Runs `work` to its end, for at most `duration`. Dropping `work` half-way must lose nothing.
///
/// # Errors
/// If the time is over first.
pub(crate) async fn timeout<T>(
    duration: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    let mut sleep = sleep(duration);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// The time was over before the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub(crate) struct Elapsed;

/// A future that is ready at its deadline.
#[derive(Debug)]
#[must_use = "it does nothing unless it is awaited"]
pub(crate) struct Sleep {
    at: Instant,
    /// The entry among the deadlines; there is one from the first poll on.
    key: Option<Key>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Sleep {
    fn give_up(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = TIMERS.with(|timers| timers.remove(key));
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ready = TIMERS.with(|timers| match self.key {
            Some(key) => timers.is_out(key, cx.waker()),
            None if self.at <= Instant::now() => true,
            None => {
                self.key = Some(timers.insert(self.at, cx.waker().clone()));
                false
            }
        });
        if !ready {
            return Poll::Pending;
        }
        self.give_up();
        Poll::Ready(())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Wakes everybody whose deadline is not after `now`. Must be called at the end of each turn.
pub(super) fn look(now: Instant) {
    TIMERS.with(|timers| {
        if timers.next.get().is_some_and(|next| next <= now) {
            timers.wake_due(now);
        }
    });
}

impl Timers {
    fn insert(&self, at: Instant, waker: Waker) -> Key {
        let key = self.deadlines.borrow_mut().insert(at, waker);
        if self.next.get().is_none_or(|next| at < next) {
            self.next.set(Some(at));
            self.set_alarm(at);
        }
        key
    }

    /// Whether the deadline of this entry has passed; until then `waker` is the one to be woken.
    fn is_out(&self, key: Key, waker: &Waker) -> bool {
        if self.deadlines.borrow().is_out(key) {
            return true;
        }
        let other = self.deadlines.borrow_mut().set_waker(key, waker);
        drop(other);
        false
    }

    #[must_use]
    fn remove(&self, key: Key) -> Option<Waker> {
        let mut deadlines = self.deadlines.borrow_mut();
        let waker = deadlines.remove(key);
        self.next.set(deadlines.next());
        waker
    }

    fn wake_due(&self, now: Instant) {
        for _ in 0..WOKEN_PER_LOOK_MAX {
            let due = self.deadlines.borrow_mut().pop_due(now);
            let Some(waker) = due else { break };
            super::busy_poll::woken();
            waker.wake();
        }
        let next = self.deadlines.borrow().next();
        self.next.set(next);
        if self.alarm_at.get().is_some_and(|at| at <= now) {
            self.alarm_at.set(None);
            if let Some(next) = next {
                self.set_alarm(next);
            }
        }
    }

    /// Wakes tasks that are due whenever the alarm has fired. It is never ready.
    fn poll_alarm(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.poll_alarm_once(cx).is_ready() {
            let now = Instant::now();
            self.alarm_at.set(None);
            self.wake_due(now);
            // Tasks that this check did not wake are woken at the end of this turn, or of the next.
            let at = self.next.get().unwrap_or(now + FAR).max(now + STEP);
            self.alarm_at.set(Some(at));
            self.reset_alarm(at);
        }
        Poll::Pending
    }

    fn poll_alarm_once(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.alarm.borrow_mut() {
            Some(alarm) => alarm.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn reset_alarm(&self, at: Instant) {
        if let Some(alarm) = &mut *self.alarm.borrow_mut() {
            alarm.as_mut().reset(at.into());
        }
    }

    /// Makes the runtime wake the core at `at`, if it sleeps then.
    fn set_alarm(&self, at: Instant) {
        if !self.driven.replace(true) {
            super::task::spawn(drive());
        }
        if self.alarm_at.get().is_none_or(|alarm| at < alarm) {
            self.alarm_at.set(Some(at));
            self.reset_alarm(at);
        }
    }
}

/// Waits for the runtime's timer, again and again.
async fn drive() {
    TIMERS.with(|timers| {
        let at = timers.alarm_at.get().unwrap_or_else(Instant::now);
        let alarm = monoio::time::sleep_until(at.into());
        *timers.alarm.borrow_mut() = Some(Box::pin(alarm));
    });
    poll_fn(|cx| TIMERS.with(|timers| timers.poll_alarm(cx))).await;
}

#[cfg(test)]
#[path = "time/tests.rs"]
mod tests;
