//! Fallback: when a lane goes from UDP to TLS, and when it comes back.
//!
//! The sign that UDP does not pass any more is silence on it while a TLS connection to the same address can be had. So a
//! lane whose questions stay unanswered dials TLS, and when that is there and it still is not answered, it rides it. A
//! lost packet, or a network that is away altogether, moves nothing.
//!
//! While it rides TLS, QUIC is tried from another port, again and again with growing pauses, and when it gets through
//! the lane goes back. The TLS connection is kept for a while, so that a path that lets handshakes through and nothing
//! else costs one short pause. Each time that UDP fails soon after a return, the next return waits twice as long.
//!
//! No I/O, no clock, no randomness: time comes in as an argument. Each lane has one of its own.

use std::time::{Duration, Instant};

use qmux_config::Transport;

/// A lane whose questions were left unanswered for this long dials TLS: several of them, and longer than most round
/// trips. Together with the time until the first question is asked, and two round trips of the dial, that is a pause of some
/// two seconds.
pub(super) const SILENCE: Duration = Duration::from_millis(600);

/// Pause between two tries of QUIC, before it is doubled.
const QUIC_PAUSE: Duration = Duration::from_secs(30);

/// It is doubled up to this often: a quarter of an hour.
const DOUBLINGS_MAX: u32 = 5;

/// A lane that rides TLS and is not answered may try QUIC sooner, but not more often than this.
const QUIC_PAUSE_SILENT: Duration = Duration::from_secs(5);

/// Pause after the first TLS connection that could not be had; it is doubled likewise.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

/// How long a TLS connection is kept that is not needed any more: as long as a path may take that lets UDP pass for a while
/// only.
const SPARE_FOR: Duration = Duration::from_secs(45);

/// UDP that has carried a lane for this long is not distrusted for what was before.
const STEADY: Duration = Duration::from_secs(10 * 60);

/// What carries the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Riding {
    Udp,
    Tls,
}

impl Riding {
    /// As `/status` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Riding::Udp => "quic",
            Riding::Tls => "tls",
        }
    }
}

