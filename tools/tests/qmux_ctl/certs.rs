//! `qmux-ctl certs`.

use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::run::Place;

const FILES: [&str; 6] = [
    "ca.crt",
    "ca.key",
    "client.crt",
    "client.key",
    "server.crt",
    "server.key",
];

#[test]
fn six_files_are_written_and_keys_are_private() {
    let place = Place::new();
    let ran = place.ok(&["certs", "--server-name", "server.example.com"]);
    assert_eq!(place.files("certs"), FILES);
    for name in FILES {
        assert!(
            ran.stdout.contains(&format!("wrote certs/{name}\n")),
            "{}",
            ran.stdout
        );
        let mode = place.mode(&format!("certs/{name}"));
        assert_eq!(mode == 0o600, name.ends_with(".key"), "{name}: {mode:o}");
    }
    assert!(
        ran.stdout
            .contains("Next, for each of them: qmux-ctl config server")
    );
    assert_eq!(ran.stderr, "");
}

#[test]
fn the_names_and_the_days_are_those_asked_for() {
    let place = Place::new();
    place.ok(&[
        "certs",
        "--server-name",
        "a.example.com",
        "--server-name",
        "192.0.2.1",
        "--days",
        "7",
        "--out",
        "x/y",
    ]);
    let pem = place.read("x/y/server.crt");
    let (_, pem) = parse_x509_pem(pem.as_bytes()).expect("PEM");
    let cert = pem.parse_x509().expect("a certificate");
    let names = cert
        .subject_alternative_name()
        .expect("parses")
        .expect("is there");
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::DNSName("a.example.com"),
            GeneralName::IPAddress(&[192, 0, 2, 1])
        ]
    );
    let validity = cert.validity();
    let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(seconds, 7 * 86_400 + 3_600, "a week, and an hour before");
}

#[test]
fn nothing_is_replaced_without_force() {
    let place = Place::new();
    place.ok(&["certs", "--server-name", "a.example.com"]);
    let before = place.read("certs/ca.key");
    let message = place.refused(&["certs", "--server-name", "a.example.com"]);
    assert!(
        message.contains("these files are already there: certs/ca.crt"),
        "{message}"
    );
    assert!(message.contains("--force replaces them"), "{message}");
    assert_eq!(place.read("certs/ca.key"), before);
    place.ok(&["certs", "--server-name", "a.example.com", "--force"]);
    assert_ne!(place.read("certs/ca.key"), before);
    assert_eq!(place.files("certs"), FILES);
}

#[test]
fn a_bad_request_exits_with_2() {
    let place = Place::new();
    let name = |name: &str| place.refused(&["certs", "--server-name", name]);
    assert!(name("a.example.com:8443").contains("\"a.example.com:8443\" is no server name"));
    assert!(place.refused(&["certs"]).contains("--server-name"));
    for days in ["0", "36501", "ten"] {
        let message = place.refused(&["certs", "--server-name", "a.example.com", "--days", days]);
        assert!(message.contains("--days"), "{message}");
    }
    assert_eq!(place.files("."), Vec::<String>::new());
}

#[test]
fn a_directory_that_cannot_be_made_exits_with_1() {
    let place = Place::new();
    place.write("file", "");
    let ran = place.run(&[
        "certs",
        "--server-name",
        "a.example.com",
        "--out",
        "file/certs",
    ]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with("qmux-ctl: file/certs cannot be written: "),
        "{}",
        ran.stderr
    );
}
