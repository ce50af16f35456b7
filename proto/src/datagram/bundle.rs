//! Several small packets in one QUIC datagram.
//!
//! ```text
//! bundle = mark, packet, packet, …
//! mark   = ff ff ff ff ff ff ff ff
//! packet = length (varint), datagram of this length: header and payload
//! ```
//!
//! The mark would be the largest of all flow ids; flow ids count up from small ones, so that no
//! datagram of a flow begins with it. A peer may send bundles to a client that has said in its
//! Register that it takes them ([`Capabilities::BUNDLES`](crate::control::Capabilities::BUNDLES)),
//! and a client to a server that has sent it one. What is in a bundle shares the fate of its
//! packet, as it would if it were in frames of its own.

use crate::error::DecodeError;
use crate::varint;

/// The bytes that a bundle begins with.
pub const BUNDLE_MARK: [u8; 8] = [0xff; 8];

/// A datagram that may be a bundle.
///
/// This is an iterator over its packets, each as it would be in a datagram of its own. After an
/// error the rest cannot be read.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    rest: &'a [u8],
}

impl<'a> Bundle<'a> {
    /// The bundle in this datagram, if it is one.
    pub fn of(datagram: &'a [u8]) -> Option<Self> {
        let rest = datagram.strip_prefix(&BUNDLE_MARK)?;
        Some(Self { rest })
    }
}

impl<'a> Iterator for Bundle<'a> {
    type Item = Result<&'a [u8], DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut rest = std::mem::take(&mut self.rest);
        let split = varint::get(&mut rest)
            .ok()
            .and_then(|length| usize::try_from(length).ok())
            .and_then(|length| rest.split_at_checked(length));
        let Some((packet, rest)) = split else {
            return Some(Err(DecodeError::Truncated {
                field: "packet of a bundle",
            }));
        };
        self.rest = rest;
        Some(Ok(packet))
    }
}

/// The bytes that a packet of this length takes in a bundle.
pub fn bundled_len(packet: usize) -> usize {
    varint::size(packet as u64) + packet
}

/// Begins a bundle.
pub fn begin_bundle(out: &mut Vec<u8>) {
    out.extend_from_slice(&BUNDLE_MARK);
}

/// Writes the length of the next packet of a bundle; the packet has to follow.
pub fn put_bundled_len(out: &mut Vec<u8>, packet: usize) {
    varint::put(out, packet as u64);
}
