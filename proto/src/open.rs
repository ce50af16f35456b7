//! The Open header: the first bytes of a TCP flow's stream, from the server to the client. It tells
//! the client which service to dial and for whom. After it come the visitor's bytes and nothing
//! else.
//!
//! A varint says how many bytes follow; what a later version appends is skipped by that length.

use std::net::SocketAddr;

use crate::address;
use crate::error::DecodeError;
use crate::flow_id;
use crate::protocol::Protocol;
use crate::service::{self, SERVICE_NAME_BYTES_MAX};
use crate::varint;
use crate::wire;

/// The longest Open header in bytes, its length included. Today's fields need at most 193; the rest
/// is for the fields of later versions.
pub const OPEN_HEADER_BYTES_MAX: usize = 512;

/// The longest header that this version writes.
const ENCODED_BYTES_MAX: usize = 2 // length
    + varint::BYTES_MAX // flow id
    + 1 // protocol
    + 2 + SERVICE_NAME_BYTES_MAX
    + 2 * address::BYTES_MAX
    + varint::BYTES_MAX; // opened at

const _: () = assert!(ENCODED_BYTES_MAX <= OPEN_HEADER_BYTES_MAX);

/// The information that a client needs to open its end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHeader {
    /// The id of the flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
    pub flow_id: u64,
    /// The protocol of the service.
    pub protocol: Protocol,
    /// The name of the service, at most [`SERVICE_NAME_BYTES_MAX`] bytes; empty for the service
    /// without a name.
    pub service: String,
    /// The address of the visitor, as the server sees it.
    pub visitor: SocketAddr,
    /// The traffic address that the visitor connected to.
    pub traffic: SocketAddr,
    /// The time at which the server accepted the visitor, in microseconds since the Unix epoch.
    pub opened_at_us: u64,
}

impl OpenHeader {
    /// Appends the header to `out`.
    ///
    /// # Panics
    ///
    /// If a field breaks its limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        flow_id::assert_valid(self.flow_id);
        let body_bytes = varint::size(self.flow_id)
            + 1
            + varint::size(self.service.len() as u64)
            + self.service.len()
            + address::size(&self.visitor)
            + address::size(&self.traffic)
            + varint::size(self.opened_at_us);
        varint::put(out, body_bytes as u64);
        let start = out.len();
        varint::put(out, self.flow_id);
        out.push(self.protocol.code());
        service::put(out, &self.service);
        address::put(out, &self.visitor);
        address::put(out, &self.traffic);
        varint::put(out, self.opened_at_us);
        debug_assert_eq!(out.len() - start, body_bytes);
    }

    /// Reads a header from the front of `bytes`: returns the header and the number of bytes that it
    /// took, or `None` while more bytes are needed. An incomplete header costs only the reading of
    /// its length.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`]; a header longer than [`OPEN_HEADER_BYTES_MAX`] is one as soon as its
    /// length is known.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, DecodeError> {
        let mut rest = bytes;
        let Ok(length) = varint::get(&mut rest) else {
            return Ok(None);
        };
        let prefix_bytes = bytes.len() - rest.len();
        let max = OPEN_HEADER_BYTES_MAX - prefix_bytes;
        let length = match usize::try_from(length) {
            Ok(length) if length <= max => length,
            _ => {
                return Err(DecodeError::TooLong {
                    field: "open header",
                    length,
                    max: max as u64,
                });
            }
        };
        match rest.get(..length) {
            Some(body) => Ok(Some((Self::decode_body(body)?, prefix_bytes + length))),
            None => Ok(None),
        }
    }

    fn decode_body(mut body: &[u8]) -> Result<Self, DecodeError> {
        let buf = &mut body;
        Ok(Self {
            flow_id: flow_id::get(buf)?,
            protocol: Protocol::from_code(wire::byte(buf, "protocol")?)?,
            service: service::get(buf)?.to_owned(),
            visitor: address::get(buf, "visitor")?,
            traffic: address::get(buf, "traffic")?,
            opened_at_us: wire::varint(buf, "open time")?,
        })
    }
}
