//! Flows that nobody reads: the others of their lane go on, and what they hold stays below the
//! limit.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use rustix::process::Signal;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::support::memory_group::MemoryGroup;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, echo};
use crate::support::tunnel::{
    ClientSetup, Listener, Server, ServerSetup, Site, Tunnel, client_launch,
};
use crate::support::wait::{self, PATIENCE};
use crate::support::{counters, http, ports, subject, visitor};

/// Flows that stall, unless the environment says otherwise. Together they hold four times
/// [`MEMORY`], at least.
const STALLED: usize = 40;

/// The window of a stalled flow, which it fills.
const WINDOW: [&str; 2] = [
    "initial_stream_receive_window = \"2MiB\"",
    "max_stream_receive_window = \"2MiB\"",
];

/// The limit.
const MEMORY: &str = "memory = \"16MiB\"";
const MEMORY_BYTES: u64 = 16 << 20;

/// Memory that a program may take beyond the limit: pools, stacks, what the allocator has not given
/// back yet.
const SPARE_BYTES: u64 = 24 << 20;

/// A socket buffer that is soon full.
const SMALL_BUFFER_BYTES: usize = 16 << 10;

/// Bytes of an honest visitor.
const HONEST_BYTES: usize = 1 << 20;

/// The bytes that the service sends or takes at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A service that does as the visitor's first byte says: `e` echo, `s` send without end, `n` never
/// read.
fn service() -> TcpService {
    TcpService::start(|mut stream| {
        let mut kind = [0; 1];
        // A visitor that is reset before it has said anything is no failure of the service.
        if stream.read_exact(&mut kind).is_err() {
            return;
        }
        match &kind {
            b"e" => echo(stream),
            b"s" => {
                stream.set_write_timeout(None).expect("no deadline");
                while stream.write_all(&[7; PIECE_BYTES]).is_ok() {}
            }
            _ => {
                let small = SockRef::from(&stream).set_recv_buffer_size(SMALL_BUFFER_BYTES);
                small.expect("a small buffer");
                // It does not read: an error shows that the flow has ended.
                wait::until("the flow ends", || {
                    let failed = stream.take_error().expect("asked");
                    (failed.is_some() || has_ended(&stream)).then_some(())
                });
            }
        }
    })
}

/// Whether a socket that nobody reads was reset: then it has nothing to read any more.
fn has_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    let peeked = stream.peek(&mut [0; 1]);
    matches!(peeked, Err(error) if error.kind() != ErrorKind::WouldBlock)
}

/// A visitor that asks for bytes without end and reads none.
fn stalled_visitor(traffic: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(SMALL_BUFFER_BYTES)
        .expect("a small buffer");
    socket
        .connect_timeout(&SockAddr::from(traffic), PATIENCE)
        .expect("connected");
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"s").expect("asked");
    stream
}

/// A visitor that sends without end to a service that never reads; ends when the flow does.
fn stalled_sender(traffic: SocketAddr) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = visitor::connect(traffic);
        stream.set_write_timeout(None).expect("no deadline");
        while stream.write_all(&[b'n'; PIECE_BYTES]).is_ok() {}
    })
}

fn serve_honest(traffic: SocketAddr, seed: u64) {
    let mut stream = visitor::connect(traffic);
    stream.write_all(b"e").expect("sent");
    visitor::exchange(&mut stream, &Random::new(seed).bytes(HONEST_BYTES));
}

fn assert_below(program: &Program, before: u64, what: &str) {
    let now = program.resident_bytes();
    let most = before + MEMORY_BYTES + SPARE_BYTES;
    assert!(
        now <= most,
        "{what}: {} MiB are resident, {} MiB before, which is more than the limit allows",
        now >> 20,
        before >> 20
    );
}

fn stop(mut program: Program) -> std::collections::BTreeMap<u64, counters::CoreCounters> {
    program.signal(Signal::TERM);
    program.wait_for_exit();
    counters::of(&program)
}

