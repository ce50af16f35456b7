//! What the end of a connection says about certificates, names, clocks, tokens and permission.

use boring::x509::{X509, X509VerifyError};
use qmux_config::explain::{self, ClientView, alert};
use qmux_proto::control::RefuseReason;

use super::Doctor;
use super::clock::{self, Evidence};
use super::connection::{End, Seen};
use super::credentials::{facts, is_valid_at};
use super::path::Findings;
use super::report::{Cause, Step};

/// Judges a connection that was answered.
pub(super) fn judge(doctor: &Doctor<'_>, seen: &Seen) -> Findings {
    let mut fine = Vec::new();
    let cause = certificates(doctor, seen);
    // The steps are in order: those before the one that fails work.
    let last = cause.as_ref().map(|cause| cause.step);
    for (step, what) in shown(doctor, seen) {
        if Some(step) == last {
            break;
        }
        // A connection that ended for another reason says nothing about later steps.
        fine.push((step, what));
    }
    Findings { fine, cause }
}

/// The line for each step that works.
fn shown(doctor: &Doctor<'_>, seen: &Seen) -> Vec<(Step, String)> {
    let until = |cert: Option<&X509>| {
        let facts = cert.and_then(|cert| facts(cert));
        facts.map_or_else(|| "none".to_owned(), |facts| facts.not_after)
    };
    let own = match doctor.credentials.own() {
        Some(own) => format!(", the client's until {}", until(Some(own))),
        None => String::new(),
    };
    let token = match seen.end {
        End::Accepted { proved: true } => "the server accepts it",
        _ => "the server wants none",
    };
    vec![
        (
            Step::Certificate,
            format!(
                "the server's is valid until {}{own}",
                until(seen.server_cert.as_ref())
            ),
        ),
        (
            Step::ServerName,
            format!(
                "the server's certificate is for {:?}",
                doctor.server.server_name
            ),
        ),
        (Step::Clock, "certificates are valid by it".into()),
        (Step::Ca, "each side trusts the other's".into()),
        (Step::Token, token.into()),
        (Step::Permission, "the server lets this client serve".into()),
    ]
}

fn certificates(doctor: &Doctor<'_>, seen: &Seen) -> Option<Cause> {
    let view = view(doctor, seen);
    let server = seen.server_cert.as_ref().and_then(|cert| facts(cert));
    if let End::BadServer(why) = seen.end {
        let step = match why {
            X509VerifyError::HOSTNAME_MISMATCH | X509VerifyError::IP_ADDRESS_MISMATCH => {
                Step::ServerName
            }
            X509VerifyError::INVALID_PURPOSE => Step::Certificate,
            _ => Step::Ca,
        };
        let sentence = explain::bad_server(why, server.as_ref(), &view);
        return Some(Cause::new(step, sentence));
    }
    if let Some(cause) = time(doctor, seen, &view) {
        return Some(cause);
    }
    match &seen.end {
        End::ClosedByPeer(code) => Some(closed_by_peer(*code, &view)),
        End::TokenWanted => Some(Cause::new(Step::Token, explain::TOKEN_WANTED)),
        End::Refused {
            reason: RefuseReason::Unauthenticated,
            proved: true,
            ..
        } => Some(Cause::new(Step::Token, explain::WRONG_TOKEN)),
        End::Refused {
            reason: RefuseReason::Draining,
            ..
        } => Some(Cause::new(
            Step::Permission,
            explain::server_stops(seen.peer),
        )),
        End::Refused { reason, text, .. } => {
            let text = if text.is_empty() {
                reason.to_string()
            } else {
                format!("{reason}: {text}")
            };
            let sentence = explain::registration_refused(seen.peer, &text);
            Some(Cause::new(Step::Permission, sentence))
        }
        End::Unregistered => Some(Cause::new(
            Step::Permission,
            explain::registration_unanswered(seen.peer),
        )),
        End::Broken(why) => Some(Cause::new(
            Step::Permission,
            explain::ended_early(seen.peer, why),
        )),
        End::Accepted { .. } => seen.refused_service.as_ref().map(|(name, why)| {
            let sentence = explain::service_refused(seen.peer, name, why);
            Cause::new(Step::Permission, sentence)
        }),
        End::Silence | End::Unreachable(_) | End::NoTls(_) | End::BadServer(_) => None,
    }
}

