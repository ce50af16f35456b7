//! Why there is no lane, in sentences for whoever runs this side: what is wrong, which file, key or
//! port it is about, and what to do.
//!
//! Pure texts: what is known goes in, a sentence comes out. A peer is told none of this.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use boring::x509::X509VerifyError;
use qmux_config::FileOrText;

use super::end::{BadCertificate, LaneEnd};

/// TLS alerts about the other side's certificate, as QUIC error codes (RFC 9001, section 4.8; RFC
/// 8446, section 6).
mod alert {
    pub(super) const BAD_CERTIFICATE: u64 = 0x12a;
    pub(super) const UNSUPPORTED_CERTIFICATE: u64 = 0x12b;
    pub(super) const CERTIFICATE_REVOKED: u64 = 0x12c;
    pub(super) const CERTIFICATE_EXPIRED: u64 = 0x12d;
    pub(super) const CERTIFICATE_UNKNOWN: u64 = 0x12e;
    pub(super) const UNKNOWN_CA: u64 = 0x130;
    pub(super) const CERTIFICATE_REQUIRED: u64 = 0x174;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = 0x178;
}

/// What a client knows about an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientView<'a> {
    /// Where the server is.
    pub(crate) server: SocketAddr,
    /// What its certificate must be for.
    pub(crate) server_name: &'a str,
    /// The CAs that the client trusts.
    pub(crate) ca_cert: &'a FileOrText,
    /// The client's certificate, if it has one.
    pub(crate) client_cert: Option<&'a FileOrText>,
    /// How long a handshake may take.
    pub(crate) handshake_timeout: Duration,
    /// Whether any packet has come back.
    pub(crate) was_answered: bool,
}

/// The same UDP port of the same host, in words that people look for.
fn udp(server: SocketAddr) -> String {
    format!("UDP port {} of {}", server.port(), server.ip())
}

/// Why a client's attempt ended, and what to do.
pub(crate) fn at_client(end: &LaneEnd, view: &ClientView<'_>) -> String {
    match end {
        LaneEnd::HandshakeTimeout => no_handshake(view),
        LaneEnd::Unreachable(kind) => unreachable(*kind, view.server),
        LaneEnd::BadCertificate(bad) => {
            format!("{} ({end})", bad_server(bad, view))
        }
        LaneEnd::TransportErrorByPeer(code, _) => match client_refused(*code, view) {
            Some(sentence) => format!("{sentence} ({end})"),
            None => end.to_string(),
        },
        _ => end.to_string(),
    }
}

fn no_handshake(view: &ClientView<'_>) -> String {
    let (udp, timeout) = (udp(view.server), view.handshake_timeout);
    if view.was_answered {
        return format!(
            "{udp} answered, but the handshake was not complete within {timeout:?} \
            (handshake_idle_timeout): packets get lost on the way, or the server is overloaded"
        );
    }
    format!(
        "no answer from {udp} within {timeout:?}: no server runs there, or a firewall on the way \
        drops UDP. Allow UDP port {} (not TCP) in the firewall and security group of the server, \
        and outgoing on this side",
        view.server.port()
    )
}

/// Why packets to `server` cannot be sent, or do not get there, by the word of this host or the
/// network.
pub(crate) fn unreachable(kind: ErrorKind, server: SocketAddr) -> String {
    let udp = udp(server);
    match kind {
        ErrorKind::ConnectionRefused => format!(
            "nobody listens at {udp}, says the network (ICMP): is the server running, and is this \
            the port of its quic_addr? A firewall that rejects UDP says the same"
        ),
        ErrorKind::PermissionDenied => format!(
            "this host forbids sending to {udp} (operation not permitted): a rule for outgoing \
            packets in its own firewall drops or rejects them; allow UDP port {} there (nft list \
            ruleset, iptables -S OUTPUT)",
            server.port()
        ),
        ErrorKind::NetworkUnreachable => {
            let family = if server.is_ipv6() { "IPv6" } else { "IPv4" };
            format!("this host has no route to {udp}: its network is down, or has no {family}")
        }
        ErrorKind::HostUnreachable => format!(
            "{udp} cannot be reached, says the network (ICMP): the host is down, or a firewall on \
            the way rejects UDP"
        ),
        kind => format!("{udp} cannot be reached: {kind}"),
    }
}

