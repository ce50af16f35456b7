//! The access log: one line of JSON for each flow that has ended.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::door::{Door, DoorSetup, Offering, published};
use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, Tunnel, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

const TO_FILE: &str = "access_log = \"access.log\"";

/// The complete lines of a file so far.
fn lines(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("JSON: {line}"));
    whole.lines().map(read).collect()
}

/// The line of a visitor, once it has been written.
fn line_of(path: &PathBuf, visitor: SocketAddr) -> Value {
    let visitor = visitor.to_string();
    wait::until("the visitor's line", || {
        lines(path).into_iter().find(|it| it["visitor"] == visitor)
    })
}

/// The end in the log of a TCP flow that `end` ends.
fn end_of(tunnel: &Tunnel, end: impl FnOnce(std::net::TcpStream)) -> Value {
    let stream = visitor::connect(tunnel.traffic());
    let from = stream.local_addr().expect("connected");
    end(stream);
    line_of(&tunnel.site.path().join("access.log"), from)
}

fn logging_server() -> ServerSetup {
    ServerSetup {
        server: vec![TO_FILE, "drain_timeout = \"0s\""],
        ..ServerSetup::default()
    }
}

fn logging_tunnel(service: SocketAddr) -> Tunnel {
    Tunnel::with(&logging_server(), &ClientSetup::default(), service)
}

/// A server with the service `web`, TCP and UDP, that logs into a file; its client.
fn named(site: &Site, tcp: SocketAddr) -> (Door, Program) {
    let setup = DoorSetup {
        services: vec![published("web", "both")],
        server: TO_FILE,
        config: "[udp]\nsession_timeout = \"1s\"\n".into(),
        cores: 2,
        ..DoorSetup::default()
    };
    let door = Door::start(site, &setup);
    let offering = Offering {
        name: "client",
        certificate: "nas",
        token: None,
        services: vec![("web", "both", tcp, 1)],
        client: "client_id = \"nas\"",
    };
    let client = offering.start(site, door.quic[0]);
    visitor::wait_until_served(door.traffic("web"));
    (door, client)
}

#[test]
fn a_flow_of_either_protocol_has_a_line_that_says_whose_it_was_and_what_it_carried() {
    if subject::only_wire("access_log") {
        return;
    }
    let site = Site::new();
    let (tcp, _udp) = echo_both();
    let (door, _client) = named(&site, tcp.address);
    let log = site.path().join("access.log");
    let traffic = door.traffic("web");

    let mut stream = visitor::connect(traffic);
    let from = stream.local_addr().expect("connected");
    visitor::exchange(&mut stream, b"hello");
    visitor::exchange(&mut stream, &[7; 300_000]);
    visitor::finish(&stream);
    visitor::read_to_end(&mut stream);
    let line = line_of(&log, from);
    for (field, expected) in [
        ("service", "web"),
        ("client", "nas"),
        ("protocol", "tcp"),
        ("end", "closed"),
    ] {
        assert_eq!(line[field], expected, "{line}");
    }
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&300_005.into(), &300_005.into())
    );
    assert!(line["duration_ms"].is_u64(), "{line}");
    let time = line["time"].as_str().expect("a text");
    humantime::parse_rfc3339(time).expect("RFC 3339");

    // Datagrams may be lost and sent again, so their number is not known.
    let mut visitor = UdpVisitor::new(traffic);
    visitor.echo(b"seven b");
    let is_udp = |line: &Value| line["protocol"] == "udp";
    let line = wait::until("the UDP flow's line", || {
        lines(&log).into_iter().find(is_udp)
    });
    assert_eq!(line["visitor"], visitor.address().to_string());
    assert_eq!(
        (&line["service"], &line["client"]),
        (&"web".into(), &"nas".into())
    );
    assert_eq!(line["end"], "idle", "after session_timeout");
    for bytes in ["bytes_in", "bytes_out"] {
        let bytes = line[bytes].as_u64().expect("a number");
        assert!(bytes >= 7 && bytes.is_multiple_of(7), "{line}");
    }
}

