//! The UDP flows of one lane on the client, each with a socket of its own towards the service.
//!
//! By a socket of its own the service sees each visitor at another address. Because the socket is
//! connected, only the service's datagrams are taken, and ICMP errors arrive. If nobody listens at
//! any of the service's addresses, a flow that was never answered ends, and the server is told so
//! that it can try another client. A flow that was answered goes on, because UDP services come and
//! go.

mod dials;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::FlowError;
use qmux_proto::control::{FlowClosed, Message};
use rustc_hash::FxBuildHasher;

use super::super::services::answers::LaneAnswers;
use super::super::services::{Service, Services};
use super::addresses::Addresses;
pub(crate) use super::core_flows::CoreFlows;
use super::core_flows::Owned;
use super::flow::{Flow, ServiceSocket};
use super::wanted::{Introduction, Lacking, Wanted};
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, yield_now};
use crate::flow::udp::batch::{Batcher, UDP_PAYLOAD_BYTES_MAX};
use crate::flow::udp::encode::{self, FlowLane};
use crate::flow::udp::incoming::Incoming;
use crate::flow::udp::notices::Notices;
use crate::flow::udp::receiving::{Receiver, receive_all};
use crate::flow::udp::{EXPIRED_PER_TURN, TurnClock};
use crate::sys::udp::{ReceiveBatch, UdpSocket};

/// The largest first datagram of a flow that is kept while another address may have to be tried.
const KEPT_BYTES_MAX: usize = 1_500;

/// The flows of one lane.
pub(crate) struct ClientFlows {
    lane: Rc<dyn FlowLane>,
    core: Rc<CoreFlows>,
    /// The services with which the lane was registered, and the addresses of each.
    services: Arc<Services>,
    addresses: Vec<Rc<Addresses>>,
    /// The server's answers to these services.
    answers: Rc<LaneAnswers>,
    // The server counts its flow ids up from 0, and is authenticated, so a fast hash is safe.
    flows: RefCell<HashMap<u64, Rc<Flow>, FxBuildHasher>>,
    incoming: RefCell<Incoming>,
    notices: RefCell<Notices>,
    batcher: RefCell<Batcher>,
    /// The flow whose datagrams are in the batcher.
    batching: RefCell<Option<Rc<Flow>>>,
    clock: TurnClock,
    /// Number of flows that were opened.
    opened: Cell<u64>,
    ended: Cell<bool>,
    sweep_over: Event,
    /// Whether the operator has been told that the service cannot be reached.
    warned: Cell<bool>,
}

impl ClientFlows {
    /// An empty table for the flows of `lane`.
    pub(crate) fn new(
        lane: Rc<impl FlowLane + 'static>,
        core: &Rc<CoreFlows>,
        services: &Arc<Services>,
        answers: &Rc<LaneAnswers>,
    ) -> Rc<ClientFlows> {
        let flows = Rc::new(ClientFlows {
            lane,
            services: Arc::clone(services),
            addresses: core.addresses(services),
            answers: Rc::clone(answers),
            core: Rc::clone(core),
            flows: RefCell::default(),
            incoming: RefCell::new(Incoming::new()),
            notices: RefCell::default(),
            batcher: RefCell::new(Batcher::new(Arc::clone(&core.counters))),
            batching: RefCell::default(),
            clock: TurnClock::default(),
            opened: Cell::new(0),
            ended: Cell::new(false),
            sweep_over: Event::default(),
            warned: Cell::new(false),
        });
        crate::core::task::spawn(Rc::clone(&flows).sweep_task());
        flows
    }

    fn counters(&self) -> &CoreCounters {
        &self.core.counters
    }

