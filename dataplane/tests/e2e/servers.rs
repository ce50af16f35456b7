//! One client, many servers: each is served, whatever the others do, also when their addresses
//! change.

use std::net::{Ipv4Addr, SocketAddr};

use rustix::process::Signal;

use crate::support::counters;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::resolver::Resolver;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site, client_launch_to};
use crate::support::visitor::{self, Ending};
use crate::support::wait;

fn server(site: &Site, name: &'static str, cores: usize) -> Server {
    let setup = ServerSetup {
        name,
        cores,
        ..ServerSetup::default()
    };
    Server::start(site, &setup)
}

fn client(site: &Site, setup: &ClientSetup, servers: &[&str], service: SocketAddr) -> Program {
    let program = client_launch_to(site, setup, servers, service).start();
    if let Err(log) = program.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    program
}

#[test]
fn a_client_of_two_servers_serves_the_visitors_of_both() {
    let service = TcpService::echo();
    let site = Site::new();
    let (one, two) = (server(&site, "one", 1), server(&site, "two", 1));
    let addresses = [one.quic().to_string(), two.quic().to_string()];
    let mut client = client(
        &site,
        &ClientSetup::default(),
        &[&addresses[0], &addresses[1]],
        service.address,
    );
    for server in [&one, &two] {
        visitor::wait_until_served(server.traffic());
        visitor::echo(server.traffic(), b"served");
    }
    assert!(client.exited().is_none());
}

#[test]
fn a_server_that_is_away_from_the_start_delays_no_other_one() {
    if subject::only_wire("a_server_that_is_away_from_the_start") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut away = server(&site, "away", 1);
    away.program.kill();
    let there = server(&site, "there", 1);
    let addresses = [
        // A name that no resolver knows, an address that nobody listens at, and one that somebody
        // does.
        "no-such-host.invalid:8443".to_owned(),
        away.quic().to_string(),
        there.quic().to_string(),
    ];
    let servers: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let _client = client(&site, &ClientSetup::default(), &servers, service.address);
    visitor::wait_until_served(there.traffic());
    // It is found when it comes, and the other one goes on.
    away.program.restart();
    away.program.wait_until_ready().expect("it starts again");
    visitor::wait_until_served(away.traffic());
    visitor::echo(there.traffic(), b"served");
}

#[test]
fn the_death_of_one_server_is_nothing_to_the_other_one() {
    if subject::only_wire("the_death_of_one_server") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let (mut one, two) = (server(&site, "one", 1), server(&site, "two", 1));
    let addresses = [one.quic().to_string(), two.quic().to_string()];
    let _client = client(
        &site,
        &ClientSetup::default(),
        &[&addresses[0], &addresses[1]],
        service.address,
    );
    visitor::wait_until_served(one.traffic());
    visitor::wait_until_served(two.traffic());
    let mut open = visitor::connect(two.traffic());
    visitor::exchange(&mut open, b"before");
    one.program.kill();
    for _ in 0..20 {
        visitor::echo(two.traffic(), b"served");
    }
    visitor::exchange(&mut open, b"after");
    one.program.restart();
    one.program.wait_until_ready().expect("it starts again");
    visitor::wait_until_served(one.traffic());
    visitor::exchange(&mut open, b"still");
}

/// Lanes that a server has accepted in all, asked after its end.
fn registrations(server: &mut Server) -> u64 {
    server.program.signal(Signal::TERM);
    let status = server.program.wait_for_exit();
    assert_eq!(status.code(), Some(0));
    counters::total(&counters::of(&server.program), "registrations_accepted")
}

/// Whether a client had to dial a lane again, as it may have on a busy machine: then there are more
/// registrations.
fn has_lost_a_lane(client: &Program) -> bool {
    client.lines().iter().any(|it| it.contains("lane ended"))
}

#[test]
fn servers_with_different_numbers_of_cores_get_the_lanes_that_each_needs() {
    if subject::only_wire("servers_with_different_numbers_of_cores") {
        return;
    }
    for (lanes, expected) in [("lanes = \"auto\"", [2, 2]), ("lanes = 5", [5, 5])] {
        let service = TcpService::echo();
        let site = Site::new();
        let mut servers = [server(&site, "three", 3), server(&site, "one", 1)];
        let setup = ClientSetup {
            cores: 2,
            client: vec![lanes],
            ..ClientSetup::default()
        };
        let addresses = [servers[0].quic().to_string(), servers[1].quic().to_string()];
        let client = client(
            &site,
            &setup,
            &[&addresses[0], &addresses[1]],
            service.address,
        );
        let in_all = expected.iter().sum::<usize>();
        client.wait_for_lines("all lanes", in_all, |line| line.contains("lane registered"));
        let lost = has_lost_a_lane(&client);
        for (server, lanes) in servers.iter_mut().zip(expected) {
            visitor::echo(server.traffic(), b"served");
            let accepted = registrations(server);
            assert!(lost || accepted == lanes as u64, "{accepted} of {lanes}");
        }
    }
}

