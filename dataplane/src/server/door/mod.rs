//! A door on one core: where the clients of some services connect, at one address or several, and
//! register. The door owns their lanes, and tells them when the process drains or its configuration
//! changes.

mod auth;
pub(crate) mod lane;
mod offers;
mod opening;
mod owner;
mod presence;
mod recheck;
mod register;
mod session;
mod shown;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket as StdUdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::LoadBalancer;
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};
use rustc_hash::FxBuildHasher;

use crate::core::counters::CoreCounters;
use crate::core::event::Event;
use crate::quic::endpoint::Endpoint;
use crate::quic::over_tls::TlsConnection;
use crate::quic::sessions::Identity;
use crate::server::ids::DoorId;
use crate::server::mail::ServerContext;
use crate::server::mail::ServerMail;
use crate::server::pool::client::Client;
use crate::server::pool::lanes::LaneTable;
use crate::server::pool::membership::LaneMembership;
use crate::server::pool::registry::{Applicant, Joined, NotJoined};
use crate::server::shared::{
    ServedService, ServerSettings, ServerShared, ServiceTable, SharedDoor,
};
use crate::server::succession::{Lent, SocketUse};
use lane::ServerLane;

/// One door on one core.
pub(crate) struct Door {
    context: Rc<ServerContext>,
    shared: Arc<ServerShared>,
    /// The state of this door that all cores share.
    of_all_cores: Arc<SharedDoor>,
    /// The door's endpoints, one for each of its addresses.
    endpoints: OnceCell<Vec<Rc<Endpoint>>>,
    /// Lanes that take new flows.
    lanes: RefCell<LaneTable<ServerLane>>,
    /// All registered lanes, by their endpoint and their key there.
    registered: RefCell<HashMap<(usize, u64), Rc<ServerLane>, FxBuildHasher>>,
    next_flow: Cell<u64>,
    /// Number of refused lanes that wait for their client to read why.
    lingering: Cell<usize>,
    /// Number of entrances that still accept TCP visitors.
    accepting: Cell<usize>,
    /// How long the drain may take; set when it begins.
    drain_timeout: Cell<Duration>,
    /// Whether the door takes no more clients, and has told those that it has.
    leaves: Cell<bool>,
    /// Set when the settings have changed.
    recheck: Event,
    /// The digests of what the door's endpoints show to clients, and of what they check clients
    /// against.
    shows: Cell<(Identity, Identity)>,
}

impl Door {
    /// Opens the door at these sockets, and lets clients in.
    ///
    /// # Errors
    /// With a text for the log if a socket or a TLS context cannot be set up on this core.
    pub(crate) fn open(
        context: &Rc<ServerContext>,
        shared: &Arc<ServerShared>,
        of_all_cores: &Arc<SharedDoor>,
        (sockets, tls_sockets): (Vec<StdUdpSocket>, Vec<Option<TcpListener>>),
    ) -> Result<Rc<Door>, String> {
        let this = Rc::new(Door {
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            of_all_cores: Arc::clone(of_all_cores),
            endpoints: OnceCell::new(),
            lanes: RefCell::new(LaneTable::new()),
            registered: RefCell::default(),
            next_flow: Cell::new(1),
            lingering: Cell::new(0),
            accepting: Cell::new(0),
            drain_timeout: Cell::default(),
            leaves: Cell::new(false),
            recheck: Event::default(),
            shows: Cell::default(),
        });
        // The settings are read once: they may be replaced meanwhile, and the digests must belong
        // to what all endpoints show.
        let settings = shared.settings();
        if let Err(why) = this.open_addresses(sockets, tls_sockets, &settings) {
            // Endpoints that are open already would let clients in which find no door.
            this.close();
            return Err(why);
        }
        this.shows.set(shown::by(&settings));
        crate::core::task::spawn_vital(recheck::run(Rc::downgrade(&this)));
        Ok(this)
    }

    /// The settings that are in force now.
    pub(crate) fn settings(&self) -> Arc<ServerSettings> {
        self.shared.settings()
    }

