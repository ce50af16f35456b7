//! The client's side: the UDP flows of one lane, each with a socket of its own towards the service.
//!
//! A socket of its own gives each flow the service's view of a visitor of its own, and because it
//! is connected only the service's datagrams are taken and ICMP errors arrive. A service that
//! cannot be reached does not end a flow: UDP services come and go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::FlowError;
use qmux_proto::control::{FlowClosed, Message};
use qmux_proto::datagram::Header;
use rustc_hash::FxBuildHasher;

use super::batch::Batcher;
use super::encode::{self, FlowLane};
use super::expiry::Expiry;
use super::incoming::Incoming;
use super::notices::Notices;
use super::{
    EXPIRED_PER_TURN, RECEIVE_CALLS_PER_TURN, TurnClock, UdpSettings, WAIT_ERROR_PAUSE,
    with_receive_batch,
};
use crate::metrics::CoreCounters;
use crate::quic::event::{Event, yield_now};
use crate::sys::bind::raise_udp_buffers;
use crate::sys::udp::{Purpose, ReceiveBatch, UdpSocket};

/// Flows of one lane. Each has a socket, and with one port per flow towards one service there are
/// at most 28,232 of them by Linux's default port range.
pub(crate) const LANE_FLOWS_MAX: usize = 16_384;

/// Where the service is now; `None` if its name cannot be resolved.
pub(crate) type ServiceAddr = Rc<dyn Fn() -> Option<SocketAddr>>;

/// The flows of one lane.
pub(crate) struct ClientFlows {
    lane: Rc<dyn FlowLane>,
    service: ServiceAddr,
    settings: UdpSettings,
    flows_max: usize,
    counters: Arc<CoreCounters>,
    // The server counts its flow ids up from 0, and is authenticated: a fast hash is safe.
    flows: RefCell<HashMap<u64, Rc<Flow>, FxBuildHasher>>,
    expiry: RefCell<Expiry<u64>>,
    incoming: RefCell<Incoming>,
    notices: RefCell<Notices>,
    batcher: RefCell<Batcher>,
    /// The flow whose datagrams are in the batcher.
    batching: RefCell<Option<Rc<Flow>>>,
    clock: TurnClock,
    ended: Cell<bool>,
    sweep_over: Event,
    /// The operator has been told that the service cannot be reached.
    warned: Cell<bool>,
}

/// One flow.
struct Flow {
    id: u64,
    service: SocketAddr,
    socket: UdpSocket,
    packet_id: Cell<u64>,
    last_activity: Cell<Instant>,
    closed: Cell<bool>,
    receive_over: Event,
    /// It has been logged that the service cannot be reached.
    complained: Cell<bool>,
}

impl ClientFlows {
    /// Makes room for the flows of `lane`.
    pub(crate) fn new(
        lane: Rc<impl FlowLane + 'static>,
        service: ServiceAddr,
        settings: UdpSettings,
        counters: Arc<CoreCounters>,
    ) -> Rc<ClientFlows> {
        ClientFlows::with_limit(lane, service, settings, counters, LANE_FLOWS_MAX)
    }

    /// The same with another limit of flows, for tests.
    pub(super) fn with_limit(
        lane: Rc<dyn FlowLane>,
        service: ServiceAddr,
        settings: UdpSettings,
        counters: Arc<CoreCounters>,
        flows_max: usize,
    ) -> Rc<ClientFlows> {
        let flows = Rc::new(ClientFlows {
            lane,
            service,
            settings,
            flows_max,
            flows: RefCell::default(),
            expiry: RefCell::new(Expiry::new(settings.session_timeout)),
            incoming: RefCell::new(Incoming::new()),
            notices: RefCell::default(),
            batcher: RefCell::new(Batcher::new(Arc::clone(&counters))),
            batching: RefCell::default(),
            counters,
            clock: TurnClock::default(),
            ended: Cell::new(false),
            sweep_over: Event::default(),
            warned: Cell::new(false),
        });
        monoio::spawn(Rc::clone(&flows).sweep_task());
        flows
    }

