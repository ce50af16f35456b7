//! What one listener takes, and that two listeners have nothing to do with each other.

use std::io::ErrorKind;

use crate::support::service::{TcpService, UdpService, echo_both};
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, Tunnel, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;

#[test]
fn both_protocols_share_one_listener() {
    let (tcp, udp) = echo_both();
    let tunnel = Tunnel::to(tcp.address);
    let mut datagrams = UdpVisitor::new(tunnel.traffic());
    for round in 0..20u8 {
        visitor::echo(tunnel.traffic(), &[round; 10_000]);
        datagrams.echo(&[round; 500]);
    }
    assert_eq!(tcp.accepted(), 20);
    assert_eq!(udp.sources(), 1);
}

#[test]
fn a_tcp_listener_takes_no_udp() {
    let (tcp, udp) = echo_both();
    let server = ServerSetup {
        listeners: vec!["tcp"],
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), tcp.address);
    visitor::echo(tunnel.traffic(), b"tcp");
    let mut datagrams = UdpVisitor::new(tunnel.traffic());
    // The port is closed, which the kernel tells at once.
    assert!(!datagrams.echo_works(b"udp"));
    assert_eq!(udp.received(), 0);
}

#[test]
fn a_udp_listener_takes_no_tcp() {
    let (tcp, udp) = echo_both();
    let server = ServerSetup {
        listeners: vec!["udp"],
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), udp.address);
    UdpVisitor::new(tunnel.traffic()).echo(b"udp");
    let error = visitor::try_connect(tunnel.traffic()).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(tcp.accepted(), 0);
}

#[test]
fn two_listeners_have_different_clients() {
    let (left, right) = (TcpService::says("left"), TcpService::says("right"));
    let site = Site::new();
    let setup = ServerSetup {
        listeners: vec!["tcp", "both"],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let client = |name, listener: usize, service: &TcpService| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(
            &site,
            &setup,
            server.listeners[listener].quic,
            service.address,
        )
    };
    let _left = client("left", 0, &left);
    let _right = client("right", 1, &right);
    for _ in 0..20 {
        for (listener, answer) in server.listeners.iter().zip(["left", "right"]) {
            let mut stream = visitor::connect(listener.traffic);
            visitor::finish(&stream);
            let ending = visitor::read_to_end(&mut stream);
            assert_eq!(ending, visitor::Ending::Clean(answer.into()));
        }
    }
}

#[test]
fn a_listener_without_clients_does_not_borrow_the_others() {
    let (tcp, _udp): (TcpService, UdpService) = echo_both();
    let site = Site::new();
    let setup = ServerSetup {
        listeners: vec!["both", "both"],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let quic = server.listeners[0].quic;
    let _client = start_client(&site, &ClientSetup::default(), quic, tcp.address);
    visitor::echo(server.listeners[0].traffic, b"served");
    let ending = visitor::ending_of(server.listeners[1].traffic, b"");
    assert_eq!(ending, visitor::Ending::Reset(Vec::new()));
    assert_eq!(tcp.accepted(), 1);
}
