//! Whatever dies is noticed soon: visitors go elsewhere or are refused, long before a timeout of
//! half a minute ends the lane. All timeouts are at their defaults here, and the order of events
//! says what came first.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use rustix::process::Signal;

use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::switched_path::SwitchedPath;
use crate::support::tunnel::{
    ClientSetup, Server, ServerSetup, Site, Tunnel, client_launch, start_client,
};
use crate::support::visitor::{self, Ending};
use crate::support::wait;

const ROUND_ROBIN: &str = "load_balancer = \"round-robin\"";

/// Whether this line of a log says that a timeout has ended a lane, because its peer is dead.
fn by_timeout(line: &str) -> bool {
    line.contains("client down") || line.contains("server down")
}

fn no_lane_has_ended(program: &Program) {
    let lines = program.lines();
    let ended = lines.iter().find(|line| by_timeout(line));
    assert!(ended.is_none(), "the lane's end came first: {ended:?}");
}

fn metric(admin: SocketAddr, name: &str) -> f64 {
    let metrics = http::get(admin, "/metrics").body;
    http::metric(&metrics, &format!("qmux_dp_{name}_total"))
}

/// Checks that this many visitors at the same time each get their echo.
fn all_are_served(address: SocketAddr, visitors: usize) {
    thread::scope(|scope| {
        for _ in 0..visitors {
            scope.spawn(|| visitor::echo(address, b"is anybody there?"));
        }
    });
}

/// A server, two clients with an echo service each.
fn two_clients(site: &Site) -> (Server, [Program; 2], [TcpService; 2]) {
    let setup = ServerSetup {
        server: vec![ROUND_ROBIN],
        ..ServerSetup::default()
    };
    let server = Server::start(site, &setup);
    let services = [TcpService::echo(), TcpService::echo()];
    let clients = [("first", 0), ("second", 1)].map(|(name, service): (_, usize)| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(site, &setup, server.quic(), services[service].address)
    });
    (server, clients, services)
}

#[test]
fn visitors_of_a_client_that_was_killed_or_stopped_are_served_by_the_other_one() {
    if subject::only_wire("silence of clients") {
        return;
    }
    for kills in [true, false] {
        let site = Site::new();
        let (server, mut clients, services) = two_clients(&site);
        all_are_served(server.traffic(), 4);
        let before = services[1].accepted();
        if kills {
            clients[0].kill();
        } else {
            clients[0].signal(Signal::STOP);
        }
        all_are_served(server.traffic(), 20);
        assert!(services[1].accepted() >= before + 20);
        no_lane_has_ended(&server.program);
    }
}

#[test]
fn a_visitor_of_the_only_client_is_refused_before_the_lane_of_the_dead_client_ends() {
    if subject::only_wire("silence of clients") {
        return;
    }
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    visitor::echo(tunnel.traffic(), b"served");
    tunnel.client.signal(Signal::STOP);
    for request in [&b"is anybody there?"[..], b""] {
        let ending = visitor::ending_of(tunnel.traffic(), request);
        assert_eq!(ending, Ending::Reset(Vec::new()));
    }
    no_lane_has_ended(&tunnel.server.program);
    // It was merely stopped: it serves as soon as it goes on.
    tunnel.client.signal(Signal::CONT);
    visitor::wait_until_served(tunnel.traffic());
}

/// A tunnel whose client dials through a path with switches.
struct Switched {
    client: Program,
    client_admin: SocketAddr,
    path: SwitchedPath,
    server: Server,
    service: TcpService,
    site: Site,
}

impl Switched {
    fn start(lanes: &'static str) -> Self {
        Self::start_with(lanes, Vec::new())
    }

