//! Services that are told who their visitors are, by PROXY protocol headers.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use ppp::v2;

use crate::support::peers;
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Listener, Server, ServerSetup, Site, Tunnel, client_launch, start_client,
};
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};

const V1: [&str; 2] = ["protocol = \"tcp\"", "proxy_protocol = \"v1\""];
const V2: [&str; 1] = ["proxy_protocol = \"v2\""];

fn client(local: &[&'static str]) -> ClientSetup {
    ClientSetup {
        local: local.to_vec(),
        ..ClientSetup::default()
    }
}

fn tunnel(local: &[&'static str], service: SocketAddr) -> Tunnel {
    Tunnel::with(&ServerSetup::default(), &client(local), service)
}

/// A service that answers nothing and reports all that each connection has brought.
fn listening_service() -> (TcpService, Receiver<Vec<u8>>) {
    let (brought, connections) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            // Fails only when the test is over.
            let _over = brought.send(bytes);
        }
    });
    (service, connections)
}

/// The header that a v2 datagram or stream begins with, and what follows.
fn parted(bytes: &[u8]) -> (v2::Header<'_>, &[u8]) {
    let header = v2::Header::try_from(bytes).expect("a header of version 2");
    let length = header.len();
    (header, &bytes[length..])
}

fn of_ipv4(visitor: SocketAddr, traffic: SocketAddr) -> v2::Addresses {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (visitor, traffic) else {
        panic!("both are IPv4")
    };
    let (from_port, to_port) = (from.port(), to.port());
    v2::IPv4::new(*from.ip(), *to.ip(), from_port, to_port).into()
}

#[test]
fn nginx_logs_the_visitors_own_address() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    for local in [&V1[..], &V2] {
        let site = Site::new();
        let root = site.path().join("root");
        fs::create_dir(&root).expect("directory");
        fs::write(root.join("hello"), "hello\n").expect("written");
        let nginx = peers::nginx_behind_proxy(&site, root.to_str().expect("UTF-8"));
        let tunnel = tunnel(local, nginx.address);
        let mut stream = visitor::connect(tunnel.traffic());
        let from = stream.local_addr().expect("connected");
        stream
            .write_all(b"GET /hello HTTP/1.0\r\n\r\n")
            .expect("the tunnel takes it");
        let Ending::Clean(answer) = visitor::read_to_end(&mut stream) else {
            panic!("nginx answers")
        };
        assert!(answer.ends_with(b"\r\n\r\nhello\n"), "{answer:?}");
        let to = tunnel.traffic();
        let expected = format!(
            "{} {} {} {} /hello\n",
            from.ip(),
            from.port(),
            to.ip(),
            to.port()
        );
        let log = site.path().join("visitors.log");
        let logged = wait::until("nginx logs the visitor", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.ends_with('\n').then_some(text)
        });
        assert_eq!(logged, expected, "{local:?}");
    }
}

#[test]
fn the_header_is_there_before_the_visitor_has_said_anything() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    // Like SSH or SMTP: who connects waits for the service's greeting.
    let service = TcpService::start(|mut stream| {
        let header = visitor::read_exact(&mut stream, 16 + 12);
        let _gone = stream.write_all(&header);
    });
    let tunnel = tunnel(&V2, service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    let header = visitor::read_exact(&mut stream, 16 + 12);
    let (header, rest) = parted(&header);
    assert_eq!(rest, b"");
    assert_eq!(header.command, v2::Command::Proxy);
    assert_eq!(header.protocol, v2::Protocol::Stream);
    let from = stream.local_addr().expect("connected");
    assert_eq!(header.addresses, of_ipv4(from, tunnel.traffic()));
}

#[test]
fn a_visitor_of_a_listener_for_both_families_is_told_in_its_own() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    let site = Site::new();
    let mut listener = Listener::free(false);
    listener.traffic.set_ip(Ipv6Addr::UNSPECIFIED.into());
    let server = Server::launch(&site, &ServerSetup::default(), &[listener]).start();
    server.wait_until_ready().expect("the server is ready");
    let (service, connections) = listening_service();
    let _client = start_client(&site, &client(&V1), listener.quic, service.address);
    let port = listener.traffic.port();
    for (ip, family) in [
        (Ipv4Addr::LOCALHOST.into(), "TCP4"),
        (Ipv6Addr::LOCALHOST.into(), "TCP6"),
    ] {
        let mut stream = visitor::connect(SocketAddr::new(ip, port));
        let from = stream.local_addr().expect("connected").port();
        stream.write_all(b"hello").expect("the tunnel takes it");
        visitor::finish(&stream);
        let brought = connections.recv_timeout(PATIENCE).expect("a connection");
        let expected = format!("PROXY {family} {ip} {ip} {from} {port}\r\nhello");
        assert_eq!(String::from_utf8_lossy(&brought), expected);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }
}

#[test]
fn checks_say_that_they_are_nobodys_connection() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    for (version, expected) in [
        (&V1[..], &b"PROXY UNKNOWN\r\n"[..]),
        (&V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ] {
        let (service, connections) = listening_service();
        let checked = [version, &["health_check_interval = \"100ms\""]].concat();
        let _tunnel = tunnel(&checked, service.address);
        let brought = connections.recv_timeout(PATIENCE).expect("a check");
        assert_eq!(brought, expected);
    }
}

