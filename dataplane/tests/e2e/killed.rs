//! A process that is killed in the middle of transfers never makes one look complete.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, ServerSetup, Tunnel,
};
use crate::support::visitor;
use crate::support::wait;

/// Transfers that are under way when the process is killed.
const TRANSFERS: usize = 40;
/// The bytes that each of these transfers has moved by then.
const UNDER_WAY_BYTES: usize = 64 << 10;
/// The length of a short transfer.
const SHORT_BYTES: usize = 256 << 10;
/// Queues of visitors: in each of them, visitors with short transfers come one after another.
const QUEUES: usize = 8;

#[derive(Clone, Copy)]
enum Side {
    Server,
    Client,
}

/// A tunnel whose sides notice soon that the other one is gone.
fn tunnel(service: SocketAddr) -> Tunnel {
    let server = ServerSetup {
        server: ROLE_NOTICES_SOON.to_vec(),
        quic: QUIC_NOTICES_SOON.to_vec(),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: ROLE_NOTICES_SOON.to_vec(),
        quic: QUIC_NOTICES_SOON.to_vec(),
        ..ClientSetup::default()
    };
    Tunnel::with(&server, &client, service)
}

fn kill(tunnel: &mut Tunnel, side: Side) {
    match side {
        Side::Server => tunnel.server.program.kill(),
        Side::Client => tunnel.client.kill(),
    }
}

/// Transfers without an end, and how many of them have moved some bytes.
#[derive(Default)]
struct UnderWay(AtomicUsize);

impl UnderWay {
    /// Reads for as long as bytes come. The end must be a reset, as the sender never ends.
    fn read(&self, stream: &mut TcpStream) {
        let mut piece = vec![0; 16 << 10];
        let mut bytes = 0;
        loop {
            match stream.read(&mut piece) {
                Ok(0) => panic!("a clean end after {bytes} bytes, of which more were to come"),
                Ok(read) => {
                    let before = bytes;
                    bytes += read;
                    if before < UNDER_WAY_BYTES && bytes >= UNDER_WAY_BYTES {
                        self.0.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("after {bytes} bytes: {error}"),
            }
        }
    }

    fn wait_for_all(&self) {
        wait::until_true("all transfers are under way", || {
            self.0.load(Ordering::SeqCst) == TRANSFERS
        });
    }
}

/// Sends for as long as it may.
fn send(stream: &mut TcpStream) {
    while stream.write_all(&[b'x'; 16 << 10]).is_ok() {}
}

fn downloads_when_killed(side: Side) {
    if subject::only_wire("what a killed process leaves") {
        return;
    }
    let service = TcpService::start(|mut stream| send(&mut stream));
    let under_way = UnderWay::default();
    thread::scope(|scope| {
        // It is made here, so that it ends, and the transfers with it, when the test fails.
        let mut tunnel = tunnel(service.address);
        let traffic = tunnel.traffic();
        for _ in 0..TRANSFERS {
            let under_way = &under_way;
            scope.spawn(move || under_way.read(&mut visitor::connect(traffic)));
        }
        under_way.wait_for_all();
        kill(&mut tunnel, side);
    });
}

fn uploads_when_killed(side: Side) {
    if subject::only_wire("what a killed process leaves") {
        return;
    }
    let under_way = Arc::<UnderWay>::default();
    let service = TcpService::start({
        let under_way = Arc::clone(&under_way);
        move |mut stream| under_way.read(&mut stream)
    });
    thread::scope(|scope| {
        let mut tunnel = tunnel(service.address);
        let traffic = tunnel.traffic();
        for _ in 0..TRANSFERS {
            scope.spawn(move || send(&mut visitor::connect(traffic)));
        }
        under_way.wait_for_all();
        kill(&mut tunnel, side);
    });
    service.wait_until_done();
}

#[test]
fn downloads_end_by_a_reset_when_the_server_is_killed() {
    downloads_when_killed(Side::Server);
}

#[test]
fn downloads_end_by_a_reset_when_the_client_is_killed() {
    downloads_when_killed(Side::Client);
}

#[test]
fn uploads_end_by_a_reset_when_the_server_is_killed() {
    uploads_when_killed(Side::Server);
}

#[test]
fn uploads_end_by_a_reset_when_the_client_is_killed() {
    uploads_when_killed(Side::Client);
}

/// One short download: whether it was complete, or an error if the visitor was told of one.
fn short_download(traffic: SocketAddr) -> io::Result<()> {
    let mut stream = visitor::try_connect(traffic)?;
    stream.write_all(b"?")?;
    let mut bytes = 0;
    let mut piece = vec![0; 64 << 10];
    loop {
        match stream.read(&mut piece)? {
            0 => break,
            read => bytes += read,
        }
    }
    assert_eq!(bytes, SHORT_BYTES, "a clean end with bytes missing");
    Ok(())
}

fn short_downloads_when_killed(side: Side) {
    if subject::only_wire("what a killed process leaves") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        // A visitor who is cut off is not served, and reports no more than that.
        let served = stream
            .read_exact(&mut [0; 1])
            .and_then(|()| stream.write_all(&vec![b'x'; SHORT_BYTES]));
        if served.is_ok() {
            visitor::finish_if_open(&stream);
            let _gone = stream.read(&mut [0; 1]);
        }
    });
    let complete = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let mut tunnel = tunnel(service.address);
        let traffic = tunnel.traffic();
        for _ in 0..QUEUES {
            scope.spawn(move || {
                while short_download(traffic).is_ok() {
                    complete.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        wait::until_true("many are complete", || {
            complete.load(Ordering::SeqCst) >= 10 * QUEUES
        });
        kill(&mut tunnel, side);
    });
}

#[test]
fn short_downloads_are_complete_or_fail_when_the_server_is_killed() {
    short_downloads_when_killed(Side::Server);
}

#[test]
fn short_downloads_are_complete_or_fail_when_the_client_is_killed() {
    short_downloads_when_killed(Side::Client);
}
