//! Coming back with a ticket: faster, never to a peer that would not be let in without one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::certs::{self, Identity};
use crate::support::counters;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::slow_path::SlowPath;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, Server, ServerSetup, Site, client_launch,
    start_client,
};
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

#[test]
fn a_killed_client_comes_back_with_the_tickets_of_its_state_directory() {
    if subject::only_wire("state_dir") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    let mut client = start_client(&site, &client_with_state(), server.quic(), service.address);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for _ in 0..3 {
        wait_for_tickets_on_disk(&site);
        let state = site.path().join("state");
        assert_eq!(
            (mode(&state), mode(&state.join("sessions"))),
            (0o700, 0o600)
        );
        client.kill();
        client.restart();
        client.wait_until_ready().expect("it registers again");
        visitor::echo(server.traffic(), b"served");
    }
    let at_client = stop(&mut client);
    assert!(at_client("early_data_accepted") >= 1, "of its last run");
    assert_eq!(at_client("early_data_rejected"), 0);
    assert_eq!(at_client("handshakes_full"), 0);
    let at_server = stop(&mut server.program);
    assert_eq!(at_server("handshakes_full"), 1);
    assert!(at_server("handshakes_resumed") >= 3);
    assert!(at_server("early_data_accepted") >= 3);
}

#[test]
fn a_damaged_file_of_tickets_is_said_once_and_costs_a_full_handshake() {
    if subject::only_wire("state_dir") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    std::fs::create_dir(site.path().join("state")).expect("made");
    site.write("state/sessions", "a secret that is no ticket\n");
    let mut client = start_client(&site, &client_with_state(), server.quic(), service.address);
    visitor::echo(server.traffic(), b"served");
    wait_for_tickets_on_disk(&site);
    let lines = client.lines();
    let said = lines
        .iter()
        .filter(|it| it.contains("saved sessions"))
        .count();
    assert_eq!(said, 1, "{lines:#?}");
    assert!(!lines.iter().any(|it| it.contains("a secret")), "shown");
    let at_client = stop(&mut client);
    assert!(at_client("handshakes_full") >= 1);
    assert_eq!(at_client("handshakes_resumed"), 0);
}

#[test]
fn a_state_directory_that_cannot_be_used_ends_the_start() {
    if subject::only_wire("state_dir") {
        return;
    }
    let site = Site::new();
    site.write("state", "a file");
    let nobody = crate::support::ports::free_address();
    let mut client = client_launch(&site, &client_with_state(), nobody, nobody).start();
    assert_eq!(client.wait_for_exit().code(), Some(2));
    let stderr = client.stderr();
    assert!(
        stderr.contains("state_dir") && stderr.contains("not usable"),
        "{stderr}"
    );
}

#[test]
fn a_ticket_older_than_the_keys_costs_a_full_handshake() {
    if subject::only_wire("rotation of ticket keys") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let setup = ServerSetup {
        tls: vec![
            "session_ticket_encryption_key_rotation_interval = \"1s\"",
            "session_ticket_encryption_key_rotation_overlap = 0",
        ],
        ..ServerSetup::default()
    };
    let mut server = Server::start(&site, &setup);
    let mut client = start_client(&site, &client_with_state(), server.quic(), service.address);
    wait_for_tickets_on_disk(&site);
    client.kill();
    let rotated = |line: &str| line.contains("session ticket key rotated");
    let count = |server: &Server| {
        server
            .program
            .lines()
            .iter()
            .filter(|it| rotated(it))
            .count()
    };
    let so_far = count(&server);
    server
        .program
        .wait_for_lines("another key", so_far + 1, rotated);
    client.restart();
    client.wait_until_ready().expect("it registers again");
    visitor::echo(server.traffic(), b"served");
    let at_client = stop(&mut client);
    assert_eq!(at_client("handshakes_resumed"), 0);
    assert!(at_client("early_data_rejected") >= 1);
    let at_server = stop(&mut server.program);
    assert!(at_server("tickets_refused") >= 1);
    assert!(at_server("handshakes_full") >= 2);
    assert_eq!(at_server("handshakes_resumed"), 0);
    assert!(at_server("ticket_keys_rotated") > 0);
}

