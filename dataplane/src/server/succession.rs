//! Handover between processes on the server: the sockets that the predecessor lends, and the
//! packets that the successor passes on.
//!
//! Both processes have the same sockets. Only the successor reads those for QUIC, so a packet for a
//! lane of the predecessor comes to the successor, which does not know the lane. It passes the
//! packet on, and the predecessor answers from its own descriptor.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::Socket;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SocketUse {
    /// QUIC packets of clients.
    Quic,
    /// Connections of TCP visitors.
    Tcp,
    /// Datagrams of UDP visitors.
    Udp,
}

/// A socket that a core lends.
#[derive(Debug)]
pub(crate) struct Lent {
    /// What the socket is for.
    pub(crate) used_for: SocketUse,
    /// The address that it is bound to, as configured.
    pub(crate) address: SocketAddr,
    /// The core that has it.
    pub(crate) core: usize,
    /// A descriptor for the successor.
    pub(crate) fd: OwnedFd,
}

/// The lent sockets that a successor has taken, by use and address; each entry stands for the
/// sockets of all cores.
#[derive(Debug, Default)]
pub(crate) struct Taken(HashSet<(SocketUse, SocketAddr)>);

impl Taken {
    /// Whether a successor has taken the sockets of this use at this address.
    pub(crate) fn has(&self, used_for: SocketUse, address: SocketAddr) -> bool {
        self.0.contains(&(used_for, address))
    }
}

impl FromIterator<(SocketUse, SocketAddr)> for Taken {
    fn from_iter<T: IntoIterator<Item = (SocketUse, SocketAddr)>>(taken: T) -> Taken {
        Taken(taken.into_iter().collect())
    }
}

/// A QUIC packet on its way to the predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassedOn<'a> {
    /// The core whose socket received the packet, which is the core of its lane.
    pub(crate) core: usize,
    /// The door's address.
    pub(crate) door: SocketAddr,
    /// The sender's address.
    pub(crate) from: SocketAddr,
    /// The local address that it was sent to.
    pub(crate) to_ip: Option<IpAddr>,
    /// The packet itself.
    pub(crate) packet: &'a [u8],
}

const IP_BYTES: usize = 17;
const ADDRESS_BYTES: usize = IP_BYTES + 2 + 4;

/// Bytes before the packet: the core, two addresses, and one more without its port.
pub(crate) const PASSED_ON_HEAD_BYTES: usize = 2 + 2 * ADDRESS_BYTES + IP_BYTES;

fn put_ip(into: &mut Vec<u8>, ip: Option<IpAddr>) {
    let (kind, octets) = match ip {
        None => (0, [0; 16]),
        Some(IpAddr::V4(ip)) => (4, ip.to_ipv6_mapped().octets()),
        Some(IpAddr::V6(ip)) => (6, ip.octets()),
    };
    into.push(kind);
    into.extend(octets);
}

fn put_address(into: &mut Vec<u8>, address: SocketAddr) {
    put_ip(into, Some(address.ip()));
    into.extend(address.port().to_be_bytes());
    let scope = match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    into.extend(scope.to_be_bytes());
}

/// Takes bytes from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn ip(&mut self) -> Option<Option<IpAddr>> {
        let [kind] = self.take()?;
        let ip = Ipv6Addr::from(self.take::<16>()?);
        match kind {
            0 => Some(None),
            4 => Some(Some(ip.to_canonical())),
            6 => Some(Some(ip.into())),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = self.ip()??;
        let port = u16::from_be_bytes(self.take()?);
        let scope = u32::from_be_bytes(self.take()?);
        Some(match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        })
    }
}

impl<'a> PassedOn<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PASSED_ON_HEAD_BYTES + self.packet.len());
        // A process has 256 cores at most.
        bytes.extend(u16::try_from(self.core).unwrap_or(u16::MAX).to_be_bytes());
        put_address(&mut bytes, self.door);
        put_address(&mut bytes, self.from);
        put_ip(&mut bytes, self.to_ip);
        bytes.extend(self.packet);
        bytes
    }

    /// Reads what [`Predecessor::pass_on`] has sent; `None` if the bytes are something else.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<PassedOn<'a>> {
        let mut reader = Reader(bytes);
        Some(PassedOn {
            core: u16::from_be_bytes(reader.take()?).into(),
            door: reader.address()?,
            from: reader.address()?,
            to_ip: reader.ip()?,
            packet: reader.0,
        })
    }
}

/// The process that had the sockets before, while it lets its flows finish.
#[derive(Debug)]
pub(crate) struct Predecessor {
    socket: Socket,
    is_gone: AtomicBool,
}

impl Predecessor {
    /// The predecessor at the other end of this socket.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub(crate) fn at(socket: Socket) -> io::Result<Predecessor> {
        socket.set_nonblocking(true)?;
        Ok(Predecessor {
            socket,
            is_gone: AtomicBool::new(false),
        })
    }

    /// Whether the predecessor is still there to take packets.
    pub(crate) fn is_there(&self) -> bool {
        !self.is_gone.load(Ordering::Relaxed)
    }

    /// Passes a packet on. `None` if the predecessor is gone; false if the packet was dropped
    /// because the predecessor takes packets too slowly.
    pub(crate) fn pass_on(&self, packet: &PassedOn<'_>) -> Option<bool> {
        if !self.is_there() {
            return None;
        }
        let bytes = packet.encode();
        let sent = loop {
            match self.socket.send(&bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => break sent,
            }
        };
        match sent {
            Ok(_) => Some(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(false),
            Err(_) => {
                self.is_gone.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn what_is_passed_on_arrives_as_it_was_whatever_the_addresses() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        let predecessor = Predecessor::at(one).expect("a socket");
        for (from, to_ip) in [
            ("192.0.2.1:1", None),
            ("192.0.2.1:65535", Some("198.51.100.1")),
            ("[::ffff:192.0.2.1]:1", Some("::ffff:198.51.100.1")),
            ("[fe80::1%7]:2", Some("2001:db8::1")),
        ] {
            let passed = PassedOn {
                core: 255,
                door: address("[::]:8443"),
                from: address(from),
                to_ip: to_ip.map(|ip| ip.parse().expect("literal")),
                packet: &[7; 16_383],
            };
            assert_eq!(predecessor.pass_on(&passed), Some(true));
            let mut bytes = vec![0; 1 << 16];
            let length = io::Read::read(&mut &other, &mut bytes).expect("received");
            assert_eq!(PassedOn::decode(&bytes[..length]), Some(passed));
            for cut in 0..PASSED_ON_HEAD_BYTES {
                assert_eq!(PassedOn::decode(&bytes[..cut]), None);
            }
        }
        drop(other);
        let passed = PassedOn {
            core: 0,
            door: address("[::]:1"),
            from: address("[::]:1"),
            to_ip: None,
            packet: b"x",
        };
        assert_eq!(predecessor.pass_on(&passed), None);
    }
}
