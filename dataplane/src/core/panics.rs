//! Panics: bugs of this program, each of which is to cost as little as possible.
//!
//! Whoever knows what a panic costs runs the work by [`contain`] (or a task by [`super::task`]): it is then over, counted
//! (counter `panics`), and logged once per place in the source; all else goes on. What cannot go on
//! without the work says so ([`super::task::spawn_vital`]), and the process drains.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use super::CoreContext;

/// Places that are remembered as logged, per core; panics at further ones are only counted.
const PLACES_MAX: usize = 64;

/// A panic was contained: the work is over, and what it held was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bug of this program: the log says where")]
pub(crate) struct Panicked;

/// What the hook has learned of a panic.
struct Report {
    place: String,
    message: String,
    backtrace: std::backtrace::Backtrace,
}

/// The core whose thread it is.
struct ThisCore {
    context: Rc<CoreContext>,
    /// Has the core look whether it is broken.
    wake: Box<dyn Fn()>,
}

thread_local! {
    /// The core of this thread.
    static CORE: ManuallyDrop<RefCell<Option<ThisCore>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
    /// How many [`contain`]s are running.
    static CONTAINED: Cell<usize> = const { Cell::new(0) };
    static LAST: RefCell<Option<Report>> = const { RefCell::new(None) };
    static LOGGED: RefCell<HashSet<String>> = RefCell::new(HashSet::new());
}

/// Has the panics of this thread counted as those of a core, once it has one. `wake` has the core look whether it is
/// broken.
pub(crate) fn watch_this_thread(context: &Rc<CoreContext>, wake: impl Fn() + 'static) {
    let core = ThisCore {
        context: Rc::clone(context),
        wake: Box::new(wake),
    };
    CORE.with(|this| *this.borrow_mut() = Some(core));
}

/// Has panics that are contained logged by us, not written to stderr. For the whole process.
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

/// Runs `work`. What it holds must be fit for use after a panic: counts fall when they are dropped, borrows end.
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
        // Dropping what was thrown may panic as well; whoever throws such things gets what he deserves.
        let _dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        note();
        Panicked
    })
}

/// This core cannot do its work any more: `main` is told, and has the process drain.
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

/// Always, but in tests: there a panic is a test's failure, unless the test is about panics.
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

    /// From now on panics of this thread are contained; the next time that it comes to `place`, it panics.
    pub(crate) fn expect_at(place: &'static str) {
        super::install_hook();
        ARE_EXPECTED.set(true);
        NEXT.with_borrow_mut(|next| next.push(place));
    }

    /// Whether all that were wanted have happened.
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
