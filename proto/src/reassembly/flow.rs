//! The state of a flow: its incomplete packets, and the packet ids that are over.

use super::list::List;

/// How many packet ids back from the highest one that is over a fragment can still start a packet.
/// Fragments further back are late. It is far more than the packets that fit into a path's
/// reordering.
pub const PACKET_WINDOW: u64 = 128;

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) flow_id: u64,
    /// The incomplete packets.
    pub(super) packets: List,
    /// The packet ids that are over.
    pub(super) over: Window,
}

impl Flow {
    pub(super) fn new(flow_id: u64) -> Self {
        Self {
            flow_id,
            packets: List::default(),
            over: Window::default(),
        }
    }
}

/// A set of packet ids: of the last [`PACKET_WINDOW`] each one, and all those before (the sliding
/// window of RFC 4303 section 3.4.3).
#[derive(Debug, Default)]
pub(super) struct Window {
    highest: u64,
    /// Bit n is the id `highest - n`; 0 before the first id.
    bits: u128,
}

const _: () = assert!(PACKET_WINDOW == u128::BITS as u64);

impl Window {
    pub(super) fn contains(&self, id: u64) -> bool {
        if self.bits == 0 || id > self.highest {
            return false;
        }
        let back = self.highest - id;
        back >= PACKET_WINDOW || self.bits >> back & 1 == 1
    }

    pub(super) fn insert(&mut self, id: u64) {
        if self.bits == 0 {
            self.highest = id;
        }
        if id > self.highest {
            let ahead = id - self.highest;
            self.bits = if ahead < PACKET_WINDOW {
                self.bits << ahead
            } else {
                0
            };
            self.highest = id;
        }
        let back = self.highest - id;
        if back < PACKET_WINDOW {
            self.bits |= 1 << back;
        }
    }
}
