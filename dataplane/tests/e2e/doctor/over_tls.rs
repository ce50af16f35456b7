//! A server that is reached over TLS, or through a proxy: each cause is found there, too.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::diagnosis::may_make_networks;
use crate::support::certs::{self, Identity};
use crate::support::door::{Door, DoorSetup, entry, published};
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site};

use super::{doctor_launch, examine, impatient, is_left_out, run, server_of_behind};

#[test]
fn a_server_that_is_reached_over_tls_alone_is_examined_over_tls() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let setup = ClientSetup {
        server: vec!["transport = \"tls\""],
        ..impatient()
    };
    examine(&site, &setup, server.quic(), service.address).assert_well();
    let nobody = ports::free_address();
    let said = examine(&site, &setup, nobody, service.address);
    said.assert_finds("tls", &["name", "service"], &[&nobody.to_string(), "TCP"]);
}

#[test]
fn what_the_server_thinks_of_a_client_is_found_out_over_tls_too() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    site.write("strange.crt", &certs::strangers().ca_cert_pem);
    Identity::strange_client().write(site.path(), "stranger");
    let service = TcpService::echo();
    let over_tls = || ClientSetup {
        server: vec!["transport = \"tls\""],
        ..impatient()
    };
    let with_token = ServerSetup {
        name: "server-with-token",
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &with_token);
    let setup = ClientSetup {
        auth: vec!["token = \"wrong pony battery\""],
        ..over_tls()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    said.assert_finds("token", &["name", "tls", "ca"], &["[client.auth]"]);
    drop(server);

    let server = Server::start(&site, &ServerSetup::default());
    let setup = ClientSetup {
        identity: "stranger",
        ..over_tls()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    said.assert_finds("ca", &["name", "tls"], &["stranger.crt"]);
    let setup = ClientSetup {
        ca: "strange",
        ..over_tls()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    said.assert_finds("ca", &["name", "tls"], &["strange.crt", "[client.tls]"]);
    let setup = ClientSetup {
        server_name: "other.test",
        ..over_tls()
    };
    let said = examine(&site, &setup, server.quic(), service.address);
    said.assert_finds("server_name", &["name", "tls"], &["tunnel.test"]);
}

#[test]
fn a_client_that_no_entry_names_is_told_so_over_tls_too() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![published("web", "both")],
        config: entry("nas", &["web"]),
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let service = TcpService::echo();
    let setup = ClientSetup {
        server: vec!["transport = \"tls\""],
        ..impatient()
    };
    let said = examine(&site, &setup, door.quic[0], service.address);
    said.assert_finds(
        "permission",
        &["name", "tls", "ca"],
        &["[[server.clients]]"],
    );
}

#[test]
fn a_wrong_token_is_told_where_udp_is_dropped() {
    const TEST: &str = "a_wrong_token_is_told_where_udp_is_dropped";
    if is_left_out() || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let rule = "nft add rule ip t in udp dport PORT drop";
    let (program, server) = server_of_behind(&site, &setup, rule);
    let setup = ClientSetup {
        auth: vec!["token = \"wrong pony battery\""],
        ..impatient()
    };
    let service = ports::free_address();
    let launch = doctor_launch(&site, &setup, &server.to_string(), service);
    let said = run(launch.in_network_of(&program));
    let words = [
        "over TCP gets through",
        "cannot serve over it, either",
        "[client.auth]",
    ];
    said.assert_finds("udp", &["name", "route"], &words);
}

#[test]
fn a_client_is_examined_through_its_proxy_which_may_know_more_names() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let proxy = proxy_that_resolves(server.quic());
    let proxy: &'static str = format!("proxy = \"http://{proxy}\"").leak();
    let setup = ClientSetup {
        server: vec!["transport = \"tls\"", proxy],
        ..impatient()
    };
    let examined = |setup: &ClientSetup, name: &str| {
        let address = format!("{name}:{}", server.quic().port());
        let launch = doctor_launch(&site, setup, &address, service.address);
        run(launch.args(["--time-server", "none"]))
    };
    let said = examined(&setup, "inside.invalid");
    said.assert_well();
    for step in ["name", "tls", "ca", "permission"] {
        assert_eq!(said.state(step), Some("ok"), "{step}");
    }
    let said = examined(&setup, "refused.invalid");
    said.assert_finds("tls", &["name"], &["403", "the proxy"]);
    let setup = ClientSetup {
        server_name: "other.test",
        ..setup
    };
    let said = examined(&setup, "inside.invalid");
    said.assert_finds("server_name", &["name", "tls"], &["tunnel.test"]);
}

#[test]
fn a_proxy_or_server_that_trickles_does_not_hold_the_doctor() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let service = TcpService::echo();
    // A proxy that goes on with its headers, and a TLS server that goes on with its first record.
    let proxy = trickles(b"HTTP/1.1 200 OK\r\nX: ");
    let server = trickles(&[0x16, 3, 3, 0x40, 0]);
    let line: &'static str = format!("proxy = \"http://{proxy}\"").leak();
    for (keys, words) in [
        (
            vec!["transport = \"tls\"", line],
            ["the proxy", "no way within 5 s"],
        ),
        (vec!["transport = \"tls\""], ["TLS", "the handshake stalls"]),
    ] {
        let setup = ClientSetup {
            server: keys,
            ..impatient()
        };
        let said = examine(&site, &setup, server, service.address);
        said.assert_finds("tls", &["name"], &words);
    }
}

/// Sends every visitor `first`, and then a byte every second for as long as the visitor stays.
fn trickles(first: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = first;
                while stream.write_all(bytes).is_ok() {
                    bytes = b"x";
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
    });
    address
}

/// An HTTP proxy that knows `inside.invalid`, which leads to `server`, and refuses other names.
fn proxy_that_resolves(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // A visitor who leaves early is no fault of the proxy's.
                let _gone = pass_on(stream, server);
            });
        }
    });
    address
}

fn pass_on(mut client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0; 1];
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    if !request.starts_with(b"CONNECT inside.invalid:") {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    }
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let mut server = TcpStream::connect(server)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _gone = std::io::copy(&mut from, &mut to);
    });
    std::io::copy(&mut server, &mut client).map(|_| ())
}