    /// Number of flows that are open.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.borrow().len()
    }

    fn addresses(&self, service: &Service) -> &Addresses {
        &self.addresses[service.index]
    }

    /// Number of flows that were opened on this lane.
    pub(crate) fn flows_opened(&self) -> u64 {
        self.opened.get()
    }

    /// Takes a datagram from the server, and batches it with others of its flow for the service.
    pub(crate) fn datagram(self: &Rc<Self>, data: &[u8]) {
        self.take(data, false);
    }

    /// Takes a datagram that waited until its flow could be opened.
    pub(super) fn waited(self: &Rc<Self>, data: &[u8]) {
        self.take(data, true);
        self.datagrams_done();
    }

    /// Takes a datagram. `has_waited` says that a new flow is opened now, not later.
    fn take(self: &Rc<Self>, data: &[u8], has_waited: bool) {
        if self.ended.get() {
            self.counters().udp_dropped_unknown_flow.increment();
            return;
        }
        let Ok((header, payload)) = Incoming::decode(data) else {
            self.counters().udp_dropped_malformed.increment();
            return;
        };
        let now = self.clock.now();
        let id = header.flow_id();
        let known = self.flows.borrow().get(&id).cloned();
        let flow = match (known, header.introduction()) {
            (Some(flow), _) => Some(self.where_the_service_is(flow, now)),
            (None, None) => {
                self.counters().udp_dropped_unknown_flow.increment();
                self.tell_closed(id, FlowError::UnknownFlow, now);
                None
            }
            (None, Some(_)) if !has_waited && !self.core.may_open(now) => {
                self.core.wait(self, data);
                None
            }
            (None, Some((visitor, service))) => {
                let whole = header.fragment().is_none().then_some(payload);
                let introduction = Introduction {
                    visitor,
                    traffic: header.traffic(),
                    service,
                };
                self.introduced(id, &introduction, whole, now)
            }
        };
        let Some(flow) = flow else { return };
        self.core.lifetimes.borrow_mut().asked(flow.life.get(), now);
        self.batch_for(&flow);
        let mut incoming = self.incoming.borrow_mut();
        if let Some(packet) = incoming.packet(&header, payload, now) {
            self.push(&flow, packet);
        }
    }

    /// Sends what was batched, when all datagrams of this turn have been delivered.
    pub(crate) fn datagrams_done(self: &Rc<Self>) {
        self.flush();
        self.incoming.borrow_mut().report(self.counters());
        self.notices.borrow_mut().turn_over();
        self.clock.turn_over();
    }

    /// The server says that a flow is over, or that it does not know the flow.
    pub(crate) fn flow_closed(&self, flow_id: u64, reason: FlowError) {
        let flow = self.flows.borrow().get(&flow_id).cloned();
        if let Some(flow) = flow {
            self.end_flow(&flow, reason);
        }
    }

    /// Ends all flows of a lane that has ended.
    pub(crate) fn lane_ended(self: &Rc<Self>) {
        if self.ended.replace(true) {
            return;
        }
        self.flush();
        self.sweep_over.set();
        let flows: Vec<_> = self.flows.borrow().values().cloned().collect();
        for flow in flows {
            self.end_flow(&flow, FlowError::Internal);
        }
    }

    // ---- flows ----

    /// Opens a flow that the datagram introduces. If it introduces none, it is dropped, and the
    /// server told why.
    fn introduced(
        self: &Rc<Self>,
        id: u64,
        introduction: &Introduction<'_>,
        whole: Option<&[u8]>,
        now: Instant,
    ) -> Option<Rc<Flow>> {
        let wanted = self.wanted(id, introduction, now)?;
        let addresses = self.addresses(&wanted.service);
        let version = addresses.version();
        if addresses.len() == 0 {
            self.counters().udp_dropped_socket_error.increment();
            wanted.refused(now);
            if self.core.dial_log.pass(now) {
                tracing::warn!(
                    service = %wanted.service,
                    "the service's name does not resolve; its UDP flows are refused"
                );
            }
            self.tell_closed(id, FlowError::DialFailed, now);
            return None;
        }
        if !self.core.make_room(wanted.visitor, now) {
            self.counters().udp_dropped_flow_limit.increment();
            self.tell_closed(id, FlowError::LimitReached, now);
            return None;
        }
        let mut refused_at = Vec::new();
        let Some(service) = self.dial(&wanted, &mut refused_at) else {
            self.counters().udp_dropped_socket_error.increment();
            // Whether anybody listens is not known if it was a want of this host's own.
            let all_refused = refused_at.len() >= addresses.len();
            let reason = if all_refused {
                FlowError::DialFailed
            } else {
                FlowError::LimitReached
            };
            self.tell_closed(id, reason, now);
            return None;
        };
        let visitor = wanted.visitor;
        let (lane, to) = (self.lane.key(), service.to);
        tracing::debug!(lane, flow = id, %visitor, service = %to, "UDP flow opened");
        self.counters().udp_flows_opened.increment();
        self.opened.set(self.opened.get() + 1);
        wanted.service.counts.udp_flows.increment();
        let flow = Rc::new(Flow {
            refused_at,
            ..Flow::new(id, wanted, service, version)
        });
        if !addresses.is_sure() {
            let kept = whole.filter(|payload| payload.len() <= KEPT_BYTES_MAX);
            *flow.first.borrow_mut() = kept.map(Into::into);
        }
        let owned = Owned {
            lane: Rc::downgrade(self),
            flow: Rc::clone(&flow),
        };
        let life = self
            .core
            .lifetimes
            .borrow_mut()
            .open(visitor.ip(), owned, now);
        flow.life.set(life);
        self.begin(&flow);
        Some(flow)
    }

    /// The service and port for an introduced flow, if this client has them. Otherwise the server
    /// is told, because another client may have them.
    fn wanted(&self, id: u64, introduction: &Introduction<'_>, now: Instant) -> Option<Wanted> {
        let lacking = match Wanted::by(introduction, &self.services, &self.answers) {
            Ok(wanted) => return Some(wanted),
            Err(lacking) => lacking,
        };
        let visitor = introduction.visitor;
        match lacking {
            Lacking::Answers => {
                // The visitor's next datagram introduces the flow again.
                self.counters().udp_dropped_before_answers.increment();
                return None;
            }
            Lacking::Service => {
                self.counters().udp_flows_unknown_service.increment();
                if self.core.dial_log.pass(now) {
                    tracing::warn!(
                        service = introduction.service,
                        %visitor,
                        "the server sends a UDP flow for a service that is not offered; it is \
                         refused"
                    );
                }
            }
            Lacking::Port(service) => {
                self.counters().udp_flows_without_port.increment();
                service.counts.flows_without_port.increment();
                if self.core.dial_log.pass(now) {
                    tracing::warn!(
                        %service,
                        %visitor,
                        traffic = introduction.traffic.map(tracing::field::display),
                        "no port of this service belongs to the visitor's traffic port; UDP flow \
                         refused. Give the service as many ports as at the server, or \"same\""
                    );
                }
            }
        }
        self.tell_closed(id, FlowError::DialFailed, now);
        None
    }

    fn begin(self: &Rc<Self>, flow: &Rc<Flow>) {
        self.flows.borrow_mut().insert(flow.id, Rc::clone(flow));
        let service = FromService {
            flows: Rc::clone(self),
            flow: Rc::clone(flow),
        };
        crate::core::task::spawn(async move { receive_all(&service).await });
    }

    /// Ends a flow that has expired.
    pub(super) fn expired(&self, flow: &Flow, now: Instant) {
        self.close(flow, FlowError::Expired);
        self.tell_closed(flow.id, FlowError::Expired, now);
    }

    /// Ends a flow to make room. The server handles that like the expiry of the flow, and so begins
    /// it nowhere else.
    pub(super) fn evicted(&self, flow: &Flow, now: Instant) {
        self.expired(flow, now);
    }

    fn end_flow(&self, flow: &Flow, reason: FlowError) {
        let owned = self.core.lifetimes.borrow_mut().remove(flow.life.get());
        drop(owned);
        self.close(flow, reason);
    }

    /// Ends a flow that is not among the core's any more.
    fn close(&self, flow: &Flow, reason: FlowError) {
        self.flows.borrow_mut().remove(&flow.id);
        flow.close();
        self.incoming.borrow_mut().forget(flow.id);
        self.counters().udp_flows_ended.increment();
        tracing::debug!(lane = self.lane.key(), flow = flow.id, %reason, "UDP flow ended");
    }

    /// Tells the server that a flow is over, within the bounds of [`Notices`].
    fn tell_closed(&self, flow_id: u64, reason: FlowError, now: Instant) -> bool {
        let may = self.notices.borrow_mut().may_tell(flow_id, now);
        if may {
            self.lane
                .send_control(&Message::FlowClosed(FlowClosed { flow_id, reason }));
        }
        may
    }

    // ---- to the service ----

    /// Makes `flow` the one that the batcher collects for.
    fn batch_for(self: &Rc<Self>, flow: &Rc<Flow>) {
        let same = self
            .batching
            .borrow()
            .as_ref()
            .is_some_and(|batching| Rc::ptr_eq(batching, flow));
        if !same {
            self.flush();
            *self.batching.borrow_mut() = Some(Rc::clone(flow));
        }
    }

    /// Adds a datagram of `flow`, which is collected for, to the batcher.
    fn push(&self, flow: &Flow, packet: &[u8]) {
        let prefix = flow.prefix();
        if prefix.len() + packet.len() > UDP_PAYLOAD_BYTES_MAX {
            self.counters().udp_dropped_too_large.increment();
            return;
        }
        let ServiceSocket { socket, to, .. } = &flow.service;
        let mut batcher = self.batcher.borrow_mut();
        batcher.push_after(prefix, socket, *to, None, packet);
        flow.introduced.set(true);
    }

    fn flush(self: &Rc<Self>) {
        let Some(flow) = self.batching.borrow_mut().take() else {
            return;
        };
        let error = {
            let mut batcher = self.batcher.borrow_mut();
            batcher.flush(&flow.service.socket);
            batcher.take_error()
        };
        if let Some(error) = error {
            self.bounced(&flow, &error);
        }
    }

    // ---- expiry ----

    async fn sweep_task(self: Rc<Self>) {
        loop {
            let pause = crate::core::time::sleep(self.core.settings.sweep_interval());
            if self.sweep_over.cuts_short(pause).await.is_none() {
                return;
            }
            while self.expire(Instant::now()) {
                yield_now().await;
            }
            self.core.look_for_changes();
            self.lane.count_datagrams();
            self.incoming
                .borrow_mut()
                .sweep(Instant::now(), self.counters());
            self.notices.borrow_mut().turn_over();
        }
    }

    /// Ends some of the core's flows that have expired. Returns true if there may be more.
    fn expire(&self, now: Instant) -> bool {
        (0..EXPIRED_PER_TURN).all(|_| self.core.expire_one(now))
    }
}

