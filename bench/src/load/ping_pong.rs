//! Ping-pong: one small message at a time, there and back. The shortest time that a tunnel can
//! have.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::latency::{Period, Times};
use super::wire::{self, Command, MESSAGE_BYTES, PacketHeader, PacketKind};

/// How long an answer may take before the connection counts as dead; a traced tunnel is slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long a UDP answer may take before it counts as lost.
const UDP_ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A visitor with a connection, or with a socket of its own.
pub(crate) trait RoundTrip: Send {
    /// One message, there and back; `None` if no answer came in time.
    fn round_trip(&mut self) -> io::Result<Option<Duration>>;

    /// Over and over. What happens during the warm-up is not recorded.
    fn repeat(&mut self, period: Period) -> io::Result<Times> {
        let mut recording = period.begin();
        while let Some(began) = recording.next() {
            let time = self.round_trip()?;
            recording.note(began, time);
        }
        Ok(recording.times)
    }
}

#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    number: u64,
}

impl Tcp {
    /// Connects; with the command [`Command::PingPong`] or [`Command::Echo`].
    pub(crate) fn open(visit: SocketAddr, command: Command) -> io::Result<Self> {
        let stream = wire::connect_for(command, visit, ANSWER_LIMIT)?;
        Ok(Self { stream, number: 0 })
    }
}

impl RoundTrip for Tcp {
    fn round_trip(&mut self) -> io::Result<Option<Duration>> {
        let mut message = [0x5a; MESSAGE_BYTES];
        let mut answer = [0; MESSAGE_BYTES];
        message[..8].copy_from_slice(&self.number.to_be_bytes());
        self.number += 1;
        let sent = Instant::now();
        self.stream.write_all(&message)?;
        self.stream.read_exact(&mut answer)?;
        let time = sent.elapsed();
        if answer != message {
            return Err(io::Error::other("an answer is not what was sent"));
        }
        Ok(Some(time))
    }
}

#[derive(Debug)]
pub(crate) struct Udp {
    socket: UdpSocket,
    number: u64,
}

impl Udp {
    /// With a port of its own.
    pub(crate) fn open(visit: SocketAddr) -> io::Result<Self> {
        let socket = wire::udp_visitor(visit, UDP_ANSWER_LIMIT)?;
        Ok(Self { socket, number: 0 })
    }
}

impl RoundTrip for Udp {
    fn round_trip(&mut self) -> io::Result<Option<Duration>> {
        let mut message = [0x5a; MESSAGE_BYTES];
        let mut answer = [0; MESSAGE_BYTES];
        PacketHeader {
            kind: PacketKind::Echo,
            run: 0,
            number: self.number,
        }
        .write(&mut message);
        self.number += 1;
        let sent = Instant::now();
        self.socket.send(&message)?;
        loop {
            match self.socket.recv(&mut answer) {
                Ok(_) if answer == message => return Ok(Some(sent.elapsed())),
                // A late answer to an earlier message was counted as lost already.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}
