//! What all cores of the server role share, and what each core is told to change.

pub(crate) mod judge;
mod overlap;
pub(crate) mod plan;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use boring::x509::store::X509Store;
use qmux_config::{ClientMatcher, Config, Door, ListenerProtocol, Server, Service, TrafficAddr};

use super::access_log::AccessLog;
use super::bounds::Gate;
use super::ids::DoorId;
use super::pool::registry::{Changed, Claim, Offered, Registry};
use super::pool::service::ClientPool;
use super::pool::views::{ClientView, ServiceCounts, ServiceView};
use super::succession::{Predecessor, Taken};
use crate::core::service_counters::ServiceCounters;
use crate::quic::credentials::ServerCredentials;
use crate::quic::tickets::{Keeper, TicketKeys};
use crate::quic::{settings, tls};
use overlap::Addresses;
use plan::{CoreChanges, DoorSockets, Numbers, Plan, SharedEntrance};

/// Time after which even a slow core has closed a socket for TCP visitors that is given up; it
/// accepts the last of them for two seconds at most.
const LEAVING_TCP: Duration = Duration::from_secs(10);

/// The configuration of a service, and its entrances.
#[derive(Debug)]
pub(crate) struct ServiceTerms {
    /// The service as configured.
    pub(crate) service: Service,
    /// The service's entrances, without those that still drain.
    pub(crate) entrances: Vec<SharedEntrance>,
}

/// A service as its entrances and clients know it, shared by all cores.
#[derive(Debug)]
pub(crate) struct ServedService {
    /// The name; empty for the one service of a listener.
    pub(crate) name: String,
    /// The number at the door; no other service there has it before or after.
    pub(crate) number: usize,
    /// The settings of the service that a change of the configuration may replace.
    terms: ArcSwap<ServiceTerms>,
    /// The gate that visitors have to pass.
    pub(crate) gate: Arc<Gate>,
    /// The clients of the service.
    pub(crate) pool: Arc<ClientPool>,
    /// The counters of the service on each core.
    pub(crate) counters: Vec<Arc<ServiceCounters>>,
    /// The access log, which gets a line for each flow that ends.
    pub(crate) access_log: Arc<AccessLog>,
}

impl ServedService {
    pub(in crate::server) fn new(
        service: &Service,
        number: usize,
        cores: usize,
        access_log: &Arc<AccessLog>,
    ) -> Arc<ServedService> {
        Arc::new(ServedService {
            name: service.name.clone(),
            number,
            terms: ArcSwap::from_pointee(ServiceTerms {
                service: service.clone(),
                entrances: Vec::new(),
            }),
            gate: Arc::new(Gate::new(&service.bounds, cores)),
            pool: Arc::new(ClientPool::new(service.load_balancer)),
            counters: (0..cores).map(|_| Arc::default()).collect(),
            access_log: Arc::clone(access_log),
        })
    }

    pub(in crate::server) fn terms(&self) -> Guard<Arc<ServiceTerms>> {
        self.terms.load()
    }

    /// The address that visitors connect to.
    pub(crate) fn traffic(&self) -> TrafficAddr {
        self.terms().service.traffic
    }

    /// The protocols that visitors may speak.
    pub(crate) fn protocol(&self) -> ListenerProtocol {
        self.terms().service.protocol
    }

    /// How long a visitor may take nothing although bytes wait for it.
    pub(crate) fn stall_timeout(&self) -> Duration {
        self.terms().service.stall_timeout
    }

    /// Replaces the terms. Returns true if clients are to be told.
    fn change(&self, service: &Service, entrances: Vec<SharedEntrance>) -> bool {
        let before = self.terms.swap(Arc::new(ServiceTerms {
            service: service.clone(),
            entrances,
        }));
        if before.service.bounds != service.bounds {
            self.gate.demand(&service.bounds);
        }
        self.pool.balance_by(service.load_balancer);
        before.service.traffic != service.traffic
    }

