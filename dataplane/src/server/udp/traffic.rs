//! A core's UDP traffic socket of one entrance, and the flows of its visitors.
//!
//! A new visitor is routed once. Its flow then stays with its lane until it expires, is closed or
//! the lane ends, unless its client cannot serve it or the lane falls silent ([`super::failover`]).
//! If the lane is on another core, the visitor's datagrams are sent to that core one by one, and it
//! answers from its own socket of the same port.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::FlowError;
use rustc_hash::FxBuildHasher;

use super::budget;
use super::failover::Beginning;
use super::flow::{Claim, LocalFlow, Place, RemoteFlow};
use super::forwarded::{ForwardedUdp, Link};
use super::lane::LaneFlows;
use super::routes::UdpRoutes;
use super::table::{LaneToken, Table};
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, yield_now};
use crate::core::service_counters::ServiceCounters;
use crate::flow::bandwidth::Direction;
use crate::flow::udp::batch::Batcher;
use crate::flow::udp::lifetimes::{Limits, Stage};
use crate::flow::udp::receiving::{Receiver, receive_all};
use crate::flow::udp::{EXPIRED_PER_TURN, Rarely, UdpSettings};
use crate::server::access_log::End;
use crate::server::bounds::Refusal;
use crate::server::shared::ServedService;
use crate::sys::udp::{ReceiveBatch, UdpSocket};

/// One UDP traffic socket with its visitors' flows.
pub(crate) struct TrafficSocket {
    pub(super) socket: UdpSocket,
    pub(super) core: usize,
    pub(super) settings: UdpSettings,
    routes: RefCell<Option<Rc<UdpRoutes>>>,
    pub(super) service: Arc<ServedService>,
    pub(super) counters: Arc<CoreCounters>,
    pub(super) table: RefCell<Table<Place>>,
    /// The next id for flows on other cores, which nobody refers to.
    pub(super) next_remote: Cell<u64>,
    /// The lanes that carry flows of this socket.
    pub(super) lanes: RefCell<HashMap<LaneToken, Rc<LaneFlows>, FxBuildHasher>>,
    pub(super) batcher: RefCell<Batcher>,
    /// Number of bytes of first datagrams that this core keeps.
    pub(crate) kept_bytes: Rc<Cell<usize>>,
    pub(super) full_log: Rarely,
    stopping: Cell<bool>,
    /// Set when the socket takes no new flow: existing flows may go on until then.
    leaves_until: Cell<Option<Instant>>,
    closed: Cell<bool>,
    /// Whether datagrams are left in the socket until there is a client for them.
    is_held_back: Cell<bool>,
    may_receive: Event,
    /// Whether another process reads the socket.
    is_handed_over: Cell<bool>,
    /// Ends the socket's tasks; there is an event for each of them, because an event wakes only
    /// one.
    receive_over: Event,
    sweep_over: Event,
}

impl TrafficSocket {
    /// Starts the socket's tasks on the current core, whose index is `core`.
    pub(crate) fn start(
        socket: UdpSocket,
        core: usize,
        settings: UdpSettings,
        routes: Rc<UdpRoutes>,
        service: &Arc<ServedService>,
        counters: Arc<CoreCounters>,
    ) -> Rc<TrafficSocket> {
        let limits = Limits {
            flows_max: budget::FLOWS_PER_CORE_MAX,
            unanswered_timeout: settings.unanswered_timeout,
            session_timeout: settings.session_timeout,
        };
        let table = Table::new(limits, budget::of_this_core());
        let traffic = Rc::new(TrafficSocket {
            socket,
            core,
            settings,
            routes: RefCell::new(Some(routes)),
            service: Arc::clone(service),
            next_remote: Cell::new(0),
            table: RefCell::new(table),
            lanes: RefCell::default(),
            batcher: RefCell::new(Batcher::new(Arc::clone(&counters))),
            counters,
            kept_bytes: budget::kept_bytes_of_this_core(),
            full_log: Rarely::default(),
            stopping: Cell::new(false),
            leaves_until: Cell::new(None),
            closed: Cell::new(false),
            is_held_back: Cell::new(false),
            may_receive: Event::default(),
            is_handed_over: Cell::new(false),
            receive_over: Event::default(),
            sweep_over: Event::default(),
        });
        crate::core::task::spawn_vital(Rc::clone(&traffic).receive_task());
        crate::core::task::spawn_vital(Rc::clone(&traffic).sweep_task());
        traffic
    }

