//! What one visitor may carry: it waits, or its datagrams are dropped, and nobody else's.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::support::door::{Door, DoorSetup, Offering, published};
use crate::support::http;
use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// A bandwidth at which nothing large ever ends: what it could carry within a day is less than
/// three times [`LARGE`].
const CRAWLS: &str = "bandwidth_per_visitor = \"1KiB\"";
const LARGE: usize = 32 << 20;

/// This is more than passes at once and in any time that a test takes: some twenty minutes' worth.
const CRAWLED_MAX: usize = 1 << 20;

/// A server with the service `free` and, limited by these keys, `limited`; one client and one lane
/// for both.
struct Limited {
    door: Door,
    _client: Program,
    _site: Site,
}

impl Limited {
    fn start(keys: &str, protocol: &'static str, limited: SocketAddr, free: SocketAddr) -> Self {
        let site = Site::new();
        let setup = DoorSetup {
            services: vec![published("free", protocol), published("limited", protocol)],
            config: format!("{keys}\n"),
            ..DoorSetup::default()
        };
        let door = Door::start(&site, &setup);
        let offering = Offering {
            name: "client",
            certificate: "client",
            token: None,
            services: vec![
                ("free", protocol, free, 1),
                ("limited", protocol, limited, 1),
            ],
            client: "lanes = 1",
        };
        let client = offering.start(&site, door.quic[0]);
        for service in ["free", "limited"] {
            http::wait_for(door.admin, &format!("/readyz?service={service}"), 200);
        }
        Self {
            door,
            _client: client,
            _site: site,
        }
    }

    fn counted(&self, name: &str) -> f64 {
        http::metric(&http::get(self.door.admin, "/metrics").body, name)
    }
}

/// A service that sends [`LARGE`] bytes to a visitor who has sent a byte.
fn sender() -> TcpService {
    TcpService::start(|mut stream| {
        let mut byte = [0; 1];
        if stream.read_exact(&mut byte).is_ok() {
            stream.set_write_timeout(None).expect("no deadline");
            // The visitor goes when it has seen enough.
            let _gone = visitor::send_random(&mut stream, 7, LARGE);
        }
    })
}

fn ask(address: SocketAddr) -> TcpStream {
    let mut stream = visitor::connect(address);
    stream.write_all(b"x").expect("sent");
    stream
}

#[test]
fn a_download_that_has_used_up_its_bandwidth_waits_and_others_of_its_lane_do_not() {
    if subject::only_wire("bandwidth_per_visitor") {
        return;
    }
    let service = sender();
    let limited = Limited::start(CRAWLS, "tcp", service.address, service.address);
    let mut slow = ask(limited.door.traffic("limited"));
    visitor::receive_random(&mut slow, 7, 1_000);
    wait::until_true("it has to wait", || {
        limited.counted("qmux_dp_tcp_bandwidth_waits_total") > 0.0
    });
    // A flow that is not limited gets everything, by the same lane, while the other one waits.
    let mut fast = ask(limited.door.traffic("free"));
    visitor::receive_random(&mut fast, 7, LARGE);
    slow.set_nonblocking(true).expect("set");
    let mut came = 0;
    let mut piece = [0; 1 << 16];
    while let Ok(read) = slow.read(&mut piece) {
        assert_ne!(read, 0, "it did not end");
        came += read;
    }
    assert!(came < CRAWLED_MAX, "{came} bytes of {LARGE}");
}

#[test]
fn an_upload_that_has_used_up_its_bandwidth_is_held_up_and_others_of_its_lane_are_not() {
    if subject::only_wire("bandwidth_per_visitor") {
        return;
    }
    let came = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&came);
    let sink = TcpService::start(move |mut stream| {
        let mut piece = [0; 1 << 16];
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            counts.fetch_add(read as u64, Ordering::Relaxed);
        }
    });
    let echo = TcpService::echo();
    let limited = Limited::start(CRAWLS, "tcp", sink.address, echo.address);
    let slow = visitor::connect(limited.door.traffic("limited"));
    let mut writer = slow.try_clone().expect("clone");
    let sends = thread::spawn(move || {
        writer.set_write_timeout(None).expect("no deadline");
        visitor::send_random(&mut writer, 3, LARGE)
    });
    wait::until_true("it has to wait", || {
        limited.counted("qmux_dp_tcp_bandwidth_waits_total") > 0.0
    });
    visitor::echo(limited.door.traffic("free"), &Random::new(1).bytes(8 << 20));
    let came = came.load(Ordering::Relaxed);
    assert!(came > 0 && came < CRAWLED_MAX as u64, "{came} of {LARGE}");
    slow.shutdown(Shutdown::Both).expect("ended");
    sends
        .join()
        .expect("the sender")
        .expect_err("all but the end of it was sent");
}

#[test]
fn a_limited_flow_loses_no_byte_and_passes_its_ends() {
    if subject::only_wire("bandwidth_per_visitor") {
        return;
    }
    let echo = TcpService::echo();
    let keys = "bandwidth_per_visitor = \"4MiB\"";
    let limited = Limited::start(keys, "tcp", echo.address, echo.address);
    let mut random = Random::new(2);
    for length in [0, 1, 70_000, 3 << 20] {
        let bytes = random.bytes(length);
        let mut stream = visitor::connect(limited.door.traffic("limited"));
        visitor::exchange(&mut stream, &bytes);
        visitor::finish(&stream);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }
    assert!(limited.counted("qmux_dp_tcp_bandwidth_waits_total") > 0.0);
    // A reset passes while a flow waits, both ways.
    let keys = format!("{CRAWLS}\n");
    let resets = TcpService::start(|mut stream| {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).expect("a byte");
        stream.write_all(&[0; 200_000]).expect("sent");
        // With its second byte the visitor shows that it has seen the first ones.
        stream.read_exact(&mut byte).expect("a byte");
        visitor::reset(stream);
    });
    let limited = Limited::start(&keys, "tcp", resets.address, echo.address);
    let mut stream = ask(limited.door.traffic("limited"));
    visitor::read_exact(&mut stream, 1);
    stream.write_all(b"x").expect("sent");
    assert!(matches!(
        visitor::read_to_end(&mut stream),
        Ending::Reset(_)
    ));
}

#[test]
fn datagrams_above_the_bandwidth_of_their_flow_are_dropped_and_counted_and_no_others() {
    if subject::only_wire("bandwidth_per_visitor") {
        return;
    }
    let (tcp, udp) = echo_both();
    let limited = Limited::start(CRAWLS, "both", tcp.address, tcp.address);
    let address = limited.door.traffic("limited");
    let mut flood = UdpVisitor::new(address);
    flood.echo(b"first");
    let mut sent = 0;
    wait::until_true("datagrams are dropped", || {
        for _ in 0..100 {
            flood.send(&[7; 1_000]);
            sent += 1;
        }
        limited.counted("qmux_dp_udp_dropped_bandwidth_total") > 0.0
    });
    // Each flow has a limit of its own, and another service has none.
    UdpVisitor::new(address).echo(b"another visitor");
    let mut free = UdpVisitor::new(limited.door.traffic("free"));
    for number in 0_u32..50 {
        free.echo(&[number.to_be_bytes().as_slice(), &[8; 1_000]].concat());
    }
    assert!(udp.received() < sent + 50, "{} of {sent}", udp.received());
}
