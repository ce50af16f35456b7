//! Stand-ins: addresses in place of those that only a proxy knows.
//!
//! Where everything goes through a proxy, its clients often have no resolver for names of the
//! internet, and need none: they give the name to the proxy. A server has an address in every part
//! of this program, so such a server gets one that cannot be anybody's: an address of "this
//! network", 0.0.0.0/8 (RFC 1122, section 3.2.1.3), which no host sends to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The stand-in for the configured server of this index.
pub(crate) fn of(target: usize, port: u16) -> SocketAddr {
    // 0.0.0.0 itself means this host to most systems. A client has at most 256 servers.
    let [.., high, low] = (target + 1).to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(0, 0, high, low).into(), port)
}

/// Whether this is a stand-in.
pub(crate) fn is_one(address: SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.octets()[0] == 0 && !ip.is_unspecified(),
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_is_nobodys_address_and_each_server_has_its_own() {
        let all: Vec<_> = (0..256).map(|target| of(target, 443)).collect();
        assert!(all.iter().all(|it| is_one(*it) && it.port() == 443));
        let mut ips: Vec<_> = all.iter().map(SocketAddr::ip).collect();
        ips.dedup();
        assert_eq!(ips.len(), 256);
        for other in ["0.0.0.0:443", "10.0.0.1:443", "[::]:443", "[::1]:443"] {
            assert!(!is_one(other.parse().expect("an address")), "{other}");
        }
    }
}
