//! Bundles: small UDP packets of one turn, together in one DATAGRAM frame.
//!
//! Each frame costs quiche an allocation, an entry in its queues and some look-ups, on both sides,
//! which is most of the cost of a packet of 64 bytes. The packets of a turn leave in the same QUIC
//! packet anyway, so putting them into one frame loses no more and delays nothing. A bundle ends
//! when the QUIC packet is full, at a packet that is not small, or at the flush, which comes at the
//! end of the turn. A packet that stays alone is sent as a frame of its own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use qmux_proto::datagram::{self, Bundle, Header};

use super::{DatagramRefused, Lane, LaneEvents};
use crate::buffer::Datagram;

/// The longest packet that is bundled, with its header. Longer ones gain little: a packet of 1,500
/// bytes has room for two.
const SMALL_BYTES_MAX: usize = 512;

/// The bundles of one lane; see the module.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    /// Whether the peer takes bundles.
    taken: Cell<bool>,
    /// Whether the peer knows that this side takes them: a client learns it by the first that it
    /// gets.
    shown: Cell<bool>,
    open: RefCell<Option<Open>>,
}

/// A bundle that waits for the rest of its turn.
#[derive(Debug)]
struct Open {
    datagram: Datagram,
    packets: usize,
    /// The most bytes that it may have.
    room: usize,
    is_bundle: bool,
}

impl Open {
    /// Makes a bundle of the only packet that is there.
    fn become_bundle(&mut self) {
        let mut bundle = Datagram::with_capacity(self.room);
        let first = self.datagram.as_ref();
        datagram::begin_bundle(bundle.bytes_mut());
        datagram::put_bundled_len(bundle.bytes_mut(), first.len());
        bundle.bytes_mut().extend_from_slice(first);
        self.datagram = bundle;
        self.is_bundle = true;
    }

    /// Makes a place for a packet of `length` bytes, which the caller has to fill. Returns false if
    /// there is no room.
    fn takes(&mut self, length: usize) -> bool {
        let used = if self.is_bundle {
            self.datagram.as_ref().len()
        } else {
            datagram::BUNDLE_MARK.len() + datagram::bundled_len(self.datagram.as_ref().len())
        };
        if used + datagram::bundled_len(length) > self.room {
            return false;
        }
        if !self.is_bundle {
            self.become_bundle();
        }
        datagram::put_bundled_len(self.datagram.bytes_mut(), length);
        self.packets += 1;
        true
    }
}

impl Lane {
    fn is_servers(&self) -> bool {
        self.conn.borrow().is_server()
    }

    /// Notes that the peer takes bundles.
    pub(crate) fn peer_takes_bundles(&self) {
        self.bundles.taken.set(true);
    }

    /// Adds a small packet to others of this turn. `None` if it must be sent as a datagram of its
    /// own.
    pub(crate) fn bundle(
        &self,
        header: &Header<'_>,
        payload: &[u8],
    ) -> Option<Result<(), DatagramRefused>> {
        let length = header.encoded_len() + payload.len();
        if !self.bundles.taken.get() || length > SMALL_BYTES_MAX {
            return None;
        }
        let mut open = self.bundles.open.borrow_mut();
        if let Some(open) = &mut *open
            && open.takes(length)
        {
            header.encode(open.datagram.bytes_mut());
            open.datagram.bytes_mut().extend_from_slice(payload);
            return Some(Ok(()));
        }
        drop(open);
        self.close_bundle();
        if !self.is_open() {
            return Some(Err(DatagramRefused::Closed));
        }
        if self.datagram_queue_is_full() {
            return Some(Err(DatagramRefused::QueueFull));
        }
        let room = self.datagram_room();
        if length > room {
            return None;
        }
        let mut datagram = Datagram::with_capacity(length);
        header.encode(datagram.bytes_mut());
        datagram.bytes_mut().extend_from_slice(payload);
        let mut open = Open {
            datagram,
            packets: 1,
            room,
            is_bundle: false,
        };
        // A client learns by the first bundle that it may send them.
        let fits = datagram::BUNDLE_MARK.len() + datagram::bundled_len(length) <= room;
        if fits && !self.bundles.shown.replace(true) && self.is_servers() {
            open.become_bundle();
        }
        *self.bundles.open.borrow_mut() = Some(open);
        self.mark_dirty();
        Some(Ok(()))
    }

    /// Queues the bundle that has been collected so far.
    pub(in crate::quic) fn close_bundle(&self) {
        let Some(open) = self.bundles.open.borrow_mut().take() else {
            return;
        };
        let Some(endpoint) = self.endpoint.upgrade() else {
            return;
        };
        let counters = endpoint.counters();
        let packets = open.packets as u64;
        if open.packets > 1 {
            counters.udp_bundles_sent.increment();
            counters.udp_datagrams_bundled.add(packets);
        }
        match self.queue_datagram(open.datagram) {
            Ok(()) => {}
            Err(DatagramRefused::QueueFull) => counters.udp_dropped_queue_full.add(packets),
            Err(DatagramRefused::TooLarge) => counters.udp_dropped_too_large.add(packets),
            Err(DatagramRefused::Closed) => counters.udp_dropped_lane_ended.add(packets),
        }
    }

    /// Drops the bundle of a lane that has ended; returns the number of its packets.
    pub(super) fn drop_bundle(&self) -> usize {
        let open = self.bundles.open.borrow_mut().take();
        open.map_or(0, |open| open.packets)
    }

    /// Delivers the packets of a bundle that was received.
    pub(super) fn unbundle(self: &Rc<Self>, bundle: Bundle<'_>, events: &dyn LaneEvents) {
        if !self.is_servers() {
            self.bundles.taken.set(true);
        }
        for packet in bundle {
            match packet {
                Ok(packet) => events.datagram(self, packet),
                Err(error) => {
                    if let Some(endpoint) = self.endpoint.upgrade() {
                        endpoint.counters().udp_bundles_invalid.increment();
                    }
                    tracing::debug!(lane = self.key, %error, "bundle");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8], room: usize) -> Open {
        Open {
            datagram: Datagram::from(bytes.to_vec()),
            packets: 1,
            room,
            is_bundle: false,
        }
    }

    fn packets(open: &Open) -> Vec<&[u8]> {
        let bundle = Bundle::of(open.datagram.as_ref()).expect("a bundle");
        bundle.map(|packet| packet.expect("whole")).collect()
    }

    #[test]
    fn a_second_packet_makes_a_bundle_of_the_first() {
        let mut open = open(b"first", 100);
        assert!(Bundle::of(open.datagram.as_ref()).is_none());
        assert!(open.takes(3));
        open.datagram.bytes_mut().extend_from_slice(b"two");
        assert_eq!(packets(&open), [&b"first"[..], b"two"]);
    }

    #[test]
    fn a_bundle_is_no_larger_than_its_room() {
        // The mark, and twice a length of one byte and three bytes.
        let mut exact = open(b"one", 8 + 4 + 4);
        assert!(!exact.takes(4));
        assert!(exact.takes(3));
        exact.datagram.bytes_mut().extend_from_slice(b"two");
        assert_eq!(exact.datagram.as_ref().len(), exact.room);
        assert!(!exact.takes(0), "even an empty packet has a length");
        assert_eq!(exact.packets, 2);
    }
}
