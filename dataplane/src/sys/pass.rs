//! Messages between two processes of this machine, each with a descriptor if need be (unix(7),
//! SCM_RIGHTS), over sockets that keep message boundaries (SOCK_SEQPACKET).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Room for one descriptor.
const SPACE_BYTES: usize = rustix::cmsg_space!(ScmRights(1));

/// Sends one message, with `fd` if there is one.
///
/// # Errors
/// Those of sendmsg(2).
pub(crate) fn send(socket: impl AsFd, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let pieces = [IoSlice::new(text)];
    retry_on_intr(|| sendmsg(&socket, &pieces, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message into `into`; returns its length, and the descriptor that came with it.
/// `None` at the end of the connection.
///
/// # Errors
/// Those of recvmsg(2).
pub(crate) fn receive(
    socket: impl AsFd,
    into: &mut [u8],
) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(into)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(&socket, &mut pieces, &mut control, flags))?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    // No message of ours is empty, so zero bytes are the end.
    Ok((received.bytes > 0).then_some((received.bytes, fd)))
}

/// The process at the other end of a Unix socket, which has listened there or connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The process id, if it has one that is known here.
    pub(crate) pid: Option<NonZeroU32>,
    /// The user id.
    pub(crate) uid: u32,
}

impl Peer {
    /// Asks for the peer of this connection.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub(crate) fn of(connection: impl AsFd) -> io::Result<Peer> {
        let credentials = super::option::peer_credentials(connection)?;
        Ok(Peer {
            pid: u32::try_from(credentials.pid)
                .ok()
                .and_then(NonZeroU32::new),
            uid: credentials.uid,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message_and_is_the_same_socket() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        send(&one, b"first", None).expect("sent");
        send(&one, b"second", Some(listener.as_fd())).expect("sent");
        let address = listener.local_addr().expect("bound");
        drop((listener, one));
        let mut text = [0; 64];
        let first = receive(&other, &mut text).expect("received").expect("one");
        assert_eq!(
            (&text[..first.0], first.1.is_some()),
            (&b"first"[..], false)
        );
        let (length, fd) = receive(&other, &mut text).expect("received").expect("one");
        assert_eq!(&text[..length], b"second");
        let listener = TcpListener::from(fd.expect("a descriptor"));
        let mut visitor = TcpStream::connect(address).expect("it listens still");
        drop(listener.accept().expect("a visitor"));
        assert_eq!(visitor.read(&mut [0; 1]).expect("closed"), 0);
        assert!(receive(&other, &mut text).expect("received").is_none());
    }

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        let peer = Peer::of(&one).expect("credentials");
        assert_eq!(peer.pid.map(NonZeroU32::get), Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    }
}
