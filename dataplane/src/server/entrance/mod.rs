//! An entrance: one port of a service on one core, where visitors connect, TCP and UDP. The pool of
//! the service chooses the client for each visitor; the lanes belong to the door.

pub(crate) mod first_client;
pub(crate) mod proxy_header;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::FlowError;

use crate::core::AcceptorCount;
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, yield_now};
use crate::core::panics::contain;
use crate::core::service_counters::ServiceCounters;
use crate::core::task::spawn_vital;
use crate::flow::udp::UdpSettings;
use crate::server::door::Door;
use crate::server::door::lane::ServerLane;
use crate::server::ids::EntranceId;
use crate::server::mail::ServerContext;
use crate::server::pool::service::ClientPool;
use crate::server::shared::ServedService;
use crate::server::shared::plan::{ClosedEntrance, EntranceSockets, SharedEntrance};
use crate::server::succession::{Lent, SocketUse};
use crate::server::tcp::opening::Held;
use crate::server::udp::forwarded::ForwardedUdp;
use crate::server::udp::routes::UdpRoutes;
use crate::server::udp::traffic::TrafficSocket;
use crate::sys::tcp::Acceptor;
use crate::sys::udp::{Purpose, UdpSocket};

/// Visitors that are accepted before the core's other tasks get a turn.
const ACCEPTS_PER_TURN: usize = 32;

/// Visitors who come within this time of each other are taken for a crowd.
const VISITORS_TOGETHER: Duration = Duration::from_micros(200);

/// Pause after accept(2) has failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a draining core waits for visitors whose handshake had begun when the stop came: one
/// round trip of the farthest ones. New ones are kept away meanwhile ([`crate::sys::syn_filter`]).
/// They repeat their SYN after a second, so any value below that costs them the same.
const HANDSHAKES_FINISH: Duration = Duration::from_millis(300);

/// How long the accept queue must have been empty before a draining core closes it.
const NOBODY_FOR: Duration = Duration::from_millis(100);

/// The longest time for which a draining core goes on accepting, whatever comes: the kernel may not
/// have taken the filter.
const LAST_VISITORS_MAX: Duration = Duration::from_secs(2);

/// Pause between two checks of the accept queue of a draining core.
const LAST_VISITORS_POLL: Duration = Duration::from_millis(20);

/// One entrance on one core.
pub(crate) struct Entrance {
    entrance: SharedEntrance,
    context: Rc<ServerContext>,
    door: Rc<Door>,
    service: Arc<ServedService>,
    /// This core's counters of the service.
    service_counters: Arc<ServiceCounters>,
    /// The UDP traffic socket, if the service takes UDP. Its tasks keep it alive until they have
    /// closed it.
    traffic: OnceCell<Weak<TrafficSocket>>,
    held: Rc<Held>,
    may_accept: Event,
    stop_accepting: Event,
    /// The time at which the last visitor was accepted in a turn of its own.
    last_visitor: Cell<Option<Instant>>,
    /// Whether the entrance takes no more TCP visitors, except those who have begun to connect.
    tcp_leaves: Cell<bool>,
    /// Whether the entrance has no TCP visitors any more, or never had any.
    tcp_is_over: Cell<bool>,
    /// How long the drain may take; set when it begins.
    drain_timeout: Cell<Duration>,
    /// The socket that accepts TCP visitors, while it does.
    acceptor: RefCell<Weak<Acceptor>>,
}

impl Entrance {
    /// Opens the entrance at these sockets, for visitors of `service`, who are sent to those of its
    /// clients that have lanes at `door`.
    ///
    /// # Errors
    /// With a text for the log if a socket cannot be used on this core.
    pub(crate) fn open(
        entrance: SharedEntrance,
        door: &Rc<Door>,
        service: &Arc<ServedService>,
        sockets: EntranceSockets,
    ) -> Result<Rc<Entrance>, String> {
        let text = |error: io::Error| error.to_string();
        let context = door.context();
        // Both sockets are adopted before anything starts, so that nothing is left of an entrance
        // that lacks one.
        let udp = sockets.udp.map(|it| UdpSocket::adopt(it, Purpose::Traffic));
        let udp = udp.transpose().map_err(text)?;
        let tcp = sockets.tcp.map(Acceptor::adopt);
        let acceptor = tcp.transpose().map_err(text)?;
        let this = Rc::new(Entrance {
            entrance,
            context: Rc::clone(context),
            door: Rc::clone(door),
            service: Arc::clone(service),
            service_counters: Arc::clone(&service.counters[context.index]),
            traffic: OnceCell::new(),
            held: Held::of_this_core(),
            may_accept: Event::default(),
            stop_accepting: Event::default(),
            last_visitor: Cell::new(None),
            tcp_leaves: Cell::new(false),
            tcp_is_over: Cell::new(acceptor.is_none()),
            drain_timeout: Cell::default(),
            acceptor: RefCell::default(),
        });
        if let Some(socket) = udp {
            this.start_udp(socket);
        }
        if let Some(acceptor) = acceptor {
            let acceptor = Rc::new(acceptor);
            this.acceptor.replace(Rc::downgrade(&acceptor));
            let count = AcceptorCount::new(&this.context.cluster);
            door.begins_to_accept();
            spawn_vital(Rc::clone(&this).accept_task(acceptor, count));
        }
        Ok(this)
    }