fn closed_by_peer(code: u64, view: &ClientView<'_>) -> Cause {
    let step = match code {
        alert::UNKNOWN_CA => Step::Ca,
        _ => Step::Certificate,
    };
    let sentence = explain::client_refused(code, view).unwrap_or_else(|| {
        let why = explain::transport_error(code);
        format!("the server closed the connection: {why}; its log says more")
    });
    Cause::new(step, sentence)
}

fn view<'a>(doctor: &'a Doctor<'_>, seen: &Seen) -> ClientView<'a> {
    let tls = &doctor.client.tls;
    let cert = tls.client_cert.as_ref();
    ClientView {
        server: seen.peer,
        server_name: &doctor.server.server_name,
        ca_cert: &tls.ca_cert,
        client_cert: cert.map(|pair| &pair.cert),
        handshake_timeout: doctor.config.quic.handshake_idle_timeout,
        was_answered: seen.was_answered,
    }
}

/// Whether anything is refused only for its time, and whose fault that is.
fn time(doctor: &Doctor<'_>, seen: &Seen, view: &ClientView<'_>) -> Option<Cause> {
    let now = clock::now();
    let server_says = matches!(seen.end, End::ClosedByPeer(alert::CERTIFICATE_EXPIRED));
    // If one of several CAs has expired, it may have a successor.
    let ca = match doctor.credentials.authorities.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    };
    let own: Vec<X509> = doctor
        .credentials
        .own()
        .cloned()
        .into_iter()
        .chain(ca)
        .collect();
    let certs: Vec<X509> = own
        .iter()
        .cloned()
        .chain(seen.server_cert.clone())
        .collect();
    let is_invalid_here = certs.iter().any(|cert| !is_valid_at(cert, now));
    if !is_invalid_here && seen.of_time.is_none() && !server_says {
        return None;
    }
    let elsewhere = match doctor.args.time_server.as_str() {
        "none" => None,
        server => clock::asked(server),
    };
    let evidence = Evidence {
        now,
        elsewhere,
        time_server: &doctor.args.time_server,
        certs: &certs,
        own: &own,
        own_was_accepted: matches!(seen.end, End::Accepted { proved: false }),
    };
    if let Some(sentence) = clock::is_wrong(&evidence) {
        return Some(Cause::new(Step::Clock, sentence));
    }
    Some(Cause::new(
        Step::Certificate,
        out_of_time(doctor, seen, view, &evidence),
    ))
}

/// The certificate that is not valid, if this host's clock is right as far as is known.
fn out_of_time(
    doctor: &Doctor<'_>,
    seen: &Seen,
    view: &ClientView<'_>,
    evidence: &Evidence<'_>,
) -> String {
    let checked = match evidence.elsewhere {
        Some(_) => format!(" (this host's clock agrees with {})", evidence.time_server),
        None => String::new(),
    };
    let own = doctor.credentials.own();
    if let (Some(own), Some(file)) = (own, view.client_cert)
        && !is_valid_at(own, evidence.now)
    {
        return explain::own_out_of_time("this client's certificate", file, &described(own))
            + &checked;
    }
    for ca in &doctor.credentials.authorities {
        let file = view.ca_cert;
        if doctor.credentials.authorities.len() == 1 && !is_valid_at(ca, evidence.now) {
            return explain::own_out_of_time("the CA certificate", file, &described(ca)) + &checked;
        }
    }
    if let Some(why) = seen.of_time {
        let facts = seen.server_cert.as_ref().and_then(|cert| facts(cert));
        return explain::bad_server(why, facts.as_ref(), view) + &checked;
    }
    let sentence = explain::client_refused(alert::CERTIFICATE_EXPIRED, view);
    format!(
        "{}; by this host's clock it is valid{checked}: is the server's clock right?",
        sentence.unwrap_or_default()
    )
}

/// The validity of a certificate in words.
fn described(cert: &X509) -> String {
    facts(cert).map_or_else(String::new, |facts| {
        if facts.is_early {
            format!("is valid only from {}", facts.not_before)
        } else {
            format!("expired at {}", facts.not_after)
        }
    })
}
