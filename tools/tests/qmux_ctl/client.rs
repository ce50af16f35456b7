//! `qmux-ctl client add`: one file for the client, one entry for the server.

use std::fs;

use qmux_config::{CertificateNames, ClientMatcher, Config};

use crate::run::Place;

/// A directory with certificates of a server that is called `tunnel.test`.
fn place() -> Place {
    let place = Place::new();
    place.ok(&["certs", "--server-name", "tunnel.test"]);
    place
}

fn load(place: &Place, name: &str) -> Config {
    Config::load(&place.path(name)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The names in the certificate of a client's file.
fn names(config: &Config) -> CertificateNames {
    let client = config.client.as_ref().expect("a client");
    let cert = client.tls.client_cert.as_ref().expect("a certificate");
    assert_eq!(cert.cert.file(), None, "in the file itself");
    let pem = cert.cert.read_pem().expect("PEM");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    CertificateNames::of(&pem.contents).expect("a certificate")
}

#[test]
fn one_file_is_written_that_is_complete_and_private_and_nothing_else_changes() {
    let place = place();
    let before: Vec<String> = place.files("certs");
    let ran = place.ok(&[
        "client",
        "add",
        "nas",
        "--server",
        "tunnel.test:8443",
        "--services",
        "web,ssh=127.0.0.1:22,games=[::1]:30000-30009,any=10.0.0.1:same",
    ]);
    assert_eq!(place.files("."), ["certs", "nas.toml"]);
    assert_eq!(place.files("certs"), before);
    assert_eq!(place.mode("nas.toml"), 0o600);
    let config = load(&place, "nas.toml");
    assert_eq!(config.warnings, Vec::<String>::new());
    let client = config.client.as_ref().expect("a client");
    assert_eq!(client.servers[0].address, "tunnel.test:8443");
    let services: Vec<String> = client
        .services
        .iter()
        .map(|it| format!("{}={}:{}", it.name, it.host, it.ports))
        .collect();
    let expected = [
        "web=127.0.0.1:3000",
        "ssh=127.0.0.1:22",
        "games=::1:30000-30009",
        "any=10.0.0.1:same",
    ];
    assert_eq!(services, expected);
    assert_eq!(
        ran.stdout,
        "[[server.clients]]\nname = \"nas\"\ncertificate = \"nas\"\n\
         services = [\"web\", \"ssh\", \"games\", \"any\"]\n"
    );
    assert!(ran.stderr.contains("wrote nas.toml\n"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("put host and port right for: web\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_entry_that_is_printed_is_for_the_certificate_that_was_made() {
    let place = place();
    let args = [
        "client",
        "add",
        "nas",
        "--server",
        "tunnel.test:8443",
        "--services",
        "web",
    ];
    let entry = place.ok(&args).stdout;
    place.ok(&["config", "server", "--out", "server.toml"]);
    let server = place.read("server.toml") + &entry;
    place.write("server.toml", &server);
    let server = load(&place, "server.toml");
    assert_eq!(server.warnings, Vec::<String>::new());
    let matcher = ClientMatcher::new(server.server.as_ref().expect("a server"));
    let admission = matcher.by_certificate(&names(&load(&place, "nas.toml")));
    assert_eq!(admission.identity(), Some("nas"));
    assert!(admission.may_serve("web") && !admission.may_serve("ssh"));
}

#[test]
fn without_services_it_is_the_nameless_one() {
    let place = place();
    let args = [
        "client",
        "add",
        "nas",
        "--server",
        "tunnel.test:1",
        "--out",
        "x/dp.toml",
    ];
    let ran = place.ok(&args);
    assert!(
        ran.stdout.ends_with("services = [\"\"]\n"),
        "{}",
        ran.stdout
    );
    let client = load(&place, "x/dp.toml").client.expect("a client");
    assert_eq!(client.services.len(), 1);
    assert_eq!(client.services[0].name, "");
    assert_eq!(client.services[0].check_port(), Some(3_000));
}

#[test]
fn a_server_dialled_by_another_name_is_expected_to_have_its_own() {
    let place = place();
    let ran = place.ok(&["client", "add", "nas", "--server", "127.0.0.1:8443"]);
    assert!(
        ran.stderr.contains("expects its name tunnel.test"),
        "{}",
        ran.stderr
    );
    let client = load(&place, "nas.toml").client.expect("a client");
    assert_eq!(client.servers[0].server_name, "tunnel.test");
}

#[test]
fn a_file_that_is_there_is_never_replaced() {
    let place = place();
    place.write("nas.toml", "mine");
    let message = place.refused(&["client", "add", "nas", "--server", "tunnel.test:1"]);
    assert_eq!(
        message,
        "qmux-ctl: nas.toml is already there; nothing was written; --out names another file\n"
    );
    assert_eq!(place.read("nas.toml"), "mine");
}

#[test]
fn bad_input_is_refused_with_what_would_be_right() {
    let place = place();
    let add = |args: &[&str]| {
        let all = [&["client", "add"], args].concat();
        place.refused(&all)
    };
    let server = ["--server", "tunnel.test:1"];
    for (args, expected) in [
        (vec!["a b"], "it must be 1 to 64 of A-Z a-z 0-9 . _ -"),
        (vec!["../nas"], "it must be 1 to 64 of"),
        (vec!["server"], "it must be another one"),
        (
            vec!["nas", "--services", "a/b"],
            "\"a/b\" is no name of a service",
        ),
        (
            vec!["nas", "--services", "web=3000"],
            "has no port; it must be NAME or NAME=HOST:PORT",
        ),
        (vec!["nas", "--services", "web=a:0"], "port 0"),
        (vec!["nas", "--services", "web,web"], "is the name of line"),
        (
            vec!["nas", "--certs", "none"],
            "none/ca.crt does not exist; a directory with a CA comes",
        ),
    ] {
        let message = add(&[args.as_slice(), &server].concat());
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let message = add(&["nas", "--server", "tunnel.test"]);
    assert!(message.contains("\"tunnel.test\" has no port"), "{message}");
    let key = place.read("certs/client.key");
    fs::write(place.path("certs/ca.key"), key).expect("written");
    let message = add(&[&["nas"][..], &server].concat());
    assert!(
        message.contains("certs/ca.key does not belong to the CA certificate"),
        "{message}"
    );
    assert_eq!(place.files("."), ["certs"], "nothing was written");
}
