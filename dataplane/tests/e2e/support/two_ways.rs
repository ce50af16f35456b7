//! A network between a client and a server that treats UDP and TCP at one address each in its own
//! way: a relay with a switch for each direction of UDP, by the size of packets, one for UDP of
//! each sender, and one for TCP.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::ports;

/// How often a thread of the relay checks whether it should stop.
const GLANCE: Duration = Duration::from_millis(20);

/// Bursts of several lanes wait here.
const BUFFER_BYTES: usize = 4 << 20;

/// The largest UDP payload, and what TCP is relayed by.
const PIECE_BYTES: usize = 1 << 16;

/// The state that the threads of the relay share.
struct Shared {
    server: SocketAddr,
    inside: UdpSocket,
    outsides: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    /// Senders whose UDP does not pass.
    cut_off: Mutex<HashSet<SocketAddr>>,
    /// The largest UDP payloads that pass to the server, and back.
    forth_max: AtomicUsize,
    back_max: AtomicUsize,
    /// Number of UDP packets that were swallowed.
    swallowed: AtomicUsize,
    tcp_passes: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    /// Number of connections, from the first on, that carry nothing any more.
    forgotten: AtomicUsize,
    stop: AtomicBool,
}

/// The relay. Ends when dropped.
pub(crate) struct TwoWays {
    /// The address that clients dial.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

fn udp_socket(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("a free port");
    socket.set_read_timeout(Some(GLANCE)).expect("timeout");
    let sizes = SockRef::from(&socket);
    sizes.set_recv_buffer_size(BUFFER_BYTES).expect("size");
    sizes.set_send_buffer_size(BUFFER_BYTES).expect("size");
    socket
}

impl TwoWays {
    /// A relay to `server` that passes everything.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let address = ports::free_address();
        let shared = Arc::new(Shared {
            server,
            inside: udp_socket(address),
            outsides: Mutex::default(),
            cut_off: Mutex::default(),
            forth_max: AtomicUsize::new(usize::MAX),
            back_max: AtomicUsize::new(usize::MAX),
            swallowed: AtomicUsize::new(0),
            tcp_passes: AtomicBool::new(true),
            streams: Mutex::default(),
            connections: AtomicUsize::new(0),
            forgotten: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("non-blocking");
        let (udp, tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || udp.relay_udp());
        thread::spawn(move || tcp.accept_tcp(&listener));
        Self { address, shared }
    }

    /// Passes only UDP payloads of up to `forth_bytes` to the server and up to `back_bytes` back;
    /// with 0 none.
    pub(crate) fn limit_udp(&self, forth_bytes: usize, back_bytes: usize) {
        self.shared.forth_max.store(forth_bytes, Ordering::SeqCst);
        self.shared.back_max.store(back_bytes, Ordering::SeqCst);
    }

    /// Passes all of UDP.
    pub(crate) fn pass_udp(&self) {
        self.limit_udp(usize::MAX, usize::MAX);
    }

    /// The senders of UDP so far.
    pub(crate) fn senders(&self) -> Vec<SocketAddr> {
        let outsides = self.shared.outsides.lock().expect("sockets");
        outsides.keys().copied().collect()
    }

    /// Swallows all of the UDP that this sender says and hears.
    pub(crate) fn cut_off(&self, sender: SocketAddr) {
        self.shared.cut_off.lock().expect("senders").insert(sender);
    }

    /// UDP packets that were swallowed so far.
    pub(crate) fn swallowed(&self) -> usize {
        self.shared.swallowed.load(Ordering::SeqCst)
    }

    /// TCP connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// All TCP connections that there are carry nothing any more, and neither end is told.
    pub(crate) fn forget_tcp(&self) {
        let connections = self.shared.connections.load(Ordering::SeqCst);
        self.shared.forgotten.store(connections, Ordering::SeqCst);
    }

    /// Resets all TCP connections; `passes` says whether new ones pass.
    pub(crate) fn cut_tcp(&self, passes: bool) {
        self.shared.tcp_passes.store(passes, Ordering::SeqCst);
        for stream in self.shared.streams.lock().expect("streams").drain(..) {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TwoWays {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut_tcp(false);
    }
}

impl Shared {
    fn passes(&self, length: usize, max: &AtomicUsize, client: SocketAddr) -> bool {
        let passes = length <= max.load(Ordering::SeqCst)
            && !self.cut_off.lock().expect("senders").contains(&client);
        if !passes {
            self.swallowed.fetch_add(1, Ordering::SeqCst);
        }
        passes
    }

    fn relay_udp(self: Arc<Self>) {
        let mut bytes = vec![0; PIECE_BYTES];
        while !self.stop.load(Ordering::SeqCst) {
            // A timeout, or that an earlier packet met a closed port.
            let Ok((length, client)) = self.inside.recv_from(&mut bytes) else {
                continue;
            };
            if self.passes(length, &self.forth_max, client) {
                let _lost = self.outside_of(client).send(&bytes[..length]);
            }
        }
    }

    fn outside_of(self: &Arc<Self>, client: SocketAddr) -> Arc<UdpSocket> {
        let mut outsides = self.outsides.lock().expect("sockets");
        let outside = outsides.entry(client).or_insert_with(|| {
            let socket = Arc::new(udp_socket((Ipv4Addr::LOCALHOST, 0).into()));
            socket.connect(self.server).expect("an address");
            let (this, back) = (Arc::clone(self), Arc::clone(&socket));
            thread::spawn(move || this.relay_back(&back, client));
            socket
        });
        Arc::clone(outside)
    }

    fn relay_back(&self, outside: &UdpSocket, client: SocketAddr) {
        let mut bytes = vec![0; PIECE_BYTES];
        while !self.stop.load(Ordering::SeqCst) {
            let Ok(length) = outside.recv(&mut bytes) else {
                continue;
            };
            if self.passes(length, &self.back_max, client) {
                let _lost = self.inside.send_to(&bytes[..length], client);
            }
        }
    }

    fn accept_tcp(self: Arc<Self>, listener: &TcpListener) {
        while !self.stop.load(Ordering::SeqCst) {
            let Ok((near, _)) = listener.accept() else {
                thread::sleep(GLANCE);
                continue;
            };
            if !self.tcp_passes.load(Ordering::SeqCst) {
                continue;
            }
            let Ok(far) = TcpStream::connect(self.server) else {
                continue;
            };
            near.set_nonblocking(false).expect("blocking");
            let number = self.connections.fetch_add(1, Ordering::SeqCst);
            for (from, to) in [(&near, &far), (&far, &near)] {
                from.set_nodelay(true).expect("nodelay");
                let copies = (from.try_clone(), to.try_clone());
                let (Ok(from), Ok(to)) = copies else { return };
                let this = Arc::clone(&self);
                thread::spawn(move || this.copy(from, to, number));
            }
            let mut streams = self.streams.lock().expect("streams");
            streams.extend([near, far]);
        }
    }

    /// Copies until either side is over; then both are.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream, connection: usize) {
        let mut bytes = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            if connection < self.forgotten.load(Ordering::SeqCst) {
                continue;
            }
            if to.write_all(&bytes[..length]).is_err() {
                break;
            }
        }
        let _gone = from.shutdown(Shutdown::Both);
        let _gone = to.shutdown(Shutdown::Both);
    }
}