    pub(crate) fn counters(&self) -> &CoreCounters {
        &self.context.counters
    }

    pub(crate) fn keep_alive_period(&self) -> Duration {
        self.settings().config.quic.keep_alive_period
    }

    pub(crate) fn context(&self) -> &Rc<ServerContext> {
        &self.context
    }

    fn endpoints(&self) -> &[Rc<Endpoint>] {
        self.endpoints.get().map_or(&[], Vec::as_slice)
    }

    /// The endpoint of one of the door's addresses.
    pub(crate) fn endpoint(&self, address: usize) -> Option<&Rc<Endpoint>> {
        self.endpoints().get(address)
    }

    /// Takes a TLS connection that another core has accepted.
    pub(crate) fn tls_from_other_core(&self, address: usize, connection: TlsConnection) {
        let endpoint = self.endpoint(address);
        if !endpoint.is_some_and(|endpoint| endpoint.inject_tls(connection)) {
            self.counters().tls_handovers_dropped.increment();
        }
    }

    /// Counts a panic in the task of a flow.
    pub(crate) fn flow_panicked(&self) {
        for endpoint in self.endpoints() {
            endpoint.flow_panicked();
        }
    }

    /// The service with this name.
    pub(crate) fn service(&self, name: &str) -> Option<Arc<ServedService>> {
        self.services().by_name(name).cloned()
    }

    /// The door's services at this moment.
    pub(crate) fn services(&self) -> Arc<ServiceTable> {
        self.of_all_cores.services()
    }

    pub(crate) fn core(&self) -> usize {
        self.context.index
    }

    pub(crate) fn cores(&self) -> usize {
        self.context.cluster.cores()
    }

    /// The id by which clients recognise this door of this process: a client that reaches the same
    /// door by several addresses needs the lanes of one of them only.
    pub(crate) fn server_instance_id(&self) -> [u8; 16] {
        let mut id = self.shared.instance_id;
        for (byte, of_index) in id.iter_mut().zip(self.id().0.to_be_bytes()) {
            *byte ^= of_index;
        }
        id
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.context.draining.get() || self.leaves.get()
    }

    fn id(&self) -> DoorId {
        self.of_all_cores.id
    }

    pub(crate) fn next_flow_id(&self) -> u64 {
        let id = self.next_flow.get();
        self.next_flow.set(id + 1);
        id
    }

    // ---- lanes ----

    pub(crate) fn join(&self, applicant: &Applicant<'_>) -> Result<Joined, NotJoined> {
        let registry = &self.of_all_cores.registry;
        registry.join(applicant, self.core(), Instant::now())
    }

    /// Number of lanes, on all cores, of the client that wants one more.
    pub(crate) fn lanes_of(&self, applicant: &Applicant<'_>) -> usize {
        self.of_all_cores.registry.lanes_of(applicant)
    }

    /// Keeps a refused lane until its client has read why, unless `most` others are kept already.
    /// Returns false if the lane must be closed.
    pub(crate) fn let_linger(&self, lane: &ServerLane, most: usize) -> bool {
        let lingering = self.lingering.get();
        let may = lingering < most;
        if may && !lane.lingers.replace(true) {
            self.lingering.set(lingering + 1);
        }
        may
    }

    pub(crate) fn lane_registered(&self, lane: &Rc<ServerLane>) {
        if let Some(membership) = lane.membership.get() {
            membership.rides_tls(lane.quic.tls().is_some());
            self.lanes
                .borrow_mut()
                .add(membership.client().number, Rc::clone(lane));
            self.registered
                .borrow_mut()
                .insert(lane.key(), Rc::clone(lane));
        }
    }

    /// Takes the lane out of the choice for new flows; it carries on with the flows that it has.
    pub(crate) fn lane_takes_no_more(&self, lane: &Rc<ServerLane>) {
        let Some(membership) = lane.membership.get() else {
            return;
        };
        let up = membership.take_no_more();
        self.lanes
            .borrow_mut()
            .remove(membership.client().number, lane);
        let services = self.services();
        for service in up.into_iter().filter_map(|it| services.by_number(it)) {
            presence::say_health(self, lane.client_id(), service, true);
        }
    }