#[test]
fn changed_ticket_keys_are_read_again_and_old_ones_open_as_long_as_they_are_there() {
    if subject::only_wire("the file of ticket keys") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut setup = server_with_shared_keys(&site);
    setup
        .tls
        .push("session_ticket_encryption_key_rotation_interval = \"1s\"");
    let mut server = Server::start(&site, &setup);
    let mut client = start_client(&site, &client_with_state(), server.quic(), service.address);
    wait_for_tickets_on_disk(&site);
    let read_again = |line: &str| line.contains("session ticket keys read again");
    let (old, new) = ("0123456789abcdef", "fedcba9876543210");
    let first = tickets_on_disk(&site);
    client.kill();
    write_ticket_keys(&site, &[new, old]);
    server.program.wait_for_line("new keys", read_again);
    client.restart();
    client
        .wait_until_ready()
        .expect("it registers with a ticket of the old key");
    wait::until_true("it has saved one of the new key", || {
        let now = tickets_on_disk(&site);
        now.contains('\t') && now != first
    });
    client.kill();
    write_ticket_keys(&site, &[old]);
    server
        .program
        .wait_for_lines("old keys again", 2, read_again);
    client.restart();
    client.wait_until_ready().expect("it registers without");
    let at_client = stop(&mut client);
    assert_eq!(at_client("handshakes_resumed"), 0);
    assert!(at_client("early_data_rejected") >= 1);
    // A file that holds no keys changes nothing.
    site.write("ticket.key", "no key\n");
    let refused = |line: &str| line.contains("ticket keys cannot be read again");
    server
        .program
        .wait_for_line("what is wrong with the file", refused);
    let at_server = stop(&mut server.program);
    assert!(at_server("handshakes_full") >= 2);
    assert!(at_server("handshakes_resumed") >= 1);
    assert!(at_server("tickets_refused") >= 1);
    assert!(at_server("ticket_key_files_refused") > 0);
}

#[test]
fn a_server_does_not_start_with_a_broken_key_file() {
    if subject::only_wire("the file of ticket keys") {
        return;
    }
    let site = Site::new();
    let setup = server_with_shared_keys(&site);
    site.write("ticket.key", "# keys\nnot a key\n");
    let server = Server::start_refused(&site, &setup);
    assert!(
        server.contains("session_ticket_encryption_key_file") && server.contains("line 2"),
        "{server}"
    );
    assert!(!server.contains("not a key"), "the file is shown: {server}");
}

#[test]
fn a_certificate_that_has_expired_is_not_let_in_by_a_ticket() {
    if subject::only_wire("resumption with an expired certificate") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    // Long enough for a loaded machine to register, short enough to wait for.
    let (short_lived, ends_at) = Identity::client_for_seconds(15);
    short_lived.write(site.path(), "short");
    let mut server = Server::start(&site, &server_with_shared_keys(&site));
    let client = ClientSetup {
        identity: "short",
        ..ClientSetup::default()
    };
    let mut client = start_client(&site, &client, server.quic(), service.address);
    visitor::echo(server.traffic(), b"served while it is valid");
    server.program.kill();
    wait::until_true("the certificate has expired", || certs::now() > ends_at);
    server.program.restart();
    let ready = server.program.wait_until_ready();
    ready.expect("the server starts again on the same ports");
    let line = server
        .program
        .wait_for_line("why the session is refused", |line| {
            line.contains("client not authenticated")
        });
    assert!(line.contains("certificate has expired"), "{line}");
    // The next attempt is a full handshake, which fails as it does without tickets. The client may
    // say nothing of the first: that was beside a lane whose server turns out to have been
    // restarted.
    client.wait_for_line("the full handshake's failure", |line| {
        line.contains("cannot connect") && line.contains("certificate expired")
    });
    assert!(
        !visitor::echo_works(server.traffic()),
        "a visitor was served"
    );
    let at_server = stop(&mut server.program);
    assert!(at_server("sessions_refused") >= 1);
    assert_eq!(at_server("registrations_accepted"), 0);
    let _counters = stop(&mut client);
}

