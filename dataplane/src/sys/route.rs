//! What the kernel knows of the way to a peer.

use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt;

/// Bytes of the headers of IPv4 and UDP.
const HEADERS_V4_BYTES: usize = 20 + 8;

/// Bytes of the headers of IPv6 and UDP.
const HEADERS_V6_BYTES: usize = 40 + 8;

/// The largest UDP payload that may leave towards `peer` unfragmented, as far as this machine knows: the MTU of the
/// interface, or less if a router has said so. What lies behind may carry less. `None` if there is no way.
///
/// It costs four system calls, about 5 µs, and no packet.
pub(crate) fn udp_payload_max(peer: SocketAddr) -> Option<usize> {
    let socket = UdpSocket::bind(super::bind::any_towards(peer)).ok()?;
    // Looks up the route, and keeps it with the socket.
    socket.connect(peer).ok()?;
    let (mtu, headers) = match peer {
        SocketAddr::V4(_) => (sockopt::ip_mtu(&socket).ok()?, HEADERS_V4_BYTES),
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            (sockopt::ip_mtu(&socket).ok()?, HEADERS_V4_BYTES)
        }
        SocketAddr::V6(_) => (sockopt::ipv6_mtu(&socket).ok()?, HEADERS_V6_BYTES),
    };
    usize::try_from(mtu).ok()?.checked_sub(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_the_largest_packets() {
        let v4 = udp_payload_max("127.0.0.1:9".parse().expect("literal"));
        assert!(v4.expect("a route") > 16_383, "{v4:?}");
        let mapped = udp_payload_max("[::ffff:127.0.0.1]:9".parse().expect("literal"));
        assert_eq!(mapped, v4);
    }

    #[test]
    fn an_address_that_nothing_leads_to_has_no_size() {
        // The unspecified port 0 with a reserved network: connect() refuses or there is no route.
        let nowhere = udp_payload_max("255.255.255.255:9".parse().expect("literal"));
        assert_eq!(nowhere, None);
    }
}
