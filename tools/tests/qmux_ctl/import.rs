//! `qmux-ctl import`.

use qmux_config::Config;

use crate::run::Place;

const SERVER: &str = "\
listeners:
  - quic_addr: \"0.0.0.0:8443\"
    traffic_addr: \"0.0.0.0:8080\"
    protocol: both
    capacity:
      max_tcp_connections: 128
auth:
  method: mtls
  ca_cert_file: /certs/ca.crt
tls:
  server_cert_file: /certs/server.crt
  server_key_file: /certs/server.key
";

/// A place with certificates, and the YAML with its paths put there.
fn place() -> Place {
    let place = Place::new();
    place.ok(&["certs", "--server-name", "server.example.com"]);
    let certs = place.path("certs").display().to_string();
    place.write("server.yaml", &SERVER.replace("/certs", &certs));
    place
}

#[test]
fn the_config_goes_to_standard_output_and_the_notes_do_not() {
    let place = place();
    let ran = place.ok(&["import", "server.yaml"]);
    assert!(
        ran.stdout
            .contains("[[server.listeners]]\nquic_addr = \"0.0.0.0:8443\"\n")
    );
    let note = "server.yaml:6: listeners[0].capacity.max_tcp_connections: has no counterpart";
    assert!(ran.stderr.starts_with(note), "{}", ran.stderr);
    assert!(
        ran.stderr
            .ends_with("notes on what did not carry over as it was: 1\n")
    );
}

#[test]
fn the_file_that_is_written_loads() {
    let place = place();
    let ran = place.ok(&["import", "server.yaml", "--out", "dp.toml"]);
    assert!(ran.stdout.starts_with("wrote dp.toml\n"), "{}", ran.stdout);
    let config = Config::load(&place.path("dp.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(
        config.server.map(|server| server.listeners().len()),
        Some(1)
    );
    let message = place.refused(&["import", "server.yaml", "--out", "dp.toml"]);
    assert!(message.contains("dp.toml is already there"), "{message}");
    place.ok(&["import", "server.yaml", "--out", "dp.toml", "--force"]);
}

#[test]
fn a_token_is_written_for_its_owner_alone_and_never_shown() {
    let place = place();
    let yaml = place.read("server.yaml");
    let yaml = yaml.replace(
        "method: mtls",
        "method: token\n  token: hunter2hunter2hunter2",
    );
    place.write("server.yaml", &yaml);
    let ran = place.ok(&["import", "server.yaml", "--out", "dp.toml"]);
    assert!(
        place
            .read("dp.toml")
            .contains("token = \"hunter2hunter2hunter2\"")
    );
    assert_eq!(place.mode("dp.toml"), 0o600);
    assert!(
        !ran.stdout.contains("hunter2") && !ran.stderr.contains("hunter2"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_file_that_is_not_qmux_is_refused() {
    let place = Place::new();
    place.write("broken.yaml", "listeners:\n  - \"a\n");
    let message = place.refused(&["import", "broken.yaml"]);
    assert!(message.starts_with("qmux-ctl: broken.yaml:"), "{message}");
    assert!(message.contains("is not valid YAML"), "{message}");
    place.write("other.yaml", "a: 1\n");
    let message = place.refused(&["import", "other.yaml"]);
    assert!(
        message.contains("other.yaml: holds neither a QMux server"),
        "{message}"
    );
    let message = place.refused(&["import", "none.yaml"]);
    assert!(message.contains("none.yaml: cannot be read"), "{message}");
    let message = place.refused(&["import", "."]);
    assert!(message.contains("is a directory"), "{message}");
}
