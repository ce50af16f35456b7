//! Services behind the tunnel, in this process.

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use super::visitor;
use super::wait;

/// Stack of a thread that serves one connection: there are a thousand of them.
const STACK_BYTES: usize = 256 << 10;
/// Receive buffer of a UDP service: a burst of 200 visitors must not overflow it.
const UDP_BUFFER_BYTES: usize = 4 << 20;
/// How often a UDP service checks whether it should stop.
const UDP_GLANCE: Duration = Duration::from_millis(50);

/// A TCP service: each connection is served on a thread of its own.
pub(crate) struct TcpService {
    pub(crate) address: SocketAddr,
    listener: Arc<TcpListener>,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl TcpService {
    /// Serves each connection by `serve`; a panic in it fails the test.
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        Self::start_on(listener, serve)
    }

    /// Serves connections like [`Self::start`], on a listener that exists already.
    pub(crate) fn start_on(
        listener: TcpListener,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("bound");
        let listener = Arc::new(listener);
        let accepted = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let acceptor = thread::spawn({
            let (listener, accepted) = (Arc::clone(&listener), Arc::clone(&accepted));
            let (ended, failures) = (Arc::clone(&ended), Arc::clone(&failures));
            let serve = Arc::new(serve);
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    accepted.fetch_add(1, Ordering::SeqCst);
                    visitor::set_deadlines(&stream);
                    let (serve, ended) = (Arc::clone(&serve), Arc::clone(&ended));
                    let failures = Arc::clone(&failures);
                    thread::Builder::new()
                        .stack_size(STACK_BYTES)
                        .spawn(move || {
                            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(stream))) {
                                failures.lock().expect("failures").push(message(&*panic));
                            }
                            ended.fetch_add(1, Ordering::SeqCst);
                        })
                        .expect("a thread");
                }
            }
        });
        Self {
            address,
            listener,
            accepted,
            ended,
            failures,
            acceptor: Some(acceptor),
        }
    }

    /// Sends back what it receives, and a FIN after a FIN.
    pub(crate) fn echo() -> Self {
        Self::start(echo)
    }

    /// Answers each connection with `text` and closes it once the visitor has.
    pub(crate) fn says(text: &'static str) -> Self {
        Self::start(move |mut stream| {
            // A visitor that has gone meanwhile is no failure of the service.
            let _gone = stream.write_all(text.as_bytes());
            let _gone = io::copy(&mut stream, &mut io::sink());
        })
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until every connection has been served to its end; panics if one failed. Tests whose
    /// service is the last to receive end with it, because a tunnel that is torn down takes what is
    /// on its way with it.
    pub(crate) fn wait_until_done(&self) {
        wait::until_true("the service has served everybody", || {
            let failures = self.failures();
            assert!(failures.is_empty(), "the service failed: {failures:?}");
            self.ended.load(Ordering::SeqCst) == self.accepted()
        });
    }

    /// Panics of the threads that serve so far.
    fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("failures").clone()
    }
}

impl Drop for TcpService {
    fn drop(&mut self) {
        // Wakes the acceptor out of accept.
        let _closed = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
        if !thread::panicking() {
            let failures = self.failures();
            assert!(failures.is_empty(), "the service failed: {failures:?}");
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let literal = || panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(literal).unwrap_or_else(|| "a panic".into())
}

/// Sends back what it receives, and a FIN after a FIN.
pub(crate) fn echo(mut stream: TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        // The visitor may reset or go at any time; it, not the service, says whether that was
        // right.
        match stream.read(&mut bytes) {
            Ok(0) => {
                let _gone = stream.shutdown(Shutdown::Write);
                return;
            }
            Ok(read) if stream.write_all(&bytes[..read]).is_ok() => {}
            _ => return,
        }
    }
}

/// A UDP service that sends back each datagram to where it came from.
pub(crate) struct UdpService {
    pub(crate) address: SocketAddr,
    sources: Arc<Mutex<HashSet<SocketAddr>>>,
    received: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl UdpService {
    pub(crate) fn echo() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        Self::echo_on(socket)
    }

    /// Echoes like [`Self::echo`], on a socket that exists already.
    pub(crate) fn echo_on(socket: UdpSocket) -> Self {
        Self::echo_if(socket, |_| true)
    }

    /// Echoes on this socket only datagrams that are longer than `bytes`.
    pub(crate) fn echo_longer_than(socket: UdpSocket, bytes: usize) -> Self {
        Self::echo_if(socket, move |length| length > bytes)
    }

    fn echo_if(socket: UdpSocket, answers: impl Fn(usize) -> bool + Send + 'static) -> Self {
        let address = socket.local_addr().expect("bound");
        socket.set_read_timeout(Some(UDP_GLANCE)).expect("timeout");
        let sizes = SockRef::from(&socket);
        sizes.set_recv_buffer_size(UDP_BUFFER_BYTES).expect("size");
        sizes.set_send_buffer_size(UDP_BUFFER_BYTES).expect("size");
        let sources = Arc::new(Mutex::new(HashSet::new()));
        let received = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let server = thread::spawn({
            let (sources, received) = (Arc::clone(&sources), Arc::clone(&received));
            let stop = Arc::clone(&stop);
            move || {
                let mut bytes = vec![0; 1 << 16];
                while !stop.load(Ordering::SeqCst) {
                    // A timeout, or that an earlier reply met a closed port.
                    let Ok((length, source)) = socket.recv_from(&mut bytes) else {
                        continue;
                    };
                    received.fetch_add(1, Ordering::SeqCst);
                    sources.lock().expect("sources").insert(source);
                    if answers(length) {
                        let _full = socket.send_to(&bytes[..length], source);
                    }
                }
            }
        });
        Self {
            address,
            sources,
            received,
            stop,
            server: Some(server),
        }
    }

    /// Where datagrams have come from so far: one address for each flow of the client.
    pub(crate) fn sources(&self) -> usize {
        self.sources.lock().expect("sources").len()
    }

    /// Datagrams received so far.
    pub(crate) fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for UdpService {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ended = server.join();
        }
    }
}

/// TCP and UDP echo on one port, as a client's one service address needs.
pub(crate) fn echo_both() -> (TcpService, UdpService) {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        // The same number may be taken for UDP: then another one.
        if let Ok(socket) = UdpSocket::bind(address) {
            return (
                TcpService::start_on(listener, echo),
                UdpService::echo_on(socket),
            );
        }
    }
}
