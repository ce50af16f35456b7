//! Fallback: when a lane moves from UDP to TLS, and when it moves back.
//!
//! **From UDP to TLS.** The sign that UDP does not pass any more is silence on it while a TLS
//! connection to the same address can be opened. So a lane whose questions stay unanswered dials
//! TLS, and moves to it if it still is not answered when the connection is open. A lost packet, or
//! a network that is away altogether, moves nothing. A network may also let a trickle of UDP pass:
//! then everything is answered, but nothing gets on. So a lane also moves if either side says that
//! most of what it sends is lost.
//!
//! **Back to UDP.** While a lane rides TLS, QUIC is tried from another port every 30 s, and when it
//! gets through the lane moves back, however often UDP has failed before: a network that is good
//! again must not be left unused, and the pauses need not grow. On a path that lets handshakes
//! through and nothing else, or each flow of UDP for a while, a return costs one short pause and no
//! flow, because the TLS connection is kept beside UDP for long enough to find out. A path that
//! lets a trickle of UDP through answers every probe, and costs seconds until the losses are known;
//! so when most was lost soon after a return, what a probe finds counts after twice the time.
//!
//! **From TLS to TLS.** A TLS connection may fall silent as well: the client has moved to another
//! network, or a firewall has forgotten the connection without a reset to either side. So a lane
//! that rides TLS and is not answered dials a second connection beside the first, and moves to it
//! if it still is not answered.
//!
//! This is a state machine without I/O, clock or randomness: time comes in as an argument. Each
//! lane has one.

use std::time::{Duration, Instant};

use qmux_config::Transport;

use crate::client::servers::transport::Riding;

/// A lane whose questions have been unanswered for this long dials TLS. It has asked several times
/// by then, and this is longer than most round trips. Together with the time until the first
/// question, and two round trips of the dial, the pause is some two seconds.
pub(super) const SILENCE: Duration = Duration::from_millis(600);

/// On long paths the lane waits for twice the round trip, but not longer than this.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Pause between two probes of QUIC, and before the first one.
const QUIC_PAUSE: Duration = Duration::from_secs(30);

/// A lane that rides TLS and is not answered may probe QUIC sooner, but not more often than this.
const QUIC_PAUSE_SILENT: Duration = Duration::from_secs(5);

/// Pause after a TLS connection could not be opened, or brought no answer; it is doubled with each
/// further one. It holds also after the first connection that was dialled beside another.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

/// The most times that [`DIAL_PAUSE`] is doubled, to half a minute, and [`QUIC_PAUSE`] for a path
/// that carries a trickle, to a quarter of an hour.
const DOUBLINGS_MAX: u32 = 5;

/// The most times that the pause before another second connection is doubled. If the first
/// connection is silent for good, the flows of its lane wait for the second one, so the pause must
/// stay short.
const SECOND_DOUBLINGS_MAX: u32 = 2;

/// For how long a lane that has lost its TLS connection dials at [`LOST_PAUSE`]: the server keeps
/// its flows for as long.
const LOST_FOR: Duration = Duration::from_secs(5);

/// Pause between the dials of a lane that has lost its TLS connection, jittered.
pub(super) const LOST_PAUSE: Duration = Duration::from_millis(500);

/// A lane that has not needed a second TLS connection for this long may have the next one at once.
const LASTS: Duration = Duration::from_secs(60);

/// How long a report of heavy losses holds; it is repeated while it is true.
const SAID_FOR: Duration = Duration::from_secs(6);

/// How long a TLS connection is kept that is not needed any more: as long as a path may take that
/// lets UDP pass only for a while.
const SPARE_FOR: Duration = Duration::from_secs(45);

/// UDP that has carried a lane for this long carried more than a trickle.
const STEADY: Duration = Duration::from_secs(10 * 60);

/// The reason why a lane moves, in words for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// To TLS: UDP is silent.
    UdpIsSilent,
    /// To TLS: most of what is sent over UDP is lost.
    UdpLosesMost,
    /// To UDP: QUIC gets through.
    QuicPasses,
    /// To UDP, because the TLS connection is lost and there is no other way.
    TlsIsLost,
    /// To a new TLS connection, after the old one was lost.
    TlsIsBack,
    /// To a second TLS connection, while the first one is open and silent.
    TlsIsSilent,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::UdpIsSilent => "nothing is heard over UDP, and TLS can be had",
            Why::UdpLosesMost => "most of what is sent over UDP is lost, and TLS can be had",
            Why::QuicPasses => "QUIC gets through again",
            Why::TlsIsLost => "its TLS connection is over",
            Why::TlsIsBack => "its TLS connection was over, and there is another one",
            Why::TlsIsSilent => {
                "nothing is heard over its TLS connection, and there is another one"
            }
        })
    }
}

