//! Whoever reads slowly slows down whoever sends, and neither program of the tunnel stores what is
//! between.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::service::TcpService;
use crate::support::tunnel::Tunnel;
use crate::support::visitor::{self, Ending};
use crate::support::wait::{self, PATIENCE};

/// This is more than all windows and socket buffers on the path hold together.
const LENGTH: usize = 64 << 20;
/// Memory that either program may take while [`LENGTH`] waits outside of it.
const RESIDENT_BYTES_MAX: u64 = 200 << 20;
/// A sender that has sent nothing for this long counts as stalled. If the time is too short, the
/// test merely looks too early.
const STALLED: Duration = Duration::from_secs(2);

/// Waits until `progress` does not change for [`STALLED`].
fn wait_until_stalled(progress: &AtomicUsize) -> usize {
    let mut before = 0;
    loop {
        thread::sleep(STALLED);
        let now = progress.load(Ordering::SeqCst);
        if now == before && now > 0 {
            return now;
        }
        before = now;
    }
}

fn assert_memory_is_bounded(tunnel: &Tunnel) {
    let programs = [&tunnel.server.program, &tunnel.client];
    for (program, name) in programs.into_iter().zip(["server", "client"]) {
        let resident = program.resident_bytes();
        assert!(
            resident < RESIDENT_BYTES_MAX,
            "the {name} has grown to {} MB",
            resident >> 20
        );
    }
}

#[test]
fn a_service_that_does_not_read_stalls_the_visitor() {
    let (read_now, may_read) = mpsc::channel::<()>();
    let may_read = std::sync::Mutex::new(may_read);
    let (done, finished) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        let may_read = may_read.lock().expect("one visitor");
        may_read.recv_timeout(10 * PATIENCE).expect("permission");
        visitor::receive_random(&mut stream, 1, LENGTH);
        done.send(visitor::read_to_end(&mut stream))
            .expect("the test waits");
    });
    let tunnel = Tunnel::to(service.address);
    let sent = AtomicUsize::new(0);
    let mut stream = visitor::connect(tunnel.traffic());
    stream.set_write_timeout(None).expect("no deadline");
    thread::scope(|scope| {
        scope.spawn(|| send_counting(&mut stream, &sent));
        let stalled_at = wait_until_stalled(&sent);
        assert_memory_is_bounded(&tunnel);
        read_now.send(()).expect("the service waits");
        assert!(stalled_at < LENGTH, "everything went somewhere");
    });
    visitor::finish(&stream);
    let ending = finished.recv_timeout(PATIENCE).expect("the service reads");
    assert_eq!(ending, Ending::Clean(Vec::new()));
    assert_memory_is_bounded(&tunnel);
}

#[test]
fn a_visitor_that_does_not_read_stalls_the_service() {
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let service = TcpService::start(|mut stream| {
        stream.set_write_timeout(None).expect("no deadline");
        send_counting(&mut stream, &SENT);
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    let stalled_at = wait_until_stalled(&SENT);
    assert!(stalled_at < LENGTH, "everything went somewhere");
    assert_memory_is_bounded(&tunnel);
    visitor::receive_random(&mut stream, 1, LENGTH);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    assert_memory_is_bounded(&tunnel);
}

/// Sends the random stream of seed 1, [`LENGTH`] bytes, and counts what the socket took.
fn send_counting(stream: &mut std::net::TcpStream, sent: &AtomicUsize) {
    let mut random = crate::support::random::Random::new(1);
    let mut piece = vec![0; 64 << 10];
    for _ in 0..LENGTH / piece.len() {
        random.fill(&mut piece);
        stream.write_all(&piece).expect("sent in the end");
        sent.fetch_add(piece.len(), Ordering::SeqCst);
    }
}

#[test]
fn a_slow_reader_gets_every_byte() {
    const SLOW_LENGTH: usize = 8 << 20;
    let service = TcpService::start(|mut stream| {
        visitor::send_random(&mut stream, 2, SLOW_LENGTH).expect("sent");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    for piece in 0..SLOW_LENGTH / (64 << 10) {
        // This waits for nothing; it is the slowness itself.
        thread::sleep(Duration::from_millis(5));
        let mut bytes = visitor::read_exact(&mut stream, 64 << 10);
        if piece == 0 {
            let mut expected = vec![0; 64 << 10];
            crate::support::random::Random::new(2).fill(&mut expected);
            assert!(bytes == expected, "the first piece is wrong");
        }
        bytes.clear();
    }
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

#[test]
fn a_stalled_flow_does_not_hold_up_the_others() {
    // The first visitor's flow stalls; the second one's does not.
    let service = TcpService::start(|mut stream| {
        let mut kind = [0; 1];
        stream.read_exact(&mut kind).expect("a byte");
        if kind == *b"s" {
            // It sends until the visitor goes.
            let _gone = visitor::send_random(&mut stream, 3, 1 << 30);
        } else {
            crate::support::service::echo(stream);
        }
    });
    let tunnel = Tunnel::to(service.address);
    let mut stalled: Vec<_> = (0..4).map(|_| visitor::connect(tunnel.traffic())).collect();
    for stream in &mut stalled {
        stream.write_all(b"s").expect("sent");
        stream.set_nonblocking(true).expect("non-blocking");
        wait::until_true(
            "the service sends",
            || !matches!(stream.peek(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock),
        );
    }
    let mut lively = visitor::connect(tunnel.traffic());
    lively.write_all(b"e").expect("sent");
    let bytes = crate::support::random::Random::new(4).bytes(4 << 20);
    visitor::exchange(&mut lively, &bytes);
    assert_memory_is_bounded(&tunnel);
    for stream in stalled {
        visitor::reset(stream);
    }
}
