//! `qmux-ctl health`.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

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

#[test]
fn what_the_endpoint_says_decides_the_exit_code() {
    for (status, words, code) in [
        ("200 OK", "every core makes progress", 0),
        ("503 Service Unavailable", "core 1 stands still", 1),
    ] {
        let place = Place::new();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        config(&place, &format!("[admin]\nlisten = \"{address}\"\n"));
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a question");
            let mut question = [0; 1_024];
            let length = stream.read(&mut question).expect("a question");
            let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{words}\n");
            stream.write_all(answer.as_bytes()).expect("taken");
            String::from_utf8_lossy(&question[..length]).into_owned()
        });
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
