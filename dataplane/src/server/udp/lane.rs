//! The UDP flows of one lane on the server, and what the lane's client sends and says about them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::FlowError;
use qmux_proto::control::{FlowClosed, Message};
use rustc_hash::FxBuildHasher;

use super::flow::{LocalFlow, Place};
use super::table::{Flow, LaneToken};
use super::traffic::TrafficSocket;
use crate::core::counters::CoreCounters;
use crate::flow::bandwidth::Direction;
use crate::flow::udp::TurnClock;
use crate::flow::udp::encode::{self, FlowLane, Introduction};
use crate::flow::udp::incoming::Incoming;
use crate::flow::udp::notices::Notices;
use crate::server::access_log::End;
use crate::server::pool::lanes::CarriesFlows;

/// How often a lane's peer is asked for a sign of life while visitors send. A probe costs little,
/// but not nothing.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// How long a lane must have been silent until its flows move. Silence is known after 0.3 s and
/// noticed within 0.25 s, so flows move within 2 s of the death of their lane. If they moved
/// sooner, each hiccup of the network would tear exchanges from the client that knows of them.
const LEAVE_AFTER: Duration = Duration::from_millis(1_400);

/// Pause between two searches for a better lane, after one has failed.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// The last token that was given to a lane of this core.
    static LAST_TOKEN: Cell<LaneToken> = const { Cell::new(LaneToken::ELSEWHERE) };
}

/// The flows of one lane, whichever socket their visitors send to.
pub(crate) struct LaneFlows {
    token: LaneToken,
    lane: Rc<dyn FlowLane>,
    fragmentation: bool,
    /// Whether the client can read introductions that contain a traffic address.
    reads_traffic_addresses: Cell<bool>,
    counters: Arc<CoreCounters>,
    /// The id of the next flow. Ids count up from 0 for all sockets together, because the peer
    /// knows flows by their id alone.
    next_id: Cell<u64>,
    /// The socket of each flow, by the flow's id. Ids are our own, so a fast hash is safe.
    flows: RefCell<HashMap<u64, Rc<TrafficSocket>, FxBuildHasher>>,
    /// Sockets with datagrams for visitors that were batched in this turn.
    to_flush: RefCell<Vec<Rc<TrafficSocket>>>,
    incoming: RefCell<Incoming>,
    notices: RefCell<Notices>,
    clock: TurnClock,
    ended: Cell<bool>,
    /// The time at which the client was last known to be asked for a sign of life.
    asked_at: Cell<Option<Instant>>,
    /// The time at which the lane was first found to be silent.
    silent_since: Cell<Option<Instant>>,
    /// The time at which the lane's flows may look for another lane.
    leave_at: Cell<Option<Instant>>,
}

impl LaneFlows {
    /// The flows of a lane that has none yet.
    pub(crate) fn new(
        lane: Rc<impl FlowLane + 'static>,
        fragmentation: bool,
        counters: &Arc<CoreCounters>,
    ) -> Rc<LaneFlows> {
        let token = LAST_TOKEN.get().next();
        LAST_TOKEN.set(token);
        Rc::new(LaneFlows {
            token,
            lane,
            fragmentation,
            reads_traffic_addresses: Cell::new(false),
            counters: Arc::clone(counters),
            next_id: Cell::new(0),
            flows: RefCell::default(),
            to_flush: RefCell::default(),
            incoming: RefCell::new(Incoming::new()),
            notices: RefCell::default(),
            clock: TurnClock::default(),
            ended: Cell::new(false),
            asked_at: Cell::new(None),
            silent_since: Cell::new(None),
            leave_at: Cell::new(None),
        })
    }

    pub(super) fn token(&self) -> LaneToken {
        self.token
    }

    /// Notes that the client can read introductions that contain a traffic address.
    pub(crate) fn peer_reads_traffic_addresses(&self) {
        self.reads_traffic_addresses.set(true);
    }

    pub(super) fn key(&self) -> u64 {
        self.lane.key()
    }

