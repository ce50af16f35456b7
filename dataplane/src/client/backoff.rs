//! Reconnect back-off: exponential with full jitter, so that thousands of clients do not come back in step.

use std::time::Duration;

/// Upper bound of the first delay.
const FIRST: Duration = Duration::from_millis(200);

/// Upper bound of every later delay.
const LONGEST: Duration = Duration::from_secs(10);

/// Doublings after which the bound has reached [`LONGEST`].
const DOUBLINGS_MAX: u32 = 6;

const _: () = assert!(FIRST.as_millis() << DOUBLINGS_MAX >= LONGEST.as_millis());

/// The delays of one lane.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay before the next attempt: uniform between zero and a bound that doubles with each failure. `random` is
    /// uniform in `0.0..1.0`.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The lane has served for a while: begin anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The server has said that it will not change its mind soon: take the longest delays.
    pub(crate) fn discourage(&mut self) {
        self.failures = self.failures.max(DOUBLINGS_MAX);
    }

    fn bound(&self) -> Duration {
        (FIRST * (1 << self.failures.min(DOUBLINGS_MAX))).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_from_200_ms_to_10_s_and_start_anew_after_a_reset() {
        let mut backoff = Backoff::default();
        let bounds: Vec<u128> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(
            bounds,
            [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]
        );
        backoff.reset();
        assert_eq!(backoff.next(0.5), Duration::from_millis(100));
        backoff.discourage();
        assert_eq!(backoff.next(1.0), LONGEST);
        assert_eq!(backoff.next(0.0), Duration::ZERO);
    }
}
