//! The successor's part of a handover: what it gets, and the moment from which it serves.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use super::messages::{
    self, Answer, Hello, Left, MESSAGE_BYTES_MAX, Offer, PACKETS, TAKE, VERSION,
};
use super::{giving::KEY, peer};
use crate::process::exit::Failure;
use crate::server::succession::{Predecessor, SocketUse};
use crate::sys::pass;

/// How long the predecessor may take for an answer. Its cores need milliseconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// The sockets that the running process has lent.
#[derive(Debug)]
pub(crate) struct Inherited {
    connection: Socket,
    sockets: HashMap<(SocketUse, SocketAddr, usize), OwnedFd>,
    /// The addresses of these, whether they were taken or not.
    places: HashSet<(SocketUse, SocketAddr)>,
    packets: Option<OwnedFd>,
}

impl Inherited {
    /// Asks the process that listens at `path` for its sockets; `None` if there is none.
    ///
    /// # Errors
    /// If there is one that does not give them.
    pub(crate) fn ask(path: &Path, cores: usize) -> Result<Option<Inherited>, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            let why = format!(
                "the process that listens at {} does not hand over: {why}; stop it first, or \
                 correct what it says",
                path.display()
            );
            Failure::of_key(KEY, why)
        };
        let connection = match connect(path) {
            Ok(connection) => connection,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
                _ => return Err(failed(&error)),
            },
        };
        // Its descriptors could be those of sockets that somebody else reads, too.
        match peer::stranger(&connection) {
            Ok(None) => {}
            Ok(Some(stranger)) => return Err(not_ours(path, &stranger)),
            Err(error) => return Err(failed(&error)),
        }
        let mut inherited = Inherited {
            connection,
            sockets: HashMap::new(),
            places: HashSet::new(),
            packets: None,
        };
        match inherited.receive_all(cores) {
            Ok(Ok(())) => Ok(Some(inherited)),
            Ok(Err(refusal)) => Err(failed(&refusal)),
            Err(error) => Err(failed(&error)),
        }
    }

    fn receive_all(&mut self, cores: usize) -> io::Result<Result<(), String>> {
        let hello = Hello {
            version: VERSION,
            cores,
        };
        pass::send(&self.connection, &messages::text(&hello), None)?;
        let count = match self.message::<Offer>()?.0 {
            Offer::Sockets(count) => count,
            Offer::Refused(why) => return Ok(Err(why)),
        };
        for _ in 0..count {
            let (socket, fd) = self.message::<messages::Socket>()?;
            let (Some(used_for), Some(fd)) = (socket.used_for(), fd) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            self.places.insert((used_for, socket.address));
            let key = (used_for, socket.address, socket.core);
            self.sockets.insert(key, fd);
        }
        let (text, fd) = self.bytes()?;
        if text != PACKETS || fd.is_none() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.packets = fd;
        Ok(Ok(()))
    }

    fn bytes(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let received = pass::receive(&self.connection, &mut bytes)?;
        let (length, fd) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.truncate(length);
        Ok((bytes, fd))
    }

    fn message<T: DeserializeOwned>(&self) -> io::Result<(T, Option<OwnedFd>)> {
        let (bytes, fd) = self.bytes()?;
        Ok((serde_json::from_slice(&bytes)?, fd))
    }

    /// Whether the predecessor has a socket of this use there.
    pub(crate) fn has(&self, used_for: SocketUse, address: SocketAddr) -> bool {
        self.places.contains(&(used_for, address))
    }

    /// Takes the socket of one core out.
    pub(crate) fn take(
        &mut self,
        used_for: SocketUse,
        address: SocketAddr,
        core: usize,
    ) -> Option<OwnedFd> {
        self.sockets.remove(&(used_for, address, core))
    }

    /// The predecessor to which packets of its lanes are passed on; taken out once.
    ///
    /// # Errors
    /// If the socket cannot be used.
    pub(crate) fn predecessor(&mut self) -> Result<Option<Predecessor>, Failure> {
        let packets = self.packets.take().map(Socket::from);
        let predecessor = packets.map(Predecessor::at).transpose();
        predecessor.map_err(|error| Failure::Running(format!("packets of the handover: {error}")))
    }

    /// Serves from now on, with the sockets that were taken: when this returns, the predecessor has
    /// stopped reading them.
    ///
    /// # Errors
    /// If the predecessor keeps them, with its reason.
    pub(crate) fn serve(mut self) -> Result<(), Failure> {
        // The answer is read even if the predecessor does not listen any more: it may have lost
        // patience.
        let _told = self.say_take();
        match self.message::<Answer>() {
            Ok((Answer::Gone, _)) => Ok(()),
            Ok((Answer::Kept(why), _)) => Err(Failure::Running(format!(
                "the process before this one keeps its sockets: {why}"
            ))),
            // The predecessor has died, or is stuck: its sockets are here, and somebody must serve.
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the process before this one did not say that it stops reading; going on without it"
                );
                Ok(())
            }
        }
    }

    fn say_take(&mut self) -> io::Result<()> {
        let left = std::mem::take(&mut self.sockets).into_keys();
        let left: HashSet<_> = left.map(|(used_for, at, _core)| (used_for, at)).collect();
        for (used_for, address) in left {
            let text = messages::text(&Left::new(used_for, address));
            pass::send(&self.connection, &text, None)?;
        }
        pass::send(&self.connection, TAKE, None)
    }
}

fn not_ours(path: &Path, stranger: &peer::Stranger) -> Failure {
    let why = format!(
        "{} listens at {}, and not this user or root, who alone may hand over; end it, and choose a \
         path in a directory that only this user can write to",
        stranger,
        path.display()
    );
    Failure::of_key(KEY, why)
}

fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let address = SockAddr::unix(path)?;
    loop {
        match socket.connect(&address) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|()| socket),
        }
    }
}
