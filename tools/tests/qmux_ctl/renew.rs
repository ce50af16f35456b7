//! `qmux-ctl certs renew`.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use qmux_config::{CertificateFacts, Config};

use crate::run::Place;

fn place() -> Place {
    let place = Place::new();
    let names = ["--server-name", "tunnel.test", "--server-name", "192.0.2.1"];
    place.ok(&[&["certs", "--days", "1000"][..], &names].concat());
    place
}

fn contents(place: &Place) -> BTreeMap<String, String> {
    let names = place.files("certs");
    names
        .into_iter()
        .map(|name| (name.clone(), place.read(&format!("certs/{name}"))))
        .collect()
}

fn facts(pem: &str) -> CertificateFacts {
    CertificateFacts::of_pem(pem).expect("a certificate")
}

#[test]
fn only_the_certificate_changes_and_only_in_its_validity() {
    for name in ["server", "client"] {
        let place = place();
        let file = format!("{name}.crt");
        let mode = Permissions::from_mode(0o640);
        fs::set_permissions(place.path(format!("certs/{file}")), mode).expect("set");
        let before = contents(&place);
        let ran = place.ok(&["certs", "renew", name, "--days", "30"]);
        assert!(
            ran.stdout
                .starts_with(&format!("renewed certs/{file}, valid until "))
        );
        let after = contents(&place);
        let changed: Vec<&String> = before
            .keys()
            .filter(|it| before[*it] != after[*it])
            .collect();
        assert_eq!(changed, [&file]);
        assert_eq!(after.len(), before.len(), "no file more");
        assert_eq!(place.mode(&format!("certs/{file}")), 0o640);
        let (old, new) = (facts(&before[&file]), facts(&after[&file]));
        assert_eq!(
            (new.subject, new.issuer, new.names),
            (old.subject, old.issuer, old.names)
        );
        assert_ne!(new.not_after, old.not_after);
    }
}

#[test]
fn renewed_certificates_are_good_for_what_they_were_good_for() {
    let place = place();
    place.ok(&["certs", "renew", "server"]);
    place.ok(&["certs", "renew", "client", "--certs", "certs"]);
    for role in ["server", "client"] {
        let name = format!("{role}.toml");
        place.ok(&["config", role, "--out", &name]);
        let config = Config::load(&place.path(&name)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.warnings, Vec::<String>::new());
    }
}

#[test]
fn no_certificate_outlives_its_ca() {
    let place = place();
    place.ok(&["certs", "renew", "server", "--days", "36500"]);
    let (server, ca) = (place.read("certs/server.crt"), place.read("certs/ca.crt"));
    assert_eq!(facts(&server).not_after, facts(&ca).not_after);
}

#[test]
fn the_certificate_in_a_clients_file_is_renewed_there() {
    let place = place();
    place.ok(&["client", "add", "nas", "--server", "tunnel.test:8443"]);
    let before = place.read("nas.toml");
    let certs = contents(&place);
    place.ok(&["certs", "renew", "nas", "--days", "30"]);
    let after = place.read("nas.toml");
    assert_eq!(contents(&place), certs);
    assert_eq!(place.mode("nas.toml"), 0o600);
    let cert = |text: &str| {
        let config = Config::parse(text, &place.path("nas.toml"));
        let client = config.unwrap_or_else(|errors| panic!("{errors}")).client;
        client
            .expect("a client")
            .tls
            .client_cert
            .expect("a certificate")
    };
    let (old, new) = (cert(&before), cert(&after));
    assert_eq!(new.key, old.key);
    assert_ne!(new.cert, old.cert);
    let end = |text: &str| text.split_once("client_key").map(|(_, end)| end.to_owned());
    assert_eq!(end(&after), end(&before), "what follows stays");
    place.ok(&["certs", "renew", "./nas.toml"]);
}

#[test]
fn a_name_without_a_certificate_is_no_reason_to_make_one() {
    let place = place();
    let message = place.refused(&["certs", "renew", "nsa"]);
    for word in [
        "no certificate of nsa",
        "nsa.crt",
        "nsa.toml",
        "client add nsa",
    ] {
        assert!(message.contains(word), "no {word} in: {message}");
    }
    assert!(!place.path("certs/nsa.crt").exists());
}

#[test]
fn what_the_ca_did_not_issue_is_left_alone() {
    let place = place();
    let (mine, other) = (place.read("certs/server.crt"), Place::new());
    other.ok(&["certs", "--server-name", "other.test"]);
    place.write("certs/server.crt", &other.read("certs/server.crt"));
    let message = place.refused(&["certs", "renew", "server"]);
    assert!(
        message.contains("certs/server.crt was issued by another CA"),
        "{message}"
    );
    place.write("certs/server.crt", &mine);
    place.write("certs/server.key", &other.read("certs/server.key"));
    let message = place.refused(&["certs", "renew", "server"]);
    assert!(
        message.contains("certs/server.crt does not belong to its key"),
        "{message}"
    );
    assert_eq!(place.read("certs/server.crt"), mine);
    let message = place.refused(&["certs", "renew", "ca"]);
    assert!(message.contains("a CA is not renewed"), "{message}");
    let message = place.refused(&["certs", "renew", "a/b"]);
    assert!(
        message.contains("neither a name nor the path of a .toml file"),
        "{message}"
    );
    let message = place.refused(&["certs", "renew", "none.toml"]);
    assert!(message.contains("none.toml does not exist"), "{message}");
}
