//! Measurements of the path to a peer for operators: round trip time and lost packets.
//!
//! A core publishes them now and then, with a lane's heartbeats. Readers get the last ones, without
//! asking a core.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::core::CoreContext;

/// The measurements of one lane at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PathSample {
    /// The smoothed round trip time.
    pub(crate) rtt: Duration,
    /// Packets that were declared lost since the lane began.
    pub(crate) lost_packets: u64,
    /// The congestion window in bytes.
    pub(crate) window_bytes: u64,
}

impl PathSample {
    /// Adds the measurements to the core's metrics.
    pub(crate) fn count(&self, newly_lost: u64, core: &CoreContext) {
        core.counters.quic_packets_lost.add(newly_lost);
        core.histograms.lane_rtt_seconds.observe_time(self.rtt);
        let window = &core.histograms.lane_congestion_window_bytes;
        window.observe(self.window_bytes as f64);
    }
}

/// The number of lost packets that a lane has reported so far.
#[derive(Debug, Default)]
pub(crate) struct LossTold(Cell<u64>);

impl LossTold {
    /// Packets lost since the last report.
    pub(crate) fn news(&self, sample: &PathSample) -> u64 {
        let before = self.0.replace(sample.lost_packets);
        sample.lost_packets.saturating_sub(before)
    }
}

/// The measurements of all lanes of a peer together.
#[derive(Debug, Default)]
pub(crate) struct PathNumbers {
    rtt_us: AtomicU64,
    lost_packets: AtomicU64,
}

impl PathNumbers {
    /// Takes the report of a lane: the newest round trip time counts, losses add up.
    pub(crate) fn note(&self, sample: &PathSample, newly_lost: u64) {
        let rtt_us = u64::try_from(sample.rtt.as_micros()).unwrap_or(u64::MAX);
        self.rtt_us.store(rtt_us, Ordering::Relaxed);
        if newly_lost > 0 {
            self.lost_packets.fetch_add(newly_lost, Ordering::Relaxed);
        }
    }

    /// Round trip time in microseconds; 0 before any lane has reported.
    pub(crate) fn rtt_us(&self) -> u64 {
        self.rtt_us.load(Ordering::Relaxed)
    }

    /// Packets that this side has sent and that were lost, since the peer's first lane.
    pub(crate) fn lost_packets(&self) -> u64 {
        self.lost_packets.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lanes_losses_are_counted_once_however_often_it_tells() {
        let (peer, told) = (PathNumbers::default(), LossTold::default());
        for lost_packets in [3, 3, 5] {
            let sample = PathSample {
                rtt: Duration::from_millis(lost_packets),
                lost_packets,
                window_bytes: 0,
            };
            peer.note(&sample, told.news(&sample));
        }
        assert_eq!((peer.rtt_us(), peer.lost_packets()), (5_000, 5));
    }
}