    fn start_udp(self: &Rc<Self>, socket: UdpSocket) {
        let door = Rc::downgrade(&self.door);
        let pool = Arc::clone(&self.service.pool);
        let routes = UdpRoutes::new(
            self.id(),
            self.core(),
            &self.service.pool,
            move |client| {
                door.upgrade()?
                    .local_lane(client, pool.balancer())?
                    .udp
                    .clone()
            },
            &self.context.post,
            &self.context.counters,
        );
        let traffic = TrafficSocket::start(
            socket,
            self.core(),
            UdpSettings::from(&self.door.settings().config.udp),
            routes,
            &self.service,
            Arc::clone(&self.context.counters),
        );
        if self.door.has_predecessor() {
            traffic.hold_back();
        }
        let _first = self.traffic.set(Rc::downgrade(&traffic));
    }

    /// The UDP traffic socket, while it is open.
    fn traffic(&self) -> Option<Rc<TrafficSocket>> {
        self.traffic.get()?.upgrade()
    }

    pub(crate) fn id(&self) -> EntranceId {
        self.entrance.id
    }

    pub(crate) fn context(&self) -> &Rc<ServerContext> {
        &self.context
    }

    pub(crate) fn counters(&self) -> &CoreCounters {
        &self.context.counters
    }

    pub(crate) fn core(&self) -> usize {
        self.context.index
    }

    pub(crate) fn door(&self) -> &Rc<Door> {
        &self.door
    }

    pub(crate) fn pool(&self) -> &ClientPool {
        &self.service.pool
    }

    pub(crate) fn service(&self) -> &ServedService {
        &self.service
    }

    /// This core's counters of the service.
    pub(crate) fn service_counters(&self) -> &Arc<ServiceCounters> {
        &self.service_counters
    }

    pub(crate) fn traffic_addr(&self) -> SocketAddr {
        self.entrance.traffic_addr
    }

    /// The lane of `client` on this core that its next flow should use.
    pub(crate) fn local_lane(&self, client: u64) -> Option<Rc<ServerLane>> {
        self.door.local_lane(client, self.pool().balancer())
    }

    /// How long a visitor may take nothing although bytes wait for it.
    pub(crate) fn stall_timeout(&self) -> Duration {
        self.service.stall_timeout()
    }

    /// The memory that is held by flows whose service has not answered yet.
    pub(crate) fn held(&self) -> &Rc<Held> {
        &self.held
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.context.draining.get() || self.tcp_leaves.get()
    }

    // ---- TCP visitors ----

    async fn accept_task(self: Rc<Self>, acceptor: Rc<Acceptor>, count: AcceptorCount) {
        self.may_accept.wait().await;
        while self.visitors_wait(&acceptor).await {
            self.accept_turn(&acceptor).await;
            yield_now().await;
        }
        if self.is_draining() && !self.tcp_is_handed_over() {
            self.last_visitors(&acceptor).await;
        }
        if self.tcp_is_handed_over() {
            // The accept queue belongs to the successor now, with the visitors in it; this process
            // must not reset them.
            drop(acceptor);
        } else {
            acceptor.close();
        }
        drop(count);
        self.door.accepts_no_more();
    }

    /// Starts to take visitors out of the accept queue.
    pub(crate) fn begin_to_accept(&self) {
        self.may_accept.set();
        if let Some(traffic) = self.traffic() {
            traffic.begin_to_receive();
        }
    }

    /// Descriptors of the entrance's sockets, for a successor.
    pub(crate) fn lend(&self) -> Vec<Lent> {
        let acceptor = self.acceptor.borrow().upgrade();
        let tcp = acceptor.filter(|_| !self.tcp_leaves.get());
        let tcp = tcp.and_then(|it| it.try_clone().ok());
        let udp = self.traffic().and_then(|it| it.lend());
        let lent = |(used_for, fd)| Lent {
            used_for,
            address: self.traffic_addr(),
            core: self.core(),
            fd,
        };
        let tcp = tcp.map(|fd| (SocketUse::Tcp, fd));
        let udp = udp.map(|fd| (SocketUse::Udp, fd));
        tcp.into_iter().chain(udp).map(lent).collect()
    }

