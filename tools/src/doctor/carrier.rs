//! What carries the packets of the doctor's connection: a UDP socket, or a TLS connection.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt;

use super::over_tls::Carrier as TlsCarrier;

/// Bytes of the headers of IP and UDP.
const HEADERS_V4_BYTES: usize = 20 + 8;
const HEADERS_V6_BYTES: usize = 40 + 8;

/// What carries the packets of a connection.
pub(super) enum Carrier {
    Udp(UdpSocket),
    Tls(TlsCarrier),
}

impl Carrier {
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Carrier::Udp(socket) => socket.local_addr(),
            Carrier::Tls(tls) => tls.local_addr(),
        }
    }

    pub(super) fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self {
            Carrier::Udp(socket) => socket.send(packet).map(|_| ()),
            Carrier::Tls(tls) => tls.send(packet),
        }
    }

    /// Receives one packet, and waits for it no longer than this.
    pub(super) fn receive(&mut self, wait: Duration) -> io::Result<Vec<u8>> {
        // Zero would mean for ever.
        let wait = wait.max(Duration::from_millis(1));
        match self {
            Carrier::Udp(socket) => {
                socket.set_read_timeout(Some(wait))?;
                let mut bytes = vec![0; 1 << 16];
                let length = socket.recv(&mut bytes)?;
                bytes.truncate(length);
                Ok(bytes)
            }
            Carrier::Tls(tls) => tls.receive(wait),
        }
    }
}

/// A socket whose packets are never fragmented by IP, like those of a tunnel, and which gets the
/// network's ICMP errors about them.
pub(super) fn socket(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    never_fragment(&socket, peer)?;
    socket.connect(peer)?;
    Ok(socket)
}

/// Makes the kernel refuse packets to `peer` that it would have to fragment.
pub(super) fn never_fragment(socket: impl std::os::fd::AsFd, peer: SocketAddr) -> io::Result<()> {
    use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
    match peer {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

/// The largest UDP payload that leaves this host towards `peer` now.
pub(super) fn leaves(peer: SocketAddr) -> Option<usize> {
    payload_that_leaves(&socket(peer).ok()?, peer)
}

/// The payload that the interface carries, or less if a router has said so.
pub(super) fn payload_that_leaves(socket: &UdpSocket, peer: SocketAddr) -> Option<usize> {
    let (mtu, headers) = match peer {
        SocketAddr::V4(_) => (sockopt::ip_mtu(socket).ok()?, HEADERS_V4_BYTES),
        SocketAddr::V6(_) => (sockopt::ipv6_mtu(socket).ok()?, HEADERS_V6_BYTES),
    };
    usize::try_from(mtu).ok()?.checked_sub(headers)
}

pub(super) fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// The kind of an error, where a missing address family is a missing route.
pub(super) fn kind_of(error: &io::Error) -> ErrorKind {
    if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) {
        return ErrorKind::NetworkUnreachable;
    }
    error.kind()
}
