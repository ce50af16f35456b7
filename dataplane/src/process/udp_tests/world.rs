//! A traffic socket, and clients joined to it by lanes in memory.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::client::udp::{ClientFlows, CoreFlows};
use crate::core::counters::CoreCounters;
use crate::flow::udp::FLOWS_PER_CORE_MAX;
use crate::flow::udp::UdpSettings;
use crate::flow::udp::fake::FakeLane;
use crate::flow::udp::tests::support::{socket, until};
use crate::server::udp::{ForwardedUdp, LaneFlows, RouteUdp, TrafficSocket, UdpRoute, Wish};
use crate::sys::udp::{Purpose, ReceiveBatch, UdpSocket};

pub(super) const LONG: Duration = Duration::from_secs(300);
/// Longer than a busy machine takes for an exchange.
pub(super) const SHORT: Duration = Duration::from_secs(1);

pub(super) fn settings(session_timeout: Duration) -> UdpSettings {
    UdpSettings {
        session_timeout,
        unanswered_timeout: session_timeout,
        fragmentation: true,
    }
}

/// Routes to the lane that is set, and counts tickets.
#[derive(Default)]
pub(super) struct Router {
    pub(super) lane: RefCell<Option<Rc<LaneFlows>>>,
    pub(super) tickets: Rc<Cell<usize>>,
    pub(super) routed: Cell<usize>,
    /// Where those go who have tried that one, or need one that answers.
    pub(super) other: RefCell<Option<Rc<LaneFlows>>>,
    pub(super) no_client_left: Cell<bool>,
}

/// The client behind the router's first lane, and behind its other one.
const FIRST: u64 = 1;
const OTHER: u64 = 2;

