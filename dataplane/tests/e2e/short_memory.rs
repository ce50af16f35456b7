//! More is on its way than the memory limit allows: whoever sends much waits, and nobody is
//! refused.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::service::{TcpService, echo};
use crate::support::slow_path::SlowPath;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::{http, ports, subject, visitor, wait};

/// The limit of the client, the least that may be configured.
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
    let metrics = http::get(admin, "/metrics").body;
    let counted = |name: &str| http::metric(&metrics, &format!("qmux_dp_{name}_total"));
    assert_eq!(counted("visitors_refused_memory"), 0.0);
    assert!(counted("stream_writers_held_back") > 0.0);
    drop(client);
    drop(server);
    for (_, reader) in downloads {
        reader.join().expect("a visitor");
    }
}
