//! The header of a datagram.

use std::net::SocketAddr;

use bytes::BufMut;

use super::FRAGMENTS_MAX;
use crate::address;
use crate::error::DecodeError;
use crate::flow_id;
use crate::service;
use crate::varint;
use crate::wire;

const KIND_BITS: u32 = 2;
const KIND_MASK: u64 = (1 << KIND_BITS) - 1;
const KIND_WHOLE: u64 = 0;
const KIND_FIRST: u64 = 1;
const KIND_FRAGMENT: u64 = 2;
const KIND_FIRST_FRAGMENT: u64 = 3;

/// The bytes in front of the payload of a datagram. A header borrows from the datagram: neither
/// encoding nor decoding allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header<'a> {
    /// A whole packet of a flow that the peer knows.
    Whole {
        /// The flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
        flow_id: u64,
    },
    /// A whole packet of a flow that the peer may not know yet.
    First {
        /// The flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
        flow_id: u64,
        /// The address of the visitor, as the server sees it.
        visitor: SocketAddr,
        /// The traffic address that the visitor sends to, for clients with
        /// [`Capabilities::NAMED_SERVICES`](crate::control::Capabilities::NAMED_SERVICES): others
        /// cannot read a header with it.
        traffic: Option<SocketAddr>,
        /// The name of the service, at most
        /// [`SERVICE_NAME_BYTES_MAX`](crate::SERVICE_NAME_BYTES_MAX) bytes.
        service: &'a str,
    },
    /// A part of a packet of a flow that the peer knows.
    Fragment {
        /// The flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
        flow_id: u64,
        /// The packet, counted within the flow and direction; at most [`varint::MAX`].
        packet_id: u64,
        /// The index of the fragment, from 0, below `count`.
        index: u8,
        /// The number of fragments of the packet, 1 to [`FRAGMENTS_MAX`].
        count: u8,
    },
    /// A part of a packet of a flow that the peer may not know yet.
    FirstFragment {
        /// The flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
        flow_id: u64,
        /// The packet, counted within the flow and direction; at most [`varint::MAX`].
        packet_id: u64,
        /// The index of the fragment, from 0, below `count`.
        index: u8,
        /// The number of fragments of the packet, 1 to [`FRAGMENTS_MAX`].
        count: u8,
        /// The address of the visitor, as the server sees it.
        visitor: SocketAddr,
        /// The traffic address that the visitor sends to, for clients with
        /// [`Capabilities::NAMED_SERVICES`](crate::control::Capabilities::NAMED_SERVICES): others
        /// cannot read a header with it.
        traffic: Option<SocketAddr>,
        /// The name of the service, at most
        /// [`SERVICE_NAME_BYTES_MAX`](crate::SERVICE_NAME_BYTES_MAX) bytes.
        service: &'a str,
    },
}

impl<'a> Header<'a> {
    /// The flow.
    pub fn flow_id(&self) -> u64 {
        match *self {
            Self::Whole { flow_id }
            | Self::First { flow_id, .. }
            | Self::Fragment { flow_id, .. }
            | Self::FirstFragment { flow_id, .. } => flow_id,
        }
    }

    /// The visitor and the service, if the header introduces its flow.
    pub fn introduction(&self) -> Option<(SocketAddr, &'a str)> {
        match *self {
            Self::First {
                visitor, service, ..
            }
            | Self::FirstFragment {
                visitor, service, ..
            } => Some((visitor, service)),
            Self::Whole { .. } | Self::Fragment { .. } => None,
        }
    }

    /// Packet id, index and count, if the payload is a part of a packet.
    pub fn fragment(&self) -> Option<(u64, u8, u8)> {
        match *self {
            Self::Fragment {
                packet_id,
                index,
                count,
                ..
            }
            | Self::FirstFragment {
                packet_id,
                index,
                count,
                ..
            } => Some((packet_id, index, count)),
            Self::Whole { .. } | Self::First { .. } => None,
        }
    }

