//! What a lane owes its peer and may pay a little later: acknowledgements, and flow control credit.
//!
//! quiche acknowledges with the next packet that it is asked for. Asked after every turn, a lane
//! sends an acknowledgement for each message, and a moment later the answer: two packets, two
//! system calls and two wake-ups of the peer where one does. So a turn whose sender is not waiting
//! for it is acknowledged with what the lane has to say anyway, after some packets, or after a
//! moment, whichever comes first; RFC 9000, section 13.2.1, allows 25 ms. Such turns are:
//!
//! - one that brought a good many datagrams and nothing else,
//! - one that brought bytes of flows in less than two full packets: a request or an answer. More
//!   are bulk, whose sender needs acknowledgements to go on,
//! - one that brought nothing for streams while something is owed already: most often that is
//!   an acknowledgement alone, which makes nothing due sooner.
//!
//! Everything else, the control stream above all, is acknowledged at once. So are the first bytes
//! of a flow that a socket gets ([`Lane::acknowledge_now`]).
//! [`Debts`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::{CONTROL_STREAM, Lane};
use crate::core::event::yield_now;
use crate::core::time;

/// Datagrams of a turn that together have fewer bytes than this are no bulk: the sender may be
/// waiting for the acknowledgement.
const BULK_BYTES_MIN: usize = 4 << 10;

/// Number of packets that are acknowledged at once, as other implementations do in bulk.
const PACKETS_MAX: usize = 10;

/// A packet of this size is probably one of several: RFC 9000 has no smaller limit than 1,200
/// bytes, and a smaller packet was all that its sender had to send.
const FULL_PACKET_BYTES: usize = 1_000;

/// Number of full packets with bytes of flows that are acknowledged at once (RFC 9000, section
/// 13.2.2).
const FULL_PACKETS_MAX: usize = 2;

/// Number of bytes read by flows for which the peer gets credit at once. Windows are larger.
const CREDIT_BYTES_MAX: usize = 8 << 10;

/// Ack delay for datagrams that are no bulk. The runtime's timers are used, which may be two of
/// their steps late.
const PATIENCE: Duration = Duration::from_millis(2);

/// Ack delay for bytes of flows: an answer takes a service some milliseconds, and a lane that has
/// round trips all the time is woken for nothing only so often.
const FLOW_PATIENCE: Duration = Duration::from_millis(8);

/// Turns of the other tasks after which an acknowledgement that somebody waits for has mostly been
/// sent.
const TURNS_MAX: u32 = 3;

/// How often to check after these turns whether it has been sent.
const ACKNOWLEDGED_LOOK: Duration = Duration::from_millis(1);

/// What the packets of a turn brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::quic) enum Brought {
    /// Nothing for any stream.
    NothingForStreams,
    /// Bytes, or the end, of flows.
    Flows,
    /// A control message.
    Control,
}

/// The delayed acknowledgements and credit of one lane; see the module.
#[derive(Debug, Default)]
pub(super) struct Debts {
    /// Packets since the last acknowledgement.
    packets: Cell<usize>,
    /// Full packets among them.
    full_packets: Cell<usize>,
    /// Bytes of packets in this turn.
    bytes: Cell<usize>,
    /// Bytes that flows have read since credit was last sent.
    credit: Cell<usize>,
    /// When something must be sent.
    due: Cell<Option<Instant>>,
    /// How often everything was sent.
    payments: Cell<u64>,
    /// Packets that are known to have been lost on their way to the peer.
    lost: Cell<usize>,
    /// Whether the last flush ended at the congestion window or the peer's limits, so that an
    /// acknowledgement lets more be sent.
    blocked: Cell<bool>,
}