#[test]
fn flows_that_nobody_reads_do_not_stop_the_others_of_their_lane() {
    // Three stalled flows fill what the connection's window is by this.
    const NARROW: [&str; 4] = [
        "initial_stream_receive_window = \"512KiB\"",
        "max_stream_receive_window = \"512KiB\"",
        "initial_connection_receive_window = \"1MiB\"",
        "max_connection_receive_window = \"1MiB\"",
    ];
    let service = service();
    let (server, client) = (
        ServerSetup {
            quic: NARROW.to_vec(),
            ..ServerSetup::default()
        },
        ClientSetup {
            quic: NARROW.to_vec(),
            ..ClientSetup::default()
        },
    );
    let tunnel = Tunnel::with(&server, &client, service.address);
    let stalled: Vec<_> = (0..4).map(|_| stalled_visitor(tunnel.traffic())).collect();
    let senders: Vec<_> = (0..4).map(|_| stalled_sender(tunnel.traffic())).collect();
    wait::until_true("they all are served", || service.accepted() >= 8);
    for seed in 0..4 {
        serve_honest(tunnel.traffic(), seed);
    }
    drop(stalled);
    drop(tunnel);
    for sender in senders {
        sender.join().expect("its flow has ended");
    }
}

#[test]
fn visitors_who_stop_reading_end_before_the_server_is_out_of_memory() {
    if subject::only_wire("memory limits") {
        return;
    }
    let visitors = subject::scale("QMUX_E2E_STALLED", STALLED);
    let service = service();
    let server = ServerSetup {
        limits: vec![MEMORY, "stall_timeout = \"0s\""],
        quic: WINDOW.to_vec(),
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), service.address);
    serve_honest(tunnel.traffic(), 0);
    let before = tunnel.server.program.resident_bytes();
    let mut stalled = Vec::new();
    for count in 0..visitors {
        stalled.push(stalled_visitor(tunnel.traffic()));
        if count % 8 == 0 {
            assert_below(&tunnel.server.program, before, "while they come");
        }
    }
    serve_honest(tunnel.traffic(), 1);
    wait::until_true("most of them are reset", || {
        assert_below(&tunnel.server.program, before, "while they stall");
        stalled.iter().filter(|stream| was_reset(stream)).count() * 2 > visitors
    });
    serve_honest(tunnel.traffic(), 2);
    let counters = stop(tunnel.server.program);
    assert!(counters::total(&counters, "tcp_flows_ended_for_memory") * 2 > visitors as u64);
    assert_eq!(counters::total(&counters, "lanes_unhealthy"), 0);
    assert_eq!(counters::total(&counters, "visitors_refused_memory"), 0);
}

/// Whether the visitor was reset, without reading.
fn was_reset(stream: &TcpStream) -> bool {
    let error = stream.take_error().expect("asked");
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
        || has_ended_with_bytes(stream)
}

/// A reset takes what was to be read with it, or leaves the error to whoever asks first.
fn has_ended_with_bytes(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    matches!(SockRef::from(stream).peer_addr(), Err(error) if error.kind() == ErrorKind::NotConnected)
}

#[test]
fn services_that_stop_reading_end_their_flows_before_the_client_is_out_of_memory() {
    if subject::only_wire("memory limits") {
        return;
    }
    let visitors = subject::scale("QMUX_E2E_STALLED", STALLED);
    let service = service();
    let client = ClientSetup {
        limits: vec![MEMORY, "stall_timeout = \"0s\""],
        quic: WINDOW.to_vec(),
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&ServerSetup::default(), &client, service.address);
    serve_honest(tunnel.traffic(), 0);
    let before = tunnel.client.resident_bytes();
    let senders: Vec<_> = (0..visitors)
        .map(|_| stalled_sender(tunnel.traffic()))
        .collect();
    wait::until_true("most of them are reset", || {
        assert_below(&tunnel.client, before, "while they send");
        senders.iter().filter(|sender| sender.is_finished()).count() * 2 > visitors
    });
    serve_honest(tunnel.traffic(), 1);
    let Tunnel { client, server, .. } = tunnel;
    let counters = stop(client);
    assert!(counters::total(&counters, "tcp_flows_ended_for_memory") * 2 > visitors as u64);
    assert_eq!(counters::total(&counters, "lanes_unhealthy"), 0);
    drop(server);
    for sender in senders {
        sender.join().expect("its flow has ended");
    }
}

