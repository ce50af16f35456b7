//! Visitor to service and back, through a lane whose two ends are joined in memory.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use qmux_proto::FlowError;
use qmux_proto::control::Message;
use qmux_proto::datagram::Header;

use super::super::UdpSettings;
use super::super::client::ClientFlows;
use super::super::fake::FakeLane;
use super::super::server::{ForwardedUdp, LaneFlows, RouteUdp, TrafficSocket, UdpRoute};
use super::support::{assert_payloads, payload, receive, run, socket, std_socket, until};
use crate::metrics::CoreCounters;
use crate::sys::udp::{ReceiveBatch, UdpSocket};

const LONG: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_millis(200);

fn settings(session_timeout: Duration) -> UdpSettings {
    UdpSettings {
        session_timeout,
        fragmentation: true,
    }
}

/// Routes to the lane that is set, and counts tickets.
#[derive(Default)]
struct Router {
    lane: RefCell<Option<Rc<LaneFlows>>>,
    tickets: Rc<Cell<usize>>,
    routed: Cell<usize>,
}

struct Ticket(Rc<Cell<usize>>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl RouteUdp for Router {
    fn route(&self, _visitor: SocketAddr) -> Option<UdpRoute> {
        self.routed.set(self.routed.get() + 1);
        let lane = self.lane.borrow().clone()?;
        self.tickets.set(self.tickets.get() + 1);
        Some(UdpRoute::Local {
            lane,
            ticket: Box::new(Ticket(Rc::clone(&self.tickets))),
        })
    }

    fn forward(&self, _core: usize, _packet: ForwardedUdp) -> bool {
        panic!("there is one core");
    }
}

/// A lane with both its ends.
struct Joined {
    server_end: Rc<FakeLane>,
    client_end: Rc<FakeLane>,
    server: Rc<LaneFlows>,
    client: Rc<ClientFlows>,
    counters: Arc<CoreCounters>,
}

struct World {
    traffic: Rc<TrafficSocket>,
    addr: SocketAddr,
    router: Rc<Router>,
    counters: Arc<CoreCounters>,
}

impl World {
    fn new(session_timeout: Duration) -> World {
        let counters = Arc::new(CoreCounters::default());
        let router = Rc::new(Router::default());
        let socket = socket();
        let addr = socket.local_addr();
        let traffic = TrafficSocket::start(
            socket,
            0,
            settings(session_timeout),
            Rc::clone(&router) as Rc<dyn RouteUdp>,
            Arc::clone(&counters),
        );
        World {
            traffic,
            addr,
            router,
            counters,
        }
    }

    /// Joins a client and routes new visitors to it.
    fn join(&self, service: SocketAddr, session_timeout: Duration) -> Joined {
        let server_end = FakeLane::new(1_150);
        let client_end = FakeLane::new(1_150);
        let counters = Arc::new(CoreCounters::default());
        let client = ClientFlows::new(
            Rc::clone(&client_end),
            Rc::new(move || Some(service)),
            settings(session_timeout),
            Arc::clone(&counters),
        );
        let server = self.traffic.attach_lane(Rc::clone(&server_end));
        *self.router.lane.borrow_mut() = Some(Rc::clone(&server));
        Joined {
            server_end,
            client_end,
            server,
            client,
            counters,
        }
    }

    /// Sends one datagram of a visitor.
    fn visit(&self, visitor: &UdpSocket, payload: &[u8]) {
        visitor
            .try_send(payload, payload.len(), self.addr, None)
            .expect("loopback takes it");
    }
}

impl Joined {
    /// Carries what was sent at one end to the other; true if that was something.
    fn carry(&self) -> bool {
        let to_client = self.server_end.take();
        let to_server = self.client_end.take();
        for datagram in &to_client {
            self.client.datagram(datagram);
        }
        for datagram in &to_server {
            self.server.datagram(datagram);
        }
        self.client.datagrams_done();
        self.server.datagrams_done();
        let closed_by_server = self.server_end.take_closed();
        let closed_by_client = self.client_end.take_closed();
        for (flow_id, reason) in &closed_by_server {
            self.client.flow_closed(*flow_id, *reason);
        }
        for (flow_id, reason) in &closed_by_client {
            self.server.flow_closed(*flow_id, *reason);
        }
        !(to_client.is_empty()
            && to_server.is_empty()
            && closed_by_client.is_empty()
            && closed_by_server.is_empty())
    }

    /// Carries until `condition` holds.
    async fn carry_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        until(what, || {
            self.carry();
            condition()
        })
        .await;
    }

    /// Receives `count` datagrams at `socket` while the lane carries.
    async fn receive(&self, socket: &UdpSocket, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
        let mut batch = ReceiveBatch::new();
        let mut received = Vec::new();
        self.carry_until("datagrams through the lane", || {
            while socket.try_receive(&mut batch).is_ok() {
                batch.for_each(|datagram| received.push((datagram.data.to_vec(), datagram.from)));
            }
            received.len() >= count
        })
        .await;
        received
    }

    /// Sends one datagram there and back, and returns who the service saw.
    async fn echo(&self, world: &World, visitor: &UdpSocket, service: &UdpSocket) -> SocketAddr {
        world.visit(visitor, b"ping");
        let (request, peer) = self.receive(service, 1).await.remove(0);
        assert_eq!(request, b"ping");
        service.try_send(b"pong", 4, peer, None).expect("loopback");
        let (reply, from) = self.receive(visitor, 1).await.remove(0);
        assert_eq!((&reply[..], from), (&b"pong"[..], world.addr));
        peer
    }
}

