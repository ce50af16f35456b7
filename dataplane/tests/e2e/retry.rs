//! A client that cannot serve a visitor says so, and the visitor is served by another one without
//! noticing.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use crate::support::counters;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::visitor::{self, Ending};
use crate::support::visits::{self, Delivered, Visits};
use crate::support::wait;

const ROUND_ROBIN: &str = "load_balancer = \"round-robin\"";

fn server(site: &Site, cores: usize) -> Server {
    let setup = ServerSetup {
        cores,
        server: vec![ROUND_ROBIN],
        ..ServerSetup::default()
    };
    Server::start(site, &setup)
}

fn client(name: &'static str, lanes: &'static str) -> ClientSetup {
    ClientSetup {
        name,
        client: vec![lanes],
        ..ClientSetup::default()
    }
}

/// Stops a program and gives the sum of a counter.
fn stop_and_count(program: &mut Program, name: &str) -> u64 {
    program.signal(Signal::TERM);
    assert_eq!(program.wait_for_exit().code(), Some(0));
    counters::total(&counters::of(program), name)
}

/// Sends `bytes` with a FIN before anything is read; the echo must be whole.
fn send_all_then_read(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("sent");
    visitor::finish(stream);
    assert!(
        visitor::read_to_end(stream) == Ending::Clean(bytes.to_vec()),
        "the echo differs from what was sent"
    );
}

#[test]
fn a_dead_service_costs_no_visitor_and_gets_none_once_it_is_known() {
    if subject::only_wire("retries and service health") {
        return;
    }
    let site = Site::new();
    let mut server = server(&site, 1);
    let services = [TcpService::echo(), TcpService::echo()];
    let mut dead = start_client(
        &site,
        &client("dead", "lanes = 2"),
        server.quic(),
        ports::free_address(),
    );
    let _alive = [("first", 0), ("second", 1)].map(|(name, service): (_, usize)| {
        let setup = client(name, "lanes = \"auto\"");
        start_client(&site, &setup, server.quic(), services[service].address)
    });
    let bytes = Random::new(1).bytes(10_000);
    // The clients take turns, so three visitors are enough for one to be sent to the dead service.
    let mut before = 0;
    let known = |line: &str| line.contains("cannot reach its service");
    while !server.program.lines().iter().any(|line| known(line)) {
        send_all_then_read(&mut visitor::connect(server.traffic()), &bytes);
        before += 1;
        assert!(
            before < 1_000,
            "the server does not learn of the dead service"
        );
    }
    for _ in 0..60 {
        send_all_then_read(&mut visitor::connect(server.traffic()), &bytes);
    }
    let accepted: usize = services.iter().map(TcpService::accepted).sum();
    assert_eq!(accepted, before + 60, "each visitor was served once");
    let retried = stop_and_count(&mut server.program, "visitors_retried");
    assert!(
        (1..=before as u64).contains(&retried),
        "{retried} retried of {before} before it was known"
    );
    let server_counters = counters::of(&server.program);
    assert_eq!(counters::total(&server_counters, "services_down"), 1);
    assert_eq!(counters::total(&server_counters, "visitors_refused"), 0);
    assert_eq!(stop_and_count(&mut dead, "tcp_dials_failed"), retried);
}

#[test]
fn what_a_visitor_has_sent_goes_to_the_next_client_on_another_core_too() {
    if subject::only_wire("retries") {
        return;
    }
    let site = Site::new();
    let mut server = server(&site, 2);
    let service = TcpService::echo();
    // A lane on each core of the server, and one of a single core.
    let _dead = start_client(
        &site,
        &client("dead", "lanes = 2"),
        server.quic(),
        ports::free_address(),
    );
    let _alive = start_client(
        &site,
        &client("alive", "lanes = 1"),
        server.quic(),
        service.address,
    );
    let mut random = Random::new(2);
    // They come at the same time: most have been sent somewhere before the first is refused.
    let mut visitors: Vec<(TcpStream, Vec<u8>)> = (0..60)
        .map(|_| {
            let length = random.between(0..=40_000);
            (visitor::connect(server.traffic()), random.bytes(length))
        })
        .collect();
    for (stream, bytes) in &mut visitors {
        stream.write_all(bytes).expect("sent");
        visitor::finish(stream);
    }
    for (stream, bytes) in &mut visitors {
        assert!(
            visitor::read_to_end(stream) == Ending::Clean(std::mem::take(bytes)),
            "the echo differs from what was sent"
        );
    }
    assert_eq!(service.accepted(), 60, "each visitor was served once");
    assert!(stop_and_count(&mut server.program, "visitors_retried") > 0);
}

#[test]
fn a_visitor_that_nobody_can_serve_is_reset() {
    if subject::only_wire("retries") {
        return;
    }
    let site = Site::new();
    let mut server = server(&site, 1);
    let _dead = ["first", "second", "third", "fourth"].map(|name| {
        let setup = client(name, "lanes = \"auto\"");
        start_client(&site, &setup, server.quic(), ports::free_address())
    });
    for _ in 0..5 {
        let ending = visitor::ending_of(server.traffic(), b"is anybody there?");
        assert_eq!(ending, Ending::Reset(Vec::new()));
    }
    assert_eq!(
        stop_and_count(&mut server.program, "visitors_retry_exhausted"),
        5
    );
    let counters = counters::of(&server.program);
    // Three clients are tried for each.
    assert_eq!(counters::total(&counters, "visitors_retried"), 10);
}

