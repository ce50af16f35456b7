//! The admin endpoint: health, readiness, metrics, and what it does with peers that mean no good.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use nix::sys::{ptrace, wait::WaitPidFlag, wait::waitpid};
use nix::unistd::Pid;
use rustix::process::Signal;

use crate::support::http;
use crate::support::notify::ServiceManager;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{self, TcpService};
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Listener, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, Server, ServerSetup, Site, Tunnel,
    client_launch, start_client,
};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// This is longer than any test runs.
const DRAIN_LONG: &str = "drain_timeout = \"10m\"";

fn server_setup() -> ServerSetup {
    ServerSetup {
        admin: Some(ports::free_address()),
        cores: 2,
        server: vec![DRAIN_LONG],
        ..ServerSetup::default()
    }
}

fn client_setup() -> ClientSetup {
    ClientSetup {
        admin: Some(ports::free_address()),
        client: vec![DRAIN_LONG],
        ..ClientSetup::default()
    }
}

fn assert_healthy(admin: SocketAddr) {
    let answer = http::get(admin, "/healthz");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
}

#[test]
fn readyz_follows_a_server_from_its_start_to_its_end() {
    if subject::only_wire("readyz_follows_a_server_from_its_start_to_its_end") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let setup = server_setup();
    let mut server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    assert_healthy(admin);
    let answer = http::get(admin, "/readyz");
    assert_eq!(answer.status, 503);
    let listener = format!("listener {}: 0 clients", server.traffic());
    assert!(answer.body.contains(&listener), "{}", answer.body);
    assert_eq!(http::get(admin, "/readyz?clients=0").status, 200);

    let mut client = start_client(&site, &client_setup(), server.quic(), service.address);
    assert_eq!(http::wait_for(admin, "/readyz", 200), "ready\n");
    assert_eq!(http::get(admin, "/readyz?clients=2").status, 503);

    client.signal(Signal::TERM);
    client.wait_for_exit();
    http::wait_for(admin, "/readyz", 503);
    client.restart();
    http::wait_for(admin, "/readyz", 200);

    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"open");
    server.program.signal(Signal::TERM);
    assert_eq!(http::wait_for(admin, "/readyz", 503), "draining\n");
    assert_eq!(http::get(admin, "/readyz?clients=0").status, 503);
    assert_healthy(admin);
    let metrics = http::get(admin, "/metrics").body;
    assert_eq!(http::metric(&metrics, "qmux_dp_draining"), 1.0);
    visitor::exchange(&mut stream, b"still open");
    drop(stream);
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
}

#[test]
fn readyz_of_a_client_is_about_its_lanes() {
    if subject::only_wire("readyz_of_a_client_is_about_its_lanes") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = Server::start(&site, &server_setup());
    let mut setup = client_setup();
    setup.client.extend(ROLE_NOTICES_SOON);
    setup.quic.extend(QUIC_NOTICES_SOON);
    let admin = setup.admin.expect("set");
    let launch = client_launch(&site, &setup, server.quic(), service.address);
    let mut client = launch.start();
    http::wait_for(admin, "/readyz", 200);
    assert_healthy(admin);
    server.program.kill();
    let why = http::wait_for(admin, "/readyz", 503);
    assert!(why.contains("no lane"), "{why}");
    server.program.restart();
    http::wait_for(admin, "/readyz", 200);

    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"open");
    client.signal(Signal::TERM);
    assert_eq!(http::wait_for(admin, "/readyz", 503), "draining\n");
    drop(stream);
    assert_eq!(client.wait_for_exit().code(), Some(0));
}

#[test]
fn metrics_count_a_transfer_to_the_byte() {
    const BYTES: usize = 1_000_000;
    if subject::only_wire("metrics_count_a_transfer_to_the_byte") {
        return;
    }
    let (_tcp, udp) = service::echo_both();
    let client = client_setup();
    let of_client = client.admin.expect("set");
    let server = server_setup();
    let of_server = server.admin.expect("set");
    let tunnel = Tunnel::with(&server, &client, udp.address);
    UdpVisitor::new(tunnel.traffic()).echo(b"one datagram");
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stream, &Random::new(1).bytes(BYTES));

    let text = metrics_with_bytes_out(of_server, BYTES);
    let value = |name: &str| http::metric(&text, &format!("qmux_dp_{name}"));
    assert_eq!(value("tcp_bytes_in_total"), BYTES as f64);
    assert_eq!(value("visitors_accepted_total"), 1.0);
    assert!(value("udp_datagrams_out_total") >= 1.0);
    assert!(value("quic_bytes_received_total") > BYTES as f64);
    assert_eq!(value("listener_clients"), 1.0);
    assert_eq!(value("listener_clients_usable"), 1.0);
    assert!(value("listener_lanes") >= 1.0);
    assert_eq!(value("listener_flows"), 2.0);
    assert_eq!(value("ready"), 1.0);
    assert_eq!(value("draining"), 0.0);
    assert_eq!(value("build_info"), 1.0);
    assert!(value("uptime_seconds") > 0.0);
    assert!(http::metric(&text, "process_resident_memory_bytes") > 0.0);
    let labels = format!("traffic_addr=\"{}\"", tunnel.traffic());
    assert!(text.contains(&labels), "{text}");
    assert_well_formed(&text);

    let text = metrics_with_bytes_out(of_client, BYTES);
    let value = |name: &str| http::metric(&text, &format!("qmux_dp_{name}"));
    assert_eq!(value("tcp_bytes_in_total"), BYTES as f64);
    assert_eq!(value("tcp_flows_opened_total"), 1.0);
    assert!(value("client_lanes") >= 1.0);
    assert_well_formed(&text);
}

