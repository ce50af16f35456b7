//! Bulk over links that are slow, over a short and a long path.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, echo_both};
use crate::support::slow_path::SlowPath;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;
use crate::support::wait;

/// Bytes of a download that has no end before the test has.
const ENDLESS: usize = 1 << 30;

/// Bytes that are read between two looks at the counters.
const PIECE_BYTES: usize = 256 << 10;

/// The distance of packets of 1,400 bytes at 100 Mbit/s.
const SPACING: Duration = Duration::from_micros(112);

/// A download through a link of 100 Mbit/s with this delay each way, and the server's address for
/// metrics.
struct Download {
    stream: TcpStream,
    random: Random,
    admin: SocketAddr,
    server: Server,
    _client: Program,
    _path: SlowPath,
    _service: TcpService,
    _site: Site,
}

impl Download {
    fn start(delay: Duration) -> Self {
        let service = TcpService::start(|mut stream| {
            // The visitor goes when it has seen enough.
            let _gone = visitor::send_random(&mut stream, 7, ENDLESS);
        });
        let (site, admin) = (Site::new(), ports::free_address());
        let setup = ServerSetup {
            admin: Some(admin),
            ..ServerSetup::default()
        };
        let server = Server::start(&site, &setup);
        let path = SlowPath::with_spacing(server.quic(), delay, SPACING);
        let setup = ClientSetup {
            client: vec!["lanes = 1"],
            quic: vec!["max_udp_payload = 1400"],
            ..ClientSetup::default()
        };
        let client = start_client(&site, &setup, path.address, service.address);
        let mut stream = visitor::connect(server.traffic());
        stream.write_all(b"x").expect("sent");
        Self {
            stream,
            random: Random::new(7),
            admin,
            server,
            _client: client,
            _path: path,
            _service: service,
            _site: site,
        }
    }

    /// Reads a piece, which must be what the service has sent, and returns how often the server has
    /// let packets gather so far.
    fn read_on(&mut self) -> u64 {
        visitor::receive_on(&mut self.stream, &mut self.random, PIECE_BYTES);
        let metrics = http::get(self.admin, "/metrics").body;
        http::metric(&metrics, "qmux_dp_quic_receive_pauses_total") as u64
    }
}

#[test]
fn packets_of_bulk_gather_on_a_long_path_and_nothing_is_lost() {
    if subject::only_wire("packets_of_bulk_gather") {
        return;
    }
    let mut download = Download::start(Duration::from_millis(20));
    let mut first = 0;
    wait::until_true("the server lets packets gather", || {
        first = download.read_on();
        first > 0
    });
    wait::until_true("it goes on to", || download.read_on() > first + 100);
    // Another visitor is served meanwhile.
    let mut other = visitor::connect(download.server.traffic());
    other.write_all(b"x").expect("sent");
    visitor::receive_random(&mut other, 7, PIECE_BYTES);
}

#[test]
fn packets_of_bulk_do_not_wait_on_a_short_path() {
    if subject::only_wire("packets_of_bulk_do_not_wait") {
        return;
    }
    let mut download = Download::start(Duration::ZERO);
    let pauses = (0..64).map(|_| download.read_on()).last();
    assert_eq!(pauses, Some(0));
}

#[test]
fn flows_beside_datagrams_that_fill_the_link_go_on() {
    if subject::only_wire("flows_beside_datagrams") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let site = Site::new();
    let setup = ServerSetup {
        quic: vec!["congestion_control = \"cubic\"", "max_udp_payload = 1400"],
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let path = SlowPath::with_spacing(server.quic(), Duration::from_millis(5), SPACING);
    let setup = ClientSetup {
        client: vec!["lanes = 1"],
        ..ClientSetup::default()
    };
    let _client = start_client(&site, &setup, path.address, tcp.address);
    let address = server.traffic();
    visitor::echo(address, b"the tunnel is up");
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let flood = thread::spawn(move || {
        let mut visitor = UdpVisitor::new(address);
        while !ends.load(Ordering::Relaxed) {
            // Three times what the link carries.
            (0..32).for_each(|_| visitor.send(&[7; 1_000]));
            thread::sleep(Duration::from_millis(1));
        }
    });
    let flows: Vec<_> = (0..4)
        .map(|seed| {
            thread::spawn(move || visitor::echo(address, &Random::new(seed).bytes(PIECE_BYTES)))
        })
        .collect();
    for flow in flows {
        flow.join().expect("everything came back");
    }
    over.store(true, Ordering::Relaxed);
    flood.join().expect("the flood");
}