    /// The traffic address that the visitor sends to, if the header introduces its flow and says
    /// so.
    pub fn traffic(&self) -> Option<SocketAddr> {
        match *self {
            Self::First { traffic, .. } | Self::FirstFragment { traffic, .. } => traffic,
            Self::Whole { .. } | Self::Fragment { .. } => None,
        }
    }

    fn kind(&self) -> u64 {
        match self {
            Self::Whole { .. } => KIND_WHOLE,
            Self::First { .. } => KIND_FIRST,
            Self::Fragment { .. } => KIND_FRAGMENT,
            Self::FirstFragment { .. } => KIND_FIRST_FRAGMENT,
        }
    }

    /// The bytes that [`encode`](Self::encode) writes.
    pub fn encoded_len(&self) -> usize {
        let mut length = varint::size(self.flow_id() << KIND_BITS);
        if let Some((packet_id, _, _)) = self.fragment() {
            length += varint::size(packet_id) + 2;
        }
        if let Some((visitor, service)) = self.introduction() {
            length += address::size(&visitor);
            length += self.traffic().map_or(0, |traffic| address::size(&traffic));
            length += varint::size(service.len() as u64) + service.len();
        }
        length
    }

    /// Appends the header; the payload follows it directly.
    ///
    /// # Panics
    ///
    /// If a field breaks its limit, or if `out` has less room than
    /// [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, out: &mut impl BufMut) {
        let flow_id = self.flow_id();
        flow_id::assert_valid(flow_id);
        varint::put(out, flow_id << KIND_BITS | self.kind());
        if let Some((packet_id, index, count)) = self.fragment() {
            assert!(
                index < count && usize::from(count) <= FRAGMENTS_MAX,
                "fragment {index} of {count} cannot be"
            );
            varint::put(out, packet_id);
            out.put_u8(index);
            out.put_u8(count);
        }
        if let Some((visitor, service)) = self.introduction() {
            address::put_pair(out, &visitor, self.traffic().as_ref());
            service::put(out, service);
        }
    }

    /// Reads a datagram: returns the header and the payload.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`]. The caller then drops and counts the datagram; the lane can go on,
    /// because each datagram stands for itself.
    pub fn decode(datagram: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut rest = datagram;
        let buf = &mut rest;
        let first = wire::varint(buf, "flow id and kind")?;
        let flow_id = first >> KIND_BITS;
        let header = match first & KIND_MASK {
            KIND_WHOLE => Self::Whole { flow_id },
            KIND_FIRST => {
                let (visitor, traffic, service) = get_introduction(buf)?;
                Self::First {
                    flow_id,
                    visitor,
                    traffic,
                    service,
                }
            }
            KIND_FRAGMENT => {
                let (packet_id, index, count) = get_fragment(buf)?;
                Self::Fragment {
                    flow_id,
                    packet_id,
                    index,
                    count,
                }
            }
            _ => {
                let (packet_id, index, count) = get_fragment(buf)?;
                let (visitor, traffic, service) = get_introduction(buf)?;
                Self::FirstFragment {
                    flow_id,
                    packet_id,
                    index,
                    count,
                    visitor,
                    traffic,
                    service,
                }
            }
        };
        Ok((header, rest))
    }
}

fn get_introduction<'a>(
    buf: &mut &'a [u8],
) -> Result<(SocketAddr, Option<SocketAddr>, &'a str), DecodeError> {
    let (visitor, traffic) = address::get_pair(buf, "visitor", "traffic")?;
    Ok((visitor, traffic, service::get(buf)?))
}

fn get_fragment(buf: &mut &[u8]) -> Result<(u64, u8, u8), DecodeError> {
    let packet_id = wire::varint(buf, "packet id")?;
    let [index, count] = wire::array(buf, "fragment index and count")?;
    if count == 0 || usize::from(count) > FRAGMENTS_MAX {
        return Err(DecodeError::OutOfRange {
            field: "fragment count",
            value: u64::from(count),
            min: 1,
            max: FRAGMENTS_MAX as u64,
        });
    }
    if index >= count {
        return Err(DecodeError::OutOfRange {
            field: "fragment index",
            value: u64::from(index),
            min: 0,
            max: u64::from(count) - 1,
        });
    }
    Ok((packet_id, index, count))
}
