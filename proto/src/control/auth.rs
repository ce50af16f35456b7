//! AuthChallenge and AuthProof: how a client proves that it knows the token without sending it.
//!
//! This crate carries the bytes; what the proof is computed from belongs to the dataplane.

use std::fmt;

use crate::error::DecodeError;
use crate::wire;

/// The bytes of a challenge's nonce: 256 random bits never repeat.
pub const AUTH_NONCE_BYTES: usize = 32;

/// The longest proof in bytes: HMAC-SHA-512 (RFC 2104).
pub const AUTH_PROOF_BYTES_MAX: usize = 64;

/// A server asks for a proof that is bound to this nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthChallenge {
    /// Random bytes, drawn for this lane.
    pub nonce: [u8; AUTH_NONCE_BYTES],
}

/// A client's answer to a challenge. Compare it in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthProof {
    /// The message authentication code, at most [`AUTH_PROOF_BYTES_MAX`] bytes.
    pub mac: Vec<u8>,
}

impl AuthChallenge {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.nonce);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            nonce: wire::array(buf, "challenge nonce")?,
        })
    }
}

impl AuthProof {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let length = self.mac.len();
        assert!(
            length <= AUTH_PROOF_BYTES_MAX,
            "a proof of {length} bytes is too long"
        );
        wire::put_bytes(out, &self.mac);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            mac: wire::bounded_bytes(buf, "proof", AUTH_PROOF_BYTES_MAX)?.to_vec(),
        })
    }
}

/// The proof stays out of logs: with it and the nonce, weak tokens can be guessed.
impl fmt::Debug for AuthProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthProof")
            .field("mac_bytes", &self.mac.len())
            .finish_non_exhaustive()
    }
}