/// The metrics once all bytes have been counted: a core counts what it has written after the peer
/// may have read it.
fn metrics_with_bytes_out(admin: SocketAddr, bytes: usize) -> String {
    wait::until("each byte is counted, once", || {
        let text = http::get(admin, "/metrics").body;
        let out = http::metric(&text, "qmux_dp_tcp_bytes_out_total");
        assert!(out <= bytes as f64, "{out} of {bytes}");
        (out == bytes as f64).then_some(text)
    })
}

/// Checks that each sample belongs to a family that was introduced before it, and that no family
/// comes twice.
fn assert_well_formed(text: &str) {
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!families.contains(&name), "twice: {line}");
            families.push(name);
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().expect("a name");
            let family = *families.last().expect("a family");
            let part = name.strip_prefix(family).unwrap_or("of another family");
            assert!(["", "_bucket", "_sum", "_count"].contains(&part), "{line}");
            let value = line.rsplit(' ').next().map(str::parse::<f64>);
            assert!(matches!(value, Some(Ok(_))), "{line}");
        }
    }
    assert!(families.len() > 50, "{} families", families.len());
}

#[test]
fn openmetrics_is_for_those_who_ask_for_it() {
    if subject::only_wire("openmetrics_is_for_those_who_ask_for_it") {
        return;
    }
    let site = Site::new();
    let setup = server_setup();
    let _server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    let plain = http::get(admin, "/metrics");
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(plain.header("content-type"), Some(kind));
    let open = http::request(
        admin,
        "GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\
         Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2\r\n\r\n",
    );
    let open = open.expect("an answer");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(kind));
    assert!(open.body.ends_with("# EOF\n"));
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    if subject::only_wire("a_connection_serves_one_request_after_the_other") {
        return;
    }
    let site = Site::new();
    let setup = server_setup();
    let _server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    let mut stream = visitor::connect(admin);
    for _ in 0..20 {
        let request = b"GET /healthz HTTP/1.1\r\nHost: admin\r\n\r\n";
        stream.write_all(request).expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok\n") {
            answer.extend(visitor::read_exact(&mut stream, 1));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    // This is what HAProxy's checks send by default.
    let old = http::request(admin, "GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.expect("an answer").status, 200);
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    if subject::only_wire("garbage_is_refused_and_harms_nobody") {
        return;
    }
    let site = Site::new();
    let setup = server_setup();
    let mut server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = "GET / HTTP/1.1\r\n".to_owned() + &"a: b\r\n".repeat(1_000) + "\r\n";
    let mut requests: Vec<Vec<u8>> = [
        "\r\n\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /\0 HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        large.as_str(),
        many.as_str(),
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let mut random = Random::new(7);
    requests.extend((0..50).map(|length| random.bytes(length * 40 + 1)));
    for request in &requests {
        let mut stream = visitor::connect(admin);
        // The request may be refused before all of it is sent.
        let _refused = stream.write_all(request);
        visitor::finish_if_open(&stream);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{:?}: {answer}", String::from_utf8_lossy(request));
    }
    for text in [
        "POST /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        "DELETE /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let answer = http::request(admin, text).expect("an answer");
        assert_eq!(answer.status, 405);
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(http::get(admin, "/readyz?clients=many").status, 400);
    assert_eq!(http::get(admin, "/nowhere").status, 404);
    assert_healthy(admin);
    assert!(server.program.exited().is_none());
}

#[test]
fn slow_and_silent_peers_keep_nobody_out() {
    if subject::only_wire("slow_and_silent_peers_keep_nobody_out") {
        return;
    }
    let site = Site::new();
    let setup = server_setup();
    let _server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    // More than the endpoint holds at a time.
    let mut slow: Vec<_> = (0..400).map(|_| visitor::connect(admin)).collect();
    for round in 0..10 {
        for stream in &mut slow {
            // The oldest connections have been cut off to make way.
            let _cut_off = stream.write_all(if round == 0 { b"GET /metr" } else { b"i" });
        }
        assert_healthy(admin);
        let metrics = http::get(admin, "/metrics");
        assert_eq!(metrics.status, 200);
    }
}

#[test]
fn a_hundred_scrapes_at_once_are_all_answered() {
    if subject::only_wire("a_hundred_scrapes_at_once_are_all_answered") {
        return;
    }
    let site = Site::new();
    let setup = server_setup();
    let _server = Server::start(&site, &setup);
    let admin = setup.admin.expect("set");
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                for target in ["/metrics", "/healthz", "/metrics"] {
                    assert_eq!(http::get(admin, target).status, 200);
                }
            });
        }
    });
}

