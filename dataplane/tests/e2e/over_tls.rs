//! Lanes over TLS: where UDP does not pass, visitors are served nevertheless.

use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, UdpService};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::two_ways::TwoWays;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::{counters, visitor};

const WHY: &str = "only qmux-dp speaks TLS";

/// A tunnel to a TCP service and a UDP service, each behind a client of its own.
struct Both {
    site: Site,
    server: Server,
    path: TwoWays,
    tcp: TcpService,
    udp: UdpService,
}

impl Both {
    fn new(server: &ServerSetup) -> Self {
        let site = Site::new();
        let server = Server::start(&site, server);
        let path = TwoWays::to(server.quic());
        Self {
            path,
            server,
            site,
            tcp: TcpService::echo(),
            udp: UdpService::echo(),
        }
    }
}

fn two_listeners() -> ServerSetup {
    ServerSetup {
        listeners: vec!["both"],
        ..ServerSetup::default()
    }
}

fn over(transport: &'static str, cores: usize) -> ClientSetup {
    ClientSetup {
        server: vec![transport],
        cores,
        ..ClientSetup::default()
    }
}

fn assert_carries_bytes(server: &Server) {
    let mut random = Random::new(11);
    for length in [1, 1_200, 16_384, 65_536, 5_000_003] {
        visitor::echo(server.traffic(), &random.bytes(length));
    }
}

fn assert_carries_datagrams(server: &Server) {
    let mut random = Random::new(12);
    let mut visitor = UdpVisitor::new(server.traffic());
    for size in [0, 1, 100, 1_200, 1_472, 9_000, 16_384, 65_507] {
        visitor.echo(&random.bytes(size));
    }
}

fn stop(program: &mut Program, name: &str) -> u64 {
    program.signal(rustix::process::Signal::TERM);
    program.wait_for_exit();
    counters::total(&counters::of(program), name)
}

#[test]
fn every_byte_and_datagram_passes_over_tls_alone() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut both = Both::new(&two_listeners());
    both.path.limit_udp(0, 0);
    let setup = over("transport = \"tls\"", 1);
    let client = start_client(&both.site, &setup, both.path.address, both.tcp.address);
    assert_carries_bytes(&both.server);
    drop(client);
    let mut client = start_client(&both.site, &setup, both.path.address, both.udp.address);
    assert_carries_datagrams(&both.server);
    assert_eq!(both.path.swallowed(), 0, "UDP was not even tried");
    assert!(stop(&mut client, "tls_connections_opened") > 0);
    assert!(stop(&mut both.server.program, "tls_connections_opened") > 0);
}

#[test]
fn each_lane_over_tls_comes_to_the_core_that_it_is_for() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut both = Both::new(&ServerSetup {
        cores: 3,
        ..two_listeners()
    });
    let setup = ClientSetup {
        client: vec!["lanes = 3"],
        ..over("transport = \"tls\"", 2)
    };
    let client = start_client(&both.site, &setup, both.path.address, both.tcp.address);
    // However the kernel spreads them, each lane's connection is brought to its core.
    client.wait_for_line("the third lane", |line| {
        line.contains("lane registered") && line.contains("lane=2")
    });
    for _ in 0..10 {
        visitor::echo(both.server.traffic(), &Random::new(3).bytes(100_000));
    }
    let counters = {
        let program = &mut both.server.program;
        program.signal(rustix::process::Signal::TERM);
        program.wait_for_exit();
        counters::of(program)
    };
    assert_eq!(counters.len(), 3);
    for core in counters.values() {
        assert!(core.get("lanes_opened") > 0);
    }
    assert_eq!(counters::total(&counters, "tls_packets_astray"), 0);
}

#[test]
fn where_udp_is_dropped_from_the_start_a_client_comes_over_tls_by_itself() {
    if subject::only_wire(WHY) {
        return;
    }
    for (forth, back) in [(0, 0), (usize::MAX, 0), (0, usize::MAX), (1_000, 1_000)] {
        let both = Both::new(&two_listeners());
        both.path.limit_udp(forth, back);
        let setup = ClientSetup::default();
        let client = start_client(&both.site, &setup, both.path.address, both.tcp.address);
        assert_carries_bytes(&both.server);
        assert!(both.path.connections() > 0 && both.path.swallowed() > 0);
        drop(client);
    }
}

#[test]
fn where_udp_passes_no_tls_is_dialled() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut both = Both::new(&two_listeners());
    let setup = ClientSetup::default();
    let client = start_client(&both.site, &setup, both.path.address, both.tcp.address);
    assert_carries_bytes(&both.server);
    assert_eq!(both.path.connections(), 0);
    drop(client);
    assert_eq!(stop(&mut both.server.program, "tls_accepted"), 0);
}

#[test]
fn a_client_for_quic_alone_and_a_server_without_tls_never_speak_it() {
    if subject::only_wire(WHY) {
        return;
    }
    let both = Both::new(&ServerSetup {
        server: vec!["tls_fallback = false"],
        ..two_listeners()
    });
    both.path.limit_udp(0, 0);
    let launch = |setup: &ClientSetup| {
        crate::support::tunnel::client_launch(
            &both.site,
            setup,
            both.path.address,
            both.tcp.address,
        )
    };
    let quic = launch(&over("transport = \"quic\"", 1)).start();
    quic.wait_for_line("no handshake", |line| line.contains("cannot connect"));
    assert_eq!(both.path.connections(), 0);
    drop(quic);
    let auto = launch(&ClientSetup::default()).start();
    // It says both: the relay cannot connect to the server's port either.
    auto.wait_for_line("both transports", |line| {
        line.contains("not over TLS either")
    });
}
