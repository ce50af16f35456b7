//! Who may connect to whom: a certificate that is wrong in any way is refused, and the log says so.

use crate::support::certs::{self, Identity};
use crate::support::quic_probe::{Verdict, shake_hands};
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, client_launch};
use crate::support::visitor;
use crate::support::wait;

/// TLS alerts with which a server may refuse a client's certificate (RFC 8446, section 6):
/// bad_certificate (42) to certificate_unknown (46), unknown_ca (48), decrypt_error (51),
/// certificate_required (116).
const ALERTS: [u8; 8] = [42, 43, 44, 45, 46, 48, 51, 116];

fn assert_server_refuses(identity: Option<&Identity>) {
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let verdict = shake_hands(site.path(), server.quic(), identity);
    match verdict {
        Verdict::Refused(alert) => assert!(ALERTS.contains(&alert), "alert {alert}"),
        Verdict::Admitted => panic!("the server admitted it"),
    }
    server
        .program
        .wait_for_line("whom it refused, and why", |line| {
            line.contains("127.0.0.1") && is_about_certificates(line)
        });
    // It still serves those who may come.
    let good = shake_hands(site.path(), server.quic(), Some(&Identity::client()));
    assert_eq!(good, Verdict::Admitted);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    assert_server_refuses(None);
}

#[test]
fn a_client_of_another_ca_is_refused() {
    assert_server_refuses(Some(&Identity::strange_client()));
}

#[test]
fn a_client_whose_certificate_has_expired_is_refused() {
    assert_server_refuses(Some(&Identity::expired_client()));
}

#[test]
fn a_client_whose_certificate_is_not_valid_yet_is_refused() {
    assert_server_refuses(Some(&Identity::future_client()));
}

#[test]
fn a_client_with_a_servers_certificate_is_refused() {
    assert_server_refuses(Some(&Identity::server()));
}

#[test]
fn a_client_with_a_self_signed_certificate_is_refused() {
    assert_server_refuses(Some(&Identity::self_signed_client()));
}

/// Starts a server and a client that do not fit each other; the client says what is wrong.
fn client_never_serves(
    site: &Site,
    server: &ServerSetup,
    client: &ClientSetup,
    says: impl Fn(&str) -> bool,
) {
    let service = TcpService::echo();
    let server = Server::start(site, server);
    let client = client_launch(site, client, server.quic(), service.address).start();
    // Where only the protocol counts, any word about the failure will do.
    let only_wire = subject::only_wire("what exactly the client logs");
    let says = |line: &str| says(line) || only_wire && line.contains("handshake");
    // Visitors come all the time.
    wait::until_true("the client says what is wrong", || {
        let served = visitor::echo_works(server.traffic());
        assert!(!served, "a visitor was served");
        client.lines().iter().any(|line| says(line))
    });
    for _ in 0..3 {
        let served = visitor::echo_works(server.traffic());
        assert!(!served, "a visitor was served");
    }
    assert_eq!(service.accepted(), 0);
}

/// The name of a TLS alert about certificates (RFC 8446, section 6), or an explanation of it.
fn is_about_certificates(line: &str) -> bool {
    let line = line.to_lowercase().replace('_', " ");
    line.contains("certificate") || line.contains("unknown ca")
}

#[test]
fn a_client_of_another_ca_says_that_the_server_refused_it() {
    let site = Site::new();
    Identity::strange_client().write(site.path(), "strange");
    let client = ClientSetup {
        identity: "strange",
        ..ClientSetup::default()
    };
    client_never_serves(
        &site,
        &ServerSetup::default(),
        &client,
        is_about_certificates,
    );
}

#[test]
fn a_server_of_another_ca_is_refused_by_the_client() {
    let site = Site::new();
    let strangers = certs::strangers();
    let identity = Identity {
        cert_pem: strangers.server_cert_pem.clone(),
        key_pem: strangers.server_key_pem.clone(),
    };
    identity.write(site.path(), "strange");
    let server = ServerSetup {
        identity: "strange",
        ..ServerSetup::default()
    };
    client_never_serves(
        &site,
        &server,
        &ClientSetup::default(),
        is_about_certificates,
    );
}

#[test]
fn a_server_of_another_name_is_refused_by_the_client() {
    let site = Site::new();
    let client = ClientSetup {
        server_name: "other.test",
        ..ClientSetup::default()
    };
    client_never_serves(&site, &ServerSetup::default(), &client, |line| {
        is_about_certificates(line) && line.contains("other.test")
    });
}

#[test]
fn a_server_of_another_address_is_refused_by_the_client() {
    let site = Site::new();
    let client = ClientSetup {
        server_name: "192.0.2.1",
        ..ClientSetup::default()
    };
    client_never_serves(&site, &ServerSetup::default(), &client, |line| {
        is_about_certificates(line) && line.contains("192.0.2.1")
    });
}

