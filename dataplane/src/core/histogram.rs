//! Histograms of a core: one writer (the core), any reader, like its counters.

use std::time::Duration;

use super::counters::Counter;

/// The most bounds that a histogram has: each is a line in every answer to a scraper.
const BOUNDS_MAX: usize = 12;

/// Upper bounds in seconds for times from a fraction of a millisecond to half a minute.
const SECONDS: [f64; BOUNDS_MAX] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// Upper bounds in seconds for the lifetimes of flows: from one request to days.
const LIVES: [f64; BOUNDS_MAX] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0,
];

/// Upper bounds in bytes for congestion windows.
const BYTES: [f64; BOUNDS_MAX] = [
    8e3, 16e3, 32e3, 64e3, 128e3, 256e3, 512e3, 1e6, 2e6, 4e6, 8e6, 16e6,
];

/// Unit of the fixed-point sum: microseconds, or millionths of a byte, which are too small to
/// matter.
const SUM_PER_UNIT: f64 = 1e6;

/// A histogram that only its core writes.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64; BOUNDS_MAX],
    /// Number of values up to the bound with the same index and above the one before; the last is
    /// for those above all bounds.
    counts: [Counter; BOUNDS_MAX + 1],
    /// The sum of the values, in millionths.
    sum: Counter,
}

impl Histogram {
    fn new(bounds: &'static [f64; BOUNDS_MAX]) -> Histogram {
        Histogram {
            bounds,
            counts: Default::default(),
            sum: Counter::default(),
        }
    }

    /// Adds a value. Only the owning core may call this.
    pub(crate) fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|bound| value <= *bound);
        self.counts[place.unwrap_or(BOUNDS_MAX)].increment();
        self.sum.add((value * SUM_PER_UNIT) as u64);
    }

    /// Adds a time.
    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// Adds this core's values to those of others.
    pub(crate) fn add_to(&self, total: &mut Total) {
        total.sum += self.sum.get() as f64 / SUM_PER_UNIT;
        total.bounds = self.bounds;
        for (total, count) in total.counts.iter_mut().zip(&self.counts) {
            *total += count.get();
        }
    }
}

/// The values of several cores.
#[derive(Debug)]
pub(crate) struct Total {
    bounds: &'static [f64; BOUNDS_MAX],
    counts: [u64; BOUNDS_MAX + 1],
    sum: f64,
}

impl Default for Total {
    fn default() -> Self {
        Total {
            bounds: &SECONDS,
            counts: [0; BOUNDS_MAX + 1],
            sum: 0.0,
        }
    }
}

impl Total {
    /// The sum of all values.
    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// Number of values.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// For each bound, the number of values up to it and above the one before; the last bound is
    /// infinite.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }
}

macro_rules! histograms {
    ($($(#[doc = $doc:literal])+ $name:ident: $bounds:ident),+ $(,)?) => {
        /// What one core has measured.
        #[derive(Debug)]
        pub(crate) struct CoreHistograms {
            $($(#[doc = $doc])+ pub(crate) $name: Histogram,)+
        }

        impl Default for CoreHistograms {
            fn default() -> Self {
                CoreHistograms { $($name: Histogram::new(&$bounds),)+ }
            }
        }

        /// Calls `each` with the name, the explanation and the values of all cores of every
        /// histogram.
        pub(crate) fn for_each<'a>(
            cores: impl Iterator<Item = &'a CoreHistograms> + Clone,
            mut each: impl FnMut(&'static str, &'static str, &Total),
        ) {
            $(
                let mut total = Total::default();
                for core in cores.clone() {
                    core.$name.add_to(&mut total);
                }
                each(stringify!($name), concat!($($doc),+).trim_start(), &total);
            )+
        }
    };
}

histograms! {
    /// Time that a client took to connect to its service, for connections that came about.
    dial_seconds: SECONDS,
    /// Time from a TCP visitor's arrival to the first byte of the service's answer at the server,
    /// where one came soon.
    first_byte_seconds: SECONDS,
    /// How long TCP visitors' flows lasted at the server.
    tcp_flow_seconds: LIVES,
    /// Round trip times of registered lanes, one value per lane and heartbeat.
    lane_rtt_seconds: SECONDS,
    /// Congestion windows of registered lanes, one value per lane and heartbeat.
    lane_congestion_window_bytes: BYTES,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_cores_are_counted_by_the_first_bound_that_is_not_below_them() {
        let cores = [CoreHistograms::default(), CoreHistograms::default()];
        cores[0].dial_seconds.observe(0.001);
        cores[1]
            .dial_seconds
            .observe_time(Duration::from_micros(1_001));
        cores[1].dial_seconds.observe(1e3);
        let mut seen = Vec::new();
        for_each(cores.iter(), |name, help, total| {
            assert!(help.ends_with('.'), "{name}: {help}");
            if total.count() > 0 {
                assert!((total.sum() - 1_000.002_001).abs() < 1e-6, "{total:?}");
                let filled = total.buckets().into_iter().filter(|(_, count)| *count > 0);
                seen = filled.collect();
            }
        });
        assert_eq!(seen, [(0.001, 1), (0.0025, 1), (f64::INFINITY, 1)]);
    }
}
