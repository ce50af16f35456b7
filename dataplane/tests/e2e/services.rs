//! Many services through one door: who may serve which, and what each visitor gets.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::process::Signal;

use qmux_proto::control::{RefuseReason, RegisterOutcome, ServiceVerdict};

use crate::support::certs::Identity;
use crate::support::counters;
use crate::support::door::{
    Door, DoorSetup, Offering, Published, entry, entry_by, free_range, published,
};
use crate::support::http;
use crate::support::ports;
use crate::support::quic_probe::{self, Probe};
use crate::support::service::{TcpService, UdpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Site, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// A door with these services for TCP, and these tables of clients.
fn tcp_door(site: &Site, services: &[&'static str], clients: &[String]) -> Door {
    let setup = DoorSetup {
        services: services.iter().map(|it| published(it, "tcp")).collect(),
        config: clients.concat(),
        ..DoorSetup::default()
    };
    Door::start(site, &setup)
}

fn probe(site: &Site, door: &Door, certificate: &str) -> Probe {
    let identity = Identity::client_named(certificate);
    let mut config = quic_probe::config(site.path(), Some(&identity));
    Probe::dial(door.quic[0], &mut config)
}

/// A client with a certificate of its name.
fn offering<'a>(name: &'static str, services: &[(&'a str, &TcpService)]) -> Offering<'a> {
    let service = |(name, service): &(&'a str, &TcpService)| (*name, "tcp", service.address, 1);
    Offering {
        name,
        certificate: name,
        token: None,
        services: services.iter().map(service).collect(),
        client: "",
    }
}

fn verdicts(
    probe: &mut Probe,
    client_id: &str,
    services: &[&str],
) -> Result<Vec<ServiceVerdict>, RegisterOutcome> {
    let answers = probe.offer(client_id, 7, services)?;
    let names: Vec<&str> = answers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, services, "one answer for each, in their order");
    Ok(answers.into_iter().map(|it| it.verdict).collect())
}

/// The counters of the server, after it has been told to stop.
fn counted(door: &mut Door) -> impl Fn(&str) -> u64 {
    door.program.signal(Signal::TERM);
    assert_eq!(door.program.wait_for_exit().code(), Some(0));
    let counters = counters::of(&door.program);
    move |name| counters::total(&counters, name)
}

// ---- who may serve what ----

#[test]
fn a_client_is_told_which_of_its_services_it_serves() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let clients = [entry("nas", &["web", "ssh-*", "gone"])];
    let mut door = tcp_door(&site, &["web", "ssh-nas", "other"], &clients);
    let mut nas = probe(&site, &door, "nas");
    let answers = nas.offer("me", 1, &["web", "ssh-nas", "gone", "other"]);
    let answers = answers.expect("registered");
    let verdicts: Vec<_> = answers.iter().map(|it| it.verdict).collect();
    use ServiceVerdict::{Accepted, NotAllowed, Unknown};
    assert_eq!(verdicts, [Accepted, Accepted, Unknown, NotAllowed]);
    let port = answers[0].ports.map(|it| (it.first, it.count));
    assert_eq!(port, Some((door.traffic("web").port(), 1)));
    let line = door
        .program
        .wait_for_line("a warning", |line| line.contains("it cannot serve here"));
    assert!(line.contains("gone") && line.contains("other"), "{line}");
    assert!(
        line.contains("client=\"nas\""),
        "by its entry's name: {line}"
    );
    let at_server = counted(&mut door);
    assert_eq!(at_server("services_unknown"), 1);
    assert_eq!(at_server("services_not_allowed"), 1);
}

#[test]
fn a_certificate_without_an_entry_is_refused_and_told_what_is_missing() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let mut door = tcp_door(&site, &["web"], &[entry("nas", &["web"])]);
    let refused = verdicts(&mut probe(&site, &door, "stranger"), "nas", &["web"]);
    let Err(RegisterOutcome::Refused { reason, text }) = refused else {
        panic!("it was let in: {refused:?}");
    };
    assert_eq!(reason, RefuseReason::NotAdmitted);
    assert!(text.contains("certificate = \"stranger\""), "{text}");
    let says = |line: &str| line.contains("stranger") && line.contains("[[server.clients]]");
    door.program.wait_for_line("the certificate's name", says);
    assert!(!visitor::echo_works(door.traffic("web")));
    let at_server = counted(&mut door);
    assert_eq!(at_server("clients_not_admitted"), 1);
    assert_eq!(at_server("registrations_accepted"), 0);
}

#[test]
fn nobody_gets_anything_of_another_by_its_client_id() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let clients = [entry("tenant-a", &["a-web"]), entry("tenant-b", &["b-web"])];
    let door = tcp_door(&site, &["a-web", "b-web"], &clients);
    let service = TcpService::echo();
    let tenant_a = Offering {
        client: "client_id = \"tenant-a\"",
        ..offering("tenant-a", &[("a-web", &service)])
    };
    let _tenant_a = tenant_a.start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a-web"));
    let mut flow = visitor::connect(door.traffic("a-web"));
    visitor::exchange(&mut flow, b"before");
    let mut thief = probe(&site, &door, "tenant-b");
    let answers = verdicts(&mut thief, "tenant-a", &["a-web", "b-web"]);
    let expected = [ServiceVerdict::NotAllowed, ServiceVerdict::Accepted];
    assert_eq!(answers.expect("registered as tenant-b"), expected);
    for _ in 0..10 {
        visitor::echo(door.traffic("a-web"), b"still served by tenant-a");
    }
    visitor::exchange(&mut flow, b"and its flows go on");
    let lines = door.program.lines();
    let taken = |line: &&String| line.contains("takes over");
    assert_eq!(lines.iter().find(taken), None);
}

#[test]
fn an_entry_may_be_known_by_the_fingerprint_of_its_certificate() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let known = Identity::client_named("same name");
    let parsed = boring::x509::X509::from_pem(known.cert_pem.as_bytes());
    let der = parsed.and_then(|it| it.to_der()).expect("a certificate");
    let names = qmux_config::CertificateNames::of(&der).expect("a certificate");
    let fingerprint = qmux_config::show_fingerprint(&names.fingerprint);
    let key = format!("fingerprint = \"{fingerprint}\"");
    let door = tcp_door(&site, &["web"], &[entry_by("nas", &key, &["web"])]);
    let mut config = quic_probe::config(site.path(), Some(&known));
    let mut it = Probe::dial(door.quic[0], &mut config);
    let accepted = verdicts(&mut it, "x", &["web"]).expect("registered");
    assert_eq!(accepted, [ServiceVerdict::Accepted]);
    verdicts(&mut probe(&site, &door, "same name"), "x", &["web"]).expect_err("another");
}