impl Debts {
    fn packet(&self, bytes: usize) {
        self.packets.set(self.packets.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        if bytes >= FULL_PACKET_BYTES {
            self.full_packets.set(self.full_packets.get() + 1);
        }
    }

    /// Ends a turn, whose packets have been processed. Returns how long the acknowledgement may be
    /// delayed.
    fn turn_over(&self, brought: Brought) -> Option<Duration> {
        let bytes = self.bytes.take();
        let few = self.packets.get() < PACKETS_MAX;
        match brought {
            Brought::NothingForStreams if few && self.due.get().is_some() => Some(FLOW_PATIENCE),
            Brought::NothingForStreams => (few && bytes >= BULK_BYTES_MIN).then_some(PATIENCE),
            Brought::Flows => {
                (few && self.full_packets.get() < FULL_PACKETS_MAX).then_some(FLOW_PATIENCE)
            }
            Brought::Control => None,
        }
    }

    /// Counts bytes that a flow has read. True if the credit for them may be delayed.
    fn read(&self, bytes: usize) -> bool {
        self.credit.set(self.credit.get().saturating_add(bytes));
        self.credit.get() < CREDIT_BYTES_MAX
    }

    /// Notes at `now` that something is to be sent within `patience`. Returns the deadline, if that
    /// is news.
    fn owe(&self, now: Instant, patience: Duration) -> Option<Instant> {
        let due = now + patience;
        if self.due.get().is_some_and(|before| before <= due) {
            return None;
        }
        self.due.set(Some(due));
        self.due.get()
    }

    fn paid(&self) {
        self.packets.set(0);
        self.full_packets.set(0);
        self.credit.set(0);
        self.due.set(None);
        self.payments.set(self.payments.get() + 1);
    }

    /// Whether anything is to be sent.
    fn are_open(&self) -> bool {
        self.packets.get() > 0 || self.due.get().is_some()
    }
}

impl Lane {
    /// Counts a packet of this size that has been processed.
    pub(in crate::quic) fn owes_for_packet(&self, bytes: usize) {
        self.debts.packet(bytes);
    }

    /// Ends a turn at `now`, whose packets have been processed. The next flush acknowledges them,
    /// which may have to come at once.
    pub(in crate::quic) fn owes_for_turn(&self, brought: Brought, now: Instant) {
        let patience = self.debts.turn_over(brought);
        let Some(patience) = patience.filter(|_| !self.has_more_to_say()) else {
            self.mark_dirty();
            return;
        };
        if !self.dirty.get()
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint
                .counters()
                .quic_acknowledgements_deferred
                .increment();
            if let Some(due) = self.debts.owe(now, patience) {
                endpoint.arm_debts(self, due);
            }
        }
    }

    /// Counts bytes that a flow has read, for which the peer may have to get credit.
    pub(super) fn owes_for_read(&self, bytes: usize) {
        if self.dirty.get() {
            return;
        }
        if !self.debts.read(bytes) {
            self.mark_dirty();
        } else if self.debts.due.get().is_none()
            && let Some(endpoint) = self.endpoint.upgrade()
            && let Some(due) = self.debts.owe(Instant::now(), FLOW_PATIENCE)
        {
            endpoint.arm_debts(self, due);
        }
    }

    /// Has everything that has come acknowledged, whatever else there is to send, and waits for
    /// that. This mostly takes one turn of the other tasks, and not longer than the ack delay,
    /// should a full TLS connection or pacing hold the acknowledgement back.
    pub(crate) async fn acknowledge_now(&self) {
        if !self.debts.are_open() {
            return;
        }
        let payments = self.debts.payments.get();
        let until = Instant::now() + FLOW_PATIENCE;
        self.mark_dirty();
        for turn in 1.. {
            if turn <= TURNS_MAX {
                yield_now().await;
            } else {
                time::sleep(ACKNOWLEDGED_LOOK).await;
            }
            if self.debts.payments.get() != payments
                || !self.is_open()
                || (turn > TURNS_MAX && Instant::now() >= until)
            {
                return;
            }
        }
    }

    /// Notes that the lane is asked for packets, the first of which carries all acknowledgements
    /// and credit.
    pub(in crate::quic) fn debts_paid(&self) {
        self.debts.paid();
    }

    /// Notes that the lane has been flushed.
    pub(in crate::quic) fn note_blocked(&self) {
        let mut conn = self.conn.borrow_mut();
        let room = conn.stream_capacity(CONTROL_STREAM);
        self.debts.blocked.set(!matches!(room, Ok(1..)));
    }

    /// When a flush must come.
    pub(in crate::quic) fn debts_due(&self) -> Option<Instant> {
        self.debts.due.get()
    }

