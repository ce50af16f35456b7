//! Strangers: whatever they send to a server's QUIC port, clients and visitors go on.

use std::net::{SocketAddr, UdpSocket};

use qmux_proto::control::{RefuseReason, RegisterOutcome};

use crate::support::certs::Identity;
use crate::support::first_packets::FirstPackets;
use crate::support::http;
use crate::support::ports;
use crate::support::quic_probe::{self, Probe};
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::visitor;
use crate::support::wait;

/// Lanes that one client may have: twice what it can be told to open.
const LANES_OF_CLIENT_MAX: usize = 512;

/// Refused clients for which a core waits until they have read why.
const REFUSED_LANES_MAX: usize = 64;

fn server_with_metrics(name: &'static str) -> (ServerSetup, SocketAddr) {
    let admin = ports::free_address();
    let setup = ServerSetup {
        name,
        admin: Some(admin),
        ..ServerSetup::default()
    };
    (setup, admin)
}

/// A counter of a program; zero if it does not have it.
fn counter(admin: SocketAddr, name: &str) -> u64 {
    let metrics = http::get(admin, "/metrics").body;
    let name = format!("qmux_dp_{name}_total");
    let lines = metrics.lines();
    let values = lines.filter(|line| line.split(['{', ' ']).next() == Some(&name));
    let values = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.map(|value| value as u64).sum()
}

fn client(name: &'static str) -> ClientSetup {
    ClientSetup {
        name,
        client: vec!["lanes = 1"],
        ..ClientSetup::default()
    }
}

#[test]
fn in_a_flood_of_garbage_strangers_must_prove_their_address_and_honest_clients_get_in() {
    if subject::only_wire("what is asked of strangers") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    let server = Server::start(&site, &setup);
    let service = TcpService::echo();
    let _early = start_client(&site, &client("early"), server.quic(), service.address);
    let flood = FirstPackets::of_garbage(server.quic());
    wait::until_true("strangers are asked for a proof of their address", || {
        counter(admin, "retries_sent") > 0
    });
    visitor::echo(server.traffic(), &[7; 100_000]);
    let _late = start_client(&site, &client("late"), server.quic(), service.address);
    for _ in 0..10 {
        visitor::echo(server.traffic(), &[8; 10_000]);
    }
    assert_eq!(counter(admin, "registrations_accepted"), 2);
    assert_eq!(counter(admin, "lanes_ended"), 0, "no lane has suffered");
    drop(flood);
    // What an Initial costs is a lane for as long as it takes to find that it is none, or an
    // answer.
    let lanes = counter(admin, "initials_invalid");
    let answers = counter(admin, "retries_sent");
    let packets = counter(admin, "quic_packets_received");
    assert!(lanes > 0 && lanes < packets, "{lanes} of {packets}");
    assert!(answers < packets, "{answers} of {packets}");
    assert_eq!(counter(admin, "handshakes_refused"), 0);
}

#[test]
fn one_address_that_begins_handshakes_without_end_keeps_nobody_else_out() {
    if subject::only_wire("what is refused to strangers") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    let server = Server::start(&site, &setup);
    let service = TcpService::echo();
    let _early = start_client(&site, &client("early"), server.quic(), service.address);
    let _flood = FirstPackets::of_half_open_handshakes(site.path().into(), server.quic());
    // It has as many places as it can get.
    wait::until_true("handshakes are refused", || {
        ["", "_network", "_rate"]
            .iter()
            .any(|why| counter(admin, &format!("handshakes_refused{why}")) > 0)
    });
    let _late = start_client(&site, &client("late"), server.quic(), service.address);
    for _ in 0..10 {
        visitor::echo(server.traffic(), &[8; 10_000]);
    }
    assert_eq!(counter(admin, "registrations_accepted"), 2);
    assert_eq!(counter(admin, "handshakes_refused"), 0, "there is room");
    assert_eq!(counter(admin, "lanes_ended"), 0, "no lane has suffered");
}