    /// Whether a successor has the socket for TCP visitors as well, and accepts from it. A socket
    /// of this entrance that was not lent is none of the successor's, even if another entrance has
    /// its address.
    fn tcp_is_handed_over(&self) -> bool {
        !self.tcp_leaves.get() && self.is_taken(SocketUse::Tcp)
    }

    fn is_taken(&self, used_for: SocketUse) -> bool {
        self.door.is_taken(used_for, self.traffic_addr())
    }

    /// The successor accepts visitors from now on, where it has taken the socket, which stays open
    /// here.
    pub(crate) fn handed_over(&self) {
        if self.tcp_is_handed_over() {
            self.may_accept.set();
            self.stop_accepting.set();
        }
        if let Some(traffic) = self.traffic()
            && self.is_taken(SocketUse::Udp)
        {
            traffic.handed_over();
        }
    }

    /// Waits for visitors. Returns false when no more are to be accepted.
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

    /// Accepts some of the visitors who wait, and returns how many.
    async fn accept_turn(self: &Rc<Self>, acceptor: &Acceptor) -> u64 {
        let mut accepted = 0;
        for _ in 0..ACCEPTS_PER_TURN {
            match acceptor.try_accept() {
                Ok((stream, visitor)) => {
                    accepted += 1;
                    let _counted = contain(|| self.visitor(stream, visitor));
                    if accepted == 1 && !self.comes_in_numbers() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The visitor gave up before it was accepted (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.counters().accepts_failed.increment();
                    if let Some(suppressed) = self.context.connect_log.pass(Instant::now()) {
                        tracing::error!(%error, addr = %self.traffic_addr(), suppressed, "cannot accept visitors; trying again");
                    }
                    crate::core::time::sleep(ACCEPT_PAUSE).await;
                    break;
                }
            }
        }
        accepted
    }

    /// Whether the last visitor came a moment before this one. Then more may be waiting already,
    /// and are looked for at once; otherwise the wait that follows reports them.
    fn comes_in_numbers(&self) -> bool {
        let now = Instant::now();
        let last = self.last_visitor.replace(Some(now));
        last.is_some_and(|last| now.duration_since(last) < VISITORS_TOGETHER)
    }

    /// Accepts the visitors whose handshake was complete or under way when the stop came; closing
    /// the socket would reset them.
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

    /// Handles a failed wait for visitors, which happens only if the socket is gone.
    fn accept_broken(&self) {
        self.counters().internal_errors.increment();
        tracing::error!(addr = %self.traffic_addr(), "the socket for visitors is broken; this core takes no more");
    }

    // ---- the end ----

    /// Takes no new visitors, except those who have begun to connect.
    pub(crate) fn drain(&self, timeout: Duration) {
        self.drain_timeout.set(timeout);
        self.may_accept.set();
        self.stop_accepting.set();
        if let Some(traffic) = self.traffic() {
            traffic.stop();
        }
    }

    /// Closes the halves of the entrance that `closed` names to new visitors, except those who have
    /// begun to connect. Flows may finish.
    pub(crate) fn leave(&self, closed: &ClosedEntrance, timeout: Duration) {
        if closed.entrance.tcp {
            self.drain_timeout.set(timeout);
            self.tcp_leaves.set(true);
            self.may_accept.set();
            self.stop_accepting.set();
        }
        if closed.entrance.udp
            && let Some(traffic) = self.traffic()
        {
            if closed.udp_at_once {
                traffic.close();
            } else {
                traffic.leave(Instant::now() + timeout);
            }
        }
    }

    /// Ends the flows of a closed entrance when their time is over.
    pub(crate) fn end_what_was_left(&self, left: &SharedEntrance) {
        if left.tcp {
            let ended = self
                .context
                .flows
                .end_all_of(self.id().0, FlowError::Draining);
            self.tcp_is_over.set(true);
            if ended > 0 {
                tracing::warn!(
                    service = self.service.name, addr = %self.traffic_addr(), ended,
                    "drain_timeout is over; flows of a service that was removed, or moved, are reset"
                );
            }
        }
        if left.udp
            && let Some(traffic) = self.traffic()
        {
            traffic.close();
        }
    }

    /// Whether no visitor and no datagram can come here any more.
    pub(crate) fn is_over(&self) -> bool {
        self.tcp_is_over.get() && self.traffic().is_none_or(|traffic| traffic.is_closed())
    }

    pub(crate) fn close(&self) {
        if let Some(traffic) = self.traffic() {
            traffic.close();
        }
    }

    pub(crate) fn datagram_from_other_core(&self, packet: ForwardedUdp) {
        if let Some(traffic) = self.traffic() {
            let lane = self.local_lane(packet.client);
            if let Some(lane) = &lane {
                lane.datagram_handed_over();
                if packet.begins_a_flow() {
                    lane.visitor_handed_over();
                }
            }
            traffic.packet_from_other_core(packet, lane.and_then(|lane| lane.udp.clone()));
        }
    }
}
