//! Times of round trips, kept in an hdrhistogram, and the period in which they are recorded.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// The longest time that is told apart, in nanoseconds; longer ones count as this one.
const LONGEST_NS: u64 = 120_000_000_000;

/// Significant digits that are kept: 0.1 % is finer than any machine repeats.
const DIGITS: u8 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Times {
    histogram: Histogram<u64>,
    /// What was tried and has no time: lost answers, visits that failed.
    pub(crate) failed: u64,
    /// How long was recorded.
    pub(crate) seconds: f64,
}

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Self {
            histogram: histogram.expect("constant bounds are valid"),
            failed: 0,
            seconds: 0.0,
        }
    }
}

impl Times {
    /// Adds one, or that it failed.
    pub(crate) fn note(&mut self, time: Option<Duration>) {
        match time {
            Some(time) => {
                let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                self.histogram.saturating_record(ns.max(1));
            }
            None => self.failed += 1,
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Cannot fail: both have the same bounds.
        let _ = self.histogram.add(&other.histogram);
        self.failed += other.failed;
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.count() as f64 / self.seconds
    }

    /// The time that this many percent do not exceed, in milliseconds. Zero if there are none.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        self.percentile_us(percent) / 1e3
    }

    fn percentile_us(&self, percent: f64) -> f64 {
        self.histogram.value_at_percentile(percent) as f64 / 1e3
    }

    /// What tables show of them, each with its metric's name.
    pub(crate) fn values(&self) -> [(&'static str, f64); 5] {
        [
            ("p50_us", self.percentile_us(50.0)),
            ("p90_us", self.percentile_us(90.0)),
            ("p99_us", self.percentile_us(99.0)),
            ("p999_us", self.percentile_us(99.9)),
            ("max_us", self.histogram.max() as f64 / 1e3),
        ]
    }
}

/// For how long something is repeated, and from when on it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
}

impl Period {
    /// Recorded from the first one on.
    pub(crate) fn of(measure: Duration) -> Self {
        Self {
            warm_up: Duration::ZERO,
            measure,
        }
    }

    pub(crate) fn begin(self) -> Recording {
        let recorded_from = Instant::now() + self.warm_up;
        Recording {
            recorded_from,
            end: recorded_from + self.measure,
            times: Times::default(),
        }
    }
}

/// What is repeated until its period is over.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    recorded_from: Instant,
    end: Instant,
    pub(crate) times: Times,
}

impl Recording {
    /// The time at which the next one begins: now; `None` once the period is over.
    pub(crate) fn next(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if now < self.end {
            return Some(now);
        }
        self.times.seconds = (now - self.recorded_from).as_secs_f64();
        None
    }

    /// Notes one that began then, unless that was the warm-up.
    pub(crate) fn note(&mut self, began: Instant, time: Option<Duration>) {
        if began >= self.recorded_from {
            self.times.note(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut times = Times::default();
        (1..=1_000).for_each(|us| times.note(Some(Duration::from_micros(us))));
        let close = |a: f64, b: f64| (a - b).abs() <= b / 500.0;
        let wanted = [500.0, 900.0, 990.0, 999.0, 1_000.0];
        for ((_, value), wanted) in times.values().into_iter().zip(wanted) {
            assert!(close(value, wanted), "{value} {wanted}");
        }
        assert!(close(times.percentile_ms(50.0), 0.5));
    }

    #[test]
    fn merged_times_count_together_and_those_out_of_bounds_at_the_bound() {
        let (mut one, mut other) = (Times::default(), Times::default());
        assert_eq!(one.percentile_ms(50.0), 0.0);
        one.note(Some(Duration::ZERO));
        other.note(Some(Duration::from_secs(1_000_000)));
        other.note(None);
        one.merge(&other);
        assert_eq!((one.count(), one.failed), (2, 1));
        assert!(one.percentile_ms(100.0) >= 119_000.0);
    }
}
