//! Whether UDP still passes on a core: what draining wants to know of flows that have no end. No I/O; time comes in.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A core through which no datagram passed for this long has no exchange under way: a question that is answered at
/// all is mostly answered within a second, and the one who asks repeats it otherwise.
const QUIET: Duration = Duration::from_secs(1);

/// Draining waits no longer than this for UDP: a stream of datagrams (a game, a call) has no end to wait for, and every
/// second of it is one more in which its successor cannot start.
const PATIENCE: Duration = Duration::from_secs(5);

/// When a core's datagrams last passed.
#[derive(Debug, Default)]
pub(crate) struct UdpActivity {
    datagrams: Cell<u64>,
    last: Cell<Option<Instant>>,
}

impl UdpActivity {
    /// Takes note that until `now` so many datagrams have passed.
    pub(crate) fn note(&self, datagrams: u64, now: Instant) {
        if self.datagrams.replace(datagrams) != datagrams {
            self.last.set(Some(now));
        }
    }

    /// True if a drain that began at `began` need not wait for UDP any more.
    pub(crate) fn is_over(&self, began: Instant, now: Instant) -> bool {
        let quiet = |last: Instant| now.saturating_duration_since(last) >= QUIET;
        self.last.get().is_none_or(quiet) || now.saturating_duration_since(began) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_core_without_udp_is_not_waited_for() {
        let activity = UdpActivity::default();
        let now = Instant::now();
        activity.note(0, now);
        assert!(activity.is_over(now, now));
    }

    #[test]
    fn an_exchange_under_way_is_waited_for_until_it_is_quiet() {
        let activity = UdpActivity::default();
        let began = Instant::now();
        activity.note(7, began);
        assert!(!activity.is_over(began, began));
        activity.note(8, began + 900 * MS);
        activity.note(8, began + 1_000 * MS);
        assert!(!activity.is_over(began, began + 1_899 * MS));
        assert!(activity.is_over(began, began + 1_900 * MS));
    }

    #[test]
    fn a_stream_without_end_is_not_waited_for_without_end() {
        let activity = UdpActivity::default();
        let began = Instant::now();
        let over = (0..60_000u32)
            .find(|ms| {
                activity.note(u64::from(*ms) + 1, began + *ms * MS);
                activity.is_over(began, began + *ms * MS)
            })
            .map(|ms| ms * MS);
        assert_eq!(over, Some(PATIENCE));
    }
}
