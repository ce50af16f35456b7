//! From a lane's datagrams to whole UDP packets: the reassembly of one lane, and its counters.

use std::time::{Duration, Instant};

use qmux_proto::datagram::Header;
use qmux_proto::reassembly::{Counters, Limits};
use qmux_proto::{DecodeError, Reassembler};

use super::FLOWS_PER_CORE_MAX;
use crate::core::counters::CoreCounters;

/// How much the peer of a lane may make us hold of packets that are not complete.
const LIMITS: Limits = Limits {
    // As many as there may be flows, so that no flow of the lane is forgotten for another one.
    flows_max: FLOWS_PER_CORE_MAX,
    packets_max: 1_024,
    // Far more than overlap on a path that reorders; one flow must not take what all share.
    packets_per_flow_max: 64,
    // Twice as much as a lane's queue of datagrams holds.
    bytes_max: 8 << 20,
    // The fragments of a packet are sent together: 64 KB take half a second at 1 Mbit/s. This is
    // twice that, and a long path.
    age_max: Duration::from_secs(2),
};

const _: () = assert!(LIMITS.bytes_max >= 2 * crate::quic::lane::DATAGRAM_QUEUE_BYTES_MAX);

/// The incomplete packets of one lane.
#[derive(Debug)]
pub(crate) struct Incoming {
    reassembler: Reassembler,
    reported: Counters,
}

/// The result of [`Incoming::decode`].
pub(crate) type Decoded<'a> = (Header<'a>, &'a [u8]);

impl Incoming {
    pub(crate) fn new() -> Incoming {
        Incoming {
            reassembler: Reassembler::new(LIMITS),
            reported: Counters::default(),
        }
    }

    /// Splits a datagram into header and payload.
    pub(crate) fn decode(datagram: &[u8]) -> Result<Decoded<'_>, DecodeError> {
        Header::decode(datagram)
    }

    /// The whole packet that `payload` is or completes.
    pub(crate) fn packet<'a>(
        &'a mut self,
        header: &Header<'_>,
        payload: &'a [u8],
        now: Instant,
    ) -> Option<&'a [u8]> {
        let Some((packet_id, index, count)) = header.fragment() else {
            return Some(payload);
        };
        self.reassembler
            .push(now, header.flow_id(), packet_id, index, count, payload)
            .ok() // The reassembler has counted why not.
            .flatten()
    }

    /// Forgets a flow that has ended.
    pub(crate) fn forget(&mut self, flow_id: u64) {
        self.reassembler.forget_flow(flow_id);
    }

    /// Gives up packets that took too long, and adds what happened since the last call to the
    /// core's counters.
    pub(crate) fn sweep(&mut self, now: Instant, counters: &CoreCounters) {
        self.reassembler.expire(now);
        self.report(counters);
    }

    /// Adds what happened since the last call to the core's counters.
    pub(crate) fn report(&mut self, counters: &CoreCounters) {
        let total = *self.reassembler.counters();
        if total == self.reported {
            return;
        }
        let given_up = |c: &Counters| c.expired + c.evicted + c.forgotten + c.broken;
        let before = std::mem::replace(&mut self.reported, total);
        counters
            .udp_datagrams_reassembled
            .add(total.completed - before.completed);
        counters
            .udp_dropped_incomplete
            .add(given_up(&total) - given_up(&before));
        counters
            .udp_dropped_malformed
            .add(total.refused - before.refused);
    }
}
