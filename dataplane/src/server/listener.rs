//! One listener on one core: its sockets, its lanes, and the way of a visitor to a lane.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Listener, Server};
use qmux_proto::control::{GoAway, GoAwayReason, Message, Register};
use qmux_proto::{LaneError, Protocol};
use rustc_hash::FxBuildHasher;

use super::balance::Tried;
use super::lane::{ServerLane, ServerLaneEvents};
use super::lanes::{CarriesFlows as _, LaneTable};
use super::opening::Held;
use super::registry::{Applicant, ClientPool, Duplicate, Joined, LaneMembership};
use super::route::{self, Way};
use super::{ListenerSockets, ServerShared};
use crate::core::mailbox::Mail;
use crate::core::panics::contain;
use crate::core::task::spawn_vital;
use crate::core::{AcceptorCount, CoreContext};
use crate::flow::udp::UdpSettings;
use crate::flow::udp::server::{ForwardedUdp, RouteUdp, TrafficSocket, UdpRoute, Wish};
use crate::metrics::CoreCounters;
use crate::quic::endpoint::{Endpoint, EndpointOwner, EndpointSetup};
use crate::quic::event::{Event, yield_now};
use crate::quic::lane::Lane;
use crate::quic::reset::ResetKey;
use crate::quic::{settings, tls};
use crate::sys::tcp::Acceptor;
use crate::sys::udp::{Purpose, UdpSocket};

/// Visitors accepted before the other tasks of the core get a turn.
const ACCEPTS_PER_TURN: usize = 32;

/// Pause after accept(2) failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long after its start a server leaves visitors in the queue while it has no client to send them to. Clients whose
/// server was restarted come back within a second; a visitor who comes before them (a load balancer's second attempt,
/// mostly) would otherwise be reset.
const FIRST_CLIENT_WAIT: Duration = Duration::from_secs(5);

/// Pause between two looks for the first client.
const FIRST_CLIENT_POLL: Duration = Duration::from_millis(10);

/// How long a draining core waits for visitors whose handshake had begun when the stop came: one round trip of the
/// farthest ones. New ones are kept away meanwhile ([`crate::sys::syn_filter`]); they repeat their SYN after a second, so
/// any value below that costs them the same.
const HANDSHAKES_FINISH: Duration = Duration::from_millis(300);

/// The queue must then have been empty for so long.
const NOBODY_FOR: Duration = Duration::from_millis(100);

/// Whatever comes (the kernel may not have taken the filter), nobody is accepted for longer than this.
const LAST_VISITORS_MAX: Duration = Duration::from_secs(2);

/// Pause between two looks at the queue.
const LAST_VISITORS_POLL: Duration = Duration::from_millis(20);

/// One listener on one core.
pub(crate) struct ListenerCore {
    index: usize,
    context: Rc<CoreContext>,
    shared: Arc<ServerShared>,
    pool: Arc<ClientPool>,
    traffic_addr: SocketAddr,
    stall_timeout: Duration,
    endpoint: Rc<Endpoint>,
    traffic: RefCell<Option<Rc<TrafficSocket>>>,
    /// Lanes that take new flows.
    lanes: RefCell<LaneTable<ServerLane>>,
    /// All registered lanes, by their key.
    registered: RefCell<HashMap<u64, Rc<ServerLane>, FxBuildHasher>>,
    next_flow: Cell<u64>,
    held: Rc<Held>,
    /// Refused lanes that wait for their client to read why.
    lingering: Cell<usize>,
    stop_accepting: Event,
    /// False once the accept task has ended (or if there is none).
    accepting: Cell<bool>,
    /// Of the drain, once it has begun.
    drain_timeout: Cell<Duration>,
}