#[test]
fn each_client_is_known_by_its_own_token() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let token = |name: &str| format!("token = \"the secret of {name}\"");
    let setup = DoorSetup {
        services: vec![published("a", "tcp"), published("b", "tcp")],
        config: entry_by("first", &token("first"), &["a"])
            + &entry_by("second", &token("second"), &["b"]),
        auth: "method = \"token\"",
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let (a, b) = (TcpService::echo(), TcpService::echo());
    let with = |name, token| Offering {
        token: Some(token),
        ..offering(name, &[("a", &a), ("b", &b)])
    };
    let _first = with("first", "the secret of first").start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    assert!(!visitor::echo_works(door.traffic("b")), "not for this one");
    let _second = with("second", "the secret of second").start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("b"));
    let third = with("third", "the secret of nobody").launch(&site, door.quic[0]);
    let third = third.start();
    third.wait_for_line("its refusal", |line| line.contains("not authenticated"));
}

#[test]
fn a_client_that_knows_no_names_is_told_so_at_a_door_of_named_services() {
    if subject::only_wire("permissions") {
        return;
    }
    let site = Site::new();
    let door = tcp_door(&site, &["web"], &[]);
    let outcome = probe(&site, &door, "old").register("old", 1);
    let RegisterOutcome::Refused { reason, text } = outcome else {
        panic!("it was let in: {outcome:?}");
    };
    assert_eq!(reason, RefuseReason::BadRequest);
    assert!(text.contains("[[client.services]]"), "{text}");
}

