//! More is on its way than the memory limit allows: whoever sends much waits, and nobody is
//! refused. Only where flows hold all memory and none of them stalls, new visitors are refused.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::service::{TcpService, UdpService, echo};
use crate::support::slow_path::SlowPath;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, Tunnel, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::{http, ports, subject, visitor, wait};

/// The limit, the least that may be configured.
const MEMORY: &str = "memory = \"8MiB\"";
const MEMORY_BYTES: f64 = (8 << 20) as f64;

/// How long a packet takes each way: in twice that, more leaves the service than the limit is.
const DELAY: Duration = Duration::from_millis(100);

/// Visitors who read as fast as they can. Their windows together are far above the limit.
const DOWNLOADS: usize = 16;

/// Bytes that each of them must receive further, or a wake-up was lost.
const PROGRESS_BYTES: u64 = 256 << 10;

/// Visitors with a small request each, and how many come at a time.
const REQUESTS: usize = 100;
const REQUESTS_AT_A_TIME: usize = 10;

/// Bytes of a request that waits for its answer. A server keeps as many, and a client that dials
/// the service holds them, and that is no stall.
const WAITING_BYTES: usize = 60 << 10;

/// Twice as many of them as fit into the limit.
const WAITING: usize = 2 * (8 << 20) / WAITING_BYTES;

/// The bytes that the service sends at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A service that does as the visitor's first byte says: `s` send without end, else echo.
fn service() -> TcpService {
    TcpService::start(|mut stream| {
        let mut kind = [0; 1];
        // A visitor that is gone before it has said anything is no failure of the service.
        if !matches!(stream.peek(&mut kind), Ok(1..)) {
            return;
        }
        if kind == *b"s" {
            stream.set_write_timeout(None).expect("no deadline");
            while stream.write_all(&[7; PIECE_BYTES]).is_ok() {}
        } else {
            echo(stream);
        }
    })
}

/// A visitor who reads without end, and the number of bytes that it has got.
fn download(traffic: SocketAddr) -> (Arc<AtomicU64>, JoinHandle<()>) {
    let got = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&got);
    let reader = thread::spawn(move || {
        let mut stream = visitor::connect(traffic);
        stream.write_all(b"s").expect("asked");
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            counter.fetch_add(read as u64, Ordering::SeqCst);
        }
    });
    (got, reader)
}

fn requests(traffic: SocketAddr) {
    for _ in 0..REQUESTS / REQUESTS_AT_A_TIME {
        thread::scope(|scope| {
            for _ in 0..REQUESTS_AT_A_TIME {
                scope.spawn(|| visitor::echo(traffic, b"a small request"));
            }
        });
    }
}

