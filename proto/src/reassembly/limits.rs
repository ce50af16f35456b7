//! The limits of a reassembler.

use std::time::Duration;

use super::buffers::BUFFER_BYTES_MAX;

/// The smallest [`Limits::bytes_max`]: a packet whose last fragment came first may move once from a
/// smaller buffer to the largest, and holds both meanwhile.
pub const BYTES_MAX_MIN: usize = 2 * BUFFER_BYTES_MAX;

/// The limits of one reassembler. At a limit the oldest incomplete packet is given up, one of the
/// same flow if there is one, so that one flow's loss stays its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows that are remembered, with or without an incomplete packet. At this limit the flow that
    /// has not started a packet for the longest time is forgotten.
    pub flows_max: usize,
    /// Incomplete packets in all.
    pub packets_max: usize,
    /// Incomplete packets of one flow.
    pub packets_per_flow_max: usize,
    /// Bytes of all buffers, in use or waiting to be used again; at least [`BYTES_MAX_MIN`].
    pub bytes_max: usize,
    /// How long the fragments of a packet may take to arrive.
    pub age_max: Duration,
}

impl Limits {
    pub(super) fn assert_valid(&self) {
        assert!(self.flows_max > 0, "flows_max must be at least 1");
        assert!(self.packets_max > 0, "packets_max must be at least 1");
        assert!(
            self.packets_per_flow_max > 0,
            "packets_per_flow_max must be at least 1"
        );
        assert!(
            self.bytes_max >= BYTES_MAX_MIN,
            "bytes_max is {}, it must be at least {BYTES_MAX_MIN}",
            self.bytes_max
        );
    }
}
