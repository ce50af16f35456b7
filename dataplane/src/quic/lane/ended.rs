//! Flows that have ended on this side while the peer may not have all of their bytes.
//!
//! quiche sends nothing but CONNECTION_CLOSE once a connection is closed. A lane that is closed
//! earlier cuts off what is unsent or unacknowledged, and a FIN that only a message would have
//! told.
//!
//! quiche forgets a stream only when one of its frames is acknowledged or read, and so may keep one
//! that is over. Hence the limit on waiting without progress.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::{CONTROL_STREAM, Lane};

/// Number of streams that are remembered before those that are over are dropped.
const STREAMS: usize = 32;

/// A lane that has delivered nothing for this long delivers nothing more: its peer is gone, or
/// quiche does not tell.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same limit in round trips, for long paths: a lost packet is repeated twice in that time.
const PATIENCE_ROUND_TRIPS: u32 = 8;

/// Number of acknowledged bytes that count as progress; heartbeats and the like stay below it.
const PROGRESS_BYTES: u64 = 1_200;

/// How far delivery has come.
#[derive(Clone, Copy)]
struct Progress {
    acked_bytes: u64,
    streams: usize,
    since: Instant,
}

/// The streams of flows that have ended.
#[derive(Default)]
pub(super) struct EndedStreams {
    streams: RefCell<Vec<u64>>,
    progress: Cell<Option<Progress>>,
}

impl Lane {
    /// Whether the peer has all bytes of the flows that have ended, as far as that can be known at
    /// `now`, or will not get them. To be asked repeatedly.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut streams = self.ended.streams.borrow_mut();
        streams.retain(|stream| self.has_stream(*stream));
        if streams.is_empty()
            && self.announcements.borrow().is_empty()
            && self.control_backlog.borrow().is_empty()
        {
            self.ended.progress.set(None);
            return true;
        }
        let acked_bytes = self.conn.borrow().stats().acked_bytes;
        let progress = self.ended.progress.get();
        let Some(before) = progress.filter(|before| {
            acked_bytes < before.acked_bytes + PROGRESS_BYTES && streams.len() >= before.streams
        }) else {
            self.ended.progress.set(Some(Progress {
                acked_bytes,
                streams: streams.len(),
                since: now,
            }));
            return false;
        };
        let patience = PATIENCE.max(self.rtt() * PATIENCE_ROUND_TRIPS);
        now.saturating_duration_since(before.since) >= patience
    }

    /// Whether closing the lane now would cut anything off, as far as that can be known.
    pub(super) fn cuts_off(&self) -> bool {
        let streams = self.ended.streams.borrow();
        streams.iter().any(|stream| self.has_stream(*stream))
    }

    /// Remembers a stream whose flow has ended.
    pub(super) fn remember_ended(&self, stream: u64) {
        if stream == CONTROL_STREAM {
            return;
        }
        let mut streams = self.ended.streams.borrow_mut();
        // The list is searched when it has doubled, so that this costs little however many streams
        // are not over yet.
        if streams.len() == streams.capacity() {
            streams.retain(|stream| self.has_stream(*stream));
            let room = streams.len().max(STREAMS);
            streams.reserve(room);
        }
        streams.push(stream);
    }

    /// Returns false once the stream is over in both directions and the peer has acknowledged all
    /// of its bytes.
    fn has_stream(&self, stream: u64) -> bool {
        let capacity = self.conn.borrow_mut().stream_capacity(stream);
        !matches!(capacity, Err(quiche::Error::InvalidStreamState(_)))
    }
}
