//! Bulk over links that are slow, over a short and a long path.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::http;
use crate::support::ports;
use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::slow_path::SlowPath;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
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
    admin: std::net::SocketAddr,
    server: Server,
    _client: crate::support::program::Program,
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
