//! A name with several addresses: those that lead to one server are no two servers, and one that
//! cannot be used harms nobody.

use std::net::Ipv4Addr;
use std::process::Command;

use rustix::process::Signal;

use crate::diagnosis::{may_make_networks, with_hosts};
use crate::support::counters;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site, client_launch_to};

const NAME: &str = "server.tunnel.test";

/// A server of two cores at every address of a network of its own.
fn server(site: &Site, set_up: &str) -> (Program, u16) {
    let listener = Listener {
        quic: (Ipv4Addr::UNSPECIFIED, ports::free_address().port()).into(),
        traffic: ports::free_address(),
    };
    let port = listener.quic.port();
    let setup = ServerSetup {
        cores: 2,
        server: vec!["heartbeat_interval = \"500ms\"", "health_timeout = \"3s\""],
        ..ServerSetup::default()
    };
    let program = Server::launch(site, &setup, &[listener])
        .in_own_network(set_up)
        .start();
    program.wait_until_ready().expect("a server");
    (program, port)
}

/// A client of that server by its name, with these addresses, in its network.
fn client(site: &Site, server: &Program, port: u16, addresses: &[&str]) -> Program {
    let hosts: String = addresses
        .iter()
        .map(|address| format!("{address} {NAME}\n"))
        .collect();
    let setup = ClientSetup {
        cores: 2,
        client: vec!["heartbeat_interval = \"500ms\"", "health_timeout = \"3s\""],
        ..ClientSetup::default()
    };
    let nobody = ports::free_address();
    let launch = client_launch_to(site, &setup, &[&format!("{NAME}:{port}")], nobody);
    let launch = with_hosts(site, launch, &hosts);
    let client = launch.in_network_of(server).start();
    client.wait_until_ready().expect("a client");
    client
}

/// Runs a shell script in the network of `program`.
fn in_network_of(program: &Program, script: &str) {
    let status = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", program.id()))
        .args(["--", "sh", "-c", script])
        .status();
    assert!(status.is_ok_and(|status| status.success()), "{script}");
}

#[test]
fn two_addresses_of_one_server_have_the_lanes_of_one_and_stand_in_for_each_other() {
    const TEST: &str = "two_addresses_of_one_server_have_the_lanes_of_one";
    if subject::only_wire(TEST) || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let (mut server, port) = server(&site, "");
    let addresses = ["127.0.0.1", "127.0.0.2"];
    let mut client = client(&site, &server, port, &addresses);
    let rests = client.wait_for_line("that one of them rests", |line| {
        line.contains("another address of a server that is served already")
    });
    let [resting, serving] = if rests.contains(addresses[0]) {
        addresses
    } else {
        [addresses[1], addresses[0]]
    };
    let registered = |at: &str| {
        let at = format!("({at}:{port})");
        move |line: &str| line.contains("lane registered") && line.contains(&at)
    };
    client.wait_for_lines("a lane for each core", 2, registered(serving));
    // The network to the address that serves fails, and the other address takes over, with a lane
    // for each core.
    in_network_of(
        &server,
        &format!(
            "nft add table ip t; \
             nft add chain ip t out '{{ type filter hook output priority 0; }}'; \
             nft add rule ip t out ip daddr {serving} meta l4proto {{ tcp, udp }} th dport {port} drop"
        ),
    );
    client.wait_for_lines("its lanes", 3, registered(resting));
    for program in [&mut client, &mut server] {
        program.signal(Signal::TERM);
        assert_eq!(program.wait_for_exit().code(), Some(0));
    }
    let accepted = counters::total(&counters::of(&server), "registrations_accepted");
    assert_eq!(accepted, 5, "two, the one by which it was found out, two");
}

#[test]
fn an_address_family_without_a_route_is_said_once_and_tried_rarely() {
    const TEST: &str = "an_address_family_without_a_route_is_said_once_and_tried_rarely";
    if subject::only_wire(TEST) || !may_make_networks(TEST) {
        return;
    }
    let site = Site::new();
    let (server, port) = server(&site, "");
    let client = client(&site, &server, port, &["2001:db8::1", "127.0.0.1"]);
    let of_v6 = |line: &str| line.contains("no route") && line.contains("2001:db8::1");
    // While no other address serves, it is tried several times in the first seconds.
    let line = client.wait_for_line("that it has no route", of_v6);
    assert!(line.contains("IPv6"), "{line}");
    let registered = |line: &str| line.contains("lane registered");
    client.wait_for_lines("a lane for each core", 2, registered);
    let lines = client.lines();
    let of_v6: Vec<&String> = lines.iter().filter(|line| of_v6(line)).collect();
    // On a machine that is very busy, the other address may take longer than the patience with this
    // one.
    let serves = lines.iter().position(|line| registered(line));
    let after = lines.iter().skip(serves.expect("it does"));
    let warnings = after.filter(|line| line.contains("WARN") && line.contains("2001:db8::1"));
    assert_eq!(warnings.count(), 0, "{of_v6:#?}");
}
