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
    use std::cell::RefCell;
    use std::net::{IpAddr, SocketAddr};
    use std::rc::Rc;

    use qmux_config::Config;

    use super::super::{LaneEvents, StreamRead, StreamRoom};
    use super::*;
    use crate::buffer::StreamBuf;
    use crate::quic::end::LaneEnd;
    use crate::quic::endpoint::tests::{run, setup, until};
    use crate::quic::endpoint::{Endpoint, EndpointOwner};

    struct Nobody;

    impl LaneEvents for Nobody {
        fn stream_opened(&self, _: &Rc<Lane>, _: u64) {}
        fn datagram(&self, _: &Rc<Lane>, _: &[u8]) {}
        fn datagrams_done(&self, _: &Rc<Lane>) {}
        fn ended(&self, _: &Rc<Lane>, _: &LaneEnd) {}
    }

    /// Both ends of a lane, with a stream that the client has opened and written `abc` to.
    struct Joined {
        client: Rc<Lane>,
        server: Rc<Lane>,
        stream: u64,
        _endpoints: [Rc<Endpoint>; 2],
    }

    #[derive(Default)]
    struct Owner(RefCell<Option<Rc<Lane>>>);

    impl EndpointOwner for Owner {
        fn lane_accepted(&self, lane: &Rc<Lane>) {
            lane.handle_events(Rc::new(Nobody));
            *self.0.borrow_mut() = Some(Rc::clone(lane));
        }
        fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
            false
        }
    }

    async fn joined(config: &Config, fin: bool) -> Joined {
        let owner = Rc::new(Owner::default());
        let accepting = setup(config, true);
        let address = accepting.socket.local_addr();
        let accepts = Endpoint::start(accepting, Some(Rc::clone(&owner) as _));
        let dials = Endpoint::start(setup(config, false), None);
        let client = dials.dial(address, "localhost", 0, None).expect("dial");
        client.handle_events(Rc::new(Nobody));
        client.established().await.expect("established");
        let stream = client.open_stream().expect("allowed");
        let waiters = client.attach(stream);
        let rest = client.write(stream, StreamBuf::copied(b"abc"), fin, &waiters);
        assert!(rest.expect("open").is_none());
        let server = owner.0.borrow().clone().expect("accepted");
        until("the bytes", || {
            server.conn.borrow().stream_readable_len(stream, 3) == 3
        })
        .await;
        Joined {
            client,
            server,
            stream,
            _endpoints: [accepts, dials],
        }
    }

    #[test]
    fn a_reset_is_found_while_bytes_are_unread() {
        run(async |config| {
            let lanes = joined(&config, false).await;
            assert_eq!(lanes.server.front(lanes.stream), StreamFront::Open);
            lanes.client.reset(lanes.stream, FlowError::VisitorReset);
            let reset = StreamFront::Reset(FlowError::VisitorReset);
            until("the reset", || lanes.server.front(lanes.stream) == reset).await;
        });
    }

    #[test]
    fn a_reset_behind_a_fin_is_found_while_bytes_are_unread() {
        run(async |config| {
            let lanes = joined(&config, true).await;
            assert_eq!(lanes.server.front(lanes.stream), StreamFront::Open);
            lanes.client.reset(lanes.stream, FlowError::VisitorReset);
            // The code is lost. The side that has opened the stream is the far end.
            let reset = FlowError::ServiceReset;
            until("the reset", || {
                lanes.server.front(lanes.stream) == StreamFront::Reset(reset)
            })
            .await;
            let waiters = lanes.server.attach(lanes.stream);
            let read = lanes.server.read(lanes.stream, &mut [0; 8], &waiters);
            assert_eq!(read, StreamRead::Reset(reset));
        });
    }

    #[test]
    fn a_fin_at_the_front_is_no_reset_and_is_given_once() {
        run(async |config| {
            let lanes = joined(&config, false).await;
            let waiters = lanes.server.attach(lanes.stream);
            let read = lanes.server.read(lanes.stream, &mut [0; 8], &waiters);
            assert_eq!(read, StreamRead::Bytes(3, false));
            assert_eq!(lanes.server.front(lanes.stream), StreamFront::Open);
            let waiters = lanes.client.attach(lanes.stream);
            assert_eq!(lanes.client.finish(lanes.stream, &waiters), Ok(true));
            until("the FIN", || {
                lanes.server.front(lanes.stream) == StreamFront::Fin
            })
            .await;
        });
    }

    #[test]
    fn a_stop_is_found_while_there_is_room() {
        run(async |config| {
            let lanes = joined(&config, false).await;
            let waiters = lanes.client.attach(lanes.stream);
            let room = lanes.client.room(lanes.stream, 1, &waiters);
            assert_eq!(room, StreamRoom::Bytes(1));
            assert_eq!(lanes.client.stopped(lanes.stream), None);
            lanes.server.stop(lanes.stream, FlowError::ServiceReset);
            let stopped = Some(FlowError::ServiceReset);
            until("the stop", || lanes.client.stopped(lanes.stream) == stopped).await;
        });
    }
}