#[test]
fn a_visitor_is_named_alike_whatever_families_its_port_is_open_to() {
    if subject::only_wire("access_log") {
        return;
    }
    let site = Site::new();
    let (tcp, _udp) = echo_both();
    let setup = DoorSetup {
        services: vec![published("web", "both")],
        server: TO_FILE,
        config: "[udp]\nsession_timeout = \"1s\"\n".into(),
        cores: 2,
        ..DoorSetup::default()
    };
    let (door, launch) = Door::prepare(&site, &setup);
    let config = site.path().join("door.toml");
    let text = fs::read_to_string(&config).expect("the config");
    let everywhere = text.replace("\"127.0.0.1:", "\"[::]:");
    assert_ne!(text, everywhere);
    fs::write(&config, everywhere).expect("written");
    let program = launch.start();
    program.wait_until_ready().expect("the server serves");
    let door = door(program);
    let offering = Offering {
        name: "client",
        certificate: "nas",
        token: None,
        services: vec![("web", "both", tcp.address, 1)],
        client: "client_id = \"nas\"",
    };
    let _client = offering.start(&site, door.quic[0]);
    let traffic = door.traffic("web");
    visitor::wait_until_served(traffic);
    let status = http::get(door.admin, "/status").body;
    assert!(!status.contains("::ffff:"), "{status}");

    let mut stream = visitor::connect(traffic);
    let from = stream.local_addr().expect("connected");
    visitor::exchange(&mut stream, b"hello");
    drop(stream);
    let log = site.path().join("access.log");
    assert_eq!(line_of(&log, from)["protocol"], "tcp");
    let mut visitor = UdpVisitor::new(traffic);
    visitor.echo(b"hello");
    assert_eq!(line_of(&log, visitor.address())["protocol"], "udp");
    let names = door.program.stderr();
    assert!(!names.contains("::ffff:"), "{names}");
}

#[test]
fn a_line_says_who_has_reset_the_flow() {
    if subject::only_wire("access_log") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        let mut byte = [0; 1];
        if stream.write_all(b"go").is_ok() && stream.read_exact(&mut byte).is_ok() {
            visitor::reset(stream);
        }
    });
    let tunnel = logging_tunnel(service.address);
    let line = end_of(&tunnel, |mut stream| {
        visitor::read_exact(&mut stream, 2);
        visitor::reset(stream);
    });
    assert_eq!(line["end"], "visitor reset");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&0.into(), &2.into())
    );
    let line = end_of(&tunnel, |mut stream| {
        visitor::read_exact(&mut stream, 2);
        stream.write_all(b"x").expect("sent");
        visitor::read_to_end(&mut stream);
    });
    assert_eq!(line["end"], "service reset");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&1.into(), &2.into())
    );
}

#[test]
fn a_flow_that_no_service_takes_has_a_line_with_the_reason() {
    if subject::only_wire("access_log") {
        return;
    }
    let tunnel = logging_tunnel(ports::free_address());
    let line = end_of(&tunnel, |mut stream| {
        stream.write_all(b"hello").expect("the kernel takes it");
        visitor::read_to_end(&mut stream);
    });
    assert_eq!(line["end"], "refused: the service refused the connection");
    assert_eq!(line["bytes_out"], 0);
}