impl fmt::Debug for ClientFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientFlows(lane {})", self.lane.key())
    }
}

/// What a service sends to one flow.
struct FromService {
    flows: Rc<ClientFlows>,
    flow: Rc<Flow>,
}

impl Receiver for FromService {
    fn socket(&self) -> &UdpSocket {
        &self.flow.service.socket
    }

    fn counters(&self) -> &CoreCounters {
        self.flows.counters()
    }

    fn over(&self) -> &Event {
        &self.flow.receive_over
    }

    fn receives(&self) -> bool {
        !self.flow.closed.get()
    }

    fn handle(&self, batch: &mut ReceiveBatch) -> u32 {
        let FromService { flows, flow } = self;
        let life = flow.life.get();
        let now = Instant::now();
        if flows.core.lifetimes.borrow_mut().answered(life, now) {
            let addresses = flows.addresses(&flow.wanted.service);
            addresses.answered(flow.service.host);
            flow.wanted.answered();
            flow.first.take();
        }
        let mut datagrams = 0;
        batch.for_each(|received| {
            datagrams += 1;
            encode::send(
                &*flows.lane,
                flow.id,
                None,
                received.data,
                &flow.packet_id,
                flows.core.settings.fragmentation,
                &flows.core.counters,
            );
        });
        datagrams
    }

    /// A datagram of ours bounced: the port is closed or the host is away.
    fn failed(&self, error: &io::Error) {
        self.counters().udp_dropped_socket_error.increment();
        self.flows.bounced(&self.flow, error);
    }
}
