//! Loads whose every byte is compared: a long echo, UDP questions that are repeated until they are
//! answered, and short visitors. They judge whether a tunnel is right, not whether it is fast.
//!
//! An error that is not one of I/O says what came back that was not sent: see [`io_kind`].

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::wire::{self, Command, PacketHeader, PacketKind};

/// Bytes written and read at a time.
const BLOCK_BYTES: usize = 64 << 10;

/// Sizes of UDP questions, in turn, in bytes of payload: from a header alone to what needs several
/// packets.
const UDP_SIZES: [usize; 8] = [
    PacketHeader::BYTES,
    64,
    200,
    512,
    1_150,
    1_400,
    3_000,
    8_192,
];

/// UDP questions under way at a time: few enough that no buffer on the way is filled by them.
const UDP_WINDOW: usize = 16;

/// Bytes that a short visitor sends and wants back.
const VISIT_BYTES: usize = 700;

/// What the system said, if it did; else what came back is not what was sent.
pub(crate) fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    error.downcast_ref().map(io::Error::kind)
}

/// Sends `bytes` to the echo service and reads them back meanwhile, up to a clean end. `seen`
/// counts what came back.
///
/// # Errors
/// If a byte is missing, wrong or too many, or nothing passes for `patience`.
pub(crate) fn echo(
    visit: SocketAddr,
    bytes: u64,
    seed: u64,
    patience: Duration,
    seen: &AtomicU64,
) -> Result<()> {
    let stream = wire::connect(visit, patience).context("connecting")?;
    let writer = stream.try_clone().context("a second handle")?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send_random(writer, bytes, seed));
        let received = expect_random(stream, bytes, seed, seen);
        let sent = sending.join();
        received.and(sent.unwrap_or_else(|_| bail!("the sender panicked")))
    })
}

fn send_random(mut stream: TcpStream, bytes: u64, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut block = vec![0; BLOCK_BYTES];
    stream
        .write_all(&[Command::Echo.byte()])
        .context("the command")?;
    let mut sent = 0;
    while sent < bytes {
        rng.fill_bytes(&mut block);
        let now = block_of(bytes - sent);
        let written = stream.write_all(&block[..now]);
        written.with_context(|| format!("sending after {sent} bytes"))?;
        sent += now as u64;
    }
    let ended = stream.shutdown(Shutdown::Write);
    ended.context("the end of sending")
}

fn expect_random(mut stream: TcpStream, bytes: u64, seed: u64, seen: &AtomicU64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut wanted, mut block) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut received = 0;
    while received < bytes {
        rng.fill_bytes(&mut wanted);
        let now = block_of(bytes - received);
        let read = stream.read_exact(&mut block[..now]);
        read.with_context(|| format!("receiving after {received} bytes"))?;
        let is_right = block[..now] == wanted[..now];
        ensure!(is_right, "a wrong byte after {received} bytes");
        received += now as u64;
        seen.store(received, Ordering::Relaxed);
    }
    let more = stream.read(&mut block).context("the end of the echo")?;
    ensure!(more == 0, "{more} bytes too many");
    Ok(())
}

fn block_of(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Questions that were answered, however often they were asked.
    pub(crate) answered: usize,
    /// Those that were answered the first time.
    pub(crate) at_once: usize,
}

/// Asks `count` UDP questions of mixed sizes of the echo service, each again until it is answered,
/// as a resolver does: every `pause`, for `patience` in all.
///
/// # Errors
/// If an answer is not its question, or some are never answered.
pub(crate) fn questions(
    visit: SocketAddr,
    count: usize,
    pause: Duration,
    patience: Duration,
) -> Result<Answers> {
    let socket = wire::udp_visitor(visit, pause).context("a UDP socket")?;
    let deadline = Instant::now() + patience;
    let mut answers = Answers::default();
    for first in (0..count).step_by(UDP_WINDOW) {
        let mut open: Vec<usize> = (first..count.min(first + UDP_WINDOW)).collect();
        let mut asked = 0;
        while !open.is_empty() {
            let left = open.len();
            if Instant::now() >= deadline {
                bail!("{left} of {count} questions from {first} on asked {asked} times, no answer");
            }
            for number in &open {
                // A full buffer or an ICMP error is one more lost packet.
                let _lost = socket.send(&question(*number));
            }
            take_answers(&socket, &mut open, Instant::now() + pause)?;
            let answered = left - open.len();
            answers.answered += answered;
            answers.at_once += if asked == 0 { answered } else { 0 };
            asked += 1;
        }
    }
    Ok(answers)
}