    /// The service as operators see it.
    fn view(&self) -> ServiceView {
        let mut counts = ServiceCounts::default();
        for core in &self.counters {
            counts.visitors += core.visitors.get();
            counts.udp_flows += core.udp_flows.get();
            counts.bytes_in += core.tcp_bytes_in.get() + core.udp_bytes_in.get();
            counts.bytes_out += core.tcp_bytes_out.get() + core.udp_bytes_out.get();
        }
        counts.refused = self.gate.refused_in_all();
        let terms = self.terms();
        ServiceView {
            name: self.name.clone(),
            traffic_addr: terms.service.traffic.to_string(),
            protocol: terms.service.protocol,
            required: terms.service.required,
            totals: self.pool.totals(),
            counts,
        }
    }

    /// For tests: a service without a name, with these clients.
    #[cfg(test)]
    pub(crate) fn nameless(pool: &Arc<ClientPool>, cores: usize) -> Arc<ServedService> {
        let service = Service {
            name: String::new(),
            traffic: TrafficAddr::one(SocketAddr::from(([127, 0, 0, 1], 1))),
            protocol: ListenerProtocol::Both,
            load_balancer: pool.balancer(),
            required: false,
            stall_timeout: Duration::ZERO,
            bounds: qmux_config::Bounds::default(),
        };
        let mut this = ServedService::new(&service, 0, cores, &Arc::new(AccessLog::off()));
        Arc::get_mut(&mut this).expect("new").pool = Arc::clone(pool);
        this
    }
}

/// The services of a door.
#[derive(Debug, Default)]
pub(crate) struct ServiceTable {
    /// The services in the order of the configuration.
    pub(crate) all: Vec<Arc<ServedService>>,
    /// The index of each service in `all`.
    by_name: HashMap<String, usize>,
}

impl ServiceTable {
    fn new(all: Vec<Arc<ServedService>>) -> ServiceTable {
        let names = all.iter().enumerate();
        let by_name = names.map(|(place, it)| (it.name.clone(), place)).collect();
        ServiceTable { all, by_name }
    }

    /// The service with this name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<ServedService>> {
        self.all.get(*self.by_name.get(name)?)
    }

    /// The service with this number at the door.
    pub(crate) fn by_number(&self, number: usize) -> Option<&Arc<ServedService>> {
        self.all.iter().find(|service| service.number == number)
    }
}

/// A door as all cores share it.
#[derive(Debug)]
pub(crate) struct SharedDoor {
    /// The number of the door.
    pub(crate) id: DoorId,
    /// The addresses that clients connect to.
    pub(crate) quic_addrs: Vec<SocketAddr>,
    /// The clients of the door.
    pub(crate) registry: Arc<Registry>,
    /// The services of the door.
    services: ArcSwap<ServiceTable>,
    /// How many numbers have been given to services of the door.
    numbers_used: AtomicUsize,
}

impl SharedDoor {
    pub(in crate::server) fn new(id: DoorId, door: &Door, cores: usize) -> Arc<SharedDoor> {
        Arc::new(SharedDoor {
            id,
            quic_addrs: door.quic_addrs.clone(),
            registry: Arc::new(Registry::new(cores)),
            services: ArcSwap::default(),
            numbers_used: AtomicUsize::new(0),
        })
    }

    /// The services of the door at this moment.
    pub(crate) fn services(&self) -> Arc<ServiceTable> {
        self.services.load_full()
    }

    pub(in crate::server) fn numbers_used(&self) -> usize {
        self.numbers_used.load(Ordering::Relaxed)
    }

    /// Replaces the services of the door. Returns the numbers of the clients to be told.
    fn change(&self, services: &[plan::ServicePlan], settings: &ServerSettings) -> Vec<u64> {
        let mut to_be_told = false;
        for plan in services {
            let entrances = plan.kept.iter().chain(&plan.opened).copied().collect();
            to_be_told |= plan.service.change(&plan.wanted, entrances);
        }
        let all: Vec<_> = services.iter().map(|it| Arc::clone(&it.service)).collect();
        let pools = all.iter().map(|it| (it.number, Arc::clone(&it.pool)));
        let changed = Changed {
            generation: settings.generation,
            pools: pools.collect(),
        };
        let used = all.iter().map(|it| it.number + 1).max().unwrap_or(0);
        self.numbers_used.fetch_max(used, Ordering::Relaxed);
        let names: Vec<_> = all.iter().map(|it| it.number).collect();
        let before = self.services.swap(Arc::new(ServiceTable::new(all)));
        let as_before = before.all.iter().map(|it| it.number).eq(names);
        let table = self.services();
        let judge = |claim: &Claim| settings.judge(claim, &table);
        let numbers = self.registry.change(changed, judge);
        // A client may have been waiting for a service that was added.
        if to_be_told || !as_before {
            return self.registry.clients().iter().map(|it| it.number).collect();
        }
        numbers
    }

