//! Mailboxes: how another thread hands something to a core. Bounded, lock-free, and the only way in.
//!
//! Each kind of mail has a queue of its own ([`Kind`]), so that none can take another's place: a flood of datagrams fills
//! the datagrams' queue, and costs datagrams. A core handles a bounded number of each kind in one turn
//! ([`Mailbox::turn`]), what `main` and the other cores want of it first.

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

/// Which queue mail waits in; the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What a core is to do: few, and each counts.
    Control,
    /// TCP visitors.
    Visitor,
    /// QUIC packets, which are repeated if they are lost.
    Packet,
    /// Visitors' datagrams, which are not.
    Datagram,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Control, Kind::Visitor, Kind::Packet, Kind::Datagram];

    /// How many may wait for one core.
    const fn places(self) -> usize {
        match self {
            // Many clients replaced at once; what finds no place is counted by its sender.
            Kind::Control => 512,
            // A second's worth of accepts.
            Kind::Visitor => 4_096,
            // Those of a client whose packets go astray in bulk: 10 ms at 1 Gbit/s. 1.5 MB as they mostly are, 16 MB at
            // the worst.
            Kind::Packet => 1_024,
            // 2 ms at a million a second; of 2 KB each at the most but for a few.
            Kind::Datagram => 2_048,
        }
    }

    /// How many are handled in one turn: some hundred microseconds' worth of each.
    const fn per_turn(self) -> usize {
        match self {
            Kind::Control | Kind::Packet => 64,
            // As many as are accepted in one turn; each is a flow that begins.
            Kind::Visitor => 32,
            Kind::Datagram => 128,
        }
    }
}

impl Mail {
    /// Whether the core must have handled it to go on.
    pub(crate) fn is_vital(&self) -> bool {
        self.kind() == Kind::Control
    }

    fn kind(&self) -> Kind {
        match self {
            Mail::Visitor { .. } => Kind::Visitor,
            Mail::Datagram { .. } => Kind::Datagram,
            Mail::Packet { .. } => Kind::Packet,
            Mail::Evict { .. }
            | Mail::ClientMayBeGone { .. }
            | Mail::Client(_)
            | Mail::ServiceHealth
            | Mail::Drain { .. }
            | Mail::Close => Kind::Control,
        }
    }
}

/// One bounded queue for each kind.
#[derive(Debug)]
struct Queues<T>([ArrayQueue<T>; Kind::ALL.len()]);

impl<T> Queues<T> {
    fn new(places: impl Fn(Kind) -> usize) -> Queues<T> {
        Queues(Kind::ALL.map(|kind| ArrayQueue::new(places(kind))))
    }

    fn of(&self, kind: Kind) -> &ArrayQueue<T> {
        &self.0[kind as usize]
    }

    /// The oldest of the first kind of which `may` says that it may.
    fn pop(&self, mut may: impl FnMut(Kind) -> bool) -> Option<(Kind, T)> {
        Kind::ALL
            .into_iter()
            .filter(|kind| may(*kind))
            .find_map(|kind| Some((kind, self.of(kind).pop()?)))
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(ArrayQueue::is_empty)
    }
}

/// A bounded part of what waits; see [`Mailbox::turn`].
#[derive(Debug)]
pub(crate) struct Turn<'a, T> {
    queues: &'a Queues<T>,
    taken: [usize; Kind::ALL.len()],
}

impl<T> Iterator for Turn<'_, T> {
    type Item = T;

    /// Looks at the first kind first, each time.
    fn next(&mut self) -> Option<T> {
        let may = |kind: Kind| self.taken[kind as usize] < kind.per_turn();
        let (kind, mail) = self.queues.pop(may)?;
        self.taken[kind as usize] += 1;
        Some(mail)
    }
}

/// The sending side of a core's mailbox; the core itself takes the mail out.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queues: Queues<Mail>,
    wake: WakeSender,
}

impl Mailbox {
    /// Makes a mailbox and the socket by which its core is woken.
    pub(crate) fn new() -> io::Result<(Mailbox, UnixDatagram)> {
        let (wake, receiver) = wake::pair()?;
        Ok((
            Mailbox {
                queues: Queues::new(Kind::places),
                wake,
            },
            receiver,
        ))
    }

    /// Puts mail in and wakes the core.
    ///
    /// # Errors
    /// Gives the mail back if there is no place for one more of its kind; the caller counts what it drops.
    pub(crate) fn send(&self, mail: Mail) -> Result<(), Mail> {
        self.queues.of(mail.kind()).push(mail)?;
        self.wake.wake();
        Ok(())
    }

    /// Wakes the core, for something else than mail.
    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// For the owning core: call before taking mail out after a wake-up.
    pub(crate) fn rearm(&self) {
        self.wake.rearm();
    }

    /// For the owning core: what it is to handle before others get their turn. Some may be left
    /// ([`Self::is_empty`]), of which no wake-up tells.
    pub(crate) fn turn(&self) -> Turn<'_, Mail> {
        Turn {
            queues: &self.queues,
            taken: Default::default(),
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether no visitor waits. Those that were sent before the caller learned that no more would come are seen.
    pub(crate) fn has_no_visitor(&self) -> bool {
        self.queues.of(Kind::Visitor).is_empty()
    }

    /// For the tests: takes the first one out.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<Mail> {
        self.queues.pop(|_| true).map(|(_, mail)| mail)
    }
}

#[cfg(test)]
#[path = "mailbox_tests.rs"]
mod tests;
