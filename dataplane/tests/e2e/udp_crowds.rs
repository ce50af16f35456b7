//! UDP visitors beside strangers, beside a service that cannot be reached, and beside the end of
//! those who carry them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::service::{TcpService, UdpService, echo, echo_both};
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Server, ServerSetup, Site, Tunnel, client_launch, start_client,
};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// More strangers than the tunnel has room for, on either side, with what it is allowed here.
const STRANGERS: u16 = 20_000;

/// One datagram from each of many addresses.
fn flood(traffic: SocketAddr) {
    for stranger in 0..STRANGERS {
        let [high, low] = stranger.to_be_bytes();
        let source = Ipv4Addr::new(127, 77, high, low.max(1));
        let socket = UdpSocket::bind((source, 0)).expect("a free port of an address of its own");
        // A full buffer of the tunnel is its own matter.
        let _sent = socket.send_to(b"x", traffic);
    }
}

/// A service that answers strangers, or one that does not: then only longer datagrams are answered.
fn service(answers_strangers: bool) -> (TcpService, UdpService) {
    if answers_strangers {
        return echo_both();
    }
    loop {
        let tcp = TcpService::start(echo);
        if let Ok(socket) = UdpSocket::bind(tcp.address) {
            return (tcp, UdpService::echo_longer_than(socket, 1));
        }
    }
}

/// Honest visitors of both protocols, before, during and after the strangers.
fn strangers_shut_nobody_out(answers_strangers: bool, descriptors: usize) {
    let (_tcp, udp) = service(answers_strangers);
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let traffic = server.traffic();
    let mut client = client_launch(&site, &ClientSetup::default(), server.quic(), udp.address)
        .with_descriptors(descriptors)
        .start();
    client.wait_until_ready().expect("the client serves");

    let mut old = UdpVisitor::new(traffic);
    old.echo(b"first");
    old.echo(b"and again");
    let flooding = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            flood(traffic);
            flooding.store(false, Ordering::SeqCst);
        });
        while flooding.load(Ordering::SeqCst) {
            old.echo(b"during the flood");
            visitor::echo(traffic, b"TCP during the flood");
        }
    });
    for _ in 0..20 {
        UdpVisitor::new(traffic).echo(b"after the flood");
        visitor::echo(traffic, b"TCP after the flood");
    }
    old.echo(b"still the same");
    let opened = udp.sources();
    client.signal(Signal::TERM);
    assert_eq!(client.wait_for_exit().code(), Some(0));
    let counted = counters::of(&client);
    let total = |name: &str| counters::total(&counted, name);
    let dropped = total("udp_flows_evicted") + total("udp_dropped_opening");
    assert!(dropped > 0, "what did not find room is counted");
    assert_eq!(
        total("udp_dials_short"),
        0,
        "there is always a descriptor and a port"
    );
    assert_eq!(total("tcp_dials_failed"), 0);
    assert!(opened > 100, "{opened}");
}

#[test]
fn strangers_without_an_answer_shut_nobody_out() {
    if !subject::only_wire("strangers_without_an_answer") {
        strangers_shut_nobody_out(false, 4_096);
    }
}

#[test]
fn strangers_with_an_answer_shut_nobody_out() {
    if !subject::only_wire("strangers_with_an_answer") {
        strangers_shut_nobody_out(true, 4_096);
    }
}

#[test]
fn strangers_at_a_client_with_few_descriptors_shut_nobody_out() {
    if !subject::only_wire("strangers_at_a_client_with_few_descriptors") {
        strangers_shut_nobody_out(false, 1_024);
    }
}

/// A client of `server` whose service is at `address`.
fn client(site: &Site, name: &'static str, server: &Server, address: SocketAddr) -> Program {
    let setup = ClientSetup {
        name,
        ..ClientSetup::default()
    };
    start_client(site, &setup, server.quic(), address)
}

#[test]
fn whom_one_client_cannot_serve_another_one_does_with_the_same_datagram() {
    if subject::only_wire("whom_one_client_cannot_serve") {
        return;
    }
    let service = UdpService::echo();
    let site = Site::new();
    let setup = ServerSetup {
        server: vec!["load_balancer = \"least-connections\""],
        ..ServerSetup::default()
    };
    let mut server = Server::start(&site, &setup);
    let _bad = client(&site, "bad", &server, ports::free_address());
    let _good = client(&site, "good", &server, service.address);
    let mut visitors: Vec<UdpVisitor> =
        (0..40).map(|_| UdpVisitor::new(server.traffic())).collect();
    let mut repeated = 0;
    for visitor in &mut visitors {
        visitor.echo(b"once is enough");
        repeated += visitor.repeated;
    }
    assert!(repeated <= 4, "{repeated} datagrams were lost");
    server.program.signal(Signal::TERM);
    server.program.wait_for_exit();
    let counted = counters::of(&server.program);
    let failed_over = counters::total(&counted, "udp_flows_failed_over");
    assert!(failed_over >= 1, "nobody was sent to the bad one first");
    assert!(
        failed_over <= 10,
        "{failed_over}: it is not asked each time"
    );
}

#[test]
fn the_flows_of_a_client_that_is_stopped_go_on_at_another_one() {
    if subject::only_wire("the_flows_of_a_client_that_is_stopped") {
        return;
    }
    let service = UdpService::echo();
    let site = Site::new();
    let setup = ServerSetup {
        // Nothing but the silence of the lane tells.
        server: vec!["heartbeat_interval = \"10m\"", "health_timeout = \"20m\""],
        quic: vec!["max_idle_timeout = \"20m\""],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let clients = ["first", "second"].map(|name| {
        let setup = ClientSetup {
            name,
            client: setup.server.clone(),
            quic: setup.quic.clone(),
            ..ClientSetup::default()
        };
        start_client(&site, &setup, server.quic(), service.address)
    });
    // By turns to both.
    let mut visitors: Vec<UdpVisitor> = (0..4).map(|_| UdpVisitor::new(server.traffic())).collect();
    for visitor in &mut visitors {
        visitor.echo(b"before");
    }
    clients[0].signal(Signal::STOP);
    for visitor in &mut visitors {
        wait::until_true("the flow goes on elsewhere", || {
            visitor.echo_works(b"after")
        });
    }
    for _ in 0..4 {
        UdpVisitor::new(server.traffic()).echo(b"a new one");
    }
    clients[0].signal(Signal::CONT);
}

#[test]
fn new_visitors_are_served_while_a_server_drains() {
    if subject::only_wire("UDP visitors during a drain") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let setup = ServerSetup {
        server: vec!["drain_timeout = \"10m\""],
        ..ServerSetup::default()
    };
    let mut tunnel = Tunnel::with(&setup, &ClientSetup::default(), tcp.address);
    let mut stays = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stays, b"before");
    tunnel.server.program.signal(Signal::TERM);
    wait::until_true("new TCP visitors are refused", || {
        !visitor::echo_works(tunnel.traffic())
    });
    UdpVisitor::new(tunnel.traffic()).echo(b"while it drains");
    visitor::finish(&stays);
    drop(stays);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    let late = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    late.connect(tunnel.traffic()).expect("an address");
    wait::until_true("the kernel says that nobody listens", || {
        let sent = late.send(b"?");
        let heard = late.take_error().ok().flatten();
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        sent.as_ref().is_err_and(refused) || heard.as_ref().is_some_and(refused)
    });
}
