//! Stateless resets (RFC 9000 section 10.3): how a restarted server tells a client that its lane is gone.
//!
//! The key is derived from the server's private key file, which survives a restart, so that the new process can answer
//! for connection ids of the old one, on any core. Without it a client would wait for its health timeout.

use std::path::Path;

use boring::hash::hmac_sha256;
use qmux_proto::CID_LEN;

/// Separates this use of the private key's bytes from any other.
const LABEL: &[u8] = b"qmux-dp/1 stateless reset key";

/// Smallest packet that can be a stateless reset (RFC 9000 section 10.3).
const RESET_BYTES_MIN: usize = 21;

/// Largest one that we send: enough to look like a packet with a short header.
const RESET_BYTES_MAX: usize = 42;

const TOKEN_BYTES: usize = 16;

/// Derives reset tokens from connection ids.
#[derive(Clone)]
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    /// The key that belongs to a private key file.
    ///
    /// # Errors
    /// With a text if the file cannot be read.
    pub(crate) fn from_key_file(path: &Path) -> Result<ResetKey, String> {
        let secret = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        hmac_sha256(&secret, LABEL)
            .map(ResetKey)
            .map_err(|error| error.to_string())
    }

    /// The token of a connection id.
    pub(super) fn token(&self, id: &[u8; CID_LEN]) -> u128 {
        // HMAC fails only for want of memory; a random token then merely cannot be recognized.
        let mac = hmac_sha256(&self.0, id).unwrap_or_else(|_| rand::random());
        mac.first_chunk::<TOKEN_BYTES>()
            .map_or(0, |token| u128::from_be_bytes(*token))
    }

    /// The answer to a short header packet of an unknown connection, or `None` if the packet is so small that the
    /// answer would not be smaller: two endpoints could answer each other for ever.
    pub(super) fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let id = packet.get(1..)?.first_chunk::<CID_LEN>()?;
        let length = (packet.len() - 1).min(RESET_BYTES_MAX);
        if length < RESET_BYTES_MIN {
            return None;
        }
        let mut answer = vec![0; length];
        rand::fill(&mut answer[..length - TOKEN_BYTES]);
        answer[0] = (answer[0] & 0x3f) | 0x40;
        answer[length - TOKEN_BYTES..].copy_from_slice(&self.token(id).to_be_bytes());
        Some(answer)
    }
}

impl std::fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_in_the_token_of_the_id_and_is_smaller_than_the_packet() {
        let key = ResetKey([7; 32]);
        let mut packet = [0x41u8; 1_200];
        packet[1..=CID_LEN].copy_from_slice(&[9; CID_LEN]);
        for length in [22, 30, 43, 1_200] {
            let answer = key.answer(&packet[..length]).expect("large enough");
            assert!(answer.len() < length && answer.len() >= RESET_BYTES_MIN);
            assert_eq!(answer[0] & 0xc0, 0x40, "looks like a short header");
            assert_eq!(
                answer[answer.len() - 16..],
                key.token(&[9; CID_LEN]).to_be_bytes()
            );
        }
        assert_eq!(key.answer(&packet[..21]), None);
        assert_ne!(key.token(&[9; CID_LEN]), key.token(&[8; CID_LEN]));
        assert_ne!(
            key.token(&[9; CID_LEN]),
            ResetKey([8; 32]).token(&[9; CID_LEN])
        );
    }
}
