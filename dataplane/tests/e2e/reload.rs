//! Another configuration for a running server or client: what is taken up, what is refused, and
//! that no flow notices.

mod certificates;
mod client;
mod files;
mod load;
mod own_ports;
mod withdrawn;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use qmux_proto::LaneError;
use qmux_proto::control::{GoAwayReason, RegisterOutcome};
use rustix::process::Signal;

use crate::support::certs::Identity;
use crate::support::door::{Door, DoorSetup, Offering, entry, published};
use crate::support::http;
use crate::support::ports;
use crate::support::quic_probe::{self, Probe};
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// The config file of a program, to be changed.
struct ConfigFile {
    path: PathBuf,
    admin: SocketAddr,
}

impl ConfigFile {
    fn of(site: &Site, name: &str, admin: SocketAddr) -> ConfigFile {
        let path = site.path().join(name);
        ConfigFile { path, admin }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).expect("the config")
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.path, text).expect("written");
    }

    /// Replaces what must be there.
    fn replace(&self, before: &str, after: &str) {
        let text = self.text();
        assert!(text.contains(before), "{before:?} is not in\n{text}");
        self.write(&text.replacen(before, after, 1));
    }

    fn append(&self, text: &str) {
        self.write(&(self.text() + text));
    }

    /// Orders the program to read the file again. The answer comes when all cores have taken it up.
    fn reload(&self) -> http::Answer {
        post(self.admin, "/reload")
    }

    /// Reloads; the file must be taken up. Returns the changes that are reported.
    fn taken_up(&self) -> String {
        let answer = self.reload();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }
}

fn post(admin: SocketAddr, path: &str) -> http::Answer {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    http::request(admin, &request).expect("an answer")
}

/// A server with these services, and its config file.
fn door(site: &Site, services: &[&'static str], config: &str) -> (Door, ConfigFile) {
    let setup = DoorSetup {
        services: services.iter().map(|it| published(it, "both")).collect(),
        config: config.into(),
        cores: 2,
        ..DoorSetup::default()
    };
    let door = Door::start(site, &setup);
    let file = ConfigFile::of(site, "door.toml", door.admin);
    (door, file)
}

/// A client of these services, all at the same place.
fn offering<'a>(name: &'static str, services: &[&'a str], local: SocketAddr) -> Offering<'a> {
    let service = |name: &&'a str| (*name, "both", local, 1);
    Offering {
        name,
        certificate: name,
        token: None,
        services: services.iter().map(service).collect(),
        client: "",
    }
}

/// Waits until visitors of this address are served no more.
fn wait_until_refused(address: SocketAddr) {
    wait::until_true("visitors are refused", || !visitor::echo_works(address));
}

fn qmux_ctl() -> PathBuf {
    let beside = || PathBuf::from(env!("CARGO_BIN_EXE_qmux-dp")).with_file_name("qmux-ctl");
    std::env::var_os("QMUX_E2E_CTL").map_or_else(beside, PathBuf::from)
}

fn service_table(name: &str, traffic: SocketAddr, protocol: &str) -> String {
    format!(
        "[[server.services]]\nname = \"{name}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"{protocol}\"\n"
    )
}

/// The table of a service, as [`Door`] has written it.
fn without_service(text: &str, name: &str) -> String {
    let table = format!("[[server.services]]\nname = \"{name}\"\n");
    let begins = text.find(&table).expect("the service");
    let rest = &text[begins + 1..];
    let ends = rest
        .find("\n[")
        .map_or(text.len(), |at| begins + 1 + at + 1);
    format!("{}{}", &text[..begins], &text[ends..])
}

fn has_line(path: &Path, text: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|all| all.contains(text))
}

// ---- services ----

#[test]
fn a_service_that_is_added_is_served_at_once_by_who_has_offered_it_all_along() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let (tcp, udp) = echo_both();
    let _client = offering("client", &["a", "b"], tcp.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    let b = ports::free_address();
    file.append(&service_table("b", b, "both"));
    let said = file.taken_up();
    assert!(
        said.contains("server.services[b].traffic_addr: added"),
        "{said}"
    );
    visitor::wait_until_served(b);
    visitor::echo(b, b"to the new service");
    UdpVisitor::new(b).echo(b"datagram to the new service");
    visitor::exchange(&mut flow, b"after");
    assert!(udp.received() > 0);
}

#[test]
fn a_service_that_is_removed_takes_nobody_and_its_flows_finish() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a", "b"], "");
    let (tcp, _udp) = echo_both();
    let _client = offering("client", &["a", "b"], tcp.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("b"));
    let mut flow = visitor::connect(door.traffic("b"));
    visitor::exchange(&mut flow, b"before");
    let mut datagrams = UdpVisitor::new(door.traffic("b"));
    datagrams.echo(b"before");
    file.write(&without_service(&file.text(), "b"));
    let said = file.taken_up();
    assert!(
        said.contains("server.services[b].traffic_addr: removed"),
        "{said}"
    );
    visitor::exchange(&mut flow, b"it goes on");
    datagrams.echo(b"so does this");
    wait_until_refused(door.traffic("b"));
    visitor::echo(door.traffic("a"), b"the other one is there");
    let bytes = vec![7; 1 << 20];
    visitor::exchange(&mut flow, &bytes);
    visitor::finish(&flow);
    assert_eq!(visitor::read_to_end(&mut flow), Ending::Clean(Vec::new()));
    let status = http::get(door.admin, "/readyz?service=b").status;
    assert_eq!(status, 404, "it is known no more");
}

