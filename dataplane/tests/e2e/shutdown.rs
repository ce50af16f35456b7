//! SIGTERM: no new visitors, open flows end in peace, exit code 0. A second one: the end at once.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use qmux_proto::control::{RefuseReason, RegisterOutcome};
use rustix::process::Signal;

use crate::support::counters;
use crate::support::program::Program;
use crate::support::quic_probe::{self, Probe};
use crate::support::service::{TcpService, UdpService};
use crate::support::slow_path::SlowPath;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, Tunnel, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};

/// This is longer than any test runs: a program that ends earlier does not end because of it.
const DRAIN_LONG: &str = "drain_timeout = \"10m\"";
const DRAIN_SHORT: &str = "drain_timeout = \"1s\"";

fn tunnel(service: SocketAddr, drain: &'static str) -> Tunnel {
    let server = ServerSetup {
        server: vec![drain],
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: vec![drain],
        ..ClientSetup::default()
    };
    Tunnel::with(&server, &client, service)
}

fn assert_stops(program: &mut Program) {
    program.signal(Signal::TERM);
    let status = program.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn idle_programs_stop_with_exit_code_0() {
    let service = TcpService::echo();
    let mut tunnel = tunnel(service.address, DRAIN_LONG);
    visitor::echo(tunnel.traffic(), b"once");
    assert_stops(&mut tunnel.client);
    assert_stops(&mut tunnel.server.program);
}

#[test]
fn sigint_stops_like_sigterm() {
    let service = TcpService::echo();
    let mut tunnel = tunnel(service.address, DRAIN_LONG);
    for program in [&mut tunnel.server.program, &mut tunnel.client] {
        program.signal(Signal::INT);
        assert_eq!(program.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn a_server_without_clients_stops_with_exit_code_0() {
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    assert_stops(&mut server.program);
}

#[test]
fn a_client_without_a_server_stops_with_exit_code_0() {
    use crate::support::ports;
    use crate::support::tunnel::client_launch;
    let site = Site::new();
    let nobody = ports::free_address();
    let mut client = client_launch(&site, &ClientSetup::default(), nobody, nobody).start();
    let tried = |line: &str| line.contains(&nobody.to_string());
    client.wait_for_line("the server it cannot reach", tried);
    assert_stops(&mut client);
}

/// A transfer in both directions that is under way when the signal comes, and ends only after it.
fn transfer_survives(stop: impl FnOnce(&Tunnel)) -> Tunnel {
    const PART: usize = 4 << 20;
    let service = TcpService::echo();
    let tunnel = tunnel(service.address, DRAIN_LONG);
    let mut stream = visitor::connect(tunnel.traffic());
    let bytes = crate::support::random::Random::new(1).bytes(PART);
    visitor::exchange(&mut stream, &bytes);
    stop(&tunnel);
    // The signal has been taken when nobody is served any more.
    wait::until_true("new visitors are refused", || {
        !visitor::echo_works(tunnel.traffic())
    });
    for _ in 0..4 {
        visitor::exchange(&mut stream, &bytes);
    }
    visitor::finish(&stream);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    tunnel
}

#[test]
fn a_stopping_server_lets_a_transfer_finish() {
    let mut tunnel = transfer_survives(|tunnel| tunnel.server.program.signal(Signal::TERM));
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    assert!(tunnel.client.exited().is_none(), "the client goes on");
}

#[test]
fn a_stopping_client_lets_a_transfer_finish() {
    let mut tunnel = transfer_survives(|tunnel| tunnel.client.signal(Signal::TERM));
    assert_eq!(tunnel.client.wait_for_exit().code(), Some(0));
    let server = &mut tunnel.server.program;
    assert!(server.exited().is_none(), "the server goes on");
}

#[test]
fn a_stopping_client_stays_until_its_last_bytes_have_arrived() {
    const ANSWER_BYTES: usize = 200_000;
    if subject::only_wire("what is on its way when a client stops") {
        return;
    }
    let (asked, was_asked) = mpsc::channel();
    let (answer, may_answer) = mpsc::channel::<()>();
    let may_answer = Mutex::new(may_answer);
    let service = TcpService::start(move |mut stream| {
        visitor::read_exact(&mut stream, 1);
        asked.send(()).expect("the test waits");
        let may_answer = may_answer.lock().expect("one visitor");
        may_answer.recv_timeout(PATIENCE).expect("permission");
        visitor::send_random(&mut stream, 1, ANSWER_BYTES).expect("sent");
    });
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    // The client has got rid of the answer long before it has arrived.
    let path = SlowPath::to(server.quic(), Duration::from_millis(100));
    let setup = ClientSetup {
        client: vec![DRAIN_LONG],
        ..ClientSetup::default()
    };
    let mut client = start_client(&site, &setup, path.address, service.address);
    let mut stream = visitor::connect(server.traffic());
    stream.write_all(b"?").expect("sent");
    visitor::finish(&stream);
    was_asked.recv_timeout(PATIENCE).expect("a question");
    client.signal(Signal::TERM);
    client.wait_for_line("that it stops", |line| line.contains("stopping"));
    answer.send(()).expect("the service waits");
    visitor::receive_random(&mut stream, 1, ANSWER_BYTES);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    assert_eq!(client.wait_for_exit().code(), Some(0));
}

#[test]
fn a_stopping_server_stays_until_its_last_bytes_have_arrived() {
    const UPLOAD_BYTES: usize = 200_000;
    if subject::only_wire("what is on its way when a server stops") {
        return;
    }
    let (received, was_received) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        visitor::read_exact(&mut stream, 1);
        // The visitor's own end is the last thing that happens to the flow.
        visitor::finish(&stream);
        visitor::receive_random(&mut stream, 1, UPLOAD_BYTES);
        let ending = visitor::read_to_end(&mut stream);
        received.send(ending).expect("the test waits");
    });
    let site = Site::new();
    let setup = ServerSetup {
        server: vec![DRAIN_LONG],
        ..ServerSetup::default()
    };
    let mut server = Server::start(&site, &setup);
    // The server has got rid of the upload long before it has arrived.
    let path = SlowPath::to(server.quic(), Duration::from_millis(100));
    let client = ClientSetup::default();
    let _client = start_client(&site, &client, path.address, service.address);
    let mut stream = visitor::connect(server.traffic());
    stream.write_all(b"?").expect("sent");
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    server.program.signal(Signal::TERM);
    let stopping = |line: &str| line.contains("stopping");
    server.program.wait_for_line("that it stops", stopping);
    visitor::send_random(&mut stream, 1, UPLOAD_BYTES).expect("sent");
    visitor::finish(&stream);
    let ending = was_received.recv_timeout(PATIENCE).expect("the upload");
    assert_eq!(ending, Ending::Clean(Vec::new()));
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
}

#[test]
fn a_flow_that_does_not_end_is_reset_when_the_drain_timeout_ends() {
    let service = TcpService::echo();
    for stops_server in [true, false] {
        let mut tunnel = tunnel(service.address, DRAIN_SHORT);
        let mut stream = visitor::connect(tunnel.traffic());
        visitor::exchange(&mut stream, b"open");
        let program = if stops_server {
            &mut tunnel.server.program
        } else {
            &mut tunnel.client
        };
        assert_stops(program);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Reset(Vec::new()));
    }
}

#[test]
fn a_second_signal_ends_either_program_at_once() {
    let service = TcpService::echo();
    for stops_server in [true, false] {
        let mut tunnel = tunnel(service.address, DRAIN_LONG);
        let mut stream = visitor::connect(tunnel.traffic());
        visitor::exchange(&mut stream, b"open");
        let address = tunnel.traffic();
        let program = if stops_server {
            &mut tunnel.server.program
        } else {
            &mut tunnel.client
        };
        program.signal(Signal::TERM);
        wait::until_true("new visitors are refused", || !visitor::echo_works(address));
        assert!(program.exited().is_none(), "it waits for the open flow");
        visitor::exchange(&mut stream, b"still open");
        program.signal(Signal::TERM);
        program.wait_for_exit();
    }
}

#[test]
fn a_client_whose_server_stops_comes_back_to_the_next_one() {
    let service = TcpService::echo();
    let mut tunnel = tunnel(service.address, DRAIN_LONG);
    visitor::echo(tunnel.traffic(), b"before");
    assert_stops(&mut tunnel.server.program);
    tunnel.server.program.restart();
    let ready = tunnel.server.program.wait_until_ready();
    ready.expect("it starts again");
    visitor::wait_until_served(tunnel.traffic());
}

#[test]
fn a_second_server_on_the_same_ports_names_the_address() {
    if subject::only_wire("a_second_server_on_the_same_ports_names_the_address") {
        return;
    }
    let service = TcpService::echo();
    let tunnel = tunnel(service.address, DRAIN_LONG);
    let listeners = &tunnel.server.listeners;
    let launch = Server::launch(&tunnel.site, &ServerSetup::default(), listeners);
    let mut second = launch.start();
    let status = second.wait_for_exit();
    assert_eq!(status.code(), Some(2), "{status}");
    let stderr = second.stderr();
    let addresses = [listeners[0].quic, listeners[0].traffic];
    let named = addresses.iter().any(|it| stderr.contains(&it.to_string()));
    assert!(named && stderr.contains("in use"), "{stderr}");
    // The first one is not disturbed: not one of these visitors went to the second one.
    for _ in 0..50 {
        visitor::echo(tunnel.traffic(), b"undisturbed");
    }
    let mut stream = visitor::connect(tunnel.traffic());
    stream.write_all(b"x").expect("sent");
    assert_eq!(visitor::read_exact(&mut stream, 1), b"x");
}

/// The result for a visitor who came while a server stopped.
#[derive(Debug, PartialEq, Eq)]
enum Visit {
    Served,
    /// The visitor never got in, and knows that.
    Refused,
    /// The visitor got in, and was not served.
    Lost(String),
}

/// One visitor with a small exchange.
fn visit(address: SocketAddr) -> Visit {
    use std::io::{ErrorKind, Read as _};
    let mut stream = match visitor::try_connect(address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Visit::Refused,
        Err(error) => return Visit::Lost(format!("connect: {error}")),
    };
    let mut exchange = || -> std::io::Result<Vec<u8>> {
        stream.write_all(b"a question")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    match exchange() {
        Ok(answer) if answer == b"a question" => Visit::Served,
        Ok(answer) => Visit::Lost(format!("{} bytes came back", answer.len())),
        Err(error) => Visit::Lost(error.to_string()),
    }
}

/// Visitors from several threads; each thread ends when one of its visitors was not served.
fn visitors_until_refused(address: SocketAddr, stop: impl FnOnce()) -> Vec<Visit> {
    const THREADS: usize = 12;
    const SERVED_BEFORE: usize = 20;
    let (sender, served) = mpsc::channel();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || {
                    let mut visits = Vec::new();
                    while visits.last().is_none_or(|last| *last == Visit::Served) {
                        visits.push(visit(address));
                        let _counted_enough = sender.send(());
                    }
                    visits
                })
            })
            .collect();
        for _ in 0..THREADS * SERVED_BEFORE {
            served.recv().expect("a visit");
        }
        stop();
        let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.flat_map(|visits| visits.expect("visitors")).collect()
    })
}