#[test]
fn a_flow_that_begins_anew_at_another_client_gets_its_header_there() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        server: vec!["load_balancer = \"round-robin\""],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let (service, connections) = listening_service();
    let named = |name| ClientSetup {
        name,
        ..client(&V2)
    };
    let start = |name, service| start_client(&site, &named(name), server.quic(), service);
    let _dead = start("dead", ports::free_address());
    let _alive = start("alive", service.address);
    for _ in 0..2 {
        let mut stream = visitor::connect(server.traffic());
        let from = stream.local_addr().expect("connected");
        stream.write_all(b"served").expect("the tunnel takes it");
        visitor::finish(&stream);
        let brought = connections.recv_timeout(PATIENCE).expect("a connection");
        let (header, rest) = parted(&brought);
        assert_eq!(header.addresses, of_ipv4(from, server.traffic()));
        assert_eq!(rest, b"served", "the header stands there once");
    }
}

/// A UDP service and its visitor.
struct Udp {
    service: UdpSocket,
    visitor: UdpSocket,
}

/// Pause before a datagram that may have been lost is sent again.
const AGAIN: Duration = Duration::from_secs(2);

impl Udp {
    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        socket.set_read_timeout(Some(AGAIN)).expect("timeout");
        socket
    }

    /// Sends until the service has something new; returns that, and where it came from.
    fn deliver(&self, payload: &[u8], is_new: impl Fn(&[u8]) -> bool) -> (Vec<u8>, SocketAddr) {
        let mut bytes = vec![0; 1 << 16];
        wait::until("a datagram arrives", || {
            self.visitor.send(payload).expect("loopback takes it");
            loop {
                match self.service.recv_from(&mut bytes) {
                    Ok((length, from)) if is_new(&bytes[..length]) => {
                        return Some((bytes[..length].to_vec(), from));
                    }
                    Ok(_again) => {}
                    Err(error) => {
                        let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                        assert!(kinds.contains(&error.kind()), "{error}");
                        return None;
                    }
                }
            }
        })
    }

    /// Answers until the visitor has the answer, as it was sent.
    fn answer(&self, payload: &[u8], to: SocketAddr) {
        let mut bytes = vec![0; 1 << 16];
        let received = wait::until("the answer arrives", || {
            self.service
                .send_to(payload, to)
                .expect("loopback takes it");
            let length = self.visitor.recv(&mut bytes).ok()?;
            Some(bytes[..length].to_vec())
        });
        assert_eq!(received, payload, "answers are plain");
    }
}

fn udp(local: &[&'static str]) -> (Tunnel, Udp) {
    let (service, visitor) = (Udp::socket(), Udp::socket());
    let tunnel = tunnel(local, service.local_addr().expect("bound"));
    visitor.connect(tunnel.traffic()).expect("an address");
    (tunnel, Udp { service, visitor })
}

#[test]
fn every_datagram_to_a_udp_service_says_whose_it_is_and_answers_are_plain() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    let (tunnel, udp) = udp(&V2);
    let from = udp.visitor.local_addr().expect("bound");
    for payload in [&b"one"[..], b"", &[7; 1_400], &[8; 9_000]] {
        let (datagram, flow) = udp.deliver(payload, |it| parted(it).1 == payload);
        let (header, rest) = parted(&datagram);
        assert_eq!(header.command, v2::Command::Proxy);
        assert_eq!(header.protocol, v2::Protocol::Datagram);
        assert_eq!(header.addresses, of_ipv4(from, tunnel.traffic()));
        assert_eq!(rest, payload);
        udp.answer(b"plain", flow);
    }
}

#[test]
fn the_first_datagram_alone_says_whose_the_flow_is_if_that_is_enough() {
    if subject::only_wire("PROXY headers") {
        return;
    }
    let (tunnel, udp) = udp(&[V2[0], "proxy_protocol_udp = \"first\""]);
    let from = udp.visitor.local_addr().expect("bound");
    let (datagram, flow) = udp.deliver(b"one", |_| true);
    let (header, rest) = parted(&datagram);
    assert_eq!(header.addresses, of_ipv4(from, tunnel.traffic()));
    assert_eq!(rest, b"one");
    udp.answer(b"plain", flow);
    let (second, _) = udp.deliver(b"two", |it| it != b"one");
    assert_eq!(second, b"two");
}

#[test]
fn a_header_that_udp_has_no_form_for_is_refused_with_a_way_out() {
    if subject::only_wire("messages about the config") {
        return;
    }
    let site = Site::new();
    let setup = client(&["proxy_protocol = \"v1\""]);
    let nobody = ports::free_address();
    let mut program = client_launch(&site, &setup, nobody, nobody).start();
    assert_eq!(program.wait_for_exit().code(), Some(2));
    let said = program.stderr();
    for words in [
        "client.local.proxy_protocol",
        "\"v2\"",
        "protocol = \"tcp\"",
    ] {
        assert!(said.contains(words), "{said}");
    }
}
