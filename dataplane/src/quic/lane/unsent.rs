//! How much of what flows have written still waits in quiche to be sent, and how much more they may
//! write.
//!
//! quiche lets streams write as much as the congestion window has free, and counts that anew after
//! each packet received, whatever waits already. Where the window limits a lane, more and more
//! would wait, of ever more streams, and be sent one packet of each stream at a time; and what
//! waits would be sent at the next acknowledgement by itself, before the flows that it wakes have
//! written more. So what waited when quiche last counted is subtracted from what it would take.

use std::cell::Cell;

use super::{PACKET_OVERHEAD_MIN, QUEUE_BYTES_MAX};

/// Bytes that may wait behind a full window if there is but one flow: a batch, which is sent with
/// the next acknowledgement, before the flow has had its turn. The packets of several flows would
/// take turns, each with a write at the peer.
const BEHIND_WINDOW_BYTES_MAX: usize = 64 << 10;

/// Payloads of packets that are as large as one header, or less.
const PAYLOADS_PER_HEADER: usize = 32;

/// Writes after which a lane is flushed without waiting for the other flows of the turn. The peer
/// begins with these while the other flows are still being read. A flush costs about as much as two
/// writes with the work around them.
const WRITES_PER_FLUSH: u32 = 16;

/// How often flows are woken before a flush, because an acknowledgement has come, until a flush that
/// comes first shows again what waits. The estimate misses what is repeated after a loss.
const KNOWN_FOR: u32 = 16;

/// The unsent bytes of one lane, and how often it was written to. What waits is an estimate,
/// because quiche does not tell.
#[derive(Debug, Default)]
pub(in crate::quic) struct Unsent {
    waiting: Cell<usize>,
    /// The largest packet, when quiche was last asked for packets.
    packet: Cell<usize>,
    /// Whether the window was full when quiche was last asked for packets.
    stopped_by_window: Cell<bool>,
    /// Bytes written since the last packet came.
    written: Cell<usize>,
    /// Bytes sent since the last packet came.
    sent: Cell<usize>,
    /// Writes since the last flush that were to be flushed.
    writes: Cell<u32>,
    /// How often flows may still be woken before a flush has shown again that nothing waits.
    known_for: Cell<u32>,
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

    /// Whether the last flush ended because the congestion window was full.
    pub(super) fn has_filled_window(&self) -> bool {
        self.stopped_by_window.get()
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
        self.packet.set(packet);
        if !by_window {
            self.known_for.set(KNOWN_FOR);
            // Everything has been sent; what the estimate has left belonged to streams that were
            // reset.
            self.waiting.set(0);
        }
    }

    /// Whether what waits is known well enough to wake several flows before a flush.
    pub(super) fn is_known(&self) -> bool {
        let left = self.known_for.get();
        self.known_for.set(left.saturating_sub(1));
        left > 0
    }

    /// Bytes that waited when quiche last counted what the window has free.
    fn waited(&self) -> usize {
        (self.waiting.get() + self.sent.get()).saturating_sub(self.written.get())
    }

    /// How much flows may write, if quiche would take `capacity` and this many flows want to write.
    pub(super) fn room(&self, capacity: usize, flows: usize) -> usize {
        let queue = QUEUE_BYTES_MAX.saturating_sub(self.waiting.get());
        let window = if flows > 1 {
            // Packets have headers besides, and the last one may not fit; the rest would wait.
            let all = capacity.saturating_add(self.written.get());
            capacity.saturating_sub(all / PAYLOADS_PER_HEADER + self.packet.get())
        } else {
            capacity.saturating_add(BEHIND_WINDOW_BYTES_MAX)
        };
        queue.min(window.saturating_sub(self.waited()))
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

    /// quiche with a congestion window, as far as this module sees it.
    struct Path {
        window: usize,
        in_flight: usize,
        queued: usize,
        capacity: usize,
    }

    const HEADERS: usize = 40;

    impl Path {
        fn acknowledged(&mut self, unsent: &Unsent, bytes: usize) {
            self.in_flight -= bytes.min(self.in_flight);
            self.capacity = self.window - self.in_flight;
            unsent.window_counted();
        }

        fn write(&mut self, unsent: &Unsent, bytes: usize) {
            let taken = bytes.min(self.capacity);
            self.capacity -= taken;
            self.queued += taken;
            unsent.wrote(taken);
        }

        /// Sends what the window lets through. Returns the bytes of packets.
        fn flush(&mut self, unsent: &Unsent) -> usize {
            let mut sent = 0;
            while self.queued > 0 && self.in_flight + PACKET <= self.window {
                let payload = self.queued.min(PACKET - HEADERS);
                self.queued -= payload;
                self.in_flight += payload + HEADERS;
                sent += payload + HEADERS;
                unsent.packet_sent(payload + HEADERS);
            }
            unsent.stopped(Some(self.capacity), PACKET);
            sent
        }
    }

    /// A lane of many flows that always have something to write. Each acknowledgement frees
    /// `freed`; of what is sent, one packet in `repeats` is one that was lost. Returns the share of
    /// what was freed that was used, the number of flushes, and the most that waited behind one.
    fn many_flows(freed: usize, repeats: Option<usize>) -> (f64, usize, usize) {
        const ROUNDS: usize = 1_000;
        let unsent = Unsent::default();
        let mut path = Path {
            window: 1_000_000,
            in_flight: 1_000_000,
            queued: 0,
            capacity: 0,
        };
        let (mut used, mut flushes, mut waited, mut packets) = (0, 0, 0, 0);
        let mut flush = |path: &mut Path| {
            flushes += 1;
            let sent = path.flush(&unsent);
            used += sent;
            packets += sent / PACKET;
            if let Some(every) = repeats.filter(|every| packets >= *every) {
                packets -= every;
                path.queued += PACKET - HEADERS;
            }
        };
        for round in 0..ROUNDS {
            path.acknowledged(&unsent, freed);
            if !unsent.is_known() || unsent.waiting() > 0 {
                flush(&mut path);
            }
            let room = unsent.room(path.capacity, 100);
            path.write(&unsent, room);
            flush(&mut path);
            if round > 2 * KNOWN_FOR as usize {
                waited = waited.max(path.queued);
            }
        }
        (used as f64 / (ROUNDS * freed) as f64, flushes, waited)
    }

    #[test]
    fn flows_of_a_full_lane_write_what_the_window_lets_through_and_no_more() {
        for freed in [2 * PACKET, 17 * PACKET + 300, 100 * PACKET] {
            let (used, flushes, waited) = many_flows(freed, None);
            assert!(used > 0.97, "{freed}: {used}");
            assert!(waited <= PACKET, "{freed}: {waited} bytes");
            assert!(flushes < 1_200, "{freed}: {flushes} flushes");
        }
    }

    #[test]
    fn what_is_repeated_after_losses_does_not_pile_up_unseen() {
        let (used, flushes, waited) = many_flows(17 * PACKET + 300, Some(100));
        assert!(used > 0.97, "{used}");
        assert!(waited <= 6 * PACKET, "{waited} bytes");
        assert!(flushes < 1_200, "{flushes} flushes");
    }
}
