//! UDP flows of a client with several services, whose lane is played by the test.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use qmux_config::ProxyProtocolUdp;
use qmux_config::{ListenerProtocol, LocalPorts, LocalService, Ports, ProxyProtocol};
use qmux_proto::control::TrafficPorts;
use qmux_proto::datagram::Header;
use qmux_proto::{FlowError, Protocol};

use super::super::services::Services;
use super::super::services::answers::{LaneAnswers, Standing};
use super::super::services::proxy_header;
use super::super::services::tests::local;
use super::{ClientFlows, CoreFlows};
use crate::core::counters::CoreCounters;
use crate::flow::udp::UdpSettings;
use crate::flow::udp::fake::FakeLane;
use crate::flow::udp::tests::support::{receive, run, socket, until};
use crate::sys::udp::UdpSocket;

const LONG: Duration = Duration::from_secs(300);

struct World {
    lane: Rc<FakeLane>,
    flows: Rc<ClientFlows>,
    answers: Rc<LaneAnswers>,
    counters: Arc<CoreCounters>,
}

fn world(services: &[LocalService]) -> World {
    let services = Arc::new(Services::new(services));
    let counters = Arc::<CoreCounters>::default();
    let settings = UdpSettings {
        session_timeout: LONG,
        unanswered_timeout: LONG,
        fragmentation: true,
    };
    let core = CoreFlows::new(settings, 100, Arc::clone(&counters));
    let lane = FakeLane::new(1_150);
    let answers = Rc::<LaneAnswers>::default();
    World {
        flows: ClientFlows::new(Rc::clone(&lane), &core, &services, &answers),
        lane,
        answers,
        counters,
    }
}

impl World {
    /// The server sends the first datagram of a flow.
    fn introduce(&self, flow_id: u64, service: &str, traffic: Option<SocketAddr>, payload: &[u8]) {
        self.deliver(
            &Header::First {
                flow_id,
                visitor: visitor(),
                traffic,
                service,
            },
            payload,
        );
    }

    fn deliver(&self, header: &Header<'_>, payload: &[u8]) {
        let mut datagram = Vec::new();
        header.encode(&mut datagram);
        datagram.extend_from_slice(payload);
        self.flows.datagram(&datagram);
        self.flows.datagrams_done();
    }
}

fn visitor() -> SocketAddr {
    "192.0.2.1:1234".parse().expect("literal")
}

fn traffic(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 2], port))
}

fn at(name: &str, service: &UdpSocket) -> LocalService {
    let port = Ports::one(service.local_addr().port());
    local(name, LocalPorts::These(port), ListenerProtocol::Both)
}

async fn payloads(service: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let received = receive(service, count).await;
    received.into_iter().map(|(payload, _)| payload).collect()
}

#[test]
fn a_flow_goes_to_the_service_that_it_names() {
    run(async {
        let (dns, ntp, tcp) = (socket(), socket(), socket());
        let mut tcp = at("tcp", &tcp);
        tcp.protocol = ListenerProtocol::Tcp;
        let world = world(&[at("dns", &dns), at("ntp", &ntp), tcp]);
        world.introduce(1, "ntp", Some(traffic(123)), b"time?");
        world.introduce(2, "dns", Some(traffic(53)), b"name?");
        assert_eq!(payloads(&dns, 1).await, [b"name?"]);
        assert_eq!(payloads(&ntp, 1).await, [b"time?"]);
        for (flow, name) in [(3, "stranger"), (4, "tcp"), (5, "")] {
            world.introduce(flow, name, Some(traffic(1)), b"?");
            assert_eq!(world.lane.take_closed(), [(flow, FlowError::DialFailed)]);
        }
        assert_eq!(world.counters.udp_flows_unknown_service.get(), 3);
        assert_eq!(world.flows.flow_count(), 2);
    });
}

