//! What the server role of all cores shares, and what each core gets of it.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};

use qmux_config::{Config, Server, Service};

use super::mail::ServerMail;
use super::pool::registry::ClientPool;
use super::pool::views::{ClientView, ServiceCounts, ServiceView, by_client};
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
    /// All services with their clients, as operators see them.
    pub(crate) fn services(&self) -> Vec<ServiceView> {
        let doors = self.server().map_or(&[][..], |server| &server.doors[..]);
        let services = doors.iter().flat_map(|door| &door.services);
        let view = |(service, pool): (&Service, &Arc<ClientPool>)| ServiceView {
            name: service.name.clone(),
            traffic_addr: service.traffic.to_string(),
            protocol: service.protocol,
            required: service.required,
            totals: pool.totals(),
            counts: ServiceCounts::default(),
        };
        services.zip(&self.pools).map(view).collect()
    }

    /// All clients, as operators see them.
    pub(crate) fn clients(&self) -> Vec<ClientView> {
        let doors = self.server().map_or(&[][..], |server| &server.doors[..]);
        let services = doors.iter().enumerate();
        let services = services.flat_map(|(door, it)| it.services.iter().map(move |it| (door, it)));
        let rows = services.zip(&self.pools);
        by_client(rows.flat_map(|((door, service), pool)| pool.rows(door, &service.name)))
    }

    /// The `[server]` section. The role is only started if there is one.
    pub(crate) fn server(&self) -> Option<&Server> {
        self.config.server.as_ref()
    }
}
