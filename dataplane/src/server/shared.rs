//! What the server role of all cores shares, and what each core gets of it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qmux_config::{ClientMatcher, Config, Door, ListenerProtocol, Server, Service, TrafficAddr};

use super::access_log::AccessLog;
use super::bounds::Gate;
use super::mail::ServerMail;
use super::pool::registry::Registry;
use super::pool::service::ClientPool;
use super::pool::views::{ClientView, ServiceCounts, ServiceView};
use crate::core::service_counters::ServiceCounters;
use crate::flow::role::RoleContext;
use crate::quic::tickets::{Keeper, TicketKeys};

/// The core of a server.
pub(crate) type ServerContext = RoleContext<ServerMail>;

/// The sockets of one door on one core.
#[derive(Debug)]
pub(crate) struct DoorSockets {
    /// For QUIC, one for each of the door's addresses.
    pub(crate) quic: Vec<UdpSocket>,
    /// Of the entrances of each service, in the order of its ports.
    pub(crate) services: Vec<Vec<EntranceSockets>>,
}

/// The sockets of one entrance on one core.
#[derive(Debug)]
pub(crate) struct EntranceSockets {
    /// Where visitors connect.
    pub(crate) traffic_addr: SocketAddr,
    /// For TCP visitors, if the service takes them.
    pub(crate) tcp: Option<TcpListener>,
    /// For UDP visitors, if the service takes them.
    pub(crate) udp: Option<UdpSocket>,
}

/// A service as its entrances and the clients know it: one for all cores.
#[derive(Debug)]
pub(crate) struct ServedService {
    /// Its name; empty for the one service of a listener.
    pub(crate) name: String,
    /// Its number at its door.
    pub(crate) number: usize,
    /// Where visitors connect.
    pub(crate) traffic: TrafficAddr,
    /// What visitors may speak.
    pub(crate) protocol: ListenerProtocol,
    /// Whether the server counts as ready only while somebody serves it.
    pub(crate) required: bool,
    /// How long a visitor may take nothing of what waits for it.
    pub(crate) stall_timeout: Duration,
    /// What it demands of visitors.
    pub(crate) gate: Arc<Gate>,
    /// Its clients.
    pub(crate) pool: Arc<ClientPool>,
    /// What each core counts of it.
    pub(crate) counters: Vec<Arc<ServiceCounters>>,
    /// Told of each flow that ends.
    pub(crate) access_log: Arc<AccessLog>,
}

impl ServedService {
    fn new(
        service: &Service,
        number: usize,
        cores: usize,
        access_log: &Arc<AccessLog>,
    ) -> ServedService {
        ServedService {
            name: service.name.clone(),
            number,
            traffic: service.traffic,
            protocol: service.protocol,
            required: service.required,
            stall_timeout: service.stall_timeout,
            gate: Arc::new(Gate::new(&service.bounds, cores)),
            pool: Arc::new(ClientPool::new(service.load_balancer)),
            counters: (0..cores).map(|_| Arc::default()).collect(),
            access_log: Arc::clone(access_log),
        }
    }

    /// As operators see it.
    fn view(&self) -> ServiceView {
        let mut counts = ServiceCounts::default();
        for core in &self.counters {
            counts.visitors += core.visitors.get();
            counts.udp_flows += core.udp_flows.get();
            counts.bytes_in += core.tcp_bytes_in.get() + core.udp_bytes_in.get();
            counts.bytes_out += core.tcp_bytes_out.get() + core.udp_bytes_out.get();
            counts.refused += core.visitors_refused.get();
        }
        ServiceView {
            name: self.name.clone(),
            traffic_addr: self.traffic.to_string(),
            protocol: self.protocol,
            required: self.required,
            totals: self.pool.totals(),
            counts,
        }
    }

    /// The service of a test: without a name, for these clients.
    #[cfg(test)]
    pub(crate) fn nameless(pool: &Arc<ClientPool>, cores: usize) -> Arc<ServedService> {
        Arc::new(ServedService {
            name: String::new(),
            number: 0,
            traffic: TrafficAddr::one(SocketAddr::from(([127, 0, 0, 1], 1))),
            protocol: ListenerProtocol::Both,
            required: false,
            stall_timeout: Duration::ZERO,
            gate: Arc::new(Gate::new(&qmux_config::Bounds::default(), cores)),
            pool: Arc::clone(pool),
            counters: (0..cores).map(|_| Arc::default()).collect(),
            access_log: Arc::new(AccessLog::off()),
        })
    }
}

