//! Retry tokens (RFC 9000 section 8.1.2): a client proves that it receives at its address before a
//! lane is made for it.
//!
//! [`super::admission`] says when this is asked for. A token contains the address, the client's
//! first destination connection id, the connection id that the client is to use instead, and the
//! time, under a MAC with a key of this endpoint alone: the client's next packet comes to the same
//! core, because the new connection id says so. A token is valid only together with that new id.
//! Otherwise its sender could choose a connection id that is for the server to choose.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boring::hash::hmac_sha256;
use qmux_proto::CID_LEN;

/// How long a token is valid: a client answers a Retry at once.
const LIFETIME: Duration = Duration::from_secs(10);

const MAC_BYTES: usize = 32;
const TIME_BYTES: usize = 8;

/// Makes and checks tokens.
pub(super) struct RetryKey {
    key: [u8; 32],
    epoch: Instant,
}

impl RetryKey {
    pub(super) fn new() -> RetryKey {
        RetryKey {
            key: rand::random(),
            epoch: Instant::now(),
        }
    }

    /// A token for a client at `peer` whose first destination connection id was `original`, and is
    /// to be `issued` now.
    pub(super) fn token(
        &self,
        peer: SocketAddr,
        issued: &[u8; CID_LEN],
        original: &[u8],
        now: Instant,
    ) -> Vec<u8> {
        let age_ms = u64::try_from(now.duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        let mut token = age_ms.to_be_bytes().to_vec();
        token.extend_from_slice(issued);
        token.extend_from_slice(original);
        let mac = self.mac(peer, &token);
        token.extend_from_slice(&mac);
        token
    }

    /// Verifies a token: it must be ours, for `peer` and the connection id `used` now, and young
    /// enough. Returns the first destination connection id that it was made for.
    pub(super) fn verify<'t>(
        &self,
        peer: SocketAddr,
        used: &[u8],
        token: &'t [u8],
        now: Instant,
    ) -> Option<&'t [u8]> {
        let (named, mac) = token.split_at_checked(token.len().checked_sub(MAC_BYTES)?)?;
        if !boring::memcmp::eq(&self.mac(peer, named), mac) {
            return None;
        }
        let (time, rest) = named.split_first_chunk::<TIME_BYTES>()?;
        let (issued, original) = rest.split_first_chunk::<CID_LEN>()?;
        let made = Duration::from_millis(u64::from_be_bytes(*time));
        let young = now.duration_since(self.epoch).checked_sub(made)? <= LIFETIME;
        (young && issued == used).then_some(original)
    }

    fn mac(&self, peer: SocketAddr, named: &[u8]) -> [u8; MAC_BYTES] {
        let mut input = peer.to_string().into_bytes();
        input.push(0);
        input.extend_from_slice(named);
        // HMAC fails only for want of memory; then a random MAC fits nothing.
        hmac_sha256(&self.key, &input).unwrap_or_else(|_| rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_address_and_its_connection_id_for_a_while() {
        let key = RetryKey::new();
        let peer = "192.0.2.1:4433".parse().expect("literal");
        let (issued, now) = ([7; CID_LEN], Instant::now());
        let token = key.token(peer, &issued, b"original", now);
        let verify = |peer, used: &[u8], now| key.verify(peer, used, &token, now);
        assert_eq!(verify(peer, &issued, now), Some(&b"original"[..]));
        let elsewhere = "192.0.2.1:4434".parse().expect("literal");
        assert_eq!(verify(elsewhere, &issued, now), None);
        let chosen_by_the_client = [8; CID_LEN];
        assert_eq!(verify(peer, &chosen_by_the_client, now), None);
        assert_eq!(verify(peer, b"original", now), None);
        let late = now + LIFETIME + Duration::from_millis(2);
        assert_eq!(verify(peer, &issued, late), None);
        assert_eq!(RetryKey::new().verify(peer, &issued, &token, now), None);
        for cut in 0..token.len() {
            assert_eq!(key.verify(peer, &issued, &token[..cut], now), None);
        }
    }
}
