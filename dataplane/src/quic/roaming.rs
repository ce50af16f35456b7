//! Connection migration: where a lane's packets go while its peer's address changes.
//!
//! A server follows its client: genuine packets from another address move the lane there, whether a
//! NAT has chosen a new port or the client has joined another network. The first such packet does
//! so if the peer has not been heard lately at the old address. Otherwise it takes several in a
//! row, so that packets that come late, or a NAT that sends one lane's packets from two addresses,
//! do not move the lane to and fro. Until the client has proved that it receives at the new
//! address, no more than three times what came from there is sent to it (RFC 9000 section 9.3.1).
//! Without the proof the lane goes back to the last proved address (section 9.3.2). Addresses that
//! were proved lately need no new proof (section 9.3).
//!
//! To quiche a lane is one path for all its life, under the addresses that it began with. If each
//! address had a path of its own, quiche would forget what is in flight: it repeats what was sent
//! on the old path two packets at a time with doubling pauses, and sends on the new one without
//! looking for its MTU. On one path the next acknowledgement shows what was lost, whatever address
//! it came from. The congestion window and the round-trip time are kept with the path. They are
//! right after a change of the port alone (section 9.4), and BBR corrects them within some round
//! trips after a change of network.
//!
//! There is no I/O, no clock and no randomness in here.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a peer has to prove its new address. The challenge is repeated as any lost data is, and
/// behind a window that is full of what went to a dead address it waits for probe timeouts that
/// double: 30 s hold most of them. A peer that is still at the proved address takes the lane back
/// with its next packet, a heartbeat at the latest.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);

/// A peer that was heard at its address within this time is thought to be there still. One that has
/// moved and sends little is followed with its next packet after this time: a client asks when it
/// has heard nothing for a second.
const STILL_THERE: Duration = Duration::from_millis(200);

/// Packets in a row from another address that move the lane in any case.
const IN_A_ROW: u32 = 3;

/// Proved addresses that are remembered, with the current one: a peer with two uplinks has two.
const PROVED_MAX: usize = 4;

/// How long an address that the lane has left counts as proved.
const PROVED_FOR: Duration = Duration::from_secs(60);

/// Bytes sent to an address that is not proved, for each byte received from it (RFC 9000 section
/// 8).
const AMPLIFICATION_MAX: u64 = 3;

/// The number of a TLS connection of an endpoint; numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TlsId(u64);

impl TlsId {
    pub(crate) fn new(number: u64) -> TlsId {
        TlsId(number)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// The path of a lane's packets: its two ends, as this side sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// The local address that the peer uses, if the kernel tells it.
    pub(crate) local: Option<IpAddr>,
    /// The TLS connection that carries the packets; `None` if UDP does.
    pub(crate) tls: Option<TlsId>,
}

impl Way {
    /// The path over UDP between these addresses.
    pub(crate) fn over_udp(peer: SocketAddr, local: Option<IpAddr>) -> Way {
        Way {
            peer,
            local,
            tls: None,
        }
    }
}

/// The effect of a packet from another address than the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// The lane moves there; the peer is to prove the address with this nonce.
    Challenge(u64),
    /// The lane moves there, without a new proof, because the address was proved earlier.
    Known,
}

#[derive(Debug, Clone, Copy)]
struct Probation {
    nonce: u64,
    /// Bytes that came from the address, and bytes that were sent there.
    received: u64,
    sent: u64,
    deadline: Instant,
}

/// Packets in a row from one address that the lane does not follow yet.
#[derive(Debug, Clone, Copy)]
struct Strays {
    way: Way,
    packets: u32,
    bytes: u64,
    /// Number of packets that had come from the current address when the first of them came.
    heard_before: u64,
}

