//! Whether a client that wants to register is who it must be: by its certificate, or by knowing the token.
//!
//! The log says what was wrong; the peer is not told.

use std::rc::Rc;
use std::time::Instant;

use qmux_config::Secret;
use qmux_proto::control::{AuthChallenge, Message};

use super::Door;
use super::lane::{ServerLane, address};
use crate::quic::control::ControlEvent;
use crate::quic::{tls, token};

/// Why a client is not let in.
pub(crate) enum Unauthentic {
    /// It must be told so.
    Refused,
    /// It has gone by itself.
    Gone,
}

/// The handshake has authenticated the client, now or, for a resumed session, some time ago: then its certificate is
/// checked again, which may have expired since.
pub(crate) fn by_certificate(this: &Rc<ServerLane>, door: &Rc<Door>) -> Result<(), Unauthentic> {
    this.lane
        .with_tls(|ssl| {
            if tls::is_resumed(ssl) {
                tls::check_resumed_peer(ssl, true)
            } else {
                Ok(())
            }
        })
        .map_err(|why| {
            door.counters().sessions_refused.increment();
            log(
                this,
                door,
                &format!("the certificate of its earlier session: {why}"),
            );
            Unauthentic::Refused
        })
}

/// The client must prove that it knows the token, on every lane, resumed or not: the proof is bound to this session.
pub(crate) fn by_token(
    this: &Rc<ServerLane>,
    door: &Rc<Door>,
    token: &Secret,
    challenge: &AuthChallenge,
    answer: ControlEvent,
) -> Result<(), Unauthentic> {
    let why = match answer {
        ControlEvent::Message(Message::AuthProof(proof)) => {
            if token::verify(&this.lane, token, challenge, &proof) {
                return Ok(());
            }
            "its token is not ours"
        }
        ControlEvent::Message(_) => "it did not answer the challenge",
        ControlEvent::Deadline => "it did not answer the challenge in time",
        ControlEvent::Ended => {
            door.counters().tokens_refused.increment();
            log(
                this,
                door,
                "it left instead of proving that it knows the token",
            );
            return Err(Unauthentic::Gone);
        }
    };
    door.counters().tokens_refused.increment();
    log(this, door, why);
    Err(Unauthentic::Refused)
}

fn log(this: &Rc<ServerLane>, door: &Rc<Door>, why: &str) {
    if let Some(suppressed) = door.context().handshake_log.pass(Instant::now()) {
        tracing::warn!(
            peer = address(&this.lane),
            why,
            suppressed,
            "client not authenticated"
        );
    }
}
