//! Slow start: a client that has just come does not get all new visitors at once.
//!
//! By the fewest flows, a newcomer among clients with a thousand flows each would get the next
//! thousand visitors, however cold its service may be, and before anybody knows whether it works at
//! all. So a new client is counted at first as if it had the average load of the others, and this
//! addition shrinks with time. There is no clock in here: time comes in as an argument.

use std::time::Duration;

/// How long slow start lasts; then only a client's own flows count.
const LASTS: Duration = Duration::from_secs(10);

/// Load that a client is counted with in addition to its flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlowStart {
    since: Duration,
    flows: usize,
}

impl SlowStart {
    /// The addition for a client that comes at `now`, beside others that have these numbers of
    /// flows.
    pub(crate) fn beside(others: impl Iterator<Item = usize>, now: Duration) -> SlowStart {
        let (count, sum) = others.fold((0, 0), |(count, sum), flows| (count + 1, sum + flows));
        SlowStart {
            since: now,
            flows: sum.checked_div(count).unwrap_or(0),
        }
    }

    /// What is left of the addition at `now`.
    pub(crate) fn flows(self, now: Duration) -> usize {
        let left = LASTS.saturating_sub(now.saturating_sub(self.since));
        if left.is_zero() || self.flows == 0 {
            return 0;
        }
        (self.flows as f64 * left.as_secs_f64() / LASTS.as_secs_f64()).ceil() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_counts_as_the_average_of_the_others_which_melts_away() {
        let now = Duration::from_secs(7);
        let slow_start = SlowStart::beside([100, 200, 300].into_iter(), now);
        assert_eq!(slow_start.flows(now), 200);
        assert_eq!(slow_start.flows(now + LASTS / 2), 100);
        assert_eq!(slow_start.flows(now + LASTS), 0);
        assert_eq!(
            slow_start.flows(Duration::ZERO),
            200,
            "another core's clock"
        );
    }

    #[test]
    fn the_first_client_has_none() {
        let slow_start = SlowStart::beside(std::iter::empty(), Duration::ZERO);
        assert_eq!(slow_start.flows(Duration::ZERO), 0);
    }
}