/// The memory that a control group allows each program, for flows and all else. Half of it is the
/// limit for flows.
const GROUP_BYTES: u64 = 128 << 20;

/// Flows that stall on each side. Together they would hold nearly twice what the group allows.
const STALLED_IN_GROUP: usize = 120;

/// Between them comes an honest visitor.
const STALLED_PER_HONEST: usize = 10;

/// Those who stall do so until the end.
const DRAIN: [&str; 1] = ["drain_timeout = \"1s\""];

/// A server and a client, each in a group of its own, which knows of the limit by the group alone.
fn tunnel_in_groups(
    groups: [&MemoryGroup; 2],
    admins: [SocketAddr; 2],
    service: SocketAddr,
) -> Tunnel {
    let limits = vec!["memory = \"auto\"", "stall_timeout = \"0s\""];
    let site = Site::new();
    let listeners = vec![Listener::free(false)];
    let server = ServerSetup {
        server: DRAIN.to_vec(),
        limits: limits.clone(),
        quic: WINDOW.to_vec(),
        admin: Some(admins[0]),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: DRAIN.to_vec(),
        limits,
        quic: WINDOW.to_vec(),
        admin: Some(admins[1]),
        ..ClientSetup::default()
    };
    let launch = Server::launch(&site, &server, &listeners).in_memory_group(groups[0]);
    let server = Server {
        program: launch.start(),
        listeners,
    };
    server.program.wait_until_ready().expect("a server");
    let launch = client_launch(&site, &client, server.quic(), service).in_memory_group(groups[1]);
    let client = launch.start();
    client.wait_until_ready().expect("a client");
    Tunnel {
        client,
        server,
        site,
    }
}

fn limit_of_flows(admin: SocketAddr) -> f64 {
    let metrics = http::get(admin, "/metrics").body;
    http::metric(&metrics, "qmux_dp_memory_limit_bytes")
}

#[test]
fn neither_program_outgrows_its_control_group_whatever_stalls_and_nobody_else_notices() {
    if subject::only_wire("memory limits") {
        return;
    }
    let groups = [(); 2].map(|()| MemoryGroup::with_limit(GROUP_BYTES));
    let [Some(of_server), Some(of_client)] = &groups else {
        eprintln!("skipped: no control group with a memory limit can be made here");
        return;
    };
    let service = service();
    let admins = [(); 2].map(|()| ports::free_address());
    let tunnel = tunnel_in_groups([of_server, of_client], admins, service.address);
    let traffic = tunnel.traffic();
    for admin in admins {
        assert_eq!(limit_of_flows(admin), (GROUP_BYTES / 2) as f64);
    }
    let mut old = visitor::connect(traffic);
    old.write_all(b"e").expect("sent");
    let (mut readers, mut senders) = (Vec::new(), Vec::new());
    for count in 0..STALLED_IN_GROUP {
        readers.push(stalled_visitor(traffic));
        senders.push(stalled_sender(traffic));
        if count % STALLED_PER_HONEST == 0 {
            serve_honest(traffic, count as u64);
        }
    }
    wait::until_true("most of them are reset", || {
        serve_honest(traffic, 0);
        let reset = readers.iter().filter(|stream| was_reset(stream)).count();
        let ended = senders.iter().filter(|sender| sender.is_finished()).count();
        reset.min(ended) * 2 > STALLED_IN_GROUP
    });
    visitor::exchange(&mut old, &Random::new(1).bytes(HONEST_BYTES));
    drop(old);
    for group in [of_server, of_client] {
        assert_eq!(group.kills().unwrap_or(0), 0);
    }
    let Tunnel { client, server, .. } = tunnel;
    for counters in [stop(client), stop(server.program)] {
        assert!(counters::total(&counters, "tcp_flows_ended_for_memory") > 0);
        assert_eq!(counters::total(&counters, "lanes_unhealthy"), 0);
        assert_eq!(counters::total(&counters, "visitors_refused_memory"), 0);
    }
    for sender in senders {
        sender.join().expect("its flow has ended");
    }
}
