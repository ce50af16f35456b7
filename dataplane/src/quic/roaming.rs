//! Where a lane's packets go, while the peer's address changes under it.
//!
//! A server follows its client: the first genuine packet from another address moves the lane there at once, whether a
//! NAT has chosen a new port or the client has joined another network. Until the client has proved that it receives at
//! the new address, no more than three times what came from there is sent to it (RFC 9000 section 9.3.1); without the
//! proof the lane goes back to the last address that was proved (section 9.3.2).
//!
//! To quiche a lane is one path for all its life, under the addresses that it began with. A path of its own for each
//! address would make quiche forget what is in flight: it repeats what was sent on the old path two packets at a time
//! with doubling pauses, and it sends on the new one without looking for its MTU. On one path the next acknowledgement
//! tells what was lost, whatever address it came from. What is kept with the path is the congestion window and the round-trip
//! time, which after a change of the port alone are right (section 9.4), and which BBR corrects within some round
//! trips after a change of network.
//!
//! No I/O here, no clock and no randomness.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a peer has to prove its new address. The challenge is repeated as any lost data is, and behind a window that
/// is full of what went to a dead address it waits for probe timeouts that double: 30 s hold most of them. A peer that is
/// still at the proved address takes the lane back with its next packet, a heartbeat at the latest.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes sent to an address that is not proved, for each byte received from it (RFC 9000 section 8).
const AMPLIFICATION_MAX: u64 = 3;

/// The two ends of a lane's path, as this side sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// The local address that the peer uses, where the kernel tells.
    pub(crate) local: Option<IpAddr>,
}

/// What a packet from another address than the current one did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// The lane goes there now; the peer is to prove it with this nonce.
    Challenge(u64),
    /// The lane goes there now, without a proof: it was given earlier.
    Known,
}

#[derive(Debug, Clone, Copy)]
struct Probation {
    nonce: u64,
    /// What came from the address, and what was sent there.
    received: u64,
    sent: u64,
    deadline: Instant,
}

/// Where a lane's packets go.
#[derive(Debug)]
pub(crate) struct Roaming {
    current: Way,
    /// The last one that was proved; the handshake proves the first one.
    proved: Way,
    probation: Option<Probation>,
    /// Whether the peer answers challenges.
    answers: bool,
}

impl Roaming {
    pub(crate) fn new(way: Way) -> Roaming {
        Roaming {
            current: way,
            proved: way,
            probation: None,
            answers: false,
        }
    }

    /// The peer has said that it answers challenges.
    pub(crate) fn peer_answers(&mut self) {
        self.answers = true;
    }

    /// Where packets go now.
    pub(crate) fn current(&self) -> Way {
        self.current
    }

    /// Whether the lane follows its peer at all: without a proof, anybody's address could be flooded.
    pub(crate) fn follows(&self) -> bool {
        self.answers
    }

    /// A genuine packet of `bytes` came along `way`. `nonce` is used if the lane moves and must not be guessable.
    pub(crate) fn heard(
        &mut self,
        way: Way,
        bytes: usize,
        now: Instant,
        nonce: u64,
    ) -> Option<Moved> {
        if way == self.current {
            if let Some(probation) = &mut self.probation {
                probation.received += bytes as u64;
            }
            return None;
        }
        if !self.answers {
            return None;
        }
        self.current = way;
        if way == self.proved {
            self.probation = None;
            return Some(Moved::Known);
        }
        self.probation = Some(Probation {
            nonce,
            received: bytes as u64,
            sent: 0,
            deadline: now + PROOF_TIMEOUT,
        });
        Some(Moved::Challenge(nonce))
    }

    /// Bytes that may be sent now, if that is limited.
    pub(crate) fn budget(&self) -> Option<usize> {
        let probation = self.probation?;
        let left = (probation.received * AMPLIFICATION_MAX).saturating_sub(probation.sent);
        Some(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// So many bytes were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if let Some(probation) = &mut self.probation {
            probation.sent += bytes as u64;
        }
    }