    /// Begins the drain. New visitors are served as long as a client is there: a TCP visitor can be
    /// reset and tries elsewhere, but a UDP visitor would only meet silence, and draining does not
    /// wait for UDP for long anyway. The socket closes with the last client, so that the kernel
    /// tells later visitors that nobody listens.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Leaves visitors' datagrams in the socket until [`Self::begin_to_receive`]; to be called
    /// right after the start.
    pub(crate) fn hold_back(&self) {
        self.is_held_back.set(true);
    }

    pub(crate) fn begin_to_receive(&self) {
        self.may_receive.set();
    }

    /// A descriptor of the socket for a successor. `None` while the socket is not read, or if there
    /// are too many open files.
    pub(crate) fn lend(&self) -> Option<OwnedFd> {
        let is_read = self.receives() && !self.is_leaving();
        is_read.then(|| self.socket.try_clone().ok()).flatten()
    }

    /// The successor reads the socket from now on; what clients send to its visitors is still sent
    /// here. A socket that was not lent is read here to its end.
    pub(crate) fn handed_over(&self) {
        if self.is_leaving() {
            return;
        }
        self.is_handed_over.set(true);
        self.receive_over.set();
    }

    fn receives(&self) -> bool {
        !self.closed.get() && !self.is_handed_over.get()
    }

    /// Takes no new flows, because the service is removed or has left this core. Existing flows may
    /// go on until then.
    pub(crate) fn leave(&self, until: Instant) {
        self.leaves_until.set(Some(until));
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaves_until.get().is_some()
    }

    /// Whether the socket has been closed and all of its flows have ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether a socket that takes no new flows can be closed: its last flow has ended, or their
    /// time is over.
    fn has_left(&self, now: Instant) -> bool {
        let until = self.leaves_until.get();
        until.is_some_and(|until| now >= until || self.table.borrow().len() == 0)
    }

    /// Number of flows on lanes of this core.
    #[cfg(test)]
    pub(crate) fn flow_count(&self) -> usize {
        let table = self.table.borrow();
        table.len() - table.lane_len(LaneToken::ELSEWHERE)
    }

    /// Ends all flows and the tasks; the socket closes with the last reference.
    pub(crate) fn close(&self) {
        if self.closed.replace(true) {
            return;
        }
        self.stopping.set(true);
        self.receive_over.set();
        self.sweep_over.set();
        let lanes: Vec<_> = self.lanes.borrow().values().cloned().collect();
        let now = Instant::now();
        for lane in lanes {
            self.end_lane(&lane, FlowError::Draining, Some(now));
        }
        let remote = self.table.borrow_mut().end_lane(LaneToken::ELSEWHERE);
        drop(remote);
        let routes = self.routes.borrow_mut().take();
        drop(routes);
    }

    /// Ends the flows on `lane`. Tells its client why if `tell_at` is given.
    pub(super) fn end_lane(&self, lane: &LaneFlows, reason: FlowError, tell_at: Option<Instant>) {
        let flows = self.table.borrow_mut().end_lane(lane.token());
        for flow in flows {
            let end = match reason {
                FlowError::Draining => End::Drained,
                _ => End::LaneLost,
            };
            lane.closed(&flow, reason, end, tell_at);
        }
    }

    /// Notes that a flow has left a lane; it may have been this socket's last one there.
    pub(super) fn flow_left(&self, lane: LaneToken) {
        if self.table.borrow().lane_len(lane) == 0 {
            let lane = self.lanes.borrow_mut().remove(&lane);
            drop(lane);
        }
    }

    // ---- from clients ----

    /// Takes a datagram that has come through a flow's lane, and returns the flow and its visitor.
    pub(super) fn reply(
        &self,
        lane: LaneToken,
        id: u64,
        now: Instant,
    ) -> Option<(SocketAddr, Rc<LocalFlow>)> {
        let mut table = self.table.borrow_mut();
        let (flow, first) = table.packet_through(lane, id, now)?;
        let Place::Local(local) = &flow.data else {
            return None;
        };
        if first {
            local.answered();
        }
        Some((flow.visitor, Rc::clone(local)))
    }

    /// Sends what was batched for visitors.
    pub(super) fn flush(&self) {
        let mut batcher = self.batcher.borrow_mut();
        batcher.flush(&self.socket);
        // The failure has been counted. That a visitor cannot be reached concerns only that
        // visitor.
        let _unreachable = batcher.take_error();
    }