#[test]
fn a_server_that_is_named_twice_gets_its_lanes_once() {
    if subject::only_wire("a_server_that_is_named_twice") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut server = server(&site, "server", 1);
    let address = server.quic();
    let by_name = format!("localhost:{}", address.port());
    let setup = ClientSetup {
        client: vec!["resolve_interval = \"100ms\""],
        ..ClientSetup::default()
    };
    let launch = client_launch_to(
        &site,
        &setup,
        &[&by_name, &address.to_string()],
        service.address,
    );
    let client = launch.start();
    client.wait_until_ready().expect("it registers");
    client.wait_for_line("the name's answer", |line| {
        line.contains("resolved") && line.contains("localhost")
    });
    for _ in 0..10 {
        visitor::echo(server.traffic(), b"served");
    }
    let lost = has_lost_a_lane(&client);
    let accepted = registrations(&mut server);
    assert!(lost || accepted == 1, "{accepted} of 1");
}

#[test]
fn addresses_of_a_name_come_and_go_without_a_restart() {
    const TEST: &str = "addresses_of_a_name_come_and_go_without_a_restart";
    const NAME: &str = "servers.tunnel.test";
    if subject::only_wire(TEST) {
        return;
    }
    let site = Site::new();
    let Some(mut resolver) = Resolver::start(&site, TEST) else {
        return;
    };
    let service = TcpService::echo();
    let ips = [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)];
    // A name has one port at all its addresses.
    let port = ports::free_address().port();
    let servers = [("one", ips[0]), ("two", ips[1])].map(|(name, ip)| {
        let setup = ServerSetup {
            name,
            // A lane that is left waits for the server's next one.
            server: vec!["heartbeat_interval = \"500ms\"", "health_timeout = \"30s\""],
            ..ServerSetup::default()
        };
        let listeners = vec![Listener {
            quic: (ip, port).into(),
            traffic: ports::free_address(),
        }];
        let program = Server::launch(&site, &setup, &listeners).start();
        program.wait_until_ready().expect("a server");
        Server { program, listeners }
    });
    let [one, two] = &servers;
    resolver.answer(NAME, &ips[..1]);
    let setup = ClientSetup {
        client: vec!["resolve_interval = \"200ms\""],
        ..ClientSetup::default()
    };
    let address = format!("{NAME}:{port}");
    let launch = client_launch_to(&site, &setup, &[&address], service.address);
    let mut client = resolver.asked_by(launch).start();
    client.wait_until_ready().expect("it finds the first one");
    visitor::wait_until_served(one.traffic());
    assert!(
        !visitor::echo_works(two.traffic()),
        "nobody knows of it yet"
    );

    resolver.answer(NAME, &ips);
    visitor::wait_until_served(two.traffic());
    visitor::echo(one.traffic(), b"served");

    // The first one vanishes: no new visitor, but the flow that is open goes on to its end.
    let mut open = visitor::connect(one.traffic());
    visitor::exchange(&mut open, b"before");
    resolver.answer(NAME, &ips[1..]);
    wait::until_true("no new visitors come by the address that is gone", || {
        !visitor::echo_works(one.traffic())
    });
    visitor::exchange(&mut open, b"after");
    visitor::finish(&open);
    assert_eq!(visitor::read_to_end(&mut open), Ending::Clean(Vec::new()));
    one.program.wait_for_line("the end of its lane", |line| {
        line.contains("lane ended") && line.contains("shutdown")
    });
    visitor::echo(two.traffic(), b"served");

    resolver.answer(NAME, &ips);
    visitor::wait_until_served(one.traffic());

    // Without a resolver the last answer stays good.
    resolver.kill();
    client.wait_for_lines("four failures", 4, |line| {
        line.contains("cannot be resolved")
    });
    for server in [one, two] {
        visitor::echo(server.traffic(), b"served");
    }
    assert!(client.exited().is_none());
}
