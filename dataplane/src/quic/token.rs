//! Token authentication of a lane; what the proof is: [`qmux_config::token_proof`].

use boring::error::ErrorStack;
use qmux_config::{Secret, token_proof};
use qmux_proto::control::{AuthChallenge, AuthProof};

use super::lane::Lane;

/// A fresh challenge.
pub(crate) fn challenge() -> AuthChallenge {
    AuthChallenge {
        nonce: rand::random(),
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
    let mac = lane.with_tls(|ssl| token_proof::prove(ssl, token, &challenge.nonce))?;
    Ok(AuthProof { mac: mac.to_vec() })
}

/// True if `proof` is the right answer to `challenge` on `lane`. Takes the same time for every wrong one.
pub(crate) fn verify(
    lane: &Lane,
    token: &Secret,
    challenge: &AuthChallenge,
    proof: &AuthProof,
) -> bool {
    let Ok(expected) = prove(lane, token, challenge) else {
        return false;
    };
    expected.mac.len() == proof.mac.len() && boring::memcmp::eq(&expected.mac, &proof.mac)
}
