//! The UDP flows of one lane on the server: what its client sends and says.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use qmux_proto::FlowError;
use qmux_proto::control::{FlowClosed, Message};

use super::TurnClock;
use super::encode::{self, FlowLane};
use super::incoming::Incoming;
use super::notices::Notices;
use super::server::{LocalFlow, Place, TrafficSocket};
use super::table::{Flow, LaneToken};

/// The service of flows: today there is one, without a name.
const SERVICE: &str = "";

/// The flows of one lane.
pub(crate) struct LaneFlows {
    traffic: Rc<TrafficSocket>,
    token: LaneToken,
    lane: Rc<dyn FlowLane>,
    incoming: RefCell<Incoming>,
    notices: RefCell<Notices>,
    clock: TurnClock,
    ended: Cell<bool>,
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
        })
    }

    pub(super) fn token(&self) -> LaneToken {
        self.token
    }

    pub(super) fn key(&self) -> u64 {
        self.lane.key()
    }

    /// False once the lane has ended.
    pub(super) fn is_open(&self) -> bool {
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
            .and_then(|flow| match &flow.data {
                Place::Local(local) => Some((flow.visitor, local.to_ip.get())),
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

    /// The client says that a flow is over, or that it does not know it.
    pub(crate) fn flow_closed(&self, flow_id: u64, reason: FlowError) {
        if reason == FlowError::UnknownFlow {
            // We know it, so the client has lost it: the next datagram introduces it again.
            self.traffic
                .table
                .borrow_mut()
                .introduce_again(self.token, flow_id);
            return;
        }
        let closed = self.traffic.table.borrow_mut().close(self.token, flow_id);
        if let Some(flow) = closed {
            self.closed(&flow, reason, None);
        }
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

    /// Sends a visitor's datagram to the client.
    pub(super) fn send(
        &self,
        flow: &LocalFlow,
        visitor: SocketAddr,
        to_ip: Option<IpAddr>,
        id: u64,
        known: bool,
        payload: &[u8],
    ) {
        flow.to_ip.set(to_ip);
        encode::send(
            &*self.lane,
            id,
            (!known).then(|| (canonical(visitor), SERVICE)),
            payload,
            &flow.packet_id,
            self.traffic.settings.fragmentation,
            &self.traffic.counters,
        );
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
