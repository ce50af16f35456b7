//! What a link did, and how well it kept its promise.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::scheduler::Counters;

/// Both directions of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// From [`Side::Left`](super::Side::Left).
    pub left_to_right: DirectionStats,
    /// From [`Side::Right`](super::Side::Right).
    pub right_to_left: DirectionStats,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectionStats {
    /// What happened to packets.
    pub counters: Counters,
    /// Packets that the sending side's interface dropped because the router did not fetch them in
    /// time. Not asked for: anything but 0 means that the machine is too slow for what was sent.
    pub dropped_by_interface_packets: u64,
    /// Packets that could not be read from or written to an interface.
    pub failed_packets: u64,
    /// How much later than due packets left the link.
    pub lateness: Lateness,
    /// The processor time that the router used for this direction.
    pub cpu: Duration,
}

/// How much later than due packets left the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Half of the packets were not later.
    pub p50: Duration,
    /// 99 % of the packets were not later.
    pub p99: Duration,
    /// No packet was later.
    pub max: Duration,
}

/// Values above this count as this: a link that is a minute late has stopped.
const LATENESS_MAX: Duration = Duration::from_secs(60);

/// What the router of one direction writes and [`DirectionStats`] is made of.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    pub(super) failed_packets: u64,
    lateness_ns: Histogram<u64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let lateness_ns = Histogram::new_with_max(LATENESS_MAX.as_nanos() as u64, 2)
            .expect("two digits up to a minute is a valid histogram");
        Self {
            counters: Counters::default(),
            failed_packets: 0,
            lateness_ns,
        }
    }

    pub(super) fn record_lateness(&mut self, lateness: Duration) {
        self.lateness_ns
            .saturating_record(u64::try_from(lateness.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn lateness(&self) -> Lateness {
        let quantile = |q| Duration::from_nanos(self.lateness_ns.value_at_quantile(q));
        Lateness {
            p50: quantile(0.5),
            p99: quantile(0.99),
            max: Duration::from_nanos(self.lateness_ns.max()),
        }
    }
}
