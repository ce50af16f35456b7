//! What the log says when there is no tunnel: the reason in words that lead to the mistake.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::program::Launch;
use crate::support::resolver::Resolver;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Server, ServerSetup, Site, client_launch, client_launch_to, start_client,
};
use crate::support::{ports, wait};

/// Whether this user may make network namespaces and change their firewalls; says so if not.
pub(crate) fn may_make_networks(test: &str) -> bool {
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--",
        "sh",
        "-c",
        "ip link set lo up && nft list ruleset",
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let may = command.status().is_ok_and(|status| status.success());
    if !may {
        eprintln!("{test}: left out, because a network namespace and nftables take root");
    }
    may
}

fn impatient() -> ClientSetup {
    ClientSetup {
        quic: vec!["handshake_idle_timeout = \"1s\""],
        ..ClientSetup::default()
    }
}

fn assert_has(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {line}");
    }
}

#[test]
fn a_server_that_never_answers_is_said_to_be_about_udp_its_port_and_firewalls() {
    if subject::only_wire("what exactly the client logs") {
        return;
    }
    let site = Site::new();
    let mute = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let server = mute.local_addr().expect("bound");
    let client = client_launch(&site, &impatient(), server, ports::free_address()).start();
    let line = client.wait_for_line("why", |line| line.contains("cannot connect"));
    let udp = format!("UDP port {} of 127.0.0.1", server.port());
    assert_has(&line, &["no answer", &udp, "firewall", "not TCP"]);
}

#[test]
fn a_port_where_nobody_listens_is_named() {
    if subject::only_wire("what exactly the client logs") {
        return;
    }
    let site = Site::new();
    let server = ports::free_address();
    let client = client_launch(&site, &impatient(), server, ports::free_address()).start();
    let line = client.wait_for_line("why", |line| line.contains("cannot connect"));
    let udp = format!("UDP port {} of 127.0.0.1", server.port());
    assert_has(&line, &["nobody listens", &udp, "quic_addr"]);
}

#[test]
fn the_hosts_own_firewall_is_named() {
    const TEST: &str = "the_hosts_own_firewall_is_named";
    if subject::only_wire(TEST) || !may_make_networks(TEST) {
        return;
    }
    for verdict in ["drop", "reject"] {
        let site = Site::new();
        let server = ports::free_address();
        let rules = format!(
            "nft add table ip t; \
             nft add chain ip t out '{{ type filter hook output priority 0; }}'; \
             nft add rule ip t out udp dport {} {verdict}",
            server.port()
        );
        let client = client_launch(&site, &impatient(), server, ports::free_address());
        let client = client.in_own_network(&rules).start();
        let line = client.wait_for_line("why", |line| line.contains("cannot connect"));
        let udp = format!("UDP port {} of 127.0.0.1", server.port());
        assert_has(
            &line,
            &["this host forbids", &udp, "not permitted", "own firewall"],
        );
    }
}

#[test]
fn a_server_name_that_cannot_be_resolved_is_one_clear_line() {
    const TEST: &str = "a_server_name_that_cannot_be_resolved_is_one_clear_line";
    if subject::only_wire(TEST) {
        return;
    }
    let site = Site::new();
    let Some(resolver) = Resolver::start(&site, TEST) else {
        return;
    };
    let service = TcpService::echo();
    let client = client_launch_to(
        &site,
        &ClientSetup::default(),
        &["typo.tunnel.test:8443"],
        service.address,
    );
    let client = resolver.asked_by(client).start();
    let fails = |line: &str| line.contains("cannot be resolved");
    client.wait_for_lines("three failures", 3, fails);
    let lines = client.lines();
    let lines: Vec<&String> = lines
        .iter()
        .filter(|line| fails(line) && !line.contains("DEBUG"))
        .collect();
    assert_eq!(lines.len(), 1, "the others are for debugging: {lines:#?}");
    assert_has(
        lines[0],
        &["WARN", "typo.tunnel.test", "[[client.servers]]", "DNS"],
    );
    // The resolver's own words.
    assert_has(lines[0], &["not known"]);
}

#[test]
fn only_the_line_of_readiness_has_the_word_ready() {
    const TEST: &str = "only_the_line_of_readiness_has_the_word_ready";
    if subject::only_wire(TEST) {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let server = ServerSetup {
        admin: Some(ports::free_address()),
        ..ServerSetup::default()
    };
    let mut server = Server::start(&site, &server);
    let client = ClientSetup {
        admin: Some(ports::free_address()),
        ..ClientSetup::default()
    };
    let mut client = start_client(&site, &client, server.quic(), service.address);
    for program in [&mut client, &mut server.program] {
        program.signal(Signal::TERM);
        assert_eq!(program.wait_for_exit().code(), Some(0));
        let lines = program.lines();
        let ready: Vec<&String> = lines.iter().filter(|it| it.contains("ready")).collect();
        assert_eq!(ready.len(), 1, "{ready:#?}");
    }
}

#[test]
fn renewed_certificates_are_picked_up_and_bad_ones_are_not() {
    const TEST: &str = "renewed_certificates_are_picked_up_and_bad_ones_are_not";
    if subject::only_wire(TEST) {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let client = start_client(
        &site,
        &ClientSetup::default(),
        server.quic(),
        service.address,
    );
    std::fs::write(site.path().join("client.crt"), "not a certificate").expect("written");
    client.wait_for_line("that the new one is of no use", |line| {
        line.contains("not usable") && line.contains("client.crt")
    });
    crate::support::certs::Identity::client().write(site.path(), "client");
    client.wait_for_line("that it was read", |line| {
        line.contains("certificate files have changed; new connections use them")
    });
    wait::until_true("visitors are served", || {
        crate::support::visitor::echo_works(server.traffic())
    });
}

/// A program with a hosts file instead of DNS; takes a mount namespace.
pub(crate) fn with_hosts(site: &Site, launch: Launch, hosts: &str) -> Launch {
    let hosts = site.write("hosts", hosts);
    let nsswitch = site.write("nsswitch.conf", "hosts: files\n");
    launch.with_files(&[(&hosts, "/etc/hosts"), (&nsswitch, "/etc/nsswitch.conf")])
}
