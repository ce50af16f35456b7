//! Certificates, keys and tokens elsewhere than where they usually are: in the file itself, in a
//! file of their own, in the environment.

use std::ffi::OsString;

use qmux_config::{Config, Errors, FileOrText, ServerAuth};

use crate::fixture::{CLIENT, SERVER, accept, dir, edited, path, problem, refuse};

/// `text` with the PEM of `name` in place of the key that names the file.
fn inline(text: &str, key: &str, name: &str) -> String {
    let pem = std::fs::read_to_string(dir().join("certs").join(name)).expect("read");
    let line = format!("{key}_file = \"certs/{name}\"");
    edited(text, &line, &format!("{key} = \"\"\"\n{pem}\"\"\""))
}

fn all_inline() -> (String, String) {
    let server = inline(SERVER, "ca_cert", "ca.crt");
    let server = inline(&server, "server_cert", "server.crt");
    let server = inline(&server, "server_key", "server.key");
    let client = inline(CLIENT, "ca_cert", "ca.crt");
    let client = inline(&client, "client_cert", "client.crt");
    let client = inline(&client, "client_key", "client.key");
    (server, client)
}

#[test]
fn certificates_and_keys_may_stand_in_the_file_itself() {
    let (server, client) = all_inline();
    let tls = accept(&server).server.expect("a server").tls;
    let in_file: FileOrText = dir().join("certs/server.key").into();
    assert_eq!(tls.server_key.read_pem(), in_file.read_pem());
    assert_eq!(tls.server_cert.file(), None, "nothing to watch");
    assert_eq!(
        tls.server_cert.to_string(),
        "server.tls.server_cert of the config file"
    );
    let client = accept(&client).client.expect("a client");
    assert!(!format!("{client:?}").contains("BEGIN"), "it shows a key");
    assert!(client.tls.client_cert.is_some());
}

#[test]
fn a_text_in_the_place_of_a_file_is_judged_as_the_file_would_be() {
    let (server, _) = all_inline();
    let message = problem(&server.replace("BEGIN PRIVATE KEY", "BEGIN PRIVATE"));
    assert!(
        message.ends_with("server.tls.server_key: holds no private key in valid PEM form (-----BEGIN PRIVATE KEY-----)"),
        "{message}"
    );
    let other = edited(CLIENT, "certs/client.key", "certs/server.key");
    let message = problem(&inline(&other, "client_key", "server.key"));
    assert!(
        message.ends_with(
            "client.tls.client_key: does not belong to the certificate in certs/client.crt"
        ),
        "{message}"
    );
}