    /// Handles a datagram that another core received. `lane` is the client's lane on this core, if
    /// there is one.
    pub(crate) fn packet_from_other_core(
        self: &Rc<Self>,
        mut packet: ForwardedUdp,
        lane: Option<Rc<LaneFlows>>,
    ) {
        let now = Instant::now();
        let found = self.find(packet.visitor, now);
        let gives_way = match &found {
            Some((Place::Local(flow), id, _)) => {
                self.gives_way(flow, *id, &mut packet, lane.as_ref())
            }
            _ => false,
        };
        let ForwardedUdp {
            visitor,
            to_ip,
            payload,
            link,
            client,
        } = packet;
        if let Some((Place::Local(flow), id, known)) = found
            && !gives_way
        {
            if flow.lane.is_to_be_left(now) && self.leave_to_other_core(&flow, visitor, now) {
                return;
            }
            flow.to_ip.set(to_ip);
            self.send(&flow, visitor, id, known, &payload, now);
            return;
        }
        let begins = link.is_some();
        if let (Some(link), Some(lane)) = (link, lane)
            && !self.closed.get()
            && lane.is_open()
        {
            self.forget_remote(visitor);
            if !self.make_room(visitor, now) {
                self.refused_for_limit();
                return;
            }
            let beginning = Beginning {
                visitor,
                to_ip,
                payload: Some(&payload),
                tried: link.tried,
            };
            // The core that received the datagram has asked the gate.
            self.open_local(beginning, None, lane, client, Claim::Link(link), now);
            return;
        }
        // The lane or the flow has ended meanwhile. The core that received the datagram learns by
        // its link that the flow is gone, and routes the visitor's next datagram anew.
        self.counters.udp_dropped_no_client.increment();
        if begins {
            self.refused(Refusal::NoClient);
        }
    }

    /// Handles a link that came with a datagram for an existing flow. The core that received the
    /// datagram does not know of the flow, and would route each datagram anew if the link were
    /// dropped. So the flow keeps the link. If the visitor now goes to another client, the flow
    /// must end, and this returns true.
    fn gives_way(
        &self,
        flow: &LocalFlow,
        id: u64,
        packet: &mut ForwardedUdp,
        lane: Option<&Rc<LaneFlows>>,
    ) -> bool {
        let stays = packet.client == flow.client || !lane.is_some_and(|lane| lane.is_open());
        let token = flow.lane.token();
        if packet.link.is_none() || stays {
            if let Some(link) = packet.link.take() {
                let is_answered = !self.table.borrow().is_unanswered(token, id);
                flow.keep(link, is_answered);
            }
            return false;
        }
        let ended = self.table.borrow_mut().close_visitor(packet.visitor, token);
        if let Some(ended) = ended {
            flow.lane
                .closed(&ended, FlowError::NoError, End::Moved, Some(Instant::now()));
        }
        true
    }

    /// Forgets that the visitor's flow lives on another core.
    pub(super) fn forget_remote(&self, visitor: SocketAddr) {
        let flow = self
            .table
            .borrow_mut()
            .close_visitor(visitor, LaneToken::ELSEWHERE);
        drop(flow);
    }

    // ---- from visitors ----

    async fn receive_task(self: Rc<Self>) {
        if self.is_held_back.get() {
            let may = self.receive_over.cuts_short(self.may_receive.wait());
            if may.await.is_none() {
                return;
            }
        }
        receive_all(&self).await;
    }

    fn packet(
        self: &Rc<Self>,
        visitor: SocketAddr,
        to_ip: Option<IpAddr>,
        payload: &[u8],
        now: Instant,
    ) {
        match self.find(visitor, now) {
            Some((Place::Local(flow), id, known)) => {
                if flow.lane.is_to_be_left(now) && self.move_on(&flow, visitor, to_ip, payload, now)
                {
                    return;
                }
                flow.to_ip.set(to_ip);
                self.send(&flow, visitor, id, known, payload, now);
            }
            Some((Place::Remote(flow), ..)) if !flow.is_gone() => {
                self.hand_over(&flow, visitor, to_ip, payload, None);
            }
            Some((Place::Remote(flow), ..)) => {
                self.forget_remote(visitor);
                let earlier = Some((flow.permit.take(), flow.tried()));
                self.new_visitor(visitor, to_ip, payload, earlier, now);
            }
            None => self.new_visitor(visitor, to_ip, payload, None, now),
        }
    }

