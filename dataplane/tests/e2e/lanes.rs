//! `lanes = "auto"`: as many lanes as they are needed for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::support::http;
use crate::support::ports;
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// Cores of the server; the client has one.
const SERVER_CORES: usize = 4;

/// Visitors who stay. Enough that each of four cores has some, but once in 10^5 runs.
const LASTING: usize = 40;

fn metric(admin: SocketAddr, name: &str) -> f64 {
    let metrics = http::get(admin, "/metrics").body;
    http::metric(&metrics, &format!("qmux_dp_{name}"))
}

fn wait_for(admin: SocketAddr, name: &str, value: f64) {
    wait::until_true(&format!("{name} is {value}"), || {
        metric(admin, name) == value
    });
}

/// Visitors come one after the other, as fast as they are served, until `done`.
fn while_visitors_come(traffic: SocketAddr, done: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    visitor::echo(traffic, b"one of many");
                }
            });
        }
        let _stops = StopOnDrop(&stop);
        done();
    });
}

/// Stops the visitors, even when a condition is waited for in vain.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn lanes_come_with_many_visitors_and_go_with_them_and_no_flow_is_cut() {
    if subject::only_wire("lanes_come_with_many_visitors_and_go_with_them_and_no_flow_is_cut") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        cores: SERVER_CORES,
        ..ServerSetup::default()
    };
    let admin = ports::free_address();
    let client = ClientSetup {
        // The first lane may be left for longer than this.
        client: vec![
            "heartbeat_interval = \"500ms\"",
            "health_timeout = \"30s\"",
            "drain_timeout = \"1s\"",
        ],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let mut tunnel = Tunnel::with(&server, &client, tcp.address);
    visitor::echo(tunnel.traffic(), b"the first one");
    assert_eq!(metric(admin, "client_lanes_wanted"), 1.0);
    assert_eq!(
        metric(admin, "client_lanes"),
        1.0,
        "as many as it has cores"
    );

    let (mut streams, mut udp) = (Vec::new(), Vec::new());
    while_visitors_come(tunnel.traffic(), || {
        wait_for(admin, "client_lanes", SERVER_CORES as f64);
        for _ in 0..LASTING {
            streams.push(visitor::connect(tunnel.traffic()));
            udp.push(UdpVisitor::new(tunnel.traffic()));
        }
        for (stream, udp) in streams.iter_mut().zip(&mut udp) {
            visitor::exchange(stream, b"while there are many lanes");
            udp.echo(b"while there are many lanes");
        }
    });

    wait_for(admin, "client_lanes_wanted", 1.0);
    wait_for(admin, "client_lanes", 1.0);
    assert_eq!(
        metric(admin, "lanes_grown_total"),
        metric(admin, "lanes_shrunk_total")
    );
    assert_eq!(
        metric(admin, "lanes_ended_total"),
        0.0,
        "all of them carry flows"
    );
    let beats = metric(admin, "heartbeats_received_total");
    wait::until_true("drain_timeout has passed", || {
        metric(admin, "heartbeats_received_total") >= beats + 8.0
    });
    for (stream, udp) in streams.iter_mut().zip(&mut udp) {
        visitor::exchange(stream, b"on lanes that are not wanted any more");
        udp.echo(b"on lanes that are not wanted any more");
    }
    assert_eq!(metric(admin, "lanes_ended_total"), 0.0, "none was cut");
    drop(streams);
    assert_eq!(metric(admin, "client_lanes"), 1.0);
    visitor::echo(tunnel.traffic(), b"the last one");
    for program in [&mut tunnel.server.program, &mut tunnel.client] {
        program.signal(Signal::TERM);
        assert_eq!(program.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn lanes_that_are_not_wanted_any_more_end_with_their_last_flow() {
    if subject::only_wire("lanes_that_are_not_wanted_any_more_end_with_their_last_flow") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        cores: SERVER_CORES,
        ..ServerSetup::default()
    };
    let admin = ports::free_address();
    let client = ClientSetup {
        client: vec!["heartbeat_interval = \"500ms\"", "health_timeout = \"30s\""],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, tcp.address);
    let mut streams = Vec::new();
    while_visitors_come(tunnel.traffic(), || {
        wait_for(admin, "client_lanes", SERVER_CORES as f64);
        streams.extend((0..LASTING).map(|_| visitor::connect(tunnel.traffic())));
        for stream in &mut streams {
            visitor::exchange(stream, b"while there are many lanes");
        }
    });
    wait_for(admin, "client_lanes", 1.0);
    assert_eq!(
        metric(admin, "lanes_ended_total"),
        0.0,
        "all of them carry flows"
    );
    drop(streams);
    wait_for(admin, "lanes_ended_total", (SERVER_CORES - 1) as f64);
    visitor::echo(tunnel.traffic(), b"on the lane that is left");
}

#[test]
fn a_fixed_number_of_lanes_stays_whatever_comes() {
    if subject::only_wire("a_fixed_number_of_lanes_stays_whatever_comes") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        cores: SERVER_CORES,
        admin: Some(ports::free_address()),
        ..ServerSetup::default()
    };
    let admin = ports::free_address();
    let client = ClientSetup {
        client: vec!["lanes = 2"],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let of_server = server.admin.expect("set");
    let tunnel = Tunnel::with(&server, &client, tcp.address);
    wait_for(admin, "client_lanes", 2.0);
    while_visitors_come(tunnel.traffic(), || {
        // These are more than would bring a lane for each core.
        wait::until_true("many are handed over", || {
            metric(of_server, "visitors_handed_over_total") >= 500.0
        });
    });
    assert_eq!(metric(admin, "client_lanes_wanted"), 2.0);
    assert_eq!(metric(admin, "client_lanes"), 2.0);
    assert_eq!(metric(admin, "lanes_grown_total"), 0.0);
}
