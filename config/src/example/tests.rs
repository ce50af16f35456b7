//! The examples must work, and must contain every key.

use std::path::{Path, PathBuf};

use super::*;
use crate::certs::{self, CertsRequest};
use crate::keys::KEYS;
use crate::{Config, Quic, Udp};

fn dir_with_certs() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let request = CertsRequest {
        server_names: vec!["server.example.com".to_owned()],
        days: 90,
    };
    let certs = certs::generate(&request).expect("certificates");
    certs::write(&certs, &dir.path().join("certs"), false).expect("written");
    let ticket_key = dir.path().join("certs/ticket.key");
    for list in ["allowed.txt", "denied.txt"] {
        std::fs::write(dir.path().join(list), "192.0.2.0/24\n").expect("written");
    }
    std::fs::write(&ticket_key, "0f".repeat(80)).expect("written");
    let path = dir.path().join("dp.toml");
    (dir, path)
}

/// The text with every commented-out key and section switched on.
fn switched_on(text: &str, token: &str) -> String {
    let lines = text.lines().map(|line| {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let is_key = bare.split_once(" = ").is_some_and(|(key, _)| {
            key.chars()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_')
        });
        let line = if is_key || bare.starts_with('[') {
            bare
        } else {
            line
        };
        line.replace("token = \"\"", &format!("token = {token:?}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Keys that replace another one, or have no default, which the examples have as well.
const ALTERNATIVES: &[&str] = &[
    "ca_cert",
    "crl_file",
    "crl",
    "server_cert",
    "server_key",
    "session_ticket_encryption_key",
    "client_cert",
    "client_key",
    "fingerprint",
    "token_file",
    "proxy",
    "password_file",
    "allow_file",
    "deny_file",
    "handover",
];

/// The text without keys that exclude others of the same section.
fn without_alternatives(text: &str) -> String {
    let mut section = "";
    let mut kept = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let key = line.split_once(" = ").map_or("", |(key, _)| key);
        let of_other_method = section == "[[server.clients]]" && key == "token";
        if !ALTERNATIVES.contains(&key) && !of_other_method {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn is_key(line: &str) -> bool {
    line.split_once(" = ").is_some_and(|(key, _)| {
        key.chars()
            .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_')
    })
}

fn parse(text: &str, path: &Path) -> Config {
    Config::parse(text, path).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_examples_are_valid_as_they_stand() {
    let (_dir, path) = dir_with_certs();
    let server = parse(server(), &path);
    assert!(server.server.is_some() && server.client.is_none());
    assert_eq!(server.warnings, Vec::<String>::new());
    let client = parse(client(), &path);
    assert!(client.client.is_some() && client.server.is_none());
    assert_eq!(client.warnings, Vec::<String>::new());
}

#[test]
fn what_the_examples_call_a_default_is_the_default() {
    let (_dir, path) = dir_with_certs();
    for text in [server(), client()] {
        let text_of_all = without_alternatives(&switched_on(text, "0123456789abcdef"));
        let config = parse(&text_of_all, &path);
        assert_eq!(config.quic, Quic::default());
        assert_eq!(config.udp, Udp::default());
        let untouched = parse(text, &path);
        assert_eq!((config.quic, config.udp), (untouched.quic, untouched.udp));
    }
    let of_all = |text| {
        parse(
            &without_alternatives(&switched_on(text, "0123456789abcdef")),
            &path,
        )
    };
    let (all, plain) = (of_all(server()).server, parse(server(), &path).server);
    let service = |server: Option<crate::Server>| server.expect("a server").doors.remove(0);
    assert_eq!(service(all), service(plain));
    let (all, plain) = (of_all(client()).client, parse(client(), &path).client);
    let named = |client: Option<crate::Client>| client.expect("a client").services.pop();
    assert_eq!(named(all), named(plain));
    let minimal: String = server()
        .lines()
        .filter(|line| {
            ![
                "load_balancer",
                "heartbeat",
                "health",
                "drain",
                "session_ticket",
            ]
            .iter()
            .any(|key| line.starts_with(key))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(parse(&minimal, &path).server, parse(server(), &path).server);
}

#[test]
fn every_key_appears_in_an_example() {
    let mut shown = Vec::new();
    for text in [server(), client()] {
        let text = switched_on(text, "0123456789abcdef");
        let table = toml::de::DeTable::parse(&text).expect("TOML").into_inner();
        collect_keys("", &toml::de::DeValue::Table(table), &mut shown);
    }
    for key in KEYS {
        assert!(
            shown.iter().any(|shown| shown == key),
            "{key} is in no example"
        );
    }
    for shown in &shown {
        assert!(
            KEYS.contains(&shown.as_str()),
            "{shown} is in an example, but not among the keys"
        );
    }
}

fn collect_keys(name: &str, value: &toml::de::DeValue<'_>, keys: &mut Vec<String>) {
    use toml::de::DeValue;
    match value {
        DeValue::Table(table) => {
            for (key, value) in table {
                let key = key.get_ref();
                let name = if name.is_empty() {
                    key.to_string()
                } else {
                    format!("{name}.{key}")
                };
                collect_keys(&name, value.get_ref(), keys);
            }
        }
        DeValue::Array(array) if !array.is_empty() => {
            for value in array {
                collect_keys(name, value.get_ref(), keys);
            }
        }
        _ => keys.push(name.to_owned()),
    }
}

#[test]
fn every_key_has_a_comment_above_it() {
    for text in [server(), client()] {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if is_key(line.strip_prefix("# ").unwrap_or(line)) {
                let above = lines[index.saturating_sub(1)];
                let commented = above.starts_with("# ") && !above.starts_with("# [");
                assert!(
                    commented || above.contains(" = "),
                    "no comment above {line:?}"
                );
            }
        }
    }
}