#[test]
fn no_other_server_with_the_same_key_can_be_made_to_reset_a_lane() {
    if subject::only_wire("stateless resets") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    let home = Server::start(
        &site,
        &ServerSetup {
            listeners: vec!["both", "both"],
            ..setup
        },
    );
    let (setup, replica_admin) = server_with_metrics("replica");
    let replica = Server::start(&site, &setup);
    let mut config = quic_probe::config(site.path(), Some(&Identity::client()));
    let mut lane = Probe::dial(home.quic(), &mut config);
    assert_eq!(lane.register("somebody", 1), RegisterOutcome::Accepted);
    let stranger = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    for (listener, admin) in [
        (home.listeners[1].quic, admin),
        (replica.quic(), replica_admin),
    ] {
        let before = counter(admin, "quic_packets_unknown");
        stranger
            .send_to(&lane.forged_packet(), listener)
            .expect("sent");
        wait::until_true("the packet arrives", || {
            counter(admin, "quic_packets_unknown") > before
        });
        assert_eq!(counter(admin, "stateless_resets_sent"), 0);
    }
}

#[test]
fn refused_clients_that_do_not_leave_are_kept_up_to_a_bound() {
    if subject::only_wire("what is refused to clients") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    let setup = ServerSetup {
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..setup
    };
    let server = Server::start(&site, &setup);
    let mut config = quic_probe::config(site.path(), None);
    let mut strangers: Vec<_> = (0..REFUSED_LANES_MAX + 16)
        .map(|_| Probe::dial(server.quic(), &mut config))
        .collect();
    for stranger in &mut strangers {
        stranger.challenge("stranger", 1);
    }
    for stranger in &mut strangers {
        stranger.send_answer(vec![0; 64]);
    }
    wait::until_true("all are refused", || {
        counter(admin, "registrations_refused") >= strangers.len() as u64
    });
    assert!(counter(admin, "refusals_cut_short") > 0);
}

#[test]
fn early_data_that_somebody_has_copied_registers_nobody() {
    if subject::only_wire("early data") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    let server = Server::start(&site, &setup);
    let mut config = quic_probe::config(site.path(), Some(&Identity::client()));
    config.enable_early_data();
    let mut first = Probe::dial(server.quic(), &mut config);
    assert_eq!(first.register("known", 1), RegisterOutcome::Accepted);
    let mut again = Probe::dial(server.quic(), &mut config);
    let flight = again.first_flight(&first.session(), "known", 1);
    let outcome = again.go_on(&flight, server.quic());
    assert_eq!(outcome, RegisterOutcome::Accepted, "who goes on is let in");
    assert_eq!(counter(admin, "early_data_accepted"), 1);

    let mut copied = Probe::dial(server.quic(), &mut config);
    let flight = copied.first_flight(&again.session(), "known", 1);
    let stranger = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    stranger
        .set_read_timeout(Some(wait::PATIENCE))
        .expect("set");
    for packet in &flight {
        stranger.send_to(packet, server.quic()).expect("sent");
    }
    stranger.recv(&mut [0; 1_500]).expect("the server answers");
    // What the copy could do is done by the time at which the next one is let in.
    let next = Probe::dial(server.quic(), &mut config).register("next", 2);
    assert_eq!(next, RegisterOutcome::Accepted);
    assert_eq!(counter(admin, "registrations_accepted"), 3);
}

#[test]
fn a_client_has_a_bounded_number_of_lanes() {
    if subject::only_wire("what is refused to clients") {
        return;
    }
    let site = Site::new();
    let (setup, admin) = server_with_metrics("server");
    // Nobody sends heartbeats here.
    let server = Server::start(
        &site,
        &ServerSetup {
            server: vec!["heartbeat_interval = \"60s\"", "health_timeout = \"300s\""],
            quic: vec!["keep_alive_period = \"60s\"", "max_idle_timeout = \"300s\""],
            ..setup
        },
    );
    let mut config = quic_probe::config(site.path(), Some(&Identity::client()));
    let mut lanes = Vec::new();
    for _ in 0..LANES_OF_CLIENT_MAX {
        let mut lane = Probe::dial(server.quic(), &mut config);
        assert_eq!(lane.register("somebody", 1), RegisterOutcome::Accepted);
        lanes.push(lane);
    }
    let one_too_many = Probe::dial(server.quic(), &mut config).register("somebody", 1);
    let RegisterOutcome::Refused { reason, text } = one_too_many else {
        panic!("it was let in");
    };
    assert_eq!(reason, RefuseReason::LimitReached, "{text}");
    assert_eq!(counter(admin, "registrations_limited"), 1);
    let another = Probe::dial(server.quic(), &mut config).register("another", 2);
    assert_eq!(another, RegisterOutcome::Accepted);
}
