//! How much of what flows have written still waits in quiche to be sent, and how much more they may
//! write.
//!
//! quiche lets streams write as much as the congestion window has free, and counts that anew after
//! each packet received, whatever waits already. Where the window limits a lane, more and more
//! would wait, of ever more streams, and be sent one packet of each stream at a time. So what waits
//! behind a full window is subtracted from what the window has free.

use std::cell::Cell;

use super::{PACKET_OVERHEAD_MIN, QUEUE_BYTES_MAX};

/// Bytes of one flow that may wait behind a full window: a batch, which is sent with the next
/// acknowledgement, before the flow has had its turn. With several flows each has less, because
/// their packets would take turns.
const BEHIND_WINDOW_BYTES_MAX: usize = 64 << 10;

/// Writes after which a lane is flushed without waiting for the other flows of the turn. The peer
/// begins with these while the other flows are still being read. A flush costs about as much as two
/// writes with the work around them.
const WRITES_PER_FLUSH: u32 = 16;

/// The unsent bytes of one lane, and how often it was written to. What waits is an estimate,
/// because quiche does not tell.
#[derive(Debug, Default)]
pub(in crate::quic) struct Unsent {
    waiting: Cell<usize>,
    /// Bytes that waited when the window was last found full.
    behind_window: Cell<usize>,
    /// Whether the window was full when quiche was last asked for packets.
    stopped_by_window: Cell<bool>,
    /// Bytes written since the last packet came.
    written: Cell<usize>,
    /// Bytes sent since the last packet came.
    sent: Cell<usize>,
    /// Writes since the last flush that were to be flushed.
    writes: Cell<u32>,
}

impl Unsent {
    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Whether something may wait for the congestion window: the peer's next acknowledgement may
    /// let it be sent.
    pub(super) fn waits_for_window(&self) -> bool {
        self.waiting.get() > 0 || self.stopped_by_window.get()
    }

    /// Counts bytes that flows have written.
    pub(super) fn wrote(&self, bytes: usize) {
        self.waiting.set(self.waiting.get() + bytes);
        self.written.set(self.written.get() + bytes);
    }

    /// Counts a write that is to be flushed.
    pub(super) fn count_write(&self) {
        self.writes.set(self.writes.get() + 1);
    }

    /// Notes that the lane is being flushed.
    pub(in crate::quic) fn flushed(&self) {
        self.writes.set(0);
    }

    /// Whether the lane was written to so often that it is flushed before the turn ends.
    pub(super) fn is_worth_a_flush(&self) -> bool {
        self.writes.get() >= WRITES_PER_FLUSH
    }

    /// Counts a packet of this size that was taken out.
    pub(in crate::quic) fn packet_sent(&self, bytes: usize) {
        let payload = bytes.saturating_sub(PACKET_OVERHEAD_MIN);
        self.waiting.set(self.waiting.get().saturating_sub(payload));
        self.sent.set(self.sent.get() + bytes);
    }

    /// Notes that a packet came, after which quiche has counted anew what the window has free.
    pub(in crate::quic) fn window_counted(&self) {
        self.written.set(0);
        self.sent.set(0);
    }

    /// Notes that quiche has no packet to send, of `packet` bytes at most, although pacing would
    /// allow it. `capacity` is what it would take of streams.
    pub(in crate::quic) fn stopped(&self, capacity: Option<usize>, packet: usize) {
        let window = capacity.map(|capacity| capacity + self.written.get());
        let by_window = window.is_some_and(|window| self.sent.get() + packet > window);
        self.stopped_by_window.set(by_window);
        if by_window {
            self.behind_window.set(self.waiting.get());
        } else {
            // Everything has been sent; what the estimate has left belonged to streams that were
            // reset.
            self.waiting.set(0);
            self.behind_window.set(0);
        }
    }

    /// How much flows may write, if quiche would take `capacity` and this many flows want to write.
    pub(super) fn room(&self, capacity: usize, flows: usize) -> usize {
        let queue = QUEUE_BYTES_MAX.saturating_sub(self.waiting.get());
        let window = capacity.saturating_add(BEHIND_WINDOW_BYTES_MAX / flows.max(1));
        queue.min(window.saturating_sub(self.behind_window.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1_350;

    #[test]
    fn what_waits_behind_a_full_window_leaves_the_less_room_in_it() {
        let unsent = Unsent::default();
        unsent.wrote(20_000);
        unsent.window_counted();
        unsent.packet_sent(PACKET);
        unsent.packet_sent(PACKET);
        unsent.stopped(Some(3_000), PACKET);
        let behind = unsent.waiting();
        assert!(behind > 20_000 - 2 * PACKET);
        unsent.window_counted();
        assert_eq!(unsent.room(0, 1), BEHIND_WINDOW_BYTES_MAX - behind);
        assert_eq!(unsent.room(500, 1), BEHIND_WINDOW_BYTES_MAX + 500 - behind);
        assert_eq!(
            unsent.room(behind, 1_000_000),
            0,
            "many flows leave nothing there"
        );
    }

    #[test]
    fn nothing_waits_where_the_window_had_more_to_give() {
        let unsent = Unsent::default();
        unsent.wrote(20_000);
        unsent.packet_sent(PACKET);
        unsent.stopped(Some(50_000), PACKET);
        assert_eq!(unsent.waiting(), 0);
        assert_eq!(unsent.room(usize::MAX, 1), QUEUE_BYTES_MAX);
    }

    #[test]
    fn without_a_window_the_queue_alone_bounds_what_waits() {
        let unsent = Unsent::default();
        unsent.wrote(QUEUE_BYTES_MAX - 10);
        assert_eq!(unsent.room(1 << 30, 1), 10);
        unsent.stopped(None, PACKET);
        assert_eq!(unsent.waiting(), 0);
    }
}
