//! Panics: bugs of this program, each of which should cost as little as possible.
//!
//! Code that knows what a panic costs runs the work by [`contain`] (or a task by [`super::task`]).
//! After a panic that work is over; it is counted (counter `panics`) and logged once per place in
//! the source, and everything else goes on. If the core cannot go on without the work, its code
//! says so ([`super::task::spawn_vital`]), and the process drains.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use super::CoreContext;

/// Places in the source that are remembered as logged, per core. Panics at further ones are only
/// counted.
const PLACES_MAX: usize = 64;

/// A panic was contained: the work is over, and what it held was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bug of this program: the log says where")]
pub(crate) struct Panicked;

/// What the panic hook has recorded of a panic.
struct Report {
    place: String,
    message: String,
    backtrace: std::backtrace::Backtrace,
}

/// The core that this thread belongs to.
struct ThisCore {
    context: Rc<CoreContext>,
    /// Wakes the core, so that it checks whether it is broken.
    wake: Box<dyn Fn()>,
}

thread_local! {
    /// The core of this thread.
    static CORE: ManuallyDrop<RefCell<Option<ThisCore>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
    /// Number of [`contain`]s that are running.
    static CONTAINED: Cell<usize> = const { Cell::new(0) };
    static LAST: RefCell<Option<Report>> = const { RefCell::new(None) };
    static LOGGED: RefCell<HashSet<String>> = RefCell::new(HashSet::new());
}

/// Counts the panics of this thread as those of its core. `wake` has the core check whether it is
/// broken.
pub(crate) fn watch_this_thread(context: &Rc<CoreContext>, wake: impl Fn() + 'static) {
    let core = ThisCore {
        context: Rc::clone(context),
        wake: Box::new(wake),
    };
    CORE.with(|this| *this.borrow_mut() = Some(core));
}

/// Makes the whole process log contained panics like other events, instead of writing them to
/// stderr.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CONTAINED.get() == 0 || !contains_here() {
                others(info);
                return;
            }
            LAST.with(|last| *last.borrow_mut() = Some(Report::of(info)));
        }));
    });
}

impl Report {
    fn of(info: &PanicHookInfo<'_>) -> Report {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Report {
            place: info
                .location()
                .map_or_else(String::new, ToString::to_string),
            message: text.unwrap_or("not a text").to_owned(),
            backtrace: std::backtrace::Backtrace::capture(),
        }
    }
}

/// Runs `work`. What it uses must be fit for use after a panic: counts fall when they are dropped,
/// borrows end.
///
/// # Errors
/// If it panicked.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    CONTAINED.set(CONTAINED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(CONTAINED.get() - 1);
    result.map_err(|payload| {
        if !contains_here() {
            std::panic::resume_unwind(payload);
        }
        // Dropping the payload may panic as well; whoever throws such things gets what they
        // deserve.
        let _dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        note();
        Panicked
    })
}

/// Marks this core as unable to do its work any more: `main` is told, and has the process drain.
pub(crate) fn core_is_broken() {
    CORE.with(|core| {
        if let Some(ThisCore { context, wake }) = &*core.borrow() {
            context.broken.set(true);
            wake();
        }
    });
}

fn note() {
    let core = CORE.with(|core| {
        let core = core.borrow();
        let context = &core.as_ref()?.context;
        context.counters.panics.increment();
        Some(context.index)
    });
    let Some(report) = LAST.with(|last| last.borrow_mut().take()) else {
        return;
    };
    let is_news = LOGGED.with(|logged| {
        let mut logged = logged.borrow_mut();
        logged.len() < PLACES_MAX && logged.insert(report.place.clone())
    });
    if is_news {
        tracing::error!(
            core,
            place = report.place,
            message = report.message,
            backtrace = %report.backtrace,
            "a bug: the program has panicked; one flow, lane or task is lost, the others go on (counter panics; further panics at this place are only counted)"
        );
    }
}

/// Whether panics are contained. In tests they are not, because a panic is a test's failure, unless
/// the test is about panics.
fn contains_here() -> bool {
    #[cfg(test)]
    return injected::ARE_EXPECTED.get();
    #[cfg(not(test))]
    true
}

/// A place where a test may have the program panic.
#[inline]
pub(crate) fn may_be_injected(place: &'static str) {
    #[cfg(test)]
    injected::here(place);
    #[cfg(not(test))]
    let _ = place;
}

/// For tests: panics where and when they are wanted.
#[cfg(test)]
pub(crate) mod injected {
    use std::cell::{Cell, RefCell};

    thread_local! {
        pub(super) static ARE_EXPECTED: Cell<bool> = const { Cell::new(false) };
        static NEXT: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// From now on panics of this thread are contained; the next time that it reaches `place`, it
    /// panics.
    pub(crate) fn expect_at(place: &'static str) {
        super::install_hook();
        ARE_EXPECTED.set(true);
        NEXT.with_borrow_mut(|next| next.push(place));
    }

    /// Whether all expected panics have happened.
    pub(crate) fn all_happened() -> bool {
        NEXT.with_borrow(Vec::is_empty)
    }

    pub(super) fn here(place: &'static str) {
        let wanted = NEXT.with_borrow_mut(|next| {
            let index = next.iter().position(|wanted| *wanted == place)?;
            Some(next.swap_remove(index))
        });
        if wanted.is_some() {
            panic!("injected at {place}");
        }
    }
}