#[test]
fn a_client_of_a_ca_that_is_not_trusted_any_more_is_not_let_in_by_a_ticket() {
    if subject::only_wire("resumption under another CA") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    std::fs::write(
        site.path().join("other.crt"),
        &certs::strangers().ca_cert_pem,
    )
    .expect("written");
    let mut setup = server_with_shared_keys(&site);
    let mut server = Server::start(&site, &setup);
    let mut client = start_client(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    server.program.kill();
    setup.ca = "other";
    let mut again = Server::launch(&site, &setup, &server.listeners).start();
    again.wait_until_ready().expect("it starts again");
    again.wait_for_line("why it refused", |line| {
        line.contains("handshake failed") && line.contains("unknown CA")
    });
    client.wait_for_line("that it was refused", |line| {
        line.contains("cannot connect") && line.contains("unknown CA")
    });
    assert!(
        !visitor::echo_works(server.traffic()),
        "a visitor was served"
    );
    let at_server = stop(&mut again);
    assert_eq!(at_server("handshakes_resumed"), 0);
    assert_eq!(at_server("registrations_accepted"), 0);
    let _counters = stop(&mut client);
}

#[test]
fn a_session_with_a_token_does_not_open_a_server_that_wants_certificates() {
    if subject::only_wire("resumption under another method") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut setup = server_with_shared_keys(&site);
    setup.auth = Some(SERVER_TOKEN);
    let mut server = Server::start(&site, &setup);
    let client = ClientSetup {
        auth: vec![CLIENT_TOKEN],
        identity: "",
        ..ClientSetup::default()
    };
    let mut client = start_client(&site, &client, server.quic(), service.address);
    server.program.kill();
    setup.auth = None;
    let mut again = Server::launch(&site, &setup, &server.listeners).start();
    again.wait_until_ready().expect("it starts again");
    client.wait_for_line("that a certificate is wanted", |line| {
        line.contains("cannot connect") && line.contains("a client certificate is required")
    });
    let at_server = stop(&mut again);
    assert_eq!(at_server("handshakes_resumed"), 0);
    assert_eq!(at_server("registrations_accepted"), 0);
    let _counters = stop(&mut client);
}

#[test]
fn a_ticket_of_a_server_with_another_name_is_not_used() {
    if subject::only_wire("tickets by server name") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    let mut client = start_client(&site, &client_with_state(), server.quic(), service.address);
    wait_for_tickets_on_disk(&site);
    client.kill();
    // This is the same server under the other name in its certificate.
    let other = ClientSetup {
        server_name: "127.0.0.1",
        ..client_with_state()
    };
    let mut client = start_client(&site, &other, server.quic(), service.address);
    let at_client = stop(&mut client);
    assert!(at_client("handshakes_full") >= 1);
    assert_eq!(at_client("handshakes_resumed"), 0);
    let at_server = stop(&mut server.program);
    assert!(at_server("handshakes_full") >= 2);
    assert_eq!(at_server("handshakes_resumed"), 0);
}

#[test]
fn a_server_whose_certificate_has_expired_is_not_accepted_for_a_ticket() {
    if subject::only_wire("resumption with an expired server") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let (short_lived, ends_at) = Identity::server_for_seconds(15);
    short_lived.write(site.path(), "short");
    let mut setup = server_with_shared_keys(&site);
    setup.identity = "short";
    let mut server = Server::start(&site, &setup);
    let client = ClientSetup {
        client: ROLE_NOTICES_SOON.to_vec(),
        quic: QUIC_NOTICES_SOON.to_vec(),
        ..ClientSetup::default()
    };
    let mut client = start_client(&site, &client, server.quic(), service.address);
    wait::until_true("the certificate has expired", || certs::now() > ends_at);
    let another = ClientSetup {
        name: "another",
        ..ClientSetup::default()
    };
    let another = client_launch(&site, &another, server.quic(), service.address).start();
    another.wait_for_line("that the server's certificate has expired", |line| {
        line.contains("cannot connect") && line.contains("certificate has expired")
    });
    server
        .program
        .wait_for_line("that the client left", |line| {
            line.contains("handshake failed") && line.contains("certificate expired")
        });
    drop(another);
    server.program.kill();
    // A server does not start with an expired certificate, so the new one has a good one: what the
    // ticket stands for is the old one still, and the client does not go by that.
    setup.identity = "server";
    let again = Server::launch(&site, &setup, &server.listeners).start();
    again.wait_until_ready().expect("it starts again");
    client.wait_for_line("why the session is refused", |line| {
        line.contains("cannot connect") && line.contains("certificate has expired")
    });
    visitor::wait_until_served(server.traffic());
    let at_client = stop(&mut client);
    assert!(at_client("sessions_refused") >= 1);
    assert!(at_client("handshakes_full") >= 2);
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
