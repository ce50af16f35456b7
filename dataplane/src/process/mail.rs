//! The mail of a core: messages for its roles from those of other cores, and orders from `main`.

use std::time::Duration;

use crate::client::mail::ClientMail;
use crate::core::mailbox::{Kind, Mail, Mailboxes, Post};
use crate::server::mail::ServerMail;

/// A message to a core.
#[derive(Debug)]
pub(super) enum CoreMail {
    /// For the server role.
    Server(ServerMail),
    /// For the client role.
    Client(ClientMail),
    /// An order to take nothing new, tell the peers, and let flows finish.
    Drain {
        /// How long flows may go on.
        timeout: Duration,
    },
    /// An order to close everything and end. It comes when all cores have drained: until then each
    /// must take packets for the others, because a socket that leaves a reuseport group changes
    /// which socket gets what.
    Close,
}

impl Mail for CoreMail {
    fn kind(&self) -> Kind {
        match self {
            CoreMail::Server(mail) => mail.kind(),
            CoreMail::Client(mail) => mail.kind(),
            CoreMail::Drain { .. } | CoreMail::Close => Kind::Control,
        }
    }
}

impl Post<ServerMail> for Mailboxes<CoreMail> {
    fn cores(&self) -> usize {
        self.cores()
    }

    fn send(&self, core: usize, mail: ServerMail) -> Result<(), ServerMail> {
        match self.of(core).send(CoreMail::Server(mail)) {
            Ok(()) => Ok(()),
            Err(CoreMail::Server(back)) => Err(back),
            Err(other) => unreachable!("{other:?} came back for the server's mail"),
        }
    }
}

impl Post<ClientMail> for Mailboxes<CoreMail> {
    fn cores(&self) -> usize {
        self.cores()
    }

    fn send(&self, core: usize, mail: ClientMail) -> Result<(), ClientMail> {
        match self.of(core).send(CoreMail::Client(mail)) {
            Ok(()) => Ok(()),
            Err(CoreMail::Client(back)) => Err(back),
            Err(other) => unreachable!("{other:?} came back for the client's mail"),
        }
    }
}
