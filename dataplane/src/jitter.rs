//! Jitter: thousands of programs must not do at the same time what each does at intervals.
//!
//! Clients that were started, or whose server came back, at the same moment would otherwise send
//! heartbeats and resolve names together for ever. Jitter only shortens an interval: the configured
//! value stays the longest time between two heartbeats, so that no timeout that was chosen for it
//! is in danger.

use std::time::Duration;

/// The random part of an interval: the result is within 12.5 % of its mean. Less than a tenth would
/// leave heartbeats together for minutes; more than a quarter would cost noticeably more of them
/// than were asked for.
const DRAWN: f64 = 0.25;

/// `interval` shortened by up to a quarter. `random` is uniform in `0.0..1.0`.
pub(crate) fn spread(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(1.0 - DRAWN * random.clamp(0.0, 1.0))
}

/// `interval` shortened by a random number of this thread, as [`spread`] does.
pub(crate) fn jittered(interval: Duration) -> Duration {
    spread(interval, rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn an_interval_is_never_longer_than_configured_and_keeps_three_quarters() {
        assert_eq!(spread(INTERVAL, 0.0), INTERVAL);
        assert_eq!(spread(INTERVAL, 1.0), INTERVAL * 3 / 4);
        assert_eq!(spread(INTERVAL, 7.0), INTERVAL * 3 / 4);
        assert_eq!(spread(Duration::ZERO, 0.5), Duration::ZERO);
    }

    #[test]
    fn a_thousand_that_began_together_are_spread_after_some_beats() {
        use rand::rngs::StdRng;
        use rand::{RngExt as _, SeedableRng as _};
        let mut random = StdRng::seed_from_u64(1);
        let mut in_tenths = [0; 10];
        for _ in 0..1_000 {
            let since_start: Duration = (0..30).map(|_| spread(INTERVAL, random.random())).sum();
            let phase = since_start.as_millis() % INTERVAL.as_millis();
            in_tenths[(phase / (INTERVAL.as_millis() / 10)) as usize] += 1;
        }
        assert!(in_tenths.iter().all(|count| *count < 250), "{in_tenths:?}");
    }
}
