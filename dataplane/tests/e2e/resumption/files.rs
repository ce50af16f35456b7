//! What outlives a process: the client's directory of tickets, the server's file of ticket keys.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{Server, ServerSetup, Site, client_launch, start_client};
use crate::support::visitor;
use crate::support::wait;

use super::{
    client_with_state, server_with_shared_keys, stop, tickets_on_disk, wait_for_tickets_on_disk,
    write_ticket_keys,
};

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
    let nobody = ports::free_address();
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
