//! One listener on one core: its sockets, its lanes, and the way of a visitor to a lane.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use qmux_config::{Listener, Server};
use qmux_proto::control::{GoAway, GoAwayReason, Message, Register};
use qmux_proto::{FlowError, LaneError, OpenHeader, Protocol};
use rustc_hash::FxBuildHasher;

use super::lane::{ServerLane, ServerLaneEvents};
use super::registry::{ClientPool, FlowTicket, LaneMembership};
use super::{ListenerSockets, ServerShared};
use crate::buffer::StreamBuf;
use crate::core::mailbox::Mail;
use crate::core::{CoreContext, FlowCount};
use crate::flow::tcp::{self, TcpFlow, TcpFlowEnd};
use crate::flow::udp::UdpSettings;
use crate::flow::udp::server::{ForwardedUdp, RouteUdp, TrafficSocket, UdpRoute};
use crate::metrics::CoreCounters;
use crate::quic::endpoint::{Endpoint, EndpointOwner, EndpointSetup};
use crate::quic::event::{Event, yield_now};
use crate::quic::lane::{Lane, StreamRoom};
use crate::quic::reset::ResetKey;
use crate::quic::{settings, tls};
use crate::sys::tcp::{Acceptor, TcpSocket, refuse};
use crate::sys::udp::{Purpose, UdpSocket};

/// Visitors accepted before the other tasks of the core get a turn.
const ACCEPTS_PER_TURN: usize = 32;

/// Pause after accept(2) failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One listener on one core.
pub(crate) struct ListenerCore {
    index: usize,
    context: Rc<CoreContext>,
    shared: Arc<ServerShared>,
    pool: Arc<ClientPool>,
    traffic_addr: SocketAddr,
    endpoint: Rc<Endpoint>,
    traffic: RefCell<Option<Rc<TrafficSocket>>>,
    /// Lanes that take new flows, by their client's number.
    lanes: RefCell<HashMap<u64, Vec<Rc<ServerLane>>, FxBuildHasher>>,
    /// All registered lanes, by their key.
    registered: RefCell<HashMap<u64, Rc<ServerLane>, FxBuildHasher>>,
    next_flow: Cell<u64>,
    stop_accepting: Event,
}

