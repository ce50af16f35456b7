//! Sending one UDP packet into a lane: as one datagram if it fits, otherwise as fragments if that
//! is allowed.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Instant;

use qmux_proto::control::Message;
use qmux_proto::datagram::{self, Header};

use crate::buffer::Datagram;
use crate::core::counters::CoreCounters;
use crate::quic::lane::{DatagramRefused, Lane};

/// The part of a lane that a UDP flow needs. Tests put a lane of their own in its place.
pub(crate) trait FlowLane {
    /// Number of the lane, for the log.
    fn key(&self) -> u64;
    /// The largest datagram that one packet carries now. 0 if none can be sent.
    fn datagram_room(&self) -> usize;
    /// Queues a datagram.
    ///
    /// # Errors
    /// The datagram is gone in each case; the caller counts it.
    fn send_datagram(&self, datagram: Datagram) -> Result<(), DatagramRefused>;
    /// Adds a small packet to others of this turn. `None` if it must be sent as a datagram of its
    /// own.
    fn bundle(&self, header: &Header<'_>, payload: &[u8]) -> Option<Result<(), DatagramRefused>>;
    /// Queues a control message.
    fn send_control(&self, message: &Message);
    /// Notes that something was queued that the peer must acknowledge.
    fn asked(&self, now: Instant);
    /// Whether the peer leaves unanswered what was sent to it.
    fn is_silent(&self) -> bool;
    /// Counts the datagrams that were lost on the lane since the last call.
    fn count_datagrams(&self);
}

impl FlowLane for Lane {
    fn key(&self) -> u64 {
        Lane::key(self)
    }

    fn datagram_room(&self) -> usize {
        Lane::datagram_room(self)
    }

    fn send_datagram(&self, datagram: Datagram) -> Result<(), DatagramRefused> {
        Lane::send_datagram(self, datagram)
    }

    fn bundle(&self, header: &Header<'_>, payload: &[u8]) -> Option<Result<(), DatagramRefused>> {
        Lane::bundle(self, header, payload)
    }

    fn send_control(&self, message: &Message) {
        Lane::send_control(self, message);
    }

    fn asked(&self, now: Instant) {
        self.asked_by_datagram(now);
    }

    fn is_silent(&self) -> bool {
        Lane::is_silent(self)
    }

    fn count_datagrams(&self) {
        Lane::count_datagrams(self);
    }
}

/// What the peer must know to make a flow.
#[derive(Clone, Copy)]
pub(crate) struct Introduction<'a> {
    /// The visitor's address.
    pub(crate) visitor: SocketAddr,
    /// The address that the visitor sends to, for peers that can read it.
    pub(crate) traffic: Option<SocketAddr>,
    /// The name of the service.
    pub(crate) service: &'a str,
}

/// Sends one packet of `flow_id`. With an `introduction` the peer can make the flow from it.
/// `packet_id` counts the flow's packets that are cut into fragments. What cannot be sent is
/// dropped and counted.
pub(crate) fn send(
    lane: &dyn FlowLane,
    flow_id: u64,
    introduction: Option<Introduction<'_>>,
    payload: &[u8],
    packet_id: &Cell<u64>,
    fragmentation: bool,
    counters: &CoreCounters,
) {
    let header = match introduction {
        None => Header::Whole { flow_id },
        Some(Introduction {
            visitor,
            traffic,
            service,
        }) => Header::First {
            flow_id,
            visitor,
            traffic,
            service,
        },
    };
    let room = lane.datagram_room();
    let sent = if header.encoded_len() + payload.len() <= room {
        send_datagram(lane, &header, payload)
    } else if fragmentation && room > 0 {
        send_fragments(lane, &header, payload, room, packet_id)
            .inspect(|()| counters.udp_datagrams_fragmented.increment())
    } else if room > 0 {
        Err(DatagramRefused::TooLarge)
    } else {
        Err(DatagramRefused::Closed)
    };
    match sent {
        Ok(()) => {
            counters.udp_datagrams_in.increment();
            counters.udp_bytes_in.add(payload.len() as u64);
        }
        Err(DatagramRefused::QueueFull) => counters.udp_dropped_queue_full.increment(),
        Err(DatagramRefused::TooLarge) => counters.udp_dropped_too_large.increment(),
        // The lane has ended a moment ago, or its peer takes no datagrams: there is no client for
        // this packet.
        Err(DatagramRefused::Closed) => counters.udp_dropped_no_client.increment(),
    }
}

fn send_datagram(
    lane: &dyn FlowLane,
    header: &Header<'_>,
    payload: &[u8],
) -> Result<(), DatagramRefused> {
    if let Some(bundled) = lane.bundle(header, payload) {
        return bundled;
    }
    let mut datagram = Datagram::with_capacity(header.encoded_len() + payload.len());
    let bytes = datagram.bytes_mut();
    header.encode(bytes);
    bytes.extend_from_slice(payload);
    lane.send_datagram(datagram)
}

/// Sends all fragments of a packet, or as many as the lane takes; if one of them is missing the
/// others are useless.
fn send_fragments(
    lane: &dyn FlowLane,
    header: &Header<'_>,
    payload: &[u8],
    room: usize,
    packet_id: &Cell<u64>,
) -> Result<(), DatagramRefused> {
    let id = packet_id.get();
    // The header's length depends on neither index nor count.
    let longest = fragment_header(header, id, 0, 1).encoded_len();
    let fragments = room
        .checked_sub(longest)
        .and_then(|room| datagram::split(payload.len(), room))
        .ok_or(DatagramRefused::TooLarge)?;
    packet_id.set(id + 1);
    for (index, count, range) in fragments {
        let header = fragment_header(header, id, index, count);
        send_datagram(lane, &header, &payload[range])?;
    }
    Ok(())
}

fn fragment_header<'a>(whole: &Header<'a>, packet_id: u64, index: u8, count: u8) -> Header<'a> {
    let flow_id = whole.flow_id();
    match whole.introduction() {
        None => Header::Fragment {
            flow_id,
            packet_id,
            index,
            count,
        },
        Some((visitor, service)) => Header::FirstFragment {
            flow_id,
            packet_id,
            index,
            count,
            visitor,
            traffic: whole.traffic(),
            service,
        },
    }
}
