//! What carries the lanes to one server, since when and why, and what is known of whether QUIC gets
//! through; for all cores of the client.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// For how long QUIC is not waited for after it was unheard.
const IN_VAIN_FOR: Duration = Duration::from_secs(60);

/// That QUIC gets through holds for all lanes for this long.
const PROBE_HOLDS: Duration = Duration::from_secs(4);

/// A try that has said nothing for this long has died.
const PROBE_LASTS: Duration = Duration::from_secs(10);

/// A try of QUIC by one lane, for all.
#[derive(Debug, Clone, Copy)]
struct Tried {
    at: Instant,
    /// Not known yet.
    passes: Option<bool>,
}

/// Who finds out whether QUIC gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuicProbe {
    /// Whoever asks.
    Yours,
    /// Another lane does just now.
    UnderWay,
    /// QUIC gets through: it was found out a moment ago.
    Passes,
    /// It does not, as was found out then.
    PassesNot(Instant),
}

/// What carries the lanes, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// TLS as soon as one lane rides it.
    pub(crate) by: Riding,
    /// Since when.
    pub(crate) since: Instant,
    /// Why; empty if they have never been carried by anything else.
    pub(crate) why: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TransportState {
    /// Registered lanes that ride TLS.
    over_tls: AtomicUsize,
    /// Written when a lane registers or moves, which is rare.
    carried: Mutex<Carried>,
    quic_tried: Mutex<Option<Tried>>,
    started: Instant,
    /// Until when QUIC is thought not to get through, in milliseconds after `started`; 0: it is
    /// not.
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

    /// QUIC was not heard while TLS was: who dials next need not wait to find that out.
    pub(crate) fn quic_was_in_vain(&self, now: Instant) {
        let until = now.saturating_duration_since(self.started) + IN_VAIN_FOR;
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.in_vain_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// Whether that was found out lately.
    pub(crate) fn quic_is_in_vain(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.started).as_millis();
        since < u128::from(self.in_vain_until_ms.load(Ordering::Relaxed))
    }

    /// QUIC gets through.
    pub(crate) fn quic_passes(&self) {
        self.in_vain_until_ms.store(0, Ordering::Relaxed);
    }

    /// A lane that rides TLS wants to know whether QUIC gets through. That it does not may be known
    /// since less than `as_of`.
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

    /// What came of it.
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

    /// A registered lane rides this from now on.
    pub(crate) fn lane_rides(&self, riding: Riding, why: &str, now: Instant) {
        if riding == Riding::Tls && self.over_tls.fetch_add(1, Ordering::AcqRel) == 0 {
            self.note(Riding::Tls, why, now);
        }
    }

    /// A registered lane does not ride this any more.
    pub(crate) fn lane_leaves(&self, riding: Riding, why: &str, now: Instant) {
        if riding == Riding::Tls && self.over_tls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.note(Riding::Udp, why, now);
        }
    }

    fn note(&self, by: Riding, why: &str, now: Instant) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        // Two lanes may come and leave at a time; the count is what holds.
        if (self.lanes_over_tls() > 0) == (by == Riding::Tls) {
            *carried = Carried {
                by,
                since: now,
                why: why.to_owned(),
            };
        }
    }

    /// Lanes that ride TLS now.
    pub(crate) fn lanes_over_tls(&self) -> usize {
        self.over_tls.load(Ordering::Acquire)
    }

    /// What carries the lanes.
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