    /// Whether the lane has not ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.get()
    }

    /// Number of flows on the lane.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.borrow().len()
    }

    /// The id for the lane's next flow.
    pub(super) fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Notes that a flow with one of the lane's ids has begun; it ends with [`Self::closed`].
    pub(super) fn opened(&self, id: u64, traffic: &Rc<TrafficSocket>) {
        self.flows.borrow_mut().insert(id, Rc::clone(traffic));
    }

    /// The socket of a flow's visitor.
    pub(super) fn traffic_of(&self, id: u64) -> Option<Rc<TrafficSocket>> {
        self.flows.borrow().get(&id).cloned()
    }

    /// Takes a datagram from the client and batches it for its flow's visitor.
    pub(crate) fn datagram(&self, data: &[u8]) {
        let Ok((header, payload)) = Incoming::decode(data) else {
            self.counters.udp_dropped_malformed.increment();
            return;
        };
        if header.introduction().is_some() {
            // Only servers introduce flows.
            self.counters.udp_dropped_malformed.increment();
            return;
        }
        let now = self.clock.now();
        let id = header.flow_id();
        let found = self.traffic_of(id).and_then(|traffic| {
            let (visitor, flow) = traffic.reply(self.token, id, now)?;
            Some((traffic, visitor, flow))
        });
        let Some((traffic, visitor, flow)) = found else {
            self.counters.udp_dropped_unknown_flow.increment();
            self.tell_closed(id, FlowError::UnknownFlow, now);
            return;
        };
        let mut incoming = self.incoming.borrow_mut();
        if let Some(packet) = incoming.packet(&header, payload, now) {
            let bytes = packet.len() as u64;
            if !flow.may_carry(Direction::Out, bytes, now) {
                self.counters.udp_dropped_bandwidth.increment();
                return;
            }
            traffic.count_out(&flow, bytes);
            let mut batcher = traffic.batcher.borrow_mut();
            batcher.push(&traffic.socket, visitor, flow.to_ip.get(), packet);
            drop(batcher);
            self.flush_later(traffic);
        }
    }

    /// Notes that the socket has datagrams to send in this turn.
    fn flush_later(&self, traffic: Rc<TrafficSocket>) {
        let mut to_flush = self.to_flush.borrow_mut();
        // It is mostly the last one in the list.
        let known = |it: &Rc<TrafficSocket>| Rc::ptr_eq(it, &traffic);
        if !to_flush.iter().rev().any(known) {
            to_flush.push(traffic);
        }
    }

    /// Sends what was batched, when all datagrams of this turn have been delivered.
    pub(crate) fn datagrams_done(&self) {
        self.flush();
        self.incoming.borrow_mut().report(&self.counters);
        self.notices.borrow_mut().turn_over();
        self.clock.turn_over();
    }

    /// Ends all flows of a lane that has ended. Their visitors are routed anew with their next
    /// datagram.
    pub(crate) fn lane_ended(&self) {
        if self.ended.replace(true) {
            return;
        }
        self.flush();
        let mut sockets: Vec<_> = self.flows.borrow().values().cloned().collect();
        sockets.sort_by_key(Rc::as_ptr);
        sockets.dedup_by(|a, b| Rc::ptr_eq(a, b));
        for traffic in sockets {
            traffic.end_lane(self, FlowError::Internal, None);
        }
    }

    fn flush(&self) {
        for traffic in self.to_flush.borrow_mut().drain(..) {
            traffic.flush();
        }
    }

    /// Sends a visitor's datagram to the client. `known` says whether the client knows the flow.
    pub(super) fn send(
        &self,
        flow: &LocalFlow,
        visitor: SocketAddr,
        id: u64,
        known: bool,
        payload: &[u8],
        now: Instant,
    ) {
        let with_traffic = self.reads_traffic_addresses.get();
        let introduction = (!known).then(|| Introduction {
            visitor: canonical(visitor),
            traffic: with_traffic.then(|| flow.traffic_addr()),
            service: &flow.service.name,
        });
        encode::send(
            &*self.lane,
            id,
            introduction,
            payload,
            &flow.packet_id,
            self.fragmentation,
            &self.counters,
        );
        let due = |last: Instant| now.saturating_duration_since(last) >= ASK_PAUSE;
        if self.asked_at.get().is_none_or(due) {
            self.asked_at.set(Some(now));
            self.lane.asked(now);
        }
    }

    /// Whether the lane has been silent for so long that its flows should move.
    pub(super) fn is_to_be_left(&self, now: Instant) -> bool {
        self.leave_at.get().is_some_and(|at| now >= at)
    }

    /// Notes that there is no better lane, so that flows do not search again with each datagram.
    pub(super) fn nowhere_to_go(&self, now: Instant) {
        self.leave_at.set(Some(now + LOOK_PAUSE));
    }

    /// Notes whether the client answers.
    pub(crate) fn note_silence(&self, now: Instant) {
        if !self.lane.is_silent() {
            self.silent_since.set(None);
            self.leave_at.set(None);
        } else if self.silent_since.get().is_none() {
            self.silent_since.set(Some(now));
            self.leave_at.set(Some(now + LEAVE_AFTER));
        }
    }

    /// Tells the client that a flow is over, within the bounds of [`Notices`].
    fn tell_closed(&self, flow_id: u64, reason: FlowError, now: Instant) {
        if self.notices.borrow_mut().may_tell(flow_id, now) {
            self.lane
                .send_control(&Message::FlowClosed(FlowClosed { flow_id, reason }));
        }
    }

    /// Counts and logs the end of a flow that was taken out of its table. Tells the client if
    /// `tell_at` is given.
    pub(super) fn closed(
        &self,
        flow: &Flow<Place>,
        reason: FlowError,
        end: End,
        tell_at: Option<Instant>,
    ) {
        let traffic = self.flows.borrow_mut().remove(&flow.id);
        if let Some(traffic) = traffic {
            traffic.flow_left(self.token);
        }
        self.counters.udp_flows_ended.increment();
        tracing::debug!(
            lane = self.key(), flow = flow.id, visitor = %canonical(flow.visitor), %reason,
            "UDP flow ended"
        );
        if let Place::Local(local) = &flow.data {
            local.note_end(flow.visitor, Instant::now(), end);
        }
        self.incoming.borrow_mut().forget(flow.id);
        if let Some(now) = tell_at {
            self.tell_closed(flow.id, reason, now);
        }
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.note_silence(now);
        self.lane.count_datagrams();
        self.incoming.borrow_mut().sweep(now, &self.counters);
        self.notices.borrow_mut().turn_over();
    }
}

/// The address as the visitor knows it: a socket of both families sees IPv4 addresses mapped into
/// IPv6.
pub(super) fn canonical(visitor: SocketAddr) -> SocketAddr {
    SocketAddr::new(visitor.ip().to_canonical(), visitor.port())
}

impl CarriesFlows for LaneFlows {
    fn is_open(&self) -> bool {
        LaneFlows::is_open(self)
    }

    fn is_silent(&self) -> bool {
        self.lane.is_silent()
    }

    fn flows(&self) -> usize {
        self.flow_count()
    }
}

impl fmt::Debug for LaneFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneFlows({})", self.key())
    }
}
