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
#[path = "roaming_tests.rs"]
mod tests;
