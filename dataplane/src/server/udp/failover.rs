//! Failover of a visitor's UDP flow: where it begins, to which other client it goes if the chosen
//! one cannot serve it, and to which other lane if its own has fallen silent.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::FlowError;

use super::flow::{Claim, LocalFlow, Place, RemoteFlow};
use super::forwarded::{Link, LinkState};
use super::lane::{LaneFlows, canonical};
use super::table::{Admission, Flow, LaneToken};
use super::traffic::TrafficSocket;
use crate::core::memory;
use crate::flow::udp::lifetimes::Why;
use crate::server::access_log::End;
use crate::server::bounds::{Permit, Refusal};
use crate::server::pool::balance::Tried;
use crate::server::pool::route::Route;
use crate::server::pool::service::FlowTicket;

/// The largest first datagram of a flow that is kept for another client: that of an Ethernet frame.
const KEPT_BYTES_MAX: usize = 1_500;

/// The most bytes of first datagrams that each core keeps.
const KEPT_BYTES_IN_ALL_MAX: usize = 4 << 20;

/// The first datagram of a flow that has no answer yet.
#[derive(Debug)]
pub(super) struct Kept {
    payload: Box<[u8]>,
    in_all: Rc<Cell<usize>>,
}

impl Kept {
    fn new(payload: &[u8], in_all: &Rc<Cell<usize>>) -> Option<Kept> {
        let after = in_all.get() + payload.len();
        (payload.len() <= KEPT_BYTES_MAX && after <= KEPT_BYTES_IN_ALL_MAX).then(|| {
            in_all.set(after);
            Kept {
                payload: payload.into(),
                in_all: Rc::clone(in_all),
            }
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.in_all.set(self.in_all.get() - self.payload.len());
    }
}

/// A flow that is about to begin.
#[derive(Clone, Copy)]
pub(super) struct Beginning<'a> {
    pub(super) visitor: SocketAddr,
    /// The local address that the visitor sends to.
    pub(super) to_ip: Option<IpAddr>,
    /// The flow's first datagram; `None` if it is lost.
    pub(super) payload: Option<&'a [u8]>,
    /// The clients that could not serve the visitor.
    pub(super) tried: Tried,
}

/// Whether a client that ends a flow for this reason could not serve it.
fn could_not_serve(reason: FlowError) -> bool {
    reason.is_untouched() || reason == FlowError::LimitReached
}

/// Whether a client that ends a flow for this reason says that its service cannot be reached.
fn shows_that_it_is_down(reason: FlowError) -> bool {
    matches!(
        reason,
        FlowError::DialRefused | FlowError::DialTimeout | FlowError::DialFailed
    )
}

/// A visitor whom a client could not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unserved {
    /// The number of the visitor's service.
    pub(crate) service: usize,
    /// Whether the service itself is down, which a visitor shows only where it has one port: those
    /// of a range may be opened as they are needed.
    pub(crate) is_down: bool,
}

impl TrafficSocket {
    /// Whether the service has one port.
    fn is_the_only_port(&self) -> bool {
        self.service.traffic().ports().count() == 1
    }

    /// Counts a visitor who gets no flow.
    pub(super) fn refused(&self, why: Refusal) {
        let refusals = &self.service.gate.refusals()[self.core];
        why.counter(refusals).increment();
    }

    /// Routes a visitor who has no flow. `earlier` is what an earlier flow of the visitor has left:
    /// its permit, and the clients that could not serve it.
    pub(super) fn new_visitor(
        self: &Rc<Self>,
        visitor: SocketAddr,
        to_ip: Option<IpAddr>,
        payload: &[u8],
        earlier: Option<(Option<Permit>, Tried)>,
        now: Instant,
    ) {
        if self.is_leaving() {
            self.counters.udp_dropped_removed.increment();
            return;
        }
        let gate = &self.service.gate;
        let (earlier, mut tried) = earlier.unwrap_or_default();
        if tried != Tried::default() && !self.is_there_another(&tried) {
            // Those that could serve it have gone meanwhile, and what could not may have come back.
            tried = Tried::default();
        }
        let permit = match earlier {
            Some(earlier) => Some(earlier),
            None => match gate.admit_udp_flow(self.core, visitor.ip()) {
                Ok(permit) => permit,
                Err(_counted) => {
                    self.counters.udp_dropped_bounds.increment();
                    return;
                }
            },
        };
        if memory::refuses_newcomers() {
            self.counters.udp_dropped_memory.increment();
            self.refused(Refusal::Memory);
            return;
        }
        let beginning = Beginning {
            visitor,
            to_ip,
            payload: Some(payload),
            tried,
        };
        match self.route(tried) {
            Some(way) => self.begin(beginning, permit, way, now),
            None => {
                self.counters.udp_dropped_no_client.increment();
                self.refused(Refusal::NoClient);
            }
        }
    }

    fn route(&self, tried: Tried) -> Option<Route<Rc<LaneFlows>>> {
        self.routes()?.find(tried)
    }

