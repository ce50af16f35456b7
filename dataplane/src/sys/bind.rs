//! Binding: every listening socket of every core, with the options that it needs.
//!
//! Sockets are bound once, from one place, in core order, because a reuseport group numbers its
//! members by the order in which they were bound, and steering relies on it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::tcp::set_flow_options;

/// Receive and send buffer that is asked for on QUIC and UDP traffic sockets, in bytes.
///
/// One GRO batch is up to 64 KB and a core may be away for a millisecond at several Gbit/s: 4 MiB
/// holds about 8 ms of 4 Gbit/s. It is also the default `net.core.rmem_max` of current
/// distributions' tuned profiles.
pub(crate) const UDP_BUFFER_BYTES: usize = 4 << 20;

/// How long to wait for an address that is in use.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const RELEASE_POLL: Duration = Duration::from_millis(20);

/// Length of the accept queue; the kernel clamps it to `net.core.somaxconn`.
const ACCEPT_BACKLOG: i32 = 4096;

/// What the kernel has granted of [`UDP_BUFFER_BYTES`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct GrantedBuffers {
    /// Receive buffer in bytes, as far as payload can use it (the kernel reports twice what was
    /// set).
    pub(crate) receive_bytes: usize,
    /// Send buffer in bytes.
    pub(crate) send_bytes: usize,
}

/// Fails if `addr` is already in use by another program (or another instance of this one).
///
/// An address in use is tried again for [`RELEASE_TIMEOUT`]. If a process was killed with io_uring
/// requests in flight, the kernel closes its sockets a moment after the process is gone, and its
/// successor must not fail for that.
///
/// Any process of the same user can join a reuseport group silently, and would get half of the
/// traffic. A plain bind without `SO_REUSEPORT` finds that out first.
pub(crate) fn probe_free(addr: SocketAddr, tcp: bool) -> io::Result<()> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match probe_once(addr, tcp) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(RELEASE_POLL);
            }
            result => return result,
        }
    }
}

fn probe_once(addr: SocketAddr, tcp: bool) -> io::Result<()> {
    let socket = if tcp {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket
    } else {
        Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?
    };
    dual_stack(&socket, addr)?;
    socket.bind(&SockAddr::from(addr))
}

/// Binds a UDP socket that shares its port with the other cores' sockets.
pub(crate) fn udp_reuseport(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    dual_stack(&socket, addr)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket.into())
}

/// Binds a UDP socket on a free port of the wildcard address of `peer`'s family, for a client's
/// side of a lane.
pub(crate) fn udp_towards(peer: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(any_towards(peer))
}

/// Whether this machine has IPv6, even if it has no IPv6 address.
pub(crate) fn has_ipv6() -> bool {
    !Socket::new(Domain::IPV6, Type::DGRAM, None).is_err_and(|error| is_family_missing(&error))
}

/// Whether a socket cannot be made because this machine has no such address family
/// (`ipv6.disable=1`, or a sandbox).
pub(crate) fn is_family_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// The wildcard address of `peer`'s family, with a free port.
pub(crate) fn any_towards(peer: SocketAddr) -> SocketAddr {
    if peer.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    }
}

/// Binds a listening TCP socket for visitors, which shares its port with the other cores' sockets.
pub(crate) fn tcp_reuseport(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    dual_stack(&socket, addr)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    set_flow_options(&socket)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(ACCEPT_BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Binds a listening TCP socket that shares its port with nobody.
pub(crate) fn tcp_alone(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    dual_stack(&socket, addr)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(ACCEPT_BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Raises the socket's buffers as far as the kernel allows; returns what was granted.
pub(crate) fn raise_udp_buffers(socket: &UdpSocket) -> io::Result<GrantedBuffers> {
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
    socket.set_send_buffer_size(UDP_BUFFER_BYTES)?;
    // The kernel doubles the value for its own bookkeeping and reports the doubled one (socket(7)).
    Ok(GrantedBuffers {
        receive_bytes: socket.recv_buffer_size()? / 2,
        send_bytes: socket.send_buffer_size()? / 2,
    })
}

/// Lets `[::]` accept IPv4 as well, as users of Go's listeners expect.
fn dual_stack(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_taken_by_a_reuseport_group_is_reported_as_taken() {
        let first = udp_reuseport("127.0.0.1:0".parse().expect("literal")).expect("bind");
        let addr = first.local_addr().expect("bound");
        let error = probe_free(addr, false).expect_err("the group holds the port");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(udp_reuseport(addr).expect("a second member may join"));
        drop(first);
        probe_free(addr, false).expect("free again");
    }

    #[test]
    fn a_listening_tcp_port_is_reported_as_taken() {
        let first = tcp_reuseport("127.0.0.1:0".parse().expect("literal")).expect("bind");
        let addr = first.local_addr().expect("bound");
        let error = probe_free(addr, true).expect_err("someone listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