    /// Removes a lane that has ended. Returns true if it was the last one of its client.
    pub(crate) fn lane_ended(&self, lane: &Rc<ServerLane>) -> bool {
        self.lane_takes_no_more(lane);
        let membership = lane.membership.get();
        let last = membership.is_some_and(LaneMembership::lane_ended);
        self.registered.borrow_mut().remove(&lane.key());
        if lane.lingers.take() {
            self.lingering.set(self.lingering.get() - 1);
        }
        last
    }

    /// The registered lanes of `client` on this core.
    fn registered_lanes(&self, client: u64) -> Vec<Rc<ServerLane>> {
        let registered = self.registered.borrow();
        let lanes = registered.values().filter(|lane| lane.is_of(client));
        lanes.cloned().collect()
    }

    /// Takes the lanes of a replaced client out of the choice for new flows. A client that still
    /// answers is told so, and keeps the flows that it carries. Whether it is dead is found out at
    /// once.
    pub(crate) fn evict(&self, client: u64) {
        let away = GoAway {
            reason: GoAwayReason::Replaced,
            drain_timeout_ms: 0,
        };
        for lane in self.registered_lanes(client) {
            self.lane_takes_no_more(&lane);
            if lane.quic.is_silent() {
                self.close_replaced(&lane);
            } else {
                self.counters().lanes_superseded.increment();
                lane.quic.send_control(&Message::GoAway(away));
                lane.alarm();
            }
        }
    }

    /// Closes a lane of a client that was replaced and does not answer.
    pub(crate) fn close_replaced(&self, lane: &Rc<ServerLane>) {
        self.counters().lanes_replaced.increment();
        lane.quic.close(
            LaneError::Replaced,
            "another instance registered with the same client_id",
        );
    }

    /// Does on all cores what [`Door::evict`] does on this one.
    pub(crate) fn evict_everywhere(&self, client: u64) {
        self.evict(client);
        for core in 0..self.cores() {
            let mail = ServerMail::Evict {
                door: self.id(),
                client,
            };
            if core != self.core() && self.context.post.send(core, mail).is_err() {
                // Without the message those lanes get no new flow either: the whole client is
                // marked as replaced.
                self.counters().evictions_dropped.increment();
                if let Some(suppressed) = self.context.connect_log.pass(Instant::now()) {
                    tracing::warn!(
                        core,
                        suppressed,
                        "mailbox full: lanes of a replaced client stay open on that core until the client ends them, or by health_timeout if it is dead; they get no new flow"
                    );
                }
            }
        }
    }

    /// The client of `lane` does not answer: this lane keeps asking, and so do the client's other
    /// lanes on every core.
    pub(crate) fn client_may_be_gone(&self, lane: &Rc<ServerLane>, now: Instant) {
        lane.alarm();
        if let Some(membership) = lane.membership.get() {
            self.alarm_everywhere(membership.client(), now);
        }
    }

    /// Makes all lanes of a client ask it for a sign of life, on every core.
    pub(crate) fn alarm_everywhere(&self, client: &Client, now: Instant) {
        if !client.may_alarm(now) {
            return;
        }
        self.counters().lanes_alarmed.increment();
        self.alarm(client.number);
        for core in 0..self.cores() {
            let mail = ServerMail::ClientMayBeGone {
                door: self.id(),
                client: client.number,
            };
            if core != self.core()
                && client.lanes_on(core) > 0
                && self.context.post.send(core, mail).is_err()
            {
                // Those lanes find out by themselves when they are used next.
                self.counters().client_alarms_dropped.increment();
            }
        }
    }

    /// Makes this core's lanes of the client ask it for a sign of life.
    pub(crate) fn alarm(&self, client: u64) {
        for lane in self.registered_lanes(client) {
            lane.alarm();
        }
    }

    // ---- another configuration ----

    /// Takes up changed settings: lanes that begin from now on are made by them, and existing ones
    /// are checked again.
    pub(crate) fn settings_have_changed(&self) {
        self.show(&self.settings());
        self.recheck.set();
    }

