//! Ack delay: acknowledgements, and flow control credit, that a lane may send a little later.
//!
//! quiche acknowledges with the next packet that it is asked for. Asked after every turn, a lane
//! sends an acknowledgement for each message, and a moment later the answer: two packets, two
//! system calls and two wake-ups of the peer where one does. So a turn whose sender is not waiting
//! for it is acknowledged with whatever the lane sends anyway, after some packets, or after a
//! moment, whichever comes first; RFC 9000, section 13.2.1, allows 25 ms. Such turns are:
//!
//! - one that brought a good many datagrams and nothing else,
//! - one that brought bytes of flows in less than two full packets: a request or an answer. More
//!   are bulk, whose sender needs acknowledgements to go on,
//! - one that brought nothing for streams while an acknowledgement is due already: most often that
//!   is an acknowledgement alone, which makes nothing due sooner.
//!
//! Everything else, the control stream above all, is acknowledged at once. So are the first bytes
//! of a flow that a socket gets ([`Lane::acknowledge_now`]). [`AckDelay`] knows no clock: time
//! comes in as an argument.

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

/// The time between two checks, after these turns, whether the acknowledgement has been sent.
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
pub(super) struct AckDelay {
    /// Packets since the last acknowledgement.
    packets: Cell<usize>,
    /// Full packets among them.
    full_packets: Cell<usize>,
    /// Bytes of packets in this turn.
    bytes: Cell<usize>,
    /// Bytes that flows have read since credit was last sent.
    credit: Cell<usize>,
    /// The time at which something must be sent.
    due: Cell<Option<Instant>>,
    /// The number of times that everything was sent.
    times_sent: Cell<u64>,
    /// Packets that are known to have been lost on their way to the peer.
    lost: Cell<usize>,
    /// Whether the last flush ended at the congestion window or the peer's limits, so that an
    /// acknowledgement lets more be sent.
    blocked: Cell<bool>,
}

impl AckDelay {
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

    /// Counts bytes that a flow has read. Returns true if the credit for them may be delayed.
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

    fn sent(&self) {
        self.packets.set(0);
        self.full_packets.set(0);
        self.credit.set(0);
        self.due.set(None);
        self.times_sent.set(self.times_sent.get() + 1);
    }

    /// Whether anything is to be sent.
    fn are_open(&self) -> bool {
        self.packets.get() > 0 || self.due.get().is_some()
    }
}

impl Lane {
    /// Counts a packet of this size that has been processed.
    pub(in crate::quic) fn ack_packet(&self, bytes: usize) {
        self.ack_delay.packet(bytes);
    }

    /// Ends a turn at `now`, whose packets have been processed. The next flush acknowledges them,
    /// which may have to come at once.
    pub(in crate::quic) fn ack_turn(&self, brought: Brought, now: Instant) {
        let patience = self.ack_delay.turn_over(brought);
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
            if let Some(due) = self.ack_delay.owe(now, patience) {
                endpoint.arm_delayed_acks(self, due);
            }
        }
    }

    /// Counts bytes that a flow has read, for which the peer may have to get credit.
    pub(super) fn credit_read(&self, bytes: usize) {
        if self.dirty.get() {
            return;
        }
        if !self.ack_delay.read(bytes) {
            self.mark_dirty();
        } else if self.ack_delay.due.get().is_none()
            && let Some(endpoint) = self.endpoint.upgrade()
            && let Some(due) = self.ack_delay.owe(Instant::now(), FLOW_PATIENCE)
        {
            endpoint.arm_delayed_acks(self, due);
        }
    }

    /// Acknowledges everything that has come, whatever else there is to send, and waits for that.
    /// Over UDP this is mostly done in the caller's turn, over TLS it takes one turn of the other
    /// tasks, and not longer than the ack delay, should a full connection or pacing hold the
    /// acknowledgement back.
    pub(crate) async fn acknowledge_now(&self) {
        if !self.ack_delay.are_open() {
            return;
        }
        let times_sent = self.ack_delay.times_sent.get();
        let until = Instant::now() + FLOW_PATIENCE;
        self.mark_dirty();
        if let Some(endpoint) = self.endpoint.upgrade() {
            let all_sent = endpoint.flush_early(self);
            if all_sent && self.ack_delay.times_sent.get() != times_sent {
                return;
            }
        }
        for turn in 1.. {
            if turn <= TURNS_MAX {
                yield_now().await;
            } else {
                time::sleep(ACKNOWLEDGED_LOOK).await;
            }
            if self.ack_delay.times_sent.get() != times_sent
                || !self.is_open()
                || (turn > TURNS_MAX && Instant::now() >= until)
            {
                return;
            }
        }
    }

    /// Notes that the lane is asked for packets, the first of which carries all acknowledgements
    /// and credit.
    pub(in crate::quic) fn acks_sent(&self) {
        self.ack_delay.sent();
    }

    /// Notes that the lane has been flushed.
    pub(in crate::quic) fn note_blocked(&self) {
        let mut conn = self.conn.borrow_mut();
        let room = conn.stream_capacity(CONTROL_STREAM);
        self.ack_delay.blocked.set(!matches!(room, Ok(1..)));
    }

    /// The time at which a flush must come.
    pub(in crate::quic) fn acks_due(&self) -> Option<Instant> {
        self.ack_delay.due.get()
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
        self.ack_delay.lost.replace(lost) != lost
            || conn.is_draining()
            || conn.is_closed()
            || conn.local_error().is_some()
            || conn.dgram_send_queue_len() > 0
            // What waits for its time may be sent earlier now.
            || self.release_at.get().is_some()
            || self.ack_delay.blocked.get()
            // quiche calls a window open that has no room for a packet.
            || self.unsent.waits_for_window()
            || self.room.len() > 0
    }
}

