//! QMux's own layouts, with everything that they may contain.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::certs::{self, CertsRequest};
use crate::{ListenerProtocol, LoadBalancer, Quic, ServerAuth};

const SERVER: &str = r#"
listeners:
  - quic_addr: "0.0.0.0:8443"
    traffic_addr: ":8080"
    protocol: "both"
    capacity:
      max_client_generations: 16
      max_udp_sessions: 1024
    initialstreamreceivewindow: 524288
    maxstreamreceivewindow: 6291456
    maxincomingstreams: 1000
    keepaliveperiod: 30s
    maxidletimeout: 5m
    allow0rtt: false
    udp:
      enable_fragmentation: false
      read_buffer_size: 65535
  - quic_addr: "0.0.0.0:8444"
    traffic_addr: "0.0.0.0:8081"
    protocol: tcp
    maxidletimeout: 1m
auth:
  method: "mtls"
  ca_cert_file: "./certs/ca.crt"
tls:
  server_cert_file: "./certs/server.crt"
  server_key_file: "./certs/server.key"
  session_ticket_encryption_key_rotation_interval: 12h
  session_ticket_encryption_key_rotation_overlap: 3
load_balancer: "round-robin"
heartbeat_interval: 5s
health_timeout: 1m30s
"#;

const CLIENT: &str = r#"
client_id: "edge-1"
server:
  servers:
    - address: "server.example.com:8443"
      server_name: "qmux-server"
    - address: "server.example.com:8443"
local:
  host: "127.0.0.1"
  port: 8080
quic:
  handshakeidletimeout: 10s
udp:
  enable_fragmentation: true
auth:
  method: mtls
tls:
  ca_cert_file: "./certs/ca.crt"
  client_cert_file: "./certs/client.crt"
  client_key_file: "./certs/client.key"
heartbeat_interval: 30s
capacity:
  max_local_udp_sessions: 256
colour: blue
"#;

fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let request = CertsRequest {
        server_names: vec!["qmux-server".to_owned()],
        days: 90,
    };
    let certs = certs::generate(&request).expect("certificates");
    certs::write(&certs, &dir.path().join("certs"), false).expect("written");
    let path = dir.path().join("dp.toml");
    (dir, path)
}

/// Imports a text, and loads the result.
fn imported(yaml: &str) -> (Config, Vec<String>) {
    let (_dir, path) = target();
    let imported = import(yaml, &path).expect("imported");
    let config = Config::parse(&imported.toml, &path)
        .unwrap_or_else(|errors| panic!("{errors}\n{}", imported.toml));
    (
        config,
        imported.notes.iter().map(ToString::to_string).collect(),
    )
}

/// Notes other than those on relative paths, which every file has.
fn notes(all: &[String]) -> Vec<&str> {
    all.iter()
        .map(String::as_str)
        .filter(|note| !note.contains("starts at the directory"))
        .collect()
}

#[test]
fn a_server_arrives_with_its_values() {
    let (config, _) = imported(SERVER);
    let server = config.server.expect("a server");
    assert_eq!(server.load_balancer, LoadBalancer::RoundRobin);
    assert_eq!(server.heartbeat_interval, Duration::from_secs(5));
    assert_eq!(server.health_timeout, Duration::from_secs(90));
    let listeners = server.listeners();
    let addresses: Vec<String> = listeners
        .iter()
        .map(|it| format!("{} {}", it.quic_addr, it.traffic_addr))
        .collect();
    assert_eq!(
        addresses,
        ["0.0.0.0:8443 [::]:8080", "0.0.0.0:8444 0.0.0.0:8081"]
    );
    assert_eq!(listeners[0].protocol, ListenerProtocol::Both);
    assert_eq!(listeners[1].protocol, ListenerProtocol::Tcp);
    assert!(matches!(server.auth, ServerAuth::Mtls { .. }));
    let half_a_day = Duration::from_secs(43_200);
    assert_eq!(
        server.tls.session_ticket_encryption_key_rotation_interval,
        half_a_day
    );
    assert_eq!(server.tls.session_ticket_encryption_key_rotation_overlap, 3);
    let quic = Quic {
        initial_stream_receive_window: 512 << 10,
        max_stream_receive_window: 6 << 20,
        max_incoming_streams: 1000,
        keep_alive_period: Duration::from_secs(30),
        max_idle_timeout: Duration::from_secs(300),
        allow_0rtt: false,
        ..Quic::default()
    };
    assert_eq!(config.quic, quic);
    assert!(!config.udp.enable_fragmentation);
}