impl ListenerCore {
    pub(super) fn start(
        index: usize,
        context: &Rc<CoreContext>,
        shared: &Arc<ServerShared>,
        sockets: ListenerSockets,
    ) -> Result<Rc<ListenerCore>, String> {
        let server = shared.server().ok_or("no [server] section")?;
        let listener: &Listener = server.listeners.get(index).ok_or("no such listener")?;
        let text = |error: io::Error| error.to_string();
        let tls = tls::server(server).map_err(|error| error.to_string())?;
        let mut config =
            settings::transport(&shared.config.quic, tls).map_err(|error| error.to_string())?;
        config
            .set_ticket_key(&shared.ticket_key)
            .map_err(|error| error.to_string())?;
        let endpoint = Endpoint::start(
            EndpointSetup {
                socket: UdpSocket::adopt(sockets.quic, Purpose::Quic).map_err(text)?,
                core: context.index,
                group: context.cluster.cores(),
                config,
                accepts: true,
                handshake_timeout: shared.config.quic.handshake_idle_timeout,
                reset_key: Some(ResetKey::from_key_file(&server.tls.server_key_file)?),
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
            endpoint: Rc::clone(&endpoint),
            traffic: RefCell::new(None),
            lanes: RefCell::default(),
            registered: RefCell::default(),
            next_flow: Cell::new(1),
            stop_accepting: Event::default(),
        });
        endpoint.set_owner(Rc::new(Owner(Rc::clone(&this))));
        if let Some(socket) = sockets.udp {
            let settings = UdpSettings {
                session_timeout: shared.config.udp.session_timeout,
                fragmentation: shared.config.udp.enable_fragmentation,
            };
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
            monoio::spawn(Rc::clone(&this).accept_task(acceptor));
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

    pub(super) fn context(&self) -> &CoreContext {
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

    pub(super) fn server_instance_id(&self) -> [u8; 16] {
        self.shared.instance_id
    }

    pub(super) fn is_draining(&self) -> bool {
        self.context.draining.get()
    }

    // ---- lanes ---------------------------------------------------------------------------------------------------

    pub(super) fn join(&self, request: &Register) -> (LaneMembership, Option<u64>) {
        self.pool
            .join(&request.client_id, request.instance_id, self.core())
    }

    pub(super) fn lane_registered(&self, lane: &Rc<ServerLane>) {
        if let Some(membership) = lane.membership.get() {
            self.lanes
                .borrow_mut()
                .entry(membership.client().number)
                .or_default()
                .push(Rc::clone(lane));
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
        let mut lanes = self.lanes.borrow_mut();
        if let Some(list) = lanes.get_mut(&membership.client().number) {
            list.retain(|other| !Rc::ptr_eq(other, lane));
            if list.is_empty() {
                lanes.remove(&membership.client().number);
            }
        }
    }

    pub(super) fn lane_ended(&self, lane: &Rc<ServerLane>) {
        self.lane_takes_no_more(lane);
        self.registered.borrow_mut().remove(&lane.lane.key());
    }

    /// Closes the lanes of a client that was replaced.
    pub(super) fn evict(&self, client: u64) {
        let evicted: Vec<_> = self
            .registered
            .borrow()
            .values()
            .filter(|lane| {
                lane.membership
                    .get()
                    .is_some_and(|membership| membership.client().number == client)
            })
            .cloned()
            .collect();
        for lane in evicted {
            self.lane_takes_no_more(&lane);
            self.counters().lanes_replaced.increment();
            lane.lane.close(
                LaneError::Replaced,
                "another instance registered with the same client_id",
            );
        }
    }

    /// The same on all cores.
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
                // The lanes then end by their health timeout.
                tracing::warn!(
                    core,
                    "mailbox full: lanes of a replaced client live on until their health timeout"
                );
            }
        }
    }

    /// This core's lane of `client` with the fewest flows.
    fn local_lane(&self, client: u64) -> Option<Rc<ServerLane>> {
        let lanes = self.lanes.borrow();
        lanes
            .get(&client)?
            .iter()
            .filter(|lane| lane.lane.is_open())
            .min_by_key(|lane| lane.tcp_flows.get())
            .cloned()
    }

    // ---- TCP visitors --------------------------------------------------------------------------------------------

    async fn accept_task(self: Rc<Self>, acceptor: Acceptor) {
        loop {
            let stopped = {
                use std::future::{Future, poll_fn};
                use std::task::Poll;
                let mut readable = std::pin::pin!(acceptor.readable());
                poll_fn(|cx| {
                    if self.stop_accepting.poll(cx).is_ready() {
                        return Poll::Ready(true);
                    }
                    readable
                        .as_mut()
                        .poll(cx)
                        .map(|ready| ready.is_err() && self.accept_broken())
                })
                .await
            };
            if stopped {
                return;
            }
            for _ in 0..ACCEPTS_PER_TURN {
                match acceptor.try_accept() {
                    Ok((stream, visitor)) => self.visitor(stream, visitor),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The visitor gave up before it was accepted (accept(2)).
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        self.counters().accepts_failed.increment();
                        if let Some(suppressed) = self.context.connect_log.pass(Instant::now()) {
                            tracing::error!(%error, addr = %self.traffic_addr, suppressed, "cannot accept visitors; trying again");
                        }
                        monoio::time::sleep(ACCEPT_PAUSE).await;
                        break;
                    }
                }
            }
            yield_now().await;
        }
    }

    /// Waiting for visitors failed, which only a socket that is gone does.
    fn accept_broken(&self) -> bool {
        self.counters().internal_errors.increment();
        tracing::error!(addr = %self.traffic_addr, "the socket for visitors is broken; this core takes no more");
        true
    }

    fn visitor(self: &Rc<Self>, stream: TcpStream, visitor: SocketAddr) {
        self.counters().visitors_accepted.increment();
        let Some(ticket) = self.pool.pick() else {
            self.refuse_visitor(stream, visitor, "no client is registered");
            return;
        };
        if let Some(lane) = self.local_lane(ticket.client().number) {
            self.open_flow(&lane, stream, visitor, ticket);
            return;
        }
        let Some(core) = ticket.client().core_with_lane(self.core()) else {
            self.refuse_visitor(stream, visitor, "the client has no lane");
            return;
        };
        self.counters().visitors_handed_over.increment();
        let mail = Mail::Visitor {
            listener: self.index,
            stream,
            visitor,
            ticket,
        };
        if let Err(Mail::Visitor { stream, .. }) = self.context.cluster.mailboxes[core].send(mail) {
            self.counters().visitors_handover_dropped.increment();
            self.refuse_visitor(stream, visitor, "the mailbox of another core is full");
        }
    }

    pub(super) fn visitor_from_other_core(
        self: &Rc<Self>,
        stream: TcpStream,
        visitor: SocketAddr,
        ticket: FlowTicket,
    ) {
        match self.local_lane(ticket.client().number) {
            Some(lane) => self.open_flow(&lane, stream, visitor, ticket),
            None => self.refuse_visitor(stream, visitor, "the client's lane has just ended"),
        }
    }

