//! `qmux-ctl doctor`: each cause for which a tunnel does not work ends in the sentence that names
//! it.

mod certificates;
mod over_tls;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::diagnosis::may_make_networks;
use crate::support::program::{Launch, Program};
use crate::support::resolver::Resolver;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Listener, Server, ServerSetup, Site, client_config, start_client,
};
use crate::support::{ports, visitor};

/// The output of the doctor.
struct Said {
    code: Option<i32>,
    lines: Vec<String>,
}

impl Said {
    /// The state that the line of a step tells.
    fn state(&self, step: &str) -> Option<&str> {
        let mut words = self.lines.iter().map(|line| line.split_whitespace());
        words.find_map(|mut words| (words.next() == Some(step)).then(|| words.next())?)
    }

    /// Checks the step that fails, that those before it do not, and the last line.
    fn assert_finds(&self, step: &str, fine: &[&str], words: &[&str]) {
        let said = self.lines.join("\n");
        assert_eq!(self.code, Some(1), "{said}");
        assert_eq!(self.state(step), Some("failed"), "{said}");
        for fine in fine {
            assert_eq!(self.state(fine), Some("ok"), "{fine}:\n{said}");
        }
        let last = self.lines.last().expect("a sentence");
        assert!(last.starts_with(&format!("{step}: ")), "{said}");
        for word in words {
            assert!(last.contains(word), "no {word:?} in: {said}");
        }
    }

    fn assert_well(&self) {
        let said = self.lines.join("\n");
        assert_eq!(self.code, Some(0), "{said}");
        assert!(!said.contains("failed"), "{said}");
        assert!(said.contains("all is well"), "{said}");
    }
}

/// The command that runs it with a client's config.
fn doctor_launch(site: &Site, setup: &ClientSetup, server: &str, service: SocketAddr) -> Launch {
    let file = format!("{}-doctor.toml", setup.name);
    let config = site.write(&file, &client_config(setup, &[server], service));
    let program = std::env::var_os("QMUX_E2E_CTL").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_qmux-dp")).with_file_name("qmux-ctl"),
        PathBuf::from,
    );
    Launch::new("doctor", program).args(["doctor", "--config", &config])
}

fn run(launch: Launch) -> Said {
    let mut program = launch.start();
    let code = program.wait_for_exit().code();
    let lines: Vec<String> = program.stdout().lines().map(str::to_owned).collect();
    // With --nocapture: what a user reads.
    println!("{}\n", lines.join("\n"));
    Said { code, lines }
}

/// Runs it without asking anybody for the time.
fn examine(site: &Site, setup: &ClientSetup, server: SocketAddr, service: SocketAddr) -> Said {
    let launch = doctor_launch(site, setup, &server.to_string(), service);
    run(launch.args(["--time-server", "none"]))
}

fn impatient() -> ClientSetup {
    ClientSetup {
        quic: vec!["handshake_idle_timeout = \"1s\""],
        ..ClientSetup::default()
    }
}

/// Whether this is about another pair of programs.
fn is_left_out() -> bool {
    subject::only_wire("what qmux-ctl doctor says")
}

fn udp_of(server: SocketAddr) -> String {
    format!("UDP port {} of {}", server.port(), server.ip())
}

const NETWORK: [&str; 4] = ["name", "route", "udp", "mtu"];

#[test]
fn a_tunnel_that_works_is_well_and_its_client_goes_on() {
    if is_left_out() {
        return;
    }
    let service = TcpService::echo();
    for auth in [
        None,
        Some("method = \"token\"\ntoken = \"correct horse battery\""),
    ] {
        let site = Site::new();
        let setup = ServerSetup {
            auth,
            cores: 2,
            ..ServerSetup::default()
        };
        let server = Server::start(&site, &setup);
        let token = auth.map(|_| "token = \"correct horse battery\"");
        let setup = ClientSetup {
            auth: token.into_iter().collect(),
            client: vec!["client_id = \"mine\""],
            ..ClientSetup::default()
        };
        let client = start_client(&site, &setup, server.quic(), service.address);
        let said = examine(&site, &setup, server.quic(), service.address);
        said.assert_well();
        for step in NETWORK.iter().chain(&[
            "certificate",
            "server_name",
            "clock",
            "ca",
            "token",
            "permission",
            "service",
        ]) {
            assert_eq!(said.state(step), Some("ok"), "{step}");
        }
        visitor::echo(server.traffic(), b"served by the client");
        let lines = client.lines();
        assert!(
            !lines.iter().any(|line| line.contains("lane ended")),
            "{lines:#?}"
        );
        assert!(
            !lines.iter().any(|line| line.contains("client_id")),
            "{lines:#?}"
        );
    }
}