#[test]
fn payloads_of_all_sizes_pass_both_ways() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let sizes = [0, 1, 1_130, 1_150, 1_151, 9_000, 65_507, 0, 40_000, 2];
        let sent: Vec<_> = (0..)
            .zip(sizes)
            .map(|(n, bytes)| payload(n, bytes))
            .collect();
        for payload in &sent {
            world.visit(&visitor, payload);
        }
        let received = lane.receive(&service, sent.len()).await;
        assert_payloads(&received, &sent);
        let flow = received[0].1;
        assert!(received.iter().all(|(_, from)| *from == flow));
        for payload in sent.iter().rev() {
            service
                .try_send(payload, payload.len(), flow, None)
                .expect("loopback");
        }
        let back: Vec<_> = sent.iter().rev().cloned().collect();
        let received = lane.receive(&visitor, sent.len()).await;
        assert_payloads(&received, &back);
        assert!(received.iter().all(|(_, from)| *from == world.addr));

        assert_eq!(world.counters.udp_flows_opened.get(), 1);
        assert_eq!(lane.counters.udp_flows_opened.get(), 1);
        for counters in [&world.counters, &lane.counters] {
            let bytes: usize = sizes.iter().sum();
            assert_eq!(counters.udp_datagrams_in.get(), 10);
            assert_eq!(counters.udp_datagrams_out.get(), 10);
            assert_eq!(counters.udp_bytes_in.get(), bytes as u64);
            assert_eq!(counters.udp_bytes_out.get(), bytes as u64);
            assert_eq!(
                counters.udp_datagrams_reassembled.get(),
                counters.udp_datagrams_fragmented.get()
            );
            assert!(counters.udp_datagrams_fragmented.get() >= 4);
            counters.for_each(|name, _, value| {
                assert!(!name.contains("dropped") || value == 0, "{name} is {value}");
            });
        }
    });
}

#[test]
fn each_visitor_has_a_flow_of_its_own() {
    run(async {
        let service = socket();
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let visitors: Vec<_> = (0..20).map(|_| socket()).collect();
        let mut peers = Vec::new();
        for visitor in &visitors {
            peers.push(lane.echo(&world, visitor, &service).await);
        }
        for (visitor, peer) in visitors.iter().zip(&peers) {
            assert_eq!(lane.echo(&world, visitor, &service).await, *peer);
        }
        peers.sort();
        peers.dedup();
        assert_eq!(peers.len(), 20);
        assert_eq!(
            (world.traffic.flow_count(), lane.client.flow_count()),
            (20, 20)
        );
        assert_eq!(world.router.tickets.get(), 20);
    });
}

#[test]
fn a_flow_is_introduced_until_the_peer_has_shown_that_it_knows_it() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let kind = async |world: &World| {
            world.visit(&visitor, b"?");
            until("a datagram in the lane", || {
                !lane.server_end.datagrams.borrow().is_empty()
            })
            .await;
            let datagrams = lane.server_end.datagrams.borrow();
            let (header, _) = Header::decode(&datagrams[0]).expect("our own");
            header.introduction().map(|(visitor, _)| visitor)
        };
        for _ in 0..3 {
            assert_eq!(kind(&world).await, Some(visitor.local_addr()));
            lane.receive(&service, 1).await;
        }
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(kind(&world).await, None);
        lane.receive(&service, 1).await;
    });
}

