//! What visitors and the service say to each other.
//!
//! The first byte of a TCP connection tells the service what to do with the rest of it. A UDP
//! packet begins with a kind, a run and a number, so that what a former run left on the way is not
//! counted.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Length of a small message, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 64;

/// Length of the buffers that bulk is written from and read into, in bytes. Larger ones gain
/// nothing on loopback.
const BULK_BUFFER_BYTES: usize = 256 * 1_024;

/// What the service does with a TCP connection, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Command {
    Echo = b'E',
    /// The same on a thread of its own, which answers sooner but costs a thread.
    PingPong = b'P',
    /// Count what comes and throw it away.
    Discard = b'D',
    /// Send as much as possible.
    Source = b'S',
}

impl Command {
    pub(crate) const fn byte(self) -> u8 {
        self as u8
    }

    pub(crate) fn of(byte: u8) -> Option<Self> {
        let mut all = [Self::Echo, Self::PingPong, Self::Discard, Self::Source].into_iter();
        all.find(|command| command.byte() == byte)
    }
}

/// Writes until it cannot.
pub(crate) fn write_bulk(mut stream: TcpStream) -> io::Result<()> {
    let buffer = vec![0x5a; BULK_BUFFER_BYTES];
    loop {
        stream.write_all(&buffer)?;
    }
}

/// Reads until there is no more, and counts.
pub(crate) fn read_bulk(mut stream: TcpStream, bytes: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => bytes.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}

/// A visitor who waits at most `patience` for anything at all.
pub(crate) fn connect(visit: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&visit, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// The same, who has told the service what to do.
pub(crate) fn connect_for(
    command: Command,
    visit: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let mut stream = connect(visit, patience)?;
    stream.write_all(&[command.byte()])?;
    Ok(stream)
}

/// The address of any port on any interface, of the same family.
pub(crate) fn any_port(visit: SocketAddr) -> SocketAddr {
    match visit {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// A UDP visitor who waits at most `patience` for a packet.
pub(crate) fn udp_visitor(visit: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any_port(visit))?;
    socket.connect(visit)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// What the service does with a UDP packet: count it or send it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PacketKind {
    Count = b'C',
    Echo = b'E',
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketHeader {
    pub(crate) kind: PacketKind,
    pub(crate) run: u16,
    /// The number of the packet in its run, from 0.
    pub(crate) number: u64,
}

impl PacketHeader {
    /// The length of the header in bytes: the shortest packet.
    pub(crate) const BYTES: usize = 11;

    /// Writes it to the front of a packet.
    ///
    /// # Panics
    ///
    /// If the packet is shorter than the header.
    pub(crate) fn write(self, packet: &mut [u8]) {
        packet[0] = self.kind as u8;
        packet[1..3].copy_from_slice(&self.run.to_be_bytes());
        packet[3..Self::BYTES].copy_from_slice(&self.number.to_be_bytes());
    }

    /// Reads it from the front of a packet; `None` if there is none.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let (&byte, rest) = packet.split_first()?;
        let mut kinds = [PacketKind::Count, PacketKind::Echo].into_iter();
        let (run, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        Some(Self {
            kind: kinds.find(|kind| *kind as u8 == byte)?,
            run: u16::from_be_bytes(*run),
            number: u64::from_be_bytes(*number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_by_their_bytes() {
        let byte = Command::PingPong.byte();
        for (byte, wanted) in [
            (b'S', Some(Command::Source)),
            (byte, Some(Command::PingPong)),
            (b'G', None),
        ] {
            assert_eq!(Command::of(byte), wanted);
        }
    }

    #[test]
    fn packets_keep_their_header() {
        let header = PacketHeader {
            kind: PacketKind::Echo,
            run: 300,
            number: u64::MAX - 1,
        };
        let mut packet = [0; PacketHeader::BYTES];
        header.write(&mut packet);
        assert_eq!(PacketHeader::read(&packet), Some(header));
        for wrong in [&packet[1..], &[0; 40], &[]] {
            assert_eq!(PacketHeader::read(wrong), None);
        }
    }
}
