//! Turns: what a core does between two checks of its timers.
//!
//! Each poll of a task is a turn. It begins and ends with reading the clock (some 25 ns each, no
//! system call), and at its end those tasks are woken whose deadline has come ([`super::time`]). So
//! no task, and no number of tasks that are always ready, can keep a timer from firing for longer
//! than one turn takes. A task that has much to do asks [`share_is_used`] and yields. The duration
//! of the longest turn is published ([`LongestTurn`]).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

/// How long one turn should take at most. Other tasks then wait a few milliseconds at worst, and
/// the cost of a turn itself, about 0.3 µs with the system call that may follow, does not matter.
const SHARE: Duration = Duration::from_millis(1);

/// The longest turn is that of the last one to two windows of this length. Scrapers come every
/// minute or more often.
const WINDOW: Duration = Duration::from_secs(60);

thread_local! {
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static LONGEST: ManuallyDrop<RefCell<Option<Arc<LongestTurn>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

/// Runs one turn of a task.
pub(super) fn take<T>(poll: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    BEGAN.set(Some(began));
    let polled = poll();
    let now = Instant::now();
    LONGEST.with(|longest| {
        if let Some(longest) = &*longest.borrow() {
            longest.note(now - began);
        }
    });
    super::time::look(now);
    polled
}

pin_project! {
    /// A task each of whose polls is a turn.
    //
    // This is not an `async fn`, whose future would hold the task twice: most of an idle flow's
    // memory is its task.
    pub(crate) struct ByTurns<F> {
        #[pin]
        task: F,
    }
}

/// Makes every poll of `task` a turn.
pub(crate) fn by_turns<F: Future>(task: F) -> ByTurns<F> {
    ByTurns { task }
}

impl<F: Future> Future for ByTurns<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let task = self.project().task;
        take(|| task.poll(cx))
    }
}

/// Whether the current turn has taken as long as a turn should, so that it is time to yield.
pub(crate) fn share_is_used() -> bool {
    BEGAN.get().is_some_and(|began| began.elapsed() >= SHARE)
}

/// The longest turn of one core in the last one to two minutes. Only the core writes it.
#[derive(Debug, Default)]
pub(crate) struct LongestTurn {
    /// Nanoseconds of the longest turn in the window that began last.
    current: AtomicU64,
    /// Nanoseconds of the longest turn in the window before.
    before: AtomicU64,
    /// Milliseconds from the core's start to the beginning of the last window.
    window_began: AtomicU64,
}

impl LongestTurn {
    /// Records the turns of this thread here.
    pub(crate) fn watch_this_thread(self: &Arc<Self>) {
        LONGEST.with(|longest| *longest.borrow_mut() = Some(Arc::clone(self)));
    }

    /// Records a turn.
    pub(crate) fn note(&self, turn: Duration) {
        let nanoseconds = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
        if nanoseconds > self.current.load(Ordering::Relaxed) {
            self.current.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// Begins a new window if it is time to. The core calls this now and then; `running` is the
    /// time since its start.
    pub(crate) fn forget_old(&self, running: Duration) {
        let running = u64::try_from(running.as_millis()).unwrap_or(u64::MAX);
        let window_began = self.window_began.load(Ordering::Relaxed);
        if u128::from(running.saturating_sub(window_began)) >= WINDOW.as_millis() {
            self.window_began.store(running, Ordering::Relaxed);
            let current = self.current.swap(0, Ordering::Relaxed);
            self.before.store(current, Ordering::Relaxed);
        }
    }

    /// The duration of the longest turn.
    pub(crate) fn get(&self) -> Duration {
        let current = self.current.load(Ordering::Relaxed);
        Duration::from_nanos(current.max(self.before.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_longest_turn_is_shown_for_a_minute_and_forgotten_after_two() {
        let longest = LongestTurn::default();
        longest.note(7 * MS);
        longest.note(3 * MS);
        for (seconds, shown) in [(0, 7), (59, 7), (60, 7), (119, 7), (120, 0)] {
            longest.forget_old(Duration::from_secs(seconds));
            assert_eq!(longest.get(), shown * MS, "after {seconds} s");
        }
        longest.note(2 * MS);
        assert_eq!(longest.get(), 2 * MS);
    }

    #[test]
    fn a_turn_knows_when_its_share_is_used() {
        take(|| {
            while !share_is_used() {
                std::hint::spin_loop();
            }
        });
        let used = take(|| (share_is_used(), BEGAN.get().map(|began| began.elapsed())));
        assert!(
            !used.0 || used.1 >= Some(SHARE),
            "a new turn begins with nothing used"
        );
    }
}
