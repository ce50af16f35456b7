//! A client moves while bytes flow: to another port, as a NAT does that has forgotten it, and to
//! another address.
//!
//! Between client and server is a relay that does what the network would: it sends on from other
//! sockets than before, and what still comes to the earlier ones is lost.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Signal;
use socket2::SockRef;

use crate::support::counters;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{self, ClientSetup, Server, ServerSetup, Site};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// How often a thread of the relay checks whether it should stop.
const GLANCE: Duration = Duration::from_millis(20);

/// Bursts of several lanes wait here.
const BUFFER_BYTES: usize = 4 << 20;

/// Bytes of a transfer during which the client moves.
const TRANSFER_BYTES: usize = 200 << 20;

/// The addresses to which the client moves: another port, then another address.
const MOVES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];

/// One client's socket, as the server sees it.
struct Mapping {
    outside: Arc<UdpSocket>,
    /// Set when the client has moved; later packets are lost.
    gone: Arc<AtomicBool>,
}

/// The state that the threads of the relay share.
struct Shared {
    inside: UdpSocket,
    server: SocketAddr,
    mappings: Mutex<HashMap<SocketAddr, Mapping>>,
    address: Mutex<Ipv4Addr>,
    stop: AtomicBool,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

/// A NAT, or a network that the client changes.
struct Relay {
    shared: Arc<Shared>,
    forwarder: Option<JoinHandle<()>>,
}

fn socket(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("a free port");
    socket.set_read_timeout(Some(GLANCE)).expect("timeout");
    let sizes = SockRef::from(&socket);
    sizes.set_recv_buffer_size(BUFFER_BYTES).expect("size");
    sizes.set_send_buffer_size(BUFFER_BYTES).expect("size");
    socket
}

impl Relay {
    fn to(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            inside: socket(Ipv4Addr::LOCALHOST),
            server,
            mappings: Mutex::default(),
            address: Mutex::new(Ipv4Addr::LOCALHOST),
            stop: AtomicBool::new(false),
            readers: Mutex::default(),
        });
        let forwarder = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.forward()
        });
        Self {
            shared,
            forwarder: Some(forwarder),
        }
    }

    /// The address that clients dial.
    fn address(&self) -> SocketAddr {
        self.shared.inside.local_addr().expect("bound")
    }

    /// From now on everything comes from other ports of this address.
    fn move_to(&self, address: Ipv4Addr) {
        *self.shared.address.lock().expect("address") = address;
        for mapping in self.shared.mappings.lock().expect("mappings").values() {
            mapping.gone.store(true, Ordering::SeqCst);
        }
    }
}

impl Shared {
    fn forward(self: &Arc<Self>) {
        let mut bytes = vec![0; 1 << 16];
        while !self.stop.load(Ordering::SeqCst) {
            // A timeout, or that an earlier packet met a closed port.
            let Ok((length, client)) = self.inside.recv_from(&mut bytes) else {
                continue;
            };
            let outside = self.outside_of(client);
            let _lost = outside.send_to(&bytes[..length], self.server);
        }
    }