/// The path of a lane's packets, and the addresses that its peer has proved.
#[derive(Debug)]
pub(crate) struct Roaming {
    current: Way,
    /// The proved addresses, each with the time when the lane left it; the last one first. The
    /// handshake proves the first address.
    proved: Vec<(Way, Option<Instant>)>,
    probation: Option<Probation>,
    /// The time at which the peer was last heard at the current address.
    heard_at: Option<Instant>,
    strays: Option<Strays>,
    /// Set when the peer was heard at a proved address again before it had proved the next one:
    /// until then the lane does not leave a proved address for an unproved one while the peer is
    /// heard there.
    wary_until: Option<Instant>,
    /// Whether the peer answers challenges.
    answers: bool,
}

impl Roaming {
    pub(crate) fn new(way: Way) -> Roaming {
        Roaming {
            current: way,
            proved: vec![(way, None)],
            probation: None,
            heard_at: None,
            strays: None,
            wary_until: None,
            answers: false,
        }
    }

    /// Notes that the peer answers challenges.
    pub(crate) fn peer_answers(&mut self) {
        self.answers = true;
    }

    /// The path of the packets now.
    pub(crate) fn current(&self) -> Way {
        self.current
    }

    /// Whether the lane follows its peer at all. Without a proof, anybody's address could be
    /// flooded.
    pub(crate) fn follows(&self) -> bool {
        self.answers
    }

    /// Counts a genuine packet of `bytes` from the current address. Needed only while that is not
    /// proved.
    pub(crate) fn received(&mut self, bytes: usize) {
        if let Some(probation) = &mut self.probation {
            probation.received += bytes as u64;
        }
    }

