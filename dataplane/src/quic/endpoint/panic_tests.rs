//! What a panic costs: real lanes between two endpoints, and panics where and when a test wants
//! them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use qmux_config::Config;
use qmux_proto::{FlowError, LaneError};

use super::tests::{run, setup, until};
use super::{Endpoint, EndpointOwner};
use crate::buffer::{Datagram, StreamBuf};
use crate::core::panics::{injected, may_be_injected};
use crate::core::task::spawn_or;
use crate::quic::end::LaneEnd;
use crate::quic::lane::{Lane, LaneEvents, StreamRead, StreamWaiters};

/// Counts datagrams and echoes streams.
#[derive(Default)]
struct Handler {
    datagrams: Cell<usize>,
    end: RefCell<Option<LaneEnd>>,
}

impl LaneEvents for Handler {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        let cleans_up = Rc::clone(lane);
        spawn_or(echo(Rc::clone(lane), stream), move || {
            cleans_up.flow_panicked();
        });
    }

    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {
        may_be_injected("handler");
        self.datagrams.set(self.datagrams.get() + 1);
    }

    fn datagrams_done(&self, _lane: &Rc<Lane>) {}

    fn ended(&self, _lane: &Rc<Lane>, end: &LaneEnd) {
        *self.end.borrow_mut() = Some(end.clone());
    }
}

async fn echo(lane: Rc<Lane>, stream: u64) {
    let waiters = lane.attach(stream);
    let mut bytes = [0; 100];
    loop {
        match lane.read(stream, &mut bytes, &waiters) {
            StreamRead::Bytes(read, false) => {
                if &bytes[..read] == b"panic" {
                    may_be_injected("flow");
                }
                let sent = lane.write(stream, StreamBuf::copied(&bytes[..read]), false, &waiters);
                assert!(matches!(sent, Ok(None)), "room for a few bytes");
            }
            StreamRead::Blocked => waiters.readable.wait().await,
            StreamRead::Bytes(..) | StreamRead::Reset(_) => break,
        }
    }
    lane.detach(stream);
}

#[derive(Default)]
struct Owner {
    handlers: RefCell<Vec<Rc<Handler>>>,
}

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        let handler = Rc::<Handler>::default();
        lane.handle_events(Rc::clone(&handler) as _);
        self.handlers.borrow_mut().push(handler);
    }

    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<std::net::IpAddr>) -> bool {
        false
    }
}

/// A server with two lanes, each of a client endpoint of its own.
struct World {
    owner: Rc<Owner>,
    server: Rc<Endpoint>,
    clients: [Rc<Endpoint>; 2],
    lanes: [Rc<Lane>; 2],
}

impl World {
    async fn new(config: &Config) -> World {
        let owner = Rc::<Owner>::default();
        let server = Endpoint::start(setup(config, true), Some(Rc::clone(&owner) as _));
        let clients = [(); 2].map(|()| Endpoint::start(setup(config, false), None));
        let peer = server.socket.local_addr();
        let lanes = clients
            .each_ref()
            .map(|client| client.dial(peer, "localhost", 0, None).expect("dial"));
        for lane in &lanes {
            lane.handle_events(Rc::<Handler>::default());
            lane.established().await.expect("established");
        }
        until("the server's side", || {
            let lanes = server.lanes();
            lanes.len() == 2 && lanes.iter().all(|lane| lane.counted_opened.get())
        })
        .await;
        World {
            owner,
            server,
            clients,
            lanes,
        }
    }

    fn datagrams(&self) -> usize {
        let handlers = self.owner.handlers.borrow();
        handlers.iter().map(|handler| handler.datagrams.get()).sum()
    }

    fn ends(&self) -> Vec<LaneEnd> {
        let handlers = self.owner.handlers.borrow();
        let ends = handlers
            .iter()
            .filter_map(|handler| handler.end.borrow().clone());
        ends.collect()
    }

    /// Waits until exactly one lane of the server has ended, and checks that the other one serves.
    async fn one_lane_is_left(&self) {
        until("one lane to end", || self.server.lanes().len() == 1).await;
        assert_eq!(super::tests::places(&self.server), 1);
        assert_eq!(self.server.counters.lanes_opened.get(), 2);
        assert_eq!(self.server.counters.lanes_ended.get(), 1);
        let left = self.server.lanes()[0].key();
        let is_left = |lane: &Rc<Lane>| lane.key() == left;
        assert!(
            self.server.by_cid.borrow().values().all(is_left),
            "no id leads to it"
        );
        let before = self.datagrams();
        until("a datagram through the other lane", || {
            self.lanes.iter().for_each(send_datagram);
            self.datagrams() > before
        })
        .await;
    }
}

