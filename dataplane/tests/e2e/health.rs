//! A client tells whether it reaches its service, and visitors go where they can be served.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use rustix::process::Signal;

use crate::support::counters;
use crate::support::door::{Door, DoorSetup, Offering, Published, free_range, published};
use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::service::{self, TcpService, UdpService};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

const CHECKED: [&str; 2] = [
    "health_check_interval = \"100ms\"",
    "health_check_timeout = \"10s\"",
];

fn server(site: &Site) -> Server {
    let setup = ServerSetup {
        server: vec!["load_balancer = \"round-robin\""],
        ..ServerSetup::default()
    };
    Server::start(site, &setup)
}

fn client(
    site: &Site,
    name: &'static str,
    local: &[&'static str],
    server: &Server,
    service: SocketAddr,
) -> Program {
    let setup = ClientSetup {
        name,
        local: local.to_vec(),
        ..ClientSetup::default()
    };
    start_client(site, &setup, server.quic(), service)
}

fn wait_until_down(server: &Server, times: usize) {
    let down = |line: &str| line.contains("cannot reach its service");
    server
        .program
        .wait_for_lines("a service is down", times, down);
}

fn wait_until_up(server: &Server, times: usize) {
    let up = |line: &str| line.contains("reaches its service again");
    server.program.wait_for_lines("a service is up", times, up);
}

fn start_service(address: SocketAddr) -> TcpService {
    let listener = TcpListener::bind(address).expect("still free");
    TcpService::start_on(listener, service::echo)
}

fn count(server: &mut Server, name: &str) -> u64 {
    server.program.signal(Signal::TERM);
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    counters::total(&counters::of(&server.program), name)
}

#[test]
fn a_service_that_comes_back_serves_again() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let server = server(&site);
    let address = ports::free_address();
    let steady = TcpService::echo();
    let _first = client(&site, "first", &[], &server, address);
    let _second = client(&site, "second", &[], &server, steady.address);
    for _ in 0..3 {
        visitor::echo(server.traffic(), b"served by the second");
    }
    wait_until_down(&server, 1);
    let back = start_service(address);
    wait_until_up(&server, 1);
    // The check that found it was a connection, too; for the client it was one before this process
    // had taken it.
    wait::until_true("the check is accepted", || back.accepted() > 0);
    let before = back.accepted();
    for _ in 0..20 {
        visitor::echo(server.traffic(), b"served by turns");
    }
    assert_eq!(back.accepted(), before + 10);
}

#[test]
fn services_that_are_all_down_are_tried_all_the_same() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let server = server(&site);
    let addresses = [ports::free_address(), ports::free_address()];
    let _clients = [("first", 0), ("second", 1)]
        .map(|(name, index): (_, usize)| client(&site, name, &[], &server, addresses[index]));
    for _ in 0..3 {
        let ending = visitor::ending_of(server.traffic(), b"");
        assert_eq!(ending, Ending::Reset(Vec::new()));
    }
    wait_until_down(&server, 2);
    // Nobody waits for a check to find out: the first visitor does.
    let _back = start_service(addresses[1]);
    visitor::echo(server.traffic(), b"served at once");
}

#[test]
fn a_checked_service_is_known_to_be_down_before_any_visitor_comes() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let mut server = server(&site);
    let address = ports::free_address();
    let steady = TcpService::echo();
    let _first = client(&site, "first", &CHECKED, &server, address);
    let _second = client(&site, "second", &[], &server, steady.address);
    wait_until_down(&server, 1);
    for _ in 0..20 {
        visitor::echo(server.traffic(), b"served by the second");
    }
    assert_eq!(steady.accepted(), 20);
    let back = start_service(address);
    wait_until_up(&server, 1);
    drop(back);
    wait_until_down(&server, 2);
    for _ in 0..20 {
        visitor::echo(server.traffic(), b"served by the second");
    }
    assert_eq!(count(&mut server, "visitors_retried"), 0);
}

#[test]
fn a_lane_that_comes_later_tells_that_the_service_is_down() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let mut server = server(&site);
    let client = client(&site, "client", &CHECKED, &server, ports::free_address());
    wait_until_down(&server, 1);
    server.program.kill();
    server.program.restart();
    let ready = server.program.wait_until_ready();
    ready.expect("the server starts again on the same ports");
    wait_until_down(&server, 1);
    drop(client);
}

#[test]
fn udp_visitors_do_not_depend_on_a_tcp_service() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let server = server(&site);
    let udp = UdpService::echo();
    let _client = client(&site, "client", &CHECKED, &server, udp.address);
    wait_until_down(&server, 1);
    for _ in 0..5 {
        UdpVisitor::new(server.traffic()).echo(b"served");
    }
}

#[test]
fn a_udp_service_of_several_ports_is_not_down_because_nobody_listens_at_one_of_them() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![Published {
            name: "game",
            protocol: "udp",
            ports: 2,
        }],
        config: "required = true\n".into(),
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let closed = free_range(2);
    let open = SocketAddr::new(closed.ip(), closed.port() + 1);
    let _service = UdpService::echo_on(UdpSocket::bind(open).expect("still free"));
    let offering = Offering {
        name: "client",
        certificate: "client",
        token: None,
        services: vec![("game", "udp", closed, 2)],
        client: "",
    };
    let _client = offering.start(&site, door.quic[0]);
    http::wait_for(door.admin, "/readyz", 200);
    let first = door.traffic("game");
    wait::until_true("many are refused at the port where nobody listens", || {
        UdpVisitor::new(first).send(b"lost");
        let metrics = http::get(door.admin, "/metrics").body;
        http::metric(&metrics, "qmux_dp_udp_failovers_exhausted_total") >= 10.0
    });
    assert_eq!(http::get(door.admin, "/readyz").status, 200);
    UdpVisitor::new(SocketAddr::new(first.ip(), first.port() + 1)).echo(b"served");
}

#[test]
fn a_service_for_udp_alone_is_down_while_nobody_listens_and_up_when_it_answers() {
    if subject::only_wire("service health") {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![published("dns", "udp")],
        config: "required = true\n".into(),
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let address = ports::free_address();
    let offering = Offering {
        name: "client",
        certificate: "client",
        token: None,
        services: vec![("dns", "udp", address, 1)],
        client: "",
    };
    let (launch, admin) = (offering.launch(&site, door.quic[0]), ports::free_address());
    let config = site.path().join("client.toml");
    let text = std::fs::read_to_string(&config).expect("the config");
    site.write(
        "client.toml",
        &format!("{text}[admin]\nlisten = \"{admin}\"\n"),
    );
    let _client = launch.start();
    http::wait_for(door.admin, "/readyz", 200);
    wait::until_true("it is known at both ends that nobody listens", || {
        UdpVisitor::new(door.traffic("dns")).send(b"lost");
        http::get(door.admin, "/readyz").status == 503
            && http::get(admin, "/readyz?service=dns").status == 503
    });
    let _service = UdpService::echo_on(UdpSocket::bind(address).expect("still free"));
    let mut visitor = UdpVisitor::new(door.traffic("dns"));
    wait::until_true("the service answers", || visitor.echo_works(b"served"));
    http::wait_for(door.admin, "/readyz", 200);
    http::wait_for(admin, "/readyz?service=dns", 200);
}
