//! How long to wait before dialling a server again.

use std::time::Duration;

/// The upper bound of the first wait.
const FIRST: Duration = Duration::from_millis(200);
/// The upper bound of every wait.
const MAX: Duration = Duration::from_secs(10);

/// Exponential back-off with full jitter: a wait is drawn evenly from zero to a bound that doubles.
/// Clients that lost the same server at the same time thus come back spread out.
#[derive(Debug)]
pub(super) struct Backoff {
    bound: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { bound: FIRST }
    }

    /// The next wait. `random`, from 0.0 to 1.0, is its share of the bound.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let wait = self.bound.mul_f64(random.clamp(0.0, 1.0));
        self.bound = (self.bound * 2).min(MAX);
        wait
    }

    /// The server was reached: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.bound = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_ten_seconds_and_starts_over() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
    }

    #[test]
    fn the_jitter_spans_all_of_the_bound() {
        assert_eq!(Backoff::new().next(0.0), Duration::ZERO);
        assert_eq!(Backoff::new().next(0.5), FIRST / 2);
    }
}
