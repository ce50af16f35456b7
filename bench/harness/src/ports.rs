//! Free ports for programs that must be told theirs.
//!
//! A port found by binding port 0 is one that the kernel may give to any outgoing connection right
//! after its release, and tests and load generators make thousands. Ports are therefore taken from
//! below the range of such connections, each tried with a bind first. Whoever starts a program on
//! one still retries with others should it be taken after all.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use rand::RngExt as _;

use crate::Error;

/// The lowest port that is given out. Below it are the ports of well-known programs.
const LOWEST: u16 = 10_000;

/// The kernel's default for the lowest port of outgoing connections, used where the range cannot be
/// read.
const OUTGOING_LOWEST_DEFAULT: u16 = 32_768;

/// The most ports that are tried: if this many in a row are taken, something else is wrong.
const TRIES_MAX: usize = 10_000;

/// A port that is free for TCP and UDP on this address, and that nobody else of this process gets.
pub fn free(ip: IpAddr) -> Result<SocketAddr, Error> {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_default();
    let mut source = io::ErrorKind::AddrInUse.into();
    let ports = LOWEST..outgoing_lowest();
    for _ in 0..TRIES_MAX {
        let port = rand::rng().random_range(ports.clone());
        if taken.contains(&port) {
            continue;
        }
        let address = SocketAddr::new(ip, port);
        match try_port(address) {
            Ok(()) => {
                taken.insert(port);
                return Ok(address);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => source = error,
            // No other port will do better, as on an address that this machine does not have.
            Err(error) => {
                source = error;
                break;
            }
        }
    }
    let what = format!("a free port on {ip}");
    Err(Error::Io { what, source })
}

/// Free on every address as well, so that no wildcard listener gets in the way.
fn try_port(address: SocketAddr) -> io::Result<()> {
    let all: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    for address in [SocketAddr::new(all, address.port()), address] {
        TcpListener::bind(address).and(UdpSocket::bind(address))?;
    }
    Ok(())
}

fn outgoing_lowest() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|lowest| *lowest > LOWEST + 1_000)
        .unwrap_or(OUTGOING_LOWEST_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_is_given_once() {
        let addresses = [(); 100].map(|()| free(Ipv4Addr::LOCALHOST.into()).expect("a port"));
        let distinct: HashSet<SocketAddr> = addresses.into_iter().collect();
        assert_eq!(distinct.len(), addresses.len());
        assert!((LOWEST..outgoing_lowest()).contains(&addresses[0].port()));
        TcpListener::bind(addresses[0]).expect("still free");
    }

    #[test]
    fn an_address_of_somebody_else_has_none() {
        assert!(free(IpAddr::from([192, 0, 2, 1])).is_err());
    }
}
