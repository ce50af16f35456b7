//! Failure detection: silence of the peer, which leaves unanswered what was sent to it.
//!
//! Long before a timeout of seconds says that a peer is dead, QUIC's probe timeouts do (RFC 9002
//! section 6.2): packets that ask for an acknowledgement get none, and neither do the probes that
//! follow. That is no reason to close a lane, but one to send new flows elsewhere until the peer is
//! heard again, and to let flows move that have no answer yet.
//!
//! Probe timeouts alone would not do: each packet that is sent puts them off, so a lane that gets
//! visitors all the time has none. So new flows and liveness probes ([`crate::quic::liveness`]),
//! which every peer acknowledges at once, count as questions as well. [`Silence`] knows no clock:
//! time comes in as an argument.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Lane;
use crate::quic::transmit::Ready;

/// Probe timeouts in a row that make a silence. One is a lost packet, two a lost burst.
const TIMEOUTS_MIN: usize = 3;

/// The least time after the first of them, or after the first question. Where a round trip takes
/// less than a millisecond, three timeouts come within 200 ms, which a busy machine may well take
/// to answer.
const SILENCE_MIN: Duration = Duration::from_millis(300);

/// Round trips that an answer to a question may take beyond that.
const ROUND_TRIPS_MAX: u32 = 3;

/// For how long the last unanswered packet is kept.
const KEPT_FOR: Duration = Duration::from_secs(20);

/// What is known of a peer's silence.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Probe timeouts of the connection when the peer was last heard.
    timeouts_before: Cell<usize>,
    timeouts: Cell<usize>,
    /// The first timeout or question since then.
    since: Cell<Option<Instant>>,
    /// The time at which the silence was noticed.
    noticed: Cell<Option<Instant>>,
    /// The last packet that was sent while something was unanswered, and when.
    last_packet: RefCell<Vec<u8>>,
    last_packet_at: Cell<Option<Instant>>,
}

/// A silence that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silent {
    /// The time since which the peer has left everything unanswered.
    pub(crate) since: Instant,
    /// The time at which that was noticed: much later, if this process stood still in between.
    pub(crate) noticed: Instant,
}

impl Silence {
    /// Takes the number of the connection's probe timeouts. Returns true if the peer counts as
    /// silent from now on.
    fn timed_out(&self, timeouts: usize, now: Instant) -> bool {
        if timeouts == self.timeouts.replace(timeouts) {
            return false; // Another timer.
        }
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        let in_a_row = timeouts - self.timeouts_before.get();
        in_a_row >= TIMEOUTS_MIN && now >= since + SILENCE_MIN && self.notice(now)
    }

    /// Notes that the peer is sent something that it must acknowledge. Returns true if it counts as
    /// silent from now on.
    fn asked(&self, now: Instant, round_trip: impl FnOnce() -> Duration) -> bool {
        let Some(since) = self.since.get() else {
            self.since.set(Some(now));
            return false;
        };
        let unanswered = now.saturating_duration_since(since);
        unanswered >= SILENCE_MIN
            && unanswered >= SILENCE_MIN + round_trip() * ROUND_TRIPS_MAX
            && self.notice(now)
    }

    /// Forgets a packet that was left unanswered long ago: it was answered since, or is lost for
    /// good.
    fn forget_old_packet(&self) {
        let Some(at) = self.last_packet_at.get() else {
            return;
        };
        if at.elapsed() >= KEPT_FOR {
            self.last_packet_at.set(None);
            *self.last_packet.borrow_mut() = Vec::new();
        }
    }

    /// Notes that nothing can be heard any more. Returns true if that is news.
    fn cut_off(&self, now: Instant) -> bool {
        self.since.set(Some(self.since.get().unwrap_or(now)));
        self.notice(now)
    }

    /// Notes the silence. Returns true if it is news.
    fn notice(&self, now: Instant) -> bool {
        let news = self.noticed.get().is_none();
        if news {
            self.noticed.set(Some(now));
        }
        news
    }

    /// The silence, if the peer counts as silent.
    fn silent(&self) -> Option<Silent> {
        let (since, noticed) = (self.since.get()?, self.noticed.get()?);
        Some(Silent { since, noticed })
    }

    /// Notes that something came from the peer. Returns true if it counted as silent until now.
    fn heard(&self) -> bool {
        if self.since.take().is_none() {
            return false;
        }
        self.timeouts_before.set(self.timeouts.get());
        self.forget_old_packet();
        self.noticed.take().is_some()
    }
}