    fn refuse_visitor(&self, stream: TcpStream, visitor: SocketAddr, why: &str) {
        self.counters().visitors_refused.increment();
        tracing::debug!(%visitor, why, "visitor refused");
        refuse(stream);
    }

    fn open_flow(
        self: &Rc<Self>,
        lane: &Rc<ServerLane>,
        stream: TcpStream,
        visitor: SocketAddr,
        ticket: FlowTicket,
    ) {
        let Some(id) = lane.lane.open_stream() else {
            self.refuse_visitor(
                stream,
                visitor,
                "the client allows no more flows (max_incoming_streams)",
            );
            return;
        };
        let socket = match TcpSocket::adopt(stream) {
            Ok(socket) => socket,
            Err(error) => {
                self.counters().visitors_refused.increment();
                tracing::debug!(%visitor, %error, "visitor lost before its flow was opened");
                return;
            }
        };
        let flow_id = self.next_flow.get();
        self.next_flow.set(flow_id + 1);
        let header = OpenHeader {
            flow_id,
            protocol: Protocol::Tcp,
            service: String::new(),
            visitor,
            traffic: self.traffic_addr,
            opened_at_us: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
                }),
        };
        let mut encoded = Vec::with_capacity(qmux_proto::open::OPEN_HEADER_BYTES_MAX);
        header.encode(&mut encoded);
        let waiters = lane.lane.attach(id);
        // At once, not in the flow's task: the stream exists for QUIC only when something was written to it, and until
        // then its place could be given away again.
        let rest = lane
            .lane
            .write(id, StreamBuf::copied(&encoded), false, &waiters);
        let Ok(rest) = rest else {
            lane.lane.detach(id);
            self.counters().visitors_refused.increment();
            socket.reset_on_close();
            return;
        };
        self.counters().tcp_flows_opened.increment();
        lane.tcp_flows.set(lane.tcp_flows.get() + 1);
        let flow = TcpFlow {
            socket,
            waiters,
            lane: Rc::clone(&lane.lane),
            stream: id,
            reset_reason: FlowError::VisitorReset,
            counters: Arc::clone(&self.context.counters),
        };
        let count = FlowCount::new(&self.context);
        let lane = Rc::clone(lane);
        monoio::spawn(async move {
            let end = run_flow(flow, rest).await;
            if let TcpFlowEnd::Reset(reason) = end {
                tracing::debug!(%visitor, client = lane.client_id(), %reason, "flow reset");
            }
            lane.tcp_flows.set(lane.tcp_flows.get() - 1);
            drop((ticket, count));
        });
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    pub(super) fn drain(&self, timeout: Duration) {
        self.stop_accepting.set();
        if let Some(traffic) = &*self.traffic.borrow() {
            traffic.stop();
        }
        let away = GoAway {
            reason: GoAwayReason::Shutdown,
            drain_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        for lane in self.registered.borrow().values() {
            lane.lane.send_control(&Message::GoAway(away));
        }
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

/// Sends what is left of the Open header, then runs the flow.
async fn run_flow(flow: TcpFlow, mut rest: Option<StreamBuf>) -> TcpFlowEnd {
    while let Some(bytes) = rest.take() {
        rest = match flow.lane.write(flow.stream, bytes, false, &flow.waiters) {
            Ok(rest) => rest,
            Err(_) => break, // The pumps find the same error and end the flow.
        };
        if rest.is_some() {
            match flow.lane.room(flow.stream, 1, &flow.waiters) {
                StreamRoom::Blocked => flow.waiters.writable.wait().await,
                StreamRoom::Bytes(_) => {}
                StreamRoom::Stopped(_) => break,
            }
        }
    }
    tcp::run(flow, Vec::new(), false).await
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
    fn route(&self, _visitor: SocketAddr) -> Option<UdpRoute> {
        let Owner(listener) = self;
        let ticket = listener.pool.pick()?;
        let client = ticket.client().number;
        if let Some(lane) = listener.local_lane(client)
            && let Some(udp) = &lane.udp
        {
            return Some(UdpRoute::Local {
                lane: Rc::clone(udp),
                ticket: Box::new(ticket),
            });
        }
        let core = ticket.client().core_with_lane(listener.core())?;
        listener.counters().visitors_handed_over.increment();
        Some(UdpRoute::Remote {
            core,
            client,
            ticket: Box::new(ticket),
        })
    }

    fn forward(&self, core: usize, packet: ForwardedUdp) -> bool {
        let mail = Mail::Datagram {
            listener: self.0.index,
            packet,
        };
        self.0.context.cluster.mailboxes[core].send(mail).is_ok()
    }
}
