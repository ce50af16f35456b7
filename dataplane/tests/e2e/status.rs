//! What operators see of a running program: `/status`, the status page, the Unix socket, drain.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::support::http;
use crate::support::ports;
use crate::support::program::Launch;
use crate::support::service::{self, TcpService};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, Tunnel, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// The admin endpoint of these is a Unix socket beside the config.
const UNIX: &str = "[admin]\nlisten = \"unix:admin.sock\"";

fn status(admin: SocketAddr) -> Value {
    let answer = http::get(admin, "/status");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/json"));
    serde_json::from_str(&answer.body).expect("JSON")
}

fn setups() -> (ServerSetup, ClientSetup) {
    let server = ServerSetup {
        admin: Some(ports::free_address()),
        cores: 2,
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        admin: Some(ports::free_address()),
        client: vec!["client_id = \"nas\""],
        ..ClientSetup::default()
    };
    (server, client)
}

/// Checks that each of these keys exists and is a number.
fn assert_numbers(of: &Value, keys: &[&str]) {
    for key in keys {
        assert!(of[key].is_u64(), "{key}: {of}");
    }
}

#[test]
fn status_shows_the_service_its_client_and_every_byte() {
    const BYTES: u64 = 300_000;
    if subject::only_wire("status_shows_the_service_its_client_and_every_byte") {
        return;
    }
    let (_tcp, udp) = service::echo_both();
    let (server, client) = setups();
    let (of_server, of_client) = (server.admin.expect("set"), client.admin.expect("set"));
    let tunnel = Tunnel::with(&server, &client, udp.address);
    UdpVisitor::new(tunnel.traffic()).echo(b"one datagram");
    let mut stream = visitor::connect(tunnel.traffic());
    let bytes: Vec<u8> = (0..BYTES).map(|it| (it % 251) as u8).collect();
    visitor::exchange(&mut stream, &bytes);

    let with_datagram = BYTES + "one datagram".len() as u64;
    let seen = wait::until("every byte is counted, once", || {
        let seen = status(of_server);
        let service = &seen["server"]["services"][0];
        let (inward, outward) = (&service["bytes_in"], &service["bytes_out"]);
        for bytes in [inward, outward] {
            assert!(bytes.as_u64().expect("a number") <= with_datagram, "{seen}");
        }
        (*inward == with_datagram && *outward == with_datagram).then_some(seen)
    });
    assert_eq!(seen["role"], serde_json::json!(["server"]));
    assert_eq!(seen["state"], "ready");
    assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        seen["commit"].is_string() && seen["client"].is_null(),
        "{seen}"
    );
    assert_numbers(&seen, &["uptime_s"]);
    let service = &seen["server"]["services"][0];
    assert_eq!(service["name"], "");
    assert_eq!(service["traffic_addr"], tunnel.traffic().to_string());
    assert_eq!(service["protocol"], "both");
    assert_eq!(service["up"], true);
    for (key, value) in [
        ("clients", 1),
        ("visitors", 1),
        ("udp_flows", 1),
        ("refused", 0),
    ] {
        assert_eq!(service[key], value, "{key}: {seen}");
    }
    let client = &seen["server"]["clients"][0];
    assert_eq!(client["name"], "nas");
    assert_eq!(client["transport"], "quic");
    assert_eq!(client["flows"], 2);
    assert_eq!(
        client["services"],
        serde_json::json!([{"name": "", "up": true}])
    );
    assert!(
        client["address"]
            .as_str()
            .expect("text")
            .starts_with("127.0.0.1:")
    );
    assert_numbers(client, &["lanes", "rtt_us", "lost_packets", "since_s"]);
    assert!(client["rtt_us"].as_u64() > Some(0), "{client}");
    for certificate in seen["certificates"].as_array().expect("a list") {
        assert!(
            certificate["not_after"]
                .as_str()
                .expect("text")
                .ends_with('Z')
        );
        assert!(certificate["days_left"].as_i64() > Some(0), "{certificate}");
    }
    assert_eq!(seen["certificates"].as_array().map(Vec::len), Some(2));

    let at_client = status(of_client);
    assert_eq!(at_client["instance"], client["instance"]);
    assert_eq!(at_client["state"], "ready");
    let server = &at_client["client"]["servers"][0];
    assert_eq!(server["address"], tunnel.server.quic().to_string());
    assert_eq!(
        (&server["state"], &server["transport"]),
        (&"up".into(), &"quic".into())
    );
    assert_numbers(server, &["lanes", "rtt_us"]);
    let service = &at_client["client"]["services"][0];
    assert_eq!(service["address"], udp.address.to_string());
    assert_eq!(
        (&service["up"], &service["flows"]),
        (&true.into(), &2.into())
    );
    drop(stream);
    wait::until("the TCP flow has ended", || {
        let flows = &status(of_client)["client"]["services"][0]["flows"];
        (*flows == 1).then_some(())
    });
}

