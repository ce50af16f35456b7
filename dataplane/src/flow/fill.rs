//! Reading what a socket has, and what follows it.

use std::io;

use crate::sys::tcp::TcpSocket;

/// What follows the bytes that [`fill`] has read.
pub(crate) enum Next {
    /// Perhaps more: the buffer is full.
    More,
    /// Nothing now.
    Nothing,
    /// The end: all has been read.
    Fin,
    /// The socket was reset.
    Error,
}

/// Reads until `into` is full or the socket has no more. So a FIN that follows the last bytes
/// closely is seen with them and rides in their frame, and small segments are gathered; it costs no
/// call more than reading once and then finding the socket empty.
pub(crate) fn fill(socket: &TcpSocket, into: &mut [u8]) -> (usize, Next) {
    let mut read = 0;
    while read < into.len() {
        match socket.try_read(&mut into[read..]) {
            Ok(0) => return (read, Next::Fin),
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return (read, Next::Nothing);
            }
            Err(_) => return (read, Next::Error),
        }
    }
    (read, Next::More)
}