fn question(number: usize) -> Vec<u8> {
    let mut packet = vec![0; UDP_SIZES[number % UDP_SIZES.len()]];
    StdRng::seed_from_u64(number as u64).fill_bytes(&mut packet);
    PacketHeader {
        kind: PacketKind::Echo,
        run: 0,
        number: number as u64,
    }
    .write(&mut packet);
    packet
}

fn take_answers(socket: &UdpSocket, open: &mut Vec<usize>, until: Instant) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    while !open.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left)).context("a timeout")?;
        let Ok(length) = socket.recv(&mut buffer) else {
            continue; // Nothing yet, or an ICMP error.
        };
        let packet = &buffer[..length];
        let number = PacketHeader::read(packet)
            .and_then(|header| usize::try_from(header.number).ok())
            .filter(|number| packet == question(*number));
        let number =
            number.with_context(|| format!("an answer of {length} bytes to no question"))?;
        // Else one that was asked twice.
        open.retain(|asked| *asked != number);
    }
    Ok(())
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Visits {
    /// Visitors who got back what they had sent, and a clean end.
    pub(crate) served: usize,
    pub(crate) wrong: Vec<String>,
    pub(crate) slowest: Duration,
}

/// Sends `count` visitors, `at_a_time` of them at once: each connects, sends some bytes, ends its
/// side and wants all of it back with a clean end, within `patience`.
pub(crate) fn visits(
    visit: SocketAddr,
    count: usize,
    at_a_time: usize,
    patience: Duration,
) -> Visits {
    let next = AtomicUsize::new(0);
    let one_after_the_other = || {
        let mut visits = Visits::default();
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let began = Instant::now();
            match self::visit(visit, patience) {
                Ok(_) => visits.served += 1,
                Err(wrong) => visits.wrong.push(format!("{wrong:#}")),
            }
            visits.slowest = visits.slowest.max(began.elapsed());
        }
        visits
    };
    let mut all = Visits::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time)
            .map(|_| scope.spawn(one_after_the_other))
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(visits) => {
                    all.served += visits.served;
                    all.wrong.extend(visits.wrong);
                    all.slowest = all.slowest.max(visits.slowest);
                }
                Err(_) => all.wrong.push("a visitor's thread panicked".into()),
            }
        }
    });
    all
}

/// One short visitor. Returns how many bytes went through the tunnel, both ways.
///
/// # Errors
/// If not all of it comes back, or without a clean end.
pub(crate) fn visit(visit: SocketAddr, patience: Duration) -> Result<u64> {
    let mut stream = wire::connect(visit, patience).context("connecting")?;
    let mut words = [0; 1 + VISIT_BYTES];
    rand::rng().fill_bytes(&mut words);
    words[0] = Command::Echo.byte();
    stream.write_all(&words).context("sending")?;
    let ended = stream.shutdown(Shutdown::Write);
    ended.context("the end of sending")?;
    let mut back = Vec::new();
    let read = stream.read_to_end(&mut back);
    let received = back.len();
    read.with_context(|| format!("receiving after {received} bytes"))?;
    ensure!(
        back == words[1..],
        "{received} of {VISIT_BYTES} bytes and a clean end"
    );
    Ok(2 * VISIT_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing::service;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn without_a_tunnel_every_byte_comes_back() {
        let service = service();
        let seen = AtomicU64::new(0);
        echo(service.address, 3_000_001, 1, PATIENCE, &seen).expect("the echo");
        assert_eq!(seen.load(Ordering::Relaxed), 3_000_001);
        let pause = Duration::from_secs(2);
        let answers = questions(service.address, 40, pause, PATIENCE).expect("answers");
        assert_eq!(answers.answered, 40);
        let visits = visits(service.address, 20, 4, PATIENCE);
        assert_eq!((visits.served, visits.wrong.len()), (20, 0));
    }

    #[test]
    fn a_clean_end_with_bytes_missing_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let cut_off = thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let mut stream = stream.expect("a visitor");
                let mut some = [0; 100];
                stream.read_exact(&mut some).expect("some bytes");
                stream.write_all(&some[1..]).expect("sent");
                stream.shutdown(Shutdown::Write).expect("ended");
                drop(io::copy(&mut stream, &mut io::sink()));
            }
        });
        let visits = visits(address, 1, 1, PATIENCE);
        assert_eq!(visits.wrong, ["99 of 700 bytes and a clean end"]);
        let wrong = echo(address, 10_000, 1, PATIENCE, &AtomicU64::new(0)).expect_err("cut off");
        assert!(wrong.to_string().contains("receiving after 0"), "{wrong}");
        cut_off.join().expect("ended");
    }
}