#[test]
fn requests_are_served_while_what_is_in_flight_comes_near_the_memory_limit() {
    if subject::only_wire("memory limits") {
        return;
    }
    let service = service();
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let path = SlowPath::to(server.quic(), DELAY);
    let admin = ports::free_address();
    let setup = ClientSetup {
        limits: vec![MEMORY],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let client = start_client(&site, &setup, path.address, service.address);
    visitor::wait_until_served(server.traffic());
    let downloads: Vec<_> = (0..DOWNLOADS).map(|_| download(server.traffic())).collect();
    wait::until_true("what is in flight comes near the limit", || {
        let metrics = http::get(admin, "/metrics").body;
        http::metric(&metrics, "qmux_dp_memory_held_bytes") >= MEMORY_BYTES / 4.0 * 3.0
    });
    requests(server.traffic());
    for (got, _) in &downloads {
        let before = got.load(Ordering::SeqCst);
        wait::until_true("the download goes on", || {
            got.load(Ordering::SeqCst) >= before + PROGRESS_BYTES
        });
    }
    assert_eq!(counted(admin, "visitors_refused_memory"), 0.0);
    assert!(counted(admin, "stream_writers_held_back") > 0.0);
    drop(client);
    drop(server);
    for (_, reader) in downloads {
        reader.join().expect("a visitor");
    }
}

fn counted(admin: SocketAddr, name: &str) -> f64 {
    let metrics = http::get(admin, "/metrics").body;
    http::metric(&metrics, &format!("qmux_dp_{name}_total"))
}

/// A visitor whose request waits for an answer.
fn waiting(traffic: SocketAddr) -> TcpStream {
    let mut stream = visitor::connect(traffic);
    // One that is refused may find here that it is reset.
    let _refused = stream.write_all(&[b'w'; WAITING_BYTES]);
    stream
}

/// So many visitors whose request waits, and as many more as it takes until the program of this
/// admin endpoint has refused one.
fn wait_until_one_is_refused(
    count: usize,
    traffic: SocketAddr,
    admin: SocketAddr,
) -> Vec<TcpStream> {
    let mut all: Vec<_> = (0..count).map(|_| waiting(traffic)).collect();
    wait::until_true("what waits holds all memory", || {
        let metrics = http::get(admin, "/metrics").body;
        http::metric(&metrics, "qmux_dp_memory_held_bytes") >= MEMORY_BYTES
    });
    wait::until_true("one more is refused", || {
        assert!(all.len() < 3 * count, "nobody is refused");
        all.push(waiting(traffic));
        counted(admin, "visitors_refused_memory") > 0.0
    });
    all
}

/// Whether a connection without an answer is still open.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    let peeked = stream.peek(&mut [0; 1]);
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_server_whose_memory_is_held_by_flows_that_do_not_stall_refuses_visitors_until_there_is_some() {
    if subject::only_wire("memory limits") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        let mut kind = [0; 1];
        match stream.peek(&mut kind) {
            Ok(1..) if kind != *b"w" => echo(stream),
            _ => {
                let _gone = io::copy(&mut stream, &mut io::sink());
            }
        }
    });
    let datagrams = UdpService::echo_on(UdpSocket::bind(service.address).expect("free for UDP"));
    let admin = ports::free_address();
    let server = ServerSetup {
        limits: vec![MEMORY],
        admin: Some(admin),
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), service.address);
    UdpVisitor::new(tunnel.traffic()).echo(b"before");
    let received = datagrams.received();
    let waiting = wait_until_one_is_refused(WAITING, tunnel.traffic(), admin);
    wait::until_true("a UDP visitor is refused", || {
        UdpVisitor::new(tunnel.traffic()).send(b"in vain");
        counted(admin, "udp_dropped_memory") > 0.0
    });
    let metrics = http::get(admin, "/metrics").body;
    let is_told = |line: &str| line.contains("refused_total{") && line.contains("\"memory\"");
    assert!(metrics.lines().any(is_told), "{metrics}");
    let refused = counted(admin, "visitors_refused_memory") as usize;
    let open = waiting.iter().filter(|stream| is_open(stream)).count();
    assert!(open + refused >= waiting.len(), "who was let in stays");
    drop(waiting);
    visitor::wait_until_served(tunnel.traffic());
    UdpVisitor::new(tunnel.traffic()).echo(b"after");
    assert!(datagrams.received() > received);
}

#[test]
fn what_a_client_has_no_memory_for_another_client_serves() {
    if subject::only_wire("memory limits") {
        return;
    }
    // A service with a full queue answers no SYN, so the client holds what comes for it.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    socket.bind(&any).expect("a free port");
    socket.listen(0).expect("listening");
    let dialled = TcpListener::from(socket);
    let dialled = dialled.local_addr().expect("bound");
    let _queued = TcpStream::connect(dialled).expect("one has a place in the queue");

    let service = TcpService::start(|mut stream| {
        let _gone = io::copy(&mut stream, &mut io::sink());
    });
    let site = Site::new();
    let server = ServerSetup {
        server: vec!["load_balancer = \"round-robin\""],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &server);
    let rich = ClientSetup {
        name: "rich",
        ..ClientSetup::default()
    };
    let _rich = start_client(&site, &rich, server.quic(), service.address);
    let admin = ports::free_address();
    let poor = ClientSetup {
        name: "poor",
        limits: vec![MEMORY],
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let _poor = start_client(&site, &poor, server.quic(), dialled);
    // The clients take turns.
    let waiting = wait_until_one_is_refused(2 * WAITING, server.traffic(), admin);
    wait::until_true("the other client has those whom this one refuses", || {
        service.accepted() * 2 > waiting.len()
    });
    assert!(waiting.iter().all(is_open), "nobody is reset");
}
