//! What a service demands of its visitors: who is let in, and what is counted of those who are not.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::door::{Door, DoorSetup, Offering, published};
use crate::support::http;
use crate::support::program::Program;
use crate::support::service::{TcpService, UdpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};

/// A server whose service `web` has these keys, an echo behind it, and its client.
struct Limited {
    door: Door,
    udp: UdpService,
    tcp: TcpService,
    _client: Program,
    _site: Site,
}

impl Limited {
    /// Starts the server with these files in its directory, and waits until a visitor from `source`
    /// is served.
    fn start(keys: &str, files: &[(&str, &str)], source: IpAddr) -> Self {
        let site = Site::new();
        for (name, text) in files {
            site.write(name, text);
        }
        let setup = DoorSetup {
            services: vec![published("web", "both")],
            // What follows the table of the last service belongs to that table.
            config: format!("{keys}\n"),
            cores: 2,
            ..DoorSetup::default()
        };
        let door = Door::start(&site, &setup);
        let (tcp, udp) = echo_both();
        let offering = Offering {
            name: "client",
            certificate: "client",
            token: None,
            services: vec![("web", "both", tcp.address, 1)],
            client: "",
        };
        let client = offering.start(&site, door.quic[0]);
        let limited = Self {
            door,
            udp,
            tcp,
            _client: client,
            _site: site,
        };
        wait::until_true("a visitor is served", || limited.serves(source));
        limited
    }

    fn traffic(&self) -> SocketAddr {
        self.door.traffic("web")
    }

    /// Whether a visitor from this address is served, and not reset.
    fn serves(&self, source: IpAddr) -> bool {
        self.visit(source).is_ok()
    }

    /// Serves a visitor from this address; returns the connection when its bytes have come back.
    fn visit(&self, source: IpAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        socket.connect_timeout(&SockAddr::from(self.traffic()), PATIENCE)?;
        let mut stream = TcpStream::from(socket);
        visitor::set_deadlines(&stream);
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        Ok(stream)
    }