    /// Sends a visitor's datagram to its client. `known` says whether the client knows the flow.
    pub(super) fn send(
        &self,
        flow: &LocalFlow,
        visitor: SocketAddr,
        id: u64,
        known: bool,
        payload: &[u8],
        now: Instant,
    ) {
        let bytes = payload.len() as u64;
        if !flow.may_carry(Direction::In, bytes, now) {
            self.counters.udp_dropped_bandwidth.increment();
            return;
        }
        self.service_counters().udp_bytes_in.add(bytes);
        flow.bytes_in.set(flow.bytes_in.get() + bytes);
        flow.lane.send(flow, visitor, id, known, payload, now);
    }

    /// This core's counters of the service.
    pub(super) fn service_counters(&self) -> &ServiceCounters {
        &self.service.counters[self.core]
    }

    /// Counts bytes that have come for a visitor.
    pub(super) fn count_out(&self, flow: &LocalFlow, bytes: u64) {
        self.service_counters().udp_bytes_out.add(bytes);
        flow.bytes_out.set(flow.bytes_out.get() + bytes);
    }

    /// The flow of a visitor who has just sent something: its place, its id, and whether the peer
    /// knows it.
    fn find(&self, visitor: SocketAddr, now: Instant) -> Option<(Place, u64, bool)> {
        let mut table = self.table.borrow_mut();
        let flow = table.packet_from(visitor, now)?;
        Some((flow.data.clone(), flow.id, flow.known))
    }

    pub(super) fn hand_over(
        &self,
        flow: &RemoteFlow,
        visitor: SocketAddr,
        to_ip: Option<IpAddr>,
        payload: &[u8],
        link: Option<Link>,
    ) {
        let packet = ForwardedUdp {
            visitor,
            to_ip,
            payload: payload.to_vec(),
            link,
            client: flow.client,
        };
        let handed_over = self
            .routes()
            .is_some_and(|routes| routes.forward(flow.core, packet));
        if !handed_over {
            self.counters.udp_dropped_handover.increment();
        }
    }

    pub(super) fn routes(&self) -> Option<Rc<UdpRoutes>> {
        self.routes.borrow().clone()
    }

    // ---- expiry ----

    async fn sweep_task(self: Rc<Self>) {
        loop {
            let pause = crate::core::time::sleep(self.settings.sweep_interval());
            if self.sweep_over.cuts_short(pause).await.is_none() {
                return;
            }
            while self.expire(Instant::now()) {
                yield_now().await;
            }
            let now = Instant::now();
            let lanes: Vec<_> = self.lanes.borrow().values().cloned().collect();
            for lane in lanes {
                lane.sweep(now);
            }
            if self.has_left(now) {
                self.close();
            }
            if self.stopping.get() && self.routes().is_none_or(|routes| routes.nobody_is_left()) {
                self.close();
            }
        }
    }

    /// Ends some of the flows that have expired. Returns true if there may be more.
    fn expire(&self, now: Instant) -> bool {
        // An entry for another core lives as long as the flow does there, because that core also
        // sees the client's datagrams.
        let lives_elsewhere =
            |place: &Place| matches!(place, Place::Remote(flow) if !flow.is_gone());
        for _ in 0..EXPIRED_PER_TURN {
            let expired = self.table.borrow_mut().expire_next(now, lives_elsewhere);
            let Some((flow, stage)) = expired else {
                return false;
            };
            if let Place::Local(local) = &flow.data {
                self.counters.udp_flows_expired.increment();
                if stage == Stage::Unanswered {
                    self.counters.udp_flows_unanswered.increment();
                }
                local
                    .lane
                    .closed(&flow, FlowError::Expired, End::Idle, Some(now));
            }
        }
        true
    }
}

impl Receiver for Rc<TrafficSocket> {
    fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    fn over(&self) -> &Event {
        &self.receive_over
    }

    fn receives(&self) -> bool {
        TrafficSocket::receives(self)
    }

    fn handle(&self, batch: &mut ReceiveBatch) -> u32 {
        let now = Instant::now();
        let mut datagrams = 0;
        batch.for_each(|received| {
            datagrams += 1;
            self.packet(received.from, received.to_ip, received.data, now);
        });
        datagrams
    }

    fn failed(&self, error: &io::Error) {
        tracing::debug!(%error, "receive on a UDP traffic socket");
    }
}

impl fmt::Debug for TrafficSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TrafficSocket({} of core {})",
            self.socket.local_addr(),
            self.core
        )
    }
}
