//! What the peer has done to a stream, found out without reading or writing it.
//!
//! quiche reports each stream as readable or writable once. So it does not report a RESET_STREAM
//! that comes while bytes wait to be read, or a STOP_SENDING while there is room: a flow that waits
//! for something else meanwhile must ask.

use qmux_proto::FlowError;

use super::Lane;
use super::streams::flow_error;

/// What is at the front of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFront {
    /// Bytes, or nothing yet.
    Open,
    /// The peer's FIN, with no unread bytes before it. It will not be reported again.
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
        // The stream is readable without bytes: a FIN or a reset.
        match conn.stream_recv(stream, &mut []) {
            Ok((_, true)) => StreamFront::Fin,
            Ok((_, false)) | Err(quiche::Error::Done) => StreamFront::Open,
            Err(error) => StreamFront::Reset(flow_error(error)),
        }
    }

    /// The peer's reset of a stream whose FIN had come before it, while bytes were unread. quiche
    /// drops these bytes, considers the stream finished and reports nothing, not even the code. To
    /// be asked when there is nothing to read of a stream whose FIN was not read.
    pub(super) fn reset_behind_fin(&self, stream: u64) -> Option<FlowError> {
        let conn = self.conn.borrow();
        let reset = if conn.is_server() {
            FlowError::ServiceReset
        } else {
            FlowError::VisitorReset
        };
        conn.stream_finished(stream).then_some(reset)
    }

    /// The reason why the peer takes no more of a stream whose FIN was not sent: STOP_SENDING, or
    /// the end of the lane.
    pub(crate) fn stopped(&self, stream: u64) -> Option<FlowError> {
        if !self.is_open() {
            return Some(FlowError::Internal);
        }
        let capacity = self.conn.borrow_mut().stream_capacity(stream);
        capacity.err().map(flow_error)
    }
}

#[cfg(test)]
mod tests {
    use qmux_config::Config;

    use super::super::{StreamRead, StreamRoom};
    use super::*;
    use crate::buffer::StreamBuf;
    use crate::quic::endpoint::tests::{Pair, run, until};

    /// A stream that the client has opened and written `abc` to, which has arrived.
    struct Stream {
        id: u64,
        lanes: Pair,
    }

    impl Stream {
        async fn opened(config: &Config, fin: bool) -> Stream {
            let lanes = Pair::connected(config).await;
            let client = &lanes.client_lane;
            let id = client.open_stream().expect("allowed");
            let waiters = client.attach(id);
            let rest = client.write(id, StreamBuf::copied(b"abc"), fin, &waiters);
            assert!(rest.expect("open").is_none());
            until("the bytes", || {
                let server = lanes.server_lane.conn.borrow();
                server.stream_readable_len(id, 3) == 3
            })
            .await;
            Stream { id, lanes }
        }

        fn client(&self) -> &Lane {
            &self.lanes.client_lane
        }

        fn server(&self) -> &Lane {
            &self.lanes.server_lane
        }
    }

    #[test]
    fn a_reset_is_found_while_bytes_are_unread() {
        run(async |config| {
            let stream = Stream::opened(&config, false).await;
            assert_eq!(stream.server().front(stream.id), StreamFront::Open);
            stream.client().reset(stream.id, FlowError::VisitorReset);
            let reset = StreamFront::Reset(FlowError::VisitorReset);
            until("the reset", || stream.server().front(stream.id) == reset).await;
        });
    }

    #[test]
    fn a_reset_behind_a_fin_is_found_while_bytes_are_unread() {
        run(async |config| {
            let stream = Stream::opened(&config, true).await;
            assert_eq!(stream.server().front(stream.id), StreamFront::Open);
            stream.client().reset(stream.id, FlowError::VisitorReset);
            // The code is lost. The side that has opened the stream is the far end.
            let reset = FlowError::ServiceReset;
            until("the reset", || {
                stream.server().front(stream.id) == StreamFront::Reset(reset)
            })
            .await;
            let waiters = stream.server().attach(stream.id);
            let read = stream.server().read(stream.id, &mut [0; 8], &waiters);
            assert_eq!(read, StreamRead::Reset(reset));
        });
    }

    #[test]
    fn a_fin_at_the_front_is_no_reset_and_is_given_once() {
        run(async |config| {
            let stream = Stream::opened(&config, false).await;
            let waiters = stream.server().attach(stream.id);
            let read = stream.server().read(stream.id, &mut [0; 8], &waiters);
            assert_eq!(read, StreamRead::Bytes(3, false));
            assert_eq!(stream.server().front(stream.id), StreamFront::Open);
            let waiters = stream.client().attach(stream.id);
            assert_eq!(stream.client().finish(stream.id, &waiters), Ok(true));
            until("the FIN", || {
                stream.server().front(stream.id) == StreamFront::Fin
            })
            .await;
        });
    }

    #[test]
    fn a_stop_is_found_while_there_is_room() {
        run(async |config| {
            let stream = Stream::opened(&config, false).await;
            let waiters = stream.client().attach(stream.id);
            let room = stream.client().room(stream.id, 1, &waiters);
            assert_eq!(room, StreamRoom::Bytes(1));
            assert_eq!(stream.client().stopped(stream.id), None);
            stream.server().stop(stream.id, FlowError::ServiceReset);
            let stopped = Some(FlowError::ServiceReset);
            until("the stop", || stream.client().stopped(stream.id) == stopped).await;
        });
    }
}
