//! Which flows have ended here while the peer may not have all of their bytes.
//!
//! quiche sends nothing but CONNECTION_CLOSE once a connection is closed: a lane that is closed earlier cuts off what is
//! unsent or unacknowledged, and a FIN that only a message would have told.

use super::Lane;

/// Streams that are remembered before those that are delivered are dropped.
const ENDED_STREAMS: usize = 32;

impl Lane {
    /// Whether the peer has all bytes of the flows that have ended, as far as that can ever be: a lane that is no longer
    /// open delivers nothing.
    pub(crate) fn has_delivered(&self) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut ended = self.ended_streams.borrow_mut();
        ended.retain(|stream| self.has_stream(*stream));
        ended.is_empty() && self.announcements.borrow().is_empty()
    }

    /// Remembers a stream whose flow has ended.
    pub(super) fn remember_ended(&self, stream: u64) {
        let mut ended = self.ended_streams.borrow_mut();
        // Looked through when it has doubled, so that it costs little however many are not delivered yet.
        if ended.len() == ended.capacity() {
            ended.retain(|stream| self.has_stream(*stream));
            let room = ended.len().max(ENDED_STREAMS);
            ended.reserve(room);
        }
        ended.push(stream);
    }

    /// False once the stream is over in both directions and the peer has acknowledged all of its bytes.
    fn has_stream(&self, stream: u64) -> bool {
        let capacity = self.conn.borrow_mut().stream_capacity(stream);
        !matches!(capacity, Err(quiche::Error::InvalidStreamState(_)))
    }
}