#[test]
fn a_name_without_an_address_is_named_with_its_key() {
    const TEST: &str = "a_name_without_an_address_is_named_with_its_key";
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let Some(resolver) = Resolver::start(&site, TEST) else {
        return;
    };
    let service = TcpService::echo();
    let setup = ClientSetup::default();
    let launch = doctor_launch(&site, &setup, "typo.tunnel.test:8443", service.address);
    let said = run(resolver.asked_by(launch));
    let words = [
        "typo.tunnel.test",
        "[[client.servers]]",
        "DNS",
        "getent hosts",
    ];
    said.assert_finds("name", &["service"], &words);
}

#[test]
fn a_host_without_a_route_is_told_so() {
    const TEST: &str = "a_host_without_a_route_is_told_so";
    if is_left_out() || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let service = ports::free_address();
    let launch = doctor_launch(&site, &impatient(), "192.0.2.1:8443", service);
    let said = run(launch.in_own_network(""));
    said.assert_finds(
        "route",
        &["name"],
        &["no route to UDP port 8443 of 192.0.2.1", "IPv4"],
    );
}

#[test]
fn a_port_where_nobody_listens_is_named_by_the_doctor() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let (server, service) = (ports::free_address(), TcpService::echo());
    let said = examine(&site, &impatient(), server, service.address);
    let words = ["nobody listens", &udp_of(server), "quic_addr"];
    said.assert_finds("udp", &["name", "route", "service"], &words);
}

/// A server in a network of its own, in which these rules hold for what comes in.
fn server_behind(site: &Site, rules: &str) -> (Program, SocketAddr) {
    server_of_behind(site, &ServerSetup::default(), rules)
}

fn server_of_behind(site: &Site, setup: &ServerSetup, rules: &str) -> (Program, SocketAddr) {
    let listener = Listener::free(false);
    let port = listener.quic.port().to_string();
    let script = format!(
        "nft add table ip t; \
         nft add chain ip t in '{{ type filter hook input priority 0; }}'; {}",
        rules.replace("PORT", &port)
    );
    let launch = Server::launch(site, setup, &[listener]);
    let server = launch.in_own_network(&script).start();
    if let Err(log) = server.wait_until_ready() {
        panic!("the server ended instead of becoming ready:\n{log}");
    }
    (server, listener.quic)
}

#[test]
fn a_firewall_that_drops_udp_alone_is_told_from_a_host_that_is_away() {
    const TEST: &str = "a_firewall_that_drops_udp_alone_is_told_from_a_host_that_is_away";
    if is_left_out() || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let (program, server) = server_behind(&site, "nft add rule ip t in udp dport PORT drop");
    let service = ports::free_address();
    let launch = doctor_launch(&site, &impatient(), &server.to_string(), service);
    let said = run(launch.in_network_of(&program));
    let words = [
        "the host is there",
        "TCP",
        &udp_of(server),
        "firewall",
        "Allow UDP port",
        "not TCP",
        "over TCP gets through, so the client serves over it",
    ];
    said.assert_finds("udp", &["name", "route"], &words);

    let (program, server) = server_behind(&site, "nft add rule ip t in drop");
    let launch = doctor_launch(&site, &impatient(), &server.to_string(), service);
    let said = run(launch.in_network_of(&program));
    let words = [
        "no answer from",
        &udp_of(server),
        "firewall",
        "nor does TLS over TCP",
    ];
    said.assert_finds("udp", &["name", "route"], &words);
}