#[test]
fn a_flow_that_the_client_has_lost_is_introduced_again() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        // The client's side of it ends without the server hearing of it.
        lane.client.flow_closed(0, FlowError::NoError);
        assert_eq!(lane.client.flow_count(), 0);
        world.visit(&visitor, b"lost");
        lane.carry_until("the client says so", || {
            lane.counters.udp_dropped_unknown_flow.get() == 1
        })
        .await;
        lane.carry();
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.counters.udp_flows_opened.get(), 1, "the same flow");
        assert_eq!(world.counters.udp_flows_ended.get(), 0);
        assert_eq!(lane.counters.udp_flows_opened.get(), 2);
    });
}

#[test]
fn idle_flows_expire_on_both_sides() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(SHORT);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.router.tickets.get(), 1);
        lane.carry_until("the server's timeout ends both", || {
            world.traffic.flow_count() == 0 && lane.client.flow_count() == 0
        })
        .await;
        assert_eq!(world.router.tickets.get(), 0);
        assert_eq!(world.counters.udp_flows_expired.get(), 1);
        assert_eq!(lane.counters.udp_flows_expired.get(), 0);

        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), SHORT);
        lane.echo(&world, &visitor, &service).await;
        lane.carry_until("the client's timeout ends both", || {
            world.traffic.flow_count() == 0 && lane.client.flow_count() == 0
        })
        .await;
        assert_eq!(world.counters.udp_flows_expired.get(), 0);
        assert_eq!(lane.counters.udp_flows_expired.get(), 1);
        for counters in [&world.counters, &lane.counters] {
            assert_eq!(
                counters.udp_flows_opened.get(),
                counters.udp_flows_ended.get()
            );
        }
        lane.echo(&world, &visitor, &service).await;
    });
}

#[test]
fn a_visitor_whose_lane_ended_is_routed_anew() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let first = world.join(service.local_addr(), LONG);
        first.echo(&world, &visitor, &service).await;
        let second = world.join(service.local_addr(), LONG);
        first.echo(&world, &visitor, &service).await;
        assert_eq!(second.server.flow_count(), 0, "the flow stays where it is");
        first.server.lane_ended();
        first.client.lane_ended();
        assert_eq!(first.client.flow_count(), 0);
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (0, 0)
        );
        assert!(first.client_end.take_closed().is_empty());
        second.echo(&world, &visitor, &service).await;
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (1, 1)
        );
    });
}

#[test]
fn visitors_without_a_client_are_dropped_and_counted() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        world.visit(&visitor, b"nobody");
        until("it is counted", || {
            world.counters.udp_dropped_no_client.get() == 1
        })
        .await;
        let lane = world.join(service.local_addr(), LONG);
        lane.server.lane_ended();
        world.visit(&visitor, b"a route to a lane that has ended");
        until("it is counted", || {
            world.counters.udp_dropped_no_client.get() == 2
        })
        .await;
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (0, 0)
        );
    });
}

#[test]
fn a_stopped_socket_serves_its_flows_and_takes_no_new_ones() {
    run(async {
        let (visitor, newcomer, service) = (socket(), socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        world.traffic.stop();
        lane.echo(&world, &visitor, &service).await;
        world.visit(&newcomer, b"too late");
        until("it is counted", || {
            world.counters.udp_dropped_no_client.get() == 1
        })
        .await;
        assert_eq!(world.traffic.flow_count(), 1);

        world.traffic.close();
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (0, 0)
        );
        assert_eq!(lane.server_end.take_closed(), [(0, FlowError::Draining)]);
        until("the tasks let go", || Rc::strong_count(&world.router) == 1).await;
    });
}

#[test]
fn a_client_that_shuts_down_ends_the_flows_and_says_so() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        lane.client.shutdown();
        assert_eq!(lane.client.flow_count(), 0);
        lane.carry();
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (0, 0)
        );
        until("the tasks let go", || Rc::strong_count(&lane.client) == 1).await;
    });
}

#[test]
fn a_service_that_comes_back_finds_its_flows() {
    run(async {
        let visitor = socket();
        let place = std_socket();
        let addr = place.local_addr().expect("bound");
        drop(place);
        let world = World::new(LONG);
        let lane = world.join(addr, LONG);
        for round in 0..3 {
            world.visit(&visitor, b"is anybody there?");
            lane.carry_until("it bounced", || {
                lane.counters.udp_dropped_socket_error.get() > round
            })
            .await;
        }
        assert_eq!(
            (world.traffic.flow_count(), lane.client.flow_count()),
            (1, 1)
        );
        let service =
            super::support::adopt(std::net::UdpSocket::bind(addr).expect("the port is free again"));
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.counters.udp_flows_opened.get(), 1);
    });
}

