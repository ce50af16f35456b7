//! Free ports for programs that must be told theirs.
//!
//! From below the range of outgoing connections, because load generators make thousands of those and the kernel would
//! give them a port that was just found free.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

use rand::RngExt as _;

use super::BenchError;

/// Where ports are picked. The kernel's default for outgoing connections starts at 32,768.
const RANGE: Range<u16> = 10_000..30_000;

/// So many ports in a row that are taken mean that something else is wrong.
const TRIES_MAX: usize = 1_000;

/// A port that is free for TCP and UDP on this address.
pub fn free(ip: IpAddr) -> Result<SocketAddr, BenchError> {
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let address = SocketAddr::new(ip, rand::rng().random_range(RANGE));
        match TcpListener::bind(address).and_then(|_tcp| UdpSocket::bind(address)) {
            Ok(_free) => return Ok(address),
            Err(error) => last = Some(error),
        }
    }
    let source = last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(BenchError::Io {
        what: format!("a free port on {ip}"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let address = free(IpAddr::from([127, 0, 0, 1])).expect("a port");
        assert!(RANGE.contains(&address.port()));
        TcpListener::bind(address).expect("still free");
    }

    #[test]
    fn an_address_of_somebody_else_has_none() {
        assert!(free(IpAddr::from([192, 0, 2, 1])).is_err());
    }
}
