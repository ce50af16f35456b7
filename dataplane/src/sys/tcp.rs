//! A TCP socket driven by readiness: monoio waits, plain non-blocking calls move the bytes.
//!
//! Closing a flow's socket resets the connection until [`TcpSocket::close_with_fin`] says
//! otherwise, whoever closes it. When a process is killed the kernel closes its sockets, and a FIN
//! in the middle of a transfer would tell the peer that it has everything. Accepted sockets inherit
//! this from the listening ones, with the other options of [`set_flow_options`], so that accepting
//! costs no further call.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::set_tcp_quickack;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::limits;

/// Idle time before keep-alive probes. A peer that vanished without a FIN (power, NAT) is noticed
/// after this and three probes. Its flow would otherwise hold a stream of the lane for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_PROBES: u32 = 3;

/// A lane's TCP connection whose peer acknowledges nothing for this long is over. The same silence
/// ends a lane.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that the kernel takes of a lane's TCP connection beyond what it has sent: 5 ms at 100
/// Mbit/s. Less would wake the writer for every record; more delays whatever comes later.
const CARRIER_UNSENT_BYTES_MAX: libc::c_int = 64 << 10;
/// A first write of this size leaves at once as one segment, whatever Nagle's algorithm does,
/// because every path takes as much (RFC 9293, section 3.7.1).
const ONE_SEGMENT_BYTES: usize = 536;

/// The state of an option that a socket gets only when it matters: most connections to services are
/// over before that, and each option is a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Later {
    /// The option is set, or was inherited from the listening socket.
    Set,
    /// The option must be set as soon as something has been written.
    Unset,
}

/// Whether there are bytes for the peer when a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// They are written as soon as the visitor's server knows of them, mostly in the same turn of
    /// the core. On this machine, their segment acknowledges the handshake, too, so that the peer
    /// gets both at once, and is woken once. Should they take 200 ms, the kernel acknowledges
    /// before. Elsewhere the handshake is acknowledged by
    /// itself, because nobody knows what is on the way: a SYN proxy takes no bytes before.
    Ready,
    /// The peer may have to speak first.
    Unknown,
}

impl FirstBytes {
    pub(crate) fn ready_if(there_are_some: bool) -> FirstBytes {
        match there_are_some {
            true => FirstBytes::Ready,
            false => FirstBytes::Unknown,
        }
    }
}

/// One connected TCP socket, owned by one core.
#[derive(Debug)]
pub(crate) struct TcpSocket {
    io: monoio::net::TcpStream,
    nodelay: Cell<Later>,
    keepalive: Cell<Later>,
    /// Set, unless the kernel was asked to wait with acknowledgements.
    quickack: Cell<Later>,
    has_written: Cell<bool>,
}

impl TcpSocket {
    /// Adopts a connected socket on the current core: one that an [`Acceptor`] has accepted, which
    /// has all options from its listening socket, or one made by [`TcpSocket::connect`].
    pub(crate) fn adopt(stream: TcpStream) -> io::Result<TcpSocket> {
        Ok(TcpSocket {
            io: monoio::net::TcpStream::from_std(stream)?,
            nodelay: Cell::new(Later::Set),
            keepalive: Cell::new(Later::Set),
            quickack: Cell::new(Later::Set),
            has_written: Cell::new(false),
        })
    }

