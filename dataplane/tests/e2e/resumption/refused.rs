//! No ticket leads to a peer that would not be let in without one.

use crate::support::certs::{self, Identity};
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, Server, ServerSetup, Site, client_launch,
    start_client,
};
use crate::support::visitor;
use crate::support::wait;

use super::{
    CLIENT_TOKEN, SERVER_TOKEN, client_with_state, server_with_shared_keys, stop,
    wait_for_tickets_on_disk,
};

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
fn a_ticket_with_which_a_handshake_fails_is_offered_once() {
    if subject::only_wire("resumption with a server of another CA") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let strangers = certs::strangers();
    let identity = Identity {
        cert_pem: strangers.server_cert_pem.clone(),
        key_pem: strangers.server_key_pem.clone(),
    };
    identity.write(site.path(), "strange");
    let mut setup = ServerSetup::default();
    let mut server = Server::start(&site, &setup);
    let client = ClientSetup {
        client: vec!["lanes = 1", "state_dir = \"state\""],
        ..ClientSetup::default()
    };
    let client = start_client(&site, &client, server.quic(), service.address);
    wait_for_tickets_on_disk(&site);
    server.program.kill();
    setup.identity = "strange";
    let mut again = Server::launch(&site, &setup, &server.listeners).start();
    again.wait_until_ready().expect("it starts again");
    let fails = |line: &str| line.contains("cannot connect") && line.contains("certificate");
    client.wait_for_lines("some attempts", 3, fails);
    // It has the ticket of another server, and its certificate is not good.
    assert_eq!(stop(&mut again)("tickets_refused"), 1);
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
