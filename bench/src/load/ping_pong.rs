//! Ping-pong: one small message at a time, there and back. The shortest time that a tunnel can
//! have.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::latency::Times;
use super::wire::{self, Command, MESSAGE_BYTES, PacketHeader, PacketKind};

/// How long an answer may take before the connection counts as dead; a traced tunnel is slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long a UDP answer may take before it counts as lost.
const UDP_ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// One TCP connection.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    number: u64,
}

impl Tcp {
    /// Connects.
    pub fn open(visit: SocketAddr) -> io::Result<Self> {
        let stream = wire::connect_for(Command::PingPong, visit, ANSWER_LIMIT)?;
        Ok(Self { stream, number: 0 })
    }

    /// One message, there and back.
    pub fn round_trip(&mut self) -> io::Result<Duration> {
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
        Ok(time)
    }
}

/// One UDP socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    number: u64,
}

impl Udp {
    /// With a port of its own.
    pub fn open(visit: SocketAddr) -> io::Result<Self> {
        let socket = wire::udp_visitor(visit, UDP_ANSWER_LIMIT)?;
        Ok(Self { socket, number: 0 })
    }

    /// One packet, there and back; `None` if no answer came in time.
    pub fn round_trip(&mut self) -> io::Result<Option<Duration>> {
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

/// Over one TCP connection. What happens during the warm-up is not recorded.
pub fn tcp(visit: SocketAddr, warm_up: Duration, measure: Duration) -> io::Result<Times> {
    let mut visitor = Tcp::open(visit)?;
    let (times, _) = repeated(warm_up, measure, || visitor.round_trip().map(Some))?;
    Ok(times)
}

/// Over UDP. Returns the times and how many answers were lost.
pub fn udp(visit: SocketAddr, warm_up: Duration, measure: Duration) -> io::Result<(Times, u64)> {
    let mut visitor = Udp::open(visit)?;
    repeated(warm_up, measure, || visitor.round_trip())
}

fn repeated(
    warm_up: Duration,
    measure: Duration,
    mut round_trip: impl FnMut() -> io::Result<Option<Duration>>,
) -> io::Result<(Times, u64)> {
    let (mut times, mut lost) = (Times::new(), 0);
    let recording = Instant::now() + warm_up;
    let end = recording + measure;
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok((times, lost));
        }
        match round_trip()? {
            _ if now < recording => {}
            Some(time) => times.record(time),
            None => lost += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::place::Place;
    use crate::load::service::Service;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn tcp_messages_come_back() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let times = tcp(service.address, Duration::ZERO, SHORT).expect("times");
        assert!(times.count() > 0 && times.max_us() > 0.0);
    }

    #[test]
    fn udp_messages_come_back() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let (times, _lost) = udp(service.address, Duration::ZERO, SHORT).expect("times");
        assert!(times.count() > 0 && times.max_us() > 0.0);
    }
}