    /// Connects to `addr`, by a descriptor that flows may have. Cancel-safe: the attempt ends when
    /// this is dropped.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2) ([`limits::is_own_want`]).
    pub(crate) async fn connect(addr: SocketAddr, first: FirstBytes) -> io::Result<TcpSocket> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        limits::for_flows(&socket)?;
        socket.set_linger(Some(Duration::ZERO))?;
        let with_bytes = first == FirstBytes::Ready && addr.ip().is_loopback();
        if with_bytes {
            // If this fails, the handshake takes a segment more.
            let _refused = set_tcp_quickack(&socket, false);
        }
        let socket = TcpSocket::finish_connecting(socket, addr).await?;
        if with_bytes {
            socket.quickack.set(Later::Unset);
        }
        Ok(socket)
    }

    /// Adopts a connected socket that carries a lane. It keeps little unsent data, so that new data
    /// waits for little.
    pub(crate) fn adopt_carrier(stream: TcpStream) -> io::Result<TcpSocket> {
        set_carrier_options(&stream)?;
        TcpSocket::adopt(stream)
    }

    /// Connects to `addr` for a lane. Cancel-safe: the attempt ends when this is dropped.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2).
    pub(crate) async fn connect_carrier(addr: SocketAddr) -> io::Result<TcpSocket> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        TcpSocket::finish_connecting(socket, addr).await
    }

    async fn finish_connecting(socket: Socket, addr: SocketAddr) -> io::Result<TcpSocket> {
        let mut pending = begin_to_connect(&socket, addr)?;
        if pending && addr.ip().is_loopback() {
            // On loopback the answer is there already, and asking again tells it.
            pending = begin_to_connect(&socket, addr)?;
        }
        let socket = TcpSocket::adopt(socket.into())?;
        socket.nodelay.set(Later::Unset);
        socket.keepalive.set(Later::Unset);
        if pending {
            socket.io.writable(false).await?;
            if let Some(error) = SockRef::from(&super::borrow(&socket.io)).take_error()? {
                return Err(error);
            }
        }
        Ok(socket)
    }

    /// Ends both directions, whoever else holds the descriptor: all waits for the socket are over.
    /// Bytes that were written are still sent.
    pub(crate) fn shut(&self) {
        // This fails only on a socket that is already gone.
        let _gone = rustix::net::shutdown(super::borrow(&self.io), Shutdown::Both);
    }

    /// A descriptor of the same connection for another core. It stays open when this socket is
    /// dropped.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<TcpStream> {
        Ok(SockRef::from(&super::borrow(&self.io)).try_clone()?.into())
    }

    /// Reads what is there: `Ok(0)` is the peer's FIN, `WouldBlock` means wait for
    /// [`TcpSocket::readable`].
    pub(crate) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(super::borrow(&self.io), &mut *into, RecvFlags::DONTWAIT) {
                Ok((read, _)) => return Ok(read),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what fits: `WouldBlock` means wait for [`TcpSocket::writable`].
    pub(crate) fn try_write(&self, from: &[u8]) -> io::Result<usize> {
        self.send(from, SendFlags::empty())
    }

    /// Like [`TcpSocket::try_write`], for bytes behind which the socket is shut down at once: what
    /// fills no segment waits for that, or for 200 ms, so that the FIN needs no segment of its own,
    /// and the peer is woken once.
    pub(crate) fn try_write_last(&self, from: &[u8]) -> io::Result<usize> {
        self.send(from, SendFlags::MORE)
    }

    fn send(&self, from: &[u8], flags: SendFlags) -> io::Result<usize> {
        // Nothing that is the last is held back by Nagle's algorithm.
        if self.nodelay.get() == Later::Unset
            && !flags.contains(SendFlags::MORE)
            && (self.has_written.replace(true) || from.len() > ONE_SEGMENT_BYTES)
        {
            self.nodelay.set(Later::Set);
            // Fails only on a socket that is already gone.
            let _gone = SockRef::from(&super::borrow(&self.io)).set_tcp_nodelay(true);
        }
        loop {
            match rustix::net::send(
                super::borrow(&self.io),
                from,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL | flags,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Waits until a read would not block (data, FIN or an error is there). Cancel-safe.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.readable(false).await
    }

    /// Waits until a write would not block (room or an error is there). Cancel-safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.io.writable(false).await
    }

    /// The error (a reset, mostly) that waits on the socket. It is taken away by this call.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        SockRef::from(&super::borrow(&self.io))
            .take_error()
            .unwrap_or_else(Some)
    }

    /// Sends a FIN; the other direction goes on.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(
            super::borrow(&self.io),
            Shutdown::Write,
        )?)
    }

    /// Makes the close, whenever it comes, a FIN instead of a reset, and what the socket has is
    /// sent before. Right only when both directions have ended well.
    pub(crate) fn close_with_fin(&self) {
        // Fails only on a socket that is already gone.
        let _gone = SockRef::from(&super::borrow(&self.io)).set_linger(None);
    }

    /// The peer has not ended with its first bytes: they are acknowledged at once, as on any new
    /// connection. After a handshake with [`FirstBytes::Ready`] the kernel
    /// expects questions and answers, and lets acknowledgements wait 40 ms for the next question
    /// (`tcp_event_data_sent()`); a peer with Nagle's algorithm would wait for them with the second
    /// small piece of its answer.
    pub(crate) fn acknowledge_at_once(&self) {
        if self.quickack.replace(Later::Set) == Later::Unset {
            // Fails only on a socket that is already gone.
            let _gone = set_tcp_quickack(super::borrow(&self.io), true);
        }
    }

    /// The connection has lived for a while: from now on a peer that vanishes is noticed.
    pub(crate) fn keep_alive(&self) {
        if self.keepalive.replace(Later::Set) == Later::Unset {
            // Fails only on a socket that is already gone.
            let _gone = SockRef::from(&super::borrow(&self.io)).set_tcp_keepalive(&keepalive());
        }
    }

    /// Bytes that were written and that the peer's kernel has not acknowledged.
    pub(crate) fn untaken_bytes(&self) -> u32 {
        super::option::unacknowledged_bytes(super::borrow(&self.io))
    }
}