#[test]
fn a_flow_of_a_range_goes_to_the_port_of_its_position() {
    run(async {
        let service = socket();
        let position = 3;
        let low = service.local_addr().port() - position;
        let range = Ports::range(low, low + position).expect("a range");
        let ports = LocalPorts::These(range);
        let world = world(&[local("range", ports, ListenerProtocol::Udp)]);
        let there = TrafficPorts::new(20_000, range.count() + 1);
        let wanted = traffic(20_000 + position);
        world.introduce(1, "range", Some(wanted), b"too early");
        assert_eq!(world.counters.udp_dropped_before_answers.get(), 1);
        assert_eq!(world.lane.take_closed(), [], "the next one may be in time");
        world.answers.set(vec![Standing::Accepted(there)]);
        world.introduce(1, "range", Some(wanted), b"in time");
        assert_eq!(payloads(&service, 1).await, [b"in time"]);
        let beyond = traffic(20_000 + range.count());
        world.introduce(2, "range", Some(beyond), b"?");
        assert_eq!(world.lane.take_closed(), [(2, FlowError::DialFailed)]);
        assert_eq!(world.counters.udp_flows_without_port.get(), 1);
    });
}

#[test]
fn without_a_traffic_address_a_flow_goes_to_the_first_port() {
    run(async {
        let service = socket();
        let port = service.local_addr().port();
        let range = Ports::range(port, port.saturating_add(9)).expect("a range");
        let ports = LocalPorts::These(range);
        let world = world(&[local("", ports, ListenerProtocol::Udp)]);
        world.introduce(1, "", None, b"?");
        assert_eq!(payloads(&service, 1).await, [b"?"]);
    });
}

fn header(traffic: SocketAddr) -> Vec<u8> {
    proxy_header::of_visitor(ProxyProtocol::V2, Protocol::Udp, visitor(), traffic)
}

#[test]
fn a_proxy_header_stands_in_front_of_every_datagram_and_answers_are_plain() {
    run(async {
        let service = socket();
        let mut told = at("told", &service);
        told.proxy_protocol = ProxyProtocol::V2;
        let world = world(&[told]);
        world.introduce(1, "told", Some(traffic(53)), b"one");
        world.deliver(&Header::Whole { flow_id: 1 }, b"");
        world.deliver(&Header::Whole { flow_id: 1 }, b"three");
        let received = receive(&service, 3).await;
        for ((datagram, _), payload) in received.iter().zip([&b"one"[..], b"", b"three"]) {
            assert_eq!(*datagram, [&header(traffic(53)), payload].concat());
        }
        service
            .try_send(b"answer", 6, received[0].1, None)
            .expect("loopback takes it");
        until("the answer", || !world.lane.datagrams.borrow().is_empty()).await;
        let datagram = world.lane.take().remove(0);
        let (_, answer) = Header::decode(&datagram).expect("our own");
        assert_eq!(answer, b"answer");
        // Servers of older versions do not say which address the visitor sent to.
        world.introduce(2, "told", None, b"?");
        let unknown = proxy_header::unknown_traffic(visitor());
        let expected = [&header(unknown)[..], b"?"].concat();
        assert_eq!(payloads(&service, 1).await, [expected]);
    });
}

#[test]
fn a_proxy_header_may_stand_in_front_of_the_first_datagram_alone() {
    run(async {
        let service = socket();
        let mut told = at("told", &service);
        told.proxy_protocol = ProxyProtocol::V2;
        told.proxy_protocol_udp = ProxyProtocolUdp::First;
        let world = world(&[told]);
        world.introduce(1, "told", Some(traffic(53)), b"one");
        // The flow is introduced once more, because nothing came back; it is the same flow.
        world.introduce(1, "told", Some(traffic(53)), b"two");
        world.introduce(2, "told", Some(traffic(53)), b"another");
        let with_header = |payload: &[u8]| [&header(traffic(53)), payload].concat();
        assert_eq!(
            payloads(&service, 3).await,
            [
                with_header(b"one"),
                b"two".to_vec(),
                with_header(b"another")
            ]
        );
    });
}

#[test]
fn a_datagram_that_has_no_room_for_its_header_is_dropped_and_counted() {
    run(async {
        let service = socket();
        let mut told = at("told", &service);
        told.proxy_protocol = ProxyProtocol::V2;
        let world = world(&[told]);
        let room = 65_507 - header(traffic(53)).len();
        for (bytes, dropped) in [(room, 0), (room + 1, 1)] {
            let payload = vec![7; bytes];
            world.introduce(1, "told", Some(traffic(53)), &payload);
            assert_eq!(world.counters.udp_dropped_too_large.get(), dropped);
        }
        assert_eq!(payloads(&service, 1).await[0].len(), 65_507);
    });
}