#[test]
fn a_service_is_offered_and_tried_with_the_protocol_that_it_has() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        listeners: vec!["udp"],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let service = TcpService::echo();
    let of = |protocol: &'static str| ClientSetup {
        local: vec![protocol],
        ..ClientSetup::default()
    };
    let (tcp, udp) = (of("protocol = \"tcp\""), of("protocol = \"udp\""));
    let said = examine(&site, &tcp, server.quic(), service.address);
    said.assert_finds("permission", &["token", "service"], &["another protocol"]);

    // TCP alone is at this port.
    let said = examine(&site, &udp, server.quic(), service.address);
    let words = ["UDP port", "nobody listens", "[client.local]"];
    said.assert_finds("service", &["permission"], &words);

    let only_udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let only_udp = only_udp.local_addr().map(|it| (it, only_udp));
    let (address, _socket) = only_udp.expect("bound");
    examine(&site, &udp, server.quic(), address).assert_well();
    drop(server);
    let server = Server::start(&site, &ServerSetup::default());
    let said = examine(&site, &tcp, server.quic(), address);
    let words = ["nobody listens there", "[client.local]"];
    said.assert_finds("service", &["permission"], &words);
}

#[test]
fn a_path_for_small_packets_alone_is_told_by_what_it_carries() {
    const TEST: &str = "a_path_for_small_packets_alone_is_told_by_what_it_carries";
    if is_left_out() || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let service = ports::free_address();
    for (rules, carries) in [
        (
            "nft add rule ip t in meta length gt 1000 drop",
            "only small packets pass",
        ),
        (
            "ip link set lo mtu 1100",
            "only packets of up to 1072 bytes",
        ),
    ] {
        let (program, server) = server_behind(&site, rules);
        let launch = doctor_launch(&site, &impatient(), &server.to_string(), service);
        let said = run(launch.in_network_of(&program));
        let words = [carries, &udp_of(server), "1200 bytes", "MTU", "1280"];
        said.assert_finds("mtu", &["name", "route"], &words);
    }
}

#[test]
fn a_token_that_is_wrong_or_missing_is_named_with_its_keys() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let setup = ServerSetup {
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let service = TcpService::echo();
    for (auth, words) in [
        (
            vec!["token = \"wrong pony battery\""],
            ["[client.auth]", "[server.auth]"],
        ),
        (vec![], ["wants a token", "set token in [client.auth]"]),
    ] {
        let setup = ClientSetup {
            auth,
            ..ClientSetup::default()
        };
        let said = examine(&site, &setup, server.quic(), service.address);
        said.assert_finds(
            "token",
            &["certificate", "server_name", "clock", "ca"],
            &words,
        );
    }
}

#[test]
fn a_server_that_does_not_let_the_client_serve_is_told_with_its_reason() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let setup = ClientSetup::default();
    let client = start_client(&site, &setup, server.quic(), service.address);
    let mut stream = visitor::connect(server.traffic());
    visitor::exchange(&mut stream, b"a flow that lasts");
    server.program.signal(Signal::TERM);
    client.wait_for_line("the server drains", |line| line.contains("drain"));
    let said = examine(&site, &setup, server.quic(), service.address);
    let words = [&udp_of(server.quic()), "shutting down"];
    said.assert_finds(
        "permission",
        &["certificate", "server_name", "clock", "ca"],
        &words,
    );
}

#[test]
fn a_local_service_that_does_not_listen_is_named_with_its_keys() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let nobody = ports::free_address();
    let said = examine(&site, &ClientSetup::default(), server.quic(), nobody);
    let port = format!("port {} of 127.0.0.1", nobody.port());
    let words = [
        &port,
        "nobody listens there",
        "host and port in [client.local]",
    ];
    said.assert_finds("service", &["udp", "permission"], &words);
}

#[test]
fn a_config_that_cannot_be_used_ends_with_2_and_its_place() {
    if is_left_out() {
        return;
    }
    let site = Site::new();
    let setup = ClientSetup {
        client: vec!["lanez = 2"],
        ..ClientSetup::default()
    };
    let nobody = ports::free_address();
    let mut program = doctor_launch(&site, &setup, &nobody.to_string(), nobody).start();
    assert_eq!(program.wait_for_exit().code(), Some(2));
    let said = program.stderr();
    assert!(
        said.contains("client-doctor.toml:2:") && said.contains("lanes"),
        "{said}"
    );
}
