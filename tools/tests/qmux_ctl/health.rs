//! `qmux-ctl health`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use crate::run::Place;

/// A client's config whose admin endpoint is at this address.
fn config(place: &Place, listen: &str) {
    place.ok(&["certs", "--server-name", "a.test"]);
    let text = format!(
        "[client]\n[[client.servers]]\naddress = \"a.test:8443\"\n\
         [client.local]\nhost = \"127.0.0.1\"\nport = 3000\n[client.tls]\n\
         ca_cert_file = \"certs/ca.crt\"\nclient_cert_file = \"certs/client.crt\"\n\
         client_key_file = \"certs/client.key\"\n{listen}"
    );
    place.write("dp.toml", &text);
}

/// An endpoint that gives one answer, and the question that it gets.
fn endpoint(status: &'static str, words: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a question");
        let mut question = [0; 1_024];
        let length = stream.read(&mut question).expect("a question");
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{words}\n");
        stream.write_all(answer.as_bytes()).expect("taken");
        String::from_utf8_lossy(&question[..length]).into_owned()
    });
    (address, answers)
}

#[test]
fn what_the_endpoint_says_decides_the_exit_code() {
    for (status, words, code) in [
        ("200 OK", "every core makes progress", 0),
        ("503 Service Unavailable", "core 1 stands still", 1),
    ] {
        let place = Place::new();
        let (address, answers) = endpoint(status, words);
        config(&place, &format!("[admin]\nlisten = \"{address}\"\n"));
        let ran = place.run(&["health", "--config", "dp.toml"]);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert!((ran.stdout + &ran.stderr).contains(words));
        assert!(answers.join().expect("asked").starts_with("GET /healthz "));
    }
}

#[test]
fn without_an_endpoint_it_is_the_config_that_is_wrong() {
    let place = Place::new();
    config(&place, "");
    let said = place.refused(&["health", "--config", "dp.toml"]);
    assert!(said.contains("admin.listen is missing"), "{said}");
}

#[test]
fn only_the_address_of_the_endpoint_need_be_usable() {
    for spoil in [
        // A key that this user cannot read, a variable of the process alone, a typing mistake, a
        // value of another version, a file that somebody is editing.
        |text: &str| text.replacen("certs/client.key", "certs/missing.key", 1),
        |text: &str| text.replacen("a.test:8443", "${ONLY_OF_THE_PROCESS}:8443", 1),
        |text: &str| text.replacen("port = 3000", "prt = 3000", 1),
        |text: &str| text.replacen("[client]\n", "[client]\nlanes = -1\nlanes = 3\n", 1),
        |text: &str| format!("{text}[quic]\nkeep_alive_period = \n"),
    ] {
        let place = Place::new();
        let (address, _answers) = endpoint("200 OK", "every core makes progress");
        config(&place, &format!("[admin]\nlisten = \"{address}\"\n"));
        place.write("dp.toml", &spoil(&place.read("dp.toml")));
        let ran = place.run(&["health", "--config", "dp.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_its_line() {
    let place = Place::new();
    config(&place, "[admin]\nlisten = \"localhost:9600\"\n");
    let said = place.refused(&["status", "--config", "dp.toml"]);
    assert!(said.contains("dp.toml:12:10: admin.listen: "), "{said}");
    place.write("dp.toml", "[client\n");
    let said = place.refused(&["reload", "--config", "dp.toml"]);
    assert!(said.contains("dp.toml:1:8: is not valid TOML"), "{said}");
}