/// Why a lane moves, in words for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// To TLS.
    UdpIsSilent,
    /// To UDP.
    QuicPasses,
    /// To UDP, for want of another way.
    TlsIsLost,
    /// To a new TLS connection.
    TlsIsBack,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::UdpIsSilent => "nothing is heard over UDP, and TLS can be had",
            Why::QuicPasses => "QUIC gets through again",
            Why::TlsIsLost => "its TLS connection is over",
            Why::TlsIsBack => "its TLS connection was over, and there is another one",
        })
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Dial TLS, and say what came of it by [`Fallback::dialled`].
    DialTls,
    /// Try QUIC from another port, and say what came of it by [`Fallback::probed`].
    ProbeQuic,
    /// Ride this.
    Ride(Riding, Why),
    /// The TLS connection is not needed any more.
    CloseTls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    None,
    Dialling,
    Open,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Fallback {
    transport: Transport,
    riding: Riding,
    tls: Tls,
    /// TLS is not dialled before.
    dial_from: Instant,
    dials_failed: u32,
    /// The lane has lost the connection that it rode: the next one is ridden at once.
    lost: bool,
    /// Until when a connection that is not ridden is kept.
    spare_until: Instant,
    probing: bool,
    probe_at: Instant,
    probed_at: Option<Instant>,
    probes_failed: u32,
    quic_passes: bool,
    /// When the lane came to what it rides: what was asked before was asked elsewhere.
    rides_since: Instant,
    /// It came from TLS.
    returned: bool,
    /// Times in a row that UDP has failed soon after a return.
    relapses: u32,
    /// The last time that [`Fallback::next`] was asked, since when nothing had been answered.
    unanswered_since: Option<Instant>,
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
            lost: false,
            spare_until: now,
            probing: false,
            probe_at: now + QUIC_PAUSE,
            probed_at: None,
            probes_failed: 0,
            quic_passes: false,
            rides_since: now,
            returned: false,
            relapses: 0,
            unanswered_since: None,
        }
    }

    /// What carries the lane.
    #[cfg(test)]
    pub(super) fn riding(&self) -> Riding {
        self.riding
    }

    /// What is to be done now, to be asked until it is nothing. Nothing has been answered since `unanswered_since`,
    /// although something was asked.
    pub(super) fn next(
        &mut self,
        now: Instant,
        unanswered_since: Option<Instant>,
    ) -> Option<Action> {
        self.unanswered_since = unanswered_since;
        let silent = self.silent_at().is_some_and(|at| now >= at);
        match (self.transport, self.riding) {
            (Transport::Quic, _) => None,
            (_, Riding::Udp) => self.next_on_udp(now, silent),
            (_, Riding::Tls) => self.next_on_tls(now, silent),
        }
    }

    fn next_on_udp(&mut self, now: Instant, silent: bool) -> Option<Action> {
        match self.tls {
            Tls::Open if silent || self.lost => Some(self.ride_tls(now)),
            Tls::Open if now >= self.spare_until => {
                self.tls = Tls::None;
                Some(Action::CloseTls)
            }
            Tls::None if (silent || self.lost) && now >= self.dial_from => {
                self.tls = Tls::Dialling;
                Some(Action::DialTls)
            }
            _ => None,
        }
    }

    fn next_on_tls(&mut self, now: Instant, silent: bool) -> Option<Action> {
        if self.transport == Transport::Tls {
            if self.lost && self.tls == Tls::Open {
                self.lost = false;
                return Some(Action::Ride(Riding::Tls, Why::TlsIsBack));
            }
            let may = self.tls == Tls::None && now >= self.dial_from;
            return may.then(|| {
                self.tls = Tls::Dialling;
                Action::DialTls
            });
        }
        if self.tls == Tls::None {
            return Some(self.ride_udp(now, Why::TlsIsLost));
        }
        if std::mem::take(&mut self.quic_passes) {
            return Some(self.ride_udp(now, Why::QuicPasses));
        }
        if !self.probing && now >= self.probe_due(silent) {
            self.probing = true;
            self.probed_at = Some(now);
            return Some(Action::ProbeQuic);
        }
        None
    }

    /// When the lane has been left unanswered for too long.
    fn silent_at(&self) -> Option<Instant> {
        let since = self.unanswered_since?;
        Some(since.max(self.rides_since) + SILENCE)
    }

    fn probe_due(&self, silent: bool) -> Instant {
        match (silent, self.probed_at) {
            (false, _) => self.probe_at,
            (true, None) => self.probe_at - QUIC_PAUSE,
            (true, Some(at)) => self.probe_at.min(at + QUIC_PAUSE_SILENT),
        }
    }

    fn ride_tls(&mut self, now: Instant) -> Action {
        let why = if std::mem::take(&mut self.lost) {
            Why::TlsIsBack
        } else {
            Why::UdpIsSilent
        };
        if why == Why::UdpIsSilent {
            let steady = now >= self.rides_since + STEADY;
            self.relapses = match (self.returned, steady) {
                (true, false) => self.relapses + 1,
                _ => 0,
            };
            self.probes_failed = 0;
            self.probe_at = now + self.quic_pause();
        }
        self.riding = Riding::Tls;
        self.rides_since = now;
        self.quic_passes = false;
        Action::Ride(Riding::Tls, why)
    }

    fn ride_udp(&mut self, now: Instant, why: Why) -> Action {
        self.riding = Riding::Udp;
        self.rides_since = now;
        self.returned = true;
        self.spare_until = now + SPARE_FOR;
        Action::Ride(Riding::Udp, why)
    }

    fn quic_pause(&self) -> Duration {
        let doublings = (self.relapses + self.probes_failed).min(DOUBLINGS_MAX);
        QUIC_PAUSE * (1 << doublings)
    }

    /// The TLS connection that was dialled is there, or not.
    pub(super) fn dialled(&mut self, now: Instant, there: bool) {
        if there {
            self.tls = Tls::Open;
            self.dials_failed = 0;
            self.spare_until = now + SPARE_FOR;
        } else {
            self.tls = Tls::None;
            self.dial_from = now + DIAL_PAUSE * (1 << self.dials_failed.min(DOUBLINGS_MAX));
            self.dials_failed += 1;
            // Should UDP be silent, too, that is reason enough to dial again.
            self.lost &= self.transport == Transport::Tls || self.unanswered_since.is_some();
        }
    }

    /// The TLS connection is over.
    pub(super) fn lost_tls(&mut self, now: Instant) {
        if self.tls == Tls::Open {
            self.tls = Tls::None;
            self.dial_from = now;
            self.lost = self.riding == Riding::Tls;
        }
    }

    /// QUIC gets through from another port, or not.
    pub(super) fn probed(&mut self, now: Instant, passes: bool) {
        self.probing = false;
        self.quic_passes = passes && self.riding == Riding::Tls;
        if passes {
            self.probes_failed = 0;
        } else {
            self.probes_failed = (self.probes_failed + 1).min(DOUBLINGS_MAX);
        }
        self.probe_at = now + self.quic_pause();
    }

    /// Somebody else tries QUIC now: ask again soon.
    pub(super) fn probe_later(&mut self, at: Instant) {
        self.probing = false;
        self.probe_at = at;
    }

    /// When [`Fallback::next`] may have something to do, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.transport == Transport::Quic {
            return None;
        }
        let silent_at = self.silent_at();
        match (self.riding, self.tls) {
            (_, Tls::Dialling) => None,
            (Riding::Udp, Tls::None) if self.lost => Some(self.dial_from),
            (Riding::Udp, Tls::None) => silent_at.map(|at| at.max(self.dial_from)),
            (Riding::Udp, Tls::Open) => {
                Some(silent_at.map_or(self.spare_until, |at| at.min(self.spare_until)))
            }
            (Riding::Tls, Tls::None) => Some(self.dial_from),
            (Riding::Tls, Tls::Open) if self.transport == Transport::Tls || self.probing => None,
            (Riding::Tls, Tls::Open) => {
                let silent_due = silent_at.map(|at| at.max(self.probe_due(true)));
                Some(silent_due.map_or(self.probe_at, |at| at.min(self.probe_at)))
            }
        }
    }
}

#[cfg(test)]
#[path = "fallback_tests.rs"]
mod tests;