    /// The flows that are open.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.borrow().len()
    }

    /// A datagram came from the server: it goes to the service, in a batch with others of its flow.
    pub(crate) fn datagram(self: &Rc<Self>, data: &[u8]) {
        if self.ended.get() {
            return;
        }
        let Ok((header, payload)) = Incoming::decode(data) else {
            self.counters.udp_dropped_malformed.increment();
            return;
        };
        let now = self.clock.now();
        let known = self.flows.borrow().get(&header.flow_id()).cloned();
        let Some(flow) = known.or_else(|| self.introduced(&header, now)) else {
            return;
        };
        flow.last_activity.set(now);
        self.batch_for(&flow);
        let mut incoming = self.incoming.borrow_mut();
        if let Some(packet) = incoming.packet(&header, payload, now) {
            self.batcher
                .borrow_mut()
                .push(&flow.socket, flow.service, None, packet);
        }
    }

    /// The datagrams of this turn have been delivered: what was batched is sent.
    pub(crate) fn datagrams_done(&self) {
        self.flush();
        self.incoming.borrow_mut().report(&self.counters);
        self.notices.borrow_mut().turn_over();
        self.clock.turn_over();
    }

    /// The server says that a flow is over, or that it does not know it.
    pub(crate) fn flow_closed(&self, flow_id: u64, reason: FlowError) {
        let flow = self.flows.borrow_mut().remove(&flow_id);
        if let Some(flow) = flow {
            self.close(&flow, reason);
        }
    }

    /// The lane has ended, and with it its flows.
    pub(crate) fn lane_ended(&self) {
        self.end();
    }

    fn end(&self) {
        if self.ended.replace(true) {
            return;
        }
        self.flush();
        self.sweep_over.set();
        let flows = std::mem::take(&mut *self.flows.borrow_mut());
        for flow in flows.into_values() {
            self.close(&flow, FlowError::Internal);
        }
    }

    // ---- flows ---------------------------------------------------------------------------------------------------

    /// Opens the flow that `header` introduces. Otherwise the datagram is dropped, and the server
    /// told why.
    fn introduced(self: &Rc<Self>, header: &Header<'_>, now: Instant) -> Option<Rc<Flow>> {
        let id = header.flow_id();
        let Some((visitor, service)) = header.introduction() else {
            self.counters.udp_dropped_unknown_flow.increment();
            self.tell_closed(id, FlowError::UnknownFlow, now);
            return None;
        };
        if self.flows.borrow().len() >= self.flows_max {
            self.counters.udp_dropped_flow_limit.increment();
            self.tell_closed(id, FlowError::LimitReached, now);
            return None;
        }
        // A name would be that of a service that we have not offered.
        let service = service.is_empty().then(|| (self.service)()).flatten();
        let Some(service) = service else {
            self.counters.udp_dropped_socket_error.increment();
            self.tell_closed(id, FlowError::DialFailed, now);
            return None;
        };
        let socket = match connect(service) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(lane = self.lane.key(), flow = id, %service, %error, "no socket for a UDP flow");
                self.counters.udp_dropped_socket_error.increment();
                self.tell_closed(id, FlowError::DialFailed, now);
                return None;
            }
        };
        tracing::debug!(lane = self.lane.key(), flow = id, %visitor, %service, "UDP flow opened");
        self.counters.udp_flows_opened.increment();
        Some(self.open(id, service, socket, now))
    }

    fn open(
        self: &Rc<Self>,
        id: u64,
        service: SocketAddr,
        socket: UdpSocket,
        now: Instant,
    ) -> Rc<Flow> {
        let flow = Rc::new(Flow {
            id,
            service,
            socket,
            packet_id: Cell::new(0),
            last_activity: Cell::new(now),
            closed: Cell::new(false),
            receive_over: Event::default(),
            complained: Cell::new(false),
        });
        {
            let mut flows = self.flows.borrow_mut();
            flows.insert(id, Rc::clone(&flow));
            self.expiry
                .borrow_mut()
                .watch(id, now, flows.len(), |id| flows.contains_key(&id));
        }
        monoio::spawn(Rc::clone(self).receive_task(Rc::clone(&flow)));
        flow
    }

    /// Ends a flow that was taken out of the index.
    fn close(&self, flow: &Flow, reason: FlowError) {
        flow.closed.set(true);
        flow.receive_over.set();
        self.incoming.borrow_mut().forget(flow.id);
        self.counters.udp_flows_ended.increment();
        tracing::debug!(lane = self.lane.key(), flow = flow.id, %reason, "UDP flow ended");
    }

    /// Tells the server that a flow is over, within the bounds of [`Notices`].
    fn tell_closed(&self, flow_id: u64, reason: FlowError, now: Instant) {
        if self.notices.borrow_mut().may_tell(flow_id, now) {
            self.lane
                .send_control(&Message::FlowClosed(FlowClosed { flow_id, reason }));
        }
    }

    // ---- to the service ------------------------------------------------------------------------------------------

    /// Makes `flow` the one that the batcher collects for.
    fn batch_for(&self, flow: &Rc<Flow>) {
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

    fn flush(&self) {
        let Some(flow) = self.batching.borrow_mut().take() else {
            return;
        };
        let error = {
            let mut batcher = self.batcher.borrow_mut();
            batcher.flush(&flow.socket);
            batcher.take_error()
        };
        if let Some(error) = error {
            self.complain(&flow, &error);
        }
    }

    /// Says that the service cannot be reached: once per flow in detail, once per lane for the operator.
    fn complain(&self, flow: &Flow, error: &io::Error) {
        if flow.complained.replace(true) {
            return;
        }
        let (lane, service) = (self.lane.key(), flow.service);
        if self.warned.replace(true) {
            tracing::debug!(lane, flow = flow.id, %service, %error, "UDP service");
        } else {
            tracing::warn!(lane, %service, %error, "the UDP service cannot be reached; its flows stay open");
        }
    }

    // ---- from the service ----------------------------------------------------------------------------------------

    async fn receive_task(self: Rc<Self>, flow: Rc<Flow>) {
        loop {
            let ready = flow.receive_over.cuts_short(flow.socket.readable()).await;
            match ready {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.counters.internal_errors.increment();
                    tracing::error!(%error, "waiting for a UDP service's socket failed");
                    monoio::time::sleep(WAIT_ERROR_PAUSE).await;
                }
            }
            while !flow.closed.get() && self.receive_turn(&flow) {
                yield_now().await;
            }
        }
    }

    /// Some receive calls. False once the socket is drained.
    fn receive_turn(&self, flow: &Flow) -> bool {
        with_receive_batch(|batch| {
            (0..RECEIVE_CALLS_PER_TURN).all(|_| self.receive_once(flow, batch))
        })
    }

    fn receive_once(&self, flow: &Flow, batch: &mut ReceiveBatch) -> bool {
        match flow.socket.try_receive(batch) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                // A datagram of ours bounced: the port is closed or the host is away (ICMP; udp(7)).
                self.counters.udp_dropped_socket_error.increment();
                self.complain(flow, &error);
                return false;
            }
        }
        flow.last_activity.set(Instant::now());
        batch.for_each(|received| {
            encode::send(
                &*self.lane,
                flow.id,
                None,
                received.data,
                &flow.packet_id,
                self.settings.fragmentation,
                &self.counters,
            );
        });
        batch.is_full()
    }

    // ---- expiry --------------------------------------------------------------------------------------------------

    async fn sweep_task(self: Rc<Self>) {
        loop {
            let pause = monoio::time::sleep(self.settings.sweep_interval());
            if self.sweep_over.cuts_short(pause).await.is_none() {
                return;
            }
            while self.expire(Instant::now()) {
                yield_now().await;
            }
            self.incoming
                .borrow_mut()
                .sweep(Instant::now(), &self.counters);
            self.notices.borrow_mut().turn_over();
        }
    }

    /// Ends some of the flows that are due. True if there may be more.
    fn expire(&self, now: Instant) -> bool {
        for _ in 0..EXPIRED_PER_TURN {
            let expired = {
                let mut flows = self.flows.borrow_mut();
                self.expiry
                    .borrow_mut()
                    .next_due(now, |id| {
                        flows.get(&id).map(|flow| flow.last_activity.get())
                    })
                    .and_then(|id| flows.remove(&id))
            };
            let Some(flow) = expired else { return false };
            self.counters.udp_flows_expired.increment();
            self.close(&flow, FlowError::Expired);
            self.tell_closed(flow.id, FlowError::Expired, now);
        }
        true
    }
}

/// A socket on a free port that talks to `service` alone.
fn connect(service: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if service.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = StdUdpSocket::bind(any)?;
    socket.connect(service)?;
    // As large as the kernel allows; what it grants was told for the sockets of the core. A service may answer in
    // bursts, and the default holds about 90 datagrams of 1,000 bytes.
    let _granted = raise_udp_buffers(&socket);
    UdpSocket::adopt(socket, Purpose::Traffic)
}

impl fmt::Debug for ClientFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientFlows(lane {})", self.lane.key())
    }
}
