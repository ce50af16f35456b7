//! A client that rides TLS dies: its connections end at once, and nobody waits for a timeout.

use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::two_ways::TwoWays;
use crate::support::visitor::{self, Ending};
use crate::support::visits::{self, Delivered, Visits};
use crate::support::{counters, subject, wait};

const WHY: &str = "only qmux-dp speaks TLS";

/// These times are longer than any test waits.
const NOTICES_NEVER: [&str; 2] = [
    "health_timeout = \"10m\"",
    "load_balancer = \"round-robin\"",
];

fn server(site: &Site) -> Server {
    let setup = ServerSetup {
        server: NOTICES_NEVER.to_vec(),
        quic: vec!["max_idle_timeout = \"10m\""],
        ..ServerSetup::default()
    };
    Server::start(site, &setup)
}

fn over_tls(name: &'static str) -> ClientSetup {
    ClientSetup {
        name,
        server: vec!["transport = \"tls\""],
        client: vec!["health_timeout = \"10m\""],
        quic: vec!["max_idle_timeout = \"10m\""],
        ..ClientSetup::default()
    }
}

/// Stops a program and gives the sum of a counter.
fn stop_and_count(program: &mut Program, name: &str) -> u64 {
    program.signal(Signal::TERM);
    program.wait_for_exit();
    counters::total(&counters::of(program), name)
}

#[test]
fn flows_of_a_client_that_has_died_end_long_before_the_health_timeout() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let mut server = server(&site);
    let service = TcpService::echo();
    let mut client = start_client(&site, &over_tls("mortal"), server.quic(), service.address);
    let mut visitors: Vec<TcpStream> = (0..5).map(|_| visitor::connect(server.traffic())).collect();
    for visitor in &mut visitors {
        visitor::exchange(visitor, b"is past its beginning");
    }
    client.kill();
    for visitor in &mut visitors {
        assert_eq!(visitor::read_to_end(visitor), Ending::Reset(Vec::new()));
    }
    assert_eq!(stop_and_count(&mut server.program, "lanes_hung_up"), 1);
}

#[test]
fn flows_of_a_client_that_lives_wait_for_it_when_its_connection_was_cut() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let mut server = server(&site);
    let service = TcpService::echo();
    let path = TwoWays::to(server.quic());
    let _client = start_client(&site, &over_tls("alive"), path.address, service.address);
    let mut visitor = visitor::connect(server.traffic());
    for _ in 0..5 {
        visitor::exchange(&mut visitor, b"before");
        path.cut_tcp(true);
        visitor::exchange(&mut visitor, b"after");
    }
    drop(visitor);
    assert_eq!(stop_and_count(&mut server.program, "lanes_hung_up"), 0);
}

#[test]
fn whoever_comes_after_a_client_was_killed_is_served_by_another_one() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = server(&site);
    let delivered = Delivered::default();
    let services = [(); 2].map(|()| delivered.service());
    let [mut mortal, _other] = ["mortal", "other"].map(|name| {
        let service = if name == "mortal" { 0 } else { 1 };
        start_client(
            &site,
            &over_tls(name),
            server.quic(),
            services[service].address,
        )
    });
    let visits = Visits::start(server.traffic(), 200);
    wait::until_true("each client serves", || {
        services.iter().all(|service| service.accepted() > 20)
    });
    mortal.kill();
    let killed = visits.elapsed();
    let before = services[1].accepted();
    wait::until_true("the other one serves on", || {
        services[1].accepted() > before + 200
    });
    let visits = visits.finish();
    println!(
        "killed at {:.3} s: {}",
        killed.as_secs_f64(),
        visits::summary(&visits)
    );
    let mut late = visits.iter().filter(|visit| visit.came > killed);
    assert!(
        late.all(|visit| visit.result.is_ok()),
        "{}",
        visits::summary(&visits)
    );
    assert_eq!(delivered.repeated(), 0, "a request was delivered twice");
}