    /// Whether the last packets may have made quiche want to send more than an acknowledgement.
    /// quiche does not tell; what could have been waiting for them is a handshake, the congestion
    /// window, a loss, or the end.
    fn has_more_to_say(&self) -> bool {
        if !self.counted_opened.get() || self.counted_unadmitted.get() {
            return true;
        }
        let conn = self.conn.borrow();
        // `stats()` is not used because it visits every stream.
        let lost = conn.path_stats().map(|path| path.lost).sum();
        self.debts.lost.replace(lost) != lost
            || conn.is_draining()
            || conn.is_closed()
            || conn.local_error().is_some()
            || conn.dgram_send_queue_len() > 0
            // What waits for its time may be sent earlier now.
            || self.release_at.get().is_some()
            || self.debts.blocked.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = FULL_PACKET_BYTES - 1;

    #[test]
    fn few_datagrams_are_acknowledged_at_once() {
        let debts = Debts::default();
        debts.packet(BULK_BYTES_MIN - 1);
        assert_eq!(debts.turn_over(Brought::NothingForStreams), None);
        debts.packet(BULK_BYTES_MIN - 1);
        let over = debts.turn_over(Brought::NothingForStreams);
        assert_eq!(over, None, "the bytes are those of one turn");
    }

    #[test]
    fn what_brings_nothing_for_streams_waits_with_what_is_owed_already() {
        let debts = Debts::default();
        let now = Instant::now();
        let due = debts.owe(now, FLOW_PATIENCE);
        debts.packet(1);
        assert_eq!(
            debts.turn_over(Brought::NothingForStreams),
            Some(FLOW_PATIENCE)
        );
        assert_eq!(debts.owe(now, FLOW_PATIENCE), None, "no later than before");
        assert_eq!(debts.due.get(), due);
        debts.paid();
        assert_eq!(debts.turn_over(Brought::NothingForStreams), None);
    }

    #[test]
    fn datagrams_in_bulk_wait_until_there_are_some_packets_of_them() {
        let debts = Debts::default();
        for _ in 1..PACKETS_MAX {
            debts.packet(BULK_BYTES_MIN);
            let over = debts.turn_over(Brought::NothingForStreams);
            assert_eq!(over, Some(PATIENCE));
        }
        debts.packet(BULK_BYTES_MIN);
        assert_eq!(debts.turn_over(Brought::NothingForStreams), None);
        debts.paid();
        debts.packet(BULK_BYTES_MIN);
        let over = debts.turn_over(Brought::NothingForStreams);
        assert_eq!(over, Some(PATIENCE));
    }

    #[test]
    fn a_message_of_a_flow_waits_for_its_answer() {
        let debts = Debts::default();
        debts.packet(SMALL);
        debts.packet(FULL_PACKET_BYTES);
        assert_eq!(debts.turn_over(Brought::Flows), Some(FLOW_PATIENCE));
        debts.packet(FULL_PACKET_BYTES);
        assert_eq!(debts.turn_over(Brought::Flows), None, "the second full one");
        debts.paid();
        for _ in 1..PACKETS_MAX {
            debts.packet(SMALL);
            assert_eq!(debts.turn_over(Brought::Flows), Some(FLOW_PATIENCE));
        }
        debts.packet(SMALL);
        assert_eq!(debts.turn_over(Brought::Flows), None, "many small ones");
    }

    #[test]
    fn a_control_message_is_acknowledged_at_once() {
        let debts = Debts::default();
        debts.packet(SMALL);
        assert_eq!(debts.turn_over(Brought::Control), None);
    }

    #[test]
    fn what_came_is_owed_for_until_it_is_paid_whether_it_may_wait_or_not() {
        let debts = Debts::default();
        assert!(!debts.are_open());
        debts.packet(SMALL);
        assert_eq!(debts.turn_over(Brought::Control), None);
        assert!(debts.are_open(), "though no time is set");
        let before = debts.payments.get();
        debts.paid();
        assert!(!debts.are_open() && debts.payments.get() != before);
    }

    #[test]
    fn credit_is_told_at_once_when_there_is_much_of_it() {
        let debts = Debts::default();
        assert!(debts.read(CREDIT_BYTES_MAX - 1));
        assert!(!debts.read(1));
        debts.paid();
        assert!(debts.read(1));
    }

    #[test]
    fn the_time_runs_from_the_first_turn_that_is_owed_for() {
        let debts = Debts::default();
        let now = Instant::now();
        let due = now + PATIENCE;
        assert_eq!(debts.owe(now, PATIENCE), Some(due));
        assert_eq!(debts.owe(now + PATIENCE / 2, PATIENCE), None);
        assert_eq!(debts.due.get(), Some(due));
        debts.paid();
        assert_eq!(debts.owe(due, PATIENCE), Some(due + PATIENCE));
    }

    #[test]
    fn what_must_be_paid_sooner_moves_the_time() {
        let debts = Debts::default();
        let now = Instant::now();
        assert!(debts.owe(now, FLOW_PATIENCE).is_some());
        assert_eq!(debts.owe(now, PATIENCE), Some(now + PATIENCE));
        assert_eq!(debts.owe(now, FLOW_PATIENCE), None);
    }
}
