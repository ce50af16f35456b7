//! PathChallenge and PathResponse: the proof that a client receives at the address that its packets
//! come from.
//!
//! They do on the control stream what QUIC's frames of the same names do (RFC 9000 section 8.2) for
//! a side to which a lane is one path under changing addresses.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// Server: packets came from another address, to which this nonce was sent; the client is to return
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathChallenge {
    /// Cannot be guessed, and was sent to no other address. At most [`varint::MAX`].
    pub nonce: u64,
}

/// Client: the answer to a challenge, from the address at which it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathResponse {
    /// The nonce of the challenge.
    pub nonce: u64,
}

impl PathChallenge {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.nonce);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            nonce: wire::varint(buf, "path challenge")?,
        })
    }
}

impl PathResponse {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.nonce);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            nonce: wire::varint(buf, "path response")?,
        })
    }
}
