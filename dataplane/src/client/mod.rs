//! The client role on one core: its share of the lanes to every server.

mod carrier;
mod lane;
pub(crate) mod mail;
#[cfg(test)]
mod offer_tests;
mod presence;
mod proxy;
mod servers;
pub(crate) mod services;
pub(crate) mod shared;
#[cfg(test)]
mod simulation;
mod tcp;
pub(crate) mod udp;
pub(crate) mod views;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::Lanes;
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use crate::flow::role::RoleContext;
use crate::flow::udp::UdpSettings;
use crate::sys::limits;
use lane::ClientLane;
use lane::Leaving;
use lane::plan::{LaneId, Plan};
use lane::supervisor::Supervisor;
use mail::ClientMail;
use servers::demand::Change;
use servers::server::ServerState;
use servers::take_up::Generation;
use services::health::Checker;
pub(crate) use shared::ClientShared;
pub(crate) use shared::change::Prepared;
use udp::CoreFlows;

/// Bits of a lane's serial number that count the lanes of one core; the other bits are the core's
/// index.
const SERIAL_BITS: u32 = 48;

/// How soon the resolver's thread, or a core, tries again to put mail into a full mailbox.
const MAIL_PAUSE: Duration = Duration::from_millis(10);

/// Pause between two checks, at the start, whether the addresses of the services are known.
const SERVICE_POLL: Duration = Duration::from_millis(5);

/// How long lanes wait for the names of some services when those of others are known. A resolver
/// mostly answers within this time, and visitors of the other services wait.
const SERVICES_PATIENCE: Duration = Duration::from_secs(1);

/// The context of the client role on one core.
pub(crate) type ClientContext = RoleContext<ClientMail>;

/// The client role on one core.
pub(crate) struct ClientCore {
    context: Rc<ClientContext>,
    shared: Arc<ClientShared>,
    plan: RefCell<Plan>,
    /// Whether lanes may be opened, because the addresses of the services are known.
    planning: Cell<bool>,
    supervisors: RefCell<HashMap<LaneId, Rc<Supervisor>>>,
    /// Lanes that are registered now, by serial number, with those that are being left.
    lanes: RefCell<HashMap<u64, Rc<ClientLane>>>,
    /// Lanes that wait for the answer to their registration. The server may consider them
    /// registered.
    registering: RefCell<HashMap<u64, Rc<ClientLane>>>,
    next_serial: Cell<u64>,
    /// For each core, whether this one still has to tell it to plan.
    plans_owed: Vec<Cell<bool>>,
    /// The health checkers of the services, on the core that has this task.
    checkers: RefCell<Vec<Rc<Checker>>>,
    /// The number of the configuration by which there are lanes and checks.
    generation: Cell<u64>,
    /// The UDP flows of all lanes.
    udp: Rc<CoreFlows>,
}

/// The state that the UDP flows of one core share.
fn udp_flows(context: &ClientContext, shared: &ClientShared) -> Rc<CoreFlows> {
    let flows_max = udp::flows_max(
        limits::flow_descriptors_max(),
        &limits::ephemeral_ports(),
        context.cluster.cores(),
    );
    CoreFlows::new(
        UdpSettings::from(&shared.settings().config.udp),
        flows_max,
        Arc::clone(&context.counters),
    )
}

