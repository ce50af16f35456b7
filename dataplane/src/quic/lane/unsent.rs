//! How much of what flows have written still waits in quiche to be sent, and how much more they may
//! write.
//!
//! quiche lets streams write as much as the congestion window has free, and counts that anew after
//! each packet received, whatever waits already. Where the window limits a lane, more and more
//! would wait, of ever more streams, and be sent one packet of each stream at a time; and what
//! waits would be sent at the next acknowledgement by itself, before the flows that it wakes have
//! written more. So what waited when quiche last counted is subtracted from what it would take.
//!
//! Flows that wait for room are woken at three moments ([`Unsent::before_flush`],
//! [`Unsent::after_flush`]):
//!
//! - When something has come, if what waits in quiche is known: their bytes go out with the flush
//!   that follows.
//! - After that flush, if it has come first because what waits was not known, or has left room.
//! - After a flush that has filled the window only where much room is left: the next
//!   acknowledgement brings more, and each flow then reads with one call instead of two.
//!
//! After a flush that has not filled the window, nothing waits. Datagrams may keep it full for
//! ever. But quiche puts datagrams and a stream into packets of their own, and takes the other kind
//! next where both wait: two packets of datagrams in a row say that no stream waits, and so does a
//! rest of the window that is too small for a datagram.

use std::cell::Cell;

use super::{PACKET_OVERHEAD_MIN, QUEUE_BYTES_MAX};

/// Bytes that may wait behind a full window if there is but one flow: a batch, which is sent with
/// the next acknowledgement, before the flow has had its turn. The packets of several flows would
/// take turns, each with a write at the peer.
const BEHIND_WINDOW_BYTES_MAX: usize = 64 << 10;

/// No flow is woken for less room than this while there are bytes to be sent: a flow that reads and
/// writes little at a time costs several times as much per byte.
const WAKE_AT_BYTES: usize = 32 << 10;

/// Bytes of several flows that may wait while pacing holds the next packet back. They are sent a
/// packet of each flow at a time, and each of those costs the peer a write.
const PACED_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(PACED_BYTES_MAX >= WAKE_AT_BYTES && WAKE_AT_BYTES < QUEUE_BYTES_MAX);

/// The most of a stream's packet that is not its payload: QUIC's header and tag, the STREAM frame's
/// header, acknowledgements and credit. Beside datagrams the estimate of what waits rather errs
/// upwards: then less is written, until nothing waits, which shows.
const PACKET_OVERHEAD_MAX: usize = PACKET_OVERHEAD_MIN + 128;

/// quiche uses more than this of the window for any stream that waits.
const STREAM_PACKET_MIN: usize = PACKET_OVERHEAD_MIN + 32;

/// Payloads of packets that are as large as one header, or less.
const PAYLOADS_PER_HEADER: usize = 32;

/// Writes after which a lane is flushed without waiting for the other flows of the turn. The peer
/// begins with these while the other flows are still being read. A flush costs about as much as two
/// writes with the work around them.
const WRITES_PER_FLUSH: u32 = 16;

/// How often flows are woken by the estimate of what waits until a flush that comes first shows it
/// again. It misses what is repeated after a loss. While datagrams wait, nobody writes from then on
/// until it is known that nothing of streams does.
const KNOWN_FOR: u32 = 16;

/// After so many flushes that have filled the window without showing it, it is taken for granted,
/// for one look: more has been sent meanwhile than was written before. But not if no stream has
/// sent anything since it was for the last time: where each acknowledgement has room for one packet
/// of datagrams, quiche takes nothing else.
const HELD_FOR: u32 = 4 * KNOWN_FOR;

/// What limits a lane at the moment, as far as quiche tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// What quiche would take of streams.
    pub(super) capacity: usize,
    /// Whether datagrams wait. quiche sends them and streams in turn, so streams get nothing of a
    /// window that is always full unless something of theirs waits as well.
    pub(super) datagrams_wait: bool,
    /// Whether pacing holds the next packet back.
    pub(super) is_paced: bool,
}

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
    /// How often the estimate may still be relied on.
    known_for: Cell<u32>,
    /// Flushes with datagrams since then that have not shown what waits.
    held: Cell<u32>,
    /// Whether it was taken for granted that nothing waits, and no stream has sent since.
    assumed: Cell<bool>,
    /// Whether the last packet was one of datagrams, and quiche has been asked for no other since.
    after_datagrams: Cell<bool>,
    /// Whether this flush had any so far.
    beside_datagrams: Cell<bool>,
}

