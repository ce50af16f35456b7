//! What a connection says about the path to the server: route, UDP, and the size of packets.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use qmux_config::explain::{self, HANDSHAKE_UDP_PAYLOAD_BYTES};

use super::connection::{End, Seen};
use super::echo;
use super::report::{Cause, Step};

/// UDP payload of a small packet, which passes wherever anything does (RFC 791 has every network
/// carry 68 bytes).
const SMALL_PAYLOAD_BYTES: usize = 32;

/// How long a TCP handshake may take that shows that the host exists: a SYN that is lost is
/// repeated after a second (tcp(7)).
const TCP_PATIENCE: Duration = Duration::from_secs(3);

/// The steps that work, and the cause why a step does not.
pub(super) struct Findings {
    pub(super) fine: Vec<(Step, String)>,
    pub(super) cause: Option<Cause>,
}

pub(super) fn judge(seen: &Seen, handshake_timeout: Duration) -> Findings {
    let peer = seen.peer;
    let findings = |works: &[(Step, String)], cause: Cause| Findings {
        fine: works.to_vec(),
        cause: Some(cause),
    };
    if seen.over_tls {
        return inside_tls(seen);
    }
    let route = (Step::Route, format!("{} can be sent to", peer.ip()));
    match seen.end {
        End::Unreachable(ErrorKind::ConnectionRefused) => {
            let sentence = explain::unreachable(ErrorKind::ConnectionRefused, peer);
            return findings(&[route], Cause::new(Step::Udp, sentence));
        }
        End::Unreachable(kind) => {
            return findings(
                &[],
                Cause::new(Step::Route, explain::unreachable(kind, peer)),
            );
        }
        End::Silence => {}
        _ => return works(seen, route),
    }
    if let Some(leaves) = leaves_too_little(peer, seen.leaves) {
        let sentence = explain::too_large_for_the_path(
            peer,
            &format!("packets of up to {leaves} bytes of UDP payload"),
        );
        return findings(&[route], Cause::new(Step::Mtu, sentence));
    }
    let small = echo::is_answered(peer.ip(), SMALL_PAYLOAD_BYTES);
    if small == Some(true) {
        let large = echo::is_answered(peer.ip(), HANDSHAKE_UDP_PAYLOAD_BYTES);
        if large == Some(false) {
            let sentence = explain::too_large_for_the_path(peer, "small packets");
            return findings(&[route], Cause::new(Step::Mtu, sentence));
        }
    }
    if seen.was_answered {
        let sentence = explain::handshake_stalls(peer, handshake_timeout);
        return findings(&[route], Cause::new(Step::Udp, sentence));
    }
    let sentence = match answers_otherwise(peer, small) {
        Some(otherwise) => explain::only_udp_is_silent(peer, handshake_timeout, &otherwise),
        None => explain::silence(peer, handshake_timeout),
    };
    findings(&[route], Cause::new(Step::Udp, sentence))
}

/// The result for a connection inside TLS: the network carries whatever TLS carries.
fn inside_tls(seen: &Seen) -> Findings {
    let peer = seen.peer;
    let why = match &seen.end {
        End::NoTls(why) => why.clone(),
        End::Silence => "nothing came back inside it: is that a server of qmux-dp?".into(),
        _ => {
            return Findings {
                fine: vec![(Step::Tls, format!("{peer} answers over TLS"))],
                cause: None,
            };
        }
    };
    let sentence = format!("TLS to {peer} over TCP does not get through: {why}");
    Findings {
        fine: Vec::new(),
        cause: Some(Cause::new(Step::Tls, sentence)),
    }
}

/// The result for a server that has answered, whatever it said.
fn works(seen: &Seen, route: (Step, String)) -> Findings {
    let mtu = match (seen.carried, seen.aimed) {
        (Some(carried), aimed) if carried < aimed => format!(
            "packets of {carried} bytes pass; those of {aimed} bytes, which this host can send, do \
            not, and a tunnel does without them"
        ),
        (carried, _) => {
            let carried = carried.unwrap_or(HANDSHAKE_UDP_PAYLOAD_BYTES);
            format!("packets of {carried} bytes pass")
        }
    };
    let udp = format!(
        "UDP port {} of {} answers",
        seen.peer.port(),
        seen.peer.ip()
    );
    Findings {
        fine: vec![route, (Step::Udp, udp), (Step::Mtu, mtu)],
        cause: None,
    }
}

/// The largest UDP payload that leaves towards `peer` by now, if a handshake does not fit: a router
/// may have reported a smaller MTU meanwhile.
fn leaves_too_little(peer: SocketAddr, before: Option<usize>) -> Option<usize> {
    let now = super::carrier::leaves(peer).or(before)?;
    (now < HANDSHAKE_UDP_PAYLOAD_BYTES).then_some(now)
}

/// How else the host answers, in words.
fn answers_otherwise(peer: SocketAddr, ping: Option<bool>) -> Option<String> {
    let tcp = match TcpStream::connect_timeout(&peer, TCP_PATIENCE) {
        Ok(_) => Some("accepts TCP"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some("refuses TCP"),
        Err(_) => None,
    };
    match (tcp, ping) {
        (Some(tcp), _) => Some(format!("(its port {} {tcp})", peer.port())),
        (None, Some(true)) => Some("(it can be pinged)".into()),
        _ => None,
    }
}
