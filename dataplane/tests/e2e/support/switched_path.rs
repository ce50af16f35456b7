//! A UDP path with switches: a relay that tells its senders apart, as a NAT does, and sends on what
//! each of them says, or swallows it, in both directions. Each lane of a client has a port of its
//! own, and so is one sender.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_535;

/// How often a relay that has nothing to do checks whether it is still needed.
const LOOK: Duration = Duration::from_millis(50);

/// One sender and its way to the server.
struct Way {
    from: SocketAddr,
    socket: UdpSocket,
    broken: Arc<AtomicBool>,
}

/// The state that the threads of the relay share.
struct State {
    near: UdpSocket,
    /// The server that new senders are connected to.
    server: Mutex<SocketAddr>,
    /// The paths of the senders, in the order in which they came.
    ways: Mutex<Vec<Way>>,
    /// Whether new senders are swallowed, too.
    all_broken: AtomicBool,
    over: AtomicBool,
}

/// The relay. Ends when dropped.
pub(crate) struct SwitchedPath {
    /// The address that the client dials.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl SwitchedPath {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").expect("a port");
        near.set_read_timeout(Some(LOOK)).expect("a timeout");
        let address = near.local_addr().expect("bound");
        let state = Arc::new(State {
            near,
            server: Mutex::new(server),
            ways: Mutex::default(),
            all_broken: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let forth = Arc::clone(&state);
        thread::spawn(move || forth.relay());
        Self { address, state }
    }

    /// Senders so far.
    pub(crate) fn senders(&self) -> usize {
        self.state.ways.lock().expect("ways").len()
    }

    /// Swallows everything that one sender sends and should receive.
    pub(crate) fn break_one(&self, sender: usize) {
        self.state.ways.lock().expect("ways")[sender].set_broken(true);
    }

    /// Passes everything again that one sender sends and should receive, and that later senders
    /// send.
    pub(crate) fn mend_one(&self, sender: usize) {
        self.state.all_broken.store(false, Ordering::SeqCst);
        self.state.ways.lock().expect("ways")[sender].set_broken(false);
    }

    /// Swallows everything, or nothing any more.
    pub(crate) fn break_all(&self, broken: bool) {
        self.state.all_broken.store(broken, Ordering::SeqCst);
        for way in &*self.state.ways.lock().expect("ways") {
            way.set_broken(broken);
        }
    }

    /// Puts another server behind the address from now on. What is remembered of earlier senders
    /// leads nowhere.
    pub(crate) fn redirect(&self, server: SocketAddr) {
        *self.state.server.lock().expect("server") = server;
        for way in &*self.state.ways.lock().expect("ways") {
            way.set_broken(true);
        }
    }
}

impl Drop for SwitchedPath {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
    }
}

impl Way {
    fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }
}

impl State {
    /// From the client to the server.
    fn relay(self: Arc<Self>) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.over.load(Ordering::SeqCst) {
            let Ok((length, from)) = self.near.recv_from(&mut buffer) else {
                continue;
            };
            let mut ways = self.ways.lock().expect("ways");
            let index = ways.iter().position(|way| way.from == from);
            let index = index.unwrap_or_else(|| {
                ways.push(self.begin(from));
                ways.len() - 1
            });
            if !ways[index].broken.load(Ordering::SeqCst) {
                // A server that is gone is the test's doing.
                let _lost = ways[index].socket.send(&buffer[..length]);
            }
        }
    }

    fn begin(self: &Arc<Self>, from: SocketAddr) -> Way {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(LOOK)).expect("a timeout");
        let server = *self.server.lock().expect("server");
        socket.connect(server).expect("connected");
        let broken = Arc::new(AtomicBool::new(self.all_broken.load(Ordering::SeqCst)));
        let (state, back) = (Arc::clone(self), socket.try_clone().expect("a clone"));
        let swallows = Arc::clone(&broken);
        thread::spawn(move || {
            let mut buffer = vec![0; PACKET_BYTES_MAX];
            while !state.over.load(Ordering::SeqCst) {
                let Ok(length) = back.recv(&mut buffer) else {
                    continue;
                };
                if !swallows.load(Ordering::SeqCst) {
                    let _lost = state.near.send_to(&buffer[..length], from);
                }
            }
        });
        Way {
            from,
            socket,
            broken,
        }
    }
}
