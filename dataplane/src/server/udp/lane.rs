//! The UDP flows of one lane on the server: what its client sends and says.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::FlowError;
use qmux_proto::control::{FlowClosed, Message};

use super::table::{Flow, LaneToken};
use super::traffic::{LocalFlow, Place, TrafficSocket};
use crate::flow::udp::TurnClock;
use crate::flow::udp::encode::{self, FlowLane};
use crate::flow::udp::incoming::Incoming;
use crate::flow::udp::notices::Notices;

/// A lane's peer is asked for a sign of life this often while visitors send: an ask costs little, but
/// not nothing.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// How long a lane must have been silent until its flows go elsewhere. A silence is known after 0.3 s
/// and seen within 0.25 s, so flows move within 2 s of the death of their lane; sooner, each hiccup of
/// the network would tear exchanges from the client that knows of them.
const LEAVE_AFTER: Duration = Duration::from_millis(1_400);

/// Pause between two looks for a better lane that is not there.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// The service of flows: today there is one, without a name.
const SERVICE: &str = "";

/// The flows of one lane.
pub(crate) struct LaneFlows {
    pub(super) traffic: Rc<TrafficSocket>,
    pub(super) token: LaneToken,
    lane: Rc<dyn FlowLane>,
    incoming: RefCell<Incoming>,
    notices: RefCell<Notices>,
    clock: TurnClock,
    ended: Cell<bool>,
    /// When the client was last known to be asked something.
    asked_at: Cell<Option<Instant>>,
    /// When the lane was first found to be silent.
    silent_since: Cell<Option<Instant>>,
    /// When its flows may look for another one.
    leave_at: Cell<Option<Instant>>,
}

impl LaneFlows {
    pub(super) fn new(
        traffic: Rc<TrafficSocket>,
        token: LaneToken,
        lane: Rc<dyn FlowLane>,
    ) -> Rc<LaneFlows> {
        Rc::new(LaneFlows {
            traffic,
            token,
            lane,
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

    pub(super) fn key(&self) -> u64 {
        self.lane.key()
    }

    /// False once the lane has ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended.get()
    }

    /// The flows that ride the lane.
    pub(crate) fn flow_count(&self) -> usize {
        self.traffic.table.borrow().lane_len(self.token)
    }

    /// A datagram came from the client: it goes to its flow's visitor, in a batch with others.
    pub(crate) fn datagram(&self, data: &[u8]) {
        let TrafficSocket {
            socket,
            counters,
            table,
            batcher,
            ..
        } = &*self.traffic;
        let Ok((header, payload)) = Incoming::decode(data) else {
            counters.udp_dropped_malformed.increment();
            return;
        };
        if header.introduction().is_some() {
            // Only a server introduces flows.
            counters.udp_dropped_malformed.increment();
            return;
        }
        let now = self.clock.now();
        let id = header.flow_id();
        let found = table
            .borrow_mut()
            .packet_through(self.token, id, now)
            .and_then(|(flow, first)| match &flow.data {
                Place::Local(local) => {
                    if first {
                        local.answered();
                    }
                    Some((flow.visitor, local.to_ip.get()))
                }
                Place::Remote { .. } => None,
            });
        let Some((visitor, from_ip)) = found else {
            counters.udp_dropped_unknown_flow.increment();
            self.tell_closed(id, FlowError::UnknownFlow, now);
            return;
        };
        let mut incoming = self.incoming.borrow_mut();
        if let Some(packet) = incoming.packet(&header, payload, now) {
            batcher.borrow_mut().push(socket, visitor, from_ip, packet);
        }
    }

    /// The datagrams of this turn have been delivered: what was batched is sent.
    pub(crate) fn datagrams_done(&self) {
        let TrafficSocket {
            socket,
            counters,
            batcher,
            ..
        } = &*self.traffic;
        {
            let mut batcher = batcher.borrow_mut();
            batcher.flush(socket);
            // Counted. A visitor that cannot be reached is its own matter.
            let _unreachable = batcher.take_error();
        }
        self.incoming.borrow_mut().report(counters);
        self.notices.borrow_mut().turn_over();
        self.clock.turn_over();
    }

    /// The lane has ended: so have its flows. Their visitors are routed anew with their next datagram.
    pub(crate) fn lane_ended(&self) {
        self.end(None);
    }

    /// Ends the lane's flows, and tells the client if there is something to tell.
    pub(super) fn end(&self, tell: Option<FlowError>) {
        if self.ended.replace(true) {
            return;
        }
        let flows = self.traffic.table.borrow_mut().end_lane(self.token);
        let now = Instant::now();
        for flow in flows {
            self.closed(
                &flow,
                tell.unwrap_or(FlowError::Internal),
                tell.map(|_| now),
            );
        }
        let this = self.traffic.lanes.borrow_mut().remove(&self.token);
        drop(this);
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
        encode::send(
            &*self.lane,
            id,
            (!known).then(|| (canonical(visitor), SERVICE)),
            payload,
            &flow.packet_id,
            self.traffic.settings.fragmentation,
            &self.traffic.counters,
        );
        let due = |last: Instant| now.saturating_duration_since(last) >= ASK_PAUSE;
        if self.asked_at.get().is_none_or(due) {
            self.asked_at.set(Some(now));
            self.lane.asked(now);
        }
    }

    /// Whether flows should go on elsewhere, as the lane has been silent for a while.
    pub(super) fn is_to_be_left(&self, now: Instant) -> bool {
        self.leave_at.get().is_some_and(|at| now >= at)
    }

    /// There is no better lane; flows ask again, but not with each datagram.
    pub(super) fn nowhere_to_go(&self, now: Instant) {
        self.leave_at.set(Some(now + LOOK_PAUSE));
    }

    fn note_silence(&self, now: Instant) {
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

    /// Counts and logs the end of a flow that was taken out of the table, and tells the client if `tell_at` is given.
    pub(super) fn closed(&self, flow: &Flow<Place>, reason: FlowError, tell_at: Option<Instant>) {
        self.traffic.counters.udp_flows_ended.increment();
        tracing::debug!(
            lane = self.key(), flow = flow.id, visitor = %flow.visitor, %reason, "UDP flow ended"
        );
        self.incoming.borrow_mut().forget(flow.id);
        if let Some(now) = tell_at {
            self.tell_closed(flow.id, reason, now);
        }
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.note_silence(now);
        self.lane.count_datagrams();
        self.incoming
            .borrow_mut()
            .sweep(now, &self.traffic.counters);
        self.notices.borrow_mut().turn_over();
    }
}

/// The address as the visitor knows it: a socket of both families sees IPv4 addresses mapped into IPv6.
fn canonical(visitor: SocketAddr) -> SocketAddr {
    SocketAddr::new(visitor.ip().to_canonical(), visitor.port())
}

impl fmt::Debug for LaneFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneFlows({})", self.key())
    }
}
