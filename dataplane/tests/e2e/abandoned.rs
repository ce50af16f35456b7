//! Whoever goes by a reset ends its flow, also where nobody reads its socket at that moment, and
//! whoever takes nothing for too long is reset.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};
use crate::support::{counters, subject};

const VISITORS: usize = 20;
/// A socket buffer that is smaller than what waits for the peer.
const BUFFER_BYTES: usize = 16 << 10;
/// A sender that has got rid of nothing for this long is taken to be stalled. Too short a time only
/// makes the test look early.
const STALLED: Duration = Duration::from_secs(1);

/// Waits until the kernel says that the connection is broken. The socket need not be read for it.
fn wait_until_broken(stream: &TcpStream) {
    wait::until_true("the reset arrives", || {
        stream.take_error().expect("SO_ERROR").is_some()
    });
}

/// A visitor with a small receive buffer.
fn connect_with_small_buffer(tunnel: &Tunnel) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(BUFFER_BYTES).expect("size");
    let address = SockAddr::from(tunnel.traffic());
    socket.connect(&address).expect("connected");
    socket.into()
}

/// Sends until the peer takes no more.
fn send_until_stalled(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(STALLED)).expect("timeout");
    loop {
        match stream.write(&[b'x'; 64 << 10]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("sending: {error}"),
        }
    }
}

/// Visitors send a request and a FIN and then a reset, while the service is silent; its connections
/// must break.
fn fin_then_reset_with(greeting: &'static [u8]) {
    if subject::only_wire("flows of which both ends are silent") {
        return;
    }
    let (ended, endings) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        stream.write_all(greeting).expect("sent");
        let ending = visitor::read_to_end(&mut stream);
        ended.send(ending).expect("the test waits");
        wait_until_broken(&stream);
    });
    let tunnel = Tunnel::to(service.address);
    let visitors: Vec<TcpStream> = (0..VISITORS)
        .map(|_| {
            let mut stream = visitor::connect(tunnel.traffic());
            visitor::read_exact(&mut stream, greeting.len());
            stream.write_all(b"request").expect("sent");
            visitor::finish(&stream);
            stream
        })
        .collect();
    for _ in &visitors {
        let ending = endings.recv_timeout(PATIENCE).expect("the FIN arrives");
        assert_eq!(ending, Ending::Clean(b"request".to_vec()));
    }
    visitors.into_iter().for_each(visitor::reset);
    service.wait_until_done();
}

#[test]
fn visitors_that_reset_after_their_fin_leave_nothing_behind_with_a_silent_service() {
    fin_then_reset_with(b"");
}

#[test]
fn visitors_that_reset_after_their_fin_leave_nothing_behind_once_the_service_has_answered() {
    fin_then_reset_with(b"welcome");
}

#[test]
fn services_that_reset_after_their_fin_leave_nothing_behind_with_silent_visitors() {
    if subject::only_wire("flows of which both ends are silent") {
        return;
    }
    let all_have_it = Arc::new(Barrier::new(VISITORS + 1));
    let service = TcpService::start({
        let all_have_it = Arc::clone(&all_have_it);
        move |mut stream| {
            stream.write_all(b"answer").expect("sent");
            visitor::finish(&stream);
            all_have_it.wait();
            visitor::reset(stream);
        }
    });
    let tunnel = Tunnel::to(service.address);
    let visitors: Vec<TcpStream> = (0..VISITORS)
        .map(|_| {
            let mut stream = visitor::connect(tunnel.traffic());
            let ending = visitor::read_to_end(&mut stream);
            assert_eq!(ending, Ending::Clean(b"answer".to_vec()));
            stream
        })
        .collect();
    all_have_it.wait();
    visitors.iter().for_each(wait_until_broken);
}

#[test]
fn a_services_reset_ends_the_flow_of_a_visitor_that_does_not_read() {
    if subject::only_wire("flows of which both ends are silent") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        send_until_stalled(&mut stream);
        visitor::reset(stream);
    });
    let tunnel = Tunnel::to(service.address);
    let visitors: Vec<_> = (0..4).map(|_| connect_with_small_buffer(&tunnel)).collect();
    visitors.iter().for_each(wait_until_broken);
}

