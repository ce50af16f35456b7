//! Waiting for a condition. Deadlines are there to end a broken run, never to judge speed.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before the run counts as broken. Generous: two cores run several
/// tunnels at a time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `condition` gives a value; panics with `what` when patience ends.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} for this: {what}"
        );
        thread::sleep(PAUSE);
    }
}

/// Looks until `condition` holds; panics with `what` when patience ends.
pub(crate) fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}
