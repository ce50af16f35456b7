//! Either side may die or start late; visitors are served again without anybody's help.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::random::Random;
use crate::support::service::{TcpService, UdpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, Server, ServerSetup, Site, Tunnel,
    client_launch,
};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

fn server_that_notices_soon() -> ServerSetup {
    ServerSetup {
        server: ROLE_NOTICES_SOON.to_vec(),
        quic: QUIC_NOTICES_SOON.to_vec(),
        ..ServerSetup::default()
    }
}

fn client_that_notices_soon() -> ClientSetup {
    ClientSetup {
        client: ROLE_NOTICES_SOON.to_vec(),
        quic: QUIC_NOTICES_SOON.to_vec(),
        ..ClientSetup::default()
    }
}

#[test]
fn a_killed_server_that_comes_back_is_found_by_the_client() {
    let service = TcpService::echo();
    let mut tunnel = Tunnel::with(
        &server_that_notices_soon(),
        &client_that_notices_soon(),
        service.address,
    );
    let bytes = Random::new(1).bytes(200_000);
    for _ in 0..3 {
        visitor::echo(tunnel.traffic(), &bytes);
        tunnel.server.program.kill();
        tunnel.server.program.restart();
        let ready = tunnel.server.program.wait_until_ready();
        ready.expect("the server starts again on the same ports");
        visitor::wait_until_served(tunnel.traffic());
    }
    visitor::echo(tunnel.traffic(), &bytes);
    assert!(
        tunnel.client.exited().is_none(),
        "the client was not restarted"
    );
}

#[test]
fn udp_works_again_after_the_server_came_back() {
    let service = UdpService::echo();
    let mut tunnel = Tunnel::with(
        &server_that_notices_soon(),
        &client_that_notices_soon(),
        service.address,
    );
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(b"before");
    tunnel.server.program.kill();
    tunnel.server.program.restart();
    let ready = tunnel.server.program.wait_until_ready();
    ready.expect("the server starts again on the same ports");
    // The same visitor goes on as if nothing had happened.
    wait::until_true("the visitor is served", || visitor.echo_works(b"after"));
}

#[test]
fn a_killed_client_that_comes_back_under_its_name_replaces_the_dead_one() {
    let (tcp, _udp) = echo_both();
    let client = ClientSetup {
        client: vec!["client_id = \"one\""],
        ..ClientSetup::default()
    };
    let mut tunnel = Tunnel::with(&ServerSetup::default(), &client, tcp.address);
    let mut steady = UdpVisitor::new(tunnel.traffic());
    for _ in 0..3 {
        steady.echo(b"before");
        tunnel.client.kill();
        tunnel.client.restart();
        let ready = tunnel.client.wait_until_ready();
        ready.expect("it registers again");
        // The dead one is out of the way at once: no visitor is lost to it.
        for _ in 0..10 {
            visitor::echo(tunnel.traffic(), b"served");
            UdpVisitor::new(tunnel.traffic()).echo(b"served");
        }
        wait::until_true("the old UDP flow goes on", || steady.echo_works(b"after"));
    }
    assert!(tunnel.server.program.exited().is_none());
}

#[test]
fn a_killed_client_that_comes_back_under_another_name_serves_again() {
    let (tcp, _udp) = echo_both();
    let mut tunnel = Tunnel::with(
        &server_that_notices_soon(),
        &client_that_notices_soon(),
        tcp.address,
    );
    tunnel.client.kill();
    tunnel.client.restart();
    let ready = tunnel.client.wait_until_ready();
    ready.expect("it registers again");
    // Until the server has noticed that the first one is dead, visitors may be sent there.
    wait::until_true("20 visitors in a row are served", || {
        (0..20).all(|_| visitor::echo_works(tunnel.traffic()))
    });
    UdpVisitor::new(tunnel.traffic()).echo(b"served");
}

#[test]
fn a_killed_client_does_not_leave_visitors_hanging() {
    let service = TcpService::echo();
    let mut tunnel = Tunnel::with(
        &server_that_notices_soon(),
        &client_that_notices_soon(),
        service.address,
    );
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stream, b"served");
    tunnel.client.kill();
    // Its bytes may be lost with the client, so the end must not look clean.
    let ending = visitor::read_to_end(&mut stream);
    assert_eq!(ending, visitor::Ending::Reset(Vec::new()));
}

