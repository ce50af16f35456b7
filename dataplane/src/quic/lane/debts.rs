//! What a lane owes its peer and may pay a little later: acknowledgements of datagrams in bulk.
//!
//! quiche acknowledges with the next packet that it is asked for. Asked after every turn, a lane that only receives sends
//! a packet per turn, and each of them wakes the peer's core: with datagrams, whose turns are small, that was a quarter of
//! what they cost. So a turn that brought a good many datagrams, and nothing else, is acknowledged with what the lane has
//! to say anyway, after some packets, or after a moment, whichever comes first; RFC 9000, section 13.2.1, allows 25 ms.
//! Streams and single datagrams are acknowledged at once, as ever: their turns are large, or the sender may be waiting.
//! [`Debts`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::{CONTROL_STREAM, Lane};

/// A turn that brings less than this is no bulk: its sender may be waiting for the acknowledgement.
const BULK_BYTES_MIN: usize = 4 << 10;

/// So many packets are acknowledged at once: as other implementations do in bulk.
const PACKETS_MAX: usize = 10;

/// What is less is acknowledged after this time, by the runtime's timers, which may be two of their steps late.
const PATIENCE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Debts {
    /// Packets since the last flush.
    packets: Cell<usize>,
    /// Bytes of packets in this turn.
    bytes: Cell<usize>,
    /// When something must be said.
    due: Cell<Option<Instant>>,
    /// Packets that are known to have been lost on their way to the peer.
    lost: Cell<usize>,
    /// The last flush ended at the congestion window or the peer's limits: an acknowledgement lets more go.
    blocked: Cell<bool>,
}

impl Debts {
    fn packet(&self, bytes: usize) {
        self.packets.set(self.packets.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// The packets of a turn have been processed. True if what they brought may wait.
    fn turn_over(&self) -> bool {
        self.bytes.take() >= BULK_BYTES_MIN && self.packets.get() < PACKETS_MAX
    }

    /// Something is owed at `now`. The time by which it must be paid, if that is news.
    fn owe(&self, now: Instant) -> Option<Instant> {
        if self.due.get().is_some() {
            return None;
        }
        self.due.set(Some(now + PATIENCE));
        self.due.get()
    }

    fn paid(&self) {
        self.packets.set(0);
        self.due.set(None);
    }
}

impl Lane {
    /// A packet of so many bytes has been processed.
    pub(in crate::quic) fn owes_for_packet(&self, bytes: usize) {
        self.debts.packet(bytes);
    }

    /// The packets of a turn have been processed, at `now`. They are acknowledged by the next flush, at once unless they
    /// brought `only_datagrams`.
    pub(in crate::quic) fn owes_for_turn(&self, only_datagrams: bool, now: Instant) {
        let may_wait = self.debts.turn_over() && only_datagrams && !self.has_more_to_say();
        if !may_wait {
            self.mark_dirty();
        } else if !self.dirty.get()
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint
                .counters()
                .quic_acknowledgements_deferred
                .increment();
            if let Some(due) = self.debts.owe(now) {
                endpoint.arm_debts(self, due);
            }
        }
    }

    /// The lane is being flushed, which pays everything.
    pub(in crate::quic) fn debts_paid(&self) {
        self.debts.paid();
    }

    /// The lane has been flushed.
    pub(in crate::quic) fn note_blocked(&self) {
        let mut conn = self.conn.borrow_mut();
        let room = conn.stream_capacity(CONTROL_STREAM);
        self.debts.blocked.set(!matches!(room, Ok(1..)));
    }

    /// When a flush must come.
    pub(in crate::quic) fn debts_due(&self) -> Option<Instant> {
        self.debts.due.get()
    }

    /// Whether the last packets may have made quiche want to send more than an acknowledgement. quiche does not say: what
    /// could have been waiting for them is a handshake, the congestion window, a loss, the end.
    fn has_more_to_say(&self) -> bool {
        if !self.counted_opened.get() || self.counted_unadmitted.get() {
            return true;
        }
        let conn = self.conn.borrow();
        // Not `stats()`, which visits every stream.
        let lost = conn.path_stats().map(|path| path.lost).sum();
        self.debts.lost.replace(lost) != lost
            || conn.is_draining()
            || conn.is_closed()
            || conn.local_error().is_some()
            || conn.dgram_send_queue_len() > 0
            // What waits for its time may go earlier now.
            || self.release_at.get().is_some()
            || self.debts.blocked.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_acknowledged_at_once() {
        let debts = Debts::default();
        debts.packet(BULK_BYTES_MIN - 1);
        assert!(!debts.turn_over());
        debts.packet(BULK_BYTES_MIN - 1);
        assert!(!debts.turn_over(), "the bytes are those of one turn");
    }

    #[test]
    fn bulk_waits_until_there_are_some_packets_of_it() {
        let debts = Debts::default();
        for _ in 1..PACKETS_MAX {
            debts.packet(BULK_BYTES_MIN);
            assert!(debts.turn_over());
        }
        debts.packet(BULK_BYTES_MIN);
        assert!(!debts.turn_over());
        debts.paid();
        debts.packet(BULK_BYTES_MIN);
        assert!(debts.turn_over());
    }

    #[test]
    fn the_time_runs_from_the_first_turn_that_is_owed_for() {
        let debts = Debts::default();
        let now = Instant::now();
        let due = now + PATIENCE;
        assert_eq!(debts.owe(now), Some(due));
        assert_eq!(debts.owe(now + PATIENCE / 2), None);
        assert_eq!(debts.due.get(), Some(due));
        debts.paid();
        assert_eq!(debts.owe(due), Some(due + PATIENCE));
    }
}