#[test]
fn flows_of_a_removed_service_are_reset_when_drain_timeout_is_over() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a", "b"], "");
    let service = TcpService::echo();
    let _client = offering("client", &["a", "b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("b"));
    file.replace("[server]\n", "[server]\ndrain_timeout = \"1s\"\n");
    file.taken_up();
    let mut removed = visitor::connect(door.traffic("b"));
    let mut stays = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut removed, b"before");
    visitor::exchange(&mut stays, b"before");
    file.write(&without_service(&file.text(), "b"));
    file.taken_up();
    assert!(matches!(
        visitor::read_to_end(&mut removed),
        Ending::Reset(_)
    ));
    visitor::exchange(&mut stays, b"after");
    let metrics = http::get(door.admin, "/metrics").body;
    assert!(metrics.contains("tcp_flows_ended_drained"), "{metrics}");
}

#[test]
fn a_service_that_comes_back_while_it_drains_is_served_again_for_both_protocols() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a", "b"], "");
    let (tcp, _udp) = echo_both();
    let _client = offering("client", &["a", "b"], tcp.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("b"));
    let mut flow = visitor::connect(door.traffic("b"));
    visitor::exchange(&mut flow, b"before");
    UdpVisitor::new(door.traffic("b")).echo(b"before");
    let with = file.text();
    for _ in 0..3 {
        file.write(&without_service(&with, "b"));
        file.taken_up();
        file.write(&with);
        file.taken_up();
        visitor::wait_until_served(door.traffic("b"));
        UdpVisitor::new(door.traffic("b")).echo(b"a new visitor");
        visitor::exchange(&mut flow, b"the first one is still there");
    }
}

#[test]
fn a_service_keeps_its_flows_when_its_port_or_its_protocol_changes() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let (tcp, _udp) = echo_both();
    let _client = offering("client", &["a"], tcp.address).start(&site, door.quic[0]);
    let a = door.traffic("a");
    visitor::wait_until_served(a);
    let mut flow = visitor::connect(a);
    visitor::exchange(&mut flow, b"before");
    file.replace("protocol = \"both\"", "protocol = \"tcp\"");
    file.taken_up();
    visitor::echo(a, b"TCP is left");
    let elsewhere = ports::free_address();
    file.replace(&a.to_string(), &elsewhere.to_string());
    file.replace("protocol = \"tcp\"", "protocol = \"both\"");
    file.taken_up();
    visitor::wait_until_served(elsewhere);
    UdpVisitor::new(elsewhere).echo(b"and UDP is back");
    wait_until_refused(a);
    visitor::exchange(&mut flow, b"after");
}

#[test]
fn limits_and_lists_hold_for_those_who_come_from_then_on() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let service = TcpService::echo();
    let _client = offering("client", &["a"], service.address).start(&site, door.quic[0]);
    let a = door.traffic("a");
    visitor::wait_until_served(a);
    let mut flow = visitor::connect(a);
    visitor::exchange(&mut flow, b"before");
    file.replace(
        "protocol = \"both\"",
        "protocol = \"both\"\ndeny = [\"127.0.0.0/8\"]",
    );
    let said = file.taken_up();
    assert!(said.contains("server.services[a].deny: added"), "{said}");
    assert!(!visitor::echo_works(a));
    visitor::exchange(&mut flow, b"who is in stays");
    file.replace("deny = [\"127.0.0.0/8\"]", "max_visitors = 1");
    file.taken_up();
    visitor::echo(a, b"one may come");
    visitor::exchange(&mut flow, b"after");
}

#[test]
fn a_listener_comes_and_goes_with_its_door() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let service = TcpService::echo();
    let (quic, traffic) = (ports::free_address(), ports::free_address());
    let before = file.text();
    file.append(&format!(
        "[[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"tcp\"\n"
    ));
    file.taken_up();
    let client = offering("local", &[""], service.address).start(&site, quic);
    visitor::wait_until_served(traffic);
    let mut flow = visitor::connect(traffic);
    visitor::exchange(&mut flow, b"before");
    file.write(&before);
    file.taken_up();
    wait_until_refused(traffic);
    visitor::exchange(&mut flow, b"it may finish");
    client.wait_for_line("the news", |line| line.contains("drains"));
    drop(door);
}