#[test]
fn a_file_and_a_text_exclude_each_other() {
    let text = edited(
        SERVER,
        "server_key_file = \"certs/server.key\"",
        "server_key_file = \"certs/server.key\"\nserver_key = \"hunter2\"",
    );
    let errors = refuse(&text).to_string();
    assert!(
        errors.contains(
            "server.tls.server_key: stands beside server_key_file; it must be one of them"
        ),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn ticket_keys_may_stand_in_the_file_itself() {
    let text = format!(
        "{SERVER}session_ticket_encryption_key = \"{}\"\n",
        "ab".repeat(80)
    );
    let keys = accept(&text)
        .server
        .expect("a server")
        .tls
        .session_ticket_encryption_key;
    let keys = keys.expect("keys").read_ticket_keys().expect("read");
    assert_eq!(keys.len(), 1);
    let errors = refuse(&text.replace(&"ab".repeat(80), "hunter2")).to_string();
    assert!(
        errors.contains("session_ticket_encryption_key: has no key in line 1"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
}

fn token_server(line: &str) -> String {
    let auth = "method = \"mtls\"\nca_cert_file = \"certs/ca.crt\"\n";
    edited(SERVER, auth, &format!("method = \"token\"\n{line}\n"))
}

fn token_of(text: &str) -> Vec<u8> {
    match accept(text).server.expect("a server").auth {
        ServerAuth::Token { token: Some(token) } => token.expose().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_may_be_in_a_file_of_its_own_without_the_end_of_its_line() {
    std::fs::write(dir().join("token"), "0123456789abcdef\n").expect("written");
    let server = token_server("token_file = \"token\"");
    assert_eq!(token_of(&server), b"0123456789abcdef");
    let client = format!("{CLIENT}[client.auth]\ntoken_file = \"token\"\n");
    let auth = accept(&client).client.expect("a client").auth;
    assert_eq!(auth.token.expect("a token").expose(), b"0123456789abcdef");
    let entry = "[[server.clients]]\nname = \"a\"\ntoken_file = \"token\"\nservices = [\"\"]\n";
    accept(&format!("{}{entry}", token_server("")));
}

#[test]
fn a_secret_in_the_place_of_its_file_is_not_repeated() {
    let secrets = [
        "hunter2",
        "correct horse battery staple",
        "0123456789abcdef0123456789abcdef",
        "8Kj2VnX4cWqkYh/VgcJ6Zq0sJvF1mB0a/w3cQm9pT1E=",
        &"8Kj2VnX4".repeat(100),
    ];
    let key = std::fs::read_to_string(dir().join("certs/server.key")).expect("read");
    let proxy = "server_name = \"server.example.com\"\nproxy = \"http://me@proxy:3128\"\n";
    let at = |secret: &str| {
        let value = format!("\"\"\"{secret}\"\"\"");
        let instead = |text: &str, file: &str| edited(text, &format!("\"{file}\""), &value);
        let with_proxy = format!("{proxy}password_file = {value}");
        [
            (
                "server.auth.token_file",
                token_server(&format!("token_file = {value}")),
            ),
            (
                "client.auth.token_file",
                format!("{CLIENT}[client.auth]\ntoken_file = {value}\n"),
            ),
            (
                "client.servers[0].password_file",
                edited(CLIENT, "server_name = \"server.example.com\"", &with_proxy),
            ),
            ("server.auth.ca_cert_file", instead(SERVER, "certs/ca.crt")),
            (
                "server.tls.server_cert_file",
                instead(SERVER, "certs/server.crt"),
            ),
            (
                "server.tls.server_key_file",
                instead(SERVER, "certs/server.key"),
            ),
            (
                "client.tls.client_key_file",
                instead(CLIENT, "certs/client.key"),
            ),
            (
                "server.tls.session_ticket_encryption_key_file",
                format!("{SERVER}session_ticket_encryption_key_file = {value}\n"),
            ),
            (
                "server.listeners[0].allow_file",
                edited(
                    SERVER,
                    "protocol = \"both\"",
                    &format!("protocol = \"both\"\nallow_file = {value}"),
                ),
            ),
        ]
    };
    for secret in secrets.into_iter().chain([key.as_str()]) {
        for (name, text) in at(secret) {
            let errors = refuse(&text).to_string();
            assert!(
                errors.contains(&format!("{name}: names a file that ")),
                "{errors}"
            );
            for part in secret.split(['\n', ' ']).filter(|part| part.len() > 5) {
                assert!(!errors.contains(part), "{part:?} in: {errors}");
            }
        }
    }
}

#[test]
fn a_token_file_that_is_of_no_use_is_told() {
    std::fs::write(dir().join("short"), "hunter2\n").expect("written");
    for (line, expected) in [
        (
            "token_file = \"none.token\"",
            "server.auth.token_file: none.token does not exist",
        ),
        (
            "token_file = \"certs\"",
            "server.auth.token_file: certs is not a file",
        ),
        (
            "token_file = \"short\"",
            "short has 7 bytes; it must hold at least 16 bytes",
        ),
        ("token_file = \"\"", "server.auth.token_file: is empty"),
        (
            "token = \"0123456789abcdef\"\ntoken_file = \"token\"",
            "server.auth.token_file: stands beside token; it must be one of them",
        ),
    ] {
        let message = problem(&token_server(line));
        assert!(message.contains(expected), "{message}\n{expected}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

fn with_environment(text: &str) -> Result<Config, Errors> {
    Config::parse_with(text, &path(), |name| -> Option<OsString> {
        match name {
            "TOKEN" => Some("a token from the environment".into()),
            "PORT" => Some("3001".into()),
            "LANES" => Some("4".into()),
            "YES" => Some("true".into()),
            "TRICK" => Some("${TOKEN}\"\nquoted".into()),
            _ => None,
        }
    })
}

#[test]
fn a_string_may_come_from_the_environment() {
    let config = with_environment(&token_server("token = \"${TOKEN}\""));
    let server = config.expect("accepted").server.expect("a server");
    let ServerAuth::Token { token: Some(token) } = server.auth else {
        panic!("{:?}", server.auth)
    };
    assert_eq!(token.expose(), b"a token from the environment");

    let client = edited(CLIENT, "port = 3000", "port = \"${PORT}\"");
    let client = edited(
        &client,
        "client_id = \"\"",
        "client_id = \"$${PORT} ${PORT}\"",
    );
    let client = with_environment(&client)
        .expect("accepted")
        .client
        .expect("a client");
    assert_eq!(client.services[0].check_port(), Some(3001));
    assert_eq!(client.client_id.as_deref(), Some("${PORT} 3001"));
}

#[test]
fn numbers_and_booleans_may_come_from_the_environment_everywhere() {
    let text = edited(CLIENT, "lanes = \"auto\"", "lanes = \"${LANES}\"")
        + "[quic]\nallow_0rtt = \"${YES}\"\n";
    let config = with_environment(&text).expect("accepted");
    let lanes = config.client.expect("a client").lanes;
    assert_eq!(lanes.to_string(), "4");
    assert!(config.quic.allow_0rtt);
    for (wrong, place) in [
        ("lanes = \"4\"", "client.lanes: "),
        ("lanes = \"${YES}\"", "client.lanes: "),
    ] {
        let text = edited(CLIENT, "lanes = \"auto\"", wrong);
        let errors = with_environment(&text).expect_err("refused").to_string();
        assert!(errors.contains(place), "{errors}");
    }
    for wrong in ["\"true\"", "\"${PORT}\""] {
        let text = format!("{CLIENT}[quic]\nallow_0rtt = {wrong}\n");
        let errors = with_environment(&text).expect_err("refused").to_string();
        assert!(errors.contains("it must be true or false"), "{errors}");
    }
}

#[test]
fn a_value_from_the_environment_cannot_bring_anything_but_itself() {
    let config = with_environment(&token_server("token = \"${TRICK}\""));
    let server = config.expect("accepted").server.expect("a server");
    let ServerAuth::Token { token: Some(token) } = server.auth else {
        panic!("{:?}", server.auth)
    };
    assert_eq!(token.expose(), b"${TOKEN}\"\nquoted");
}

#[test]
fn a_variable_that_is_not_set_is_named_with_its_key_and_nothing_of_the_text() {
    let text = token_server("token = \"hunter2${NO_SUCH}hunter2\"");
    let errors = with_environment(&text).expect_err("refused").to_string();
    assert!(
        errors.contains("server.auth.token: the environment variable NO_SUCH is not set"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
    let text = edited(SERVER, "\"0.0.0.0:8080\"", "\"${\"");
    let errors = with_environment(&text).expect_err("refused").to_string();
    assert!(
        errors.contains("server.listeners[0].traffic_addr: holds ${ without the name"),
        "{errors}"
    );
}
