//! A sticky event for one waiting task on the same thread: set before or during the wait, it is
//! never lost.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{busy_poll, task};

/// One event. At most one task waits for it at a time; a second one would replace the first.
#[derive(Debug, Default)]
pub(crate) struct Event {
    set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
    /// When it last woke its task.
    woke_at: Cell<u32>,
}

impl Event {
    /// Sets the event and wakes the waiting task, if any.
    pub(crate) fn set(&self) {
        if !self.set.replace(true)
            && let Some(waker) = self.waiter.borrow_mut().take()
        {
            self.woke_at.set(busy_poll::woken());
            waker.wake();
        }
    }

    /// Whether the task that waited for this event is the last one that was woken on this core: by
    /// the time it runs, all others have had their turn.
    pub(crate) fn woke_last(&self) -> bool {
        self.woke_at.get() == busy_poll::last_wake()
    }

    /// Ready (and cleared) once the event has been set.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.set.replace(false) {
            return Poll::Ready(());
        }
        let mut waiter = self.waiter.borrow_mut();
        match waiter.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiter = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until the event is set, and clears it.
    pub(crate) async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// Runs `work` to its end, or until the event is set; then the result is `None`, and the event
    /// is cleared. Dropping `work` half-way must lose nothing.
    pub(crate) async fn cuts_short<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if self.poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// Tasks that have yielded, and the task that brings them back.
#[derive(Default)]
struct Yielded {
    wakers: RefCell<Vec<Waker>>,
    any: Event,
}

thread_local! {
    static YIELDED: OnceCell<Rc<Yielded>> = const { OnceCell::new() };
}

/// Gives every task that is ready now a turn before the caller goes on.
///
/// A task that wakes itself while it runs goes to the *front* of monoio's queue (`scheduler.rs`:
/// `yield_now`), so that nobody else gets a turn. So another task, at the back of the queue, does
/// the waking.
pub(crate) async fn yield_now() {
    let yielded = YIELDED.with(|cell| {
        Rc::clone(cell.get_or_init(|| {
            let yielded = Rc::<Yielded>::default();
            task::spawn(bring_back(Rc::clone(&yielded)));
            yielded
        }))
    });
    let mut back = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut back, true) {
            return Poll::Ready(());
        }
        yielded.wakers.borrow_mut().push(cx.waker().clone());
        yielded.any.set();
        Poll::Pending
    })
    .await;
}

/// Waits for `readiness`. If it is there at once, every task that is ready gets a turn first: on
/// epoll, a socket that never runs dry would keep the core to itself. On io_uring it never is.
pub(crate) async fn in_turn<T>(readiness: impl Future<Output = T>) -> T {
    let mut readiness = pin!(readiness);
    let mut has_waited = false;
    let ready = poll_fn(|cx| {
        let polled = readiness.as_mut().poll(cx);
        has_waited |= polled.is_pending();
        polled
    })
    .await;
    if !has_waited {
        yield_now().await;
    }
    ready
}

async fn bring_back(yielded: Rc<Yielded>) {
    let mut wakers = Vec::new();
    loop {
        yielded.any.wait().await;
        std::mem::swap(&mut wakers, &mut *yielded.wakers.borrow_mut());
        for waker in wakers.drain(..) {
            busy_poll::woken();
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tasks that each do something between two calls of `rest`, three times.
    fn order_of_two_tasks<F: Future<Output = ()> + 'static>(
        rest: impl Fn() -> F + Copy + 'static,
    ) -> Vec<&'static str> {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let order = Rc::<RefCell<Vec<&str>>>::default();
            let tasks = ["a", "b"].map(|name| {
                let order = Rc::clone(&order);
                monoio::spawn(async move {
                    for _ in 0..3 {
                        order.borrow_mut().push(name);
                        rest().await;
                    }
                })
            });
            for task in tasks {
                task.await;
            }
            order.take()
        })
    }

    #[test]
    fn a_task_that_yields_lets_every_ready_task_run_first() {
        let order = order_of_two_tasks(yield_now);
        assert_eq!(order, ["a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn whoever_finds_at_once_what_it_waits_for_lets_every_ready_task_run_first() {
        let order = order_of_two_tasks(|| in_turn(std::future::ready(())));
        assert_eq!(order, ["a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn the_task_that_was_woken_last_knows_that_all_others_have_had_their_turn() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let turns = Rc::<RefCell<Vec<(usize, bool)>>>::default();
            let events: Vec<_> = (0..3).map(|_| Rc::<Event>::default()).collect();
            for (number, event) in events.iter().cloned().enumerate() {
                let turns = Rc::clone(&turns);
                task::spawn(async move {
                    loop {
                        event.wait().await;
                        turns.borrow_mut().push((number, event.woke_last()));
                    }
                });
            }
            yield_now().await;
            for order in [[2, 0, 1], [0, 1, 2]] {
                order.iter().for_each(|number| events[*number].set());
                // Unlike a yield, this wakes nobody before those have run.
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                let [first, second, last] = order;
                let expected = [(first, false), (second, false), (last, true)];
                assert_eq!(turns.take(), expected);
            }
        });
    }

    #[test]
    fn an_event_set_before_the_wait_is_not_lost() {
        let event = Event::default();
        event.set();
        event.set();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(event.poll(&mut cx), Poll::Ready(()));
        assert_eq!(event.poll(&mut cx), Poll::Pending);
    }

    #[test]
    fn work_is_cut_short_by_its_event_alone_and_ends_by_itself_otherwise() {
        let event = Event::default();
        let mut cx = Context::from_waker(Waker::noop());
        let done = pin!(event.cuts_short(async { 7 })).poll(&mut cx);
        assert_eq!(done, Poll::Ready(Some(7)));
        {
            let mut cut = pin!(event.cuts_short(std::future::pending::<()>()));
            assert_eq!(cut.as_mut().poll(&mut cx), Poll::Pending);
            event.set();
            assert_eq!(cut.poll(&mut cx), Poll::Ready(None));
        }
        let again = pin!(event.cuts_short(async { 7 })).poll(&mut cx);
        assert_eq!(again, Poll::Ready(Some(7)), "it was cleared");
    }
}
