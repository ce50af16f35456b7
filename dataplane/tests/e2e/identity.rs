//! One client id, two programs: a successor takes over at once, a twin is told that it is one.

use std::io::Write as _;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// Starts a client, and waits until it has both of its lanes.
fn twin(site: &Site, name: &'static str, server: &Server, service: &TcpService) -> Program {
    let setup = ClientSetup {
        name,
        client: vec!["client_id = \"shared\"", "lanes = 2"],
        ..ClientSetup::default()
    };
    let client = start_client(site, &setup, server.quic(), service.address);
    client.wait_for_lines("both lanes", 2, |line| line.contains("lane registered"));
    client
}

fn says_what_to_do(line: &str) -> bool {
    line.contains("ERROR") && line.contains("give each client its own client_id")
}

#[test]
fn of_two_living_clients_with_one_id_the_later_serves_and_the_earlier_is_told() {
    if subject::only_wire("what is logged about a shared client_id") {
        return;
    }
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    let services = [TcpService::echo(), TcpService::echo()];
    let earlier = twin(&site, "earlier", &server, &services[0]);
    visitor::echo(server.traffic(), b"served by the earlier");
    let mut later = twin(&site, "later", &server, &services[1]);
    let told = earlier.wait_for_line("an error that says what to do", says_what_to_do);
    assert!(
        told.contains("127.0.0.1:"),
        "without the other's address: {told}"
    );
    // Each lane has tried more than once, so they do not take turns.
    let refused = |line: &str| line.contains("a newer client with this client_id");
    earlier.wait_for_lines("several refusals", 4, refused);
    let before = services[0].accepted();
    for _ in 0..20 {
        visitor::echo(server.traffic(), b"served by the later");
    }
    assert_eq!(services[0].accepted(), before);
    assert_eq!(services[1].accepted(), 20);
    let lost = |line: &str| line.contains("lane ended");
    let lines = later.lines();
    assert!(
        !lines.iter().any(|line| lost(line)),
        "the later one was driven out"
    );
    let warned = |line: &str| line.contains("two clients use one client_id");
    server.program.wait_for_line("a warning", warned);
    let mut warnings = server.program.lines();
    warnings.retain(|line| warned(line));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].matches("127.0.0.1:").count(), 2, "{warnings:?}");

    // The later one goes: the earlier one may serve again.
    later.signal(Signal::TERM);
    assert_eq!(later.wait_for_exit().code(), Some(0));
    visitor::wait_until_served(server.traffic());
    assert!(services[0].accepted() > before);
    server.program.signal(Signal::TERM);
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    let counters = counters::of(&server.program);
    assert!(counters::total(&counters, "registrations_duplicate") >= 4);
}

#[test]
fn a_successor_does_not_cut_off_what_its_predecessor_finishes() {
    if subject::only_wire("a drain beside a successor") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let services = [TcpService::echo(), TcpService::echo()];
    let mut old = twin(&site, "old", &server, &services[0]);
    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"a flow that lasts");
    old.signal(Signal::TERM);
    let drains = |line: &str| line.contains("no new flow goes to this lane");
    // Both lanes of the client.
    server
        .program
        .wait_for_lines("the old one drains", 2, drains);
    let _new = twin(&site, "new", &server, &services[1]);
    visitor::echo(server.traffic(), b"served by the new one");
    assert_eq!(services[1].accepted(), 1);
    stream.write_all(b"still there?").expect("sent");
    assert_eq!(visitor::read_exact(&mut stream, 12), b"still there?");
    visitor::finish(&stream);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    assert_eq!(old.wait_for_exit().code(), Some(0));
    wait::until_true("only the new one serves", || {
        visitor::echo_works(server.traffic())
    });
}

#[test]
fn the_flows_of_a_living_client_go_on_when_another_takes_its_id() {
    if subject::only_wire("what happens to flows of a client whose id another takes") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let services = [TcpService::echo(), TcpService::echo()];
    let earlier = twin(&site, "earlier", &server, &services[0]);
    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"a flow that lasts");
    let _later = twin(&site, "later", &server, &services[1]);
    earlier.wait_for_line("an error that says what to do", says_what_to_do);
    visitor::echo(server.traffic(), b"served by the later");
    assert_eq!(services[1].accepted(), 1);
    visitor::exchange(&mut stream, b"carried by the earlier");
    visitor::finish(&stream);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

#[test]
fn a_client_that_does_not_answer_is_cut_off_when_another_takes_its_id() {
    if subject::only_wire("what happens to flows of a client whose id another takes") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let services = [TcpService::echo(), TcpService::echo()];
    let dead = twin(&site, "dead", &server, &services[0]);
    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"a flow that lasts");
    dead.signal(Signal::STOP);
    let _successor = twin(&site, "successor", &server, &services[1]);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Reset(Vec::new()));
    let lines = server.program.lines();
    let by_timeout = |line: &String| line.contains("health timeout");
    assert!(!lines.iter().any(by_timeout), "not before a timeout");
    visitor::echo(server.traffic(), b"served by the successor");
}
