//! Coming back with a ticket, and what that saves.

mod files;
mod refused;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::slow_path::SlowPath;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::visitor;
use crate::support::wait;

/// Lanes that come back after each restart, and restarts: their product is the number of reconnects
/// that are counted.
const LANES: usize = 4;
const RESTARTS: usize = 5;

const SHARED_KEYS: &str = "session_ticket_encryption_key_file = \"ticket.key\"";

/// The token of servers and clients that use one.
const SERVER_TOKEN: &str = "method = \"token\"\ntoken = \"a token of the tests\"";
const CLIENT_TOKEN: &str = "token = \"a token of the tests\"";

/// A server whose tickets another process with the same file opens.
fn server_with_shared_keys(site: &Site) -> ServerSetup {
    write_ticket_keys(site, &["0123456789abcdef"]);
    ServerSetup {
        tls: vec![SHARED_KEYS],
        ..ServerSetup::default()
    }
}

/// The key file, with one key for each pattern of 16 digits.
fn write_ticket_keys(site: &Site, patterns: &[&str]) {
    let text: String = patterns
        .iter()
        .map(|pattern| pattern.repeat(10) + "\n")
        .collect();
    let path = site.write("ticket.key", &text);
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).expect("our own file");
}

/// A client that keeps its tickets in a directory of the site.
fn client_with_state() -> ClientSetup {
    ClientSetup {
        client: vec!["state_dir = \"state\"", "client_id = \"with-state\""],
        ..ClientSetup::default()
    }
}

/// Stops a program in order and returns a sum over its cores of each counter.
fn stop(program: &mut Program) -> impl Fn(&str) -> u64 {
    program.signal(Signal::TERM);
    assert_eq!(program.wait_for_exit().code(), Some(0));
    let counters = counters::of(program);
    move |name| counters::total(&counters, name)
}

fn restart(server: &mut Server) {
    server.program.kill();
    server.program.restart();
    let ready = server.program.wait_until_ready();
    ready.expect("the server starts again on the same ports");
}

/// The file of tickets in the client's state directory; only lines of tickets have tabs.
fn tickets_on_disk(site: &Site) -> String {
    let file = std::fs::read_to_string(site.path().join("state/sessions"));
    file.unwrap_or_default()
}

fn wait_for_tickets_on_disk(site: &Site) {
    wait::until_true("the client has saved a ticket", || {
        tickets_on_disk(site).contains('\t')
    });
}

/// The client's lines about lanes that it registered.
fn is_registered(line: &str) -> bool {
    line.contains("lane registered")
}

/// Restarts the server again and again, and counts how the client's lanes came back.
fn reconnects_after_restarts(what: &str, auth: Option<&'static str>, mut client: ClientSetup) {
    if subject::only_wire(what) {
        return;
    }
    client.client.push("lanes = 4");
    let service = TcpService::echo();
    let site = Site::new();
    let setup = ServerSetup {
        auth,
        ..server_with_shared_keys(&site)
    };
    let mut server = Server::start(&site, &setup);
    let mut client = start_client(&site, &client, server.quic(), service.address);
    for round in 0..RESTARTS {
        let so_far = LANES * (round + 1);
        client.wait_for_lines("all lanes are up", so_far, is_registered);
        restart(&mut server);
        visitor::wait_until_served(server.traffic());
    }
    let all = LANES * (RESTARTS + 1);
    client.wait_for_lines("all lanes are up again", all, is_registered);
    let at_server = stop(&mut server.program);
    let lines: Vec<_> = client
        .lines()
        .into_iter()
        .filter(|it| is_registered(it))
        .collect();
    let back = &lines[LANES..];
    let count = |what: &str| back.iter().filter(|it| it.contains(what)).count();
    let (resumed, early) = (count("resumed=true"), count("early_data=accepted"));
    // More than one for each lane and restart if a lane was lost in between.
    let lanes = back.len();
    println!("{what}: of {lanes} reconnects {resumed} resumed, {early} with early data");
    assert_eq!((resumed, early), (lanes, lanes), "{lines:#?}");
    // A server that stops has handshakes with lanes that it then refuses: more than lanes, but none
    // without early data.
    let accepted = at_server("early_data_accepted");
    assert!(
        accepted >= LANES as u64,
        "{accepted} with early data by the last server"
    );
    assert_eq!(at_server("handshakes_full"), 0);
    assert_eq!(stop(&mut client)("early_data_rejected"), 0);
}

#[test]
fn a_client_registers_with_early_data_after_each_restart_of_a_server_with_shared_keys() {
    reconnects_after_restarts("mTLS", None, ClientSetup::default());
}

#[test]
fn a_client_with_a_token_registers_with_early_data_too() {
    let client = ClientSetup {
        auth: vec![CLIENT_TOKEN],
        identity: "",
        ..ClientSetup::default()
    };
    reconnects_after_restarts("token", Some(SERVER_TOKEN), client);
}

