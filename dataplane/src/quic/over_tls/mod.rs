//! QUIC packets inside TLS over TCP, for networks where UDP does not pass.
//!
//! A TLS connection carries the packets of one lane, each with its length in front ([`framing`]).
//! To the lane it is a [`crate::quic::roaming::Way`] like any other, and the lane moves between UDP
//! and TLS as it moves between two addresses. The TLS connection only has to pass middleboxes and
//! to show the client that the server is the right one; QUIC authenticates the client inside.
//!
//! Nothing in here knows a lane: an endpoint feeds lanes with the packets that come ([`way`]).

mod connection;
mod framing;
mod pipe;
pub(super) mod way;

use qmux_proto::ALPN_OVER_TLS;

pub(crate) use connection::{TlsConnection, accept, connect};

/// The protocol that both ends agree on in the TLS handshake, in the form of the ALPN extension,
/// with its length in front.
pub(crate) const ALPN_LIST: &[u8] = b"\x0dqmux-dp-tls/1";

const _: () = assert!(
    ALPN_LIST.len() == ALPN_OVER_TLS.len() + 1 && ALPN_LIST[0] as usize == ALPN_OVER_TLS.len()
);
