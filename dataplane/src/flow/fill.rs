//! Reading everything that a socket has, and what follows it.

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

/// How much to read from a socket at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Until {
    /// Reads until a call says that nothing is left. So a FIN that follows the last bytes closely
    /// is seen with them and rides in their frame, and the segments of bulk are gathered.
    #[default]
    Empty,
    /// Reads until a call brings less than it could: nothing was left at that moment, and the next
    /// wait reports what comes later. That is one call less for each message.
    Short,
}

/// Reads until `into` is full or the socket has no more, as far as `until` looks.
pub(crate) fn fill(socket: &TcpSocket, into: &mut [u8], until: Until) -> (usize, Next) {
    let mut read = 0;
    while read < into.len() {
        match socket.try_read(&mut into[read..]) {
            Ok(0) => return (read, Next::Fin),
            Ok(more) => {
                read += more;
                if until == Until::Short && read < into.len() {
                    return (read, Next::Nothing);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return (read, Next::Nothing);
            }
            Err(_) => return (read, Next::Error),
        }
    }
    (read, Next::More)
}
