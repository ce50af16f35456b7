//! Visitors who come through a balancer that says who they are, by PROXY headers.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use ppp::{v1, v2};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::door::{Door, DoorSetup, Offering, published};
use crate::support::http;
use crate::support::peers;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Site, Tunnel};
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};

/// An address of this host.
fn host(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Where the balancers of these tests come from.
const BALANCER: u8 = 3;

/// The address that the visitors of these tests claim.
const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const SOURCE_PORT: u16 = 4_711;

/// A server with the service `web` that trusts [`BALANCER`], and a service that echoes what follows
/// the v2 header that it gets, with the address in it.
struct Balanced {
    door: Door,
    site: Site,
    _service: TcpService,
    _client: Program,
}

impl Balanced {
    fn start(keys: &str) -> Self {
        let site = Site::new();
        let setup = DoorSetup {
            services: vec![published("web", "tcp")],
            server: "access_log = \"access.log\"",
            config: format!("accept_proxy_from = [\"127.0.0.3\"]\n{keys}\n"),
            cores: 2,
            ..DoorSetup::default()
        };
        let door = Door::start(&site, &setup);
        let service = TcpService::start(tell_and_echo);
        let offering = Offering {
            name: "client",
            certificate: "client",
            token: None,
            // The port of the last service is followed by what belongs to it.
            services: vec![("web", "tcp\"\nproxy_protocol = \"v2", service.address, 1)],
            client: "",
        };
        let client = offering.start(&site, door.quic[0]);
        let balanced = Self {
            door,
            site,
            _service: service,
            _client: client,
        };
        let served = || balanced.told(&text_header(SOURCE, 1)).is_some();
        wait::until_true("a visitor is served", served);
        balanced.wait_until_gone(1);
        balanced
    }

    /// Waits until the visitor from this port of [`SOURCE`], who was served, counts no longer for
    /// any limit: it has its line in the access log.
    fn wait_until_gone(&self, port: u16) {
        let log = self.site.path().join("access.log");
        let visitor = format!("\"visitor\":\"{SOURCE}:{port}\"");
        wait::until_true("the visitor's line", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(&visitor))
        });
    }

    fn come(&self, last: u8) -> TcpStream {
        self.try_to_come(last).expect("connected")
    }

    /// Connects; a visitor that may be refused may be reset before `connect` returns.
    fn try_to_come(&self, last: u8) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::new(host(last), 0)))?;
        let to = SockAddr::from(self.door.traffic("web"));
        socket.connect_timeout(&to, PATIENCE)?;
        let stream = TcpStream::from(socket);
        visitor::set_deadlines(&stream);
        Ok(stream)
    }

    /// The address that the service is told for a visitor that comes from the balancer with these
    /// bytes; `None` if it is reset.
    fn told(&self, sent: &[u8]) -> Option<SocketAddr> {
        let ending = visitor::ending_after(self.try_to_come(BALANCER), |stream| {
            stream.write_all(sent)?;
            visitor::finish_if_open(stream);
            Ok(())
        });
        match ending {
            Ending::Clean(bytes) => Some(parted(&bytes).0),
            Ending::Reset(_) => None,
        }
    }

    /// Checks that a visitor who begins with `sent` is refused for this reason.
    fn refuses(&self, sent: &[u8], reason: &str) {
        let before = self.refused(reason);
        assert_eq!(self.told(sent), None, "{reason}");
        assert_eq!(self.refused(reason), before + 1, "{reason}");
    }

    fn refused(&self, reason: &str) -> u64 {
        let metrics = http::get(self.door.admin, "/metrics").body;
        let line = format!("qmux_dp_service_refused_total{{service=\"web\",reason=\"{reason}\"}} ");
        let value = metrics.lines().find_map(|it| it.strip_prefix(&line));
        let value = value.unwrap_or_else(|| panic!("no {line} in\n{metrics}"));
        value.parse().expect("a number")
    }
}

/// The service: sends back the visitor's address and the traffic address, then what the visitor has
/// sent.
fn tell_and_echo(mut stream: TcpStream) {
    let header = visitor::read_exact(&mut stream, 16 + 12);
    let header = v2::Header::try_from(&header[..]).expect("a header of version 2");
    let v2::Addresses::IPv4(of) = header.addresses else {
        panic!("IPv4: {header:?}")
    };
    let told = format!(
        "{}:{} {}\n",
        of.source_address, of.source_port, of.destination_port
    );
    let mut rest = Vec::new();
    // A visitor who is gone is its own matter.
    let _gone = stream
        .write_all(told.as_bytes())
        .and_then(|()| stream.read_to_end(&mut rest).map(drop))
        .and_then(|()| stream.write_all(&rest));
}

