//! Sentences that explain why there is no tunnel, for whoever runs this side: what is wrong, which
//! file, key or port it is about, and what to do.
//!
//! These are pure texts: the facts go in, a sentence comes out. The client's log and `qmux-ctl
//! doctor` use the same ones. A peer is told none of this.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use boring::x509::X509VerifyError;

use crate::{CertificateFacts, FileOrText};

/// TLS alerts about the other side's certificate, as QUIC error codes (RFC 9001, section 4.8; RFC
/// 8446, section 6).
pub mod alert {
    /// The certificate is corrupt or has a wrong signature.
    pub const BAD_CERTIFICATE: u64 = 0x12a;
    /// The certificate is for another purpose.
    pub const UNSUPPORTED_CERTIFICATE: u64 = 0x12b;
    /// The certificate was revoked.
    pub const CERTIFICATE_REVOKED: u64 = 0x12c;
    /// The certificate has expired, or is not valid yet.
    pub const CERTIFICATE_EXPIRED: u64 = 0x12d;
    /// The certificate is not acceptable for another reason.
    pub const CERTIFICATE_UNKNOWN: u64 = 0x12e;
    /// No trusted CA has issued the certificate.
    pub const UNKNOWN_CA: u64 = 0x130;
    /// There is no certificate.
    pub const CERTIFICATE_REQUIRED: u64 = 0x174;
    /// The other side does not speak this protocol.
    pub const NO_APPLICATION_PROTOCOL: u64 = 0x178;
}

/// What a client knows about an attempt to connect.
#[derive(Debug, Clone, Copy)]
pub struct ClientView<'a> {
    /// The address of the server.
    pub server: SocketAddr,
    /// The name that the server's certificate must have.
    pub server_name: &'a str,
    /// The CAs that the client trusts.
    pub ca_cert: &'a FileOrText,
    /// The client's certificate, if it has one.
    pub client_cert: Option<&'a FileOrText>,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Whether any packet has come back.
    pub was_answered: bool,
}

/// Names the UDP port of the server in words that people search for.
fn udp(server: SocketAddr) -> String {
    format!("UDP port {} of {}", server.port(), server.ip())
}

/// Explains why a handshake did not complete in time.
pub fn no_handshake(view: &ClientView<'_>) -> String {
    if view.was_answered {
        return handshake_stalls(view.server, view.handshake_timeout);
    }
    silence(view.server, view.handshake_timeout)
}

/// Explains that the server has answered, but the handshake did not complete.
pub fn handshake_stalls(server: SocketAddr, timeout: Duration) -> String {
    let udp = udp(server);
    format!(
        "{udp} answered, but the handshake was not complete within {timeout:?} \
        (handshake_idle_timeout): packets get lost on the way, or the server is overloaded"
    )
}

/// Explains that nothing has come from the server.
pub fn silence(server: SocketAddr, timeout: Duration) -> String {
    let (udp, port) = (udp(server), server.port());
    format!(
        "no answer from {udp} within {timeout:?}: no server runs there, or a firewall on the way \
        drops UDP. Allow UDP port {port} (not TCP) in the firewall and security group of the \
        server, and outgoing on this side"
    )
}

/// Explains that nothing has come from a server whose host answers otherwise; `otherwise` says how,
/// as in "(it can be pinged)".
pub fn only_udp_is_silent(server: SocketAddr, timeout: Duration, otherwise: &str) -> String {
    let (udp, port) = (udp(server), server.port());
    format!(
        "the host is there {otherwise}, but nothing came from {udp} within {timeout:?}: a firewall \
        on the way drops UDP, or no server runs there. Allow UDP port {port} (not TCP) in the \
        firewall and security group of the server, and outgoing on this side"
    )
}

/// Explains that the packets of a handshake are too large for the path to `server`; `carries` says
/// what passes, as in "packets of up to 1,100 bytes".
pub fn too_large_for_the_path(server: SocketAddr, carries: &str) -> String {
    format!(
        "only {carries} pass between this host and {}, and QUIC needs \
        {HANDSHAKE_UDP_PAYLOAD_BYTES} bytes of UDP payload (RFC 9000, section 14): raise the MTU \
        of the network interface, VPN or tunnel on the way to at least 1280 (ip link set dev NAME \
        mtu 1280)",
        udp(server)
    )
}

/// UDP payload of a handshake's packets (RFC 9000, section 14.1).
pub const HANDSHAKE_UDP_PAYLOAD_BYTES: usize = 1_200;

/// Explains that `host`, which is configured in `setting`, has no address.
pub fn unresolved(host: &str, why: &str, setting: &str) -> String {
    format!(
        "{host} cannot be resolved ({why}). Check {setting}, and this host's DNS: getent hosts \
        {host}"
    )
}

/// Explains that the server wants a token, and the client has none.
pub const TOKEN_WANTED: &str = "the server wants a token: set token in [client.auth]";

/// Explains why packets to `server` cannot be sent, or do not arrive, by the report of this host or
/// the network.
pub fn unreachable(kind: ErrorKind, server: SocketAddr) -> String {
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

/// Whether there is no route to `server` for a reason that need not concern its other addresses: an
/// address family that this host does not have.
pub fn is_without_route(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable | ErrorKind::Unsupported
    )
}

