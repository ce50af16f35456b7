//! What the peer has done to a stream, asked without reading or writing it.
//!
//! quiche reports each stream as readable or writable once. A RESET_STREAM that comes while bytes
//! wait to be read, or a STOP_SENDING while there is room, is therefore no news to it: a flow that
//! waits for something else meanwhile must ask.

use qmux_proto::FlowError;

use super::Lane;
use super::streams::flow_error;

/// What is found at the front of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFront {
    /// Bytes, or nothing yet.
    Open,
    /// The peer's FIN, with nothing before it that was not read. It will not be given again.
    Fin,
    /// The peer has reset the stream, or the lane has ended.
    Reset(FlowError),
}

impl Lane {
    /// Looks at the front of a stream whose FIN has not been read, without taking bytes.
    pub(crate) fn front(&self, stream: u64) -> StreamFront {
        if self.end.borrow().is_some() {
            return StreamFront::Reset(FlowError::Internal);
        }
        let mut conn = self.conn.borrow_mut();
        if conn.stream_readable_len(stream, 1) > 0 {
            return StreamFront::Open;
        }
        if !conn.stream_readable(stream) {
            drop(conn);
            let reset = self.reset_behind_fin(stream);
            return reset.map_or(StreamFront::Open, StreamFront::Reset);
        }
        // Readable without bytes: a FIN or a reset.
        match conn.stream_recv(stream, &mut []) {
            Ok((_, true)) => StreamFront::Fin,
            Ok((_, false)) | Err(quiche::Error::Done) => StreamFront::Open,
            Err(error) => StreamFront::Reset(flow_error(error)),
        }
    }

    /// The peer's reset of a stream whose FIN had come before it, while bytes were unread: quiche
    /// drops these, takes the stream for finished and says nothing, not even the code. To be asked
    /// when there is nothing to read of a stream whose FIN was not read.
    pub(super) fn reset_behind_fin(&self, stream: u64) -> Option<FlowError> {
        let conn = self.conn.borrow();
        let reset = if conn.is_server() {
            FlowError::ServiceReset
        } else {
            FlowError::VisitorReset
        };
        conn.stream_finished(stream).then_some(reset)
    }

    /// Why the peer takes no more of a stream whose FIN was not sent: STOP_SENDING, or the end of
    /// the lane.
    pub(crate) fn stopped(&self, stream: u64) -> Option<FlowError> {
        if !self.is_open() {
            return Some(FlowError::Internal);
        }
        let capacity = self.conn.borrow_mut().stream_capacity(stream);
        capacity.err().map(flow_error)
    }
}