    fn outside_of(self: &Arc<Self>, client: SocketAddr) -> Arc<UdpSocket> {
        let mut mappings = self.mappings.lock().expect("mappings");
        if let Some(mapping) = mappings.get(&client)
            && !mapping.gone.load(Ordering::SeqCst)
        {
            return Arc::clone(&mapping.outside);
        }
        let outside = Arc::new(socket(*self.address.lock().expect("address")));
        let gone = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (shared, outside, gone) =
                (Arc::clone(self), Arc::clone(&outside), Arc::clone(&gone));
            move || shared.read_back(&outside, &gone, client)
        });
        self.readers.lock().expect("readers").push(reader);
        let mapping = Mapping {
            outside: Arc::clone(&outside),
            gone,
        };
        mappings.insert(client, mapping);
        outside
    }

    fn read_back(&self, outside: &UdpSocket, gone: &AtomicBool, client: SocketAddr) {
        let mut bytes = vec![0; 1 << 16];
        while !self.stop.load(Ordering::SeqCst) {
            let received = outside.recv_from(&mut bytes);
            // After a move the socket stays open, unread: a closed port would tell the server that
            // nobody is there.
            if !gone.load(Ordering::SeqCst)
                && let Ok((length, _)) = received
            {
                let _lost = self.inside.send_to(&bytes[..length], client);
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(forwarder) = self.forwarder.take() {
            let _ended = forwarder.join();
        }
        for reader in self.shared.readers.lock().expect("readers").drain(..) {
            let _ended = reader.join();
        }
    }
}

/// A server of several cores, a client with a lane to each, and the relay between them.
struct World {
    client: crate::support::program::Program,
    server: Server,
    relay: Relay,
    _site: Site,
}

impl World {
    fn new(service: SocketAddr) -> Self {
        let site = Site::new();
        let server = ServerSetup {
            cores: 3,
            ..ServerSetup::default()
        };
        let server = Server::start(&site, &server);
        let relay = Relay::to(server.quic());
        let client = ClientSetup {
            client: vec!["lanes = 3"],
            ..ClientSetup::default()
        };
        let client = tunnel::start_client(&site, &client, relay.address(), service);
        server
            .program
            .wait_for_lines("each lane registers", 3, |line| {
                line.contains("lane") && line.contains("registered")
            });
        Self {
            client,
            server,
            relay,
            _site: site,
        }
    }

    /// Stops both; the lanes must be those that there were at the start, on the cores where they
    /// were.
    fn assert_lanes_survived(mut self, moves: u64) {
        for program in [&mut self.client, &mut self.server.program] {
            program.signal(Signal::TERM);
            assert_eq!(program.wait_for_exit().code(), Some(0));
        }
        let server = counters::of(&self.server.program);
        for (core, counters) in &server {
            for name in ["lanes_opened", "registrations_accepted"] {
                assert_eq!(counters.get(name), 1, "{name} of core {core}");
            }
            for name in ["quic_packets_handed_over", "tcp_flows_reset"] {
                assert_eq!(counters.get(name), 0, "{name} of core {core}");
            }
        }
        // At least the lane of the transfer was heard from every address, and proved the last one
        // at the latest.
        assert!(counters::total(&server, "migrations") >= moves);
        assert!(counters::total(&server, "paths_validated") >= 1);
        let ended = self
            .client
            .lines()
            .iter()
            .any(|line| line.contains("lane ended"));
        assert!(!ended, "a lane was dialled anew");
    }
}

/// How far a transfer is.
#[derive(Default)]
struct Progress {
    /// Number of bytes that have arrived.
    arrived: AtomicUsize,
    /// How many of [`MOVES`] have been made.
    moves: AtomicUsize,
}

/// Makes each of [`MOVES`] when a part of a transfer has arrived.
fn move_on_the_way(progress: &Progress, relay: &Relay) {
    for (index, address) in MOVES.into_iter().enumerate() {
        let mark = TRANSFER_BYTES / (MOVES.len() + 1) * (index + 1);
        wait::until_true("the transfer goes on", || {
            progress.arrived.load(Ordering::SeqCst) >= mark
        });
        relay.move_to(address);
        progress.moves.store(index + 1, Ordering::SeqCst);
    }
}

/// Receives the random stream of `seed` and counts it.
fn receive(stream: &mut std::net::TcpStream, seed: u64, progress: &Progress) {
    const PIECES: usize = 100;
    // Long after the last of the moves is due: where the thread that makes them has been kept
    // waiting, the transfer must not end before the last move.
    const PIECES_BEFORE_LAST_MOVE_MAX: usize = 80;
    for piece in 0..PIECES {
        if piece == PIECES_BEFORE_LAST_MOVE_MAX {
            wait::until_true("the client has moved", || {
                progress.moves.load(Ordering::SeqCst) == MOVES.len()
            });
        }
        visitor::receive_random(stream, seed + piece as u64, TRANSFER_BYTES / PIECES);
        progress
            .arrived
            .fetch_add(TRANSFER_BYTES / PIECES, Ordering::SeqCst);
    }
}

/// Sends the bytes that [`receive`] expects.
fn send(stream: &mut std::net::TcpStream, seed: u64) {
    const PIECES: usize = 100;
    for piece in 0..PIECES {
        let sent = visitor::send_random(stream, seed + piece as u64, TRANSFER_BYTES / PIECES);
        sent.expect("sent");
    }
}

#[test]
fn an_upload_survives_a_client_that_moves() {
    if subject::only_wire("migration and counters") {
        return;
    }
    let progress = Arc::new(Progress::default());
    let service = TcpService::start({
        let progress = Arc::clone(&progress);
        move |mut stream| {
            receive(&mut stream, 1, &progress);
            std::io::Write::write_all(&mut stream, b"all there").expect("answered");
        }
    });
    let world = World::new(service.address);
    let mut stream = visitor::connect(world.server.traffic());
    thread::scope(|scope| {
        scope.spawn(|| move_on_the_way(&progress, &world.relay));
        send(&mut stream, 1);
        assert_eq!(visitor::read_exact(&mut stream, 9), b"all there");
    });
    drop(stream);
    service.wait_until_done();
    world.assert_lanes_survived(MOVES.len() as u64);
}

#[test]
fn a_download_survives_a_client_that_moves() {
    if subject::only_wire("migration and counters") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        assert_eq!(visitor::read_exact(&mut stream, 2), b"go");
        send(&mut stream, 2);
    });
    let world = World::new(service.address);
    let progress = Progress::default();
    let mut stream = visitor::connect(world.server.traffic());
    std::io::Write::write_all(&mut stream, b"go").expect("sent");
    thread::scope(|scope| {
        scope.spawn(|| move_on_the_way(&progress, &world.relay));
        receive(&mut stream, 2, &progress);
    });
    drop(stream);
    service.wait_until_done();
    world.assert_lanes_survived(MOVES.len() as u64);
}

#[test]
fn idle_flows_go_on_after_the_client_has_moved() {
    if subject::only_wire("migration and counters") {
        return;
    }
    let (tcp, _udp) = crate::support::service::echo_both();
    let world = World::new(tcp.address);
    let mut stream = visitor::connect(world.server.traffic());
    let mut datagrams = UdpVisitor::new(world.server.traffic());
    for address in [IpAddr::V4(MOVES[0]), IpAddr::V4(MOVES[1])] {
        visitor::exchange(&mut stream, b"before");
        datagrams.echo(b"before");
        let IpAddr::V4(address) = address else { return };
        world.relay.move_to(address);
        // Nothing that the client wants to send tells the server the new address.
        visitor::exchange(&mut stream, b"after");
    }
    datagrams.echo(b"after");
    drop((stream, datagrams));
    world.assert_lanes_survived(MOVES.len() as u64);
}
