//! The client role on one core: its share of the lanes to every server.

mod attempt;
#[cfg(test)]
mod attempt_tests;
mod backoff;
mod beside;
mod flow;
mod lane;
pub(crate) mod mail;
mod plan;
mod presence;
mod resumption;
mod roster;
mod seen;
mod server;
mod service;
mod session;
#[cfg(test)]
mod simulation;
mod supervisor;
mod twins;
pub(crate) mod udp;
pub(crate) mod views;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qmux_config::{Client, Config, Lanes, LocalService};
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use crate::core::mailbox::Post;
use crate::flow::role::RoleContext;
use crate::flow::udp::UdpSettings;
use crate::quic::credentials::KeptCredentials;
use crate::quic::sessions::SessionCache;
use crate::ready::{Readiness, RegisteredLane};
use crate::resolve::{self, Name};
use crate::sys::{limits, process};
use lane::ClientLane;
use mail::ClientMail;
use plan::{LaneId, Plan};
use roster::Roster;
use server::ServerState;
use service::{Checker, ServiceState};
use supervisor::Supervisor;
use twins::Twins;
use udp::CoreFlows;

const _: () = assert!(
    qmux_config::CLIENT_ID_BYTES_MAX == qmux_proto::control::CLIENT_ID_BYTES_MAX,
    "every client id that the configuration allows can be sent"
);

/// Bits of a lane's serial number that count the lanes of one core; the others are the core's.
const SERIAL_BITS: u32 = 48;

/// How soon the resolver's thread, or a core, tries again to put mail into a full mailbox.
const MAIL_PAUSE: Duration = Duration::from_millis(10);

/// Where a server's and the service's name stand in the config.
const SERVER_SETTING: &str = "address in [[client.servers]]";
const SERVICE_SETTING: &str = "host in [client.local]";

/// Pause between two looks whether it is known where the service is, at the start.
const SERVICE_POLL: Duration = Duration::from_millis(5);

/// The core of a client.
pub(crate) type ClientContext = RoleContext<ClientMail>;

/// One configured server. Each address that its name resolves to is a server of its own.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where it is.
    pub(crate) name: Arc<Name>,
    /// What its certificate must be for.
    pub(crate) server_name: String,
}

/// What all cores of the client role share.
#[derive(Debug)]
pub(crate) struct ClientShared {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// The configured id, or one drawn at this start.
    pub(crate) client_id: String,
    /// Drawn at this start.
    pub(crate) instance_id: [u8; 16],
    /// In the order of the configuration.
    pub(crate) targets: Vec<Target>,
    /// Changed by the resolvers' threads only.
    roster: Mutex<Roster>,
    /// The servers of the roster, for the cores to read.
    servers: ArcSwap<Vec<Arc<ServerState>>>,
    /// Which addresses of a name lead to one server.
    twins: Mutex<Twins>,
    /// The local service.
    pub(crate) service: Arc<Name>,
    /// Whether it can be reached.
    service_state: ServiceState,
    /// Told when the first lane is registered.
    pub(crate) readiness: Arc<Readiness>,
    registered_once: AtomicBool,
    /// Sessions that lanes may go on from.
    sessions: SessionCache,
    /// Its certificate, and the CAs that it trusts.
    credentials: KeptCredentials,
}

impl ClientShared {
    /// Draws ids. All names are resolved in the background ([`Self::keep_names_fresh`]).
    pub(crate) fn new(
        config: &Arc<Config>,
        client: &Client,
        readiness: &Arc<Readiness>,
    ) -> ClientShared {
        let targets: Vec<Target> = client
            .servers
            .iter()
            .map(|target| Target {
                name: Name::later(&target.host, target.port, SERVER_SETTING),
                server_name: target.server_name.clone(),
            })
            .collect();
        let names = targets.iter().map(|target| target.server_name.clone());
        let local = client.services.first();
        let host = local.map_or("", |it| it.host.as_str());
        let port = local.and_then(LocalService::check_port).unwrap_or_default();
        let shared = ClientShared {
            config: Arc::clone(config),
            client_id: client.client_id.clone().unwrap_or_else(drawn_client_id),
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            roster: Mutex::new(Roster::new(names)),
            targets,
            servers: ArcSwap::default(),
            twins: Mutex::default(),
            service: Name::later(host, port, SERVICE_SETTING),
            service_state: ServiceState::new(Instant::now()),
            readiness: Arc::clone(readiness),
            registered_once: AtomicBool::new(false),
            sessions: SessionCache::default(),
            credentials: KeptCredentials::default(),
        };
        for (index, target) in shared.targets.iter().enumerate() {
            if target.name.is_literal() {
                shared.resolved(index, &target.name.addresses());
            }
        }
        shared
    }