/// Explains that the client does not accept the server's certificate.
pub fn bad_server(
    why: X509VerifyError,
    facts: Option<&CertificateFacts>,
    view: &ClientView<'_>,
) -> String {
    let ClientView { server_name, .. } = view;
    let of = "the server's certificate";
    match why {
        X509VerifyError::HOSTNAME_MISMATCH | X509VerifyError::IP_ADDRESS_MISMATCH => {
            let names = match facts {
                Some(facts) if !facts.names.is_empty() => facts.names.join(", "),
                _ => "no name at all".into(),
            };
            format!(
                "{of} is for {names}, not for server_name = {server_name:?}: set server_name to \
                one of its names, or give the server a certificate with this one"
            )
        }
        _ => not_trusted(
            why,
            facts,
            of,
            &authorities(view.ca_cert, "client.tls"),
            "serverAuth",
        ),
    }
}

/// Explains that the server does not accept the certificate of a client, which must be issued by a
/// CA in `ca_cert`.
pub fn bad_client(
    why: X509VerifyError,
    facts: Option<&CertificateFacts>,
    ca_cert: &FileOrText,
) -> String {
    let ca = authorities(ca_cert, "server.auth");
    not_trusted(why, facts, "the client's certificate", &ca, "clientAuth")
}

/// Names the CAs of a section as an operator finds them.
fn authorities(ca_cert: &FileOrText, section: &str) -> String {
    match ca_cert {
        FileOrText::File(path) => format!("a CA in ca_cert_file {} of [{section}]", path.display()),
        FileOrText::Text { .. } => format!("a CA in {ca_cert}"),
    }
}

/// Explains what is wrong with the other side's certificate, other than its names.
fn not_trusted(
    why: X509VerifyError,
    facts: Option<&CertificateFacts>,
    of: &str,
    ca: &str,
    usage: &str,
) -> String {
    let which = facts.map_or_else(String::new, |facts| {
        format!(" ({}, issued by {})", facts.subject, facts.issuer)
    });
    match why {
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

/// Explains that a certificate in a file of this host is not valid now; `what` says why, as in
/// "expired at …".
pub fn own_out_of_time(of: &str, from: &FileOrText, what: &str) -> String {
    format!("{of} in {from} {what}: renew it")
}

/// Explains that the server has refused the registration; `why` are its words.
pub fn registration_refused(server: SocketAddr, why: &str) -> String {
    format!(
        "the server at {} authenticates this client but does not let it serve: {why}. Change that \
        in the server's config ([[server.clients]] and its limits), or this client's certificate",
        udp(server)
    )
}

/// Explains that the server does not let this client serve a service; `why` are its words.
pub fn service_refused(server: SocketAddr, name: &str, why: &str) -> String {
    format!(
        "service {name:?} of this client: {why} (says the server at {}). Its name must be the same \
        in [[client.services]] here and in [[server.services]] there, and services of this client's \
        [[server.clients]] there must include it",
        udp(server)
    )
}

/// Explains that the server has refused the registration because it stops.
pub fn server_stops(server: SocketAddr) -> String {
    format!(
        "the server at {} is shutting down and takes no client any more: start it again, or wait \
        until it is back",
        udp(server)
    )
}

/// Explains that the connection ended before the server had answered the registration; `why` says
/// how.
pub fn ended_early(server: SocketAddr, why: &str) -> String {
    format!(
        "the server at {} did not take this client: {why}; the server's log says more",
        udp(server)
    )
}

/// Explains that the server has not answered the registration.
pub fn registration_unanswered(server: SocketAddr) -> String {
    format!(
        "the server at {} completed the handshake but did not answer the registration: it is \
        overloaded, or no qmux-dp server; its log says more",
        udp(server)
    )
}

/// Explains that the local service does not accept connections.
pub fn service_unreachable(host: &str, port: u16, kind: ErrorKind, setting: &str) -> String {
    let why = match kind {
        ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        ErrorKind::TimedOut => "there is no answer".to_owned(),
        kind => kind.to_string(),
    };
    format!(
        "the local service at port {port} of {host} does not accept connections ({why}): start it, \
        or correct {setting}"
    )
}

/// Explains why the server does not accept the client, by a TLS alert.
pub fn client_refused(code: u64, view: &ClientView<'_>) -> Option<String> {
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

/// Explains why the client does not accept the server, by a TLS alert.
pub fn server_refused(code: u64) -> Option<String> {
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

/// Explains that the server does not accept the certificate that the client showed when the session
/// began.
pub const STALE_SESSION: &str = "the certificate that this client showed for its earlier \
session is not good any more for the server; the next handshake shows the present one";

/// Explains that the server does not accept the client's token.
pub const WRONG_TOKEN: &str = "the server does not accept this client's token: token in \
[client.auth] must be the same as token in [server.auth] of the server or, if this client has an \
entry in [[server.clients]] there, as token of that entry";

/// The name of a QUIC transport error; those from 0x100 are TLS alerts (RFC 9000 section 20.1, RFC
/// 8446 section 6).
pub fn transport_error(code: u64) -> String {
    let alert = match code {
        0x0 => return "no error".into(),
        0x1..=0xff => return format!("QUIC transport error {code:#x}"),
        0x128 => "handshake failure",
        0x12a => "bad certificate",
        0x12b => "unsupported certificate (wrong purpose?)",
        0x12d => "certificate expired, or is not valid yet",
        0x12c => "certificate revoked",
        0x12e => "certificate unknown or not acceptable",
        0x130 => "unknown CA",
        0x131 => "access denied",
        0x174 => "a client certificate is required",
        0x178 => "no common application protocol: the peer is no qmux-dp",
        _ => return format!("QUIC error {code:#x}"),
    };
    format!("TLS: {alert} (alert {})", code - 0x100)
}
