//! The client's session tickets: kept per server, shared by the lanes of the process, in memory
//! and, if there is a state directory, in a file.
//!
//! A ticket is offered once (RFC 8446, appendix C.4), the newest first; one that got no answer is
//! kept for the next attempt. Only the last ticket of a server is offered again, so that lanes that
//! start together need not be full handshakes. What an observer could learn from that, namely that
//! they belong together, is also told by their addresses and times. Tickets belong to a server's
//! configured address and name, and to the certificates that the client had when it got them: with
//! a renewed certificate or another CA the old ones are not used. Neither tickets nor the file's
//! content are ever logged.

mod file;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use boring::ssl::SslSession;
use crossbeam::channel::{Sender, bounded};

/// Tickets that are kept for a server even if it has fewer lanes: some are for attempts that fail.
const TICKETS_MIN: usize = 8;

/// The most tickets kept for a server: one per lane.
const TICKETS_MAX: usize = qmux_config::LANES_MAX as usize;

/// The most servers with tickets. A client has 40 at most; the others are of earlier
/// configurations.
const SERVERS_MAX: usize = 64;

/// How long servers count as not sharing their ticket keys; they may do so later. A try costs no
/// more than the ticket and a full handshake.
const UNSHARED_FOR_S: u64 = 3_600;

/// The largest session that is kept. A ticket contains the client's certificate chain, the session
/// the server's: mostly 4 KB together.
const SESSION_BYTES_MAX: usize = 32 << 10;

/// The server of a lane, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TicketServer {
    /// Host and port.
    pub(crate) address: String,
    /// The name that the server's certificate must have.
    pub(crate) name: String,
}

/// A digest of the certificates with which a session was made.
pub(crate) type Identity = [u8; qmux_config::SESSION_IDENTITY_BYTES];

/// A session that can be resumed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The session as quiche serialises it. It is shared, so that a copy for the file costs little.
    session: Arc<[u8]>,
    /// The address that gave the ticket.
    peer: SocketAddr,
    /// The time at which it expires, in seconds since 1970.
    expires_at: u64,
    /// The number of the ticket: those of one process count up in the order in which they came.
    number: u64,
}

impl Ticket {
    /// The session, for `quiche::Connection::set_session`.
    pub(crate) fn session(&self) -> &[u8] {
        &self.session
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({})", self.number)
    }
}

/// The tickets of one server.
#[derive(Debug, Default)]
struct Entry {
    identity: Identity,
    /// The tickets, oldest first.
    tickets: Vec<Ticket>,
    /// The time, in seconds since 1970, until which tickets are not offered across the addresses of
    /// the server: one of its addresses has declined a ticket of another, so that they do not share
    /// ticket keys.
    unshared_until: u64,
}

/// The part of the file that belongs to one server.
type Saved = (TicketServer, Identity, Vec<Ticket>);

/// All tickets; this has no clock, no file and no lock.
#[derive(Debug, Default)]
struct Tickets {
    servers: HashMap<TicketServer, Entry>,
    next_number: u64,
}

impl Tickets {
    fn entry(&mut self, server: &TicketServer, identity: Identity) -> Option<&mut Entry> {
        if !self.servers.contains_key(server) && self.servers.len() >= SERVERS_MAX {
            self.servers.retain(|_, entry| !entry.tickets.is_empty());
            if self.servers.len() >= SERVERS_MAX {
                return None;
            }
        }
        let entry = self.servers.entry(server.clone()).or_default();
        if entry.identity != identity {
            *entry = Entry {
                identity,
                ..Entry::default()
            };
        }
        Some(entry)
    }

    fn expire(&mut self, now: u64) {
        for entry in self.servers.values_mut() {
            entry.tickets.retain(|ticket| ticket.expires_at > now);
        }
    }

    fn put(&mut self, server: &TicketServer, identity: Identity, mut ticket: Ticket, keep: usize) {
        ticket.number = self.next_number;
        self.next_number += 1;
        self.insert(server, identity, ticket, keep);
    }