    /// Whether there may be a route for a visitor whom the clients in `tried` could not serve.
    fn is_there_another(&self, tried: &Tried) -> bool {
        self.routes().is_some_and(|it| it.is_there_another(tried))
    }

    /// Begins a flow on this route. What cannot be done is dropped and counted.
    fn begin(
        self: &Rc<Self>,
        beginning: Beginning<'_>,
        permit: Option<Permit>,
        way: Route<Rc<LaneFlows>>,
        now: Instant,
    ) {
        if !self.make_room(beginning.visitor, now) {
            self.refused_for_limit();
            return;
        }
        match way {
            Route::Here(lane, ticket) => {
                let client = ticket.client().number;
                let claim = Claim::Own(ticket);
                self.open_local(beginning, permit, lane, client, claim, now);
            }
            Route::Elsewhere(core, ticket) => {
                self.open_remote(&beginning, permit, core, ticket, now);
            }
        }
    }

    /// Makes room for a flow of `visitor`, at the cost of another one if need be.
    pub(super) fn make_room(&self, visitor: SocketAddr, now: Instant) -> bool {
        let answered = |place: &Place| matches!(place, Place::Remote(flow) if flow.is_answered());
        let admission = self.table.borrow_mut().make_room(visitor, now, answered);
        let (ended, why) = match admission {
            Admission::Free => return true,
            Admission::Instead(ended, why) => (ended, why),
            Admission::None => {
                self.say_full("a new UDP visitor is refused");
                return false;
            }
        };
        match why {
            Why::Full => {
                self.counters.udp_flows_evicted.increment();
                self.say_full("the oldest UDP flow without an answer ends for a new one");
            }
            Why::Source => self.counters.udp_flows_evicted_of_source.increment(),
        }
        if let Place::Local(local) = &ended.data {
            local
                .lane
                .closed(&ended, FlowError::Expired, End::Evicted, Some(now));
        }
        true
    }

    /// Counts a visitor for whom there is no room in the table.
    pub(super) fn refused_for_limit(&self) {
        self.counters.udp_dropped_flow_limit.increment();
        self.refused(Refusal::FlowLimit);
    }

    fn say_full(&self, what: &str) {
        if self.full_log.pass(Instant::now()) {
            tracing::warn!(
                addr = %self.socket.local_addr(),
                flows = self.table.borrow().len(),
                "{what}: there are as many as this core keeps"
            );
        }
    }

    pub(super) fn open_local(
        self: &Rc<Self>,
        beginning: Beginning<'_>,
        permit: Option<Permit>,
        lane: Rc<LaneFlows>,
        client: u64,
        claim: Claim,
        now: Instant,
    ) {
        let Beginning {
            visitor,
            to_ip,
            payload,
            tried,
        } = beginning;
        if !lane.is_open() {
            // The lane has ended a moment ago.
            self.counters.udp_dropped_no_client.increment();
            self.refused(Refusal::NoClient);
            return;
        }
        let first = payload.and_then(|payload| Kept::new(payload, &self.kept_bytes));
        let flow = Rc::new(LocalFlow {
            lane,
            client,
            to_ip: Cell::new(to_ip),
            packet_id: Cell::new(0),
            first: RefCell::new(first),
            tried,
            service: Arc::clone(&self.service),
            bound: self.socket.local_addr(),
            claim: RefCell::new(claim),
            began: now,
            bandwidth: self.service.gate.bandwidth(now),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            permit: RefCell::new(permit),
        });
        let (token, id) = (flow.lane.token(), flow.lane.next_id());
        let place = Place::Local(Rc::clone(&flow));
        let opened = self
            .table
            .borrow_mut()
            .open(visitor, token, id, place, now)
            .is_ok();
        if !opened {
            self.refused_for_limit();
            return;
        }
        flow.lane.opened(id, self);
        flow.lane.note_silence(now);
        self.lanes
            .borrow_mut()
            .entry(token)
            .or_insert_with(|| Rc::clone(&flow.lane));
        self.counters.udp_flows_opened.increment();
        self.service_counters().udp_flows.increment();
        let shown = canonical(visitor);
        tracing::debug!(lane = flow.lane.key(), flow = id, visitor = %shown, "UDP flow opened");
        if let Some(payload) = payload {
            self.send(&flow, visitor, id, false, payload, now);
        }
    }

    fn open_remote(
        self: &Rc<Self>,
        beginning: &Beginning<'_>,
        permit: Option<Permit>,
        core: usize,
        ticket: FlowTicket,
        now: Instant,
    ) {
        // The ticket travels with the first datagram.
        let Some(payload) = beginning.payload else {
            return;
        };
        let state = Arc::new(LinkState::default());
        let flow = Rc::new(RemoteFlow {
            core,
            client: ticket.client().number,
            state: Arc::clone(&state),
            tried: beginning.tried,
            permit: RefCell::new(permit),
        });
        let link = Link {
            state,
            ticket,
            tried: beginning.tried,
        };
        let place = Place::Remote(Rc::clone(&flow));
        let (visitor, id) = (beginning.visitor, self.next_remote.get());
        self.next_remote.set(id + 1);
        let opened = self
            .table
            .borrow_mut()
            .open(visitor, LaneToken::ELSEWHERE, id, place, now)
            .is_ok();
        if opened {
            self.hand_over(&flow, visitor, beginning.to_ip, payload, Some(link));
        } else {
            self.refused_for_limit();
        }
    }