impl Unsent {
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
        self.beside_datagrams.set(false);
    }

    /// Whether the lane was written to so often that it is flushed before the turn ends.
    pub(super) fn is_worth_a_flush(&self) -> bool {
        self.writes.get() >= WRITES_PER_FLUSH
    }

    /// Counts a packet of this size that was taken out.
    pub(in crate::quic) fn packet_sent(&self, bytes: usize, has_datagrams: bool) {
        self.sent.set(self.sent.get() + bytes);
        let after_datagrams = self.after_datagrams.replace(has_datagrams);
        if has_datagrams {
            self.beside_datagrams.set(true);
            if after_datagrams {
                self.nothing_waits();
            }
            return;
        }
        let overhead = if self.beside_datagrams.get() {
            PACKET_OVERHEAD_MAX
        } else {
            PACKET_OVERHEAD_MIN
        };
        let payload = bytes.saturating_sub(overhead);
        self.waiting.set(self.waiting.get().saturating_sub(payload));
        // Less may be acknowledgements.
        if bytes >= PACKET_OVERHEAD_MAX {
            self.assumed.set(false);
        }
    }

    /// Notes that all bytes of streams have been sent. What the estimate has left was too much, or
    /// belonged to streams that were reset.
    fn nothing_waits(&self) {
        self.known_for.set(KNOWN_FOR);
        self.held.set(0);
        self.waiting.set(0);
    }

    /// Notes that a packet came, or a stream was reset, after which quiche has counted anew what
    /// the window has free.
    pub(in crate::quic) fn window_counted(&self) {
        self.written.set(0);
        self.sent.set(0);
    }

    /// Notes that quiche has no packet to send, of `packet` bytes at most, although pacing would
    /// allow it. `capacity` is what it would take of streams.
    pub(in crate::quic) fn stopped(&self, capacity: Option<usize>, packet: usize) {
        let window = capacity.map(|capacity| capacity + self.written.get());
        let left = window.map(|window| window.saturating_sub(self.sent.get()));
        let by_window = left.is_some_and(|left| left < packet);
        self.stopped_by_window.set(by_window);
        self.packet.set(packet);
        // quiche begins with datagrams again.
        self.after_datagrams.set(false);
        let beside_datagrams = self.beside_datagrams.take();
        let has_rest = left.is_none_or(|left| left > STREAM_PACKET_MIN);
        if !by_window || beside_datagrams && has_rest {
            self.nothing_waits();
        } else if beside_datagrams && self.known_for.get() == 0 {
            self.hold();
        }
    }

    /// Counts that a flush has not shown what waits, beside datagrams.
    fn hold(&self) {
        self.held.set(self.held.get().saturating_add(1));
        if self.held.get() >= HELD_FOR && !self.assumed.replace(true) {
            self.nothing_waits();
            self.known_for.set(2); // The second look finds it at its end.
        }
    }

    /// For how many bytes flows are woken, of `flows` that wait, because something has come. `None`
    /// if a flush must come first.
    pub(super) fn before_flush(&self, limits: Limits, flows: usize) -> Option<usize> {
        if flows > 1 || limits.datagrams_wait {
            let left = self.known_for.get().checked_sub(1)?;
            self.known_for.set(left);
        }
        Some(self.enough(limits, flows, 1))
    }

    /// For how many bytes flows are woken, of `flows` that wait, behind a flush.
    pub(super) fn after_flush(&self, limits: Limits, flows: usize) -> usize {
        let is_full = self.stopped_by_window.get() && !limits.datagrams_wait;
        self.enough(limits, flows, if is_full { WAKE_AT_BYTES } else { 1 })
    }

    /// The room, if it is enough for several flows, and at least `min`.
    fn enough(&self, limits: Limits, flows: usize, min: usize) -> usize {
        let room = self.room(limits, flows).min(limits.capacity);
        let min = if flows > 1 && self.waiting.get() > 0 {
            WAKE_AT_BYTES
        } else {
            min
        };
        if room < min { 0 } else { room }
    }

    /// How much flows may write, if this many want to.
    pub(super) fn room(&self, limits: Limits, flows: usize) -> usize {
        let (waiting, capacity) = (self.waiting.get(), limits.capacity);
        let queue = if flows > 1 && limits.is_paced {
            PACED_BYTES_MAX
        } else {
            QUEUE_BYTES_MAX
        };
        let window = if limits.datagrams_wait && self.known_for.get() == 0 {
            0
        } else if limits.datagrams_wait {
            // What was sent was theirs, too, and says nothing.
            (capacity + BEHIND_WINDOW_BYTES_MAX / flows.max(1)).saturating_sub(waiting)
        } else if flows > 1 {
            // Packets have headers besides, and the last one may not fit; the rest would wait.
            let all = capacity.saturating_add(self.written.get());
            let last = self.packet.get().min(all / 4);
            capacity.saturating_sub(all / PAYLOADS_PER_HEADER + last + self.waited())
        } else {
            (capacity + BEHIND_WINDOW_BYTES_MAX).saturating_sub(self.waited())
        };
        window.min(queue.saturating_sub(waiting))
    }

    /// Bytes that waited when quiche last counted what the window has free.
    fn waited(&self) -> usize {
        (self.waiting.get() + self.sent.get()).saturating_sub(self.written.get())
    }
}

#[cfg(test)]
#[path = "unsent_tests.rs"]
mod tests;
