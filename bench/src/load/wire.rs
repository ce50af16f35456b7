//! What visitors and the service say to each other.
//!
//! The first byte of a TCP connection tells the service what to do with the rest of it. A UDP
//! packet begins with a kind, a run and a number, so that what a former run left on the way is not
//! counted.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Length of a small message, in bytes.
pub const MESSAGE_BYTES: usize = 64;

/// Length of the buffers that bulk is written from and read into, in bytes. Larger ones gain
/// nothing on loopback.
pub const BULK_BUFFER_BYTES: usize = 256 * 1_024;

/// What the service does with a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send back what comes.
    Echo,
    /// The same on a thread of its own, which answers sooner but costs a thread.
    PingPong,
    /// Count what comes and throw it away.
    Discard,
    /// Send as much as possible.
    Source,
}

impl Command {
    /// Its byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::Echo => b'E',
            Self::PingPong => b'P',
            Self::Discard => b'D',
            Self::Source => b'S',
        }
    }

    /// The command of a byte.
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Echo, Self::PingPong, Self::Discard, Self::Source]
            .into_iter()
            .find(|command| command.byte() == byte)
    }
}

/// A visitor who waits so long for anything at all.
pub fn connect(visit: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&visit, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// The same, who has told the service what to do.
pub fn connect_for(
    command: Command,
    visit: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let mut stream = connect(visit, patience)?;
    stream.write_all(&[command.byte()])?;
    Ok(stream)
}

/// The address of any port on any interface, of the same family.
pub fn any_port(visit: SocketAddr) -> SocketAddr {
    match visit {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// A UDP visitor who waits so long for a packet.
pub fn udp_visitor(visit: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any_port(visit))?;
    socket.connect(visit)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// What the service does with a UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// Count it.
    Count,
    /// Send it back.
    Echo,
}

/// The beginning of a UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// What to do with it.
    pub kind: PacketKind,
    /// Which run it belongs to.
    pub run: u16,
    /// The number of the packet in its run, from 0.
    pub number: u64,
}

impl PacketHeader {
    /// Its length in bytes: the shortest packet.
    pub const BYTES: usize = 11;

    /// Writes it to the front of a packet.
    ///
    /// # Panics
    ///
    /// If the packet is shorter than the header.
    pub fn write(self, packet: &mut [u8]) {
        packet[0] = match self.kind {
            PacketKind::Count => b'C',
            PacketKind::Echo => b'E',
        };
        packet[1..3].copy_from_slice(&self.run.to_be_bytes());
        packet[3..Self::BYTES].copy_from_slice(&self.number.to_be_bytes());
    }

    /// Reads it from the front of a packet; `None` if there is none.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let (&kind, rest) = packet.split_first()?;
        let (run, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        Some(Self {
            kind: match kind {
                b'C' => PacketKind::Count,
                b'E' => PacketKind::Echo,
                _ => return None,
            },
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
        assert_eq!(Command::of(b'S'), Some(Command::Source));
        assert_eq!(
            Command::of(Command::PingPong.byte()),
            Some(Command::PingPong)
        );
        assert_eq!(Command::of(b'G'), None);
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
        assert_eq!(PacketHeader::read(&packet[1..]), None);
        assert_eq!(PacketHeader::read(&[0; 40]), None);
        assert_eq!(PacketHeader::read(&[]), None);
    }
}