#[test]
fn a_client_that_proves_its_token_once_the_server_stops_is_refused() {
    const TOKEN: &str = "correct horse battery";
    if subject::only_wire("token authentication") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let setup = ServerSetup {
        server: vec![DRAIN_LONG],
        auth: Some("method = \"token\"\ntoken = \"correct horse battery\""),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let setup = ClientSetup {
        auth: vec!["token = \"correct horse battery\""],
        identity: "",
        ..ClientSetup::default()
    };
    let client = start_client(&site, &setup, server.quic(), service.address);
    let mut flow = visitor::connect(server.traffic());
    visitor::exchange(&mut flow, b"the server waits for this flow");
    let mut config = quic_probe::config(site.path(), None);
    let mut late = Probe::dial(server.quic(), &mut config);
    let challenge = late.challenge("late", 1);
    server.program.signal(Signal::TERM);
    client.wait_for_line("the server drains", |line| line.contains("drain"));
    let proof = late.proof(TOKEN, &challenge);
    let RegisterOutcome::Refused { reason, text } = late.answer(proof) else {
        panic!("it was let in, and would never hear that the server stops");
    };
    assert_eq!(reason, RefuseReason::Draining, "{text}");
    visitor::exchange(&mut flow, b"and goes on");
}

#[test]
fn no_visitor_who_got_in_is_lost_when_a_server_stops() {
    if subject::only_wire("no_visitor_who_got_in_is_lost_when_a_server_stops") {
        return;
    }
    let service = TcpService::echo();
    for ipv6 in [false, true] {
        let setup = ServerSetup {
            cores: 2,
            ipv6,
            server: vec![DRAIN_LONG],
            ..ServerSetup::default()
        };
        let mut tunnel = Tunnel::with(&setup, &ClientSetup::default(), service.address);
        let (address, program) = (tunnel.traffic(), &tunnel.server.program);
        let visits = visitors_until_refused(address, || program.signal(Signal::TERM));
        let lost: Vec<_> = visits
            .iter()
            .filter(|visit| !matches!(visit, Visit::Served | Visit::Refused))
            .collect();
        assert!(lost.is_empty(), "of {}: {lost:?}", visits.len());
        assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
        let late = counters::of(&tunnel.server.program);
        eprintln!(
            "{} visitors served, {} of them accepted after the signal",
            visits.len(),
            counters::total(&late, "visitors_accepted_late")
        );
    }
}

#[test]
fn visitors_in_the_queue_are_served_by_a_server_that_is_told_to_stop() {
    if subject::only_wire("visitors_in_the_queue_are_served_by_a_server_that_is_told_to_stop") {
        return;
    }
    let service = TcpService::echo();
    for ipv6 in [false, true] {
        let setup = ServerSetup {
            cores: 2,
            ipv6,
            server: vec![DRAIN_LONG],
            ..ServerSetup::default()
        };
        let mut tunnel = Tunnel::with(&setup, &ClientSetup::default(), service.address);
        visitor::echo(tunnel.traffic(), b"before");
        let program = &tunnel.server.program;
        // While it is held, the kernel alone takes visitors.
        program.signal(Signal::STOP);
        let mut visitors: Vec<_> = (0..100)
            .map(|_| visitor::connect(tunnel.traffic()))
            .collect();
        for stream in &mut visitors {
            stream
                .write_all(b"a question")
                .expect("the kernel takes it");
        }
        program.signal(Signal::TERM);
        program.signal(Signal::CONT);
        for mut stream in visitors {
            assert_eq!(visitor::read_exact(&mut stream, 10), b"a question");
            visitor::finish(&stream);
            let ending = visitor::read_to_end(&mut stream);
            assert_eq!(ending, Ending::Clean(Vec::new()));
        }
        assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
        let after = visitor::try_connect(tunnel.traffic()).map_err(|error| error.kind());
        assert_eq!(after.err(), Some(std::io::ErrorKind::ConnectionRefused));
    }
}

/// A UDP service that takes its time, so that a few exchanges last longer than the stop of a
/// program that does not wait for them.
fn slow_udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut question = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            std::thread::sleep(Duration::from_millis(20));
            if socket.send_to(&question[..length], from).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn udp_exchanges_under_way_are_answered_while_a_program_stops() {
    if subject::only_wire("udp_exchanges_under_way_are_answered_while_a_program_stops") {
        return;
    }
    let service = slow_udp_echo();
    for stops_server in [true, false] {
        // For TCP visitors a server waits for a while anyhow.
        let server = ServerSetup {
            server: vec![DRAIN_LONG],
            listeners: vec!["udp"],
            ..ServerSetup::default()
        };
        let client = ClientSetup {
            client: vec![DRAIN_LONG],
            ..ClientSetup::default()
        };
        let mut tunnel = Tunnel::with(&server, &client, service);
        let mut visitor = UdpVisitor::new(tunnel.traffic());
        visitor.echo(b"before");
        let program = if stops_server {
            &mut tunnel.server.program
        } else {
            &mut tunnel.client
        };
        let stops = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // One question after the other, so that some are always under way.
            scope.spawn(|| {
                let began = Instant::now();
                while !stops.load(Ordering::SeqCst) && began.elapsed() < 2 * PATIENCE {
                    visitor.echo(b"before it stops");
                }
                for _ in 0..10 {
                    visitor.echo(b"while it stops");
                }
            });
            program.signal(Signal::TERM);
            program.wait_for_line("that it stops", |line| line.contains("stopping"));
            stops.store(true, Ordering::SeqCst);
        });
        // Then it is quiet, and ends without waiting for the flow's session_timeout.
        assert_eq!(program.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn a_stream_of_udp_that_does_not_end_holds_nobody_up() {
    if subject::only_wire("a_stream_of_udp_that_does_not_end_holds_nobody_up") {
        return;
    }
    let service = UdpService::echo();
    let mut tunnel = tunnel(service.address, DRAIN_LONG);
    let address = tunnel.traffic();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut visitor = UdpVisitor::new(address);
            while !over.load(Ordering::SeqCst) {
                visitor.send(b"another one");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        wait::until_true("the stream flows", || service.received() > 5);
        let server = &mut tunnel.server.program;
        server.signal(Signal::TERM);
        // Its drain_timeout is ten minutes: patience ends before.
        let status = server.wait_for_exit();
        over.store(true, Ordering::SeqCst);
        assert_eq!(status.code(), Some(0));
    });
}
