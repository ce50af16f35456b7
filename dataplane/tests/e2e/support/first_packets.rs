//! Strangers who send first packets of QUIC connections without end, from networks of their own
//! (127/8 is full of them).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use quiche::{Connection, RecvInfo};

use super::certs::SERVER_NAME;
use super::quic_probe;
use super::random::Random;

/// Initial packets are padded to this size (RFC 9000, section 14.1).
const INITIAL_BYTES: usize = 1_200;

/// Packets sent at once, and the pause between two such bursts, which leaves something of the
/// machine to others.
const BURST_PACKETS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// Connections that wait for a Retry at the same time.
const WAITING_MAX: usize = 256;

/// Goes on until it is dropped.
pub(crate) struct FirstPackets {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FirstPackets {
    /// Packets that look like Initials and do not decrypt, from 16 networks.
    pub(crate) fn of_garbage(server: SocketAddr) -> Self {
        Self::run(move |stop| {
            let sockets: Vec<UdpSocket> = (1..=16).map(bind).collect();
            let mut random = Random::new(1);
            let mut packet = [0x5a; INITIAL_BYTES];
            packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
            packet[14..18].copy_from_slice(&[0, 0, 0x44, 0x9e]);
            while !stop.load(Ordering::Relaxed) {
                for socket in &sockets {
                    for _ in 0..BURST_PACKETS / 16 {
                        random.fill(&mut packet[6..14]);
                        // What the server's socket has no room for is lost, as in any flood.
                        let _lost = socket.send_to(&packet, server);
                    }
                }
                thread::sleep(PAUSE);
            }
        })
    }

    /// One address begins valid handshakes, shows that it receives where it is asked to, and never
    /// ends one.
    pub(crate) fn of_half_open_handshakes(dir: PathBuf, server: SocketAddr) -> Self {
        Self::run(move |stop| {
            let socket = bind(77);
            socket.set_nonblocking(true).expect("a socket");
            let local = socket.local_addr().expect("bound");
            let mut config = quic_probe::config(&dir, None);
            let mut random = Random::new(2);
            let mut waiting: HashMap<[u8; 16], Connection> = HashMap::new();
            while !stop.load(Ordering::Relaxed) {
                if waiting.len() >= WAITING_MAX {
                    waiting.clear();
                }
                for _ in 0..BURST_PACKETS / 4 {
                    let mut id = [0; 16];
                    random.fill(&mut id);
                    let scid = quiche::ConnectionId::from_ref(&id);
                    let dialed =
                        quiche::connect(Some(SERVER_NAME), &scid, local, server, &mut config);
                    let mut connection = dialed.expect("a valid configuration");
                    send_once(&mut connection, &socket);
                    waiting.insert(id, connection);
                }
                answer_retries(&socket, local, &mut waiting);
                thread::sleep(PAUSE);
            }
        })
    }

    fn run(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || work(&told));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FirstPackets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has failed: the test says so, or another failure goes first.
            let _failed = thread.join();
        }
    }
}

/// Binds a socket in a /24 of its own.
fn bind(network: u8) -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::new(127, 66, network, 1), 0)).expect("an address of loopback")
}

/// Whatever comes back is a Retry, which is answered, or the server's part of a handshake, which
/// ends there.
fn answer_retries(
    socket: &UdpSocket,
    local: SocketAddr,
    waiting: &mut HashMap<[u8; 16], Connection>,
) {
    let mut bytes = [0; 1 << 16];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        let Ok(header) = quiche::Header::from_slice(&mut bytes[..length], 16) else {
            continue;
        };
        let Ok(id) = <[u8; 16]>::try_from(header.dcid.as_ref()) else {
            continue;
        };
        if let Some(mut connection) = waiting.remove(&id)
            && header.ty == quiche::Type::Retry
        {
            let info = RecvInfo { from, to: local };
            let _taken = connection.recv(&mut bytes[..length], info);
            send_once(&mut connection, socket);
        }
    }
}

fn send_once(connection: &mut Connection, socket: &UdpSocket) {
    let mut packet = [0; 1_500];
    while let Ok((length, info)) = connection.send(&mut packet) {
        let _lost = socket.send_to(&packet[..length], info.to);
    }
}