impl ListenerCore {
    pub(super) fn start(
        index: usize,
        context: &Rc<CoreContext>,
        shared: &Arc<ServerShared>,
        sockets: ListenerSockets,
    ) -> Result<Rc<ListenerCore>, String> {
        let server = shared.server().ok_or("no [server] section")?;
        let listeners: Vec<Listener> = server.listeners();
        let listener = listeners.get(index).ok_or("no such listener")?;
        let text = |error: io::Error| error.to_string();
        let mut tls = tls::server(server).map_err(|error| error.to_string())?;
        shared.ticket_keys.serve(&mut tls, &context.counters);
        let config =
            settings::transport(&shared.config.quic, tls).map_err(|error| error.to_string())?;
        let socket = UdpSocket::adopt(sockets.quic, Purpose::Quic).map_err(text)?;
        let port = socket.local_addr().port();
        let reset_key = ResetKey::from_key(&server.tls.server_key, port)?;
        let endpoint = Endpoint::start(
            EndpointSetup {
                socket,
                core: context.index,
                group: context.cluster.cores(),
                config,
                packet_bytes_max: settings::packet_bytes_max(&shared.config.quic),
                accepts: true,
                handshake_timeout: shared.config.quic.handshake_idle_timeout,
                reset_key: Some(reset_key),
                counters: Arc::clone(&context.counters),
            },
            None,
        );
        let pool = shared.pools.get(index).ok_or("no pool for the listener")?;
        let this = Rc::new(ListenerCore {
            index,
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            pool: Arc::clone(pool),
            traffic_addr: listener.traffic_addr,
            stall_timeout: listener.stall_timeout,
            endpoint: Rc::clone(&endpoint),
            traffic: RefCell::new(None),
            lanes: RefCell::new(LaneTable::new(server.load_balancer)),
            registered: RefCell::default(),
            next_flow: Cell::new(1),
            held: Rc::default(),
            lingering: Cell::new(0),
            stop_accepting: Event::default(),
            accepting: Cell::new(false),
            drain_timeout: Cell::default(),
        });
        endpoint.set_owner(Rc::new(Owner(Rc::clone(&this))));
        if let Some(socket) = sockets.udp {
            let settings = UdpSettings::from(&shared.config.udp);
            let socket = UdpSocket::adopt(socket, Purpose::Traffic).map_err(text)?;
            let router = Rc::new(Owner(Rc::clone(&this)));
            *this.traffic.borrow_mut() = Some(TrafficSocket::start(
                socket,
                context.index,
                settings,
                router,
                Arc::clone(&context.counters),
            ));
        }
        if let Some(socket) = sockets.tcp {
            let acceptor = Acceptor::adopt(socket).map_err(text)?;
            let count = AcceptorCount::new(&context.cluster);
            this.accepting.set(true);
            spawn_vital(Rc::clone(&this).accept_task(acceptor, count));
        }
        Ok(this)
    }

    pub(super) fn server(&self) -> &Server {
        // The role only starts with a `[server]` section (`ListenerCore::start` checks it).
        self.shared
            .server()
            .unwrap_or_else(|| unreachable!("a listener without [server]"))
    }

    pub(super) fn counters(&self) -> &CoreCounters {
        &self.context.counters
    }

    pub(super) fn keep_alive_period(&self) -> Duration {
        self.shared.config.quic.keep_alive_period
    }

    pub(super) fn context(&self) -> &Rc<CoreContext> {
        &self.context
    }

    pub(super) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    pub(super) fn core(&self) -> usize {
        self.context.index
    }

    pub(super) fn cores(&self) -> usize {
        self.context.cluster.cores()
    }

    /// The id by which clients tell this listener of this process from others: those that reach the
    /// same one by several addresses need the lanes of one only.
    pub(super) fn server_instance_id(&self) -> [u8; 16] {
        let mut id = self.shared.instance_id;
        for (byte, of_index) in id.iter_mut().zip(self.index.to_be_bytes()) {
            *byte ^= of_index;
        }
        id
    }