/// A listening socket of one core.
#[derive(Debug)]
pub(crate) struct Acceptor {
    io: monoio::net::TcpListener,
}

impl Acceptor {
    /// Adopts a listening socket on the current core.
    pub(crate) fn adopt(listener: TcpListener) -> io::Result<Acceptor> {
        listener.set_nonblocking(true)?;
        Ok(Acceptor {
            io: monoio::net::TcpListener::from_std(listener)?,
        })
    }

    /// Waits until a connection can be accepted.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.readable(false).await
    }

    /// Accepts one connection; `WouldBlock` means that there is none now.
    pub(crate) fn try_accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, addr) = rustix::net::acceptfrom_with(super::borrow(&self.io), flags)?;
        let addr = addr.ok_or(io::ErrorKind::InvalidData)?;
        Ok((socket.into(), addr.try_into()?))
    }

    /// A descriptor of the same socket for another process.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        super::borrow(&self.io).try_clone_to_owned()
    }

    /// Stops listening now, whoever else still holds the descriptor (for example a wait that
    /// io_uring has not given up yet). Later visitors are refused; those in the queue are reset.
    pub(crate) fn close(&self) {
        stop_listening(super::borrow(&self.io));
    }
}

/// Does what [`Acceptor::close`] does, for a socket that no core has adopted.
pub(crate) fn stop_listening(listener: impl AsFd) {
    // This fails only on a socket that is broken already, which takes no visitors either.
    let _broken = rustix::net::shutdown(listener, Shutdown::Both);
}

/// Sets the options of every flow's socket; on a listening socket, for those that it accepts. A
/// socket that [`TcpSocket::connect`] makes gets some of them later.
///
/// Nagle's algorithm is switched off: the tunnel forwards bytes when they come and must not add a
/// delay of its own.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(super) fn set_flow_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_keepalive(&keepalive())
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Begins to connect, or asks for the result. Returns true if that is not known yet.
fn begin_to_connect(socket: &Socket, addr: SocketAddr) -> io::Result<bool> {
    match socket.connect(&SockAddr::from(addr)) {
        Ok(()) => Ok(false),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY) => Ok(true),
            _ => Err(error),
        },
    }
}

