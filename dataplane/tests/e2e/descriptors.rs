//! A process that has no file descriptor left: what is open goes on, and nobody else is to blame.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::support::http;
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Listener, Server, ServerSetup, Site, client_launch, start_client,
};
use crate::support::visitor;
use crate::support::wait;

/// File descriptors of a process under test. Half of them are reserved.
const DESCRIPTORS: usize = 128;

/// Visitors that are more than such a process can have.
const VISITORS: usize = DESCRIPTORS;

/// Visitors who come one after the other and stay. Returns those who were served, and how many were
/// reset.
fn crowd(traffic: SocketAddr) -> (Vec<TcpStream>, usize) {
    let (mut served, mut reset) = (Vec::new(), 0);
    for _ in 0..VISITORS {
        match served_once(traffic) {
            Some(stream) => served.push(stream),
            None => reset += 1,
        }
    }
    (served, reset)
}

/// A visitor of an echo service; `None` if it was reset. Panics if it waits in vain.
fn served_once(traffic: SocketAddr) -> Option<TcpStream> {
    let mut stream = visitor::try_connect(traffic).ok()?;
    let mut answer = [0; 5];
    let exchanged = stream
        .write_all(b"hello")
        .and_then(|()| stream.read_exact(&mut answer));
    match exchanged {
        Ok(()) => Some(stream),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("a visitor got neither an answer nor a reset")
        }
        Err(_) => None,
    }
}

fn assert_alive(visitors: &mut [TcpStream]) {
    for stream in visitors {
        visitor::exchange(stream, b"still here");
    }
}

fn start_limited_server(site: &Site, setup: &ServerSetup) -> Server {
    let listeners = vec![Listener::free(false)];
    let launch = Server::launch(site, setup, &listeners).with_descriptors(DESCRIPTORS);
    let program = launch.start();
    program.wait_until_ready().expect("the server serves");
    Server { program, listeners }
}

#[test]
fn a_server_without_descriptors_resets_visitors_and_keeps_some_for_its_admin_endpoint() {
    if subject::only_wire("a_server_without_descriptors") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let admin = ports::free_address();
    let setup = ServerSetup {
        admin: Some(admin),
        ..ServerSetup::default()
    };
    let server = start_limited_server(&site, &setup);
    let _client = start_client(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    let (mut served, reset) = crowd(server.traffic());
    assert!(!served.is_empty() && reset > 0, "{} served", served.len());
    let metrics = http::get(admin, "/metrics").body;
    let refused = http::metric(&metrics, "qmux_dp_visitors_refused_descriptors_total");
    assert_eq!(refused, reset as f64);
    assert_alive(&mut served);
    drop(served);
    visitor::wait_until_served(server.traffic());
}

#[test]
fn a_client_without_descriptors_refuses_flows_and_does_not_take_its_service_for_down() {
    if subject::only_wire("a_client_without_descriptors") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let admin = ports::free_address();
    let server = Server::start(&site, &ServerSetup::default());
    let setup = ClientSetup {
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let launch = client_launch(&site, &setup, server.quic(), service.address);
    let client = launch.with_descriptors(DESCRIPTORS).start();
    client.wait_until_ready().expect("the client serves");
    let (mut served, reset) = crowd(server.traffic());
    assert!(!served.is_empty() && reset > 0, "{} served", served.len());
    let metrics = http::get(admin, "/metrics").body;
    let refused = http::metric(&metrics, "qmux_dp_tcp_dials_refused_own_limits_total");
    assert_eq!(refused, reset as f64);
    assert_eq!(
        http::metric(&metrics, "qmux_dp_tcp_dials_failed_total"),
        0.0
    );
    let log = client.stderr();
    assert!(!log.contains("cannot be reached"), "{log}");
    assert_alive(&mut served);
    drop(served);
    visitor::wait_until_served(server.traffic());
}

#[test]
fn a_check_for_which_there_is_no_descriptor_does_not_take_the_service_for_down() {
    if subject::only_wire("a_check_for_which_there_is_no_descriptor") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let admin = ports::free_address();
    let server = Server::start(&site, &ServerSetup::default());
    let setup = ClientSetup {
        admin: Some(admin),
        local: vec!["health_check_interval = \"100ms\""],
        ..ClientSetup::default()
    };
    let launch = client_launch(&site, &setup, server.quic(), service.address);
    let client = launch.with_descriptors(DESCRIPTORS).start();
    client.wait_until_ready().expect("the client serves");
    let (mut served, _) = crowd(server.traffic());
    let counted = |name: &str| {
        let metrics = http::get(admin, "/metrics").body;
        http::metric(&metrics, &format!("qmux_dp_{name}_total"))
    };
    wait::until_true("some checks are not made", || {
        counted("service_checks_not_made") >= 5.0
    });
    assert_eq!(counted("service_checks_failed"), 0.0);
    let log = client.stderr();
    assert!(!log.contains("cannot be reached"), "{log}");
    assert_alive(&mut served);
}

#[test]
fn what_a_client_has_no_descriptor_for_another_client_serves() {
    if subject::only_wire("what_a_client_has_no_descriptor_for") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let poor = ClientSetup {
        name: "poor",
        ..ClientSetup::default()
    };
    let rich = ClientSetup {
        name: "rich",
        ..ClientSetup::default()
    };
    let _rich = start_client(&site, &rich, server.quic(), service.address);
    let launch = client_launch(&site, &poor, server.quic(), service.address);
    let poor = launch.with_descriptors(DESCRIPTORS).start();
    poor.wait_until_ready().expect("the client serves");
    let (served, reset) = crowd(server.traffic());
    let log = poor.stderr();
    assert!(log.contains("flow refused"), "the poor one ran out:\n{log}");
    assert_eq!((served.len(), reset), (VISITORS, 0));
}
