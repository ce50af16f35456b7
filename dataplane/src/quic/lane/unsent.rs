//! How much of what flows have written still waits in quiche to be sent, and how much more they may
//! write.
//!
//! quiche lets streams write as much as the congestion window has free, and after each packet
//! received counts that anew, whatever waits already: where the window is what limits a lane, more
//! and more waits, of ever more streams, and goes out one packet of each stream at a time. So what
//! waits behind a full window counts as a part of what the window has free.

use std::cell::Cell;

use super::{PACKET_OVERHEAD_MIN, QUEUE_BYTES_MAX};

/// So much of one flow may wait behind a full window: a batch, which goes out with the next
/// acknowledgement, before the flow has had its turn. Of several flows it is the less, because their
/// packets would take turns.
const BEHIND_WINDOW_BYTES_MAX: usize = 64 << 10;

/// After so many writes the lane is flushed without waiting for the other flows of the turn: the peer
/// begins with what there is while they are still at it. A flush costs about as much as two of the
/// writes with what is around them.
const WRITES_PER_FLUSH: u32 = 16;

/// All in bytes, but for the writes. What waits is an estimate: quiche does not tell.
#[derive(Debug, Default)]
pub(in crate::quic) struct Unsent {
    waiting: Cell<usize>,
    /// What was waiting when the window was last found full.
    behind_window: Cell<usize>,
    /// Written since the last packet came.
    written: Cell<usize>,
    /// Sent since then.
    sent: Cell<usize>,
    /// Calls of [`Unsent::wrote`] since the last flush.
    writes: Cell<u32>,
}

impl Unsent {
    /// What waits.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// Flows have written so much.
    pub(super) fn wrote(&self, bytes: usize) {
        self.waiting.set(self.waiting.get() + bytes);
        self.written.set(self.written.get() + bytes);
        self.writes.set(self.writes.get() + 1);
    }

    /// The lane is being flushed.
    pub(in crate::quic) fn flushed(&self) {
        self.writes.set(0);
    }

    /// Whether the peer should not be kept waiting any longer.
    pub(super) fn is_worth_a_flush(&self) -> bool {
        self.writes.get() >= WRITES_PER_FLUSH
    }

    /// A packet of so many bytes was taken out.
    pub(in crate::quic) fn packet_sent(&self, bytes: usize) {
        let payload = bytes.saturating_sub(PACKET_OVERHEAD_MIN);
        self.waiting.set(self.waiting.get().saturating_sub(payload));
        self.sent.set(self.sent.get() + bytes);
    }

    /// A packet came, and quiche has counted anew what the window has free.
    pub(in crate::quic) fn window_counted(&self) {
        self.written.set(0);
        self.sent.set(0);
    }

    /// quiche has no packet to send, of `packet` bytes at the most, although pacing would let it
    /// go. `capacity` is what it would take of streams.
    pub(in crate::quic) fn stopped(&self, capacity: Option<usize>, packet: usize) {
        let window = capacity.map(|capacity| capacity + self.written.get());
        if window.is_some_and(|window| self.sent.get() + packet > window) {
            self.behind_window.set(self.waiting.get());
        } else {
            // Everything has gone; what the estimate has left over went with streams that were
            // reset.
            self.waiting.set(0);
            self.behind_window.set(0);
        }
    }

    /// How much flows may write, where quiche would take `capacity` and so many flows want to.
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