    /// Checks that a visitor from this address is reset.
    fn resets(&self, source: IpAddr) {
        let error = self.visit(source).expect_err("it is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }

    /// The value of a metric of the service.
    fn metric(&self, name: &str, labels: &str) -> u64 {
        let metrics = http::get(self.door.admin, "/metrics").body;
        let line = format!("qmux_dp_{name}{{{labels}}} ");
        let value = metrics.lines().find_map(|it| it.strip_prefix(&line));
        let value = value.unwrap_or_else(|| panic!("no {line} in\n{metrics}"));
        value.parse().expect("a number")
    }

    /// How many visitors were refused for this reason.
    fn refused(&self, reason: &str) -> u64 {
        let labels = format!("service=\"web\",reason=\"{reason}\"");
        self.metric("service_refused_total", &labels)
    }
}

/// An address of this host.
fn host(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[test]
fn lists_say_where_tcp_visitors_may_come_from() {
    if subject::only_wire("lists of networks") {
        return;
    }
    let keys = "allow = [\"127.0.0.2\", \"127.0.0.4/31\"]\nallow_file = \"allowed.txt\"\n\
                deny = [\"127.0.0.4\"]\ndeny_file = \"denied.txt\"";
    let files = [
        ("allowed.txt", "# others\n127.0.0.3 # one of them\n"),
        ("denied.txt", "127.0.0.5\n"),
    ];
    let limited = Limited::start(keys, &files, host(2));
    assert!(limited.serves(host(3)), "of allow_file");
    limited.resets(host(1));
    assert_eq!(
        (limited.refused("not_allowed"), limited.refused("denied")),
        (1, 0)
    );
    limited.resets(host(4));
    limited.resets(host(5));
    assert_eq!(
        (limited.refused("not_allowed"), limited.refused("denied")),
        (1, 2)
    );
    let refused = limited.metric("service_visitors_refused_total", "service=\"web\"");
    assert!(refused >= 3, "the total has them as well: {refused}");
}

#[test]
fn lists_say_where_udp_visitors_may_come_from() {
    if subject::only_wire("lists of networks") {
        return;
    }
    let keys = "allow = [\"127.0.0.2\", \"127.0.0.4\"]\ndeny = [\"127.0.0.4\"]";
    let limited = Limited::start(keys, &[], host(2));
    for (last, reason) in [(1, "not_allowed"), (4, "denied")] {
        let mut visitor = UdpVisitor::coming_from(host(last), limited.traffic());
        wait::until_true("a datagram is refused", || {
            visitor.send(b"not for the service");
            limited.refused(reason) > 0
        });
    }
    UdpVisitor::coming_from(host(2), limited.traffic()).echo(b"hello");
    assert_eq!(limited.udp.sources(), 1, "the service has seen nobody else");
}

#[test]
fn no_more_tcp_visitors_come_in_than_the_service_takes_on_all_cores() {
    if subject::only_wire("limits") {
        return;
    }
    let limited = Limited::start("max_visitors = 2", &[], host(2));
    let come = |last| wait::until("a visitor is in", || limited.visit(host(last)).ok());
    let (first, _second) = (come(2), come(3));
    let before = limited.refused("max_visitors");
    for last in 2..10 {
        limited.resets(host(last));
    }
    assert_eq!(limited.refused("max_visitors"), before + 8);
    drop(first);
    let _third = come(4);
    limited.resets(host(2));
}

#[test]
fn no_more_tcp_visitors_of_a_source_come_in_than_it_may_have() {
    if subject::only_wire("limits") {
        return;
    }
    let limited = Limited::start("max_visitors_per_source = 1", &[], host(2));
    let come = |last| wait::until("a visitor is in", || limited.visit(host(last)).ok());
    let first = come(2);
    let before = limited.refused("max_visitors_per_source");
    for _ in 0..8 {
        limited.resets(host(2));
    }
    assert_eq!(limited.refused("max_visitors_per_source"), before + 8);
    let _other = limited.visit(host(3)).expect("another source has its own");
    drop(first);
    let _again = come(2);
    limited.resets(host(2));
}

#[test]
fn a_source_that_comes_too_often_waits_and_nobody_else_does() {
    if subject::only_wire("limits") {
        return;
    }
    let limited = Limited::start("visitors_per_second_per_source = 2", &[], host(2));
    wait::until_true("the source comes too often", || {
        let _in_or_not: Vec<_> = (0..10).map(|_| limited.visit(host(2))).collect();
        limited.refused("visitors_per_second_per_source") > 0
    });
    assert!(limited.serves(host(3)), "another source has its own");
    wait::until_true("it comes in again", || limited.serves(host(2)));
}

#[test]
fn no_more_udp_flows_of_a_source_begin_than_it_may_have() {
    if subject::only_wire("limits") {
        return;
    }
    let limited = Limited::start("max_udp_flows_per_source = 1", &[], host(2));
    let visitor = |last| UdpVisitor::coming_from(host(last), limited.traffic());
    let mut first = visitor(2);
    first.echo(b"first");
    for _ in 0..4 {
        let before = limited.refused("max_udp_flows_per_source");
        let mut surplus = visitor(2);
        wait::until_true("a flow is refused", || {
            surplus.send(b"not for the service");
            limited.refused("max_udp_flows_per_source") > before
        });
    }
    visitor(3).echo(b"another source has its own");
    first.echo(b"the flow goes on");
    assert_eq!(limited.udp.sources(), 2, "the service has seen nobody else");
}

#[test]
fn a_udp_flow_that_ends_makes_room_for_another_one_of_its_source() {
    if subject::only_wire("limits") {
        return;
    }
    let keys = "max_udp_flows_per_source = 1\n[udp]\nsession_timeout = \"1s\"\n\
                unanswered_timeout = \"1s\"";
    let limited = Limited::start(keys, &[], host(2));
    for _ in 0..3 {
        let mut visitor = UdpVisitor::coming_from(host(2), limited.traffic());
        wait::until_true("the flow before has ended", || {
            visitor.echo_works(b"is there room?")
        });
    }
}

#[test]
fn a_tcp_flow_that_is_silent_for_the_idle_timeout_is_reset() {
    if subject::only_wire("idle_timeout") {
        return;
    }
    let limited = Limited::start("idle_timeout = \"1s\"", &[], host(2));
    let mut visitor = wait::until("a visitor is in", || limited.visit(host(2)).ok());
    assert_eq!(
        visitor::read_to_end(&mut visitor),
        Ending::Reset(Vec::new())
    );
    limited.tcp.wait_until_done();
    let metrics = http::get(limited.door.admin, "/metrics").body;
    assert!(http::metric(&metrics, "qmux_dp_tcp_flows_idle_total") > 0.0);
}

/// The service's row in `/status`.
fn row(admin: SocketAddr) -> serde_json::Value {
    let status: serde_json::Value =
        serde_json::from_str(&http::get(admin, "/status").body).expect("JSON");
    status["server"]["services"][0].clone()
}

#[test]
fn status_counts_refused_visitors_of_udp_with_those_of_tcp() {
    if subject::only_wire("refused visitors") {
        return;
    }
    let keys = "deny = [\"127.0.0.3\"]\nmax_udp_flows_per_source = 1";
    let limited = Limited::start(keys, &[], host(1));
    let before = row(limited.door.admin)["refused"].as_u64();
    let before = before.expect("a number");
    let mut denied = UdpVisitor::coming_from(host(3), limited.traffic());
    for _ in 0..3 {
        denied.send(b"denied");
    }
    let mut first = UdpVisitor::coming_from(host(2), limited.traffic());
    first.echo(b"the one flow that its source may have");
    UdpVisitor::coming_from(host(2), limited.traffic()).send(b"one too many");
    limited.resets(host(3));
    wait::until_true("each is counted by its reason", || {
        limited.refused("denied") == 4 && limited.refused("max_udp_flows_per_source") == 1
    });
    assert_eq!(row(limited.door.admin)["refused"], before + 5);
}

#[test]
fn a_visitor_whom_no_client_serves_is_counted_by_service_and_reason() {
    if subject::only_wire("refused visitors") {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![published("web", "both")],
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let traffic = door.traffic("web");
    let refused = |reason: &str| {
        let metrics = http::get(door.admin, "/metrics").body;
        let labels = format!("{{service=\"web\",reason=\"{reason}\"}} ");
        let line = format!("qmux_dp_service_refused_total{labels}");
        let value = metrics.lines().find_map(|it| it.strip_prefix(&line));
        let value = value.unwrap_or_else(|| panic!("no {line} in\n{metrics}"));
        value.parse::<u64>().expect("a number")
    };
    let mut udp = UdpVisitor::new(traffic);
    for _ in 0..3 {
        udp.send(b"nobody is there");
    }
    assert_eq!(visitor::ending_of(traffic, b""), Ending::Reset(Vec::new()));
    wait::until_true("those without a client", || refused("no_client") == 4);
    let offering = Offering {
        name: "client",
        certificate: "client",
        token: None,
        services: vec![("web", "both", crate::support::ports::free_address(), 1)],
        client: "",
    };
    let _client = offering.start(&site, door.quic[0]);
    wait::until_true("visitors are sent to the client", || {
        visitor::ending_of(traffic, b"");
        refused("not_served") > 0
    });
    let before = (refused("not_served"), refused("no_client"));
    for _ in 0..3 {
        assert_eq!(visitor::ending_of(traffic, b""), Ending::Reset(Vec::new()));
    }
    for _ in 0..2 {
        UdpVisitor::new(traffic).send(b"nobody listens");
    }
    wait::until_true("those whom its service did not take", || {
        refused("not_served") == before.0 + 5
    });
    assert_eq!(refused("no_client"), before.1);
    assert_eq!(row(door.admin)["refused"], before.0 + 5 + before.1);
}