/// What the owner of the lane must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Dial TLS, and report the result by [`Fallback::dialled`].
    DialTls,
    /// Probe QUIC from another port, and report the result by [`Fallback::probed`]. A result that
    /// is no older than this is good enough.
    ProbeQuic(Duration),
    /// Move the lane to this transport. With [`Why::TlsIsSilent`] that is the second TLS
    /// connection, which becomes the first one; the old first one is closed.
    Ride(Riding, Why),
    /// Close the second TLS connection, which is not needed.
    CloseSecond,
    /// Close the TLS connection, which is not needed any more.
    CloseTls,
}

/// What a lane knows of its path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signs {
    /// The time since which a question has been unanswered, and nothing else was answered.
    pub(super) unanswered_since: Option<Instant>,
    /// Whether anything was answered since the lane moved to its present transport.
    pub(super) answered: bool,
    /// How long an answer takes.
    pub(super) rtt: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    None,
    Dialling,
    Open,
}

/// The fallback of one lane; see the module.
#[derive(Debug)]
pub(super) struct Fallback {
    transport: Transport,
    riding: Riding,
    tls: Tls,
    /// TLS is not dialled before this time.
    dial_from: Instant,
    dials_failed: u32,
    /// TLS connections in a row that ended without an answer.
    in_vain: u32,
    /// The second connection, beside one that is silent.
    second: Tls,
    /// The second connection is not dialled before this time.
    second_from: Instant,
    /// How many second connections were dialled in a row.
    seconds: u32,
    /// The time until which most of what is sent over UDP counts as lost, by the last report.
    loses_until: Option<Instant>,
    /// Whether the lane has lost the connection that it rode, so that it moves to the next one at
    /// once.
    lost: bool,
    /// The time since which the lane has been without a connection, unless the lost one was one of
    /// several in vain.
    lost_at: Instant,
    /// The next of the short pauses after a lost connection.
    lost_pause: Duration,
    /// The time until which a connection that carries nothing is kept.
    spare_until: Instant,
    probing: bool,
    probe_at: Instant,
    /// While another lane probes QUIC, its result is not asked for before this time.
    look_at: Instant,
    /// The time at which QUIC was probed last.
    probed_at: Option<Instant>,
    quic_passes: bool,
    /// QUIC that passes before this time carries only a trickle, as it did before.
    distrusted_until: Instant,
    /// How many times in a row most of what was sent was lost soon after a return to UDP.
    trickles: u32,
    /// The time at which the lane moved to its present transport; earlier questions were asked
    /// elsewhere.
    rides_since: Instant,
    /// The signs with which [`Fallback::next`] was asked last.
    signs: Signs,
}

impl Fallback {
    pub(super) fn new(transport: Transport, riding: Riding, now: Instant) -> Fallback {
        Fallback {
            transport,
            riding,
            tls: match riding {
                Riding::Udp => Tls::None,
                Riding::Tls => Tls::Open,
            },
            dial_from: now,
            dials_failed: 0,
            in_vain: 0,
            second: Tls::None,
            second_from: now,
            seconds: 0,
            loses_until: None,
            lost: false,
            lost_at: now,
            lost_pause: LOST_PAUSE,
            spare_until: now,
            probing: false,
            probe_at: now + QUIC_PAUSE,
            look_at: now,
            probed_at: None,
            quic_passes: false,
            distrusted_until: now,
            trickles: 0,
            rides_since: now,
            signs: Signs::default(),
        }
    }

    /// The transports that the lane may use.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Notes a report that most of what this side or the peer sends is lost, although something is
    /// answered.
    pub(super) fn loses_most(&mut self, now: Instant) {
        if self.transport == Transport::Auto && self.riding == Riding::Udp {
            self.loses_until = Some(now + SAID_FOR);
        }
    }

    /// Whether reports of losses matter.
    pub(super) fn minds_losses(&self) -> bool {
        self.transport == Transport::Auto && self.riding == Riding::Udp
    }

    /// Whether it matters that something was answered ([`Signs::answered`]).
    pub(super) fn waits_for_answer(&self) -> bool {
        self.riding == Riding::Udp && self.lost
    }

    /// The transport that carries the lane.
    #[cfg(test)]
    pub(super) fn riding(&self) -> Riding {
        self.riding
    }