/// True if there is no way to `server` for a reason that its other addresses need not share: an
/// address family that this host does not have.
pub(crate) fn is_without_route(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable | ErrorKind::Unsupported
    )
}

/// The client does not accept the server's certificate.
fn bad_server(bad: &BadCertificate, view: &ClientView<'_>) -> String {
    let ClientView { server_name, .. } = view;
    let of = "the server's certificate";
    match bad.why {
        X509VerifyError::HOSTNAME_MISMATCH | X509VerifyError::IP_ADDRESS_MISMATCH => {
            let names = match &bad.facts {
                Some(facts) if !facts.names.is_empty() => facts.names.join(", "),
                _ => "no name at all".into(),
            };
            format!(
                "{of} is for {names}, not for server_name = {server_name:?}: set server_name to \
                one of its names, or give the server a certificate with this one"
            )
        }
        _ => not_trusted(
            bad,
            of,
            &authorities(view.ca_cert, "client.tls"),
            "serverAuth",
        ),
    }
}

/// The CAs of a section, as an operator finds them.
fn authorities(ca_cert: &FileOrText, section: &str) -> String {
    match ca_cert {
        FileOrText::File(path) => format!("a CA in ca_cert_file {} of [{section}]", path.display()),
        FileOrText::Text { .. } => format!("a CA in {ca_cert}"),
    }
}

/// Why a server refused a client in the handshake, or the client left it.
pub(crate) fn at_server(end: &LaneEnd, ca_cert: Option<&FileOrText>) -> String {
    match (end, ca_cert) {
        (LaneEnd::BadCertificate(bad), Some(ca)) => {
            let ca = authorities(ca, "server.auth");
            let sentence = not_trusted(bad, "the client's certificate", &ca, "clientAuth");
            format!("{sentence} ({end})")
        }
        (LaneEnd::TransportErrorByPeer(code, _), _) => match server_refused(*code) {
            Some(sentence) => format!("{sentence} ({end})"),
            None => end.to_string(),
        },
        _ => end.to_string(),
    }
}

/// What is wrong with the other side's certificate, other than its names.
fn not_trusted(bad: &BadCertificate, of: &str, ca: &str, usage: &str) -> String {
    let facts = bad.facts.as_ref();
    let which = facts.map_or_else(String::new, |facts| {
        format!(" ({}, issued by {})", facts.subject, facts.issuer)
    });
    match bad.why {
        X509VerifyError::UNABLE_TO_GET_ISSUER_CERT
        | X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | X509VerifyError::UNABLE_TO_VERIFY_LEAF_SIGNATURE
        | X509VerifyError::DEPTH_ZERO_SELF_SIGNED_CERT
        | X509VerifyError::SELF_SIGNED_CERT_IN_CHAIN
        | X509VerifyError::CERT_SIGNATURE_FAILURE
        | X509VerifyError::CERT_UNTRUSTED => format!(
            "{of}{which} is not signed by {ca}: both sides need certificates of one CA, or its \
            intermediate certificates must be in the certificate file"
        ),
        X509VerifyError::CERT_HAS_EXPIRED => match facts {
            Some(facts) if facts.has_expired => {
                format!("{of}{which} expired at {}: renew it", facts.not_after)
            }
            _ => format!("a CA certificate above {of}{which} has expired: renew it"),
        },
        X509VerifyError::CERT_NOT_YET_VALID => match facts {
            Some(facts) if facts.is_early => format!(
                "{of}{which} is valid only from {}: are the clocks of both hosts right?",
                facts.not_before
            ),
            _ => format!(
                "a CA certificate above {of}{which} is not valid yet: are the clocks of both \
                hosts right?"
            ),
        },
        X509VerifyError::INVALID_PURPOSE => format!(
            "{of}{which} is for another purpose: its extended key usage must include {usage}"
        ),
        _ => format!("{of}{which} is not acceptable"),
    }
}