    /// Keeps sessions in the state directory, if one is configured.
    ///
    /// # Errors
    /// With a text if it cannot be used.
    pub(crate) fn keep_sessions(&self) -> Result<(), String> {
        match self.client().and_then(|client| client.state_dir.as_ref()) {
            Some(dir) => self.sessions.keep_in(dir),
            None => Ok(()),
        }
    }

    /// Reads the certificates, now and whenever they change, so that no core has to.
    ///
    /// # Errors
    /// With a text if they cannot be used.
    pub(crate) fn keep_certificates(&self) -> Result<(), String> {
        match self.client() {
            Some(client) => self.credentials.keep(client),
            None => Ok(()),
        }
    }

    /// The `[client]` section. The role is only started if there is one.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.config.client.as_ref()
    }

    /// Resolves all names now and from time to time, each in a thread of its own, and tells the cores by `post` when
    /// the servers have changed.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn keep_names_fresh(
        self: &Arc<Self>,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> std::io::Result<()> {
        let Some(client) = self.client() else {
            return Ok(());
        };
        let interval = client.resolve_interval;
        resolve::keep_fresh(Arc::clone(&self.service), interval, |_| {})?;
        for (index, target) in self.targets.iter().enumerate() {
            let (shared, post) = (Arc::clone(self), Arc::clone(post));
            resolve::keep_fresh(Arc::clone(&target.name), interval, move |addresses| {
                if shared.resolved(index, addresses) {
                    tell_all_cores(&*post, ClientMail::Plan);
                }
            })?;
        }
        Ok(())
    }

    /// Takes in what a configured server's name has resolved to. True if the servers have changed.
    fn resolved(&self, target: usize, addresses: &[SocketAddr]) -> bool {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let news = roster.answer(target, addresses, Instant::now());
        if news.is_empty() {
            return false;
        }
        self.servers.store(Arc::new(roster.servers().to_vec()));
        drop(roster);
        for server in &news.vanished {
            self.twins().vanished(server.number);
        }
        if !self.targets[target].name.is_literal() {
            for server in &news.appeared {
                tracing::info!(server = self.title(server), "a server has appeared");
            }
            for server in &news.vanished {
                tracing::info!(
                    server = self.title(server),
                    "a server has vanished; its lanes are left to their flows"
                );
            }
        }
        if news.surplus > 0 {
            tracing::warn!(
                surplus = news.surplus,
                limit = roster::SERVERS_MAX,
                "more addresses than one client can have servers; the others are left out"
            );
        }
        true
    }

    fn twins(&self) -> MutexGuard<'_, Twins> {
        // Only when a lane has registered or ended.
        self.twins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane to `server` has registered with the process of this id. True if the cores must plan
    /// again.
    fn registered_with(&self, server: &ServerState, instance_id: [u8; 16]) -> bool {
        // Held until it is written: two cores must not write in another order than they decided.
        let mut twins = self.twins();
        let change = twins.registered(server.number, server.target, instance_id);
        if change.is_some() {
            server.set_rests(true);
            drop(twins);
            tracing::info!(
                server = self.title(server),
                "another address of a server that is served already; it is dialled when that one fails"
            );
        }
        change.is_some()
    }

    /// A lane to `server` has ended. True if the cores must plan again.
    fn lane_ended(&self, server: &ServerState) -> bool {
        let mut twins = self.twins();
        let changes = twins.ended(server.number);
        self.write_rests(&changes);
        drop(twins);
        !changes.is_empty()
    }

    /// Nobody answers on any lane to `server` any more, or somebody does again. True if the cores
    /// must plan again.
    fn server_unanswered(&self, server: &ServerState, unanswered: bool) -> bool {
        let mut twins = self.twins();
        let changes = twins.unanswered(server.number, unanswered);
        self.write_rests(&changes);
        drop(twins);
        !changes.is_empty()
    }

    fn write_rests(&self, changes: &[twins::Change]) {
        let servers = self.servers.load();
        for change in changes {
            if let Some(server) = servers.iter().find(|it| it.number == change.number) {
                server.set_rests(change.rests);
            }
        }
    }

    /// The other addresses of the same configured server.
    fn other_addresses(&self, server: &ServerState) -> Vec<Arc<ServerState>> {
        let servers = self.servers.load();
        let others = servers
            .iter()
            .filter(|it| it.target == server.target && it.number != server.number);
        others.cloned().collect()
    }

    /// Whether another address of the same configured server serves.
    fn serves_elsewhere(&self, server: &ServerState) -> bool {
        let others = self.other_addresses(server);
        others.iter().any(|it| it.has_lanes())
    }

    /// A server as logs name it.
    fn title(&self, server: &ServerState) -> String {
        match self.targets.get(server.target) {
            Some(target) if !target.name.is_literal() => format!("{} ({server})", target.name),
            _ => server.to_string(),
        }
    }

    /// The lane counts as registered until the result is dropped.
    fn lane_registered(&self) -> RegisteredLane {
        let lane = self.readiness.lane_registered();
        if !self.registered_once.swap(true, Ordering::AcqRel) {
            self.readiness.role_ready("client");
        }
        lane
    }
}

