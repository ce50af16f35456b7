//! Reconnect back-off: exponential with full jitter, so that thousands of clients do not come back
//! at the same time.

use std::time::Duration;

/// Upper bound of the first delay.
const FIRST: Duration = Duration::from_millis(200);

/// Upper bound of every later delay.
const LONGEST: Duration = Duration::from_secs(10);

/// Failures with one bound. The bound then grows about as fast as the time since the first failure,
/// so a server that was away for a moment is found a moment later.
const FAILURES_PER_BOUND: u32 = 2;

/// How often one lane to a draining server asks whether the server's successor is there (up to a
/// quarter more).
const DRAINING: Duration = Duration::from_secs(1);

/// How often the other lanes to a draining server ask. They are told by the one that asks more
/// often, and ask only in case that one has been told to go.
const DRAINING_OTHERS: Duration = Duration::from_secs(8);

/// The part of the delay to a draining server that is random.
const DRAINING_DRAWN: f64 = 0.25;

/// Doublings after which the bound has reached [`LONGEST`].
const DOUBLINGS_MAX: u32 = 6;

const _: () = assert!(FIRST.as_millis() << DOUBLINGS_MAX >= LONGEST.as_millis());

/// The back-off of one lane.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay before the next attempt: uniform between zero and a bound that doubles with every
    /// second failure. `random` is uniform in `0.0..1.0`.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The delay before the next attempt at a server that is draining. It does not grow, because
    /// that server is going to be replaced soon. `asks` says whether this lane is the one that
    /// finds out.
    pub(crate) fn next_while_draining(asks: bool, random: f64) -> Duration {
        let shortest = if asks { DRAINING } else { DRAINING_OTHERS };
        shortest.mul_f64(1.0 + DRAINING_DRAWN * random.clamp(0.0, 1.0))
    }

    /// Resets the back-off because another lane has reached the server. Returns the delay before
    /// the next attempt.
    pub(crate) fn found(&mut self, random: f64) -> Duration {
        self.reset();
        self.next(random)
    }

    /// Resets the back-off because the lane has served for a while.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Goes to the longest delays, because the server has said that it will not change its mind
    /// soon.
    pub(crate) fn discourage(&mut self) {
        self.failures = self.failures.max(DOUBLINGS_MAX * FAILURES_PER_BOUND);
    }

    fn bound(&self) -> Duration {
        let doublings = (self.failures / FAILURES_PER_BOUND).min(DOUBLINGS_MAX);
        (FIRST * (1 << doublings)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_from_200_ms_to_10_s_and_start_anew_after_a_reset() {
        let mut backoff = Backoff::default();
        let bounds: Vec<u128> = (0..15).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(
            bounds,
            [
                200, 200, 400, 400, 800, 800, 1_600, 1_600, 3_200, 3_200, 6_400, 6_400, 10_000,
                10_000, 10_000
            ]
        );
        backoff.reset();
        assert_eq!(backoff.next(0.5), Duration::from_millis(100));
        backoff.discourage();
        assert_eq!(backoff.next(1.0), LONGEST);
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.found(1.0), FIRST);
    }

    #[test]
    fn a_draining_server_is_asked_by_one_lane_and_once_a_second_at_most() {
        for random in [0.0, 0.5, 1.0] {
            let delay = Backoff::next_while_draining(true, random);
            assert!((DRAINING..=DRAINING * 5 / 4).contains(&delay), "{delay:?}");
            let others = Backoff::next_while_draining(false, random);
            assert!((DRAINING_OTHERS..=LONGEST).contains(&others), "{others:?}");
        }
    }
}
