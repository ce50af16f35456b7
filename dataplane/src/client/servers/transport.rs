//! The transport of the lanes to one server, since when and why they ride it, and whether QUIC is
//! known to get through. All cores of the client share it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The transport that carries a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Riding {
    Udp,
    Tls,
}

impl Riding {
    /// The name of the transport in `/status`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Riding::Udp => "quic",
            Riding::Tls => "tls",
        }
    }
}

/// The time for which lanes do not wait for QUIC after nothing was heard over it.
const IN_VAIN_FOR: Duration = Duration::from_secs(60);

/// How long the result that QUIC gets through holds, for all lanes.
const PROBE_HOLDS: Duration = Duration::from_secs(4);

/// A probe without a result after this time counts as dead.
const PROBE_LASTS: Duration = Duration::from_secs(10);

/// A probe of QUIC by one lane, for all.
#[derive(Debug, Clone, Copy)]
struct Tried {
    at: Instant,
    /// The result; `None` if it is not known yet.
    passes: Option<bool>,
}

/// The state of the probe, for a lane that asks whether QUIC gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuicProbe {
    /// The lane that asks is to probe.
    Yours,
    /// Another lane is probing just now.
    UnderWay,
    /// QUIC gets through, by a probe a moment ago.
    Passes,
    /// QUIC does not get through, by a probe at this time.
    PassesNot(Instant),
}

/// The transport that carries the lanes, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The transport: TLS as soon as one lane rides it.
    pub(crate) by: Riding,
    /// The time since which it has carried them.
    pub(crate) since: Instant,
    /// The reason; empty if the lanes have never been carried by anything else.
    pub(crate) why: String,
}

/// The transport of one server's lanes; see the module.
#[derive(Debug)]
pub(crate) struct TransportState {
    /// Registered lanes that ride TLS.
    over_tls: AtomicUsize,
    /// This is written when a lane registers or moves, which is rare.
    carried: Mutex<Carried>,
    quic_tried: Mutex<Option<Tried>>,
    started: Instant,
    /// The time until which QUIC counts as not getting through, in milliseconds after `started`; 0
    /// if it is not.
    in_vain_until_ms: AtomicU64,
}

impl TransportState {
    pub(super) fn new(now: Instant) -> TransportState {
        TransportState {
            over_tls: AtomicUsize::new(0),
            carried: Mutex::new(Carried {
                by: Riding::Udp,
                since: now,
                why: String::new(),
            }),
            quic_tried: Mutex::default(),
            started: now,
            in_vain_until_ms: AtomicU64::new(0),
        }
    }

    /// Notes that QUIC was not heard while TLS was, so that the next lanes need not wait to find
    /// that out.
    pub(crate) fn quic_was_in_vain(&self, now: Instant) {
        let until = now.saturating_duration_since(self.started) + IN_VAIN_FOR;
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.in_vain_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// Whether QUIC was lately found not to get through.
    pub(crate) fn quic_is_in_vain(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.started).as_millis();
        since < u128::from(self.in_vain_until_ms.load(Ordering::Relaxed))
    }

    /// Notes that QUIC gets through.
    pub(crate) fn quic_passes(&self) {
        self.in_vain_until_ms.store(0, Ordering::Relaxed);
    }

    /// Asks for a lane that rides TLS whether QUIC gets through. A result that it does not holds if
    /// it is newer than `as_of`.
    pub(crate) fn begin_quic_probe(&self, now: Instant, as_of: Duration) -> QuicProbe {
        let mut tried = self.tried();
        match *tried {
            Some(Tried {
                at,
                passes: Some(true),
            }) if now < at + PROBE_HOLDS => QuicProbe::Passes,
            Some(Tried {
                at,
                passes: Some(false),
            }) if now < at + as_of => QuicProbe::PassesNot(at),
            Some(Tried { at, passes: None }) if now < at + PROBE_LASTS => QuicProbe::UnderWay,
            _ => {
                *tried = Some(Tried {
                    at: now,
                    passes: None,
                });
                QuicProbe::Yours
            }
        }
    }

    /// Takes the result of a probe.
    pub(crate) fn quic_probed(&self, passes: bool, now: Instant) {
        *self.tried() = Some(Tried {
            at: now,
            passes: Some(passes),
        });
        if passes {
            self.quic_passes();
        }
    }

    fn tried(&self) -> MutexGuard<'_, Option<Tried>> {
        self.quic_tried
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a registered lane that moves to this transport.
    pub(crate) fn lane_rides(&self, riding: Riding, why: &str, now: Instant) {
        if riding == Riding::Tls && self.over_tls.fetch_add(1, Ordering::AcqRel) == 0 {
            self.note(Riding::Tls, why, now);
        }
    }

    /// Counts a registered lane that leaves this transport.
    pub(crate) fn lane_leaves(&self, riding: Riding, why: &str, now: Instant) {
        if riding == Riding::Tls && self.over_tls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.note(Riding::Udp, why, now);
        }
    }

    fn note(&self, by: Riding, why: &str, now: Instant) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        // Two lanes may come and leave at the same time; the count is what holds.
        if (self.lanes_over_tls() > 0) == (by == Riding::Tls) {
            *carried = Carried {
                by,
                since: now,
                why: why.to_owned(),
            };
        }
    }

    /// Number of lanes that ride TLS now.
    pub(crate) fn lanes_over_tls(&self) -> usize {
        self.over_tls.load(Ordering::Acquire)
    }

    /// The transport that carries the lanes.
    pub(crate) fn carried(&self) -> Carried {
        let carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_tries_quic_for_all_and_the_others_learn_what_came_of_it() {
        let (now, as_of) = (Instant::now(), Duration::from_secs(30));
        let state = TransportState::new(now);
        let probe = |at| state.begin_quic_probe(at, as_of);
        assert_eq!(probe(now), QuicProbe::Yours);
        assert_eq!(probe(now), QuicProbe::UnderWay);
        state.quic_was_in_vain(now);
        state.quic_probed(false, now);
        let soon = now + as_of / 2;
        assert_eq!(probe(soon), QuicProbe::PassesNot(now));
        assert!(state.quic_is_in_vain(soon));
        let later = now + as_of;
        assert_eq!(probe(later), QuicProbe::Yours);
        let died = later + PROBE_LASTS;
        assert_eq!(probe(died), QuicProbe::Yours, "it has died");
        state.quic_probed(true, died);
        assert_eq!(probe(died), QuicProbe::Passes);
        assert_eq!(probe(died + PROBE_HOLDS), QuicProbe::Yours);
        assert!(!state.quic_is_in_vain(died));
    }

    #[test]
    fn tls_carries_the_lanes_from_the_first_that_rides_it_to_the_last_that_leaves_it() {
        let now = Instant::now();
        let state = TransportState::new(now);
        let second = Duration::from_secs(1);
        state.lane_rides(Riding::Udp, "", now);
        assert_eq!(state.carried().by, Riding::Udp);
        state.lane_rides(Riding::Tls, "silence", now + second);
        state.lane_rides(Riding::Tls, "silence", now + second * 2);
        let carried = state.carried();
        assert_eq!((carried.by, carried.since), (Riding::Tls, now + second));
        state.lane_leaves(Riding::Tls, "back", now + second * 3);
        assert_eq!(state.carried(), carried);
        state.lane_leaves(Riding::Tls, "back", now + second * 4);
        assert_eq!(
            (state.carried().by, &*state.carried().why),
            (Riding::Udp, "back")
        );
    }
}