#[test]
fn a_lane_of_a_removed_listener_is_told_to_go_and_closed_when_drain_timeout_is_over() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    file.replace("[server]\n", "[server]\ndrain_timeout = \"1s\"\n");
    let before = file.text();
    let (quic, traffic) = (ports::free_address(), ports::free_address());
    file.append(&format!(
        "[[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"tcp\"\n"
    ));
    file.taken_up();
    // Clients of ours go by themselves when they have no flow. This one stays.
    let identity = Identity::client_named("stays");
    let dial = |address| {
        let mut config = quic_probe::config(site.path(), Some(&identity));
        Probe::dial(address, &mut config)
    };
    let (mut removed, mut stays) = (dial(quic), dial(door.quic[0]));
    assert_eq!(removed.register("stays", 1), RegisterOutcome::Accepted);
    assert!(stays.offer("stays", 1, &["a"]).is_ok());
    file.write(&before);
    file.taken_up();
    let away = removed.told_to_go();
    assert_eq!(away.reason, GoAwayReason::Shutdown);
    assert_eq!(away.drain_timeout_ms, 1_000);
    assert_eq!(removed.closed(), LaneError::Shutdown);
    assert!(stays.is_open(), "its door is there");
}

// ---- what is refused ----

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing_and_says_why() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let service = TcpService::echo();
    let _client = offering("client", &["a", "b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    let good = file.text();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let occupied = taken.local_addr().expect("its address");
    let b = ports::free_address();
    let new = service_table("b", b, "both");
    for (text, says) in [
        (format!("{good}stranger = 1\n"), "stranger"),
        (format!("{good}[server\n"), "TOML"),
        (good.replace("server.crt", "missing.crt"), "missing.crt"),
        (
            format!("{good}{new}{}", service_table("c", occupied, "tcp")),
            "server.services[2].traffic_addr: cannot bind TCP",
        ),
        (
            format!("{good}{new}{}", service_table("a", b, "tcp")),
            "again",
        ),
    ] {
        file.write(&text);
        let answer = file.reload();
        assert_eq!(answer.status, 422, "{}", answer.body);
        assert!(answer.body.contains(says), "{says}: {}", answer.body);
        assert!(!visitor::echo_works(b), "nothing of it is taken up");
        visitor::echo(door.traffic("a"), b"as before");
    }
    door.program.signal(Signal::HUP);
    let says = |line: &str| line.contains("nothing has changed") && line.contains("again");
    door.program.wait_for_line("why", says);
    visitor::echo(door.traffic("a"), b"as before");
    file.write(&(good + &new));
    door.program.signal(Signal::HUP);
    visitor::wait_until_served(b);
}

#[test]
fn a_refused_configuration_shows_no_secret_to_whoever_may_ask() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], "");
    let client = "[client.local]\nhost = \"127.0.0.1\"\nport = 1\n[[client.servers]]\n\
                  address = \"a.test:1\"\nproxy = \"https://me:hunter2@proxy.example:3128\"\n";
    file.append(client);
    let answer = file.reload();
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(answer.body.contains("client.servers[0].proxy: "));
    assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    let is_told = |line: &str| line.contains("the configuration cannot be used");
    let line = door.program.wait_for_line("why", is_told);
    assert!(!line.contains("hunter2"), "{line}");
    let status = http::get(door.admin, "/status").body;
    assert!(!status.contains("hunter2"), "{status}");
}

#[test]
fn what_only_a_start_takes_up_is_named_each_time() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (_door, file) = door(&site, &["a"], "");
    file.append("[quic]\nmax_idle_timeout = \"20s\"\n");
    for _ in 0..2 {
        let said = file.taken_up();
        assert!(
            said.contains("needs a restart: quic.max_idle_timeout"),
            "{said}"
        );
    }
    file.replace("[quic]\nmax_idle_timeout = \"20s\"\n", "");
    let said = file.taken_up();
    assert!(!said.contains("restart"), "{said}");
    assert!(has_line(&file.path, "[server]"));
}

#[test]
fn the_command_says_what_has_changed_and_exits_with_2_if_nothing_could() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = door(&site, &["a"], &entry("nas", &["a"]));
    let reload = || {
        let output = std::process::Command::new(qmux_ctl())
            .args(["reload", "--admin", &door.admin.to_string()])
            .output()
            .expect("qmux-ctl");
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    file.replace("services = [\"a\"]", "services = [\"a\", \"b-*\"]");
    let (code, said) = reload();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("server.clients[nas].services: [\"a\"] -> [\"a\", \"b-*\"]"),
        "{said}"
    );
    file.append("stranger = 1\n");
    let (code, said) = reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("stranger") && said.contains("nothing has changed"),
        "{said}"
    );
}
