//! Free ports for programs that must be told theirs.
//!
//! A port found by binding port 0 is one that the kernel may give to any outgoing connection right
//! after its release, and these tests make thousands. Ports are therefore taken from below the
//! range of such connections, each tried with a bind first. Whoever starts a program on one still
//! retries with others should it be taken after all.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use super::random::Random;

/// Below it are the ports of well-known programs.
const LOWEST: u16 = 10_000;
/// Where the kernel's range cannot be read: its default.
const EPHEMERAL_LOWEST_DEFAULT: u16 = 32_768;

/// An address on loopback whose port is free for TCP and UDP and that no other test of this process
/// gets.
pub(crate) fn free_address() -> SocketAddr {
    static TAKEN: Mutex<Option<(HashSet<u16>, Random)>> = Mutex::new(None);
    let mut guard = TAKEN.lock().expect("no test panics in here");
    let (taken, random) = guard.get_or_insert_with(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanoseconds = now.map_or(0, |now| now.subsec_nanos());
        let seed = u64::from(std::process::id()) << 32 | u64::from(nanoseconds);
        (HashSet::new(), Random::new(seed))
    });
    let highest = ephemeral_lowest() - 1;
    for _ in 0..10_000 {
        let port = random.between(usize::from(LOWEST)..=usize::from(highest));
        let port = u16::try_from(port).expect("a port");
        if !taken.contains(&port) && is_free(port) {
            taken.insert(port);
            return (Ipv4Addr::LOCALHOST, port).into();
        }
    }
    panic!("no free port from {LOWEST} to {highest}");
}

/// Free on every address, so that no wildcard listener gets in the way.
fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

fn ephemeral_lowest() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|lowest| *lowest > LOWEST + 1_000)
        .unwrap_or(EPHEMERAL_LOWEST_DEFAULT)
}