#[test]
fn a_line_tells_a_client_that_died_from_a_server_that_was_stopped() {
    if subject::only_wire("access_log") {
        return;
    }
    let (service, site) = (TcpService::echo(), Site::new());
    let mut server = Server::start(&site, &logging_server());
    let log = site.path().join("access.log");
    let mut client = start_client(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    let flow = || {
        let mut stream = visitor::connect(server.traffic());
        visitor::exchange(&mut stream, b"hello");
        let from = stream.local_addr().expect("connected");
        (stream, from)
    };
    let (mut stream, from) = flow();
    client.kill();
    client.restart();
    visitor::read_to_end(&mut stream);
    assert_eq!(line_of(&log, from)["end"], "lane lost");

    visitor::wait_until_served(server.traffic());
    let (mut stream, from) = flow();
    server.program.signal(Signal::TERM);
    visitor::read_to_end(&mut stream);
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    // The process has ended, so all lines have been written.
    let line = lines(&log)
        .into_iter()
        .find(|it| it["visitor"] == from.to_string());
    assert_eq!(line.expect("a line")["end"], "drained");
}

#[test]
fn a_log_that_was_renamed_goes_on_in_a_new_file_after_sighup() {
    if subject::only_wire("access_log") {
        return;
    }
    let service = TcpService::echo();
    let tunnel = logging_tunnel(service.address);
    let echo = |stream: std::net::TcpStream| {
        let mut stream = stream;
        visitor::exchange(&mut stream, b"hello");
        visitor::finish(&stream);
    };
    let first = end_of(&tunnel, echo);
    let [log, old] = ["access.log", "access.log.1"].map(|name| tunnel.site.path().join(name));
    fs::rename(&log, &old).expect("renamed");
    tunnel.server.program.signal(Signal::HUP);
    wait::until_true("the file is there again", || log.exists());
    let second = end_of(&tunnel, echo);
    assert_ne!(first["visitor"], second["visitor"]);
    assert_eq!(lines(&old).iter().filter(|it| **it == first).count(), 1);
    assert!(!lines(&old).contains(&second));

    // A place where no file can be made: lines go on into the one that is open.
    fs::rename(&log, &old).expect("renamed");
    fs::create_dir(&log).expect("made");
    tunnel.server.program.signal(Signal::HUP);
    let said = tunnel
        .server
        .program
        .wait_for_line("what is wrong", |line| {
            line.contains("server.access_log") && line.contains("go on into the file")
        });
    assert!(said.contains("directory"), "{said}");
    let stream = visitor::connect(tunnel.traffic());
    let from = stream.local_addr().expect("connected");
    echo(stream);
    line_of(&old, from);
}

#[test]
fn a_reload_moves_the_log_to_another_file_or_switches_it_off() {
    if subject::only_wire("access_log") {
        return;
    }
    let (service, admin) = (TcpService::echo(), ports::free_address());
    let setup = ServerSetup {
        server: vec![TO_FILE],
        admin: Some(admin),
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&setup, &ClientSetup::default(), service.address);
    let config = tunnel.site.path().join("server.toml");
    let text = fs::read_to_string(&config).expect("readable");
    let reload = |log: &str| {
        let text = text.replace(TO_FILE, &format!("access_log = \"{log}\""));
        fs::write(&config, text).expect("written");
        let request = "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        http::request(admin, request).expect("answered").status
    };
    let flow = || {
        let mut stream = visitor::connect(tunnel.traffic());
        let from = stream.local_addr().expect("connected");
        visitor::exchange(&mut stream, b"hello");
        visitor::finish(&stream);
        visitor::read_to_end(&mut stream);
        from
    };
    let [first, second] = ["access.log", "second.log"].map(|name| tunnel.site.path().join(name));
    line_of(&first, flow());
    assert_eq!(reload("second.log"), 200);
    line_of(&second, flow());
    assert_ne!(reload("missing/third.log"), 200, "nothing changes");
    line_of(&second, flow());
    assert_eq!(reload("off"), 200);
    let unseen = flow();
    assert_eq!(reload("second.log"), 200);
    line_of(&second, flow());
    let unseen = unseen.to_string();
    assert!(lines(&second).iter().all(|line| line["visitor"] != unseen));
}

#[test]
fn a_full_disk_stops_nobody_is_said_once_and_counted() {
    if subject::only_wire("access_log") {
        return;
    }
    let (service, admin) = (TcpService::echo(), ports::free_address());
    let setup = ServerSetup {
        server: vec!["access_log = \"/dev/full\""],
        admin: Some(admin),
        ..ServerSetup::default()
    };
    let mut tunnel = Tunnel::with(&setup, &ClientSetup::default(), service.address);
    for _ in 0..100 {
        visitor::echo(tunnel.traffic(), b"served");
    }
    let failed = "qmux_dp_access_log_lines_failed_total";
    wait::until_true("each flow's line is counted", || {
        http::metric(&http::get(admin, "/metrics").body, failed) >= 100.0
    });
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    let said = tunnel.server.program.lines();
    let said = said
        .iter()
        .filter(|it| it.contains("access log cannot be written"));
    assert_eq!(said.count(), 1);
}

#[test]
fn lines_stand_whole_between_those_of_the_log_on_standard_error() {
    if subject::only_wire("access_log") {
        return;
    }
    let service = TcpService::echo();
    let setup = ServerSetup {
        server: vec!["access_log = \"stderr\""],
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&setup, &ClientSetup::default(), service.address);
    for _ in 0..20 {
        let mut stream = visitor::connect(tunnel.traffic());
        let from = format!(
            "\"visitor\":\"{}\"",
            stream.local_addr().expect("connected")
        );
        visitor::exchange(&mut stream, b"hello");
        visitor::finish(&stream);
        let line = tunnel
            .server
            .program
            .wait_for_line("a line", |line| line.contains(&from));
        let line: Value = serde_json::from_str(&line).expect("a whole line");
        assert_eq!(line["bytes_in"], 5);
    }
}

#[test]
fn a_place_that_cannot_be_written_to_is_refused_at_the_start() {
    if subject::only_wire("access_log") {
        return;
    }
    let setup = ServerSetup {
        server: vec!["access_log = \"missing/access.log\""],
        ..ServerSetup::default()
    };
    let said = Server::start_refused(&Site::new(), &setup);
    for words in ["server.access_log", "missing/access.log", "\"stderr\""] {
        assert!(said.contains(words), "{said}");
    }
}