/// The server does not accept the client, by a TLS alert.
fn client_refused(code: u64, view: &ClientView<'_>) -> Option<String> {
    let cert = match view.client_cert {
        Some(cert) => format!("this client's certificate {cert}"),
        None => "this client".into(),
    };
    let why = match code {
        alert::CERTIFICATE_REQUIRED => {
            return Some(match view.client_cert {
                None => "the server wants a client certificate: set client_cert_file and \
                client_key_file in [client.tls]"
                    .into(),
                Some(_) => format!("the server got no certificate, although {cert} is configured"),
            });
        }
        alert::NO_APPLICATION_PROTOCOL => {
            return Some(format!(
                "{} speaks QUIC, but is no qmux-dp server",
                udp(view.server)
            ));
        }
        alert::UNKNOWN_CA => {
            "it is not signed by a CA in the server's ca_cert_file ([server.auth] there)"
        }
        alert::CERTIFICATE_EXPIRED => {
            "it has expired, or is not valid yet by the server's clock: renew it"
        }
        alert::UNSUPPORTED_CERTIFICATE => {
            "it is for another purpose, its extended key usage must include clientAuth"
        }
        alert::CERTIFICATE_REVOKED => "it was revoked",
        alert::BAD_CERTIFICATE | alert::CERTIFICATE_UNKNOWN => "the server's log says why",
        _ => return None,
    };
    Some(format!("the server does not accept {cert}: {why}"))
}

/// The client does not accept the server, by a TLS alert.
fn server_refused(code: u64) -> Option<String> {
    let why = match code {
        alert::UNKNOWN_CA => "it is not signed by a CA in the client's ca_cert_file",
        alert::CERTIFICATE_EXPIRED => "it has expired, or is not valid yet by the client's clock",
        alert::UNSUPPORTED_CERTIFICATE => {
            "it is for another purpose, its extended key usage must include serverAuth"
        }
        alert::BAD_CERTIFICATE | alert::CERTIFICATE_UNKNOWN => {
            "it is not for the client's server_name, or the client's log says why"
        }
        alert::CERTIFICATE_REVOKED => "it was revoked",
        alert::NO_APPLICATION_PROTOCOL => return Some("the peer is no qmux-dp client".into()),
        _ => return None,
    };
    Some(format!(
        "the client does not accept this server's certificate: {why}"
    ))
}

/// The server does not accept the certificate that the client showed when the session began.
pub(crate) const STALE_SESSION: &str = "the certificate that this client showed for its earlier \
session is not good any more for the server; the next handshake shows the present one";

