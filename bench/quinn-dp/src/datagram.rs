//! UDP packets on a lane: the header in front, fragments where a packet does not fit, many received
//! in one turn.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use qmux_proto::FlowError;
use qmux_proto::datagram::{Header, split};
use qmux_proto::reassembly::Limits;
use quinn::{Connection, ConnectionError, SendDatagramError};

use crate::lane::Lane;

/// The memory from which datagrams are cut: one allocation for some fifty packets of the usual
/// size.
const ARENA_BYTES: usize = 64 << 10;

/// Datagrams that are handed on before what they caused is sent.
const BATCH_MAX: usize = 128;

/// What a lane may hold of packets that are not complete yet. Fragments travel together, so a
/// second is long.
pub(crate) const REASSEMBLY_LIMITS: Limits = Limits {
    flows_max: 1_024,
    packets_max: 1_024,
    packets_per_flow_max: 64,
    bytes_max: 8 << 20,
    age_max: Duration::from_secs(1),
};

/// The shortest time between two reports of one unknown flow, and the most unknown flows that are
/// reported in that time.
const UNKNOWN_REPORT_INTERVAL: Duration = Duration::from_secs(1);
const UNKNOWN_REPORTS_MAX: usize = 256;

/// Why a packet did not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// The packet is larger than one datagram, and fragmentation is off or does not help.
    TooLarge,
    /// The lane is gone or takes no datagrams.
    LaneClosed,
}

/// The visitor of a flow, which the peer is told until it has shown that it knows the flow.
pub(crate) type Introduction = Option<SocketAddr>;

/// Sends packets on lanes.
#[derive(Debug)]
pub(crate) struct DatagramWriter {
    arena: BytesMut,
    fragmentation: bool,
}

impl DatagramWriter {
    pub(crate) fn new(fragmentation: bool) -> Self {
        Self {
            arena: BytesMut::new(),
            fragmentation,
        }
    }

    /// Sends a packet of a flow; `packet_id` counts those that are cut.
    pub(crate) fn send(
        &mut self,
        connection: &Connection,
        flow_id: u64,
        introduction: Introduction,
        packet_id: &mut u64,
        payload: &[u8],
    ) -> Result<(), NotSent> {
        let header = match introduction {
            None => Header::Whole { flow_id },
            Some(visitor) => Header::First {
                flow_id,
                visitor,
                traffic: None,
                service: "",
            },
        };
        let datagram = self.encode(&header, payload);
        match connection.send_datagram(datagram) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::TooLarge) if self.fragmentation => {
                self.send_fragments(connection, flow_id, introduction, packet_id, payload)
            }
            Err(SendDatagramError::TooLarge) => Err(NotSent::TooLarge),
            Err(_) => Err(NotSent::LaneClosed),
        }
    }

    fn send_fragments(
        &mut self,
        connection: &Connection,
        flow_id: u64,
        introduction: Introduction,
        packet_id: &mut u64,
        payload: &[u8],
    ) -> Result<(), NotSent> {
        let packet = *packet_id;
        *packet_id += 1;
        let header = |index, count| match introduction {
            None => Header::Fragment {
                flow_id,
                packet_id: packet,
                index,
                count,
            },
            Some(visitor) => Header::FirstFragment {
                flow_id,
                packet_id: packet,
                index,
                count,
                visitor,
                traffic: None,
                service: "",
            },
        };
        let datagram_bytes_max = connection.max_datagram_size().ok_or(NotSent::LaneClosed)?;
        let room = datagram_bytes_max.saturating_sub(header(0, 1).encoded_len());
        for (index, count, range) in split(payload.len(), room).ok_or(NotSent::TooLarge)? {
            let datagram = self.encode(&header(index, count), &payload[range]);
            match connection.send_datagram(datagram) {
                Ok(()) => {}
                Err(SendDatagramError::TooLarge) => return Err(NotSent::TooLarge),
                Err(_) => return Err(NotSent::LaneClosed),
            }
        }
        Ok(())
    }

    fn encode(&mut self, header: &Header<'_>, payload: &[u8]) -> Bytes {
        let bytes = header.encoded_len() + payload.len();
        if self.arena.capacity() < bytes {
            self.arena.reserve(ARENA_BYTES.max(bytes));
        }
        header.encode(&mut self.arena);
        self.arena.extend_from_slice(payload);
        self.arena.split().freeze()
    }
}

/// Tells the peer of flows that are not known, and each of them once in a while: datagrams that are
/// under way when a flow ends would else cause a message each.
#[derive(Debug, Default)]
pub(crate) struct UnknownFlows {
    reported: HashSet<u64>,
    since: Option<Instant>,
}

impl UnknownFlows {
    pub(crate) fn report(&mut self, lane: &Lane, flow_id: u64) {
        if self
            .since
            .is_none_or(|since| since.elapsed() >= UNKNOWN_REPORT_INTERVAL)
        {
            self.reported.clear();
            self.since = Some(Instant::now());
        }
        if self.reported.len() < UNKNOWN_REPORTS_MAX && self.reported.insert(flow_id) {
            lane.send_flow_closed(flow_id, FlowError::UnknownFlow);
        }
    }
}

/// Waits for datagrams and adds those that are there to `batch`.
///
/// # Errors
/// The lane has ended.
pub(crate) async fn receive(
    connection: &Connection,
    batch: &mut Vec<Bytes>,
) -> Result<(), ConnectionError> {
    batch.push(connection.read_datagram().await?);
    while batch.len() < BATCH_MAX {
        let mut next = pin!(connection.read_datagram());
        let ready = poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(datagram) => Poll::Ready(Some(datagram)),
            Poll::Pending => Poll::Ready(None),
        });
        match ready.await {
            Some(Ok(datagram)) => batch.push(datagram),
            // The next call finds the end of the lane again.
            Some(Err(_)) | None => break,
        }
    }
    Ok(())
}
