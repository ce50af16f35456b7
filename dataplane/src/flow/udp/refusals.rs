//! Whether a UDP visitor could not be served a short while ago: the name of the service does not
//! resolve, nobody listens there, or the client has no socket left. Health checks of the service
//! cannot tell, because they go by TCP.
//!
//! Both roles use it, and all cores share it, without a lock. For a server, a client that could not
//! serve a visitor comes after others for a while; if all clients are such, visitors go to them
//! nevertheless. For both, a service that speaks UDP alone counts as down for as long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a refusal counts. The visitor who finds out whether the client can serve again is sent
/// elsewhere at once if it cannot, so this costs one detour in this time.
const COUNTS: Duration = Duration::from_secs(10);

/// The refusals of one service, at one client.
#[derive(Debug)]
pub(crate) struct UdpRefusals {
    epoch: Instant,
    /// The time at which the last refusal stops to count, in milliseconds since `epoch`; 0: there
    /// was none.
    over_at_ms: AtomicU64,
}

impl UdpRefusals {
    pub(crate) fn new(now: Instant) -> UdpRefusals {
        UdpRefusals {
            epoch: now,
            over_at_ms: AtomicU64::new(0),
        }
    }

    /// Notes that a visitor could not be served.
    pub(crate) fn refused(&self, now: Instant) {
        let over_at_ms = self.millis(now + COUNTS);
        self.over_at_ms.store(over_at_ms, Ordering::Relaxed);
    }

    /// Notes that the service has answered a visitor, so that earlier refusals count no more.
    pub(crate) fn answered(&self) {
        // There were mostly none; then nothing is written to memory that other cores read.
        if self.over_at_ms.load(Ordering::Relaxed) != 0 {
            self.over_at_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the last refusal still counts.
    pub(crate) fn count(&self, now: Instant) -> bool {
        self.millis(now) < self.over_at_ms.load(Ordering::Relaxed)
    }

    fn millis(&self, at: Instant) -> u64 {
        let age = at.saturating_duration_since(self.epoch);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_for_a_while_after_the_last_one() {
        let start = Instant::now();
        let refusals = UdpRefusals::new(start);
        assert!(!refusals.count(start));
        refusals.refused(start);
        refusals.refused(start + COUNTS / 2);
        assert!(refusals.count(start + COUNTS));
        assert!(!refusals.count(start + 2 * COUNTS));
        refusals.refused(start + 3 * COUNTS);
        assert!(refusals.count(start + 3 * COUNTS));
        refusals.answered();
        assert!(!refusals.count(start + 3 * COUNTS));
        refusals.refused(start + 3 * COUNTS);
        assert!(refusals.count(start + 3 * COUNTS));
    }
}