/// An id that tells people which host it is, and no two clients have.
fn drawn_client_id() -> String {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    let random = u32::from_be_bytes([a, b, c, d]);
    format!("{}-{random:08x}", process::host_name())
}

/// For threads that are no core: waits for room in each mailbox.
fn tell_all_cores(post: &dyn Post<ClientMail>, mail: ClientMail) {
    for core in 0..post.cores() {
        while post.send(core, mail).is_err() {
            std::thread::sleep(MAIL_PAUSE);
        }
    }
}

/// The client role on one core.
pub(crate) struct ClientCore {
    context: Rc<ClientContext>,
    shared: Arc<ClientShared>,
    plan: RefCell<Plan>,
    supervisors: RefCell<HashMap<LaneId, Rc<Supervisor>>>,
    /// Lanes that are registered now, by serial number; also those that are being left.
    lanes: RefCell<HashMap<u64, Rc<ClientLane>>>,
    /// Lanes that wait for the answer to their registration. The server may take them for registered.
    registering: RefCell<HashMap<u64, Rc<ClientLane>>>,
    next_serial: Cell<u64>,
    /// For each core, whether this one still has to tell it to plan.
    plans_owed: Vec<Cell<bool>>,
    /// Checks the service, if that is this core's part.
    checker: Option<Rc<Checker>>,
    /// The UDP flows of all lanes.
    udp: Rc<CoreFlows>,
}

/// What the UDP flows of one core share.
fn udp_flows(context: &ClientContext, shared: &ClientShared) -> Rc<CoreFlows> {
    let flows_max = udp::flows_max(
        limits::flow_descriptors_max(),
        &limits::ephemeral_ports(),
        context.cluster.cores(),
    );
    CoreFlows::new(
        &shared.service,
        UdpSettings::from(&shared.config.udp),
        flows_max,
        Arc::clone(&context.counters),
    )
}