#[test]
fn a_server_that_draws_its_keys_anew_gets_a_full_handshake_and_the_registration() {
    if subject::only_wire("rejected early data") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    let client = ClientSetup::default();
    let mut client = start_client(&site, &client, server.quic(), service.address);
    // A lane that a busy machine loses comes back to the same server, resumed: that is no such
    // line.
    let is_rejected = |line: &str| {
        is_registered(line)
            && line.contains("resumed=false")
            && line.contains("early_data=rejected")
    };
    for _ in 0..3 {
        let so_far = client.lines().iter().filter(|it| is_rejected(it)).count();
        restart(&mut server);
        client.wait_for_lines("the lane is back, not resumed", so_far + 1, is_rejected);
        visitor::wait_until_served(server.traffic());
    }
    let resumed_by_same_server = client
        .lines()
        .iter()
        .any(|it| is_registered(it) && it.contains("resumed=true"));
    // The client first: a server that stops has more handshakes with a client that comes back.
    let at_client = stop(&mut client);
    assert!(at_client("early_data_rejected") >= 3);
    let at_server = stop(&mut server.program);
    assert!(at_server("tickets_refused") >= 1);
    assert!(at_server("handshakes_full") >= 1);
    if !resumed_by_same_server {
        assert_eq!(at_client("handshakes_resumed"), 0);
        assert_eq!(at_server("handshakes_resumed"), 0);
    }
}

#[test]
fn without_0rtt_sessions_are_resumed_without_early_data() {
    if subject::only_wire("allow_0rtt = false") {
        return;
    }
    let service = TcpService::echo();
    for (by_server, by_client) in [(false, true), (true, false)] {
        let site = Site::new();
        let off = "allow_0rtt = false";
        let mut setup = server_with_shared_keys(&site);
        let mut client = ClientSetup::default();
        for (allowed, quic) in [(by_server, &mut setup.quic), (by_client, &mut client.quic)] {
            if !allowed {
                quic.push(off);
            }
        }
        let mut server = Server::start(&site, &setup);
        let mut client = start_client(&site, &client, server.quic(), service.address);
        restart(&mut server);
        visitor::wait_until_served(server.traffic());
        let at_client = stop(&mut client);
        assert!(
            at_client("handshakes_resumed") >= 1,
            "{by_server} {by_client}"
        );
        assert_eq!(at_client("handshakes_full"), 1, "{by_server} {by_client}");
        assert_eq!(at_client("early_data_accepted"), 0);
        assert_eq!(at_client("early_data_rejected"), 0);
    }
}

#[test]
fn a_server_with_other_limits_resumes_but_takes_no_early_data() {
    if subject::only_wire("the limits that early data is bound to") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut setup = server_with_shared_keys(&site);
    let mut server = Server::start(&site, &setup);
    let client = ClientSetup::default();
    let mut client = start_client(&site, &client, server.quic(), service.address);
    server.program.kill();
    setup.quic.push("max_incoming_streams = 64");
    let again = Server::launch(&site, &setup, &server.listeners).start();
    again.wait_until_ready().expect("it starts again");
    visitor::wait_until_served(server.traffic());
    let at_client = stop(&mut client);
    let resumed = at_client("handshakes_resumed");
    assert!(resumed >= 1);
    assert_eq!(at_client("early_data_rejected"), resumed);
    assert_eq!(at_client("early_data_accepted"), 0);
    assert_eq!(at_client("handshakes_full"), 1);
}

/// Prints how long a client takes from its first packet to its registration, with and without a
/// ticket.
#[test]
#[ignore = "measures: cargo test --release -p qmux-dp --test e2e how_long -- --ignored --nocapture"]
fn how_long_a_registration_takes() {
    let service = TcpService::echo();
    for (path, delay_ms) in [("loopback", 0), ("20 ms each way", 20)] {
        for (auth, server_auth) in [("mTLS", None), ("token", Some(SERVER_TOKEN))] {
            for (kind, early_data) in [("full", ""), ("resumed", "none"), ("0-RTT", "accepted")] {
                let site = Site::new();
                let setup = ServerSetup {
                    auth: server_auth,
                    ..server_with_shared_keys(&site)
                };
                let server = Server::start(&site, &setup);
                let slow = SlowPath::to(server.quic(), Duration::from_millis(delay_ms));
                let dialed = if delay_ms == 0 {
                    server.quic()
                } else {
                    slow.address
                };
                let mut client = ClientSetup::default();
                if kind != "full" {
                    client = client_with_state();
                }
                if early_data == "none" {
                    client.quic.push("allow_0rtt = false");
                }
                if server_auth.is_some() {
                    client.identity = "";
                    client.auth.push(CLIENT_TOKEN);
                }
                let mut client = start_client(&site, &client, dialed, service.address);
                let mut took_us: Vec<u64> = Vec::new();
                for _ in 0..21 {
                    if kind != "full" {
                        wait_for_tickets_on_disk(&site);
                    }
                    client.kill();
                    client.restart();
                    let line = client.wait_for_line("it is back", is_registered);
                    let (_, rest) = line.split_once("took_us=").expect("a time");
                    let digits = rest.split(' ').next().unwrap_or(rest);
                    took_us.push(digits.parse().expect("a number"));
                    assert_eq!(line.contains("resumed=true"), kind != "full", "{line}");
                    assert!(line.contains(early_data), "{line}");
                }
                took_us.sort_unstable();
                let (median, worst) = (took_us[10], took_us[20]);
                println!("{path}, {auth}, {kind}: median {median} us, worst {worst} us");
            }
        }
    }
}
