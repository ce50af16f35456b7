//! The server role on one core: its share of every listener.

mod door;
pub(crate) mod mail;
pub(crate) mod pool;
mod tcp;
pub(crate) mod udp;

use std::net::{TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qmux_config::{Config, Server};

use crate::flow::role::RoleContext;
use crate::quic::tickets::{Keeper, TicketKeys};
use door::ListenerCore;
use mail::ServerMail;
use pool::registry::ClientPool;

/// The core of a server.
pub(crate) type ServerContext = RoleContext<ServerMail>;

/// The sockets of one listener on one core.
#[derive(Debug)]
pub(crate) struct ListenerSockets {
    /// For QUIC.
    pub(crate) quic: UdpSocket,
    /// For TCP visitors, if the listener takes them.
    pub(crate) tcp: Option<TcpListener>,
    /// For UDP visitors, if the listener takes them.
    pub(crate) udp: Option<UdpSocket>,
}

/// What all cores of the server role share.
#[derive(Debug)]
pub(crate) struct ServerShared {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// One pool of clients per listener.
    pub(crate) pools: Vec<Arc<ClientPool>>,
    /// Drawn at this process's start.
    pub(crate) instance_id: [u8; 16],
    /// The session ticket keys of all cores.
    pub(crate) ticket_keys: Arc<TicketKeys>,
    /// Keeps them up to date; the first core takes it.
    pub(crate) ticket_keeper: Mutex<Option<Keeper>>,
}

impl ServerShared {
    /// The `[server]` section. The role is only started if there is one.
    pub(crate) fn server(&self) -> Option<&Server> {
        self.config.server.as_ref()
    }
}

/// The server role on one core.
pub(crate) struct ServerCore {
    listeners: Vec<Rc<ListenerCore>>,
}

impl ServerCore {
    /// Starts this core's share of every listener.
    ///
    /// # Errors
    /// With a text for the log if sockets or TLS contexts cannot be set up on this core.
    pub(crate) fn start(
        context: &Rc<ServerContext>,
        shared: &Arc<ServerShared>,
        sockets: Vec<ListenerSockets>,
    ) -> Result<ServerCore, String> {
        let listeners = sockets
            .into_iter()
            .enumerate()
            .map(|(index, sockets)| ListenerCore::start(index, context, shared, sockets))
            .collect::<Result<_, _>>()?;
        let keeper = shared
            .ticket_keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            crate::core::task::spawn_vital(keeper.run(Arc::clone(&context.counters)));
        }
        Ok(ServerCore { listeners })
    }

    /// Takes what the same role of another core has sent.
    pub(crate) fn mail(&self, mail: ServerMail) {
        let listener = |index: usize| self.listeners.get(index);
        match mail {
            ServerMail::Visitor {
                listener: index,
                stream,
                visitor,
                ticket,
            } => {
                if let Some(listener) = listener(index) {
                    listener.visitor_from_other_core(stream, visitor, ticket);
                }
            }
            ServerMail::Datagram {
                listener: index,
                packet,
            } => {
                if let Some(listener) = listener(index) {
                    listener.datagram_from_other_core(packet);
                }
            }
            ServerMail::Packet {
                listener: index,
                mut data,
                from,
                to_ip,
            } => {
                if let Some(listener) = listener(index) {
                    listener.endpoint().inject(&mut data, from, to_ip);
                }
            }
            ServerMail::Evict {
                listener: index,
                client,
            } => {
                if let Some(listener) = listener(index) {
                    listener.evict(client);
                }
            }
            ServerMail::ClientMayBeGone {
                listener: index,
                client,
            } => {
                if let Some(listener) = listener(index) {
                    listener.alarm(client);
                }
            }
        }
    }

    /// Takes no new visitor and tells the clients so.
    pub(crate) fn drain(&self, timeout: Duration) {
        for listener in &self.listeners {
            listener.drain(timeout);
        }
    }

    /// Whether the clients have all bytes of the flows that have ended.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        // All are asked: the time that each may take runs from the first question.
        let waits = |listener: &&Rc<ListenerCore>| !listener.has_delivered(now);
        self.listeners.iter().filter(waits).count() == 0
    }

    /// Closes all lanes. They are told in the next flush.
    pub(crate) fn close(&self) {
        for listener in &self.listeners {
            listener.close();
        }
    }
}