    /// Notes that the peer was heard at the current address.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
    }

    /// Handles a genuine packet of `bytes` that came along another path than the current one;
    /// `heard_here` packets have come along the current one in all. `nonce` is used if the lane
    /// moves, and must not be guessable.
    pub(crate) fn strayed(
        &mut self,
        way: Way,
        bytes: usize,
        now: Instant,
        nonce: u64,
        heard_here: u64,
    ) -> Option<Moved> {
        if !self.answers || way == self.current {
            return None;
        }
        let mut strays = self
            .strays
            .filter(|it| it.way == way && it.heard_before == heard_here)
            .unwrap_or(Strays {
                way,
                packets: 0,
                bytes: 0,
                heard_before: heard_here,
            });
        strays.packets += 1;
        strays.bytes += bytes as u64;
        self.strays = Some(strays);
        let known = self.position_of_proved(way, now);
        let still_there = self
            .heard_at
            .is_some_and(|at| now.saturating_duration_since(at) < STILL_THERE);
        let wary = known.is_none() && self.wary_until.is_some_and(|until| now < until);
        if still_there && (wary || strays.packets < IN_A_ROW) {
            return None;
        }
        Some(self.go(way, known, strays.bytes, now, nonce))
    }

    fn go(
        &mut self,
        way: Way,
        known: Option<usize>,
        received: u64,
        now: Instant,
        nonce: u64,
    ) -> Moved {
        self.strays = None;
        self.heard_at = Some(now);
        if self.probation.is_none() {
            self.proved[0].1 = Some(now);
        }
        self.current = way;
        if let Some(at) = known {
            if self.probation.take().is_some() {
                self.wary_until = Some(now + PROOF_TIMEOUT);
            }
            self.proved[..=at].rotate_right(1);
            return Moved::Known;
        }
        self.probation = Some(Probation {
            nonce,
            received,
            sent: 0,
            // A peer that goes from one address to the next without a proof does not put off the
            // return.
            deadline: self
                .probation
                .map_or(now + PROOF_TIMEOUT, |earlier| earlier.deadline),
        });
        Moved::Challenge(nonce)
    }

    /// The index of `way` among the proved paths. The last one stays valid, because the lane
    /// returns to it.
    fn position_of_proved(&self, way: Way, now: Instant) -> Option<usize> {
        let at = self.proved.iter().position(|(proved, _)| *proved == way)?;
        let lately = self.proved[at]
            .1
            .is_none_or(|left| now.saturating_duration_since(left) < PROVED_FOR);
        (at == 0 || lately).then_some(at)
    }

    /// Number of bytes that may be sent now, if that is limited.
    pub(crate) fn budget(&self) -> Option<usize> {
        let probation = self.probation?;
        // TCP has shown that the peer receives there.
        if self.current.tls.is_some() {
            return None;
        }
        let left = (probation.received * AMPLIFICATION_MAX).saturating_sub(probation.sent);
        Some(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Counts bytes that were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if let Some(probation) = &mut self.probation {
            probation.sent += bytes as u64;
        }
    }

    /// Handles the answer to a challenge. Returns true if it proves the current address.
    pub(crate) fn answered(&mut self, nonce: u64) -> bool {
        let proves = self.probation.is_some_and(|it| it.nonce == nonce);
        if proves {
            self.probation = None;
            self.wary_until = None;
            let current = self.current;
            self.proved.retain(|(way, _)| *way != current);
            self.proved.truncate(PROVED_MAX - 1);
            self.proved.insert(0, (current, None));
        }
        proves
    }

    /// Sends along `way` from now on; for the side that needs no proof of its own server.
    pub(crate) fn choose(&mut self, way: Way) {
        self.current = way;
        self.probation = None;
        self.strays = None;
        self.proved.clear();
        self.proved.push((way, None));
    }

    /// The time at which [`Roaming::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.probation?.deadline)
    }

    /// Goes back to the last proved address if the time for a proof is over. Returns true if it
    /// did.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let over = self.deadline().is_some_and(|deadline| deadline <= now);
        if over {
            self.probation = None;
            self.strays = None;
            self.heard_at = None;
            self.current = self.proved[0].0;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    fn way(port: u16) -> Way {
        Way {
            peer: ([192, 0, 2, 1], port).into(),
            local: None,
            tls: None,
        }
    }

    fn answering(port: u16) -> Roaming {
        let mut roaming = Roaming::new(way(port));
        roaming.peer_answers();
        roaming
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn packets_follow_a_peer_that_was_silent_at_once_and_little_is_sent_before_the_proof() {
        let now = Instant::now();
        let mut roaming = answering(1);
        assert_eq!(roaming.budget(), None);
        roaming.heard(now);
        let now = now + STILL_THERE;
        assert_eq!(
            roaming.strayed(way(2), 100, now, 7, 0),
            Some(Moved::Challenge(7))
        );
        assert_eq!(roaming.current(), way(2));
        assert_eq!(roaming.budget(), Some(300));
        roaming.sent(250);
        roaming.received(10);
        assert_eq!(roaming.budget(), Some(80));
        assert!(!roaming.answered(8), "another nonce");
        assert!(roaming.answered(7));
        assert_eq!(roaming.budget(), None);
        assert!(!roaming.expire(now + PROOF_TIMEOUT * 2));
        assert_eq!(roaming.current(), way(2));
    }

    #[test]
    fn a_peer_that_comes_along_tcp_needs_no_budget_but_has_to_prove_who_it_is() {
        let now = Instant::now();
        let mut roaming = answering(1);
        let over_tls = Way {
            tls: Some(TlsId::new(5)),
            ..way(2)
        };
        let moved = roaming.strayed(over_tls, 100, now, 7, 0);
        assert_eq!(moved, Some(Moved::Challenge(7)));
        assert_eq!((roaming.current(), roaming.budget()), (over_tls, None));
        assert!(roaming.expire(now + PROOF_TIMEOUT), "nobody has answered");
        assert_eq!(roaming.current(), way(1));
        // Another connection from the same port is another path.
        let next = Way {
            tls: Some(TlsId::new(6)),
            ..way(2)
        };
        assert_eq!(
            roaming.strayed(over_tls, 100, now, 8, 0),
            Some(Moved::Challenge(8))
        );
        assert!(roaming.answered(8));
        let later = now + STILL_THERE;
        assert_eq!(
            roaming.strayed(next, 100, later, 9, 0),
            Some(Moved::Challenge(9))
        );
    }

    #[test]
    fn a_client_sends_where_it_chooses_and_needs_no_proof_of_its_server() {
        let mut roaming = Roaming::new(way(1));
        let over_tls = Way {
            tls: Some(TlsId::new(5)),
            ..way(1)
        };
        roaming.choose(over_tls);
        assert_eq!((roaming.current(), roaming.budget()), (over_tls, None));
        roaming.choose(way(1));
        assert_eq!((roaming.current(), roaming.deadline()), (way(1), None));
    }

    #[test]
    fn a_peer_that_is_still_heard_is_followed_after_several_packets_in_a_row() {
        let mut now = Instant::now();
        let mut roaming = answering(1);
        // The packets come from both addresses by turns, and the lane stays where it is.
        for heard in 0..100 {
            roaming.heard(now);
            now += MS;
            for nonce in 0..2 {
                assert_eq!(roaming.strayed(way(2), 100, now, nonce, heard), None);
            }
            assert_eq!(roaming.strayed(way(3), 100, now, 9, heard), None);
        }
        for nonce in 1..3 {
            assert_eq!(roaming.strayed(way(2), 100, now, nonce, 100), None);
        }
        assert_eq!(
            roaming.strayed(way(2), 100, now, 3, 100),
            Some(Moved::Challenge(3))
        );
        assert_eq!(roaming.budget(), Some(900), "all three count");
    }

    #[test]
    fn late_packets_do_not_take_the_lane_back() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(2), 100, now, 7, 0);
        for heard in 1..10 {
            assert_eq!(roaming.strayed(way(1), 100, now + MS, 8, heard), None);
        }
        assert!(roaming.answered(7), "the nonce is good still");
    }

    #[test]
    fn a_peer_with_two_ways_out_proves_each_once() {
        let mut now = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(2), 100, now, 7, 0);
        assert!(roaming.answered(7));
        for turn in 0..100 {
            now += STILL_THERE;
            let to = way(1 + turn % 2);
            assert_eq!(roaming.strayed(to, 100, now, 8, 0), Some(Moved::Known));
            assert_eq!((roaming.current(), roaming.budget()), (to, None));
        }
        // An address that was left lately is valid; one that was left long ago is proved anew.
        now += PROVED_FOR - MS;
        let moved = roaming.strayed(way(1), 100, now, 9, 0);
        assert_eq!(moved, Some(Moved::Known));
        now += PROVED_FOR;
        let moved = roaming.strayed(way(2), 100, now, 9, 0);
        assert_eq!(moved, Some(Moved::Challenge(9)));
    }

    #[test]
    fn so_many_proved_addresses_are_remembered() {
        let mut now = Instant::now();
        let mut roaming = answering(0);
        for port in 1..100 {
            now += STILL_THERE;
            roaming.strayed(way(port), 100, now, port.into(), 0);
            assert!(roaming.answered(port.into()));
            assert!(roaming.proved.len() <= PROVED_MAX);
        }
        now += STILL_THERE;
        assert_eq!(roaming.strayed(way(96), 1, now, 1, 0), Some(Moved::Known));
        now += STILL_THERE;
        assert_eq!(
            roaming.strayed(way(95), 1, now, 1, 0),
            Some(Moved::Challenge(1))
        );
    }

    #[test]
    fn without_a_proof_the_lane_goes_back() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(2), 100, now, 7, 0);
        assert!(!roaming.expire(now));
        assert!(roaming.expire(now + PROOF_TIMEOUT));
        assert_eq!(roaming.current(), way(1));
        assert_eq!(roaming.budget(), None);
        assert!(!roaming.answered(7), "too late");
    }

    #[test]
    fn a_peer_that_moves_on_without_a_proof_does_not_put_off_the_return() {
        let begin = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(2), 100, begin, 7, 0);
        let mut now = begin;
        for port in 3..20 {
            now += PROOF_TIMEOUT / 20;
            let moved = roaming.strayed(way(port), 100, now, port.into(), 0);
            assert_eq!(moved, Some(Moved::Challenge(port.into())));
        }
        assert_eq!(roaming.deadline(), Some(begin + PROOF_TIMEOUT));
        assert!(roaming.expire(begin + PROOF_TIMEOUT));
        assert_eq!(roaming.current(), way(1));
    }

    #[test]
    fn a_forged_address_costs_the_peer_little_and_only_once() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(666), 100, now, 7, 0);
        for _ in 1..IN_A_ROW {
            assert_eq!(roaming.strayed(way(1), 100, now, 8, 0), None);
        }
        assert_eq!(roaming.strayed(way(1), 100, now, 8, 0), Some(Moved::Known));
        assert_eq!(roaming.current(), way(1));
        assert_eq!(roaming.budget(), None);
        assert!(!roaming.answered(7));
        for _ in 0..10 {
            assert_eq!(roaming.strayed(way(666), 100, now, 9, 0), None, "wary");
        }
        let later = now + STILL_THERE;
        assert_eq!(
            roaming.strayed(way(666), 100, later, 9, 0),
            Some(Moved::Challenge(9)),
            "nobody is heard elsewhere"
        );
    }

    #[test]
    fn an_answer_to_an_earlier_challenge_proves_nothing() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.strayed(way(2), 100, now, 7, 0);
        let now = now + STILL_THERE;
        roaming.strayed(way(3), 100, now, 8, 0);
        assert!(!roaming.answered(7));
        assert_eq!(roaming.budget(), Some(300));
        assert!(roaming.answered(8));
    }

    #[test]
    fn a_peer_that_cannot_answer_is_not_followed() {
        let mut roaming = Roaming::new(way(1));
        let moved = roaming.strayed(way(2), 100, Instant::now(), 7, 0);
        assert_eq!(moved, None);
        assert_eq!(roaming.current(), way(1));
        assert!(!roaming.follows());
    }

    /// Whatever the order of packets, answers and time: what goes to an unproved address is
    /// bounded, and without probation the lane is where a proof was given.
    #[test]
    fn simulated_peers_are_followed_within_bounds() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut roaming = answering(0);
            let (mut received, mut sent) = ([0u64; 4], [0u64; 4]);
            let mut proved = [true, false, false, false];
            let mut nonces = Vec::new();
            let mut heard = 0;
            for step in 0..500u64 {
                now += Duration::from_millis(rng.random_range(0..150));
                let at = usize::from(roaming.current().peer.port());
                match rng.random_range(0..4) {
                    0 => {
                        let port = rng.random_range(0..4u16);
                        let bytes = rng.random_range(20..1_500usize);
                        received[usize::from(port)] += bytes as u64;
                        let moved = if at == usize::from(port) {
                            heard += bytes as u64;
                            roaming.received(bytes);
                            roaming.heard(now);
                            None
                        } else {
                            roaming.strayed(way(port), bytes, now, step, heard)
                        };
                        if let Some(Moved::Challenge(nonce)) = moved {
                            nonces.push((nonce, port));
                        }
                    }
                    1 => {
                        let bytes = rng
                            .random_range(1..2_000)
                            .min(roaming.budget().unwrap_or(2_000));
                        roaming.sent(bytes);
                        sent[at] += bytes as u64;
                    }
                    2 if !nonces.is_empty() => {
                        let (nonce, port) = nonces[rng.random_range(0..nonces.len())];
                        if roaming.answered(nonce) {
                            assert_eq!(port, roaming.current().peer.port(), "seed {seed}");
                            proved[usize::from(port)] = true;
                        }
                    }
                    _ => {
                        roaming.expire(now);
                    }
                }
                let at = usize::from(roaming.current().peer.port());
                assert!(
                    proved[at] || roaming.budget().is_some(),
                    "seed {seed}, step {step}"
                );
                for port in 0..4 {
                    assert!(
                        proved[port] || sent[port] <= received[port] * AMPLIFICATION_MAX,
                        "seed {seed}, step {step}"
                    );
                }
            }
        }
    }
}
