//! Cores that have more to do than they can: what they owe to time, to other cores and to others'
//! visitors comes first.
//!
//! Only the order of events is asserted: what must happen happens while the flood goes on.

use std::thread;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::flood::Flood;
use crate::support::http;
use crate::support::ports;
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// Heartbeats are frequent, and the patience is enough for a machine that is short of CPUs.
const ROLES_CLOCKS: [&str; 2] = ["heartbeat_interval = \"500ms\"", "health_timeout = \"20s\""];
const QUIC_CLOCKS: [&str; 2] = [
    "keep_alive_period = \"500ms\"",
    "max_idle_timeout = \"20s\"",
];

/// Turns of the core's own clock, of which there are two a second.
const BEATS: f64 = 6.0;

fn metric(tunnel_admin: std::net::SocketAddr, name: &str) -> f64 {
    http::metric(&http::get(tunnel_admin, "/metrics").body, name)
}

#[test]
fn a_flood_of_datagrams_stops_no_clock_of_the_core() {
    if subject::only_wire("a_flood_of_datagrams_stops_no_clock_of_the_core") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let admin = ports::free_address();
    let server = ServerSetup {
        admin: Some(admin),
        server: ROLES_CLOCKS
            .into_iter()
            .chain(["drain_timeout = \"2s\""])
            .collect(),
        quic: QUIC_CLOCKS.to_vec(),
        udp: vec!["session_timeout = \"1s\""],
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: ROLES_CLOCKS.to_vec(),
        quic: QUIC_CLOCKS.to_vec(),
        ..ClientSetup::default()
    };
    let mut tunnel = Tunnel::with(&server, &client, tcp.address);
    let mut lasting = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut lasting, b"before the flood");

    let flood = Flood::start(tunnel.traffic(), 2);
    UdpVisitor::new(tunnel.traffic()).send(b"a flow that falls silent");
    let beats = metric(admin, "qmux_dp_beats_total");
    wait::until_true("the core's clock goes on", || {
        assert_eq!(http::get(admin, "/healthz").status, 200);
        metric(admin, "qmux_dp_beats_total") >= beats + BEATS
    });
    wait::until_true("silent UDP flows expire", || {
        UdpVisitor::new(tunnel.traffic()).send(b"another one");
        metric(admin, "qmux_dp_udp_flows_expired_total") > 0.0
    });
    assert_eq!(
        metric(admin, "qmux_dp_lanes_ended_total"),
        0.0,
        "heartbeats"
    );
    visitor::exchange(&mut lasting, b"amid the flood");
    // The flow goes on, so the drain has to come to the end of its time.
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    assert!(flood.goes_on(), "all of this was amid the flood");
}

#[test]
fn a_flood_of_datagrams_for_another_core_takes_no_visitors_place() {
    let (tcp, _udp) = echo_both();
    let mut tunnel = with_one_lane(&tcp);
    // There are enough sockets that each core has some, and only one core has the lane.
    let flood = Flood::start(tunnel.traffic(), 16);
    // Several visitors come at a time: on a machine that is short of CPUs each waits for a turn of
    // many threads.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..8 {
                    visitor::echo(tunnel.traffic(), b"a visitor amid the flood");
                }
            });
        }
    });
    assert!(flood.goes_on());
    drop(flood);
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    if subject::only_wire("counters") {
        return;
    }
    let server = counters::of(&tunnel.server.program);
    let handed_over = counters::total(&server, "visitors_handed_over");
    assert!(handed_over > 0, "one lane cannot be on every core");
    assert_eq!(counters::total(&server, "visitors_handover_dropped"), 0);
    assert_eq!(counters::total(&server, "visitors_refused"), 0);
}

fn with_one_lane(tcp: &TcpService) -> Tunnel {
    let server = ServerSetup {
        cores: 4,
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: vec!["lanes = 1"],
        ..ClientSetup::default()
    };
    Tunnel::with(&server, &client, tcp.address)
}