    fn insert(&mut self, server: &TicketServer, identity: Identity, ticket: Ticket, keep: usize) {
        let Some(entry) = self.entry(server, identity) else {
            return;
        };
        let at = entry
            .tickets
            .partition_point(|other| other.number < ticket.number);
        if entry
            .tickets
            .get(at)
            .is_some_and(|other| other.number == ticket.number)
        {
            return; // The last one, which was not taken away.
        }
        entry.tickets.insert(at, ticket);
        let keep = keep.clamp(TICKETS_MIN, TICKETS_MAX);
        let surplus = entry.tickets.len().saturating_sub(keep);
        entry.tickets.drain(..surplus);
    }

    /// The newest ticket from `peer`, or else, for servers that share their keys, from another
    /// address of this server.
    fn take(
        &mut self,
        server: &TicketServer,
        identity: Identity,
        peer: SocketAddr,
        now: u64,
    ) -> Option<Ticket> {
        self.expire(now);
        let entry = self.entry(server, identity)?;
        let from_peer = entry.tickets.iter().rposition(|it| it.peer == peer);
        let any = entry.tickets.len().checked_sub(1);
        let shared = now >= entry.unshared_until;
        let at = from_peer.or(if shared { any } else { None })?;
        let of = entry.tickets[at].peer;
        let is_last = entry.tickets.iter().filter(|it| it.peer == of).count() == 1;
        Some(if is_last {
            entry.tickets[at].clone()
        } else {
            entry.tickets.remove(at)
        })
    }

    /// The server did not resume the session of `ticket`, so that earlier ones are of no use
    /// either.
    fn declined(&mut self, server: &TicketServer, ticket: &Ticket, by: SocketAddr, now: u64) {
        let Some(entry) = self.servers.get_mut(server) else {
            return;
        };
        if ticket.peer == by {
            entry
                .tickets
                .retain(|other| other.peer != by || other.number > ticket.number);
        } else {
            entry.unshared_until = now + UNSHARED_FOR_S;
        }
    }

    fn forget(&mut self, server: &TicketServer) {
        self.servers.remove(server);
    }

    /// Everything that goes to the file.
    fn to_save(&self) -> Vec<Saved> {
        self.servers
            .iter()
            .map(|(server, entry)| (server.clone(), entry.identity, entry.tickets.clone()))
            .collect()
    }
}

/// The tickets of the process.
#[derive(Debug, Default)]
pub(crate) struct SessionCache {
    tickets: Arc<Mutex<Tickets>>,
    /// Wakes the thread that writes the file, if there is one.
    changed: OnceLock<Sender<()>>,
}

impl SessionCache {
    /// Loads the tickets of the file in `dir`, and saves them there from now on.
    ///
    /// # Errors
    /// With a text if the directory cannot be made or written to.
    pub(crate) fn keep_in(&self, dir: &Path) -> Result<(), String> {
        let failed = |error| unusable(dir, &error);
        file::make_dir(dir).map_err(failed)?;
        if let Some(danger) = file::danger(dir) {
            tracing::warn!(state_dir = %dir.display(), danger, "the state directory is not safe");
        }
        let path = dir.join(file::NAME);
        match file::load(&path) {
            Ok(loaded) => {
                let mut tickets = self.lock();
                for (server, identity, ticket) in loaded {
                    // A ticket that BoringSSL does not take now would only cost an attempt later.
                    if expiry(&ticket.session).is_some() {
                        tickets.put(&server, identity, ticket, TICKETS_MAX);
                    }
                }
                tickets.expire(unix_now());
            }
            Err(why) => {
                tracing::warn!(file = %path.display(), why, "saved sessions are not used; the next lanes are full handshakes");
            }
        }
        save(&self.tickets, &path).map_err(failed)?;
        let (sender, wakes) = bounded::<()>(1);
        let tickets = Arc::clone(&self.tickets);
        std::thread::Builder::new()
            .name("sessions".into())
            .spawn(move || {
                let mut failing = false;
                for () in wakes {
                    let result = save(&tickets, &path);
                    if let Err(error) = &result
                        && !failing
                    {
                        tracing::warn!(file = %path.display(), %error, "sessions cannot be saved");
                    }
                    failing = result.is_err();
                }
            })
            .map_err(failed)?;
        if self.changed.set(sender).is_err() {
            debug_assert!(false, "called once");
        }
        Ok(())
    }