    /// The peer answers a challenge. True if it proves the current address.
    pub(crate) fn answered(&mut self, nonce: u64) -> bool {
        let proves = self.probation.is_some_and(|it| it.nonce == nonce);
        if proves {
            self.probation = None;
            self.proved = self.current;
        }
        proves
    }

    /// When [`Roaming::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.probation?.deadline)
    }

    /// Goes back to the last proved address if the time for a proof is over. True if so.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let over = self.deadline().is_some_and(|deadline| deadline <= now);
        if over {
            self.probation = None;
            self.current = self.proved;
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
        }
    }

    fn answering(port: u16) -> Roaming {
        let mut roaming = Roaming::new(way(port));
        roaming.peer_answers();
        roaming
    }

    #[test]
    fn packets_follow_the_peer_at_once_and_little_is_sent_before_the_proof() {
        let now = Instant::now();
        let mut roaming = answering(1);
        assert_eq!(roaming.budget(), None);
        assert_eq!(
            roaming.heard(way(2), 100, now, 7),
            Some(Moved::Challenge(7))
        );
        assert_eq!(roaming.current(), way(2));
        assert_eq!(roaming.budget(), Some(300));
        roaming.sent(250);
        assert_eq!(roaming.heard(way(2), 10, now, 8), None);
        assert_eq!(roaming.budget(), Some(80));
        assert!(!roaming.answered(8), "another nonce");
        assert!(roaming.answered(7));
        assert_eq!(roaming.budget(), None);
        assert!(!roaming.expire(now + PROOF_TIMEOUT * 2));
        assert_eq!(roaming.current(), way(2));
    }

    #[test]
    fn without_a_proof_the_lane_goes_back() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.heard(way(2), 100, now, 7);
        assert!(!roaming.expire(now));
        assert!(roaming.expire(now + PROOF_TIMEOUT));
        assert_eq!(roaming.current(), way(1));
        assert_eq!(roaming.budget(), None);
        assert!(!roaming.answered(7), "too late");
    }

    #[test]
    fn a_forged_address_costs_the_peer_nothing_once_it_is_heard_again() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.heard(way(666), 100, now, 7);
        assert_eq!(roaming.heard(way(1), 100, now, 8), Some(Moved::Known));
        assert_eq!(roaming.current(), way(1));
        assert_eq!(roaming.budget(), None);
    }

    #[test]
    fn an_answer_to_an_earlier_challenge_proves_nothing() {
        let now = Instant::now();
        let mut roaming = answering(1);
        roaming.heard(way(2), 100, now, 7);
        roaming.heard(way(3), 100, now, 8);
        assert!(!roaming.answered(7));
        assert_eq!(roaming.budget(), Some(300));
        assert!(roaming.answered(8));
    }

    #[test]
    fn a_peer_that_cannot_answer_is_not_followed() {
        let mut roaming = Roaming::new(way(1));
        let moved = roaming.heard(way(2), 100, Instant::now(), 7);
        assert_eq!(moved, None);
        assert_eq!(roaming.current(), way(1));
        assert!(!roaming.follows());
    }

    /// Whatever the order of packets, answers and time: what goes to an unproved address is bounded, and without
    /// probation the lane is where a proof was given.
    #[test]
    fn simulated_peers_are_followed_within_bounds() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut roaming = answering(0);
            let (mut received, mut sent) = ([0u64; 4], [0u64; 4]);
            let mut proved = [true, false, false, false];
            let mut nonces = Vec::new();
            for step in 0..500u64 {
                now += Duration::from_millis(rng.random_range(0..400));
                let at = usize::from(roaming.current().peer.port());
                match rng.random_range(0..4) {
                    0 => {
                        let port = rng.random_range(0..4u16);
                        let bytes = rng.random_range(20..1_500usize);
                        let moved = roaming.heard(way(port), bytes, now, step);
                        received[usize::from(port)] += bytes as u64;
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