    /// Tells a client, on each of its lanes, that it serves other services now, or on other terms.
    pub(crate) fn tell_services(&self, client: u64) {
        let settings = self.settings();
        for lane in self.registered_lanes(client) {
            if let Some(membership) = lane.membership.get() {
                membership.services_changed();
            }
            if let Some(admitted) = lane.admitted.get() {
                offers::tell_anew(&lane, self, &settings, admitted);
            }
        }
    }

    /// Closes the door to clients. What its lanes carry may go on for this long.
    pub(crate) fn leave(&self, timeout: Duration) {
        self.leaves.set(true);
        self.drain_timeout.set(timeout);
        for lane in self.registered.borrow().values() {
            self.lane_takes_no_more(lane);
        }
        self.say_go_away();
    }

    /// This core's lane of `client` for its next flow.
    pub(crate) fn local_lane(&self, client: u64, rule: LoadBalancer) -> Option<Rc<ServerLane>> {
        self.lanes.borrow().pick(client, rule)
    }

    // ---- one process after another ----

    /// Whether another process had the sockets before this one and still lets its flows finish.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.shared.predecessor.get().is_some()
    }

    /// Descriptors of the door's sockets, for a successor.
    pub(crate) fn lend(&self) -> Vec<Lent> {
        let endpoints = self.endpoints().iter().zip(&self.of_all_cores.quic_addrs);
        let lent = |(endpoint, address): (&Rc<Endpoint>, &SocketAddr)| {
            Some(Lent {
                used_for: SocketUse::Quic,
                address: *address,
                core: self.context.index,
                fd: endpoint.lend()?,
            })
        };
        endpoints.filter_map(lent).collect()
    }

    /// Whether a successor has taken the sockets of this use at this address.
    pub(crate) fn is_taken(&self, used_for: SocketUse, address: SocketAddr) -> bool {
        let taken = self.shared.handed_over.get();
        taken.is_some_and(|taken| taken.has(used_for, address))
    }

    /// The successor reads the sockets that it has taken from now on, and passes on packets for
    /// lanes that live here. Sockets that it has not taken are read here until the lanes have
    /// ended.
    pub(crate) fn handed_over(&self) {
        let endpoints = self.endpoints().iter().zip(&self.of_all_cores.quic_addrs);
        for (endpoint, address) in endpoints {
            if self.is_taken(SocketUse::Quic, *address) {
                endpoint.receive_no_more();
            }
        }
    }

    // ---- the end ----

    /// Counts an entrance that accepts TCP visitors for the clients of this door.
    pub(crate) fn begins_to_accept(&self) {
        self.accepting.set(self.accepting.get() + 1);
    }

    /// Counts an entrance that has stopped accepting. When none accepts any more because the
    /// process stops, the clients are told.
    pub(crate) fn accepts_no_more(&self) {
        self.accepting.set(self.accepting.get() - 1);
        if self.is_draining() && self.accepting.get() == 0 {
            self.say_go_away();
        }
    }

    /// Begins the drain. The clients are told that the process stops once those visitors are in who
    /// had begun to connect.
    pub(crate) fn drain(&self, timeout: Duration) {
        self.drain_timeout.set(timeout);
        if self.accepting.get() == 0 {
            self.say_go_away();
        }
    }

    fn say_go_away(&self) {
        let away = GoAway {
            reason: GoAwayReason::Shutdown,
            drain_timeout_ms: u64::try_from(self.drain_timeout.get().as_millis())
                .unwrap_or(u64::MAX),
        };
        for lane in self.registered.borrow().values() {
            lane.quic.send_control(&Message::GoAway(away));
        }
    }

    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        let lanes = self.endpoints().iter().flat_map(|it| it.lanes());
        lanes.filter(|lane| !lane.has_delivered(now)).count() == 0
    }

    pub(crate) fn close(&self) {
        for endpoint in self.endpoints() {
            for lane in endpoint.lanes() {
                lane.close(LaneError::Shutdown, "");
            }
            endpoint.stop_when_empty();
        }
    }
}