/// The server does not accept the client's token.
pub(crate) const WRONG_TOKEN: &str = "the server does not accept this client's token: token in \
[client.auth] must be the same as token in [server.auth] of the server";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::LazyLock;

    use qmux_config::CertificateFacts;

    use super::*;

    static CA: LazyLock<FileOrText> = LazyLock::new(|| PathBuf::from("certs/ca.crt").into());
    static CERT: LazyLock<FileOrText> = LazyLock::new(|| PathBuf::from("certs/client.crt").into());

    fn view(was_answered: bool) -> ClientView<'static> {
        ClientView {
            server: "192.0.2.1:8443".parse().expect("literal"),
            server_name: "tunnel.test",
            ca_cert: &CA,
            client_cert: Some(&CERT),
            handshake_timeout: Duration::from_secs(5),
            was_answered,
        }
    }

    fn bad(why: X509VerifyError) -> LaneEnd {
        LaneEnd::BadCertificate(Box::new(BadCertificate {
            code: 0x130,
            why,
            facts: Some(CertificateFacts {
                subject: "CN=edge".into(),
                issuer: "CN=some CA".into(),
                names: vec!["a.test".into(), "b.test".into()],
                not_before: "2030-01-01 00:00 UTC".into(),
                not_after: "2020-01-01 00:00 UTC".into(),
                has_expired: true,
                is_early: true,
            }),
        }))
    }

    fn assert_says(sentence: &str, words: &[&str]) {
        for word in words {
            assert!(sentence.contains(word), "no {word:?} in: {sentence}");
        }
    }

    #[test]
    fn silence_is_said_to_be_about_udp_the_host_the_port_and_firewalls() {
        let sentence = at_client(&LaneEnd::HandshakeTimeout, &view(false));
        assert_says(&sentence, &["UDP port 8443 of 192.0.2.1", "firewall", "5s"]);
        let answered = at_client(&LaneEnd::HandshakeTimeout, &view(true));
        assert_says(&answered, &["answered", "handshake_idle_timeout"]);
    }

    #[test]
    fn each_word_of_the_network_has_its_own_sentence() {
        for (kind, words) in [
            (
                ErrorKind::ConnectionRefused,
                ["nobody listens", "quic_addr"],
            ),
            (
                ErrorKind::PermissionDenied,
                ["not permitted", "own firewall"],
            ),
            (ErrorKind::NetworkUnreachable, ["no route", "IPv4"]),
            (ErrorKind::HostUnreachable, ["ICMP", "rejects UDP"]),
        ] {
            let sentence = at_client(&LaneEnd::Unreachable(kind), &view(false));
            assert_says(&sentence, &words);
            assert_says(&sentence, &["UDP port 8443 of 192.0.2.1"]);
        }
    }

    #[test]
    fn a_servers_bad_certificate_names_the_file_the_names_or_the_time() {
        let says = |why, words: &[&str]| assert_says(&at_client(&bad(why), &view(true)), words);
        let issuer = "CN=edge, issued by CN=some CA";
        says(
            X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
            &[
                "ca_cert_file certs/ca.crt",
                issuer,
                "unable to get local issuer",
            ],
        );
        says(
            X509VerifyError::HOSTNAME_MISMATCH,
            &["a.test, b.test", "server_name = \"tunnel.test\""],
        );
        says(
            X509VerifyError::CERT_HAS_EXPIRED,
            &["expired at 2020-01-01"],
        );
        says(
            X509VerifyError::CERT_NOT_YET_VALID,
            &["from 2030-01-01", "clocks"],
        );
        says(X509VerifyError::INVALID_PURPOSE, &["serverAuth"]);
    }

    #[test]
    fn a_clients_bad_certificate_names_the_servers_file() {
        let end = bad(X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
        let sentence = at_server(&end, Some(&PathBuf::from("/etc/ca.crt").into()));
        assert_says(&sentence, &["ca_cert_file /etc/ca.crt of [server.auth]"]);
        let purpose = at_server(
            &bad(X509VerifyError::INVALID_PURPOSE),
            Some(&PathBuf::from("ca").into()),
        );
        assert_says(&purpose, &["clientAuth"]);
    }

    #[test]
    fn a_refusal_by_alert_names_what_the_peer_does_not_accept() {
        let refused = |code| LaneEnd::TransportErrorByPeer(code, String::new());
        let at = |code| at_client(&refused(code), &view(true));
        assert_says(
            &at(alert::UNKNOWN_CA),
            &["certs/client.crt", "ca_cert_file"],
        );
        assert_says(
            &at(alert::CERTIFICATE_EXPIRED),
            &["certs/client.crt", "expired"],
        );
        assert_says(&at(alert::NO_APPLICATION_PROTOCOL), &["no qmux-dp server"]);
        let mut without = view(true);
        without.client_cert = None;
        let required = at_client(&refused(alert::CERTIFICATE_REQUIRED), &without);
        assert_says(
            &required,
            &["client_cert_file", "a client certificate is required"],
        );
        let server = at_server(&refused(alert::UNKNOWN_CA), None);
        assert_says(
            &server,
            &["the client does not accept this server's certificate"],
        );
    }
}