    /// The door's clients, as operators see them.
    fn clients(&self) -> Vec<ClientView> {
        let (clients, now) = (self.registry.clients(), Instant::now());
        let mut views: HashMap<u64, ClientView> = HashMap::new();
        for client in &clients {
            views.insert(client.number, ClientView::of(client));
        }
        for service in &self.services().all {
            for member in service.pool.clients().iter() {
                // A client that has come or gone meanwhile is seen the next time.
                if let Some(view) = views.get_mut(&member.number) {
                    view.flows += member.flows();
                    let served = (service.name.clone(), member.is_reachable(now));
                    view.services.push(served);
                }
            }
        }
        let ours = clients.iter();
        ours.filter_map(|client| views.remove(&client.number))
            .collect()
    }
}

/// One configuration of the server role. It never changes; another one takes its place.
pub(crate) struct ServerSettings {
    /// The whole configuration of the process.
    pub(crate) config: Arc<Config>,
    /// The number of the configuration, which counts up.
    pub(crate) generation: u64,
    /// Says which client may serve what.
    pub(crate) matcher: ClientMatcher,
    /// The certificates and keys that the server shows, and the CAs that it trusts.
    pub(crate) credentials: Arc<ServerCredentials>,
    /// The CAs and revocation lists by which certificates of registered clients are checked.
    pub(crate) store: Option<X509Store>,
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerSettings({})", self.generation)
    }
}

impl ServerSettings {
    /// The settings after `generation` earlier ones.
    ///
    /// # Errors
    /// If a certificate or a revocation list cannot be used.
    fn new(config: &Arc<Config>, server: &Server, generation: u64) -> Result<Self, String> {
        let credentials = ServerCredentials::read(server).map_err(|error| error.to_string())?;
        let store = tls::client_store(&credentials).map_err(|error| error.to_string())?;
        // Each core will make the same from the same bytes; no core is to find out later that a key
        // does not belong to its certificate.
        let tls = tls::server_with(&credentials).map_err(|error| error.to_string())?;
        settings::transport(&config.quic, tls).map_err(|error| error.to_string())?;
        tls::carrier_server(&credentials).map_err(|error| error.to_string())?;
        Ok(ServerSettings {
            config: Arc::clone(config),
            generation,
            matcher: ClientMatcher::new(server),
            credentials: Arc::new(credentials),
            store,
        })
    }

    /// The `[server]` section.
    pub(crate) fn server(&self) -> &Server {
        // Settings of this role exist only for a file that has the section (`ServerShared::new`).
        let server = self.config.server.as_ref();
        server.unwrap_or_else(|| unreachable!("settings without [server]"))
    }

    /// The services that a client serves by these settings, given the grounds of its registration.
    /// `None` if the client has to prove its identity again.
    fn judge(&self, claim: &Claim, table: &ServiceTable) -> Option<Vec<Offered>> {
        let admission = self.matcher.again(&claim.admission, claim.token.as_ref());
        let is_admitted = admission != qmux_config::Admission::Refused;
        is_admitted.then(|| judge::judge(table, &admission, &claim.offers).1)
    }
}

/// Closed entrances whose UDP flows have some time left, each with the end of that time.
type Draining = Vec<(SharedEntrance, Instant)>;

/// Addresses that cores are about to give up, each with the time until which it may still be bound.
#[derive(Debug, Default)]
struct LeavingTcp(Vec<(SocketAddr, Instant)>);

impl LeavingTcp {
    /// The addresses that may still be bound now.
    fn still(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.0.retain(|(_, until)| *until > now);
        self.0.iter().map(|(it, _)| *it).collect()
    }
}