impl Lane {
    /// Whether the peer leaves unanswered what was sent to it.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.noticed.get().is_some()
    }

    /// Handles a timer of the connection that has fired.
    pub(in crate::quic) fn timed_out(self: &Rc<Self>, now: Instant) {
        let timeouts = {
            let conn = self.conn.borrow();
            conn.path_stats().map(|path| path.total_pto_count).sum()
        };
        if self.silence.timed_out(timeouts, now) {
            self.fell_silent();
        }
    }

    /// Notes that the peer is sent something that it must acknowledge: a new flow begins on the
    /// lane, or it is probed.
    pub(crate) fn asked(self: &Rc<Self>, now: Instant) {
        if self.silence.asked(now, || self.rtt()) {
            self.fell_silent();
        }
    }

    /// The peer's silence, if it counts as silent.
    pub(crate) fn silent(&self) -> Option<Silent> {
        self.silence.silent()
    }

    /// Notes packets that are sent: while nothing is answered, the one that was made last is kept,
    /// for [`Lane::unanswered_packet`].
    pub(in crate::quic) fn note_sent(&self, ready: &Ready<'_>) {
        if self.silence.since.get().is_some() {
            let mut kept = self.silence.last_packet.borrow_mut();
            kept.clear();
            kept.extend_from_slice(ready.last_made());
            self.silence.last_packet_at.set(Some(Instant::now()));
        }
    }

    /// The last unanswered packet.
    ///
    /// It is sent again, as it is, when the lane moves to another path. Packets that were lost on
    /// the previous path fill the window, in which not even a PING finds room, and quiche's next
    /// probe may be seconds away; but when this packet is acknowledged, all before it are known to
    /// be lost. A peer that has it already ignores it. The peer may be heard meanwhile, if only one
    /// direction is broken.
    pub(in crate::quic) fn unanswered_packet(&self) -> Option<Ref<'_, Vec<u8>>> {
        self.silence.forget_old_packet();
        let kept = self.silence.last_packet.borrow();
        (!kept.is_empty()).then_some(kept)
    }

    /// Notes that there is no path to the peer: it counts as silent until it is heard by another
    /// one.
    pub(super) fn is_cut_off(self: &Rc<Self>) {
        let now = Instant::now();
        if self.silence.cut_off(now) {
            self.fell_silent();
        }
    }

    fn fell_silent(self: &Rc<Self>) {
        // Flows without an answer may move. For others this is a needless wake-up, once in a
        // silence.
        self.wake_all();
        if let Some(events) = self.events() {
            events.silence(self, true);
        }
    }

    /// Notes that packets of the peer have arrived.
    pub(in crate::quic) fn heard(self: &Rc<Self>) {
        self.note_peer_here();
        if self.silence.heard()
            && let Some(events) = self.events()
        {
            events.silence(self, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_silence_takes_several_timeouts_and_some_time() {
        let start = Instant::now();
        let silence = Silence::default();
        assert!(!silence.timed_out(1, start));
        assert!(!silence.timed_out(2, start + ms(60)));
        assert!(!silence.timed_out(3, start + ms(180)), "too soon");
        assert!(!silence.timed_out(3, start + ms(400)), "another timer");
        assert_eq!(silence.silent(), None);
        assert!(silence.timed_out(4, start + ms(420)));
        assert!(!silence.timed_out(5, start + ms(900)), "no news");
        let (since, noticed) = (start, start + ms(420));
        assert_eq!(silence.silent(), Some(Silent { since, noticed }));
        assert!(silence.heard() && !silence.heard());
        assert_eq!(silence.silent(), None);
    }

    #[test]
    fn it_begins_anew_whenever_the_peer_is_heard() {
        let start = Instant::now();
        let silence = Silence::default();
        for round in 0..5_u64 {
            let timeouts = 2 * usize::try_from(round).expect("small");
            let at = start + ms(1_000 * round);
            assert!(!silence.timed_out(timeouts + 1, at));
            assert!(!silence.timed_out(timeouts + 2, at + ms(500)));
            assert!(!silence.heard());
        }
    }

    #[test]
    fn questions_that_keep_coming_make_a_silence_without_any_timeout() {
        let start = Instant::now();
        let silence = Silence::default();
        let no_time = || Duration::ZERO;
        assert!(!silence.asked(start, no_time));
        assert!(!silence.asked(start + ms(290), no_time));
        assert!(silence.asked(start + ms(300), no_time));
        assert!(!silence.asked(start + ms(310), no_time), "no news");
        assert!(silence.heard());
        assert!(!silence.asked(start + ms(5_000), no_time));
        assert!(!silence.heard());
        assert!(
            !silence.asked(start + ms(9_000), no_time),
            "the one before was answered"
        );
    }

    #[test]
    fn an_answer_may_take_as_long_as_the_path_is() {
        let start = Instant::now();
        let silence = Silence::default();
        let far = || ms(600);
        assert!(!silence.asked(start, far));
        assert!(!silence.asked(start + ms(2_000), far));
        assert!(silence.asked(start + ms(2_100), far));
    }

    #[test]
    fn a_peer_without_a_way_is_silent_at_once_until_it_is_heard() {
        let start = Instant::now();
        let silence = Silence::default();
        assert!(silence.cut_off(start) && !silence.cut_off(start));
        let (since, noticed) = (start, start);
        assert_eq!(silence.silent(), Some(Silent { since, noticed }));
        assert!(silence.heard());
        assert_eq!(silence.silent(), None);
    }

    #[test]
    fn a_peer_that_is_slow_once_is_not_silent() {
        let start = Instant::now();
        let silence = Silence::default();
        assert!(!silence.timed_out(1, start));
        assert!(!silence.timed_out(2, start + ms(5_000)));
    }
}
