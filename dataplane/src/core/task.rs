//! Tasks of a core; this is the only place where they are started.
//!
//! Each poll is a turn ([`super::turn`]), and a panic ends the task alone ([`super::panics`]). The
//! caller that starts a task says what its panic costs: nothing else ([`spawn`]), something that
//! has to be cleaned up ([`spawn_or`]), or the core ([`spawn_vital`]).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::panics::{self, Panicked, contain};
use super::{busy_poll, turn};

/// Starts a task on this core. A panic ends the task and nothing else.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    spawn_or(task, || {});
}

/// Starts a task on this core. A panic ends the task, and then `clean_up` is called.
pub(crate) fn spawn_or(
    task: impl Future<Output = ()> + 'static,
    clean_up: impl FnOnce() + 'static,
) {
    busy_poll::woken();
    monoio::spawn(Task {
        task: contained(task),
        clean_up: Some(clean_up),
    });
}

/// Starts a task without which the core is of no use. If it panics, the process drains and ends.
pub(crate) fn spawn_vital(task: impl Future<Output = ()> + 'static) {
    spawn_or(task, panics::core_is_broken);
}

pin_project! {
    /// A task in the form in which the runtime gets it.
    struct Task<F, C> {
        #[pin]
        task: Contained<F>,
        clean_up: Option<C>,
    }
}

impl<F: Future<Output = ()>, C: FnOnce()> Future for Task<F, C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        turn::take(|| {
            let polled = this.task.poll(cx);
            if let Poll::Ready(Err(Panicked)) = polled
                && let Some(clean_up) = this.clean_up.take()
            {
                let _counted = contain(clean_up);
            }
            polled.map(|_over| ())
        })
    }
}

/// Runs `work` until it ends or panics.
///
/// # Errors
/// If `work` panicked.
pub(crate) fn contained<F: Future>(work: F) -> Contained<F> {
    Contained { work: Some(work) }
}

pin_project! {
    /// The future that [`contained`] returns.
    //
    // This is not an `async fn`, whose future would hold the work twice: most of an idle flow's
    // memory is its task.
    #[must_use = "it does nothing unless it is awaited"]
    pub(crate) struct Contained<F> {
        // `None` once the work is over.
        #[pin]
        work: Option<F>,
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(work) = this.work.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(Panicked));
        };
        let result = match contain(|| work.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => Ok(result),
            Err(panicked) => Err(panicked),
        };
        // Dropping what the work still holds may panic as well.
        let dropped = contain(|| this.work.set(None));
        Poll::Ready(result.and_then(|result| dropped.map(|()| result)))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::core::event::{Event, yield_now};
    use crate::core::panics::injected;
    use crate::core::panics::may_be_injected;

    /// Panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            may_be_injected("drop");
        }
    }

    fn run(test: impl Future<Output = ()>) {
        monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    #[test]
    fn a_task_that_panics_ends_alone_drops_what_it_held_and_is_cleaned_up_after() {
        run(async {
            let (others, cleaned) = (Rc::<Event>::default(), Rc::<Event>::default());
            let held = Rc::new(Cell::new(0));
            injected::expect_at("task");
            let (holds, clean) = (Rc::clone(&held), Rc::clone(&cleaned));
            let left = Rc::clone(&held);
            spawn_or(
                async move {
                    yield_now().await;
                    holds.set(7);
                    may_be_injected("task");
                    holds.set(8);
                },
                move || {
                    assert_eq!(Rc::strong_count(&left), 2, "the task's own is gone");
                    clean.set();
                },
            );
            let other = Rc::clone(&others);
            spawn(async move {
                for _ in 0..10 {
                    yield_now().await;
                }
                other.set();
            });
            cleaned.wait().await;
            others.wait().await;
            assert_eq!(held.get(), 7);
            assert!(injected::all_happened());
        });
    }

    #[test]
    fn a_task_whose_drop_or_clean_up_panics_ends_alone_too() {
        run(async {
            for place in ["drop", "clean up"] {
                let ended = Rc::<Event>::default();
                injected::expect_at(place);
                if place == "clean up" {
                    injected::expect_at("task");
                }
                let (of_task, held) = (Rc::clone(&ended), Bomb);
                spawn_or(
                    async move {
                        let _held = held;
                        of_task.set();
                        may_be_injected("task");
                    },
                    || may_be_injected("clean up"),
                );
                ended.wait().await;
                yield_now().await;
                assert!(injected::all_happened(), "{place}");
            }
        });
    }
}