/// Clients whose certificate was good when they started, each with what the server and the client
/// say of the new one.
#[test]
fn a_certificate_that_became_bad_is_named_on_both_sides() {
    if subject::only_wire("what exactly both sides log") {
        return;
    }
    let cases = [
        (
            Identity::expired_client(),
            "expired at 20",
            "expired, or is not valid yet by the server's clock",
        ),
        (
            Identity::future_client(),
            "is valid only from 20",
            "expired, or is not valid yet by the server's clock",
        ),
        (
            Identity::server(),
            "must include clientAuth",
            "must include clientAuth",
        ),
        (
            Identity::strange_client(),
            "ca.crt of [server.auth]",
            "the server's ca_cert_file",
        ),
        (
            Identity::self_signed_client(),
            "ca.crt of [server.auth]",
            "the server's ca_cert_file",
        ),
    ];
    let service = TcpService::echo();
    for (identity, server_says, client_says) in cases {
        let site = Site::new();
        Identity::client().write(site.path(), "swapped");
        let mut server = Server::start(&site, &ServerSetup::default());
        server.program.kill();
        let client = ClientSetup {
            identity: "swapped",
            quic: vec!["handshake_idle_timeout = \"1s\""],
            ..ClientSetup::default()
        };
        let client = client_launch(&site, &client, server.quic(), service.address).start();
        let tried = |line: &str| line.contains("cannot connect");
        client.wait_for_line("an attempt with the good one", tried);
        identity.write(site.path(), "swapped");
        client.wait_for_line("that it has read it", |line| {
            line.contains("certificate files have changed; new connections use them")
        });
        server.program.restart();
        let ready = server.program.wait_until_ready();
        ready.expect("the server starts again on the same ports");
        server.program.wait_for_line(server_says, |line| {
            line.contains("handshake failed") && line.contains(server_says)
        });
        client.wait_for_line(client_says, |line| {
            tried(line)
                && line.contains("swapped.crt")
                && line.contains("closed by the peer")
                && line.contains(client_says)
        });
        let served = visitor::echo_works(server.traffic());
        assert!(!served, "a visitor was served");
    }
}

/// Servers that the client does not accept, each with what the client and the server say.
#[test]
fn a_server_that_is_not_the_right_one_is_named_on_both_sides() {
    if subject::only_wire("what exactly both sides log") {
        return;
    }
    let strangers = certs::strangers();
    let strange = Identity {
        cert_pem: strangers.server_cert_pem.clone(),
        key_pem: strangers.server_key_pem.clone(),
    };
    let service = TcpService::echo();
    for (identity, server_name, client_says) in [
        ("strange", certs::SERVER_NAME, "ca.crt of [client.tls]"),
        (
            "server",
            "other.test",
            "is for tunnel.test, 127.0.0.1, ::1, not",
        ),
        (
            "server",
            "192.0.2.1",
            "is for tunnel.test, 127.0.0.1, ::1, not",
        ),
    ] {
        let site = Site::new();
        strange.write(site.path(), "strange");
        let setup = ServerSetup {
            identity,
            ..ServerSetup::default()
        };
        let server = Server::start(&site, &setup);
        let client = ClientSetup {
            server_name,
            ..ClientSetup::default()
        };
        let client = client_launch(&site, &client, server.quic(), service.address).start();
        client.wait_for_line(client_says, |line| {
            line.contains("cannot connect")
                && line.contains("closed by us")
                && line.contains(client_says)
                && line.contains(server_name)
        });
        server
            .program
            .wait_for_line("that the client left", |line| {
                line.contains("handshake failed")
                    && line.contains("closed by the peer")
                    && is_about_certificates(line)
            });
        let served = visitor::echo_works(server.traffic());
        assert!(!served, "a visitor was served");
    }
}

#[test]
fn a_client_does_not_start_with_an_expired_certificate() {
    let site = Site::new();
    Identity::expired_client().write(site.path(), "expired");
    let client = ClientSetup {
        identity: "expired",
        ..ClientSetup::default()
    };
    let nobody = crate::support::ports::free_address();
    let mut client = client_launch(&site, &client, nobody, nobody).start();
    assert_eq!(client.wait_for_exit().code(), Some(2));
    let stderr = client.stderr();
    assert!(
        stderr.contains("expired.crt") && stderr.contains("expired on"),
        "{stderr}"
    );
}

#[test]
fn a_client_does_not_start_with_a_servers_certificate() {
    let site = Site::new();
    let client = ClientSetup {
        identity: "server",
        ..ClientSetup::default()
    };
    let nobody = crate::support::ports::free_address();
    let mut client = client_launch(&site, &client, nobody, nobody).start();
    assert_eq!(client.wait_for_exit().code(), Some(2));
    let stderr = client.stderr();
    assert!(stderr.contains("not a client certificate"), "{stderr}");
}
