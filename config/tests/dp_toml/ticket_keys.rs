//! The file of session ticket keys.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::fixture::{SERVER, accept, dir, edited, problem};

/// The server's text with a key file of this content.
fn with_key_file(name: &str, content: &str, mode: u32) -> String {
    let path: PathBuf = dir().join(name);
    fs::write(&path, content).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
    named(name)
}

fn named(name: &str) -> String {
    let line = "session_ticket_encryption_key_rotation_overlap = 2\n";
    let with = format!("{line}session_ticket_encryption_key_file = {name:?}\n");
    edited(SERVER, line, &with)
}

#[test]
fn ticket_keys_may_come_from_a_file() {
    let without = accept(SERVER).server.expect("a server").tls;
    assert_eq!(without.session_ticket_encryption_key, None);
    let text = with_key_file(
        "two.keys",
        &format!("{}\n{}\n", "0a".repeat(80), "0b".repeat(48)),
        0o600,
    );
    let config = accept(&text);
    assert_eq!(config.warnings, Vec::<String>::new());
    let tls = config.server.expect("a server").tls;
    assert_eq!(
        tls.session_ticket_encryption_key,
        Some(dir().join("two.keys").into())
    );
}

#[test]
fn a_wrong_ticket_key_is_refused_with_both_lines() {
    let text = with_key_file(
        "wrong.keys",
        &format!("# ours\n{}\nabc\n", "0a".repeat(80)),
        0o600,
    );
    assert_eq!(
        problem(&text),
        "dp.toml:18:38: server.tls.session_ticket_encryption_key_file: wrong.keys has no key in line \
         3; it must be 48 or 80 bytes in base64 or hexadecimal, for example from: openssl rand -hex 80"
    );
}

#[test]
fn a_ticket_key_file_that_is_not_there_is_refused() {
    assert_eq!(
        problem(&named("no.keys")),
        "dp.toml:18:38: server.tls.session_ticket_encryption_key_file: no.keys does not exist; \
         qmux-ctl ticket-key makes one to start with"
    );
}

#[test]
fn ticket_keys_that_everybody_can_read_are_a_warning() {
    let text = with_key_file("open.keys", &"0c".repeat(80), 0o644);
    let warnings = accept(&text).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("open.keys can be read by every user of this host"),
        "{warnings:?}"
    );
}