/// The state that all cores of the server role share.
#[derive(Debug)]
pub(crate) struct ServerShared {
    settings: ArcSwap<ServerSettings>,
    doors: ArcSwap<Vec<Arc<SharedDoor>>>,
    numbers: Mutex<Numbers>,
    draining: Mutex<Draining>,
    /// Addresses of closed entrances, while cores may still accept the last TCP visitors.
    leaving_tcp: Mutex<LeavingTcp>,
    /// Addresses of removed doors, each with the time until which their lanes may still use it.
    leaving_doors: Mutex<Vec<(SocketAddr, Instant)>>,
    cores: usize,
    /// The process that had the sockets before, while it lets its flows finish.
    pub(crate) predecessor: OnceLock<Predecessor>,
    /// The sockets that a successor has taken; set at the moment when that is decided.
    pub(crate) handed_over: OnceLock<Taken>,
    /// The access log, which gets a line for each flow that ends, of any service.
    access_log: Arc<AccessLog>,
    /// A random number drawn at the start of this process.
    pub(crate) instance_id: [u8; 16],
    /// The session ticket keys, shared by all cores.
    pub(crate) ticket_keys: Arc<TicketKeys>,
    /// The task that keeps the ticket keys up to date; the first core takes it.
    pub(crate) ticket_keeper: Mutex<Option<Keeper>>,
}

impl ServerShared {
    /// The shared state of a server with the section `server`, without any door; the first plan
    /// opens the doors.
    ///
    /// # Errors
    /// If a certificate cannot be used.
    pub(crate) fn new(
        config: &Arc<Config>,
        server: &Server,
        cores: usize,
        ticket_keys: Arc<TicketKeys>,
        ticket_keeper: Keeper,
        access_log: &Arc<AccessLog>,
    ) -> Result<ServerShared, String> {
        let settings = ServerSettings::new(config, server, 0)?;
        Ok(ServerShared {
            predecessor: OnceLock::new(),
            handed_over: OnceLock::new(),
            access_log: Arc::clone(access_log),
            settings: ArcSwap::from_pointee(settings),
            doors: ArcSwap::default(),
            numbers: Mutex::default(),
            draining: Mutex::default(),
            leaving_tcp: Mutex::default(),
            leaving_doors: Mutex::default(),
            cores,
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            ticket_keys,
            ticket_keeper: Mutex::new(Some(ticket_keeper)),
        })
    }

    /// The settings that are in force now.
    pub(crate) fn settings(&self) -> Arc<ServerSettings> {
        self.settings.load_full()
    }

    /// Plans the change to another configuration with the section `server`. Nothing changes yet.
    ///
    /// # Errors
    /// If a certificate cannot be used.
    pub(crate) fn plan(&self, config: &Arc<Config>, server: &Server) -> Result<Plan, String> {
        let generation = self.settings().generation + 1;
        let settings = Arc::new(ServerSettings::new(config, server, generation)?);
        let doors = self.doors();
        let mut numbers = lock(&self.numbers);
        let log = &self.access_log;
        let mut plan = plan::plan(&doors, &settings, &mut numbers, self.cores, log);
        plan.leaving_tcp = lock(&self.leaving_tcp).still(Instant::now());
        Ok(plan)
    }

    /// Addresses of closed entrances whose UDP flows still go on.
    pub(crate) fn draining(&self) -> Addresses {
        let draining = lock(&self.draining);
        draining.iter().map(|(it, _)| it.traffic_addr).collect()
    }

    /// How long a removed door still has this address, if one does.
    pub(crate) fn door_drains_at(&self, address: SocketAddr, now: Instant) -> Option<Duration> {
        let leaving = lock(&self.leaving_doors);
        let of = leaving
            .iter()
            .find(|(it, until)| *it == address && *until > now);
        of.map(|(_, until)| until.saturating_duration_since(now))
    }

    /// Carries a plan out. Returns what each core has to do.
    pub(crate) fn follow(&self, plan: &Plan, sockets: Vec<Vec<DoorSockets>>) -> Vec<CoreChanges> {
        let superseded = self.note_draining(plan, Instant::now());
        let mut told = Vec::new();
        self.settings.store(Arc::clone(&plan.settings));
        for door in &plan.doors {
            let numbers = door.door.change(&door.services, &plan.settings);
            told.extend(numbers.into_iter().map(|number| (door.door.id, number)));
        }
        for door in &plan.doors_closed {
            let _served_nothing = door.change(&[], &plan.settings);
        }
        let doors = plan.doors.iter().map(|it| Arc::clone(&it.door)).collect();
        self.doors.store(Arc::new(doors));
        plan::for_cores(plan, sockets, told, &superseded)
    }