/// The parts of what the service has sent: the visitor's address, the traffic port, and what the
/// visitor has sent.
fn parted(said: &[u8]) -> (SocketAddr, u16, &[u8]) {
    let end = said.iter().position(|it| *it == b'\n').expect("a line");
    let line = std::str::from_utf8(&said[..end]).expect("text");
    let (of, port) = line.split_once(' ').expect("two words");
    let (of, port) = (
        of.parse().expect("an address"),
        port.parse().expect("a port"),
    );
    (of, port, &said[end + 1..])
}

fn text_header(source: Ipv4Addr, port: u16) -> Vec<u8> {
    let of = v1::Addresses::new_tcp4(source, Ipv4Addr::new(198, 51, 100, 1), port, 443);
    of.to_string().into_bytes()
}

fn binary_header(source: Ipv4Addr, port: u16) -> Vec<u8> {
    let of = v2::IPv4::new(source, Ipv4Addr::new(198, 51, 100, 1), port, 443);
    let command = v2::Version::Two | v2::Command::Proxy;
    let header = v2::Builder::with_addresses(command, v2::Protocol::Stream, of);
    let header = header.write_tlv(v2::Type::Authority, b"web.example.com");
    header.and_then(v2::Builder::build).expect("short")
}

fn source() -> SocketAddr {
    SocketAddr::from((SOURCE, SOURCE_PORT))
}

#[test]
fn nginx_behind_the_tunnel_logs_the_address_of_haproxys_visitor() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    for words in ["send-proxy", "send-proxy-v2"] {
        let site = Site::new();
        let root = site.path().join("root");
        fs::create_dir(&root).expect("directory");
        fs::write(root.join("hello"), "hello\n").expect("written");
        let nginx = peers::nginx_behind_proxy(&site, root.to_str().expect("UTF-8"));
        let server = ServerSetup {
            // These keys follow those of the server's only listener.
            listeners: vec!["tcp\"\naccept_proxy_from = [\"127.0.0.1\"]\nidle_timeout = \"0s"],
            ..ServerSetup::default()
        };
        let client = ClientSetup {
            local: vec!["protocol = \"tcp\"", "proxy_protocol = \"v2\""],
            ..ClientSetup::default()
        };
        let tunnel = Tunnel::with(&server, &client, nginx.address);
        let haproxy = peers::haproxy_with(&tunnel.site, tunnel.traffic(), words);
        // HAProxy itself comes from 127.0.0.1.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let from = SockAddr::from(SocketAddr::new(host(9), 0));
        socket.bind(&from).expect("an address of this host");
        let to = SockAddr::from(haproxy.address);
        socket.connect_timeout(&to, PATIENCE).expect("connected");
        let mut stream = TcpStream::from(socket);
        visitor::set_deadlines(&stream);
        let from = stream.local_addr().expect("connected");
        stream
            .write_all(b"GET /hello HTTP/1.0\r\n\r\n")
            .expect("the tunnel takes it");
        let Ending::Clean(answer) = visitor::read_to_end(&mut stream) else {
            panic!("nginx answers")
        };
        assert!(answer.ends_with(b"\r\n\r\nhello\n"), "{answer:?}");
        let log = site.path().join("visitors.log");
        let logged = wait::until("nginx logs the visitor", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.ends_with('\n').then_some(text)
        });
        let expected = format!(
            "127.0.0.9 {} 127.0.0.1 {} /hello\n",
            from.port(),
            tunnel.traffic().port()
        );
        assert_eq!(logged, expected, "{words}");
    }
}

#[test]
fn a_header_is_read_however_it_arrives_and_what_follows_it_is_the_visitors() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    let balanced = Balanced::start("");
    let headers = [
        text_header(SOURCE, SOURCE_PORT),
        binary_header(SOURCE, SOURCE_PORT),
    ];
    for header in headers {
        let sent = [&header[..], b"PROXY hello\r\n"].concat();
        for piece in [1, 7, sent.len()] {
            let mut stream = balanced.come(BALANCER);
            for piece in sent.chunks(piece) {
                // Without Nagle's algorithm each is a segment of its own.
                stream.write_all(piece).expect("the kernel takes it");
            }
            visitor::finish(&stream);
            let Ending::Clean(said) = visitor::read_to_end(&mut stream) else {
                panic!("it is served")
            };
            let traffic = balanced.door.traffic("web").port();
            assert_eq!(parted(&said), (source(), traffic, &b"PROXY hello\r\n"[..]));
        }
        // This visitor waits for the service to send first, after a header that comes in two parts.
        let mut stream = balanced.come(BALANCER);
        let (first, second) = header.split_at(header.len() / 2);
        stream.write_all(first).expect("sent");
        visitor::assert_nothing_to_read(&mut stream, std::time::Duration::from_millis(100));
        visitor::set_deadlines(&stream);
        stream.write_all(second).expect("sent");
        let told = visitor::read_exact(&mut stream, format!("{}", source()).len());
        assert_eq!(told, source().to_string().as_bytes());
    }
}