    /// A tunnel with these lines in the client's `[quic]`.
    fn start_with(lanes: &'static str, quic: Vec<&'static str>) -> Self {
        let site = Site::new();
        let service = TcpService::echo();
        let server = Server::start(&site, &ServerSetup::default());
        let path = SwitchedPath::to(server.quic());
        let client_admin = ports::free_address();
        let setup = ClientSetup {
            client: vec![lanes],
            quic,
            admin: Some(client_admin),
            ..ClientSetup::default()
        };
        let client = client_launch(&site, &setup, path.address, service.address).start();
        let lanes: usize = lanes
            .rsplit(' ')
            .next()
            .expect("a number")
            .parse()
            .expect("one");
        client.wait_for_lines("its lanes", lanes, |line| line.contains("lane registered"));
        Self {
            client,
            client_admin,
            path,
            server,
            service,
            site,
        }
    }

    /// A visitor with a flow that lasts.
    fn stay(&self) -> TcpStream {
        let mut stream = visitor::connect(self.server.traffic());
        visitor::exchange(&mut stream, b"a flow that lasts");
        stream
    }
}

#[test]
fn a_lane_that_is_silent_while_another_is_not_costs_no_visitor() {
    if subject::only_wire("silence of lanes") {
        return;
    }
    let tunnel = Switched::start("lanes = 2");
    all_are_served(tunnel.server.traffic(), 4);
    tunnel.path.break_one(0);
    for _ in 0..3 {
        all_are_served(tunnel.server.traffic(), 20);
    }
    no_lane_has_ended(&tunnel.server.program);
    no_lane_has_ended(&tunnel.client);
    assert_eq!(tunnel.service.accepted(), 64);
}

#[test]
fn a_flow_outlives_a_path_that_is_broken_for_longer_than_two_seconds() {
    if subject::only_wire("dialling beside a lane") {
        return;
    }
    let tunnel = Switched::start("lanes = 1");
    let mut stream = tunnel.stay();
    for _ in 0..2 {
        tunnel.path.break_all(true);
        let before = metric(tunnel.client_admin, "lanes_dialed_beside");
        wait::until_true("another lane is dialled", || {
            metric(tunnel.client_admin, "lanes_dialed_beside") > before
        });
        tunnel.path.break_all(false);
        visitor::exchange(&mut stream, b"the flow goes on");
        visitor::wait_until_served(tunnel.server.traffic());
    }
    visitor::finish(&stream);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

#[test]
fn a_restarted_server_is_dialled_at_once_although_a_lane_dialled_beside_waits_for_an_answer() {
    if subject::only_wire("dialling beside a lane") {
        return;
    }
    // The lane dialled beside gives up after the test's patience.
    let quic = vec![
        "handshake_idle_timeout = \"5m\"",
        "max_idle_timeout = \"5m\"",
    ];
    let mut tunnel = Switched::start_with("lanes = 1", quic);
    tunnel.path.break_all(true);
    wait::until_true("another lane is dialled", || tunnel.path.senders() >= 2);
    tunnel.server.program.kill();
    tunnel.server.program.restart();
    let ready = tunnel.server.program.wait_until_ready();
    ready.expect("the server is back");
    // What the second lane says is still swallowed; the first one learns that it is unknown.
    tunnel.path.mend_one(0);
    visitor::wait_until_served(tunnel.server.traffic());
    assert!(tunnel.path.senders() >= 3);
    let lines = tunnel.client.lines();
    let waited = lines.iter().any(|line| line.contains("in vain"));
    assert!(!waited, "the second lane was waited for");
}

#[test]
fn a_new_server_behind_the_same_address_is_found_while_the_old_lane_is_thought_to_live() {
    if subject::only_wire("dialling beside a lane") {
        return;
    }
    let tunnel = Switched::start("lanes = 2");
    let setup = ServerSetup {
        name: "another",
        ..ServerSetup::default()
    };
    let another = Server::start(&tunnel.site, &setup);
    tunnel.path.redirect(another.quic());
    let taken = |line: &str| line.contains("another one, dialled from a new port");
    tunnel
        .client
        .wait_for_lines("both lanes are taken over", 2, taken);
    visitor::wait_until_served(another.traffic());
    no_lane_has_ended(&tunnel.client);
    assert!(tunnel.path.senders() >= 4);
}