#[test]
fn a_service_can_be_asked_for_whether_it_is_ready() {
    if subject::only_wire("a_service_can_be_asked_for_whether_it_is_ready") {
        return;
    }
    let site = Site::new();
    let service = TcpService::echo();
    let (setup, client) = setups();
    let server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    assert_eq!(http::get(admin, "/readyz?service=").status, 503);
    let unknown = http::get(admin, "/readyz?service=web");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("\"web\""), "{}", unknown.body);
    assert_eq!(status(admin)["server"]["services"][0]["up"], false);
    let _client = start_client(&site, &client, server.quic(), service.address);
    assert_eq!(http::wait_for(admin, "/readyz?service=", 200), "ready\n");
}

/// Asks at a Unix socket.
fn at_socket(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("somebody listens");
    let request = format!("{request} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_unix_socket_is_its_owners_and_an_order_to_drain_ends_the_process() {
    if subject::only_wire("a_unix_socket_is_its_owners_and_an_order_to_drain_ends_the_process") {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        limits: vec![UNIX],
        server: vec!["drain_timeout = \"10m\""],
        ..ServerSetup::default()
    };
    let mut server = Server::start(&site, &setup);
    let socket = site.path().join("admin.sock");
    let mode = fs::metadata(&socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(at_socket(&socket, "GET /healthz").ends_with("\r\n\r\nok\n"));
    // A second one must not take its place.
    let second = ServerSetup {
        name: "second",
        limits: vec![UNIX],
        ..ServerSetup::default()
    };
    let refused = Server::start_refused(&site, &second);
    assert!(
        refused.contains("admin.listen") && refused.contains("listens there"),
        "{refused}"
    );
    // One that is killed leaves its file, which is no hindrance.
    server.program.kill();
    assert!(socket.exists());
    server.program.restart();
    let service = TcpService::echo();
    let _client = start_client(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"open");

    assert!(at_socket(&socket, "GET /drain").starts_with("HTTP/1.1 405 "));
    for _ in 0..2 {
        assert!(at_socket(&socket, "POST /drain").starts_with("HTTP/1.1 202 "));
    }
    wait::until("it drains", || {
        at_socket(&socket, "GET /status")
            .contains("\"state\":\"draining\"")
            .then_some(())
    });
    visitor::exchange(&mut stream, b"still open");
    drop(stream);
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
}

#[test]
fn the_status_page_shows_services_clients_and_rates_in_a_browser() {
    if subject::only_wire("the_status_page_shows_services_clients_and_rates_in_a_browser") {
        return;
    }
    let service = TcpService::echo();
    let (server, client) = setups();
    let tunnel = Tunnel::with(&server, &client, service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stream, b"some bytes");
    let url = format!("http://{}/", server.admin.expect("set"));
    let browser = |output: &[&str], size: &str| {
        let profile = tunnel.site.path().join("browser");
        Launch::new("chromium", "chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args(["--no-first-run", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--window-size={size}"))
            // Time that passes for the page: three looks.
            .arg("--virtual-time-budget=7000")
            .args(output)
            .arg(&url)
            .output()
    };
    let page = browser(&["--dump-dom"], "1200,900");
    for part in [
        tunnel.traffic().to_string().as_str(),
        "nas",
        "(nameless)",
        "Certificates",
        "ca.crt",
        "<polyline",
        "Last warnings",
    ] {
        assert!(page.contains(part), "no {part} in\n{page}");
    }
    if let Ok(directory) = std::env::var("QMUX_E2E_SCREENSHOTS") {
        for (name, size) in [("wide", "1200,1000"), ("phone", "390,1600")] {
            let file = format!("--screenshot={directory}/status-{name}.png");
            browser(&[&file], size);
        }
    }
}