    /// The next thing to do now. It is to be asked until there is nothing.
    pub(super) fn next(&mut self, now: Instant, signs: Signs) -> Option<Action> {
        self.signs = signs;
        let silent = self.silent_at().is_some_and(|at| now >= at);
        if self.waits_for_answer() && signs.answered {
            // UDP carries the lane again; a further TLS connection is for the next silence.
            self.lost = false;
        }
        match (self.transport, self.riding) {
            (Transport::Quic, _) => None,
            (_, Riding::Udp) => self.next_on_udp(now, silent),
            (_, Riding::Tls) => self.next_on_tls(now, silent),
        }
    }

    fn next_on_udp(&mut self, now: Instant, silent: bool) -> Option<Action> {
        if self.second == Tls::Open {
            return Some(self.close_second());
        }
        let loses = self.loses_until.is_some_and(|until| now < until);
        let leaves = silent || self.lost || loses;
        match self.tls {
            Tls::Open if leaves => Some(self.ride_tls(now)),
            Tls::Open if now >= self.spare_until => {
                self.tls = std::mem::replace(&mut self.second, Tls::None);
                Some(Action::CloseTls)
            }
            Tls::None if leaves && now >= self.dial_from => {
                self.tls = Tls::Dialling;
                Some(Action::DialTls)
            }
            _ => None,
        }
    }

    fn next_on_tls(&mut self, now: Instant, silent: bool) -> Option<Action> {
        if self.lost && self.tls == Tls::Open {
            return Some(self.ride_tls(now));
        }
        if self.transport == Transport::Tls {
            if self.tls == Tls::None && now >= self.dial_from {
                self.tls = Tls::Dialling;
                return Some(Action::DialTls);
            }
            return self.next_beside_tls(now, silent);
        }
        if self.tls != Tls::Open {
            return Some(self.ride_udp(now, Why::TlsIsLost));
        }
        if std::mem::take(&mut self.quic_passes) {
            return Some(self.ride_udp(now, Why::QuicPasses));
        }
        let beside = self.next_beside_tls(now, silent);
        if beside.is_none() && !self.probing && now >= self.probe_due(silent) {
            self.probing = true;
            let as_of = if silent {
                QUIC_PAUSE_SILENT
            } else {
                QUIC_PAUSE
            };
            return Some(Action::ProbeQuic(as_of));
        }
        beside
    }

    /// The next thing to do about a TLS connection that is open, and may be silent.
    fn next_beside_tls(&mut self, now: Instant, silent: bool) -> Option<Action> {
        match self.second {
            Tls::Open if silent => {
                self.second = Tls::None;
                self.rides_since = now;
                Some(Action::Ride(Riding::Tls, Why::TlsIsSilent))
            }
            Tls::Open => Some(self.close_second()),
            Tls::None if silent && self.tls == Tls::Open && now >= self.second_from => {
                if now >= self.second_from + LASTS {
                    self.seconds = 0;
                }
                self.second = Tls::Dialling;
                Some(Action::DialTls)
            }
            _ => None,
        }
    }

    fn close_second(&mut self) -> Action {
        self.second = Tls::None;
        Action::CloseSecond
    }

    /// The time at which the lane will have been left unanswered for too long.
    fn silent_at(&self) -> Option<Instant> {
        let since = self.signs.unanswered_since?;
        let patience = (self.signs.rtt * 2).clamp(SILENCE, SILENCE_MAX);
        Some(since.max(self.rides_since) + patience)
    }

    fn probe_due(&self, silent: bool) -> Instant {
        let due = match (silent, self.probed_at) {
            (false, _) => self.probe_at,
            (true, None) => self.rides_since,
            (true, Some(at)) => self.probe_at.min(at + QUIC_PAUSE_SILENT),
        };
        due.max(self.look_at)
    }

    fn ride_tls(&mut self, now: Instant) -> Action {
        let loses = self.loses_until.take().filter(|until| now < *until);
        let why = match (std::mem::take(&mut self.lost), loses) {
            (true, _) => Why::TlsIsBack,
            (false, Some(_)) => Why::UdpLosesMost,
            (false, None) => Why::UdpIsSilent,
        };
        if why != Why::TlsIsBack {
            self.probe_at = now + QUIC_PAUSE;
        }
        if why == Why::UdpLosesMost {
            let has_lasted = now >= self.rides_since + STEADY;
            self.trickles = if has_lasted { 0 } else { self.trickles + 1 };
            let doublings = self.trickles.saturating_sub(1).min(DOUBLINGS_MAX);
            // The probe that counts may come a little sooner than planned.
            self.distrusted_until = now + QUIC_PAUSE * (1 << doublings) - QUIC_PAUSE / 2;
        }
        self.riding = Riding::Tls;
        self.rides_since = now;
        self.quic_passes = false;
        Action::Ride(Riding::Tls, why)
    }