    /// Takes a ticket for a lane to `server` at `peer`.
    pub(crate) fn take(
        &self,
        server: &TicketServer,
        identity: Identity,
        peer: SocketAddr,
    ) -> Option<Ticket> {
        let ticket = self.lock().take(server, identity, peer, unix_now());
        if ticket.is_some() {
            self.save_soon();
        }
        ticket
    }

    /// Keeps a session that `peer` gave, at most `lanes` of them. Returns false if it cannot be
    /// resumed.
    pub(crate) fn put(
        &self,
        server: &TicketServer,
        identity: Identity,
        peer: SocketAddr,
        session: &[u8],
        lanes: usize,
    ) -> bool {
        let Some(expires_at) = expiry(session) else {
            return false;
        };
        let ticket = Ticket {
            session: session.into(),
            peer,
            expires_at,
            number: 0,
        };
        self.lock().put(server, identity, ticket, lanes);
        self.save_soon();
        true
    }

    /// Gives back a ticket that was taken and did not reach the server.
    pub(crate) fn give_back(&self, server: &TicketServer, identity: Identity, ticket: Ticket) {
        self.lock().insert(server, identity, ticket, TICKETS_MAX);
        self.save_soon();
    }

    /// The server at `by` made a full handshake in spite of `ticket`.
    pub(crate) fn declined(&self, server: &TicketServer, ticket: &Ticket, by: SocketAddr) {
        self.lock().declined(server, ticket, by, unix_now());
        self.save_soon();
    }

    /// Drops the server's tickets, because it lets in no resumed session.
    pub(crate) fn forget(&self, server: &TicketServer) {
        self.lock().forget(server);
        self.save_soon();
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        lock(&self.tickets)
    }

    fn save_soon(&self) {
        if let Some(sender) = self.changed.get() {
            // If the channel is full, the thread has a wake-up before it that it has not taken yet.
            let _woken_already = sender.try_send(());
        }
    }
}

/// Checks whether [`SessionCache::keep_in`] could use `dir`, and returns what is dangerous about
/// it. Leaves nothing behind.
///
/// # Errors
/// The text that `keep_in` would give.
pub(crate) fn probe_dir(dir: &Path) -> Result<Option<&'static str>, String> {
    file::probe(dir).map_err(|error| unusable(dir, &error))?;
    Ok(file::danger(dir))
}

fn unusable(dir: &Path, error: &std::io::Error) -> String {
    format!("{} is not usable: {error}", dir.display())
}

fn lock(tickets: &Mutex<Tickets>) -> MutexGuard<'_, Tickets> {
    // A core that panicked has left whole tickets behind, because each change is one call.
    tickets.lock().unwrap_or_else(PoisonError::into_inner)
}

fn save(tickets: &Mutex<Tickets>, path: &Path) -> std::io::Result<()> {
    // A core that takes or keeps a ticket meanwhile must not wait for the encoding, nor for the
    // disk.
    let to_save = {
        let mut tickets = lock(tickets);
        tickets.expire(unix_now());
        tickets.to_save()
    };
    file::replace(path, &file::encode(&to_save))
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The time at which a session expires, in seconds since 1970. quiche serialises it as length and
/// TLS session, length and transport parameters.
fn expiry(session: &[u8]) -> Option<u64> {
    if session.len() > SESSION_BYTES_MAX {
        return None;
    }
    let (length, rest) = session.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
    let tls = SslSession::from_der(rest.get(..length)?).ok()?;
    tls.time().checked_add(tls.timeout().into())
}

#[cfg(test)]
mod tests;
