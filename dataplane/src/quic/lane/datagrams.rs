//! Losses of a lane's datagrams inside quiche, which drops some silently. They are counted by
//! comparing what went in with what came out.

use std::cell::Cell;

use super::Lane;

/// Why a datagram could not be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatagramRefused {
    /// The lane's queue is full.
    QueueFull,
    /// The datagram is larger than a packet of this path carries.
    TooLarge,
    /// The lane has ended or the peer takes no datagrams.
    Closed,
}

/// The numbers of datagrams of one lane, so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Datagrams given to quiche to be sent.
    pub(super) queued: Cell<u64>,
    /// Datagrams that this side has dropped from quiche's queue, and counted.
    pub(super) purged: Cell<u64>,
    /// Datagrams taken out of the receive queue.
    pub(super) delivered: Cell<u64>,
    /// The losses that the counters contain already.
    reported: Cell<Losses>,
}

/// Datagrams that quiche has dropped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Losses {
    /// Datagrams that were sent, and declared lost on the path.
    on_the_path: u64,
    /// Datagrams that were received, and pushed out of the receive queue by newer ones.
    unread: u64,
    /// Datagrams that were found too large when a packet was made.
    too_large: u64,
}

impl Tally {
    pub(super) fn add(counter: &Cell<u64>, datagrams: usize) {
        counter.set(counter.get() + datagrams as u64);
    }
}

impl Lane {
    /// Adds the datagrams that quiche has dropped since the last call to the core's counters. This
    /// takes some hundred nanoseconds, so it is not called for each packet.
    pub(crate) fn count_datagrams(&self) {
        let Some(endpoint) = self.endpoint.upgrade() else {
            return;
        };
        let tally = &self.datagrams;
        let now = {
            let conn = self.conn.borrow();
            let stats = conn.stats();
            let lost: usize = conn.path_stats().map(|path| path.dgram_lost).sum();
            let waiting_in = conn.dgram_recv_queue_len() as u64;
            let waiting_out = conn.dgram_send_queue_len() as u64;
            let read = tally.delivered.get() + waiting_in;
            let sent = stats.dgram_sent as u64 + tally.purged.get() + waiting_out;
            Losses {
                on_the_path: lost as u64,
                unread: (stats.dgram_recv as u64).saturating_sub(read),
                too_large: tally.queued.get().saturating_sub(sent),
            }
        };
        let before = tally.reported.replace(now);
        if now == before {
            return;
        }
        let counters = endpoint.counters();
        let more = |now: u64, before: u64| now.saturating_sub(before);
        counters
            .udp_datagrams_lost
            .add(more(now.on_the_path, before.on_the_path));
        counters
            .udp_dropped_receive_queue
            .add(more(now.unread, before.unread));
        counters
            .udp_dropped_too_large
            .add(more(now.too_large, before.too_large));
    }

    /// Counts the datagrams that are dropped with a lane that has ended.
    pub(super) fn count_last_datagrams(&self) {
        self.count_datagrams();
        let left = self.conn.borrow().dgram_send_queue_len() + self.drop_bundle();
        if let Some(endpoint) = self.endpoint.upgrade() {
            let counters = endpoint.counters();
            counters.udp_dropped_lane_ended.add(left as u64);
        }
    }
}
