//! Ping-pong: one small message at a time, there and back. The shortest time that a tunnel can
//! have.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::latency::Times;
use super::wire::{Command, MESSAGE_BYTES, PacketHeader, PacketKind};

/// How long an answer may take before the connection counts as dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a UDP answer may take before it counts as lost.
const UDP_ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Over one TCP connection. What happens during the warm-up is not recorded.
pub fn tcp(visit: SocketAddr, warm_up: Duration, measure: Duration) -> io::Result<Times> {
    let mut stream = TcpStream::connect(visit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&[Command::PingPong.byte()])?;
    let mut number = 0_u64;
    let mut message = [0x5a; MESSAGE_BYTES];
    let mut answer = [0; MESSAGE_BYTES];
    let mut times = Times::new();
    let recording = Instant::now() + warm_up;
    let end = recording + measure;
    loop {
        message[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        if sent >= end {
            return Ok(times);
        }
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        let time = sent.elapsed();
        if answer != message {
            return Err(io::Error::other("an answer is not what was sent"));
        }
        if sent >= recording {
            times.record(time);
        }
        number += 1;
    }
}

/// Over UDP. Returns the times and how many answers were lost.
pub fn udp(visit: SocketAddr, warm_up: Duration, measure: Duration) -> io::Result<(Times, u64)> {
    let local = if visit.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(local)?;
    socket.connect(visit)?;
    socket.set_read_timeout(Some(UDP_ANSWER_LIMIT))?;
    let mut header = PacketHeader {
        kind: PacketKind::Echo,
        run: 0,
        number: 0,
    };
    let mut message = [0x5a; MESSAGE_BYTES];
    let mut answer = [0; MESSAGE_BYTES];
    let mut times = Times::new();
    let mut lost = 0;
    let recording = Instant::now() + warm_up;
    let end = recording + measure;
    loop {
        header.write(&mut message);
        let sent = Instant::now();
        if sent >= end {
            return Ok((times, lost));
        }
        socket.send(&message)?;
        let answered = loop {
            match socket.recv(&mut answer) {
                // A late answer to an earlier message was counted as lost already.
                Ok(_) if answer[..PacketHeader::BYTES] != message[..PacketHeader::BYTES] => {}
                Ok(_) => break true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) => return Err(error),
            }
        };
        if sent >= recording {
            if answered {
                times.record(sent.elapsed());
            } else {
                lost += 1;
            }
        }
        header.number += 1;
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
