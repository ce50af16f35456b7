//! The proof of knowing a token, bound to one TLS session.
//!
//! The server draws a nonce; the client answers with HMAC-SHA-512, keyed with the token, over a
//! label, the nonce and keying material exported from the session (RFC 8446 section 7.5, RFC 5705).
//! A man in the middle has another session on each side, so a relayed proof does not fit.

use boring::error::ErrorStack;
use boring::hash::hmac_sha512;
use boring::ssl::SslRef;

use crate::Secret;

/// Separates this use of the session's keys from others (RFC 8446 section 7.5).
const EXPORTER_LABEL: &str = "EXPORTER-qmux-dp-token";

/// Domain separation inside the MAC.
const MAC_LABEL: &[u8] = b"qmux-dp/1 token proof";

const EXPORTED_BYTES: usize = 64;

/// The part of a TLS session that proofs are bound to. Exported once, it serves for the proofs of
/// many tokens.
pub struct Session([u8; EXPORTED_BYTES]);

impl Session {
    /// Exports it from `ssl`.
    ///
    /// # Errors
    /// If the session has no keying material yet, because the handshake is not complete.
    pub fn of(ssl: &SslRef) -> Result<Self, ErrorStack> {
        let mut exported = [0u8; EXPORTED_BYTES];
        ssl.export_keying_material(&mut exported, EXPORTER_LABEL, None)?;
        Ok(Self(exported))
    }

    /// The proof for a server's `nonce`.
    ///
    /// # Errors
    /// If the library fails.
    pub fn prove(&self, token: &Secret, nonce: &[u8]) -> Result<[u8; 64], ErrorStack> {
        proof(token, &self.0, nonce)
    }
}

/// The proof for a server's `nonce` in the session of `ssl`.
///
/// # Errors
/// If the session has no keying material yet, because the handshake is not complete.
pub fn prove(ssl: &SslRef, token: &Secret, nonce: &[u8]) -> Result<[u8; 64], ErrorStack> {
    Session::of(ssl)?.prove(token, nonce)
}

fn proof(token: &Secret, exported: &[u8], nonce: &[u8]) -> Result<[u8; 64], ErrorStack> {
    let input = [MAC_LABEL, nonce, exported].concat();
    hmac_sha512(token.expose(), &input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_depends_on_token_nonce_and_session() {
        let token = Secret::new("0123456789abcdef".into());
        let other = Secret::new("0123456789abcdeF".into());
        let base = proof(&token, &[2; 64], &[1; 32]).expect("hmac");
        assert_eq!(base, proof(&token, &[2; 64], &[1; 32]).expect("hmac"));
        assert_ne!(base, proof(&other, &[2; 64], &[1; 32]).expect("hmac"));
        assert_ne!(base, proof(&token, &[3; 64], &[1; 32]).expect("hmac"));
        assert_ne!(base, proof(&token, &[2; 64], &[4; 32]).expect("hmac"));
    }
}
