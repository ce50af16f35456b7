//! The demo's visitors: real TCP and UDP traffic whose every byte is checked.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::Visit;

/// Bytes sent and received back in the throughput test.
const BULK_BYTES: usize = 512 << 20;

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 128 << 10;

/// Round trips of the latency test, of [`PING_BYTES`] each.
const PINGS: usize = 2_000;
const PING_BYTES: usize = 64;

/// Visitors that one after the other connect, send bytes, get them back and close.
const CONNECTS: usize = 500;

/// UDP payload sizes: empty, tiny, one packet, several fragments, the largest that exists.
const UDP_SIZES: [usize; 8] = [0, 1, 64, 1_150, 1_472, 8_192, 16_384, 65_507];
const UDP_ROUNDS: usize = 50;

/// How many times a datagram that may have been lost is sent before the demo fails.
const UDP_ATTEMPTS: usize = 5;
const UDP_TIMEOUT: Duration = Duration::from_millis(500);

/// Time within which the tunnel must serve its first visitor.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(20);

/// No read or write of the demo takes this long unless something is broken.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// The results of the demo's measurements.
#[derive(Debug)]
pub(super) struct Measured {
    /// Bytes that were sent through the tunnel and came back.
    pub(super) bulk_bytes: u64,
    /// The time from the first byte sent to the last byte received back.
    pub(super) bulk_time: Duration,
    /// Round trips of 64 bytes, in nanoseconds.
    pub(super) pings: Histogram<u64>,
    /// Times of visitors that connect, send bytes, get them back and close; in nanoseconds.
    pub(super) connects: Histogram<u64>,
    /// UDP round trips, in nanoseconds.
    pub(super) datagrams: Histogram<u64>,
    /// UDP datagrams that had to be sent again.
    pub(super) datagrams_lost: u64,
    /// The sizes that were sent.
    pub(super) datagram_sizes: &'static [usize],
}

/// Sends all of the demo's traffic, and measures it.
///
/// # Errors
/// If a byte or a datagram did not come back, or other bytes came back.
pub(super) fn send(visit: Visit) -> Result<Measured, String> {
    let Visit { web, echo } = visit;
    wait_ready(web)?;
    let connects = connects(web).map_err(|error| format!("short connections: {error}"))?;
    let pings = pings(web).map_err(|error| format!("ping-pong: {error}"))?;
    let bulk_time = bulk(web).map_err(|error| format!("bulk transfer: {error}"))?;
    let (datagrams, datagrams_lost) = datagrams(echo).map_err(|error| format!("UDP: {error}"))?;
    Ok(Measured {
        bulk_bytes: BULK_BYTES as u64,
        bulk_time,
        pings,
        connects,
        datagrams,
        datagrams_lost,
        datagram_sizes: &UDP_SIZES,
    })
}

/// Waits until the tunnel serves a visitor.
///
/// # Errors
/// If it does not within [`READY_TIMEOUT`].
pub(super) fn wait_ready(addr: SocketAddr) -> Result<(), String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        match echo_once(addr, b"ready?") {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(format!("the tunnel serves no visitor: {error}"));
            }
            Err(_) => thread::sleep(READY_POLL),
        }
    }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    Ok(stream)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Connects, sends `bytes` and FIN, and expects the same bytes and FIN back.
fn echo_once(addr: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let mut stream = connect(addr)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::with_capacity(bytes.len());
    stream.read_to_end(&mut back)?;
    if back == bytes {
        Ok(())
    } else {
        Err(wrong("other bytes came back"))
    }
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, IO_TIMEOUT.as_nanos() as u64, 3).map_err(io::Error::other)
}

fn record(histogram: &mut Histogram<u64>, since: Instant) {
    histogram.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

fn connects(addr: SocketAddr) -> io::Result<Histogram<u64>> {
    let mut times = histogram()?;
    for number in 0..CONNECTS {
        let began = Instant::now();
        echo_once(addr, &pattern(number as u64, PING_BYTES))?;
        record(&mut times, began);
    }
    Ok(times)
}

fn pings(addr: SocketAddr) -> io::Result<Histogram<u64>> {
    let mut times = histogram()?;
    let mut stream = connect(addr)?;
    let mut back = [0; PING_BYTES];
    for number in 0..PINGS {
        let ping = pattern(number as u64, PING_BYTES);
        let began = Instant::now();
        stream.write_all(&ping)?;
        stream.read_exact(&mut back)?;
        record(&mut times, began);
        if ping != back {
            return Err(wrong("other bytes came back"));
        }
    }
    Ok(times)
}

fn bulk(addr: SocketAddr) -> io::Result<Duration> {
    let stream = connect(addr)?;
    let mut writer = stream.try_clone()?;
    // One chunk of pattern, shifted by its number, so that a chunk out of place is noticed.
    let chunk: Vec<u8> = pattern(7, CHUNK_BYTES + 256);
    let sent = chunk.clone();
    let began = Instant::now();
    let sender = thread::spawn(move || -> io::Result<()> {
        for number in 0..BULK_BYTES / CHUNK_BYTES {
            let shift = number % 256;
            writer.write_all(&sent[shift..shift + CHUNK_BYTES])?;
        }
        writer.shutdown(Shutdown::Write)
    });
    let mut reader = stream;
    let mut back = vec![0; CHUNK_BYTES];
    for number in 0..BULK_BYTES / CHUNK_BYTES {
        reader.read_exact(&mut back)?;
        let shift = number % 256;
        if back != chunk[shift..shift + CHUNK_BYTES] {
            return Err(wrong("other bytes came back"));
        }
    }
    if reader.read(&mut back)? != 0 {
        return Err(wrong("more bytes came back than were sent"));
    }
    let took = began.elapsed();
    sender
        .join()
        .map_err(|_| io::Error::other("the sender failed"))??;
    Ok(took)
}

fn datagrams(addr: SocketAddr) -> io::Result<(Histogram<u64>, u64)> {
    let socket = UdpSocket::bind(SocketAddr::new(addr.ip(), 0))?;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(UDP_TIMEOUT))?;
    let mut times = histogram()?;
    let mut lost = 0;
    for round in 0..UDP_ROUNDS {
        for size in UDP_SIZES {
            let sent = pattern((round * 100_000 + size) as u64, size);
            let mut attempts = 0;
            loop {
                let began = Instant::now();
                socket.send(&sent)?;
                if await_datagram(&socket, &sent)? {
                    record(&mut times, began);
                    break;
                }
                lost += 1;
                attempts += 1;
                if attempts == UDP_ATTEMPTS {
                    return Err(wrong(&format!(
                        "a datagram of {size} bytes was sent {attempts} times and never came back"
                    )));
                }
            }
        }
    }
    Ok((times, lost))
}

/// Waits for the echo of a datagram. Returns false on a timeout.
fn await_datagram(socket: &UdpSocket, sent: &[u8]) -> io::Result<bool> {
    let mut back = vec![0; 1 << 16];
    match socket.recv(&mut back) {
        Ok(length) if back[..length] == *sent => Ok(true),
        // The late echo of a datagram that counts as lost has another size or another pattern.
        Ok(length) if length != sent.len() => await_datagram(socket, sent),
        Ok(_) => Err(wrong("other bytes came back")),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// `length` bytes that depend on `seed` (xorshift64*).
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