#[test]
fn the_address_in_the_header_counts_for_lists_limits_and_the_access_log() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    // The balancer's own address is denied: it does not count.
    let balanced =
        Balanced::start("deny = [\"192.0.2.66\", \"127.0.0.3\"]\nmax_visitors_per_source = 1");
    balanced.refuses(&text_header(Ipv4Addr::new(192, 0, 2, 66), 1), "denied");
    let mut first = balanced.come(BALANCER);
    first
        .write_all(&binary_header(SOURCE, SOURCE_PORT))
        .expect("sent");
    visitor::read_exact(&mut first, 10);
    balanced.refuses(&text_header(SOURCE, 2), "max_visitors_per_source");
    let other = text_header(Ipv4Addr::new(192, 0, 2, 8), 3);
    assert!(
        balanced.told(&other).is_some(),
        "another source has its own"
    );
    visitor::finish(&first);
    visitor::read_to_end(&mut first);
    balanced.wait_until_gone(SOURCE_PORT);
}

#[test]
fn a_connection_of_the_balancers_own_keeps_its_address() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    let balanced = Balanced::start("");
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for header in [&b"PROXY UNKNOWN\r\n"[..], local] {
        let told = balanced.told(header).expect("it is served");
        assert_eq!(told.ip(), host(BALANCER));
    }
}

#[test]
fn a_header_from_elsewhere_is_data() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    let balanced = Balanced::start("");
    for header in [
        text_header(SOURCE, SOURCE_PORT),
        binary_header(SOURCE, SOURCE_PORT),
    ] {
        let mut stream = balanced.come(2);
        stream.write_all(&header).expect("sent");
        visitor::finish(&stream);
        let Ending::Clean(said) = visitor::read_to_end(&mut stream) else {
            panic!("it is served")
        };
        let (told, _, rest) = parted(&said);
        assert_eq!((told.ip(), rest), (host(2), &header[..]));
    }
}

#[test]
fn what_is_no_header_is_refused_and_counted_by_reason() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    let balanced = Balanced::start("");
    balanced.refuses(b"GET / HTTP/1.1\r\n\r\n", "proxy_header_bad");
    balanced.refuses(
        b"PROXY TCP4 192.0.2.300 1.1.1.1 1 1\r\n",
        "proxy_header_bad",
    );
    let long = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x00".to_vec(),
        vec![0; 4_096],
    ]
    .concat();
    balanced.refuses(&long, "proxy_header_too_long");
    balanced.refuses(b"PROXY TCP4 192.", "proxy_header_missing");
    balanced.refuses(b"", "proxy_header_missing");
    // A visitor who sends nothing more is reset after some seconds.
    let before = balanced.refused("proxy_header_late");
    let mut silent = balanced.come(BALANCER);
    silent.write_all(b"PROXY").expect("sent");
    let error = silent.read(&mut [0; 1]).expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(balanced.refused("proxy_header_late"), before + 1);
    let metrics = http::get(balanced.door.admin, "/metrics").body;
    let all = http::metric(&metrics, "qmux_dp_visitors_refused_proxy_header_total");
    assert!(all >= 6.0, "{all}");
}

#[test]
fn who_has_not_said_who_it_is_takes_up_one_of_the_services_visitors() {
    if subject::only_wire("accept_proxy_from") {
        return;
    }
    let balanced = Balanced::start("max_visitors = 1");
    let mut port = 1;
    let silent = wait::until("it is in and waited for", || {
        let mut silent = balanced.try_to_come(BALANCER).ok()?;
        silent.write_all(b"PROXY").ok()?;
        let before = balanced.refused("max_visitors");
        port += 1;
        if balanced.told(&text_header(SOURCE, port)).is_some() {
            // It came in first. A visitor who comes before it has gone is refused.
            balanced.wait_until_gone(port);
            return None;
        }
        let other_was_refused = balanced.refused("max_visitors") > before;
        let is_in = silent.write_all(b" ").is_ok();
        (other_was_refused && is_in).then_some(silent)
    });
    drop(silent);
    let served = || balanced.told(&text_header(SOURCE, 1)).is_some();
    wait::until_true("there is room again", served);
}
