//! Thread per core: visitors spread over all cores, and no flow crosses from one to another.

use std::io::Write as _;
use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::random::Random;
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;

/// So many visitors that the kernel's hash leaves no core of four without any: a core that gets
/// none of 400 by chance is one in 10^49.
const VISITORS: usize = 400;

fn tunnel(server: usize, client: usize, lanes: &'static str, tcp: &TcpService) -> Tunnel {
    let server = ServerSetup {
        cores: server,
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        cores: client,
        client: vec![lanes],
        ..ClientSetup::default()
    };
    Tunnel::with(&server, &client, tcp.address)
}

/// All of them are connected at the same time, and each is served.
fn serve_visitors(tunnel: &Tunnel) {
    let mut random = Random::new(1);
    let mut visitors: Vec<TcpStream> = (0..VISITORS)
        .map(|_| visitor::connect(tunnel.traffic()))
        .collect();
    for _ in 0..3 {
        for stream in &mut visitors {
            let length = random.between(1..=5_000);
            let bytes = random.bytes(length);
            stream.write_all(&bytes).expect("sent");
            let echo = visitor::read_exact(stream, length);
            assert!(echo == bytes, "wrong bytes");
        }
    }
}

fn serve_datagrams(tunnel: &Tunnel) {
    let mut random = Random::new(2);
    let mut visitors: Vec<UdpVisitor> = (0..100)
        .map(|_| UdpVisitor::new(tunnel.traffic()))
        .collect();
    for size in [10, 1_200, 20_000] {
        for visitor in &mut visitors {
            visitor.echo(&random.bytes(size));
        }
    }
}

/// Waits until `count` lanes are registered: only then has every core its own.
fn wait_for_lanes(tunnel: &Tunnel, count: usize) {
    tunnel
        .server
        .program
        .wait_for_lines("each lane registers", count, |line| {
            line.contains("lane") && line.contains("registered")
        });
}

#[test]
fn visitors_spread_over_all_cores_and_none_crosses() {
    let (tcp, _udp) = echo_both();
    let mut tunnel = tunnel(4, 4, "lanes = \"auto\"", &tcp);
    let counts = !subject::only_wire("counters");
    if counts {
        wait_for_lanes(&tunnel, 4);
    }
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
    for program in [&mut tunnel.server.program, &mut tunnel.client] {
        program.signal(Signal::TERM);
        assert_eq!(program.wait_for_exit().code(), Some(0));
    }
    if !counts {
        return;
    }
    let server = counters::of(&tunnel.server.program);
    assert_eq!(server.len(), 4, "a line of counters for each core");
    for (core, counters) in &server {
        assert!(
            counters.get("tcp_flows_opened") > 0,
            "no TCP on core {core}"
        );
        assert!(
            counters.get("udp_flows_opened") > 0,
            "no UDP on core {core}"
        );
        assert_eq!(counters.get("visitors_handed_over"), 0, "core {core}");
        assert_eq!(counters.get("quic_packets_handed_over"), 0, "core {core}");
    }
    assert_eq!(
        counters::total(&server, "visitors_accepted"),
        VISITORS as u64
    );
    assert_eq!(
        counters::total(&server, "tcp_flows_opened"),
        VISITORS as u64
    );
    let client = counters::of(&tunnel.client);
    assert_eq!(client.len(), 4, "a line of counters for each core");
    for (core, counters) in &client {
        assert!(
            counters.get("tcp_flows_opened") > 0,
            "no TCP on core {core}"
        );
    }
    assert_eq!(
        counters::total(&client, "tcp_flows_opened"),
        VISITORS as u64
    );
}

#[test]
fn a_client_with_one_core_serves_a_server_with_four() {
    let (tcp, _udp) = echo_both();
    let tunnel = tunnel(4, 1, "lanes = \"auto\"", &tcp);
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
}

#[test]
fn a_client_with_four_cores_serves_a_server_with_one() {
    let (tcp, _udp) = echo_both();
    let tunnel = tunnel(1, 4, "lanes = \"auto\"", &tcp);
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
}

#[test]
fn one_lane_serves_the_visitors_of_four_cores() {
    let (tcp, _udp) = echo_both();
    let mut tunnel = tunnel(4, 4, "lanes = 1", &tcp);
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    if subject::only_wire("counters") {
        return;
    }
    let server = counters::of(&tunnel.server.program);
    let handed_over = counters::total(&server, "visitors_handed_over");
    assert!(handed_over > 0, "one lane cannot be on every core");
    assert_eq!(counters::total(&server, "visitors_handover_dropped"), 0);
}

#[test]
fn more_cores_than_cpus_carry_traffic_in_both_roles() {
    let (tcp, _udp) = echo_both();
    let tunnel = tunnel(8, 8, "lanes = \"auto\"", &tcp);
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
}

#[test]
fn more_lanes_than_cores_are_fine() {
    let (tcp, _udp) = echo_both();
    let tunnel = tunnel(2, 2, "lanes = 7", &tcp);
    serve_visitors(&tunnel);
    serve_datagrams(&tunnel);
}