/// What servers are told when this process stops.
fn going_away(drain_timeout: Duration) -> GoAway {
    GoAway {
        reason: GoAwayReason::Shutdown,
        drain_timeout_ms: u64::try_from(drain_timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

impl ClientCore {
    /// Starts this core's first lanes.
    pub(crate) fn start(context: &Rc<ClientContext>, shared: &Arc<ClientShared>) -> Rc<ClientCore> {
        let lanes = shared.client().map_or(Lanes::Auto, |client| client.lanes);
        let this = Rc::new(ClientCore {
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            plan: RefCell::new(Plan::new(context.index, context.cluster.cores(), lanes)),
            supervisors: RefCell::default(),
            lanes: RefCell::default(),
            registering: RefCell::default(),
            next_serial: Cell::new(1),
            plans_owed: vec![Cell::new(false); context.cluster.cores()],
            checker: Checker::start(context, shared),
            udp: udp_flows(context, shared),
        });
        if shared.service.was_asked() {
            this.plan();
        } else {
            crate::core::task::spawn_vital(Rc::clone(&this).plan_once_service_was_asked());
        }
        this
    }

    /// A lane brings flows at once, and they need to know where the service is; or that nobody knows.
    async fn plan_once_service_was_asked(self: Rc<Self>) {
        while !self.shared.service.was_asked() {
            crate::core::time::sleep(SERVICE_POLL).await;
        }
        self.plan();
    }

    /// Takes what the same role of this or another core has sent.
    pub(crate) fn mail(self: &Rc<Self>, mail: ClientMail) {
        match mail {
            ClientMail::ServiceHealth => self.service_health_changed(),
            ClientMail::Plan => self.plan(),
            ClientMail::Alarm { server } => {
                for lane in self.lanes.borrow().values() {
                    if lane.server.number == server {
                        lane.alarm();
                    }
                }
            }
            ClientMail::Found { server } => {
                for ((of, _), supervisor) in &*self.supervisors.borrow() {
                    if *of == server {
                        supervisor.found();
                    }
                }
            }
        }
    }

    /// Brings this core's lanes in line with the servers and the number of cores on both sides.
    fn plan(self: &Rc<Self>) {
        if self.context.draining.get() || !self.shared.service.was_asked() {
            return;
        }
        let servers = self.shared.servers.load_full();
        let dialled = servers.iter().filter(|server| !server.rests());
        let numbers = dialled.map(|server| (server.number, server.cores()));
        let changes = self.plan.borrow_mut().update(numbers);
        let mut supervisors = self.supervisors.borrow_mut();
        for lane in changes.retire {
            if let Some(supervisor) = supervisors.remove(&lane) {
                supervisor.retire();
            }
        }
        for (number, lane) in changes.start {
            if let Some(server) = servers.iter().find(|server| server.number == number) {
                supervisors.insert((number, lane), Supervisor::start(self, server, lane));
            }
        }
    }

    /// A server said how many cores it has: all cores plan again if that is news.
    fn server_has_cores(self: &Rc<Self>, server: &ServerState, server_cores: usize) {
        if server.has_cores(server_cores) {
            self.tell_all(&ClientMail::Plan);
        }
    }

    /// The server may be gone: all lanes ask it.
    fn alarm(self: &Rc<Self>, server: &ServerState) {
        if server.may_alarm(Instant::now()) {
            self.context.counters.lanes_alarmed.increment();
            self.tell_all(&ClientMail::Alarm {
                server: server.number,
            });
        }
    }

    /// A lane has registered where none was, or with another server than before.
    fn found(self: &Rc<Self>, server: &ServerState) {
        self.tell_all(&ClientMail::Found {
            server: server.number,
        });
    }

    /// Tells this core and all others.
    fn tell_all(self: &Rc<Self>, mail: &ClientMail) {
        self.mail(*mail);
        for core in 0..self.context.cluster.cores() {
            // The others are mere hints. Without this one the core would lack lanes, or keep some, for ever.
            let must_arrive = matches!(mail, ClientMail::Plan);
            if must_arrive && self.plans_owed[core].get() {
                continue;
            }
            let Err(mail) = self.tell(core, *mail) else {
                continue;
            };
            self.context.counters.client_mail_dropped.increment();
            if must_arrive {
                self.tell_to_plan_later(core);
            }
            if let Some(suppressed) = self.context.connect_log.pass(Instant::now()) {
                let what = if must_arrive {
                    "mailbox full: tried again until the core is told"
                } else {
                    "mailbox full: the core was not told"
                };
                tracing::warn!(core, %mail, suppressed, "{what}");
            }
        }
    }

    /// Tries again and again to tell a core to plan.
    fn tell_to_plan_later(self: &Rc<Self>, core: usize) {
        self.plans_owed[core].set(true);
        let this = Rc::clone(self);
        crate::core::task::spawn_vital(async move {
            while this.tell(core, ClientMail::Plan).is_err() {
                crate::core::time::sleep(MAIL_PAUSE).await;
            }
            this.plans_owed[core].set(false);
        });
    }

    /// Tells another core; nothing to this one.
    fn tell(&self, core: usize, mail: ClientMail) -> Result<(), ClientMail> {
        if core == self.context.index {
            return Ok(());
        }
        self.context.post.send(core, mail)
    }

    fn next_serial(&self) -> u64 {
        let count = self.next_serial.get();
        self.next_serial.set(count + 1);
        (self.context.index as u64) << SERIAL_BITS | count
    }

    fn service_health_changed(&self) {
        if let Some(checker) = &self.checker {
            checker.told();
        }
        for lane in self.lanes.borrow().values() {
            lane.tell_service_health();
        }
    }

    /// Whether the servers have answered [`ClientCore::drain`] and no flow is on its way here any more.
    pub(crate) fn is_settled(&self) -> bool {
        let (lanes, registering) = (self.lanes.borrow(), self.registering.borrow());
        lanes
            .values()
            .chain(registering.values())
            .all(|lane| lane.is_settled())
    }

    /// Whether the servers have all bytes of the flows that have ended.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        // All are asked: the time that each may take runs from the first question.
        let (lanes, registering) = (self.lanes.borrow(), self.registering.borrow());
        let waits = |lane: &&Rc<ClientLane>| !lane.lane.has_delivered(now);
        lanes
            .values()
            .chain(registering.values())
            .filter(waits)
            .count()
            == 0
    }

    /// Tells the servers to send no new flow, and takes none.
    pub(crate) fn drain(&self, timeout: Duration) {
        let away = going_away(timeout);
        for lane in self.lanes.borrow().values() {
            lane.lane.send_control(&Message::GoAway(away));
        }
    }

    /// Closes all lanes. The servers are told in the next flush.
    pub(crate) fn close(&self) {
        for supervisor in self.supervisors.borrow().values() {
            supervisor.retire();
        }
        let registered: Vec<_> = self.lanes.borrow().values().cloned().collect();
        let registering: Vec<_> = self.registering.borrow().values().cloned().collect();
        for lane in registered.iter().chain(&registering) {
            lane.lane.close(LaneError::Shutdown, "");
        }
    }
}