/// A door as all cores share it.
#[derive(Debug)]
pub(crate) struct SharedDoor {
    /// Where clients connect.
    pub(crate) quic_addrs: Vec<SocketAddr>,
    /// Its clients.
    pub(crate) registry: Arc<Registry>,
    /// Its services.
    pub(crate) services: Vec<Arc<ServedService>>,
    /// Their numbers.
    by_name: HashMap<String, usize>,
    /// Whether any of them takes UDP.
    pub(crate) takes_udp: bool,
}

impl SharedDoor {
    fn new(door: &Door, cores: usize, access_log: &Arc<AccessLog>) -> Arc<SharedDoor> {
        let numbered = door.services.iter().enumerate();
        let services: Vec<_> = numbered
            .map(|(number, service)| {
                Arc::new(ServedService::new(service, number, cores, access_log))
            })
            .collect();
        let pools = services.iter().map(|it| Arc::clone(&it.pool)).collect();
        let names = services.iter().map(|it| (it.name.clone(), it.number));
        Arc::new(SharedDoor {
            quic_addrs: door.quic_addrs.clone(),
            registry: Arc::new(Registry::new(pools, cores)),
            by_name: names.collect(),
            services,
            takes_udp: door.services.iter().any(|it| it.protocol.udp()),
        })
    }

    /// Its clients, as operators see them.
    fn clients(&self) -> Vec<ClientView> {
        let clients = self.registry.clients();
        let mut views: HashMap<u64, ClientView> = HashMap::new();
        for client in &clients {
            views.insert(client.number, ClientView::of(client));
        }
        for service in &self.services {
            for member in service.pool.clients().iter() {
                // One that has come or gone meanwhile is seen the next time.
                if let Some(view) = views.get_mut(&member.number) {
                    view.flows += member.flows();
                    let served = (service.name.clone(), member.is_reachable());
                    view.services.push(served);
                }
            }
        }
        let ours = clients.iter();
        ours.filter_map(|client| views.remove(&client.number))
            .collect()
    }

    /// The service of this name.
    pub(crate) fn service(&self, name: &str) -> Option<&Arc<ServedService>> {
        self.services.get(*self.by_name.get(name)?)
    }
}

/// What all cores of the server role share.
#[derive(Debug)]
pub(crate) struct ServerShared {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// Every door of the configuration, in its order.
    pub(crate) doors: Vec<Arc<SharedDoor>>,
    /// Who may serve what.
    pub(crate) matcher: ClientMatcher,
    /// Drawn at this process's start.
    pub(crate) instance_id: [u8; 16],
    /// The session ticket keys of all cores.
    pub(crate) ticket_keys: Arc<TicketKeys>,
    /// Keeps them up to date; the first core takes it.
    pub(crate) ticket_keeper: Mutex<Option<Keeper>>,
}

impl ServerShared {
    /// Of a server whose section of `config` is `server`.
    pub(crate) fn new(
        config: &Arc<Config>,
        server: &Server,
        cores: usize,
        ticket_keys: Arc<TicketKeys>,
        ticket_keeper: Keeper,
        access_log: &Arc<AccessLog>,
    ) -> ServerShared {
        let doors = server.doors.iter();
        let doors = doors.map(|door| SharedDoor::new(door, cores, access_log));
        ServerShared {
            config: Arc::clone(config),
            doors: doors.collect(),
            matcher: ClientMatcher::new(server),
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            ticket_keys,
            ticket_keeper: Mutex::new(Some(ticket_keeper)),
        }
    }

    /// The `[server]` section. The role is only started if there is one.
    pub(crate) fn server(&self) -> Option<&Server> {
        self.config.server.as_ref()
    }

    /// The services of all doors, as operators see them.
    pub(crate) fn service_views(&self) -> Vec<ServiceView> {
        self.services().map(|(_, service)| service.view()).collect()
    }

    /// The clients of all doors, as operators see them.
    pub(crate) fn client_views(&self) -> Vec<ClientView> {
        self.doors.iter().flat_map(|door| door.clients()).collect()
    }

    /// The services of all doors.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&SharedDoor, &ServedService)> {
        let doors = self.doors.iter();
        doors.flat_map(|door| door.services.iter().map(move |it| (&**door, &**it)))
    }
}