#[test]
fn a_visitors_reset_ends_the_flow_of_a_service_that_does_not_read() {
    if subject::only_wire("flows of which both ends are silent") {
        return;
    }
    // Inherited by the sockets that it accepts.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(BUFFER_BYTES).expect("size");
    let any = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    socket.bind(&any).expect("a free port");
    socket.listen(16).expect("listening");
    let listener = TcpListener::from(socket);
    let service = TcpService::start_on(listener, |stream| wait_until_broken(&stream));
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    send_until_stalled(&mut stream);
    visitor::reset(stream);
    service.wait_until_done();
}

/// Whether somebody waits for an answer to its SYN to `port` (state 02 in proc(5), net/tcp).
fn is_dialled(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let remote = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|addr| addr.ends_with(&remote)) && words.next() == Some("02")
    })
}

#[test]
fn a_visitor_that_resets_after_its_fin_ends_the_dial_to_its_service() {
    if subject::only_wire("what a client does for a visitor that is gone") {
        return;
    }
    // A service with a full queue answers no SYN.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    socket.bind(&any).expect("a free port");
    socket.listen(0).expect("listening");
    let listener = TcpListener::from(socket);
    let service = listener.local_addr().expect("bound");
    let _queued = TcpStream::connect(service).expect("one has a place in the queue");

    let mut tunnel = Tunnel::to(service);
    let mut stream = visitor::connect(tunnel.traffic());
    stream.write_all(b"request").expect("sent");
    visitor::finish(&stream);
    wait::until_true("the service is dialled", || is_dialled(service.port()));
    visitor::reset(stream);
    // It waits for its flows.
    tunnel.client.signal(Signal::TERM);
    assert_eq!(tunnel.client.wait_for_exit().code(), Some(0));
    let counters = counters::of(&tunnel.client);
    assert_eq!(counters::total(&counters, "tcp_flows_reset"), 1);
    assert_eq!(counters::total(&counters, "tcp_dials_failed"), 0);
}

/// The counter of each program after its end.
fn stalled(tunnel: &mut Tunnel) -> (u64, u64) {
    let programs = [&mut tunnel.server.program, &mut tunnel.client];
    let [server, client] = programs.map(|program| {
        program.signal(Signal::TERM);
        assert_eq!(program.wait_for_exit().code(), Some(0));
        counters::total(&counters::of(program), "tcp_flows_stalled")
    });
    (server, client)
}

#[test]
fn a_visitor_that_takes_nothing_for_the_stall_timeout_is_reset_and_others_are_not() {
    if subject::only_wire("stall_timeout") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        // Nothing but a reset ends this one.
        assert!(visitor::send_random(&mut stream, 1, 1 << 30).is_err());
    });
    let server = ServerSetup {
        limits: vec!["stall_timeout = \"2s\""],
        ..ServerSetup::default()
    };
    let mut tunnel = Tunnel::with(&server, &ClientSetup::default(), service.address);
    let stalls = connect_with_small_buffer(&tunnel);
    let mut reads = visitor::connect(tunnel.traffic());
    let mut pieces = 0;
    wait::until_true("the visitor that takes nothing is reset", || {
        visitor::read_exact(&mut reads, 1_000);
        pieces += 1;
        stalls.take_error().expect("SO_ERROR").is_some()
    });
    assert!(reads.take_error().expect("SO_ERROR").is_none());
    visitor::reset(reads);
    service.wait_until_done();
    assert_eq!(stalled(&mut tunnel), (1, 0), "after {pieces} pieces");
}

#[test]
fn a_service_that_takes_nothing_for_the_stall_timeout_is_reset() {
    if subject::only_wire("stall_timeout") {
        return;
    }
    let service = TcpService::start(|stream| wait_until_broken(&stream));
    let client = ClientSetup {
        limits: vec!["stall_timeout = \"2s\""],
        ..ClientSetup::default()
    };
    let mut tunnel = Tunnel::with(&ServerSetup::default(), &client, service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    assert!(visitor::send_random(&mut stream, 1, 1 << 30).is_err());
    service.wait_until_done();
    assert_eq!(stalled(&mut tunnel), (0, 1));
}
