//! The kernel's route to a peer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

/// Bytes of the headers of IPv4 and UDP.
const HEADERS_V4_BYTES: usize = 20 + 8;

/// Bytes of the headers of IPv6 and UDP.
const HEADERS_V6_BYTES: usize = 40 + 8;

/// How long an answer is reused: routes change, and a client may dial just when they do.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// The most answers that are kept. Anybody can begin handshakes from any number of addresses.
const ANSWERS_MAX: usize = 256;

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::default();
}

/// The largest UDP payload that may leave towards `peer` unfragmented, as far as this machine
/// knows: by the MTU of the interface, or less if a router has said so. The path beyond may carry
/// less. `None` if there is no route.
///
/// It costs five system calls, about 5 µs, and no packet; for the same address again within a
/// second, nothing.
pub(crate) fn udp_payload_max(peer: SocketAddr) -> Option<usize> {
    ANSWERS.with_borrow_mut(|answers| answers.get(peer, Instant::now(), ask))
}

/// The recent answers.
#[derive(Debug, Default)]
struct Answers(HashMap<(IpAddr, u32), (Instant, usize)>);

impl Answers {
    fn get(
        &mut self,
        peer: SocketAddr,
        now: Instant,
        ask: impl FnOnce(SocketAddr) -> Option<usize>,
    ) -> Option<usize> {
        let interface = match peer {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        let key = (peer.ip(), interface);
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < FRESH_FOR;
        if let Some((at, answer)) = self.0.get(&key)
            && is_fresh(*at)
        {
            return Some(*answer);
        }
        let answer = ask(peer)?;
        if self.0.len() >= ANSWERS_MAX {
            // This happens at most once for every `ANSWERS_MAX` new addresses.
            self.0.clear();
        }
        self.0.insert(key, (now, answer));
        Some(answer)
    }
}

fn ask(peer: SocketAddr) -> Option<usize> {
    let socket = UdpSocket::bind(super::bind::any_towards(peer)).ok()?;
    // This looks up the route, and keeps it with the socket.
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
        // The address is in a reserved network, so connect() refuses or there is no route.
        let nowhere = udp_payload_max("255.255.255.255:9".parse().expect("literal"));
        assert_eq!(nowhere, None);
    }

    #[test]
    fn an_address_is_asked_for_once_in_a_second_whatever_its_port() {
        let mut answers = Answers::default();
        let start = Instant::now();
        let mut asked = 0;
        for ms in 0..2_500 {
            let peer = SocketAddr::from(([192, 0, 2, 1], 1_000 + ms));
            let now = start + Duration::from_millis(ms.into());
            let answer = answers.get(peer, now, |_| {
                asked += 1;
                Some(1_472 + asked)
            });
            assert_eq!(answer, Some(1_473 + usize::from(ms) / 1_000));
        }
        assert_eq!(asked, 3);
    }

    #[test]
    fn many_addresses_take_bounded_room() {
        let mut answers = Answers::default();
        let now = Instant::now();
        for ip in 0..100_000u32 {
            let peer = SocketAddr::new(IpAddr::V4(ip.into()), 1);
            answers.get(peer, now, |_| Some(1_472));
            assert!(answers.0.len() <= ANSWERS_MAX);
        }
    }

    #[test]
    fn no_way_is_no_answer_to_be_kept() {
        let mut answers = Answers::default();
        let (now, peer) = (Instant::now(), "192.0.2.1:1".parse().expect("literal"));
        assert_eq!(answers.get(peer, now, |_| None), None);
        assert_eq!(answers.get(peer, now, |_| Some(1_472)), Some(1_472));
    }
}
