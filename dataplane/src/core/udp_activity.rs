//! Whether a core still carries UDP datagrams. The drain needs to know this because UDP flows have
//! no end. This module does no I/O; time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A core through which no datagram passed for this long has no exchange under way. Most requests
/// that are answered at all are answered within a second; the others are sent again.
const QUIET: Duration = Duration::from_secs(1);

/// The drain waits no longer than this for UDP. A stream of datagrams (a game, a call) has no end
/// to wait for, and the successor of this process cannot start before the drain is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time at which a core's datagrams last passed.
#[derive(Debug, Default)]
pub(crate) struct UdpActivity {
    datagrams: Cell<u64>,
    last: Cell<Option<Instant>>,
}

impl UdpActivity {
    /// Notes the number of datagrams that have passed until `now`.
    pub(crate) fn note(&self, datagrams: u64, now: Instant) {
        if self.datagrams.replace(datagrams) != datagrams {
            self.last.set(Some(now));
        }
    }

    /// Whether a drain that began at `began` need not wait for UDP any more.
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
    fn a_stream_of_datagrams_without_end_is_waited_for_only_until_patience_is_over() {
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
