//! Session resumption: the ticket of one attempt, from its use to keeping the next one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use qmux_config::Client;
use qmux_proto::LaneError;
use qmux_proto::control::RefuseReason;

use super::ending::{AttemptEnd, Causes};
use crate::client::servers::server::ServerState;
use crate::client::{ClientCore, ClientShared};
use crate::core::counters::CoreCounters;
use crate::quic::end::LaneEnd;
use crate::quic::lane::Lane;
use crate::quic::sessions::{Identity, Ticket, TicketServer};
use crate::quic::tls;

/// A server sends its tickets with the end of the handshake. If the packet is lost, the client
/// looks for them this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many times the client looks for tickets.
const LOOKS_MAX: usize = 30;

/// The part of an attempt that concerns sessions.
pub(super) struct Resumption {
    shared: Arc<ClientShared>,
    counters: Arc<CoreCounters>,
    server: TicketServer,
    identity: Option<Identity>,
    peer: SocketAddr,
    lanes: usize,
    ticket: Option<Ticket>,
}

impl Resumption {
    /// Takes a ticket for an attempt to reach `server`.
    pub(super) fn prepare(core: &ClientCore, client: &Client, server: &ServerState) -> Resumption {
        let shared = Arc::clone(&core.shared);
        let peer = server.address;
        // Tickets are kept by the configured address, because the servers that its name stands for
        // may share their keys.
        let targets = shared.targets();
        let configured = server.configured();
        let target = targets.get(configured.target);
        let target = TicketServer {
            address: target.map_or_else(|| peer.to_string(), |it| it.name.to_string()),
            name: configured.server_name.clone(),
        };
        let lanes = server.lanes_wanted(client.lanes);
        // If certificates cannot be read, the attempt ends elsewhere.
        let credentials = shared.credentials.get(client).ok();
        let identity = credentials.map(|credentials| credentials.identity);
        let ticket = identity.and_then(|identity| shared.sessions.take(&target, identity, peer));
        Resumption {
            counters: Arc::clone(&core.context.counters),
            server: target,
            identity,
            peer,
            lanes,
            ticket,
            shared,
        }
    }

    /// The name that the server's certificate must have.
    pub(super) fn server_name(&self) -> &str {
        &self.server.name
    }

    /// The session to offer, if there is one.
    pub(super) fn session(&self) -> Option<&[u8]> {
        self.ticket.as_ref().map(Ticket::session)
    }

    /// Whether Register may be sent before the handshake is complete.
    pub(super) fn is_offered(&self) -> bool {
        self.ticket.is_some()
    }

    /// Drops a session that quiche does not accept.
    pub(super) fn unusable(&mut self) {
        self.ticket = None;
        self.counters.sessions_unusable.increment();
    }

    /// The handshake has failed.
    pub(super) fn failed(&mut self, lane: &Lane, end: &LaneEnd) {
        let (Some(ticket), Some(identity)) = (self.ticket.take(), self.identity) else {
            return;
        };
        if Causes::of(end).session_is_spent {
            self.shared.sessions.forget(&self.server);
        } else if !lane.was_answered() {
            // Only the network has seen the ticket, so it is as good as before.
            self.shared
                .sessions
                .give_back(&self.server, identity, ticket);
        }
    }

    /// Checks, after the handshake, whether the server is still the one that it must be.
    ///
    /// # Errors
    /// The reason why it is not, for the log.
    pub(super) fn check(&self, lane: &Lane) -> Result<(), AttemptEnd> {
        let resumed = lane.handshake().resumed;
        if !resumed {
            if let Some(ticket) = &self.ticket {
                self.shared
                    .sessions
                    .declined(&self.server, ticket, self.peer);
            }
            return Ok(());
        }
        lane.with_tls(|ssl| tls::check_resumed_peer(ssl, false))
            .map_err(|why| {
                self.counters.sessions_refused.increment();
                self.shared.sessions.forget(&self.server);
                lane.close(LaneError::Unauthenticated, "");
                AttemptEnd::Failed(format!(
                    "the server's certificate of an earlier session is not good any more: {why}"
                ))
            })
    }

    /// The registration was not accepted. If authentication has failed, or the server has ended the
    /// lane without an answer, the session may be the reason, and none is offered the next time.
    /// Otherwise (mostly because the server drains or stops) the ticket of this lane is as good as
    /// that of any other.
    pub(super) fn not_registered(&self, lane: &Lane, end: &AttemptEnd) {
        let causes = lane.end().map(|end| Causes::of(&end));
        let is_spent = match end {
            AttemptEnd::Refused(reason, _) => *reason == RefuseReason::Unauthenticated,
            _ if !lane.handshake().resumed => false,
            _ => causes.is_some_and(|it| it.session_is_spent && !it.restart),
        };
        if is_spent {
            self.shared.sessions.forget(&self.server);
        } else {
            self.look(lane);
        }
    }

    /// The lane is registered: keeps the ticket for the next one, as soon as it has come.
    pub(super) fn keep_next(self, lane: &Rc<Lane>) {
        if self.look(lane) {
            return;
        }
        let lane = Rc::downgrade(lane);
        crate::core::task::spawn(async move {
            for _ in 0..LOOKS_MAX {
                crate::core::time::sleep(LOOK_AGAIN).await;
                let Some(lane) = lane.upgrade() else { return };
                if !lane.is_open() || self.look(&lane) {
                    return;
                }
            }
        });
    }

    fn look(&self, lane: &Lane) -> bool {
        let (Some(session), Some(identity)) = (lane.session(), self.identity) else {
            return false;
        };
        let cache = &self.shared.sessions;
        if cache.put(&self.server, identity, self.peer, &session, self.lanes) {
            self.counters.sessions_kept.increment();
        } else {
            self.counters.sessions_unusable.increment();
        }
        true
    }
}

#[cfg(test)]
#[path = "resumption_tests.rs"]
mod tests;
