//! The wire format of qmux-dp: what a server and a client say to each other inside QUIC.
//!
//! This crate owns bytes and their meaning. It has no sockets, no clock and no randomness: time and
//! random bytes come in as arguments, so that everything here can be tested by simulation. It never
//! allocates on the path of a UDP packet and never trusts a length that a peer wrote.
//!
//! | module | what it describes |
//! | --- | --- |
//! | [`varint`] | QUIC variable-length integers |
//! | [`control`] | the messages of stream 0 |
//! | [`open`] | the header in front of a TCP flow |
//! | [`datagram`] | the header in front of a UDP packet |
//! | [`reassembly`] | UDP packets from their fragments |
//! | [`cid`] | connection ids that carry the index of their core |
//! | [`error`] | the codes with which flows and lanes end |
//!
//! Encoders panic on a value that breaks a limit of the format, because such a value is a fault of
//! the program; decoders answer with a [`DecodeError`], because such a value is a fault of the
//! peer.

#![forbid(unsafe_code)]

mod address;
pub mod cid;
mod code;
pub mod control;
pub mod datagram;
pub mod error;
mod flow_id;
pub mod open;
mod protocol;
pub mod reassembly;
mod service;
pub mod varint;
mod wire;

pub use cid::{CID_LEN, ConnectionId};
pub use error::{DecodeError, FlowError, LaneError};
pub use flow_id::FLOW_ID_MAX;
pub use open::OpenHeader;
pub use protocol::Protocol;
pub use reassembly::Reassembler;
pub use service::{SERVICE_NAME_BYTES_MAX, is_valid_service_name};

/// The ALPN token of this protocol (RFC 7301).
pub const ALPN: &[u8] = b"qmux-dp/1";

/// The ALPN token of TLS connections that carry the packets of this protocol where UDP does not
/// pass: each packet with its length in 2 bytes before it, the high one first.
pub const ALPN_OVER_TLS: &[u8] = b"qmux-dp-tls/1";

/// The version that a client states in its Register message.
///
/// It changes when a message changes its meaning. Appending a field to a message does not change
/// it: decoders ignore what they do not know at the end of a message.
pub const PROTOCOL_VERSION: u64 = 1;
