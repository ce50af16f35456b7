//! Datagrams that quiche drops silently.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::tests::{run, setup, until};
use super::{Endpoint, EndpointOwner};
use crate::buffer::Datagram;
use crate::quic::lane::Lane;
use crate::quic::settings::DATAGRAM_RECEIVE_QUEUE;

/// An owner that reads nothing of what its lanes receive.
#[derive(Default)]
struct Deaf(RefCell<Vec<Rc<Lane>>>);

impl EndpointOwner for Deaf {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        self.0.borrow_mut().push(Rc::clone(lane));
    }

    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }
}

fn datagram() -> Datagram {
    let mut datagram = Datagram::with_capacity(1);
    datagram.bytes_mut().push(7);
    datagram
}

#[test]
fn datagrams_beyond_the_receive_queue_and_those_of_a_lane_that_ends_are_counted() {
    const SENT: usize = DATAGRAM_RECEIVE_QUEUE + 1_000;
    run(async |config| {
        let owner = Rc::new(Deaf::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.established().await.expect("established");
        let left = Cell::new(SENT);
        until("all are in the lane", || {
            while left.get() > 0 && lane.send_datagram(datagram()).is_ok() {
                left.set(left.get() - 1);
            }
            left.get() == 0
        })
        .await;
        let accepted = Rc::clone(&owner.0.borrow()[0]);
        until("each has arrived or is known to be lost", || {
            lane.count_datagrams();
            let arrived = accepted.conn.borrow().stats().dgram_recv as u64;
            arrived + client.counters.udp_datagrams_lost.get() >= SENT as u64
        })
        .await;
        accepted.count_datagrams();
        accepted.count_datagrams();
        let arrived = accepted.conn.borrow().stats().dgram_recv;
        let dropped = server.counters.udp_dropped_receive_queue.get();
        assert_eq!(dropped, (arrived - DATAGRAM_RECEIVE_QUEUE) as u64);
        assert_eq!(client.counters.udp_dropped_too_large.get(), 0);

        for _ in 0..5 {
            lane.send_datagram(datagram()).expect("there is room");
        }
        lane.close(qmux_proto::LaneError::Shutdown, "");
        until("the lane has ended", || lane.end().is_some()).await;
        assert_eq!(client.counters.udp_dropped_lane_ended.get(), 5);
    });
}