/// Sets the options of a socket that carries a lane. Closing it is no reset, because QUIC inside
/// tells whether anything is missing.
fn set_carrier_options(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(None)?;
    socket.set_tcp_user_timeout(Some(CARRIER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(CARRIER_TIMEOUT)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    super::option::set_int(
        stream,
        libc::IPPROTO_TCP,
        libc::TCP_NOTSENT_LOWAT,
        CARRIER_UNSENT_BYTES_MAX,
    )
}

/// Resets a connection that was accepted but cannot be served.
pub(crate) fn refuse(stream: TcpStream) {
    let _gone = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};

    use crate::sys::bind;

    use super::*;

    #[test]
    fn a_visitors_socket_has_the_options_of_a_flow_from_its_listener_and_closes_by_a_reset() {
        let any = "127.0.0.1:0".parse().expect("literal");
        let listener = bind::tcp_reuseport(any).expect("bind");
        let addr = listener.local_addr().expect("bound");
        let mut visitor = TcpStream::connect(addr).expect("connected");
        // It never blocks, because the connection is in the queue when connect(2) returns.
        let (accepted, _) = listener.accept().expect("queued");
        let options = SockRef::from(&accepted);
        assert_eq!(options.linger().expect("linger"), Some(Duration::ZERO));
        assert!(options.tcp_nodelay().expect("nodelay"));
        assert!(options.keepalive().expect("keepalive"));
        let idle = options.tcp_keepalive_time().expect("keepalive");
        assert_eq!(idle, KEEPALIVE_IDLE);
        drop(accepted);
        let error = visitor.read(&mut [0; 1]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    fn in_a_runtime<T>(future: impl Future<Output = T>) -> T {
        let runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build();
        runtime.expect("a runtime").block_on(future)
    }

    /// Runs `test` on a socket that has connected to a service, and on the service's end.
    fn with_connected(test: impl FnOnce(TcpSocket, TcpStream)) {
        let service = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = service.local_addr().expect("bound");
        in_a_runtime(async move {
            let socket = TcpSocket::connect(addr, FirstBytes::Unknown)
                .await
                .expect("connected");
            let (accepted, _) = service.accept().expect("queued");
            test(socket, accepted);
        });
    }

    #[test]
    fn a_connection_to_a_service_has_nodelay_before_it_matters_and_keepalive_once_it_has_lived() {
        with_connected(|socket, _service| {
            let fd = crate::sys::borrow(&socket.io);
            let options = SockRef::from(&fd);
            let nodelay = || options.tcp_nodelay().expect("nodelay");
            assert_eq!(options.linger().expect("linger"), Some(Duration::ZERO));
            socket.try_write(b"a request").expect("written");
            assert!(!nodelay(), "nothing is on its way that it could wait for");
            socket.try_write(b"another").expect("written");
            assert!(nodelay());
            assert!(!options.keepalive().expect("keepalive"));
            socket.keep_alive();
            assert!(options.keepalive().expect("keepalive"));
            let idle = options.tcp_keepalive_time().expect("keepalive");
            assert_eq!(idle, KEEPALIVE_IDLE);
        });
    }

    #[test]
    fn a_first_write_of_several_segments_has_nodelay() {
        with_connected(|socket, _service| {
            socket
                .try_write(&[0; ONE_SEGMENT_BYTES + 1])
                .expect("written");
            let fd = crate::sys::borrow(&socket.io);
            assert!(SockRef::from(&fd).tcp_nodelay().expect("nodelay"));
        });
    }

    /// Whether `attempt` succeeds in one of ten tries: what the kernel holds back for 40 ms or more
    /// is seen to be held back, and what it does at once to be done, unless the machine stands
    /// still each time.
    fn in_one_of_ten(attempt: impl Fn() -> bool) -> bool {
        (0..10).any(|_| attempt())
    }

    fn is_not_there_yet<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Connects to a service, writes, and runs `test` on both ends.
    fn with_asked(test: impl FnOnce(&TcpSocket, TcpStream)) {
        let service = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = service.local_addr().expect("bound");
        in_a_runtime(async move {
            let connecting = TcpSocket::connect(addr, FirstBytes::Ready);
            let socket = connecting.await.expect("connected");
            socket.try_write(b"a request").expect("written");
            let (mut accepted, _) = service.accept().expect("it comes with the bytes");
            accepted.read_exact(&mut [0; 9]).expect("there");
            test(&socket, accepted);
        });
    }

    #[test]
    fn a_service_gets_a_connection_together_with_the_bytes_that_are_ready() {
        let is_held_back = |first| {
            let service = TcpListener::bind("127.0.0.1:0").expect("bind");
            service.set_nonblocking(true).expect("nonblocking");
            let addr = service.local_addr().expect("bound");
            in_a_runtime(async move {
                let _socket = TcpSocket::connect(addr, first).await.expect("connected");
                is_not_there_yet(service.accept())
            })
        };
        assert!(in_one_of_ten(|| is_held_back(FirstBytes::Ready)));
        // A service may speak first.
        assert!(in_one_of_ten(|| !is_held_back(FirstBytes::Unknown)));
        with_asked(|_, _| {});
    }

    #[test]
    fn the_last_bytes_leave_with_the_fin() {
        let are_held_back = || {
            let held_back = Cell::new(false);
            with_asked(|socket, mut service| {
                socket.try_write_last(b"the last").expect("written");
                let mut bytes = [0; 32];
                service.set_nonblocking(true).expect("nonblocking");
                held_back.set(is_not_there_yet(service.read(&mut bytes)));
                socket.shutdown_write().expect("connected");
                if held_back.get() {
                    service.set_nonblocking(false).expect("blocking");
                    assert_eq!(service.read(&mut bytes).expect("they come"), 8);
                    assert_eq!(service.read(&mut bytes).expect("the FIN"), 0);
                }
            });
            held_back.get()
        };
        assert!(in_one_of_ten(are_held_back));
    }

    #[test]
    fn a_service_with_nagles_algorithm_does_not_wait_with_the_second_piece_of_its_answer() {
        // Whether it comes at once.
        let second_piece = |acknowledges: bool| {
            let comes = Cell::new(false);
            with_asked(|socket, mut service| {
                let mut byte = [0; 1];
                service.write_all(b"1").expect("written");
                if is_not_there_yet(socket.try_read(&mut byte)) {
                    return;
                }
                if acknowledges {
                    socket.acknowledge_at_once();
                }
                service.write_all(b"2").expect("written");
                comes.set(socket.try_read(&mut byte).is_ok());
            });
            comes.get()
        };
        assert!(in_one_of_ten(|| second_piece(true)));
        assert!(
            in_one_of_ten(|| !second_piece(false)),
            "else it is not needed"
        );
    }

    #[test]
    fn a_port_where_nobody_listens_on_this_machine_refuses() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = taken.local_addr().expect("bound");
        drop(taken);
        let connecting = TcpSocket::connect(addr, FirstBytes::Ready);
        let error = in_a_runtime(connecting).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
