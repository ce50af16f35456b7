//! The bound on notices to a lane's peer that a flow is over.
//!
//! A `FlowClosed` message saves the peer work, but nothing depends on it: the peer has a timeout of
//! its own, and a datagram of a flow that is not known is answered by another notice. So notices
//! are bounded, and those above the bound are left out, because the control stream also carries
//! heartbeats, and a lane whose control stream backs up is closed.

use std::time::{Duration, Instant};

/// The most notices within one [`INTERVAL`]. A message takes at most 20 bytes, so a peer that does
/// not read its control stream collects in 12 seconds a backlog of 64 KB, at which the lane is
/// closed.
const NOTICES_PER_INTERVAL: usize = 256;

/// See [`NOTICES_PER_INTERVAL`].
const INTERVAL: Duration = Duration::from_secs(1);

/// The notices of one lane.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// Flows that the peer was told of in this turn: once is enough, however many of their
    /// datagrams follow.
    told: Vec<u64>,
    interval_start: Option<Instant>,
    used: usize,
}

impl Notices {
    /// Whether the peer may be told of `flow_id` now; if so, it counts as told.
    pub(crate) fn may_tell(&mut self, flow_id: u64, now: Instant) -> bool {
        let over = self
            .interval_start
            .is_none_or(|start| now.saturating_duration_since(start) >= INTERVAL);
        if over {
            self.interval_start = Some(now);
            self.used = 0;
        }
        if self.used == NOTICES_PER_INTERVAL || self.told.contains(&flow_id) {
            return false;
        }
        self.used += 1;
        self.told.push(flow_id);
        true
    }

    /// Ends a turn: the peer may be told of the same flow again.
    pub(crate) fn turn_over(&mut self) {
        self.told.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_told_of_once_per_turn() {
        let mut notices = Notices::default();
        let now = Instant::now();
        assert!(notices.may_tell(7, now));
        assert!(!notices.may_tell(7, now));
        assert!(notices.may_tell(8, now));
        notices.turn_over();
        assert!(notices.may_tell(7, now));
    }

    #[test]
    fn notices_are_bounded_in_time_whatever_the_turns() {
        let mut notices = Notices::default();
        let now = Instant::now();
        let mut told = 0;
        for flow_id in 0..10_000 {
            told += usize::from(notices.may_tell(flow_id, now));
            notices.turn_over();
        }
        assert_eq!(told, NOTICES_PER_INTERVAL);
        assert!(notices.may_tell(1, now + INTERVAL));
    }
}