struct Ticket(Rc<Cell<usize>>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl RouteUdp for Router {
    fn route(&self, _visitor: SocketAddr, wish: &Wish<'_>) -> Option<UdpRoute> {
        self.routed.set(self.routed.get() + 1);
        let elsewhere = wish.must_answer || wish.tried.contains(&FIRST);
        let (lane, client) = if elsewhere {
            (&self.other, OTHER)
        } else {
            (&self.lane, FIRST)
        };
        let lane = lane.borrow().clone().filter(|lane| lane.is_open());
        let lane = lane.filter(|_| !wish.tried.contains(&client))?;
        self.tickets.set(self.tickets.get() + 1);
        Some(UdpRoute::Local {
            lane,
            client,
            ticket: Box::new(Ticket(Rc::clone(&self.tickets))),
        })
    }

    fn let_go(&self) -> bool {
        self.no_client_left.get()
    }

    fn forward(&self, _core: usize, _packet: ForwardedUdp) -> bool {
        panic!("there is one core");
    }
}

/// A lane with both its ends.
pub(super) struct Joined {
    pub(super) server_end: Rc<FakeLane>,
    pub(super) client_end: Rc<FakeLane>,
    pub(super) server: Rc<LaneFlows>,
    pub(super) client: Rc<ClientFlows>,
    pub(super) counters: Arc<CoreCounters>,
    /// Where the service is; may be changed.
    pub(super) service: Rc<RefCell<Arc<Vec<SocketAddr>>>>,
}

pub(super) struct World {
    pub(super) traffic: Rc<TrafficSocket>,
    pub(super) addr: SocketAddr,
    pub(super) router: Rc<Router>,
    pub(super) counters: Arc<CoreCounters>,
}

impl World {
    pub(super) fn new(session_timeout: Duration) -> World {
        World::on(socket(), session_timeout)
    }

    /// With this traffic socket.
    pub(super) fn on(socket: UdpSocket, session_timeout: Duration) -> World {
        World::with(socket, settings(session_timeout))
    }

    /// The same with these settings.
    pub(super) fn with(socket: UdpSocket, settings: UdpSettings) -> World {
        let counters = Arc::new(CoreCounters::default());
        let router = Rc::new(Router::default());
        let addr = socket.local_addr();
        let traffic = TrafficSocket::start(
            socket,
            0,
            settings,
            Rc::clone(&router) as Rc<dyn RouteUdp>,
            Arc::clone(&counters),
        );
        World {
            traffic,
            addr,
            router,
            counters,
        }
    }

    /// Joins a client and routes new visitors to it.
    pub(super) fn join(&self, service: SocketAddr, session_timeout: Duration) -> Joined {
        self.join_with(&[service], settings(session_timeout), FLOWS_PER_CORE_MAX)
    }

    /// The same with a service of these addresses, and with so many flows.
    pub(super) fn join_with(
        &self,
        service: &[SocketAddr],
        settings: UdpSettings,
        flows_max: usize,
    ) -> Joined {
        let service = Rc::new(RefCell::new(Arc::new(service.to_vec())));
        let server_end = FakeLane::new(1_150);
        let client_end = FakeLane::new(1_150);
        let counters = Arc::new(CoreCounters::default());
        let now = Rc::clone(&service);
        let core = CoreFlows::new(
            Rc::new(move || Arc::clone(&now.borrow())),
            settings,
            flows_max,
            Arc::clone(&counters),
        );
        let client = ClientFlows::new(Rc::clone(&client_end), &core);
        let server = self.traffic.attach_lane(Rc::clone(&server_end));
        *self.router.lane.borrow_mut() = Some(Rc::clone(&server));
        Joined {
            server_end,
            client_end,
            server,
            client,
            counters,
            service,
        }
    }

    /// Sends one datagram of a visitor.
    pub(super) fn visit(&self, visitor: &UdpSocket, payload: &[u8]) {
        visitor
            .try_send(payload, payload.len(), self.addr, None)
            .expect("loopback takes it");
    }
}

impl Joined {
    /// Carries what was sent at one end to the other; true if that was something.
    pub(super) fn carry(&self) -> bool {
        let to_client = self.server_end.take();
        let to_server = self.client_end.take();
        for datagram in &to_client {
            self.client.datagram(datagram);
        }
        for datagram in &to_server {
            self.server.datagram(datagram);
        }
        self.client.datagrams_done();
        self.server.datagrams_done();
        let closed_by_server = self.server_end.take_closed();
        let closed_by_client = self.client_end.take_closed();
        for (flow_id, reason) in &closed_by_server {
            self.client.flow_closed(*flow_id, *reason);
        }
        for (flow_id, reason) in &closed_by_client {
            self.server.flow_closed(*flow_id, *reason);
        }
        !(to_client.is_empty()
            && to_server.is_empty()
            && closed_by_client.is_empty()
            && closed_by_server.is_empty())
    }

    /// Carries until `condition` holds.
    pub(super) async fn carry_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        until(what, || {
            self.carry();
            condition()
        })
        .await;
    }

    /// Receives `count` datagrams at `socket` while the lane carries.
    pub(super) async fn receive(
        &self,
        socket: &UdpSocket,
        count: usize,
    ) -> Vec<(Vec<u8>, SocketAddr)> {
        let mut batch = ReceiveBatch::new(Purpose::Traffic);
        let mut received = Vec::new();
        self.carry_until("datagrams through the lane", || {
            while socket.try_receive(&mut batch).is_ok() {
                batch.for_each(|datagram| received.push((datagram.data.to_vec(), datagram.from)));
            }
            received.len() >= count
        })
        .await;
        received
    }

    /// Sends one datagram there and back, and returns who the service saw.
    pub(super) async fn echo(
        &self,
        world: &World,
        visitor: &UdpSocket,
        service: &UdpSocket,
    ) -> SocketAddr {
        world.visit(visitor, b"ping");
        let (request, peer) = self.receive(service, 1).await.remove(0);
        assert_eq!(request, b"ping");
        service.try_send(b"pong", 4, peer, None).expect("loopback");
        let (reply, from) = self.receive(visitor, 1).await.remove(0);
        assert_eq!((&reply[..], from), (&b"pong"[..], world.addr));
        peer
    }
}
