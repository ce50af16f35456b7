//! Authentication of a client that wants to register, by its certificate or by a token: whether it
//! may, and who it is.
//!
//! The log says what was wrong. The peer is told what it can do about it only if its certificate is
//! good.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::{Admission, CertificateNames, first_expiry_unix_s, show_fingerprint};
use qmux_proto::control::{AuthChallenge, Message, RefuseReason};

use super::Door;
use super::lane::{ServerLane, address};
use crate::quic::control::ControlEvent;
use crate::quic::sessions::Identity;
use crate::quic::{tls, token};
use crate::server::pool::registry::Claim;
use crate::server::shared::ServerSettings;
use crate::sys::tls::{PeerRefused, check_client_against};

/// The most bytes of a certificate's name in a text for people.
const SHOWN_NAME_BYTES_MAX: usize = 128;

/// The grounds on which a lane was let in. They must hold for as long as the lane lives.
pub(crate) struct Admitted {
    /// What the client has shown and offered, which is judged again when the configuration changes.
    pub(crate) claim: Arc<Claim>,
    /// Whether the client can read what becomes of its services.
    pub(crate) is_told: bool,
    /// Whether the client was authenticated by its certificate.
    pub(crate) by_certificate: bool,
    /// The time at which the client's certificate expires, in seconds since 1970.
    pub(crate) expiry_s: Option<i64>,
    /// The settings by which the lane was judged last.
    pub(crate) judged: Cell<Judged>,
}

/// The settings by which a lane was judged. Each lane keeps its own, because it may be let in by
/// settings that another thread replaces at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    /// The number of the settings ([`ServerSettings::generation`]).
    pub(crate) generation: u64,
    /// The digest of the CAs and revocation lists that the client's certificate was checked
    /// against.
    pub(crate) trusted: Identity,
}

impl Judged {
    /// The mark of these settings.
    pub(crate) fn by(settings: &ServerSettings) -> Judged {
        Judged {
            generation: settings.generation,
            trusted: settings.credentials.trusted,
        }
    }
}

/// Why a client is not let in.
pub(crate) enum Unauthentic {
    /// The client must be told so, with this reason and text.
    Refused(RefuseReason, String),
    /// The client has gone by itself.
    Gone,
}

impl Unauthentic {
    /// A refusal that gives no hint at what was wrong; a lane has one attempt only.
    fn without_hint() -> Unauthentic {
        Unauthentic::Refused(RefuseReason::Unauthenticated, String::new())
    }
}

/// Authenticates a client by its certificate, which the handshake has checked. It is checked again
/// if the handshake was some time ago, if the session was resumed, or if other CAs or revocation
/// lists are in force now: a client could complete a handshake, wait until its certificate is
/// revoked, and register then. The names in the certificate say who the client is.
pub(crate) fn by_certificate(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    settings: &ServerSettings,
) -> Result<Admission, Unauthentic> {
    let resumed = lane.quic.with_tls(|ssl| tls::is_resumed(ssl));
    let outdated = lane.trusted != settings.credentials.trusted;
    if (resumed || outdated)
        && let Err(why) = check_now(lane, settings)
    {
        return Err(not_good_now(lane, door, outdated, &why));
    }
    let names = names_of(lane);
    let admission = settings.matcher.by_certificate(&names);
    if admission != Admission::Refused {
        return Ok(admission);
    }
    door.counters().clients_not_admitted.increment();
    let name = shown_name(&names);
    let fingerprint = show_fingerprint(&names.fingerprint);
    let why =
        format!("no entry of [[server.clients]] has its certificate {name:?} ({fingerprint})");
    log(lane, door, &why);
    let text = format!(
        "this server has no entry for the certificate {name:?}: have its operator add \
         [[server.clients]] with certificate = {name:?} or fingerprint = {fingerprint:?}"
    );
    Err(Unauthentic::Refused(RefuseReason::NotAdmitted, text))
}

/// Checks the client's certificate against the CAs and revocation lists that are in force now.
fn check_now(lane: &ServerLane, settings: &ServerSettings) -> Result<(), PeerRefused> {
    // There is a store wherever clients authenticate by certificate; without one nobody is let in.
    let store = settings.store.as_ref().ok_or(PeerRefused::Failed)?;
    lane.quic.with_tls(|ssl| check_client_against(ssl, store))
}

/// The answer to a client whose certificate was good, or was not asked for, when it shook hands.
fn not_good_now(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    outdated: bool,
    why: &PeerRefused,
) -> Unauthentic {
    if outdated {
        door.counters().clients_outdated.increment();
        let why = format!("what is trusted has changed since its handshake: {why}");
        log(lane, door, &why);
        // The client comes again within some seconds for this reason (see its back-off while a
        // server drains). That handshake is judged by what is trusted then, and tells the client
        // what is wrong. In this handshake it may not even have been asked for a certificate.
        let text = "the configuration of this server has just changed";
        return Unauthentic::Refused(RefuseReason::Draining, text.into());
    }
    door.counters().sessions_refused.increment();
    let why = format!("the certificate of its earlier session: {why}");
    log(lane, door, &why);
    Unauthentic::without_hint()
}

/// The names in the certificate that the client has shown.
pub(super) fn names_of(lane: &ServerLane) -> CertificateNames {
    let names = lane.quic.with_tls(|ssl| {
        let certificate = ssl.peer_certificate()?.to_der().ok()?;
        CertificateNames::of(&certificate)
    });
    // A certificate that cannot be read has no names. It needs none where no client has an entry.
    names.unwrap_or_else(|| CertificateNames {
        common_names: Vec::new(),
        dns_names: Vec::new(),
        uri_names: Vec::new(),
        fingerprint: [0; qmux_config::FINGERPRINT_BYTES],
    })
}

/// The time at which the first of the certificates that the client has shown expires, in seconds
/// since 1970.
pub(super) fn expiry_of(lane: &ServerLane) -> Option<i64> {
    lane.quic.with_tls(|ssl| {
        let leaf = ssl.peer_certificate()?.to_pem().ok()?;
        first_expiry_unix_s(&leaf)
    })
}

/// The name of a certificate in messages: the one that an entry of dp.toml would use.
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

/// Authenticates a client by a token: the client must prove on every lane, resumed or not, that it
/// knows the token. The proof is bound to this session. The token says who the client is.
pub(crate) fn by_token(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    settings: &ServerSettings,
    challenge: &AuthChallenge,
    answer: ControlEvent,
) -> Result<Admission, Unauthentic> {
    let why = match answer {
        ControlEvent::Message(Message::AuthProof(proof)) => {
            let given = token::Given::on(&lane.quic, challenge, &proof);
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
                lane,
                door,
                "it left instead of proving that it knows the token",
            );
            return Err(Unauthentic::Gone);
        }
    };
    door.counters().tokens_refused.increment();
    log(lane, door, why);
    Err(Unauthentic::without_hint())
}

fn log(lane: &Rc<ServerLane>, door: &Rc<Door>, why: &str) {
    if let Some(suppressed) = door.context().handshake_log.pass(Instant::now()) {
        tracing::warn!(
            peer = address(&lane.quic),
            why,
            suppressed,
            "client not authenticated"
        );
    }
}
