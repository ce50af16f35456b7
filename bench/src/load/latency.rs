//! Times of round trips, kept in an hdrhistogram.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest time that is told apart, in nanoseconds; longer ones count as this one.
const LONGEST_NS: u64 = 120_000_000_000;

/// Significant digits that are kept: 0.1 % is finer than any machine repeats.
const DIGITS: u8 = 3;

/// Times, from which percentiles are taken.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("constant bounds are valid"))
    }
}

impl Times {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(ns.max(1));
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        // Cannot fail: both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that so many percent do not exceed, in microseconds. Zero if there are none.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        micros(self.0.value_at_percentile(percent))
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> f64 {
        micros(self.0.max())
    }

    /// What tables show of them, each with its metric's name.
    pub fn values(&self) -> [(&'static str, f64); 5] {
        [
            ("p50_us", self.percentile_us(50.0)),
            ("p90_us", self.percentile_us(90.0)),
            ("p99_us", self.percentile_us(99.0)),
            ("p999_us", self.percentile_us(99.9)),
            ("max_us", self.max_us()),
        ]
    }
}

fn micros(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut times = Times::new();
        (1..=1_000).for_each(|us| times.record(Duration::from_micros(us)));
        let close = |a: f64, b: f64| (a - b).abs() <= b / 500.0;
        assert!(close(times.percentile_us(50.0), 500.0));
        assert!(close(times.percentile_us(99.9), 999.0));
        assert!(close(times.max_us(), 1_000.0));
        assert_eq!(times.count(), 1_000);
    }

    #[test]
    fn merged_times_count_together() {
        let (mut one, mut other) = (Times::new(), Times::new());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_millis(1));
        one.merge(&other);
        assert_eq!(one.count(), 2);
        assert!(one.max_us() >= 1_000.0);
    }

    #[test]
    fn what_is_out_of_bounds_is_kept_at_the_bound() {
        let mut times = Times::new();
        times.record(Duration::ZERO);
        times.record(Duration::from_secs(1_000_000));
        assert_eq!(times.count(), 2);
        assert_eq!(Times::new().percentile_us(50.0), 0.0);
    }
}