// ---- what visitors get ----

/// Ports of the service that is a range.
const RANGE_PORTS: u16 = 3;

/// Ten services behind two clients, whose names those of their services begin with.
struct Ten {
    tcp: Vec<(&'static str, TcpService)>,
    udp: Vec<(&'static str, UdpService)>,
    both: Vec<(&'static str, (TcpService, UdpService))>,
    /// The first address of `a-range`, where each port says which one it is.
    range: SocketAddr,
    _of_range: Vec<TcpService>,
}

impl Ten {
    fn start() -> Self {
        let tcp = ["a-web", "a-ssh", "b-web", "b-ssh"];
        let range = free_range(RANGE_PORTS);
        let ports = range.port()..range.port() + RANGE_PORTS;
        Self {
            tcp: tcp.map(|name| (name, TcpService::says(name))).into(),
            udp: ["a-dns", "b-dns", "b-game"]
                .map(|name| (name, UdpService::echo()))
                .into(),
            both: ["a-both", "b-both"].map(|name| (name, echo_both())).into(),
            range,
            _of_range: ports.map(says_its_port).collect(),
        }
    }

    fn names(&self) -> Vec<&'static str> {
        let names = self.published().into_iter().map(|it| it.name);
        names.collect()
    }

    fn published(&self) -> Vec<Published> {
        let mut all: Vec<Published> = Vec::new();
        all.extend(self.tcp.iter().map(|it| published(it.0, "tcp")));
        all.extend(self.udp.iter().map(|it| published(it.0, "udp")));
        all.extend(self.both.iter().map(|it| published(it.0, "both")));
        all.push(Published {
            name: "a-range",
            protocol: "tcp",
            ports: RANGE_PORTS,
        });
        all
    }

    fn client(&self, name: &'static str) -> Offering<'static> {
        let mut services = Vec::new();
        let tcp = self.tcp.iter();
        services.extend(tcp.map(|it| (it.0, "tcp", it.1.address, 1)));
        let udp = self.udp.iter();
        services.extend(udp.map(|it| (it.0, "udp", it.1.address, 1)));
        let both = self.both.iter();
        services.extend(both.map(|it| (it.0, "both", it.1.0.address, 1)));
        services.push(("a-range", "tcp", self.range, RANGE_PORTS));
        services.retain(|it| it.0.starts_with(name));
        Offering {
            services,
            ..offering(name, &[])
        }
    }
}

/// A service that sends the port by which it was reached.
fn says_its_port(port: u16) -> TcpService {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it was free");
    TcpService::start_on(listener, move |mut stream| {
        // A visitor that has gone meanwhile is no failure of the service.
        let _gone = stream.write_all(&port.to_be_bytes());
        let _gone = io::copy(&mut stream, &mut io::sink());
    })
}

/// Waits until the address is served, by a service that says this.
fn wait_until_it_says(address: SocketAddr, text: &[u8]) {
    wait::until_true("the right service answers", || {
        let ending = visitor::ending_after(visitor::try_connect(address), |stream| {
            visitor::finish_if_open(stream);
            Ok(())
        });
        match ending {
            Ending::Clean(answer) => {
                assert_eq!(answer, text, "another service");
                true
            }
            Ending::Reset(_) => false,
        }
    });
}

#[test]
fn two_clients_serve_ten_services_through_one_door() {
    if subject::only_wire("named services") {
        return;
    }
    let site = Site::new();
    let ten = Ten::start();
    let setup = DoorSetup {
        services: ten.published(),
        config: entry("a", &["a-*"]) + &entry("b", &["b-*"]),
        addresses: 2,
        cores: 2,
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    // Each by another address of the door.
    let _clients = [
        ten.client("a").start(&site, door.quic[0]),
        ten.client("b").start(&site, door.quic[1]),
    ];
    for (name, _) in &ten.tcp {
        wait_until_it_says(door.traffic(name), name.as_bytes());
    }
    for position in 0..RANGE_PORTS {
        let mut address = door.traffic("a-range");
        address.set_port(address.port() + position);
        wait_until_it_says(address, &(ten.range.port() + position).to_be_bytes());
    }
    for (name, service) in &ten.udp {
        UdpVisitor::new(door.traffic(name)).echo(b"a datagram");
        assert!(service.received() > 0, "{name} has got it");
    }
    for (name, _services) in &ten.both {
        visitor::echo(door.traffic(name), b"over TCP");
        UdpVisitor::new(door.traffic(name)).echo(b"over UDP");
    }
    let metrics = http::get(door.admin, "/metrics").body;
    let value = |name: &str, service: &str| -> f64 {
        let start = format!("qmux_dp_{name}{{service=\"{service}\"}} ");
        let found = metrics.lines().find_map(|line| line.strip_prefix(&start));
        let found = found.unwrap_or_else(|| panic!("no {start} in\n{metrics}"));
        found.parse().expect("a number")
    };
    for name in ten.names() {
        assert_eq!(value("service_clients", name), 1.0, "{name}");
    }
    assert!(value("service_tcp_bytes_out_total", "a-web") >= 5.0);
    assert!(value("service_udp_bytes_in_total", "b-game") >= 10.0);
    assert!(value("service_visitors_total", "a-range") >= f64::from(RANGE_PORTS));
}

#[test]
fn a_dead_service_marks_only_itself() {
    if subject::only_wire("health of named services") {
        return;
    }
    let site = Site::new();
    let door = tcp_door(&site, &["dead", "good"], &[entry("nas", &["*"])]);
    let good = TcpService::echo();
    let dead = ports::free_address();
    let nas = Offering {
        services: vec![("dead", "tcp", dead, 1), ("good", "tcp", good.address, 1)],
        ..offering("nas", &[])
    };
    let _nas = nas.start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("good"));
    // The fault is found by a visitor or by a check, whichever is first.
    assert!(!visitor::echo_works(door.traffic("dead")));
    let says = |line: &str| line.contains("cannot reach its service");
    let line = door.program.wait_for_line("which service it is", says);
    assert!(line.contains("service=\"dead\""), "{line}");
    visitor::echo(door.traffic("good"), b"served");
    let metrics = http::get(door.admin, "/metrics").body;
    for line in [
        "qmux_dp_service_clients_reachable{service=\"dead\"} 0",
        "qmux_dp_service_clients_reachable{service=\"good\"} 1",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
}

#[test]
fn two_instances_of_one_client_share_its_visitors() {
    if subject::only_wire("instances of an entry") {
        return;
    }
    let site = Site::new();
    let door = tcp_door(&site, &["web"], &[entry("nas", &["web"])]);
    let services = [TcpService::echo(), TcpService::echo()];
    let instance = |name, service| Offering {
        certificate: "nas",
        client: "client_id = \"the same\"",
        ..offering(name, &[("web", service)])
    };
    let _one = instance("one", &services[0]).start(&site, door.quic[0]);
    let _two = instance("two", &services[1]).start(&site, door.quic[0]);
    wait::until_true("both serve", || {
        visitor::wait_until_served(door.traffic("web"));
        services.iter().all(|service| service.accepted() > 0)
    });
    let taken = |line: &String| line.contains("takes over");
    assert!(!door.program.lines().iter().any(taken));
}

#[test]
fn listeners_and_named_services_stand_in_one_file() {
    if subject::only_wire("named services") {
        return;
    }
    let site = Site::new();
    let (quic, traffic) = (ports::free_address(), ports::free_address());
    let listener = format!(
        "[[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"both\"\n"
    );
    // The server has no entries: every authenticated client may serve everything.
    let door = tcp_door(&site, &["web"], &[listener]);
    let (nameless, named) = (TcpService::echo(), TcpService::echo());
    let _old = start_client(&site, &ClientSetup::default(), quic, nameless.address);
    visitor::wait_until_served(traffic);
    assert!(!visitor::echo_works(door.traffic("web")), "another door");
    let _new = offering("new", &[("web", &named)]).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("web"));
    assert!(named.accepted() > 0 && nameless.accepted() > 0);
    let metrics = http::get(door.admin, "/metrics").body;
    assert_eq!(http::metric(&metrics, "qmux_dp_listener_clients"), 1.0);
    assert_eq!(http::metric(&metrics, "qmux_dp_service_clients"), 1.0);
}

// ---- before the start ----

#[test]
fn a_check_shows_services_and_clients_and_counts_what_sockets_take() {
    if subject::only_wire("what --check prints") {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![
            published("web", "tcp"),
            Published {
                name: "range",
                protocol: "both",
                ports: 20,
            },
        ],
        config: entry("nas", &["web", "ssh-*"]),
        cores: 2,
        ..DoorSetup::default()
    };
    let (_, launch) = Door::prepare(&site, &setup);
    let shown = launch.clone().arg("--check").output();
    for part in [
        "service \"web\"",
        "service \"range\"",
        "client \"nas\"",
        "may serve web, ssh-*",
    ] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
    // On 2 cores: a door, for QUIC and TLS; 1 + 20 ports for TCP, each twice; 20 for UDP.
    let descriptors = 2 * (2 + 2 * (1 + 20) + 20);
    let line = format!("sockets take {descriptors} file descriptors");
    assert!(shown.contains(&line), "no {line} in\n{shown}");
    // Neither a check nor a start goes on where they cannot be had.
    for launch in [launch.clone().arg("--check"), launch] {
        let mut program = launch.with_descriptors(100).start();
        assert_eq!(program.wait_for_exit().code(), Some(2));
        let stderr = program.stderr();
        assert!(
            stderr.contains(&format!("take {descriptors} file descriptors")),
            "{stderr}"
        );
    }
}

#[test]
fn a_service_that_no_server_takes_is_not_ready_at_its_client() {
    if subject::only_wire("/readyz") {
        return;
    }
    let site = Site::new();
    let clients = [entry("nas", &["web"])];
    let door = tcp_door(&site, &["web", "other"], &clients);
    let echo = TcpService::echo();
    let services = [("web", &echo), ("other", &echo), ("gone", &echo)];
    let launch = offering("nas", &services).launch(&site, door.quic[0]);
    let admin = ports::free_address();
    let text = std::fs::read_to_string(site.path().join("nas.toml")).expect("the config");
    site.write(
        "nas.toml",
        &format!("{text}[admin]\nlisten = \"{admin}\"\n"),
    );
    let _client = launch.start();
    http::wait_for(admin, "/readyz", 200);
    http::wait_for(admin, "/readyz?service=web", 200);
    let why = http::wait_for(admin, "/readyz?service=other", 503);
    assert!(
        why.contains("does not let this client serve") && why.contains("\"other\""),
        "{why}"
    );
    let why = http::wait_for(admin, "/readyz?service=gone", 503);
    assert!(why.contains("[[server.clients]]"), "{why}");
    for name in ["nobody".to_owned(), "x".repeat(1_000)] {
        let answer = http::get(admin, &format!("/readyz?service={name}"));
        assert_eq!(answer.status, 404, "{}", answer.body);
        assert!(answer.body.len() < 200, "{}", answer.body);
    }
}
