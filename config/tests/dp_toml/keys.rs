//! Keys that are not known, and keys that are missing.

use crate::fixture::{CLIENT, SERVER, edited, problem, problems};

#[test]
fn an_unknown_key_suggests_the_nearest_one() {
    for (right, wrong, expected) in [
        (
            "heartbeat_interval",
            "heartbeat_intervall",
            "dp.toml:3:1: server.heartbeat_intervall: unknown key; did you mean \"heartbeat_interval\"?",
        ),
        (
            "drain_timeout",
            "draintimeout",
            "dp.toml:5:1: server.draintimeout: unknown key; did you mean \"drain_timeout\"?",
        ),
        (
            "load_balancer",
            "load-balancer",
            "dp.toml:2:1: server.load-balancer: unknown key; did you mean \"load_balancer\"?",
        ),
        (
            "rotation_overlap",
            "rotation_overlaps",
            "did you mean \"session_ticket_encryption_key_rotation_overlap\"?",
        ),
    ] {
        let message = problem(&edited(SERVER, right, wrong));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_key_of_another_section_is_sent_there() {
    let message = problem(&edited(
        SERVER,
        "method = \"mtls\"",
        "server_cert_file = \"x\"",
    ));
    let expected = "dp.toml:11:1: server.auth.server_cert_file: unknown key; did you mean \
         \"server.tls.server_cert_file\"? [server.auth] may hold method, token, token_file, \
         ca_cert_file, ca_cert, crl_file, crl";
    assert_eq!(message, expected);
}

#[test]
fn an_unknown_section_names_those_that_there_are() {
    let expected = "dp.toml:16:2: quik: unknown key; did you mean \"quic\"? the file may hold \
         limits, server, client, quic, udp, admin";
    assert_eq!(problem(&format!("{CLIENT}[quik]\n")), expected);
    let message = problem(&format!("{CLIENT}[compression]\nlevel = 3\n"));
    assert_eq!(
        message,
        "dp.toml:16:2: compression: unknown key; the file may hold limits, server, client, quic, udp, admin"
    );
}

#[test]
fn a_misspelled_secret_is_not_repeated() {
    let text = format!("{CLIENT}[client.auth]\ntokne = \"hunter2hunter2hunter2\"\n");
    let errors = crate::fixture::refuse(&text).to_string();
    assert!(errors.contains("did you mean \"token\"?"), "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn a_method_on_the_client_is_explained() {
    let message = problem(&format!("{CLIENT}[client.auth]\nmethod = \"mtls\"\n"));
    assert!(message.starts_with("dp.toml:17:1: client.auth.method: unknown key; the server alone"));
}

#[test]
fn a_missing_key_points_at_its_section_and_says_what_it_must_be() {
    for (line, expected) in [
        (
            "quic_addr = \"0.0.0.0:8443\"\n",
            "dp.toml:6:1: server.listeners[0].quic_addr: is missing; it must be an IP address and a port, as in \"0.0.0.0:8443\" or \"[::]:8443\"",
        ),
        (
            "protocol = \"both\"\n",
            "dp.toml:6:1: server.listeners[0].protocol: is missing; it must be \"tcp\" or \"udp\" or \"both\"",
        ),
        (
            "ca_cert_file = \"certs/ca.crt\"\n",
            "dp.toml:10:1: server.auth.ca_cert_file: is missing; it must be the path of a PEM file with the certificates of the CAs to trust",
        ),
        (
            "server_key_file = \"certs/server.key\"\n",
            "dp.toml:13:1: server.tls.server_key_file: is missing; it must be the path of a PEM file with the server's private key",
        ),
    ] {
        assert_eq!(problem(&edited(SERVER, line, "")), expected);
    }
    for (line, expected) in [
        (
            "address = \"server.example.com:8443\"\n",
            "dp.toml:6:1: client.servers[0].address: is missing; it must be a host and a port, as in \"server.example.com:8443\"",
        ),
        (
            "port = 3000\n",
            "dp.toml:9:1: client.local.port: is missing; it must be a whole number from 1 to 65535",
        ),
        (
            "client_key_file = \"certs/client.key\"\n",
            "dp.toml:12:1: client.tls.client_key_file: is missing; it must be the path of a PEM file with the client's private key, unless [client.auth] has a token",
        ),
    ] {
        assert_eq!(problem(&edited(CLIENT, line, "")), expected);
    }
}

#[test]
fn an_empty_section_tells_everything_that_it_lacks() {
    let keys = |text: &str| -> Vec<String> {
        let lines = problems(text);
        lines
            .iter()
            .filter_map(|line| line.split(": ").nth(1))
            .map(str::to_owned)
            .collect()
    };
    let server = [
        "server.listeners",
        "server.auth.ca_cert_file",
        "server.tls.server_cert_file",
        "server.tls.server_key_file",
    ];
    assert_eq!(keys("[server]\n"), server);
    let client = [
        "client.servers",
        "client.local.host",
        "client.local.port",
        "client.tls.ca_cert_file",
        "client.tls.client_cert_file",
        "client.tls.client_key_file",
    ];
    assert_eq!(keys("[client]\n"), client);
    assert_eq!(
        keys("[client]\n[admin]\n").last().map(String::as_str),
        Some("admin.listen")
    );
}
