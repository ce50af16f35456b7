//! Mailboxes: how another thread hands something to a core. Bounded, lock-free, and the only way in.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::client::ClientMail;
use crate::flow::udp::server::ForwardedUdp;
use crate::server::registry::FlowTicket;
use crate::server::visitors::Visitor;
use crate::sys::wake::{self, WakeSender};

/// Mail that may wait for one core. A burst of 4,096 visitors for another core is a second's worth
/// of accepts.
const MAIL_MAX: usize = 4_096;

/// What one core (or `main`) hands to another.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A visitor whose client has no lane on the core that accepted it.
    Visitor {
        /// Which listener accepted it.
        listener: usize,
        /// The accepted socket.
        stream: TcpStream,
        /// Who it is, and what is known of it.
        visitor: Box<Visitor>,
        /// The client chosen for it.
        ticket: FlowTicket,
    },
    /// A datagram of a visitor whose flow lives on the receiving core.
    Datagram {
        /// Which listener received it.
        listener: usize,
        /// The datagram.
        packet: ForwardedUdp,
    },
    /// A QUIC packet for a lane of the receiving core.
    Packet {
        /// Which listener received it.
        listener: usize,
        /// The packet.
        data: Vec<u8>,
        /// Who sent it.
        from: SocketAddr,
        /// The local address that it was sent to.
        to_ip: Option<IpAddr>,
    },
    /// A client was replaced by a newer instance: its lanes take no new flow, and are closed if
    /// they do not answer.
    Evict {
        /// The listener that it was registered with.
        listener: usize,
        /// Its number in the listener's pool.
        client: u64,
    },
    /// A lane of this client is not answered: have its other lanes ask.
    ClientMayBeGone {
        /// The listener that it is registered with.
        listener: usize,
        /// Its number in the listener's pool.
        client: u64,
    },
    /// For the client role.
    Client(ClientMail),
    /// The client role: what is known of the service has changed.
    ServiceHealth,
    /// Take nothing new, tell the peers, let flows finish within this time.
    Drain {
        /// The time that flows get.
        timeout: Duration,
    },
    /// Close everything and end. Comes when all cores have drained: until then each must take packets for the others,
    /// because a socket that leaves a reuseport group changes who gets what.
    Close,
}

/// The sending side of a core's mailbox; the core itself takes the mail out.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queue: ArrayQueue<Mail>,
    wake: WakeSender,
}

impl Mailbox {
    /// Makes a mailbox and the socket by which its core is woken.
    pub(crate) fn new() -> io::Result<(Mailbox, UnixDatagram)> {
        let (wake, receiver) = wake::pair()?;
        Ok((
            Mailbox {
                queue: ArrayQueue::new(MAIL_MAX),
                wake,
            },
            receiver,
        ))
    }

    /// Puts mail in and wakes the core.
    ///
    /// # Errors
    /// Gives the mail back if the mailbox is full; the caller counts what it drops.
    pub(crate) fn send(&self, mail: Mail) -> Result<(), Mail> {
        self.queue.push(mail)?;
        self.wake.wake();
        Ok(())
    }

    /// For the owning core: call before taking mail out after a wake-up.
    pub(crate) fn rearm(&self) {
        self.wake.rearm();
    }

    /// For the owning core: takes the oldest mail out.
    pub(crate) fn take(&self) -> Option<Mail> {
        self.queue.pop()
    }
}
