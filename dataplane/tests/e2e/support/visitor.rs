//! TCP visitors: plain blocking sockets, every wait with a deadline.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use boring::sha::Sha256;
use socket2::SockRef;

use super::random::Random;
use super::wait::{self, PATIENCE};

/// Bytes that senders and receivers of random streams move at a time; a multiple of 8, see
/// [`Random::fill`].
const PIECE_BYTES: usize = 64 << 10;

/// How a direction of a connection ended, with what came before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A FIN.
    Clean(Vec<u8>),
    /// A reset.
    Reset(Vec<u8>),
}

/// No read or write of this socket blocks for ever.
pub(crate) fn set_deadlines(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_nodelay(true).expect("nodelay");
}

/// Sends a FIN like [`finish`], to a peer that may have closed already.
pub(crate) fn finish_if_open(stream: &TcpStream) {
    let _closed = stream.shutdown(Shutdown::Write);
}

/// Connects; panics if that fails.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Connects.
pub(crate) fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    set_deadlines(&stream);
    Ok(stream)
}

/// Connects, sends `request` and reads to the end; for visitors that may be reset at any moment,
/// also while they connect and send.
pub(crate) fn ending_of(address: SocketAddr, request: &[u8]) -> Ending {
    ending_after(try_connect(address), |stream| stream.write_all(request))
}

/// Reads to the end of a connection, once it has sent something, as [`ending_of`] does.
pub(crate) fn ending_after(
    connected: io::Result<TcpStream>,
    say: impl FnOnce(&mut TcpStream) -> io::Result<()>,
) -> Ending {
    let said = connected.and_then(|mut stream| {
        say(&mut stream)?;
        Ok(stream)
    });
    match said {
        Ok(mut stream) => read_to_end(&mut stream),
        // It was faster than the return from connect(2) or write(2), which have told it: a read
        // would not tell it again.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ending::Reset(Vec::new()),
        Err(error) => panic!("connects and speaks: {error}"),
    }
}

/// Reads to the end; panics when nothing comes for long, or on an error that is neither FIN nor
/// reset.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Ending {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Ending::Clean(bytes),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ending::Reset(bytes),
        Err(error) => panic!("after {} bytes: {error}", bytes.len()),
    }
}

/// Reads exactly `length` bytes.
pub(crate) fn read_exact(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("bytes");
    bytes
}

/// Reads from an open connection and panics unless it waits for more, for as long as `pause`.
pub(crate) fn assert_nothing_to_read(stream: &mut TcpStream, pause: Duration) {
    stream.set_read_timeout(Some(pause)).expect("timeout");
    match stream.read(&mut [0; 1]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        other => panic!("the connection should be open and silent, but a read gives {other:?}"),
    }
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
}

/// Closes so that the peer gets a RST.
pub(crate) fn reset(stream: TcpStream) {
    let linger = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    linger.expect("SO_LINGER");
    drop(stream);
}

/// Sends a FIN to the peer; reading goes on.
pub(crate) fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("FIN");
}

/// Sends and receives `bytes` through an echo service, both directions at once, then the FINs.
pub(crate) fn echo(address: SocketAddr, bytes: &[u8]) {
    let mut stream = connect(address);
    exchange(&mut stream, bytes);
    finish(&stream);
    assert_eq!(read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

/// Sends `bytes` and reads as many, which must be the same.
pub(crate) fn exchange(stream: &mut TcpStream, bytes: &[u8]) {
    let mut reader = stream.try_clone().expect("clone");
    let mut received = vec![0; bytes.len()];
    thread::scope(|scope| {
        let writer = scope.spawn(|| stream.write_all(bytes).expect("the visitor may send"));
        reader.read_exact(&mut received).expect("the echo arrives");
        writer.join().expect("the sender");
    });
    assert!(received == bytes, "the echo differs from what was sent");
}

/// One attempt to reach an echo service, for polling: whether it worked.
pub(crate) fn echo_works(address: SocketAddr) -> bool {
    let attempt = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        // Short, because a connection may wait in a backlog that nobody will accept from any more.
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"are you there?")?;
        let mut answer = [0; 14];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"are you there?")
    };
    attempt().unwrap_or(false)
}

/// Waits until visitors are served.
pub(crate) fn wait_until_served(address: SocketAddr) {
    wait::until_true("a visitor is served", || echo_works(address));
}

/// Sends `length` bytes of the random stream of `seed`.
pub(crate) fn send_random(stream: &mut TcpStream, seed: u64, length: usize) -> io::Result<()> {
    let mut random = Random::new(seed);
    let mut piece = vec![0; PIECE_BYTES];
    let mut left = length;
    while left > 0 {
        let now = left.min(PIECE_BYTES);
        random.fill(&mut piece[..now]);
        stream.write_all(&piece[..now])?;
        left -= now;
    }
    Ok(())
}

/// Reads `length` bytes, which must be the random stream of `seed`.
pub(crate) fn receive_random(stream: &mut TcpStream, seed: u64, length: usize) {
    receive_on(stream, &mut Random::new(seed), length);
}

/// Reads the next `length` bytes, which must be those of `random`.
pub(crate) fn receive_on(stream: &mut TcpStream, random: &mut Random, length: usize) {
    let mut piece = vec![0; PIECE_BYTES];
    let mut expected = vec![0; PIECE_BYTES];
    let mut left = length;
    while left > 0 {
        let now = left.min(PIECE_BYTES);
        let got = stream.read_exact(&mut piece[..now]);
        got.unwrap_or_else(|error| panic!("{left} of {length} bytes missing: {error}"));
        random.fill(&mut expected[..now]);
        assert!(
            piece[..now] == expected[..now],
            "wrong bytes after {} of {length}",
            length - left
        );
        left -= now;
    }
}

/// SHA-256 of everything that `reader` gives, with the number of bytes.
pub(crate) fn sha256(mut reader: impl io::Read) -> (u64, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let read = reader.read(&mut piece).expect("readable");
        if read == 0 {
            return (length, hash.finish());
        }
        hash.update(&piece[..read]);
        length += read as u64;
    }
}