#[cfg(test)]
#[path = "ack_delay_lane_tests.rs"]
mod lane_tests;

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = FULL_PACKET_BYTES - 1;

    #[test]
    fn few_datagrams_are_acknowledged_at_once() {
        let delay = AckDelay::default();
        delay.packet(BULK_BYTES_MIN - 1);
        assert_eq!(delay.turn_over(Brought::NothingForStreams), None);
        delay.packet(BULK_BYTES_MIN - 1);
        let over = delay.turn_over(Brought::NothingForStreams);
        assert_eq!(over, None, "the bytes are those of one turn");
    }

    #[test]
    fn what_brings_nothing_for_streams_waits_with_what_is_owed_already() {
        let delay = AckDelay::default();
        let now = Instant::now();
        let due = delay.owe(now, FLOW_PATIENCE);
        delay.packet(1);
        assert_eq!(
            delay.turn_over(Brought::NothingForStreams),
            Some(FLOW_PATIENCE)
        );
        assert_eq!(delay.owe(now, FLOW_PATIENCE), None, "no later than before");
        assert_eq!(delay.due.get(), due);
        delay.sent();
        assert_eq!(delay.turn_over(Brought::NothingForStreams), None);
    }

    #[test]
    fn datagrams_in_bulk_wait_until_there_are_some_packets_of_them() {
        let delay = AckDelay::default();
        for _ in 1..PACKETS_MAX {
            delay.packet(BULK_BYTES_MIN);
            let over = delay.turn_over(Brought::NothingForStreams);
            assert_eq!(over, Some(PATIENCE));
        }
        delay.packet(BULK_BYTES_MIN);
        assert_eq!(delay.turn_over(Brought::NothingForStreams), None);
        delay.sent();
        delay.packet(BULK_BYTES_MIN);
        let over = delay.turn_over(Brought::NothingForStreams);
        assert_eq!(over, Some(PATIENCE));
    }

    #[test]
    fn a_message_of_a_flow_waits_for_its_answer() {
        let delay = AckDelay::default();
        delay.packet(SMALL);
        delay.packet(FULL_PACKET_BYTES);
        assert_eq!(delay.turn_over(Brought::Flows), Some(FLOW_PATIENCE));
        delay.packet(FULL_PACKET_BYTES);
        assert_eq!(delay.turn_over(Brought::Flows), None, "the second full one");
        delay.sent();
        for _ in 1..PACKETS_MAX {
            delay.packet(SMALL);
            assert_eq!(delay.turn_over(Brought::Flows), Some(FLOW_PATIENCE));
        }
        delay.packet(SMALL);
        assert_eq!(delay.turn_over(Brought::Flows), None, "many small ones");
    }

    #[test]
    fn a_control_message_is_acknowledged_at_once() {
        let delay = AckDelay::default();
        delay.packet(SMALL);
        assert_eq!(delay.turn_over(Brought::Control), None);
    }

    #[test]
    fn what_came_is_owed_for_until_it_is_paid_whether_it_may_wait_or_not() {
        let delay = AckDelay::default();
        assert!(!delay.are_open());
        delay.packet(SMALL);
        assert_eq!(delay.turn_over(Brought::Control), None);
        assert!(delay.are_open(), "though no time is set");
        let before = delay.times_sent.get();
        delay.sent();
        assert!(!delay.are_open() && delay.times_sent.get() != before);
    }

    #[test]
    fn credit_is_told_at_once_when_there_is_much_of_it() {
        let delay = AckDelay::default();
        assert!(delay.read(CREDIT_BYTES_MAX - 1));
        assert!(!delay.read(1));
        delay.sent();
        assert!(delay.read(1));
    }

    #[test]
    fn the_time_runs_from_the_first_turn_that_is_owed_for() {
        let delay = AckDelay::default();
        let now = Instant::now();
        let due = now + PATIENCE;
        assert_eq!(delay.owe(now, PATIENCE), Some(due));
        assert_eq!(delay.owe(now + PATIENCE / 2, PATIENCE), None);
        assert_eq!(delay.due.get(), Some(due));
        delay.sent();
        assert_eq!(delay.owe(due, PATIENCE), Some(due + PATIENCE));
    }

    #[test]
    fn what_must_be_paid_sooner_moves_the_time() {
        let delay = AckDelay::default();
        let now = Instant::now();
        assert!(delay.owe(now, FLOW_PATIENCE).is_some());
        assert_eq!(delay.owe(now, PATIENCE), Some(now + PATIENCE));
        assert_eq!(delay.owe(now, FLOW_PATIENCE), None);
    }
}
