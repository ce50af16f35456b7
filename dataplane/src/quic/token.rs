//! Token authentication: proof of knowing the token, bound to this TLS session.
//!
//! The server draws a nonce; the client answers with HMAC-SHA-512, keyed with the token, over a label, the nonce and
//! keying material exported from the session (RFC 8446 section 7.5, RFC 5705). A man in the middle has another
//! session on each side, so a relayed proof does not fit.

use boring::error::ErrorStack;
use boring::hash::hmac_sha512;
use qmux_config::Secret;
use qmux_proto::control::{AuthChallenge, AuthProof};

use super::lane::Lane;

/// Separates this use of the session's keys from others (RFC 8446 section 7.5).
const EXPORTER_LABEL: &str = "EXPORTER-qmux-dp-token";

/// Domain separation inside the MAC.
const MAC_LABEL: &[u8] = b"qmux-dp/1 token proof";

const EXPORTED_BYTES: usize = 64;

/// A fresh challenge.
pub(crate) fn challenge() -> AuthChallenge {
    AuthChallenge {
        nonce: rand::random(),
    }
}

/// The keying material of one TLS session, to which its proofs are bound.
pub(crate) struct Session([u8; EXPORTED_BYTES]);

impl Session {
    /// That of a lane.
    ///
    /// # Errors
    /// If the session has no keying material yet (the handshake is not complete).
    pub(crate) fn of(lane: &Lane) -> Result<Session, ErrorStack> {
        let mut exported = [0u8; EXPORTED_BYTES];
        lane.with_tls(|ssl| ssl.export_keying_material(&mut exported, EXPORTER_LABEL, None))?;
        Ok(Session(exported))
    }

    /// True if `given` is the right answer to `challenge`. Takes the same time for every wrong one.
    pub(crate) fn accepts(
        &self,
        token: &Secret,
        challenge: &AuthChallenge,
        given: &AuthProof,
    ) -> bool {
        let Ok(expected) = proof(token, &self.0, challenge) else {
            return false;
        };
        expected.len() == given.mac.len() && boring::memcmp::eq(&expected, &given.mac)
    }
}

/// The proof for `challenge` on `lane`.
///
/// # Errors
/// If the session has no keying material yet (the handshake is not complete).
pub(crate) fn prove(
    lane: &Lane,
    token: &Secret,
    challenge: &AuthChallenge,
) -> Result<AuthProof, ErrorStack> {
    let session = Session::of(lane)?;
    Ok(AuthProof {
        mac: proof(token, &session.0, challenge)?.to_vec(),
    })
}

fn proof(
    token: &Secret,
    exported: &[u8],
    challenge: &AuthChallenge,
) -> Result<[u8; 64], ErrorStack> {
    let mut input = Vec::with_capacity(MAC_LABEL.len() + challenge.nonce.len() + exported.len());
    input.extend_from_slice(MAC_LABEL);
    input.extend_from_slice(&challenge.nonce);
    input.extend_from_slice(exported);
    hmac_sha512(token.expose(), &input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_depends_on_token_nonce_and_session() {
        let token = Secret::new("0123456789abcdef".into());
        let other = Secret::new("0123456789abcdeF".into());
        let nonce = AuthChallenge { nonce: [1; 32] };
        let base = proof(&token, &[2; 64], &nonce).expect("hmac");
        assert_eq!(base, proof(&token, &[2; 64], &nonce).expect("hmac"));
        assert_ne!(base, proof(&other, &[2; 64], &nonce).expect("hmac"));
        assert_ne!(base, proof(&token, &[3; 64], &nonce).expect("hmac"));
        assert_ne!(
            base,
            proof(&token, &[2; 64], &AuthChallenge { nonce: [4; 32] }).expect("hmac")
        );
    }
}