    fn ride_udp(&mut self, now: Instant, why: Why) -> Action {
        self.riding = Riding::Udp;
        self.rides_since = now;
        self.spare_until = now + SPARE_FOR;
        Action::Ride(Riding::Udp, why)
    }

    /// Sets a jittered [`LOST_PAUSE`] for the next dial that fails.
    pub(super) fn set_lost_pause(&mut self, pause: Duration) {
        self.lost_pause = pause;
    }

    /// Takes the result of a dial: the TLS connection is open, or failed. Returns true if it is the
    /// second one.
    pub(super) fn dialled(&mut self, now: Instant, there: bool) -> bool {
        let is_second = self.second == Tls::Dialling;
        if is_second {
            self.second = if there { Tls::Open } else { Tls::None };
            self.second_from = now + pause(self.seconds.min(SECOND_DOUBLINGS_MAX));
            self.seconds += 1;
        } else if there {
            self.tls = Tls::Open;
            self.dials_failed = 0;
            self.spare_until = now + SPARE_FOR;
        } else if self.lost && now < self.lost_at + LOST_FOR {
            self.tls = Tls::None;
            self.dial_from = now + self.lost_pause;
        } else {
            self.tls = Tls::None;
            self.dial_from = now + pause(self.dials_failed);
            self.dials_failed += 1;
            // If UDP is silent as well, that is reason enough to dial again.
            self.lost &= self.transport == Transport::Tls || self.signs.unanswered_since.is_some();
        }
        is_second
    }

    /// The TLS connection is over. A second one becomes the first. `answered` says whether anything
    /// was answered since the lane moved to its present transport.
    pub(super) fn lost_tls(&mut self, now: Instant, answered: bool) {
        if self.tls != Tls::Open {
            return;
        }
        self.tls = std::mem::replace(&mut self.second, Tls::None);
        self.dial_from = now;
        if self.riding == Riding::Tls {
            self.lost = true;
            // A connection without an answer is as good as none. The first one may have been a
            // mishap.
            self.in_vain = if answered { 0 } else { self.in_vain + 1 };
            if self.in_vain <= 1 {
                self.lost_at = now;
            }
            let before = self.in_vain.checked_sub(2);
            self.dial_from += before.map_or(Duration::ZERO, pause);
        }
    }

    /// The second TLS connection is over.
    pub(super) fn lost_second(&mut self) {
        if self.second == Tls::Open {
            self.second = Tls::None;
        }
    }

    /// Takes the result of a probe at the time `found`: whether QUIC gets through from another
    /// port.
    pub(super) fn probed(&mut self, found: Instant, passes: bool) {
        self.probing = false;
        self.probed_at = Some(found);
        // While TLS is silent, a trickle is better than nothing.
        let counts = found >= self.distrusted_until || self.signs.unanswered_since.is_some();
        self.quic_passes = passes && counts && self.riding == Riding::Tls;
        self.probe_at = self.probe_at.max(found + QUIC_PAUSE);
    }

    /// Another lane is probing QUIC now. Ask again at `at`, if there still is reason to.
    pub(super) fn probe_later(&mut self, at: Instant) {
        self.probing = false;
        self.look_at = at;
    }

    /// The time at which [`Fallback::next`] may have something to do, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.transport == Transport::Quic {
            return None;
        }
        let silent_at = self.silent_at();
        match (self.riding, self.tls) {
            // The result of the dial is reported.
            (_, Tls::Dialling) => None,
            (Riding::Udp, Tls::None) if self.lost => Some(self.dial_from),
            (Riding::Udp, Tls::None) => silent_at.map(|at| at.max(self.dial_from)),
            (Riding::Udp, Tls::Open) => {
                Some(silent_at.map_or(self.spare_until, |at| at.min(self.spare_until)))
            }
            (Riding::Tls, Tls::None) => Some(self.dial_from),
            (Riding::Tls, Tls::Open) => {
                let dials = self.second == Tls::None;
                let beside = silent_at
                    .filter(|_| dials)
                    .map(|at| at.max(self.second_from));
                let probes = self.transport == Transport::Auto && !self.probing;
                let silent_due = silent_at.map(|at| at.max(self.probe_due(true)));
                let due = self.probe_due(false);
                let due = silent_due.map_or(due, |at| at.min(due));
                [beside, probes.then_some(due)].into_iter().flatten().min()
            }
        }
    }
}

/// The pause after this many failures.
fn pause(before: u32) -> Duration {
    DIAL_PAUSE * (1 << before.min(DOUBLINGS_MAX))
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "fallback_lives_tests.rs"]
mod lives;
