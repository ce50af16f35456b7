//! The PROXY protocol headers that services are sent: who the visitor is, or that the connection is
//! this client's own. This module is pure; a header is made once for each flow.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ppp::{v1, v2};
use qmux_config::ProxyProtocol;
use qmux_proto::Protocol;

/// The header for a visitor who came to the traffic address `traffic`; empty if the service wants
/// none. Version 1 has none for UDP, which the configuration does not allow.
pub(crate) fn of_visitor(
    version: ProxyProtocol,
    protocol: Protocol,
    visitor: SocketAddr,
    traffic: SocketAddr,
) -> Vec<u8> {
    match version {
        ProxyProtocol::Off => Vec::new(),
        ProxyProtocol::V1 => match pair(visitor, traffic) {
            Pair::V4(addresses) => v1::Addresses::from(addresses),
            Pair::V6(addresses) => v1::Addresses::from(addresses),
        }
        .to_string()
        .into_bytes(),
        ProxyProtocol::V2 => {
            let addresses = match pair(visitor, traffic) {
                Pair::V4(addresses) => v2::Addresses::from(addresses),
                Pair::V6(addresses) => v2::Addresses::from(addresses),
            };
            let protocol = match protocol {
                Protocol::Tcp => v2::Protocol::Stream,
                Protocol::Udp => v2::Protocol::Datagram,
            };
            let command = v2::Version::Two | v2::Command::Proxy;
            built(v2::Builder::with_addresses(command, protocol, addresses).build())
        }
    }
}

/// The header of a connection that this client makes for itself, such as a health check.
pub(crate) fn of_ourselves(version: ProxyProtocol) -> Vec<u8> {
    match version {
        ProxyProtocol::Off => Vec::new(),
        ProxyProtocol::V1 => v1::Addresses::Unknown.to_string().into_bytes(),
        ProxyProtocol::V2 => {
            let command = v2::Version::Two | v2::Command::Local;
            let family = v2::AddressFamily::Unspecified | v2::Protocol::Unspecified;
            built(v2::Builder::new(command, family).build())
        }
    }
}

/// Stands in place of a traffic address that the server has not told.
pub(crate) fn unknown_traffic(visitor: SocketAddr) -> SocketAddr {
    match visitor.ip().to_canonical() {
        IpAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        IpAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    }
}

/// Unwraps a header; building one fails only if it is longer than 64 KB.
fn built(header: io::Result<Vec<u8>>) -> Vec<u8> {
    header.unwrap_or_default()
}

/// Two addresses of one family.
enum Pair {
    V4(v2::IPv4),
    V6(v2::IPv6),
}

/// The pair of two addresses. IPv4-mapped addresses are IPv4. If only one of the two is IPv4, both
/// are written as IPv6, because a header has one family.
fn pair(visitor: SocketAddr, traffic: SocketAddr) -> Pair {
    let (from, to) = (visitor.ip().to_canonical(), traffic.ip().to_canonical());
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        Pair::V4(v2::IPv4::new(from, to, visitor.port(), traffic.port()))
    } else {
        let (from, to) = (as_v6(from), as_v6(to));
        Pair::V6(v2::IPv6::new(from, to, visitor.port(), traffic.port()))
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn v1_of(visitor: &str, traffic: &str) -> String {
        let (visitor, traffic) = (address(visitor), address(traffic));
        let header = of_visitor(ProxyProtocol::V1, Protocol::Tcp, visitor, traffic);
        String::from_utf8(header).expect("text")
    }

    #[test]
    fn the_text_has_both_addresses_in_one_family() {
        for (visitor, traffic, expected) in [
            (
                "192.0.2.1:1234",
                "198.51.100.2:80",
                "TCP4 192.0.2.1 198.51.100.2 1234 80",
            ),
            (
                "[2001:db8::1]:1234",
                "[2001:db8::2]:80",
                "TCP6 2001:db8::1 2001:db8::2 1234 80",
            ),
            // A listener on [::] sees IPv4 addresses in this form.
            (
                "[::ffff:192.0.2.1]:1234",
                "[::ffff:198.51.100.2]:80",
                "TCP4 192.0.2.1 198.51.100.2 1234 80",
            ),
            (
                "[::ffff:192.0.2.1]:1234",
                "198.51.100.2:80",
                "TCP4 192.0.2.1 198.51.100.2 1234 80",
            ),
            (
                "192.0.2.1:1234",
                "[2001:db8::2]:80",
                "TCP6 ::ffff:192.0.2.1 2001:db8::2 1234 80",
            ),
        ] {
            assert_eq!(v1_of(visitor, traffic), format!("PROXY {expected}\r\n"));
        }
    }

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    /// The bytes are those of the specification (section 2.2).
    #[test]
    fn the_binary_form_is_that_of_the_specification() {
        let visitor = address("192.0.2.1:258");
        let traffic = address("198.51.100.2:80");
        let header = |protocol| of_visitor(ProxyProtocol::V2, protocol, visitor, traffic);
        let addresses = [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 0, 80];
        for (protocol, family) in [(Protocol::Tcp, 0x11), (Protocol::Udp, 0x12)] {
            let expected = [SIGNATURE, &[0x21, family, 0, 12], &addresses].concat();
            assert_eq!(header(protocol), expected);
        }
        let six = of_visitor(
            ProxyProtocol::V2,
            Protocol::Udp,
            address("[2001:db8::1]:1"),
            visitor,
        );
        assert_eq!(six[..16], [SIGNATURE, &[0x21, 0x22, 0, 36]].concat());
        assert_eq!(six.len(), 16 + 36);
        assert_eq!(six[32..48], as_v6(visitor.ip()).octets());
    }

    #[test]
    fn a_check_says_that_it_is_nobodys_connection() {
        assert_eq!(of_ourselves(ProxyProtocol::Off), b"");
        assert_eq!(of_ourselves(ProxyProtocol::V1), b"PROXY UNKNOWN\r\n");
        let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
        assert_eq!(of_ourselves(ProxyProtocol::V2), local);
    }

    #[test]
    fn a_traffic_address_that_is_not_known_is_of_the_visitors_family() {
        for (visitor, expected) in [
            ("192.0.2.1:1", "0.0.0.0:0"),
            ("[::ffff:192.0.2.1]:1", "0.0.0.0:0"),
            ("[2001:db8::1]:1", "[::]:0"),
        ] {
            assert_eq!(unknown_traffic(address(visitor)), address(expected));
        }
    }
}
