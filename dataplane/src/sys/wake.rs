//! Waking a core from another thread: a datagram socket pair, because monoio can wait on it with
//! either driver.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

/// The sending half: any thread may call [`WakeSender::wake`].
#[derive(Debug)]
pub(crate) struct WakeSender {
    socket: UnixDatagram,
    /// Whether a wake-up is on its way, which saves the system call for all senders but the first.
    pending: AtomicBool,
}

/// The receiving half, owned by the core.
#[derive(Debug)]
pub(crate) struct WakeReceiver {
    socket: monoio::net::unix::UnixDatagram,
}

/// Makes both halves; the receiving one is still a plain socket, to be adopted on the core's own
/// thread.
pub(crate) fn pair() -> io::Result<(WakeSender, UnixDatagram)> {
    let (sender, receiver) = UnixDatagram::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    Ok((
        WakeSender {
            socket: sender,
            pending: AtomicBool::new(false),
        },
        receiver,
    ))
}

impl WakeSender {
    /// Makes the receiver's wait return. What was written before this call is seen after that wait.
    pub(crate) fn wake(&self) {
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // `pending` keeps the socket buffer from filling up; a closed socket means that the core
        // has ended.
        let _ended = self.socket.send(&[1]);
    }

    /// Must be called by the receiving core before it looks at what it was woken for.
    pub(crate) fn rearm(&self) {
        // This is a swap and not a store, because it must read the senders' swaps to see what they
        // wrote before them.
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl WakeReceiver {
    /// Adopts the receiving socket. Must be called inside the core's runtime.
    pub(crate) fn new(socket: UnixDatagram) -> io::Result<WakeReceiver> {
        Ok(WakeReceiver {
            socket: monoio::net::unix::UnixDatagram::from_std(socket)?,
        })
    }

    /// Waits for the next wake-up and consumes it.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.socket.readable(false).await?;
        let mut byte = [0u8; 8];
        match rustix::net::recv(
            super::borrow(&self.socket),
            &mut byte,
            rustix::net::RecvFlags::DONTWAIT,
        ) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