    pub(super) fn is_draining(&self) -> bool {
        self.context.draining.get()
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn pool(&self) -> &ClientPool {
        &self.pool
    }

    pub(super) fn traffic_addr(&self) -> SocketAddr {
        self.traffic_addr
    }

    /// How long a visitor may take nothing of what waits for it.
    pub(super) fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// Memory that the beginnings of flows hold.
    pub(super) fn held(&self) -> &Rc<Held> {
        &self.held
    }

    pub(super) fn next_flow_id(&self) -> u64 {
        let id = self.next_flow.get();
        self.next_flow.set(id + 1);
        id
    }

    // ---- lanes ---------------------------------------------------------------------------------------------------

    pub(super) fn join(
        &self,
        request: &Register,
        address: Option<SocketAddr>,
    ) -> Result<Joined, Duplicate> {
        let applicant = Applicant {
            client_id: &request.client_id,
            instance_id: request.instance_id,
            address,
        };
        self.pool.join(&applicant, self.core(), Instant::now())
    }

    /// Lanes on all cores that the client which wants one more has already.
    pub(super) fn lanes_of(&self, request: &Register) -> usize {
        self.pool.lanes_of(&request.client_id, request.instance_id)
    }

    /// A refused lane stays until its client has read why, unless `most` do already. False if it
    /// must go.
    pub(super) fn let_linger(&self, lane: &ServerLane, most: usize) -> bool {
        let lingering = self.lingering.get();
        let may = lingering < most;
        if may && !lane.lingers.replace(true) {
            self.lingering.set(lingering + 1);
        }
        may
    }

    pub(super) fn lane_registered(&self, lane: &Rc<ServerLane>) {
        if let Some(membership) = lane.membership.get() {
            self.lanes
                .borrow_mut()
                .add(membership.client().number, Rc::clone(lane));
            self.registered
                .borrow_mut()
                .insert(lane.lane.key(), Rc::clone(lane));
        }
    }

    /// The lane carries on with the flows that it has.
    pub(super) fn lane_takes_no_more(&self, lane: &Rc<ServerLane>) {
        let Some(membership) = lane.membership.get() else {
            return;
        };
        membership.take_no_more();
        self.lanes
            .borrow_mut()
            .remove(membership.client().number, lane);
    }

    /// True if that was the last lane of a client.
    pub(super) fn lane_ended(&self, lane: &Rc<ServerLane>) -> bool {
        self.lane_takes_no_more(lane);
        let membership = lane.membership.get();
        let last = membership.is_some_and(LaneMembership::lane_ended);
        self.registered.borrow_mut().remove(&lane.lane.key());
        if lane.lingers.take() {
            self.lingering.set(self.lingering.get() - 1);
        }
        last
    }

    /// This core's registered lanes of `client`.
    fn registered_lanes(&self, client: u64) -> Vec<Rc<ServerLane>> {
        let registered = self.registered.borrow();
        let lanes = registered.values().filter(|lane| lane.is_of(client));
        lanes.cloned().collect()
    }

    /// The lanes of a client that was replaced get no new flow. While it answers it is told so, and
    /// what it carries goes on; it may as well be dead, which is found out at once.
    pub(super) fn evict(&self, client: u64) {
        let away = GoAway {
            reason: GoAwayReason::Replaced,
            drain_timeout_ms: 0,
        };
        for lane in self.registered_lanes(client) {
            self.lane_takes_no_more(&lane);
            if lane.lane.is_silent() {
                self.close_replaced(&lane);
            } else {
                self.counters().lanes_superseded.increment();
                lane.lane.send_control(&Message::GoAway(away));
                lane.alarm();
            }
        }
    }

    /// Closes a lane of a client that was replaced and does not answer.
    pub(super) fn close_replaced(&self, lane: &Rc<ServerLane>) {
        self.counters().lanes_replaced.increment();
        lane.lane.close(
            LaneError::Replaced,
            "another instance registered with the same client_id",
        );
    }

    /// The same as [`ListenerCore::evict`] on all cores.
    pub(super) fn evict_everywhere(&self, client: u64) {
        self.evict(client);
        for (core, mailbox) in self.context.cluster.mailboxes.iter().enumerate() {
            if core != self.core()
                && mailbox
                    .send(Mail::Evict {
                        listener: self.index,
                        client,
                    })
                    .is_err()
            {
                // They get no new flow: the whole client is marked as replaced.
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

    /// `lane` is not answered: it asks on, and so do the client's other lanes, on every core.
    pub(super) fn client_may_be_gone(&self, lane: &Rc<ServerLane>, now: Instant) {
        lane.alarm();
        let Some(membership) = lane.membership.get() else {
            return;
        };
        let client = membership.client();
        if !client.may_alarm(now) {
            return;
        }
        self.counters().lanes_alarmed.increment();
        self.alarm(client.number);
        for (core, mailbox) in self.context.cluster.mailboxes.iter().enumerate() {
            let mail = Mail::ClientMayBeGone {
                listener: self.index,
                client: client.number,
            };
            if core != self.core() && client.lanes_on(core) > 0 && mailbox.send(mail).is_err() {
                // The lanes there find out by themselves when they are next used.
                self.counters().client_alarms_dropped.increment();
            }
        }
    }

    /// This core's lanes of the client ask it.
    pub(super) fn alarm(&self, client: u64) {
        for lane in self.registered_lanes(client) {
            lane.alarm();
        }
    }

    /// This core's lane of `client` for its next flow.
    pub(super) fn local_lane(&self, client: u64) -> Option<Rc<ServerLane>> {
        self.lanes.borrow().pick(client)
    }

    // ---- TCP visitors --------------------------------------------------------------------------------------------

    async fn accept_task(self: Rc<Self>, acceptor: Acceptor, count: AcceptorCount) {
        self.first_client().await;
        while self.visitors_wait(&acceptor).await {
            self.accept_turn(&acceptor).await;
            yield_now().await;
        }
        if self.is_draining() {
            self.last_visitors(&acceptor).await;
        }
        acceptor.close();
        drop(count);
        self.accepting.set(false);
        if self.is_draining() {
            self.say_go_away();
        }
    }

    /// Waits until the listener has a client, or has waited long enough for one, or the process stops.
    async fn first_client(&self) {
        let deadline = Instant::now() + FIRST_CLIENT_WAIT;
        while !self.is_draining() && self.pool.totals().usable == 0 && Instant::now() < deadline {
            crate::core::time::sleep(FIRST_CLIENT_POLL).await;
        }
    }

    /// Waits for visitors; false when no more are to be accepted.
    async fn visitors_wait(&self, acceptor: &Acceptor) -> bool {
        match self.stop_accepting.cuts_short(acceptor.readable()).await {
            None => false,
            Some(Ok(())) => true,
            Some(Err(_)) => {
                self.accept_broken();
                false
            }
        }
    }

    /// Accepts some of those who wait, and says how many.
    async fn accept_turn(self: &Rc<Self>, acceptor: &Acceptor) -> u64 {
        let mut accepted = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            match acceptor.try_accept() {
                Ok((stream, visitor)) => {
                    accepted += 1;
                    let _counted = contain(|| self.visitor(stream, visitor));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The visitor gave up before it was accepted (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.counters().accepts_failed.increment();
                    if let Some(suppressed) = self.context.connect_log.pass(Instant::now()) {
                        tracing::error!(%error, addr = %self.traffic_addr, suppressed, "cannot accept visitors; trying again");
                    }
                    crate::core::time::sleep(ACCEPT_PAUSE).await;
                    break;
                }
            }
        }
        accepted
    }

    /// Accepts those whose handshake was complete or under way when the stop came: closing the socket would reset them.
    async fn last_visitors(self: &Rc<Self>, acceptor: &Acceptor) {
        let began = Instant::now();
        let deadline = began + self.drain_timeout.get().min(LAST_VISITORS_MAX);
        let mut closes = began + HANDSHAKES_FINISH;
        loop {
            let accepted = self.accept_turn(acceptor).await;
            let now = Instant::now();
            if accepted > 0 {
                self.counters().visitors_accepted_late.add(accepted);
                closes = closes.max(now + NOBODY_FOR);
            }
            if now >= closes.min(deadline) {
                return;
            }
            if accepted == 0 {
                crate::core::time::sleep(LAST_VISITORS_POLL).await;
            } else {
                yield_now().await;
            }
        }
    }

    /// Waiting for visitors failed, which only a socket that is gone does.
    fn accept_broken(&self) {
        self.counters().internal_errors.increment();
        tracing::error!(addr = %self.traffic_addr, "the socket for visitors is broken; this core takes no more");
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Takes no new visitors. The clients are told when those are in that had begun to come.
    pub(super) fn drain(&self, timeout: Duration) {
        self.drain_timeout.set(timeout);
        self.stop_accepting.set();
        if let Some(traffic) = &*self.traffic.borrow() {
            traffic.stop();
        }
        if !self.accepting.get() {
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
            lane.lane.send_control(&Message::GoAway(away));
        }
    }

    pub(super) fn has_delivered(&self, now: Instant) -> bool {
        let lanes = self.endpoint.lanes();
        lanes.iter().filter(|lane| !lane.has_delivered(now)).count() == 0
    }

    pub(super) fn close(&self) {
        if let Some(traffic) = self.traffic.borrow_mut().take() {
            traffic.close();
        }
        for lane in self.endpoint.lanes() {
            lane.close(LaneError::Shutdown, "");
        }
        self.endpoint.stop_when_empty();
    }

    pub(super) fn datagram_from_other_core(&self, packet: ForwardedUdp) {
        let traffic = self.traffic.borrow().clone();
        if let Some(traffic) = traffic {
            let lane = self
                .local_lane(packet.client)
                .and_then(|lane| lane.udp.clone());
            traffic.packet_from_other_core(packet, lane);
        }
    }
}

/// The listener as its endpoint and its traffic socket know it.
struct Owner(Rc<ListenerCore>);

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        let Owner(listener) = self;
        let udp = listener
            .traffic
            .borrow()
            .as_ref()
            .map(|traffic| traffic.attach_lane(Rc::clone(lane)));
        let state = ServerLane::new(Rc::clone(lane), Rc::downgrade(listener), udp);
        lane.handle_events(Rc::new(ServerLaneEvents(state)));
    }

    fn hand_over(
        &self,
        core: usize,
        packet: &[u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) -> bool {
        let mail = Mail::Packet {
            listener: self.0.index,
            data: packet.to_vec(),
            from,
            to_ip,
        };
        self.0.context.cluster.mailboxes[core].send(mail).is_ok()
    }
}

impl RouteUdp for Owner {
    fn route(&self, _visitor: SocketAddr, wish: &Wish<'_>) -> Option<UdpRoute> {
        let Owner(listener) = self;
        let mut tried = Tried::default();
        for client in wish.tried {
            tried.add(*client);
        }
        if wish.must_answer {
            tried.require_answer();
        }
        let way = route::find(
            &listener.pool,
            Protocol::Udp,
            listener.core(),
            &mut tried,
            Instant::now(),
            |client| listener.local_lane(client),
            |lane| {
                let silent = wish.must_answer && lane.is_silent();
                let client = lane.membership.get()?.client().number;
                let flows = lane
                    .udp
                    .clone()
                    .filter(|flows| !silent && flows.is_open())?;
                Some((flows, client))
            },
        );
        match way? {
            Way::Here((lane, client), ticket) => Some(UdpRoute::Local {
                lane,
                client,
                ticket: Box::new(ticket),
            }),
            Way::Elsewhere(_, ticket) if wish.must_answer && ticket.client().is_silent() => None,
            Way::Elsewhere(core, ticket) => {
                listener.counters().visitors_handed_over.increment();
                Some(UdpRoute::Remote {
                    core,
                    client: ticket.client().number,
                    ticket: Box::new(ticket),
                })
            }
        }
    }

    fn let_go(&self) -> bool {
        let Owner(listener) = self;
        let nobody = listener.pool.totals().usable == 0;
        if nobody {
            // Its tasks hold it until they have closed it.
            let socket = listener.traffic.borrow_mut().take();
            drop(socket);
        }
        nobody
    }

    fn forward(&self, core: usize, packet: ForwardedUdp) -> bool {
        let mail = Mail::Datagram {
            listener: self.0.index,
            packet,
        };
        self.0.context.cluster.mailboxes[core].send(mail).is_ok()
    }
}
