//! The addresses that the program will bind, and whether two of them conflict.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use toml::Spanned;

use crate::ports::TrafficAddr;
use crate::section::Section;
use crate::server::{ListenerProtocol, TlsFallback};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// An address that will be bound.
#[derive(Debug)]
pub(crate) struct Claim {
    transport: Transport,
    pub(crate) address: TrafficAddr,
    /// The full name of the key that claims it, and where its value stands.
    pub(crate) key: String,
    pub(crate) span: Range<usize>,
}

impl Claim {
    /// Whether TCP is bound there; otherwise it is UDP.
    pub(crate) fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
}

/// Every address that was claimed so far.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    claims: Vec<Claim>,
}

impl Claims {
    /// All claims, in the order in which they were made.
    pub(crate) fn into_vec(self) -> Vec<Claim> {
        self.claims
    }

    /// Claims a TCP address; reports it if an earlier claim overlaps.
    pub(crate) fn tcp(&mut self, section: &Section<'_>, key: &str, address: &Spanned<SocketAddr>) {
        let whole = TrafficAddr::one(*address.get_ref());
        self.claim(Transport::Tcp, section, key, whole, address.span());
    }

    /// Claims a UDP address; reports it if an earlier claim overlaps.
    pub(crate) fn udp(&mut self, section: &Section<'_>, key: &str, address: &Spanned<SocketAddr>) {
        let whole = TrafficAddr::one(*address.get_ref());
        self.claim(Transport::Udp, section, key, whole, address.span());
    }

    /// Claims the addresses that clients connect to: UDP, and TCP if that is required.
    pub(crate) fn quic(
        &mut self,
        section: &Section<'_>,
        key: &str,
        address: &Spanned<SocketAddr>,
        tls_fallback: TlsFallback,
    ) {
        self.udp(section, key, address);
        if tls_fallback == TlsFallback::On {
            self.tcp(section, key, address);
        }
    }

    /// Claims the addresses that visitors connect to, in the protocols of the service; reports what
    /// an earlier claim overlaps.
    pub(crate) fn traffic(
        &mut self,
        section: &Section<'_>,
        key: &str,
        address: &Spanned<TrafficAddr>,
        protocol: ListenerProtocol,
    ) {
        if protocol.tcp() {
            let span = address.span();
            self.claim(Transport::Tcp, section, key, *address.get_ref(), span);
        }
        if protocol.udp() {
            let span = address.span();
            self.claim(Transport::Udp, section, key, *address.get_ref(), span);
        }
    }

    fn claim(
        &mut self,
        transport: Transport,
        section: &Section<'_>,
        key: &str,
        address: TrafficAddr,
        span: Range<usize>,
    ) {
        let claim = Claim {
            transport,
            address,
            key: section.key(key),
            span,
        };
        let earlier = self.claims.iter().find(|earlier| {
            earlier.transport == transport && overlap(earlier.address, claim.address)
        });
        if let Some(earlier) = earlier {
            let line = section.report().line(&earlier.span);
            let transport = match transport {
                Transport::Tcp => "TCP",
                Transport::Udp => "UDP",
            };
            let message = format!(
                "{transport} {} is already taken by {} ({}, line {line}); it must be another \
                 address or port",
                claim.address, earlier.key, earlier.address
            );
            section.problem_at(key, &claim.span, message);
        } else {
            self.claims.push(claim);
        }
    }
}

/// Whether one socket would get what is meant for another: they have a port in common, and the same
/// address or a wildcard that includes the other one. `[::]` includes IPv4, as it does on Linux.
pub(crate) fn overlap(one: TrafficAddr, other: TrafficAddr) -> bool {
    one.ports().overlap(other.ports()) && {
        let (one, other) = (one.ip().to_canonical(), other.ip().to_canonical());
        one == other || includes(one, other) || includes(other, one)
    }
}

fn includes(wildcard: IpAddr, address: IpAddr) -> bool {
    match wildcard {
        IpAddr::V4(wildcard) => wildcard.is_unspecified() && address.is_ipv4(),
        IpAddr::V6(wildcard) => wildcard.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps(one: &str, other: &str) -> bool {
        let parse = |text: &str| TrafficAddr::parse(text).expect("an address");
        let verdict = overlap(parse(one), parse(other));
        assert_eq!(
            verdict,
            overlap(parse(other), parse(one)),
            "symmetric: {one} {other}"
        );
        verdict
    }

    #[test]
    fn a_wildcard_overlaps_every_address_of_its_port() {
        assert!(overlaps("0.0.0.0:80", "127.0.0.1:80"));
        assert!(overlaps("[::]:80", "127.0.0.1:80"));
        assert!(overlaps("[::]:80", "0.0.0.0:80"));
        assert!(overlaps("[::]:80", "[::1]:80"));
        assert!(overlaps("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
    }

    #[test]
    fn ranges_overlap_where_they_have_a_port_in_common() {
        assert!(overlaps("0.0.0.0:80-90", "127.0.0.1:90-99"));
        assert!(overlaps("0.0.0.0:80-90", "127.0.0.1:85"));
        assert!(!overlaps("0.0.0.0:80-90", "0.0.0.0:91-99"));
        assert!(!overlaps("127.0.0.1:80-90", "127.0.0.2:80-90"));
    }

    #[test]
    fn other_ports_and_other_addresses_do_not_overlap() {
        assert!(!overlaps("0.0.0.0:80", "0.0.0.0:81"));
        assert!(!overlaps("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlaps("0.0.0.0:80", "[::1]:80"));
    }
}