#[test]
fn a_service_without_an_address_refuses_the_flow() {
    run(async {
        let visitor = socket();
        let world = World::new(LONG);
        let mut lane = world.join(world.addr, LONG);
        lane.client = ClientFlows::new(
            Rc::clone(&lane.client_end),
            Rc::new(|| None),
            settings(LONG),
            Arc::clone(&lane.counters),
        );
        world.visit(&visitor, b"hello");
        lane.carry_until("it is refused", || {
            lane.counters.udp_dropped_socket_error.get() == 1
        })
        .await;
        lane.carry();
        assert_eq!(
            (world.traffic.flow_count(), world.router.tickets.get()),
            (0, 0)
        );
    });
}

#[test]
fn a_lane_cannot_use_the_flows_of_another() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let theirs = world.join(service.local_addr(), LONG);
        theirs.echo(&world, &visitor, &service).await;
        let intruder = world.join(service.local_addr(), LONG);
        let mut datagram = Vec::new();
        Header::Whole { flow_id: 0 }.encode(&mut datagram);
        intruder.server.datagram(&datagram);
        intruder.server.datagram(&datagram);
        intruder.server.flow_closed(0, FlowError::NoError);
        intruder.server.flow_closed(0, FlowError::UnknownFlow);
        intruder.server.datagrams_done();
        assert_eq!(world.counters.udp_dropped_unknown_flow.get(), 2);
        assert_eq!(
            intruder.server_end.take_closed(),
            [(0, FlowError::UnknownFlow)],
            "told once in a turn"
        );
        assert_eq!(world.traffic.flow_count(), 1);
        assert!(visitor.try_receive(&mut ReceiveBatch::new()).is_err());
    });
}

#[test]
fn datagrams_that_make_no_sense_are_dropped_and_counted() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        let mut introduction = Vec::new();
        let first = Header::First {
            flow_id: 0,
            visitor: visitor.local_addr(),
            service: "",
        };
        first.encode(&mut introduction);
        // A client does not introduce flows.
        lane.server.datagram(&introduction);
        for broken in [&[][..], &[0xc0][..], &[0x02, 0x00, 0x05, 0x03][..]] {
            lane.server.datagram(broken);
            lane.client.datagram(broken);
        }
        // Two fragments of one packet that contradict each other.
        for count in [3, 4] {
            let mut datagram = Vec::new();
            let header = Header::Fragment {
                flow_id: 0,
                packet_id: 9,
                index: count - 3,
                count,
            };
            header.encode(&mut datagram);
            datagram.extend_from_slice(b"part");
            lane.server.datagram(&datagram);
        }
        lane.server.datagrams_done();
        lane.client.datagrams_done();
        assert_eq!(world.counters.udp_dropped_malformed.get(), 5);
        assert_eq!(lane.counters.udp_dropped_malformed.get(), 3);
        assert_eq!(world.counters.udp_dropped_incomplete.get(), 1);
        lane.echo(&world, &visitor, &service).await;
    });
}

#[test]
fn a_fragment_that_is_lost_costs_its_packet_alone() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        for (number, bytes) in [3_000, 5_000, 4_000].into_iter().enumerate() {
            world.visit(&visitor, &payload(number, bytes));
        }
        until("all are in the lane", || {
            lane.server_end.datagrams.borrow().len() >= 12
        })
        .await;
        // The second packet loses a part; the rest arrives backwards.
        let mut datagrams = lane.server_end.take();
        datagrams.remove(4);
        for datagram in datagrams.iter().rev() {
            lane.client.datagram(datagram);
        }
        lane.client.datagrams_done();
        let received = receive(&service, 2).await;
        assert_payloads(&received, &[payload(2, 4_000), payload(0, 3_000)]);
        lane.client.flow_closed(0, FlowError::NoError);
        lane.client.datagrams_done();
        assert_eq!(lane.counters.udp_dropped_incomplete.get(), 1);
        assert_eq!(lane.counters.udp_datagrams_reassembled.get(), 2);
    });
}

#[test]
fn notices_beyond_their_bound_are_left_out() {
    run(async {
        let world = World::new(LONG);
        let lane = world.join(world.addr, LONG);
        for flow_id in 0..5_000 {
            let mut datagram = Vec::new();
            Header::Whole { flow_id }.encode(&mut datagram);
            lane.client.datagram(&datagram);
            lane.client.datagrams_done();
        }
        let told = lane.client_end.control.borrow().len();
        assert!((1..=1_024).contains(&told), "told {told} times");
        assert_eq!(lane.counters.udp_dropped_unknown_flow.get(), 5_000);
        let all_closed = lane
            .client_end
            .control
            .borrow()
            .iter()
            .all(|message| matches!(message, Message::FlowClosed(_)));
        assert!(all_closed);
    });
}
