//! Whether a client that wants to register is who it must be, and who that is: by its certificate,
//! or by knowing a token.
//!
//! The log says what was wrong. The peer is told what it can do about it if its certificate is
//! good, and else nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::{Admission, CertificateNames, first_expiry_unix_s, show_fingerprint};
use qmux_proto::control::{AuthChallenge, Message, RefuseReason};

use super::Door;
use super::lane::{ServerLane, address};
use crate::quic::control::ControlEvent;
use crate::quic::{tls, token};
use crate::server::pool::registry::Claim;
use crate::server::shared::ServerSettings;

/// Most bytes of a certificate's name in a text for people.
const SHOWN_NAME_BYTES_MAX: usize = 128;

/// By what a lane was let in: it must hold as long as the lane does.
pub(crate) struct Admitted {
    /// What is judged anew when the configuration changes.
    pub(crate) claim: Arc<Claim>,
    /// The client can read what becomes of its services.
    pub(crate) is_told: bool,
    /// By the certificate that it has shown.
    pub(crate) by_certificate: bool,
    /// When that expires, in seconds since 1970.
    pub(crate) expiry_s: Option<i64>,
}

/// Why a client is not let in.
pub(crate) enum Unauthentic {
    /// It must be told so, with this reason and text.
    Refused(RefuseReason, String),
    /// It has gone by itself.
    Gone,
}

impl Unauthentic {
    /// One attempt per lane, and no hint at what was wrong.
    fn without_hint() -> Unauthentic {
        Unauthentic::Refused(RefuseReason::Unauthenticated, String::new())
    }
}

/// The handshake has authenticated the client, now or, for a resumed session, some time ago: then
/// its certificate is checked again, which may have expired since. Its names say who it is.
pub(crate) fn by_certificate(
    this: &Rc<ServerLane>,
    door: &Rc<Door>,
    settings: &ServerSettings,
) -> Result<Admission, Unauthentic> {
    let checked = this.lane.with_tls(|ssl| {
        if tls::is_resumed(ssl) {
            tls::check_resumed_peer(ssl, true)
        } else {
            Ok(())
        }
    });
    if let Err(why) = checked {
        door.counters().sessions_refused.increment();
        let why = format!("the certificate of its earlier session: {why}");
        log(this, door, &why);
        return Err(Unauthentic::without_hint());
    }
    let names = names_of(this);
    let admission = settings.matcher.by_certificate(&names);
    if admission != Admission::Refused {
        return Ok(admission);
    }
    door.counters().clients_not_admitted.increment();
    let name = shown_name(&names);
    let fingerprint = show_fingerprint(&names.fingerprint);
    let why =
        format!("no entry of [[server.clients]] has its certificate {name:?} ({fingerprint})");
    log(this, door, &why);
    let text = format!(
        "this server has no entry for the certificate {name:?}: have its operator add \
         [[server.clients]] with certificate = {name:?} or fingerprint = {fingerprint:?}"
    );
    Err(Unauthentic::Refused(RefuseReason::NotAdmitted, text))
}

/// The names of the certificate that the client has shown.
pub(super) fn names_of(this: &ServerLane) -> CertificateNames {
    let names = this.lane.with_tls(|ssl| {
        let certificate = ssl.peer_certificate()?.to_der().ok()?;
        CertificateNames::of(&certificate)
    });
    // A certificate that cannot be read has no names; where nobody has an entry it needs none.
    names.unwrap_or_else(|| CertificateNames {
        common_names: Vec::new(),
        dns_names: Vec::new(),
        uri_names: Vec::new(),
        fingerprint: [0; qmux_config::FINGERPRINT_BYTES],
    })
}

/// When the certificates expire that the client has shown, in seconds since 1970: the first of them.
pub(super) fn expiry_of(this: &ServerLane) -> Option<i64> {
    this.lane.with_tls(|ssl| {
        let leaf = ssl.peer_certificate()?.to_pem().ok()?;
        first_expiry_unix_s(&leaf)
    })
}

/// What to call a certificate: by what an entry would name it.
fn shown_name(names: &CertificateNames) -> String {
    let all = names.common_names.iter().chain(&names.dns_names);
    let name = all.chain(&names.uri_names).find(|name| !name.is_empty());
    let name = name.map_or("", String::as_str);
    let mut end = name.len().min(SHOWN_NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

/// The client must prove that it knows a token, on every lane, resumed or not: the proof is bound
/// to this session. The token says who it is.
pub(crate) fn by_token(
    this: &Rc<ServerLane>,
    door: &Rc<Door>,
    settings: &ServerSettings,
    challenge: &AuthChallenge,
    answer: ControlEvent,
) -> Result<Admission, Unauthentic> {
    let why = match answer {
        ControlEvent::Message(Message::AuthProof(proof)) => {
            let given = token::Given::on(&this.lane, challenge, &proof);
            let admission = given.map_or(Admission::Refused, |given| {
                settings.matcher.by_token(|token| given.proves(token))
            });
            if admission != Admission::Refused {
                return Ok(admission);
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
    Err(Unauthentic::without_hint())
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
