//! Token authentication of a lane. The proof is defined by [`qmux_config::token_proof`].

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
/// If the session has no keying material yet, because the handshake is not complete.
pub(crate) fn prove(
    lane: &Lane,
    token: &Secret,
    challenge: &AuthChallenge,
) -> Result<AuthProof, ErrorStack> {
    let mac = lane.with_tls(|ssl| token_proof::prove(ssl, token, &challenge.nonce))?;
    Ok(AuthProof { mac: mac.to_vec() })
}

/// A proof that was given for a challenge, to be checked against tokens.
pub(crate) struct Given<'a> {
    session: token_proof::Session,
    challenge: &'a AuthChallenge,
    proof: &'a AuthProof,
}

impl<'a> Given<'a> {
    /// The proof that the peer of `lane` has given.
    ///
    /// # Errors
    /// If the session has no keying material yet, because the handshake is not complete.
    pub(crate) fn on(
        lane: &Lane,
        challenge: &'a AuthChallenge,
        proof: &'a AuthProof,
    ) -> Result<Self, ErrorStack> {
        Ok(Self {
            session: lane.with_tls(|ssl| token_proof::Session::of(ssl))?,
            challenge,
            proof,
        })
    }

    /// Whether the peer knows this token. It takes the same time for every wrong one.
    pub(crate) fn proves(&self, token: &Secret) -> bool {
        let Ok(expected) = self.session.prove(token, &self.challenge.nonce) else {
            return false;
        };
        let given = &self.proof.mac;
        expected.len() == given.len() && boring::memcmp::eq(&expected, given)
    }
}