#[test]
fn what_a_server_loses_is_noted_with_its_line() {
    let (_, all) = imported(SERVER);
    let paths = all
        .iter()
        .filter(|note| note.contains("starts at the directory"))
        .count();
    assert_eq!(paths, 3);
    let expected = [
        "line 4: listeners[0].traffic_addr: \":8080\" became \"[::]:8080\"",
        "line 7: listeners[0].capacity.max_client_generations: has no counterpart",
        "line 8: listeners[0].capacity.max_udp_sessions: has no counterpart",
        "line 17: listeners[0].udp.read_buffer_size: has no counterpart",
        "line 21: listeners[1].maxidletimeout: listeners share one setting here; the first one's, 5m, was kept",
    ];
    let notes = notes(&all);
    assert_eq!(notes.len(), expected.len(), "{notes:#?}");
    for (note, expected) in notes.iter().zip(expected) {
        assert!(note.starts_with(expected), "{note}");
    }
}

#[test]
fn early_data_that_one_listener_turns_off_is_off_for_all_and_noted() {
    let with = |first: &str, second: &str| {
        let yaml = SERVER
            .replace("    allow0rtt: false\n", first)
            .replace("    maxidletimeout: 1m\n", second);
        let (config, all) = imported(&yaml);
        let noted = all.iter().filter(|note| note.contains("allow0rtt")).count();
        (config.quic.allow_0rtt, noted)
    };
    let (on, off) = ("    allow0rtt: true\n", "    allow0rtt: false\n");
    assert_eq!(with(on, off), (false, 1));
    assert_eq!(with("", off), (false, 1));
    assert_eq!(with(off, on), (false, 1));
    assert_eq!(with(off, off), (false, 0));
    assert_eq!(with("", on), (true, 1));
    assert_eq!(with(on, ""), (true, 0));
}

#[test]
fn a_client_arrives_with_its_values() {
    let (config, all) = imported(CLIENT);
    let client = config.client.expect("a client");
    assert_eq!(client.client_id.as_deref(), Some("edge-1"));
    assert_eq!(client.servers.len(), 1);
    assert_eq!(client.servers[0].server_name, "qmux-server");
    assert_eq!(client.services[0].check_port(), Some(8080));
    assert_eq!(client.heartbeat_interval, Duration::from_secs(30));
    assert_eq!(
        client.health_timeout,
        Duration::from_secs(90),
        "follows the heartbeat"
    );
    assert!(client.tls.client_cert.is_some());
    assert_eq!(config.quic.handshake_idle_timeout, Duration::from_secs(10));
    let expected = [
        "line 7: server.servers[1].address: is there twice",
        "line 23: capacity.max_local_udp_sessions: has no counterpart",
        "line 24: colour: is not a key of QMux that is known here; it was left out",
    ];
    let notes = notes(&all);
    assert_eq!(notes.len(), expected.len(), "{notes:#?}");
    for (note, expected) in notes.iter().zip(expected) {
        assert!(note.starts_with(expected), "{note}");
    }
}

#[test]
fn a_token_arrives_and_the_certificates_go() {
    let client = CLIENT.replace(
        "method: mtls",
        "method: token\n  token: 01234567890123456789",
    );
    let (config, all) = imported(&client);
    let client = config.client.expect("a client");
    let token = client.auth.token.expect("a token");
    assert_eq!(
        token.expose(),
        b"01234567890123456789",
        "as written, though it looks like a number"
    );
    assert_eq!(client.tls.client_cert, None);
    assert!(
        all.iter()
            .any(|note| note.contains("client_key_file: is not used with method token"))
    );
    assert!(
        all.iter().all(|note| !note.contains("0123456789")),
        "{all:?}"
    );

    let server = SERVER.replace(
        "\"mtls\"",
        "token\n  token: \"quote \\\" and \\\\ backslash\"",
    );
    let (config, all) = imported(&server);
    let ServerAuth::Token { token: Some(token) } = config.server.expect("a server").auth else {
        panic!("no token")
    };
    assert_eq!(token.expose(), b"quote \" and \\ backslash");
    assert!(
        all.iter()
            .any(|note| note.contains("ca_cert_file: is not used with method token"))
    );
}