    /// Notes which entrances drain from now on. Returns draining entrances that must end because
    /// others have their addresses now.
    fn note_draining(&self, plan: &Plan, now: Instant) -> Vec<SharedEntrance> {
        let mut draining = lock(&self.draining);
        draining.retain(|(_, until)| *until > now);
        let opened = plan.opens_udp();
        let is_taken = |it: &SharedEntrance| opened.overlap(it.traffic_addr);
        let superseded = draining
            .iter()
            .map(|(it, _)| *it)
            .filter(is_taken)
            .collect();
        draining.retain(|(it, _)| !is_taken(it));
        // Entrances drain as long as the old or the new configuration lets them, and a little
        // longer.
        let timeout = plan.settings.server().drain_timeout + Duration::from_secs(5);
        let closed = plan.closed.iter().filter(|it| it.udp && !is_taken(it));
        draining.extend(closed.map(|it| (*it, now + timeout)));
        let closed = plan.closed.iter().filter(|it| it.tcp);
        let until = now + LEAVING_TCP;
        lock(&self.leaving_tcp)
            .0
            .extend(closed.map(|it| (it.traffic_addr, until)));
        let mut leaving = lock(&self.leaving_doors);
        leaving.retain(|(_, until)| *until > now);
        let doors = plan.doors_closed.iter().flat_map(|door| &door.quic_addrs);
        leaving.extend(doors.map(|address| (*address, now + timeout)));
        superseded
    }

    /// The doors at this moment.
    pub(crate) fn doors(&self) -> Arc<Vec<Arc<SharedDoor>>> {
        self.doors.load_full()
    }

    /// The services of all doors, as operators see them.
    pub(crate) fn service_views(&self) -> Vec<ServiceView> {
        let services = self.services();
        services.iter().map(|(_, service)| service.view()).collect()
    }

    /// Number of lanes that ride TLS.
    pub(crate) fn lanes_over_tls(&self) -> usize {
        let clients = self.client_views();
        clients.iter().map(|client| client.lanes_over_tls).sum()
    }

    /// The clients of all doors, as operators see them.
    pub(crate) fn client_views(&self) -> Vec<ClientView> {
        let doors = self.doors();
        doors.iter().flat_map(|door| door.clients()).collect()
    }

    /// The services of all doors, each with its door.
    pub(crate) fn services(&self) -> Vec<(Arc<SharedDoor>, Arc<ServedService>)> {
        let mut services = Vec::new();
        for door in self.doors().iter() {
            let of_door = door.services();
            let of_door = of_door.all.iter();
            services.extend(of_door.map(|it| (Arc::clone(door), Arc::clone(it))));
        }
        services
    }
}

/// Locks a mutex that whoever changes the configuration holds, one at a time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qmux_config::certs::{CertsRequest, Generated, generate, write};

    use super::*;

    const TEXT: &str = r#"
        [[server.listeners]]
        quic_addr = "127.0.0.1:8443"
        traffic_addr = "127.0.0.1:8080"
        protocol = "tcp"
        [server.auth]
        method = "token"
        token = "the secret of this test"
        [server.tls]
        server_cert_file = "server.crt"
        server_key_file = "server.key"
    "#;

    fn certs(dir: &Path) -> Generated {
        let request = CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days: 30,
        };
        let certs = generate(&request).expect("certificates");
        write(&certs, dir, true).expect("written");
        certs
    }

    #[test]
    fn settings_are_refused_whose_pair_has_changed_since_the_text_was_judged() {
        let dir = tempfile::tempdir().expect("a directory");
        let _before = certs(dir.path());
        let config = Config::parse(TEXT, &dir.path().join("dp.toml")).expect("a config");
        let config = Arc::new(config);
        let read = || {
            let server = config.server.as_ref().expect("a server");
            ServerSettings::new(&config, server, 0)
        };
        let before = read().expect("a pair").credentials.shown;
        let key = std::fs::read(dir.path().join("server.key")).expect("the key");
        let after = certs(dir.path());
        std::fs::write(dir.path().join("server.key"), key).expect("written");
        let refused = read().expect_err("the certificate came before its key");
        assert!(refused.contains("server.key"), "{refused}");
        std::fs::write(dir.path().join("server.key"), after.server_key_pem).expect("written");
        assert_ne!(read().expect("a pair").credentials.shown, before);
    }
}
