//! What the server role of all cores shares, and what each core gets of it.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};

use qmux_config::{Config, Server};

use super::mail::ServerMail;
use super::pool::registry::ClientPool;
use crate::flow::role::RoleContext;
use crate::quic::tickets::{Keeper, TicketKeys};

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