    /// Begins a flow anew at another client, because its client has ended it unanswered and so
    /// could not serve it. If the visitor's datagrams come to another core, that core is told to do
    /// so with the next one.
    pub(super) fn fail_over(self: &Rc<Self>, flow: Flow<Place>, now: Instant) {
        let Flow { visitor, data, .. } = flow;
        let Place::Local(local) = data else { return };
        let mut tried = local.tried;
        tried.add(local.client);
        let exhausted = || {
            self.counters.udp_failovers_exhausted.increment();
            self.refused(Refusal::NotServed);
        };
        if let Some(link) = local.link() {
            if self.is_there_another(&tried) {
                link.is_to_be_tried_elsewhere_now();
            } else {
                exhausted();
            }
            return;
        }
        // The search gives up if the visitor has been to as many clients as it may.
        let Some(way) = self.route(tried) else {
            exhausted();
            return;
        };
        let first = local.first.take();
        let to_ip = local.to_ip.get();
        let permit = local.permit.take();
        drop(local);
        self.counters.udp_flows_failed_over.increment();
        let beginning = Beginning {
            visitor,
            to_ip,
            payload: first.as_ref().map(|kept| &*kept.payload),
            tried,
        };
        self.begin(beginning, permit, way, now);
    }

    /// Ends a flow whose lane has been silent for a while and whose visitor another core receives.
    /// That core learns of the end by the flow's link, and routes the visitor's next datagram anew.
    /// Returns false if no client answers.
    pub(super) fn leave_to_other_core(
        &self,
        local: &Rc<LocalFlow>,
        visitor: SocketAddr,
        now: Instant,
    ) -> bool {
        if !self.is_there_another(&Tried::who_must_answer()) {
            local.lane.nowhere_to_go(now);
            return false;
        }
        let token = local.lane.token();
        let flow = self.table.borrow_mut().close_visitor(visitor, token);
        if let Some(flow) = flow {
            self.counters.udp_flows_moved.increment();
            local
                .lane
                .closed(&flow, FlowError::NoError, End::Moved, Some(now));
        }
        // The datagram that revealed the silence is dropped.
        self.counters.udp_dropped_no_client.increment();
        true
    }

    /// Moves a flow whose lane has been silent for a while to a lane that is not, together with a
    /// datagram that has just come. Returns false if there is no such lane.
    pub(super) fn move_on(
        self: &Rc<Self>,
        local: &Rc<LocalFlow>,
        visitor: SocketAddr,
        to_ip: Option<IpAddr>,
        payload: &[u8],
        now: Instant,
    ) -> bool {
        let Some(way) = self.route(Tried::who_must_answer()) else {
            local.lane.nowhere_to_go(now);
            return false;
        };
        let token = local.lane.token();
        let flow = self.table.borrow_mut().close_visitor(visitor, token);
        if let Some(flow) = flow {
            self.counters.udp_flows_moved.increment();
            // The client hears of this when it can be reached again. Until then it keeps a socket
            // for nothing.
            local
                .lane
                .closed(&flow, FlowError::NoError, End::Moved, Some(now));
        }
        let beginning = Beginning {
            visitor,
            to_ip,
            payload: Some(payload),
            tried: Tried::default(),
        };
        self.begin(beginning, local.permit.take(), way, now);
        true
    }
}

impl LaneFlows {
    /// The client says that a flow is over, or that it does not know the flow. Returns what that
    /// shows if the client could not serve the flow's visitor.
    pub(crate) fn flow_closed(&self, flow_id: u64, reason: FlowError) -> Option<Unserved> {
        let traffic = self.traffic_of(flow_id)?;
        if reason == FlowError::UnknownFlow {
            // This side knows the flow, so the client has lost it; the next datagram introduces it
            // again.
            let mut table = traffic.table.borrow_mut();
            table.introduce_again(self.token(), flow_id);
            return None;
        }
        let (unserved, closed) = {
            let mut table = traffic.table.borrow_mut();
            let unanswered = table.is_unanswered(self.token(), flow_id);
            let unserved = unanswered && could_not_serve(reason);
            (unserved, table.close(self.token(), flow_id))
        };
        let flow = closed?;
        self.closed(&flow, reason, End::of(reason), None);
        if unserved {
            traffic.fail_over(flow, Instant::now());
        }
        unserved.then(|| Unserved {
            service: traffic.service.number,
            is_down: shows_that_it_is_down(reason) && traffic.is_the_only_port(),
        })
    }
}
