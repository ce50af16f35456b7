//! Mailboxes, by which another thread hands something to a core. They are bounded, lock-free, and
//! the only way in.
//!
//! Each kind of mail has a queue of its own ([`Kind`]), so that no kind can take another's place: a
//! flood of datagrams fills the datagrams' queue, and costs datagrams. A core handles a bounded
//! number of each kind in one turn ([`Mailbox::turn`]), beginning with what `main` and the other
//! cores want of it.
//!
//! The messages themselves are not known here: each role has an enum of its own, and sends by a
//! [`Post`] that takes nothing else. The process puts these together.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::sys::wake::{self, WakeSender};

/// What one core (or `main`) hands to another.
pub(crate) trait Mail: fmt::Debug + Send + 'static {
    /// The queue that this mail waits in.
    fn kind(&self) -> Kind;
}

/// Sends mail of one role's type to the same role on other cores.
pub(crate) trait Post<T>: fmt::Debug + Send + Sync {
    /// Number of cores.
    fn cores(&self) -> usize;

    /// Puts mail into a core's mailbox and wakes the core.
    ///
    /// # Errors
    /// Returns the mail if there is no place for one more of its kind; the caller counts
    /// what it drops.
    fn send(&self, core: usize, mail: T) -> Result<(), T>;
}

/// The kinds of mail, each with a queue of its own; the first kind goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Orders to a core: few, and each matters.
    Control,
    /// TCP visitors.
    Visitor,
    /// QUIC packets, which are repeated if they are lost.
    Packet,
    /// Visitors' datagrams, which are not repeated.
    Datagram,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Control, Kind::Visitor, Kind::Packet, Kind::Datagram];

    /// Number of messages of this kind that may wait for one core.
    const fn places(self) -> usize {
        match self {
            // Enough for many clients that are replaced at once. The sender counts what finds no
            // place.
            Kind::Control => 512,
            // A second's worth of accepted visitors.
            Kind::Visitor => 4_096,
            // The packets of a client that arrive on a wrong core in bulk: 10 ms at 1 Gbit/s. They
            // mostly take 1.5 MB, at worst 16 MB.
            Kind::Packet => 1_024,
            // 2 ms at a million datagrams a second. They have 2 KB each at most, but for a few.
            Kind::Datagram => 2_048,
        }
    }

    /// Number of messages of this kind that are handled in one turn: some hundred microseconds'
    /// worth of each.
    const fn per_turn(self) -> usize {
        match self {
            Kind::Control | Kind::Packet => 64,
            // As many as are accepted in one turn; each is a flow that begins.
            Kind::Visitor => 32,
            Kind::Datagram => 128,
        }
    }

    /// Whether the core cannot go on without having handled such mail.
    pub(crate) fn is_vital(self) -> bool {
        self == Kind::Control
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

    /// Takes the oldest message of the first kind for which `may` is true.
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

/// A bounded part of the waiting mail; see [`Mailbox::turn`].
#[derive(Debug)]
pub(crate) struct Turn<'a, T> {
    queues: &'a Queues<T>,
    taken: [usize; Kind::ALL.len()],
}

impl<T> Iterator for Turn<'_, T> {
    type Item = T;

    /// Takes the next message, looking at the first kind first each time.
    fn next(&mut self) -> Option<T> {
        let may = |kind: Kind| self.taken[kind as usize] < kind.per_turn();
        let (kind, mail) = self.queues.pop(may)?;
        self.taken[kind as usize] += 1;
        Some(mail)
    }
}

/// The sending side of a core's mailbox; the core itself takes the mail out.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    queues: Queues<M>,
    wake: WakeSender,
}

impl<M: Mail> Mailbox<M> {
    /// Makes a mailbox and the socket by which its core is woken.
    pub(crate) fn new() -> io::Result<(Mailbox<M>, UnixDatagram)> {
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
    /// Returns the mail if there is no place for one more of its kind; the caller counts
    /// what it drops.
    pub(crate) fn send(&self, mail: M) -> Result<(), M> {
        self.queues.of(mail.kind()).push(mail)?;
        self.wake.wake();
        Ok(())
    }

    /// Wakes the core for something other than mail.
    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// Must be called by the owning core after a wake-up, before it takes mail out.
    pub(crate) fn rearm(&self) {
        self.wake.rearm();
    }

    /// The mail that the owning core is to handle before others get their turn. Some may be left
    /// ([`Self::is_empty`]), for which no wake-up comes.
    pub(crate) fn turn(&self) -> Turn<'_, M> {
        Turn {
            queues: &self.queues,
            taken: Default::default(),
        }
    }

    /// Whether no mail waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether no visitor waits. This sees the visitors that were sent before the caller learned
    /// that no more would come.
    pub(crate) fn has_no_visitor(&self) -> bool {
        self.queues.of(Kind::Visitor).is_empty()
    }

    /// For tests: takes the first message out.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<M> {
        self.queues.pop(|_| true).map(|(_, mail)| mail)
    }
}

/// The mailboxes of all cores, by index.
#[derive(Debug)]
pub(crate) struct Mailboxes<M>(Arc<[Mailbox<M>]>);

impl<M> Clone for Mailboxes<M> {
    fn clone(&self) -> Mailboxes<M> {
        Mailboxes(Arc::clone(&self.0))
    }
}

impl<M: Mail> Mailboxes<M> {
    /// Makes a mailbox for each core, with the sockets by which the cores are woken.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub(crate) fn new(cores: usize) -> io::Result<(Mailboxes<M>, Vec<UnixDatagram>)> {
        let made: Vec<_> = (0..cores)
            .map(|_| Mailbox::new())
            .collect::<Result<_, _>>()?;
        let (mailboxes, wakes): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        Ok((Mailboxes(mailboxes.into()), wakes))
    }

    /// Number of cores.
    pub(crate) fn cores(&self) -> usize {
        self.0.len()
    }

    /// The mailbox of one core.
    pub(crate) fn of(&self, core: usize) -> &Mailbox<M> {
        &self.0[core]
    }
}

impl<M: Mail> Post<M> for Mailboxes<M> {
    fn cores(&self) -> usize {
        self.0.len()
    }

    fn send(&self, core: usize, mail: M) -> Result<(), M> {
        self.0[core].send(mail)
    }
}

#[cfg(test)]
#[path = "mailbox_tests.rs"]
mod tests;