#[test]
fn an_address_that_cannot_be_had_is_named_with_its_key() {
    if subject::only_wire("an_address_that_cannot_be_had_is_named_with_its_key") {
        return;
    }
    let site = Site::new();
    let taken = TcpService::echo();
    let cases = [
        (taken.address, "in use"),
        (
            "192.0.2.1:9600".parse().expect("literal"),
            "no address of this machine",
        ),
    ];
    for (address, why) in cases {
        for check in [false, true] {
            let listener = [Listener::free(false)];
            let setup = ServerSetup {
                admin: Some(address),
                ..ServerSetup::default()
            };
            let mut launch = Server::launch(&site, &setup, &listener);
            if check {
                launch = launch.arg("--check");
            }
            let mut program = launch.start();
            assert_eq!(program.wait_for_exit().code(), Some(2));
            let stderr = program.stderr();
            let named = stderr.contains(&format!("admin.listen: cannot bind TCP {address}"));
            assert!(named && stderr.contains(why), "{stderr}");
        }
    }
}

// ---- cores that make no progress ----

/// One thread of a program, held still by the debugger's interface. It must be let go by the thread
/// that holds it.
struct Held(Pid);

impl Held {
    /// `None` if this machine forbids it.
    fn thread(program: &Program, name: &str) -> Option<Self> {
        let pid = program.id();
        let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let thread = threads
            .find_map(|entry| {
                let path = entry.expect("a thread").path();
                let comm = std::fs::read_to_string(path.join("comm")).ok()?;
                let id = path.file_name()?.to_str()?.parse().ok()?;
                (comm.trim() == name).then_some(Pid::from_raw(id))
            })
            .unwrap_or_else(|| panic!("no thread {name}"));
        if let Err(error) = ptrace::seize(thread, ptrace::Options::empty()) {
            eprintln!("left out: ptrace is not allowed here ({error})");
            return None;
        }
        ptrace::interrupt(thread).expect("interrupted");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Some(Self(thread))
    }

    fn let_go(self) {
        ptrace::detach(self.0, None).expect("detached");
    }
}

#[test]
fn a_core_that_stands_still_is_named_until_it_goes_on() {
    if subject::only_wire("a_core_that_stands_still_is_named_until_it_goes_on") {
        return;
    }
    let manager = ServiceManager::start();
    let site = Site::new();
    let listener = [Listener::free(false)];
    let setup = server_setup();
    let admin = setup.admin.expect("set");
    let mut server = Server::launch(&site, &setup, &listener)
        .env("NOTIFY_SOCKET", &manager.socket())
        .env("WATCHDOG_USEC", "400000")
        .start();
    server.wait_until_ready().expect("it starts");
    manager.wait_for("a ping", |line| line == "WATCHDOG=1");
    let Some(held) = Held::thread(&server, "core-1") else {
        return;
    };
    let why = http::wait_for(admin, "/healthz", 503);
    assert_eq!(why, "core 1 is stuck\n");
    let metrics = http::get(admin, "/metrics").body;
    assert!(
        metrics.contains("qmux_dp_core_stuck{core=\"0\"} 0.0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("qmux_dp_core_stuck{core=\"1\"} 1.0"),
        "{metrics}"
    );
    // The lines that were sent before the stuck core was noticed; then none, for five times as long
    // as pings are apart.
    manager.lines_within(Duration::from_millis(500));
    let pings = manager.lines_within(Duration::from_secs(1));
    assert!(!pings.iter().any(|line| line == "WATCHDOG=1"), "{pings:?}");
    held.let_go();
    http::wait_for(admin, "/healthz", 200);
    manager.wait_for("a ping", |line| line == "WATCHDOG=1");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn the_service_manager_hears_what_the_program_is_at() {
    if subject::only_wire("the_service_manager_hears_what_the_program_is_at") {
        return;
    }
    let manager = ServiceManager::start();
    let service = TcpService::echo();
    let site = Site::new();
    let listener = [Listener::free(false)];
    let mut server = Server::launch(&site, &server_setup(), &listener)
        .env("NOTIFY_SOCKET", &manager.socket())
        .start();
    manager.wait_for("readiness", |line| line == "READY=1");
    let status = "STATUS=not ready for visitors; server: 0 clients, 0 lanes, 0 flows";
    manager.wait_for("a status", |line| line == status);
    let setup = client_setup();
    let _client = start_client(&site, &setup, listener[0].quic, service.address);
    let ready = |line: &str| line.starts_with("STATUS=ready; server: 1 clients");
    manager.wait_for("a status with the client", ready);
    let mut stream = visitor::connect(listener[0].traffic);
    visitor::exchange(&mut stream, b"open");
    server.signal(Signal::TERM);
    manager.wait_for("the stop", |line| line == "STOPPING=1");
    let more_time = "EXTEND_TIMEOUT_USEC=30000000";
    manager.wait_for("some time", |line| line == more_time);
    manager.wait_for("a status", |line| line.starts_with("STATUS=draining"));
    manager.wait_for("more time", |line| line == more_time);
    manager.wait_for("still more time", |line| line == more_time);
    drop(stream);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}