#[test]
fn stopping_one_client_of_three_fails_no_visitor() {
    if subject::only_wire("what happens to flows that are on their way") {
        return;
    }
    let site = Site::new();
    let server = server(&site, 1);
    let delivered = Delivered::default();
    let services = [(); 3].map(|()| delivered.service());
    let names = ["first", "second", "third"];
    let mut clients: Vec<Program> = names
        .iter()
        .zip(&services)
        .map(|(name, service)| {
            let setup = client(name, "lanes = 2");
            start_client(&site, &setup, server.quic(), service.address)
        })
        .collect();
    let visits = Visits::start(server.traffic(), 200);
    for round in 0..6 {
        let accepted: Vec<usize> = services.iter().map(TcpService::accepted).collect();
        wait::until_true("each client serves", || {
            let mut pairs = services.iter().zip(&accepted);
            pairs.all(|(service, before)| service.accepted() > *before + 5)
        });
        let stopped = &mut clients[round % 3];
        stopped.signal(Signal::TERM);
        assert_eq!(stopped.wait_for_exit().code(), Some(0));
        stopped.restart();
        stopped.wait_until_ready().expect("it registers again");
    }
    let visits = visits.finish();
    println!(
        "six stops of one of three clients: {}",
        visits::summary(&visits)
    );
    assert!(
        visits.iter().all(|visit| visit.result.is_ok()),
        "{}",
        visits::summary(&visits)
    );
    assert_eq!(delivered.repeated(), 0, "a request was delivered twice");
}

#[test]
fn killing_one_client_of_three_fails_nobody_after_the_server_has_noticed() {
    use crate::support::tunnel::{QUIC_NOTICES_SOON, ROLE_NOTICES_SOON};
    if subject::only_wire("what the server logs of a dead client") {
        return;
    }
    let site = Site::new();
    let server = Server::start(
        &site,
        &ServerSetup {
            server: [&ROLE_NOTICES_SOON[..], &[ROUND_ROBIN]].concat(),
            quic: QUIC_NOTICES_SOON.to_vec(),
            ..ServerSetup::default()
        },
    );
    let delivered = Delivered::default();
    let services = [(); 3].map(|()| delivered.service());
    let names = ["first", "second", "third"];
    let mut clients: Vec<Program> = names
        .iter()
        .zip(&services)
        .map(|(name, service)| {
            let setup = client(name, "lanes = 1");
            start_client(&site, &setup, server.quic(), service.address)
        })
        .collect();
    let visits = Visits::start(server.traffic(), 100);
    wait::until_true("each client serves", || {
        services.iter().all(|service| service.accepted() > 5)
    });
    let killed = visits.elapsed();
    clients[0].kill();
    // Nothing tells the server; visitors who are sent there are reset at the latest when it has
    // noticed, by whichever of two timeouts of the same length.
    let noticed = |line: &str| line.contains("nothing heard within");
    server.program.wait_for_line("the server notices", noticed);
    let noticed = visits.elapsed();
    let total: usize = services.iter().map(TcpService::accepted).sum();
    wait::until_true("more visitors are served", || {
        services.iter().map(TcpService::accepted).sum::<usize>() > total + 100
    });
    let visits = visits.finish();
    println!(
        "one of three clients killed at {:.3} s, noticed at {:.3} s (health_timeout 4 s): {}",
        killed.as_secs_f64(),
        noticed.as_secs_f64(),
        visits::summary(&visits)
    );
    let late = visits
        .iter()
        .find(|visit| visit.came > noticed && visit.result.is_err());
    assert!(late.is_none(), "{late:?}");
    assert_eq!(delivered.repeated(), 0, "a request was delivered twice");
}

#[test]
fn a_request_that_a_service_has_got_goes_to_no_other_client_when_its_own_one_dies() {
    use crate::support::tunnel::{QUIC_NOTICES_SOON, ROLE_NOTICES_SOON};
    if subject::only_wire("what becomes of a request whose client dies") {
        return;
    }
    let site = Site::new();
    let server = Server::start(
        &site,
        &ServerSetup {
            server: [&ROLE_NOTICES_SOON[..], &[ROUND_ROBIN]].concat(),
            quic: QUIC_NOTICES_SOON.to_vec(),
            ..ServerSetup::default()
        },
    );
    let delivered = Delivered::default();
    let other = delivered.service();
    let _other = start_client(
        &site,
        &client("other", "lanes = 1"),
        server.quic(),
        other.address,
    );
    for round in 0..5_u64 {
        // It has the request when its client dies: what the server is to hear of it must be on its
        // way by then.
        let process = Arc::new(AtomicU32::new(0));
        let service = delivered.service_that({
            let process = Arc::clone(&process);
            move || {
                let id = i32::try_from(process.load(Ordering::SeqCst)).expect("an id");
                let id = rustix::process::Pid::from_raw(id).expect("it runs");
                rustix::process::kill_process(id, Signal::KILL).expect("it runs");
            }
        });
        let setup = client("mortal", "lanes = 1");
        let mut mortal = start_client(&site, &setup, server.quic(), service.address);
        process.store(mortal.id(), Ordering::SeqCst);
        let mut number = round << 32;
        while mortal.exited().is_none() {
            let ending = visitor::ending_of(server.traffic(), &u64::to_be_bytes(number));
            let is_answered = matches!(ending, Ending::Clean(ref bytes) if bytes.len() == 8);
            assert_eq!(is_answered, service.accepted() == 0, "{ending:?}");
            number += 1;
        }
    }
    assert_eq!(delivered.repeated(), 0, "a request was delivered twice");
}