fn send_datagram(lane: &Rc<Lane>) {
    let mut datagram = Datagram::with_capacity(10);
    datagram.bytes_mut().resize(10, 7);
    let _gone = lane.send_datagram(datagram);
}

/// Sends `bytes` on a stream; returns the end of the answer.
async fn ask(lane: &Lane, stream: u64, waiters: &Rc<StreamWaiters>, bytes: &[u8]) -> StreamRead {
    let sent = lane.write(stream, StreamBuf::copied(bytes), false, waiters);
    assert!(matches!(sent, Ok(None)), "room for a few bytes");
    loop {
        match lane.read(stream, &mut [0; 100], waiters) {
            StreamRead::Blocked => waiters.readable.wait().await,
            read => return read,
        }
    }
}

#[test]
fn a_panic_amid_a_packet_costs_the_lane_and_nothing_else() {
    run(async |config| {
        let world = World::new(&config).await;
        injected::expect_at("server: packet");
        until("the panic", || {
            world.lanes.iter().for_each(send_datagram);
            injected::all_happened()
        })
        .await;
        world.one_lane_is_left().await;
        assert_eq!(world.ends(), [LaneEnd::Broken]);
        assert_eq!(world.server.counters.lanes_broken.get(), 1);
    });
}

#[test]
fn a_panic_in_a_lanes_handler_closes_that_lane_and_its_peer_is_told() {
    run(async |config| {
        let world = World::new(&config).await;
        injected::expect_at("handler");
        send_datagram(&world.lanes[0]);
        let end = world.lanes[0].ended().await;
        assert_eq!(
            end,
            LaneEnd::ClosedByPeer(LaneError::Internal, String::new())
        );
        world.one_lane_is_left().await;
        assert_eq!(world.ends(), [LaneEnd::ClosedByUs(LaneError::Internal)]);
        assert_eq!(world.server.counters.lanes_broken.get(), 0);
    });
}

#[test]
fn a_panic_in_a_flows_task_resets_that_flow_and_its_lane_carries_the_others_on() {
    run(async |config| {
        let world = World::new(&config).await;
        let lane = &world.lanes[0];
        let streams = [(); 2].map(|()| lane.open_stream().expect("a stream"));
        let waiters = streams.map(|stream| lane.attach(stream));
        for (stream, waiters) in streams.iter().zip(&waiters) {
            let answer = ask(lane, *stream, waiters, b"before").await;
            assert_eq!(answer, StreamRead::Bytes(6, false));
        }
        injected::expect_at("flow");
        let answer = ask(lane, streams[0], &waiters[0], b"panic").await;
        assert_eq!(answer, StreamRead::Reset(FlowError::Internal));
        let answer = ask(lane, streams[1], &waiters[1], b"after").await;
        assert_eq!(answer, StreamRead::Bytes(5, false));
        assert_eq!(world.server.lanes().len(), 2);
        assert_eq!(world.ends(), []);
    });
}

#[test]
fn a_panic_of_a_client_ends_its_lane_at_once_and_wakes_its_flows() {
    run(async |config| {
        let world = World::new(&config).await;
        // Only one lane is left that a packet may come for.
        world.lanes[1].close(LaneError::Shutdown, "");
        until("the other lane to be gone", || {
            world.server.lanes().len() == 1 && world.clients[1].lanes().is_empty()
        })
        .await;
        let stream = world.lanes[0].open_stream().expect("a stream");
        let waiters = world.lanes[0].attach(stream);
        let answer = ask(&world.lanes[0], stream, &waiters, b"before").await;
        assert_eq!(answer, StreamRead::Bytes(6, false));
        injected::expect_at("client: packet");
        let answer = ask(&world.lanes[0], stream, &waiters, b"after").await;
        assert_eq!(answer, StreamRead::Reset(FlowError::Internal));
        assert_eq!(world.lanes[0].ended().await, LaneEnd::Broken);
        assert!(world.clients[0].lanes().is_empty());
        // The connection is not used any more.
        assert!(!world.lanes[0].is_open());
        world.lanes[0].close(LaneError::Shutdown, "");
    });
}
