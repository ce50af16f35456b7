//! A directory with certificates, valid texts to spoil, and a way to look at what is said then.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use qmux_config::certs::{self, CertsRequest};
use qmux_config::{Config, Errors};
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let request = CertsRequest {
        server_names: vec!["server.example.com".to_owned()],
        days: 90,
    };
    let generated = certs::generate(&request).expect("certificates");
    certs::write(&generated, &dir.path().join("certs"), false).expect("written");
    dir
});

pub(crate) const SERVER: &str = r#"[server]
load_balancer = "least-connections"
heartbeat_interval = "10s"
health_timeout = "30s"
drain_timeout = "30s"
[[server.listeners]]
quic_addr = "0.0.0.0:8443"
traffic_addr = "0.0.0.0:8080"
protocol = "both"
[server.auth]
method = "mtls"
ca_cert_file = "certs/ca.crt"
[server.tls]
server_cert_file = "certs/server.crt"
server_key_file = "certs/server.key"
session_ticket_encryption_key_rotation_interval = "24h"
session_ticket_encryption_key_rotation_overlap = 2
"#;

pub(crate) const CLIENT: &str = r#"[client]
client_id = ""
lanes = "auto"
heartbeat_interval = "10s"
health_timeout = "30s"
[[client.servers]]
address = "server.example.com:8443"
server_name = "server.example.com"
[client.local]
host = "127.0.0.1"
port = 3000
[client.tls]
ca_cert_file = "certs/ca.crt"
client_cert_file = "certs/client.crt"
client_key_file = "certs/client.key"
"#;

/// The directory of the texts' certificates.
pub(crate) fn dir() -> &'static Path {
    DIR.path()
}

pub(crate) fn path() -> PathBuf {
    dir().join("dp.toml")
}

/// `text` with `from`, which must occur once, replaced.
pub(crate) fn edited(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} occurs once");
    text.replace(from, to)
}

pub(crate) fn accept(text: &str) -> Config {
    Config::parse(text, &path()).unwrap_or_else(|errors| panic!("{errors}\n---\n{text}"))
}

pub(crate) fn refuse(text: &str) -> Errors {
    match Config::parse(text, &path()) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors,
    }
}

/// The problems, one a line, without the directory.
pub(crate) fn problems(text: &str) -> Vec<String> {
    let prefix = format!("{}/", dir().display());
    refuse(text)
        .problems()
        .iter()
        .map(|problem| problem.to_string().replace(&prefix, ""))
        .collect()
}

/// The only problem of a text.
#[track_caller]
pub(crate) fn problem(text: &str) -> String {
    let mut problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.remove(0)
}
