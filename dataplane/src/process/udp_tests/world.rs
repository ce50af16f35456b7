//! A traffic socket, and clients joined to it by lanes in memory.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::LoadBalancer;

use crate::client::services::Services;
use crate::client::udp::{ClientFlows, CoreFlows};
use crate::core::counters::CoreCounters;
use crate::core::mailbox::{Mailboxes, Post};
use crate::flow::udp::FLOWS_PER_CORE_MAX;
use crate::flow::udp::UdpSettings;
use crate::flow::udp::fake::FakeLane;
use crate::flow::udp::tests::support::{socket, until};
use crate::resolve::Name;
use crate::server::ServedService;
use crate::server::ids::EntranceId;
use crate::server::mail::ServerMail;
use crate::server::pool::fixture::OneService;
use crate::server::pool::membership::LaneMembership;
use crate::server::udp::lane::LaneFlows;
use crate::server::udp::routes::UdpRoutes;
use crate::server::udp::traffic::TrafficSocket;
use crate::sys::udp::{Purpose, ReceiveBatch, UdpSocket};

pub(super) const LONG: Duration = Duration::from_secs(300);
/// A timeout that is longer than an exchange takes on a busy machine.
pub(super) const SHORT: Duration = Duration::from_secs(1);

pub(super) fn settings(session_timeout: Duration) -> UdpSettings {
    UdpSettings {
        session_timeout,
        unanswered_timeout: session_timeout,
        fragmentation: true,
    }
}

/// A lane with both its ends.
pub(super) struct Joined {
    pub(super) server_end: Rc<FakeLane>,
    pub(super) client_end: Rc<FakeLane>,
    pub(super) server: Rc<LaneFlows>,
    /// The client's membership; it takes flows until this is taken.
    pub(super) membership: Cell<Option<LaneMembership>>,
    pub(super) client: Rc<ClientFlows>,
    pub(super) counters: Arc<CoreCounters>,
    /// The address of the service, which may be changed.
    pub(super) service: Arc<Name>,
}

/// The lanes of clients, by the numbers of those.
type Lanes = RefCell<HashMap<u64, Rc<LaneFlows>>>;

pub(super) struct World {
    pub(super) traffic: Rc<TrafficSocket>,
    pub(super) addr: SocketAddr,
    /// Visitors are sent to its clients by turns.
    pool: Rc<OneService>,
    lanes: Rc<Lanes>,
    pub(super) routes: Rc<UdpRoutes>,
    pub(super) counters: Arc<CoreCounters>,
}

impl World {
    pub(super) fn new(session_timeout: Duration) -> World {
        World::on(socket(), session_timeout)
    }

    /// A world with this traffic socket.
    pub(super) fn on(socket: UdpSocket, session_timeout: Duration) -> World {
        World::with(socket, settings(session_timeout))
    }

    /// A world with this traffic socket and these settings.
    pub(super) fn with(socket: UdpSocket, settings: UdpSettings) -> World {
        let pool = Rc::new(OneService::new(LoadBalancer::RoundRobin, 1));
        World::of(socket, settings, &pool, &Rc::default(), &Arc::default())
    }

    /// Another socket whose flows ride the same lanes.
    pub(super) fn beside(&self) -> World {
        let (pool, lanes) = (&self.pool, &self.lanes);
        World::of(socket(), settings(LONG), pool, lanes, &self.counters)
    }

    fn of(
        socket: UdpSocket,
        settings: UdpSettings,
        pool: &Rc<OneService>,
        lanes: &Rc<Lanes>,
        counters: &Arc<CoreCounters>,
    ) -> World {
        let known = Rc::clone(lanes);
        let (mailboxes, _wakes) = Mailboxes::<ServerMail>::new(1).expect("a socket pair");
        let post: Arc<dyn Post<ServerMail>> = Arc::new(mailboxes);
        let lane_of = move |client: u64| known.borrow().get(&client).cloned();
        let routes = UdpRoutes::new(EntranceId(0), 0, &pool.pool, lane_of, &post, counters);
        let addr = socket.local_addr();
        let traffic = TrafficSocket::start(
            socket,
            0,
            settings,
            Rc::clone(&routes),
            &ServedService::nameless(&pool.pool, 1),
            Arc::clone(counters),
        );
        World {
            traffic,
            addr,
            pool: Rc::clone(pool),
            lanes: Rc::clone(lanes),
            routes,
            counters: Arc::clone(counters),
        }
    }

    /// Tickets of flows that live.
    pub(super) fn tickets(&self) -> usize {
        self.pool.totals().flows
    }

    /// Joins a client.
    pub(super) fn join(&self, service: SocketAddr, session_timeout: Duration) -> Joined {
        self.join_with(&[service], settings(session_timeout), FLOWS_PER_CORE_MAX)
    }

    /// Joins a client with a service at these addresses, which may have this many flows.
    pub(super) fn join_with(
        &self,
        service: &[SocketAddr],
        settings: UdpSettings,
        flows_max: usize,
    ) -> Joined {
        let name = Name::later("service.test", 53, "a test");
        name.set(service);
        let server_end = FakeLane::new(1_150);
        let client_end = FakeLane::new(1_150);
        let counters = Arc::new(CoreCounters::default());
        let core = CoreFlows::new(settings, flows_max, Arc::clone(&counters));
        let client = ClientFlows::new(
            Rc::clone(&client_end),
            &core,
            &Services::only(&name),
            &Rc::default(),
        );
        let server = LaneFlows::new(Rc::clone(&server_end), true, &self.counters);
        let id = format!("client {}", self.lanes.borrow().len());
        let joined = self.pool.join(&id, [0; 16], None, 0, Instant::now());
        let membership = joined.expect("nobody else has that id").membership;
        let number = membership.client().number;
        self.lanes.borrow_mut().insert(number, Rc::clone(&server));
        Joined {
            server_end,
            client_end,
            server,
            membership: Cell::new(Some(membership)),
            client,
            counters,
            service: name,
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
    /// The client answers nothing any more.
    pub(super) fn falls_silent(&self) {
        self.server_end.silent.set(true);
        let membership = self.membership.take().expect("it is there");
        membership.silence(true);
        self.membership.set(Some(membership));
    }

    /// The lane ends, and with it the client.
    pub(super) fn lane_ends(&self) {
        self.server.lane_ended();
        drop(self.membership.take());
    }

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