#[test]
fn a_killed_server_does_not_leave_the_service_hanging() {
    let (ended, endings) = std::sync::mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        let byte = visitor::read_exact(&mut stream, 1);
        stream.write_all(&byte).expect("sent");
        ended
            .send(visitor::read_to_end(&mut stream))
            .expect("the test waits");
    });
    let mut tunnel = Tunnel::with(
        &server_that_notices_soon(),
        &client_that_notices_soon(),
        service.address,
    );
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stream, b"x");
    tunnel.server.program.kill();
    let ending = endings.recv_timeout(wait::PATIENCE);
    let ending = ending.expect("the service notices");
    assert_eq!(ending, visitor::Ending::Reset(Vec::new()));
}

#[test]
fn a_client_that_starts_before_the_server_registers_later() {
    let service = TcpService::echo();
    let site = Site::new();
    // A server that is stopped again: its ports are then known to work.
    let setup = ServerSetup::default();
    let mut server = Server::start(&site, &setup);
    server.program.kill();
    let launch = client_launch(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    let client = launch.start();
    let tried = |line: &str| line.contains(&server.quic().to_string());
    client.wait_for_line("the server it cannot reach", tried);
    server.program.restart();
    server.program.wait_until_ready().expect("it starts again");
    client.wait_until_ready().expect("it registers");
    visitor::echo(server.traffic(), b"served after all");
}

/// The worst and the middle one of some times.
fn worst_and_median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() - 1], times[times.len() / 2])
}

/// Kills the server again and again while nothing passes, and measures how long visitors of the
/// next one wait. What is printed is shown by `--nocapture`.
fn idle_rounds(test: &str, server: &ServerSetup, client: &ClientSetup) {
    let rounds = subject::scale("QMUX_E2E_RESTARTS", 20);
    let service = TcpService::echo();
    let mut tunnel = Tunnel::with(server, client, service.address);
    visitor::wait_until_served(tunnel.traffic());
    let mut random = Random::new(1);
    let mut times = Vec::new();
    for _ in 0..rounds {
        // Not a wait: the client is idle for some time, so that the end comes anywhere between two
        // of its probes.
        let idle_ms = u64::try_from(random.between(0..=700)).expect("small");
        std::thread::sleep(Duration::from_millis(idle_ms));
        tunnel.server.program.kill();
        tunnel.server.program.restart();
        let ready = tunnel.server.program.wait_until_ready();
        ready.expect("the server starts again on the same ports");
        let since = Instant::now();
        visitor::wait_until_served(tunnel.traffic());
        times.push(since.elapsed());
    }
    let (worst, median) = worst_and_median(times);
    println!(
        "{test}: {rounds} rounds, from a server that is ready to a visitor who is served: worst {worst:.3?}, median {median:.3?}"
    );
    assert!(
        tunnel.client.exited().is_none(),
        "the client was not restarted"
    );
}

#[test]
fn an_idle_client_finds_a_server_that_was_killed_and_restarted() {
    if subject::only_wire("an_idle_client_finds_a_server") {
        return;
    }
    idle_rounds("one core", &ServerSetup::default(), &ClientSetup::default());
}

#[test]
fn an_idle_client_finds_a_server_of_several_cores_again() {
    if subject::only_wire("an_idle_client_finds_a_server_of_several_cores") {
        return;
    }
    let server = ServerSetup {
        cores: 2,
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        cores: 2,
        ..ClientSetup::default()
    };
    idle_rounds("two cores", &server, &client);
}

#[test]
fn a_client_outlives_a_server_that_drains_with_an_open_flow_and_serves_the_next_one() {
    if subject::only_wire("a_client_outlives_a_server_that_drains") {
        return;
    }
    let service = TcpService::echo();
    let server = ServerSetup {
        server: vec!["drain_timeout = \"10m\""],
        ..ServerSetup::default()
    };
    let mut tunnel = Tunnel::with(&server, &ClientSetup::default(), service.address);
    for _ in 0..2 {
        let mut open = visitor::connect(tunnel.traffic());
        visitor::exchange(&mut open, b"before");
        tunnel.server.program.signal(Signal::TERM);
        wait::until_true("new visitors are refused", || {
            !visitor::echo_works(tunnel.traffic())
        });
        visitor::exchange(&mut open, b"while it drains");
        visitor::finish(&open);
        let ending = visitor::read_to_end(&mut open);
        assert_eq!(ending, visitor::Ending::Clean(Vec::new()));
        assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
        tunnel.server.program.restart();
        let ready = tunnel.server.program.wait_until_ready();
        ready.expect("it starts again");
        visitor::wait_until_served(tunnel.traffic());
    }
    assert!(tunnel.client.exited().is_none());
}