/// The message that tells servers that this process stops.
fn going_away(drain_timeout: Duration) -> GoAway {
    GoAway {
        reason: GoAwayReason::Shutdown,
        drain_timeout_ms: u64::try_from(drain_timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

impl ClientCore {
    /// Starts this core's first lanes.
    pub(crate) fn start(context: &Rc<ClientContext>, shared: &Arc<ClientShared>) -> Rc<ClientCore> {
        let settings = shared.settings();
        let this = Rc::new(ClientCore {
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            plan: RefCell::new(Plan::new(context.index, context.cluster.cores())),
            planning: Cell::new(false),
            supervisors: RefCell::default(),
            lanes: RefCell::default(),
            registering: RefCell::default(),
            next_serial: Cell::new(1),
            plans_owed: vec![Cell::new(false); context.cluster.cores()],
            checkers: RefCell::new(Checker::start_all(context, settings.services.all(), vec![])),
            generation: Cell::new(settings.generation),
            udp: udp_flows(context, shared),
        });
        if settings.services.are_known() {
            this.planning.set(true);
            this.plan();
        } else {
            crate::core::task::spawn_vital(Rc::clone(&this).plan_once_services_were_asked());
        }
        this
    }

    /// Plans the first lanes once the addresses of the services are known, or known to be unknown:
    /// a lane brings flows at once. One name that takes long must not keep the other services
    /// waiting.
    async fn plan_once_services_were_asked(self: Rc<Self>) {
        let began = Instant::now();
        let services = Arc::clone(&self.shared.settings().services);
        let is_time = || {
            let some_and_long = services.is_any_known() && began.elapsed() >= SERVICES_PATIENCE;
            services.are_known() || some_and_long
        };
        while !is_time() {
            crate::core::time::sleep(SERVICE_POLL).await;
        }
        self.planning.set(true);
        self.plan();
    }

    /// Handles a message from the client role on this or another core.
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
        if self.context.draining.get() || !self.planning.get() {
            return;
        }
        self.follow_settings();
        let servers = self.shared.servers.load_full();
        let dialled = servers.iter().filter(|server| !server.rests());
        let lanes = self.lanes_setting();
        let numbers = dialled.map(|server| (server.number, server.lanes_wanted(lanes)));
        let changes = self.plan.borrow_mut().update(numbers);
        let mut supervisors = self.supervisors.borrow_mut();
        for lane in changes.retire {
            let stays = |server: &Arc<ServerState>| {
                server.number == lane.0 && !server.rests() && server.may_leave_lanes()
            };
            let leaving = if servers.iter().any(stays) {
                Leaving::Surplus
            } else {
                Leaving::Unwanted
            };
            if let Some(supervisor) = supervisors.remove(&lane) {
                supervisor.retire(leaving);
            }
        }
        let settings = self.generation.get();
        for (number, lane) in changes.start {
            if let Some(server) = servers.iter().find(|server| server.number == number) {
                let generation = Generation::of(settings, server);
                let supervisor = Supervisor::start(self, server, lane, generation);
                supervisors.insert((number, lane), supervisor);
            }
        }
        for supervisor in supervisors.values_mut() {
            if let Some(generation) = supervisor.is_outdated(settings) {
                *supervisor = supervisor.succeed(self, generation);
            }
        }
    }

    /// Takes up settings that may have other services.
    fn follow_settings(self: &Rc<Self>) {
        let settings = self.shared.settings();
        if self.generation.replace(settings.generation) != settings.generation {
            let running = self.checkers.take();
            let services = settings.services.all();
            *self.checkers.borrow_mut() = Checker::start_all(&self.context, services, running);
            self.udp.services_are(&settings.services);
        }
    }

    /// Notes how many cores a server has; all cores plan again if that is news.
    fn server_has_cores(self: &Rc<Self>, server: &ServerState, server_cores: usize) {
        if server.has_cores(server_cores, self.context.cluster.cores(), Instant::now()) {
            self.tell_all(&ClientMail::Plan);
        }
    }

    /// The setting `lanes` of dp.toml.
    fn lanes_setting(&self) -> Lanes {
        let settings = self.shared.settings();
        settings.client().map_or(Lanes::Auto, |client| client.lanes)
    }

    /// Changes the number of lanes to a server.
    fn lanes_change(self: &Rc<Self>, server: &ServerState, change: Change) {
        let counters = &self.context.counters;
        match change {
            Change::Grown(by) => counters.lanes_grown.add(by as u64),
            Change::Shrunk(by) => counters.lanes_shrunk.add(by as u64),
        }
        let lanes = server.lanes_wanted(self.lanes_setting());
        tracing::debug!(%server, lanes, ?change, "another number of lanes to this server");
        self.tell_all(&ClientMail::Plan);
    }

    /// Makes all lanes to the server ask it for a sign of life, because it may be gone.
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

    /// Sends a message to this core and to all others.
    fn tell_all(self: &Rc<Self>, mail: &ClientMail) {
        self.mail(*mail);
        for core in 0..self.context.cluster.cores() {
            // The other messages are mere hints. Without `Plan` the core would lack lanes, or keep
            // some, for ever.
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

    /// Sends a message to another core; does nothing for this core.
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
        for checker in &*self.checkers.borrow() {
            checker.told();
        }
        for lane in self.lanes.borrow().values() {
            lane.tell_health();
        }
    }

    /// Whether the servers have answered [`ClientCore::drain`] and no flow is on its way here any
    /// more.
    pub(crate) fn is_settled(&self) -> bool {
        let (lanes, registering) = (self.lanes.borrow(), self.registering.borrow());
        lanes
            .values()
            .chain(registering.values())
            .all(|lane| lane.is_settled())
    }

    /// Whether the servers have received all bytes of the flows that have ended.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        // All lanes are asked, because the time that each may take runs from the first question.
        let (lanes, registering) = (self.lanes.borrow(), self.registering.borrow());
        let waits = |lane: &&Rc<ClientLane>| !lane.quic.has_delivered(now);
        lanes
            .values()
            .chain(registering.values())
            .filter(waits)
            .count()
            == 0
    }

    /// Tells the servers to send no new flow, and accepts none.
    pub(crate) fn drain(&self, timeout: Duration) {
        let away = going_away(timeout);
        for lane in self.lanes.borrow().values() {
            lane.quic.send_control(&Message::GoAway(away));
        }
    }

    /// Closes all lanes. The servers are told in the next flush.
    pub(crate) fn close(&self) {
        for supervisor in self.supervisors.borrow().values() {
            supervisor.retire(Leaving::Unwanted);
        }
        let registered: Vec<_> = self.lanes.borrow().values().cloned().collect();
        let registering: Vec<_> = self.registering.borrow().values().cloned().collect();
        for lane in registered.iter().chain(&registering) {
            lane.quic.close(LaneError::Shutdown, "");
        }
    }
}