#[test]
fn settings_that_would_be_refused_are_brought_into_range() {
    let quic = |keys: &str| {
        let yaml = CLIENT.replace("  handshakeidletimeout: 10s\n", keys);
        let (config, all) = imported(&yaml);
        (config.quic, all.join("\n"))
    };
    let (settings, all) = quic("  keepaliveperiod: 1m\n");
    assert_eq!(settings.max_idle_timeout, Duration::from_secs(300));
    assert!(
        all.contains("quic.keepaliveperiod: needs a longer idle timeout"),
        "{all}"
    );
    let (settings, all) = quic("  keepaliveperiod: 1m\n  maxidletimeout: 30s\n");
    assert_eq!(settings.keep_alive_period, Duration::from_secs(10));
    assert!(all.contains("quic.keepaliveperiod: is not below the idle timeout; it became 10s"));
    let (settings, all) =
        quic("  initialstreamreceivewindow: 8388608\n  maxstreamreceivewindow: 4194304\n");
    assert_eq!(settings.initial_stream_receive_window, 4 << 20);
    assert!(
        all.contains("is above the maximum; it became 4MiB"),
        "{all}"
    );
    let (settings, all) = quic("  maxstreamreceivewindow: 1\n  max_incoming_streams: -1\n");
    assert_eq!(settings.max_stream_receive_window, 16 << 10);
    assert_eq!(
        settings.max_incoming_streams,
        Quic::default().max_incoming_streams
    );
    assert!(all.contains("1B is outside of what qmux-dp has, 16KiB to 1GiB; it became 16KiB"));
    assert!(all.contains("\"-1\" is no number"), "{all}");
}

#[test]
fn zero_and_null_mean_the_default() {
    let yaml = CLIENT.replace(
        "  handshakeidletimeout: 10s\n",
        "  maxidletimeout: 0\n  maxincomingstreams: 0\n  keepaliveperiod: null\n  allow0rtt: ~\n",
    );
    let (config, all) = imported(&yaml);
    assert_eq!(config.quic, Quic::default());
    assert!(!all.iter().any(|note| note.contains("quic.")), "{all:?}");
}

#[test]
fn sections_without_content_are_no_problem() {
    let yaml = CLIENT
        .replace("  handshakeidletimeout: 10s\n", "  # nothing\n")
        .replace("  enable_fragmentation: true\n", "");
    imported(&yaml);
}

#[test]
fn what_cannot_load_is_said() {
    let (_dir, path) = target();
    let imported = import(
        &SERVER.replace("0.0.0.0:8444", "tunnel.example.com:8444"),
        &path,
    );
    let notes: Vec<String> = imported
        .expect("imported")
        .notes
        .iter()
        .map(ToString::to_string)
        .collect();
    let last = notes.last().expect("notes");
    assert!(
        last.starts_with(
            "server.listeners[1].quic_addr: must be put right before the file loads: \
             \"tunnel.example.com\" is a name"
        ),
        "{last}"
    );
}

#[test]
fn missing_certificates_are_no_news() {
    let imported = import(SERVER, Path::new("/nowhere/dp.toml")).expect("imported");
    assert!(
        imported.notes.iter().all(|note| note.line.is_some()),
        "{:#?}",
        imported.notes
    );
}

#[test]
fn other_files_are_refused_in_so_many_words() {
    let path = Path::new("dp.toml");
    let refused = |yaml: &str| import(yaml, path).expect_err(yaml);
    assert_eq!(
        refused("tunnel:\n  listen: {}\nlisteners: []\n"),
        ImportError::Mesh
    );
    for yaml in ["", "a: 1\n", "- 1\n", "hello", "null"] {
        assert_eq!(refused(yaml), ImportError::NoRole, "{yaml:?}");
    }
    let ImportError::Syntax { line, .. } = refused("local:\n  host: \"a\n") else {
        panic!("not a syntax error")
    };
    assert!(line >= 2);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|[:\\-\n \"'&*{}\\[\\]]){0,80}") {
        let _ = import(&text, Path::new("dp.toml"));
    }

    #[test]
    fn no_slip_makes_it_panic(at in any::<prop::sample::Index>(), length in 0_usize..30, with in "(\\PC|[:\n -]){0,6}") {
        for yaml in [SERVER, CLIENT] {
            let start = at.index(yaml.len());
            let end = (start + length).min(yaml.len());
            let spoiled = format!("{}{with}{}", &yaml[..start], &yaml[end..]);
            if let Ok(imported) = import(&spoiled, Path::new("dp.toml")) {
                let valid = toml::de::DeTable::parse(&imported.toml).is_ok();
                prop_assert!(valid, "{}", imported.toml);
            }
        }
    }
}
