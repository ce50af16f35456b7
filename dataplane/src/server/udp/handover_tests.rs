//! Visitors whose flow lives on another core: two traffic sockets on one thread, with mail between
//! them.

use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::LoadBalancer;
use qmux_proto::FlowError;
use qmux_proto::datagram::Header;

use super::forwarded::ForwardedUdp;
use super::lane::LaneFlows;
use super::routes::UdpRoutes;
use super::traffic::TrafficSocket;
use crate::core::counters::CoreCounters;
use crate::core::mailbox::{Mailboxes, Post};
use crate::flow::udp::UdpSettings;
use crate::flow::udp::fake::FakeLane;
use crate::flow::udp::tests::support::{receive, run, socket, until};
use crate::server::bounds::Refusal;
use crate::server::ids::EntranceId;
use crate::server::mail::ServerMail;
use crate::server::pool::fixture::OneService;
use crate::server::pool::membership::LaneMembership;
use crate::server::shared::ServedService;
use crate::sys::udp::UdpSocket;

const LONG: Duration = Duration::from_secs(300);

/// The core that has the lane.
const OWNER: usize = 1;

/// The entrance of both sockets.
const ENTRANCE: EntranceId = EntranceId(7);

fn join(pool: &OneService, client_id: &str) -> LaneMembership {
    let joined = pool.join(client_id, [0; 16], None, OWNER, Instant::now());
    joined.expect("nobody else has that id").membership
}

struct Cores {
    receiver: Rc<TrafficSocket>,
    receiver_counters: Arc<CoreCounters>,
    addr: SocketAddr,
    owner: Rc<TrafficSocket>,
    owner_counters: Arc<CoreCounters>,
    routes: Rc<UdpRoutes>,
    mailboxes: Mailboxes<ServerMail>,
    pool: OneService,
    service: Arc<ServedService>,
    /// The membership of the client, whose only lane is on the other core.
    membership: LaneMembership,
    visitor: UdpSocket,
}

impl Cores {
    fn new(session_timeout: Duration) -> Cores {
        let settings = UdpSettings {
            session_timeout,
            unanswered_timeout: session_timeout,
            fragmentation: true,
        };
        let (receiver_counters, owner_counters) =
            <(Arc<CoreCounters>, Arc<CoreCounters>)>::default();
        let pool = OneService::new(LoadBalancer::RoundRobin, 2);
        let service = ServedService::nameless(&pool.pool, 2);
        let membership = join(&pool, "client");
        let (mailboxes, _wakes) = Mailboxes::new(2).expect("socket pairs");
        let post: Arc<dyn Post<ServerMail>> = Arc::new(mailboxes.clone());
        let routes_of = |core, counters| {
            UdpRoutes::new(ENTRANCE, core, &pool.pool, |_client| None, &post, counters)
        };
        let routes = routes_of(0, &receiver_counters);
        let owners_routes = routes_of(OWNER, &owner_counters);
        let front = socket();
        let addr = front.local_addr();
        Cores {
            receiver: TrafficSocket::start(
                front,
                0,
                settings,
                Rc::clone(&routes),
                &service,
                Arc::clone(&receiver_counters),
            ),
            receiver_counters,
            addr,
            owner: TrafficSocket::start(
                socket(),
                OWNER,
                settings,
                owners_routes,
                &service,
                Arc::clone(&owner_counters),
            ),
            owner_counters,
            routes,
            mailboxes,
            pool,
            service,
            membership,
            visitor: socket(),
        }
    }

    fn lane(&self) -> (Rc<FakeLane>, Rc<LaneFlows>) {
        let lane = FakeLane::new(1_150);
        let flows = LaneFlows::new(Rc::clone(&lane), true, &self.owner_counters);
        (lane, flows)
    }

    fn visit(&self) {
        self.visitor
            .try_send(b"hello", 5, self.addr, None)
            .expect("loopback");
    }

    /// One datagram of the visitor, received and carried to the core that owns the lane. Returns
    /// the number of the client that it is for.
    async fn visit_through(&self, lane: Option<&Rc<LaneFlows>>) -> u64 {
        self.visit();
        let mailbox = self.mailboxes.of(OWNER);
        until("mail", || !mailbox.is_empty()).await;
        let Some(ServerMail::Datagram { entrance, packet }) = mailbox.take() else {
            panic!("mail of another kind");
        };
        assert_eq!(entrance, ENTRANCE);
        let client = packet.client;
        self.owner.packet_from_other_core(packet, lane.cloned());
        client
    }

    /// Visitors whom the core that has the lanes has refused for this reason.
    fn refused(&self, why: Refusal) -> u64 {
        why.counter(&self.service.gate.refusals()[OWNER]).get()
    }

    /// Replaces the client by another one.
    fn have_another_client(&mut self) {
        self.membership = join(&self.pool, "another");
    }

    /// The core that receives the visitor's datagrams forgets its flow, as it does when it needs
    /// room for others.
    fn forget(&self) {
        self.receiver.forget_remote(self.visitor.local_addr());
    }

    fn tickets(&self) -> usize {
        self.pool.totals().flows
    }
}

#[test]
fn a_visitor_is_routed_once_and_its_datagrams_are_handed_over() {
    run(async {
        let cores = Cores::new(LONG);
        let (lane, flows) = cores.lane();
        for _ in 0..3 {
            cores.visit_through(Some(&flows)).await;
        }
        assert_eq!((cores.routes.asked(), cores.tickets()), (1, 1));
        assert_eq!(
            (cores.owner.flow_count(), cores.receiver.flow_count()),
            (1, 0)
        );
        let datagrams = lane.take();
        assert_eq!(datagrams.len(), 3);
        for datagram in &datagrams {
            let (header, payload) = Header::decode(datagram).expect("our own");
            assert_eq!(
                header.introduction(),
                Some((cores.visitor.local_addr(), ""))
            );
            assert_eq!(payload, b"hello");
        }
        let mut reply = Vec::new();
        Header::Whole { flow_id: 0 }.encode(&mut reply);
        reply.extend_from_slice(b"there");
        flows.datagram(&reply);
        flows.datagrams_done();
        assert_eq!(receive(&cores.visitor, 1).await[0].0, b"there");
        cores.visit_through(Some(&flows)).await;
        let (header, _) = Header::decode(&lane.take()[0])
            .map(|(h, p)| (h.introduction().is_some(), p.len()))
            .expect("our own");
        assert!(!header, "the client knows the flow");
        assert_eq!(cores.owner_counters.udp_flows_opened.get(), 1);
        assert_eq!(cores.receiver_counters.udp_flows_opened.get(), 0);
    });
}

#[test]
fn a_flow_that_ended_on_its_core_is_routed_anew_by_the_next_datagram() {
    run(async {
        let cores = Cores::new(LONG);
        let (_, first) = cores.lane();
        cores.visit_through(Some(&first)).await;
        first.lane_ended();
        assert_eq!(cores.tickets(), 0);
        let (lane, second) = cores.lane();
        cores.visit_through(Some(&second)).await;
        assert_eq!((cores.routes.asked(), cores.tickets()), (2, 1));
        assert_eq!(lane.take().len(), 1, "no datagram was lost");

        second.flow_closed(0, FlowError::Expired);
        assert_eq!(cores.tickets(), 0);
        cores.visit_through(Some(&second)).await;
        assert_eq!((cores.routes.asked(), cores.tickets()), (3, 1));
        assert_eq!(lane.take().len(), 1);
    });
}

#[test]
fn a_visitor_of_another_core_whom_no_client_serves_is_counted_when_all_were_tried() {
    run(async {
        let mut cores = Cores::new(LONG);
        let second = join(&cores.pool, "second");
        let numbers = [cores.membership.client().number, second.client().number];
        let mut went_to = Vec::new();
        for not_served in [0, 1, 1, 2] {
            let (_, flows) = cores.lane();
            went_to.push(cores.visit_through(Some(&flows)).await);
            flows.flow_closed(0, FlowError::DialRefused);
            let counters = &cores.owner_counters;
            assert_eq!(counters.udp_failovers_exhausted.get(), not_served);
            assert_eq!(counters.visitors_handed_over.get(), 0, "it went nowhere");
            assert_eq!(cores.refused(Refusal::NotServed), not_served);
            assert_eq!(cores.tickets(), 0);
        }
        for pair in went_to.chunks(2) {
            let mut pair = pair.to_vec();
            pair.sort_unstable();
            assert_eq!(pair, numbers, "each client gets the visitor once");
        }
        assert_eq!(cores.receiver_counters.visitors_handed_over.get(), 4);
        // With one client there is nobody else to try.
        drop(second);
        cores.membership = join(&cores.pool, "client");
        let (_, flows) = cores.lane();
        cores.visit_through(Some(&flows)).await;
        flows.flow_closed(0, FlowError::DialRefused);
        assert_eq!(cores.refused(Refusal::NotServed), 3);
    });
}

#[test]
fn a_flow_that_its_first_core_has_forgotten_is_routed_anew_once() {
    run(async {
        let cores = Cores::new(LONG);
        let (lane, flows) = cores.lane();
        cores.visit_through(Some(&flows)).await;
        cores.forget();
        for _ in 0..3 {
            cores.visit_through(Some(&flows)).await;
        }
        assert_eq!((cores.routes.asked(), cores.tickets()), (2, 1));
        assert_eq!(lane.take().len(), 4, "no datagram was lost");
        assert_eq!(cores.owner_counters.udp_flows_opened.get(), 1);
        flows.lane_ended();
        assert_eq!(cores.tickets(), 0);
        let (_, next) = cores.lane();
        cores.visit_through(Some(&next)).await;
        assert_eq!(cores.routes.asked(), 3, "it knew of the end");
    });
}

#[test]
fn a_flow_that_its_first_core_has_forgotten_ends_if_another_client_is_chosen() {
    run(async {
        let mut cores = Cores::new(LONG);
        let (first, flows) = cores.lane();
        cores.visit_through(Some(&flows)).await;
        cores.forget();
        cores.have_another_client();
        let (second, others) = cores.lane();
        for _ in 0..3 {
            cores.visit_through(Some(&others)).await;
        }
        assert_eq!((first.take().len(), second.take().len()), (1, 3));
        assert_eq!((cores.routes.asked(), cores.tickets()), (2, 1));
        assert_eq!(cores.owner.flow_count(), 1);
    });
}

#[test]
fn a_datagram_that_finds_neither_flow_nor_lane_is_counted() {
    run(async {
        let cores = Cores::new(LONG);
        let (_, flows) = cores.lane();
        cores.visit_through(None).await;
        assert_eq!(cores.owner_counters.udp_dropped_no_client.get(), 1);
        assert_eq!((cores.owner.flow_count(), cores.tickets()), (0, 0));
        cores.visit_through(Some(&flows)).await;
        assert_eq!((cores.owner.flow_count(), cores.tickets()), (1, 1));
        cores.owner.close();
        cores.visit_through(Some(&flows)).await;
        assert_eq!((cores.owner.flow_count(), cores.tickets()), (0, 0));
        assert_eq!(cores.owner_counters.udp_dropped_no_client.get(), 2);
    });
}

#[test]
fn a_full_mailbox_does_not_leave_a_visitor_without_a_route() {
    run(async {
        let cores = Cores::new(LONG);
        let (_, flows) = cores.lane();
        let mailbox = cores.mailboxes.of(OWNER);
        let stranger = || ForwardedUdp {
            visitor: cores.addr,
            to_ip: None,
            payload: Vec::new(),
            link: None,
            client: 0,
        };
        while mailbox
            .send(ServerMail::Datagram {
                entrance: ENTRANCE,
                packet: stranger(),
            })
            .is_ok()
        {}
        cores.visit();
        until("it is counted", || {
            cores.receiver_counters.udp_dropped_handover.get() == 1
        })
        .await;
        assert_eq!(cores.tickets(), 0);
        while mailbox.take().is_some() {}
        cores.visit_through(Some(&flows)).await;
        assert_eq!((cores.owner.flow_count(), cores.tickets()), (1, 1));
    });
}

#[test]
fn the_receiving_core_keeps_its_entry_as_long_as_the_flow_lives() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    run(async {
        let cores = Cores::new(TIMEOUT);
        let (_, flows) = cores.lane();
        cores.visit_through(Some(&flows)).await;
        // Only the service sends, for several timeouts.
        let mut reply = Vec::new();
        Header::Whole { flow_id: 0 }.encode(&mut reply);
        let began = Instant::now();
        while began.elapsed() < 3 * TIMEOUT {
            flows.datagram(&reply);
            flows.datagrams_done();
            crate::core::time::sleep(Duration::from_millis(10)).await;
        }
        cores.visit_through(Some(&flows)).await;
        assert_eq!(cores.routes.asked(), 1, "it was not forgotten");
        until("the flow expires where it lives", || {
            cores.owner.flow_count() == 0
        })
        .await;
        assert_eq!(cores.tickets(), 0);
        cores.visit_through(Some(&flows)).await;
        assert_eq!(cores.routes.asked(), 2);
    });
}

#[test]
fn both_sockets_let_go_of_everything_when_they_close() {
    run(async {
        let cores = Cores::new(LONG);
        let (_, flows) = cores.lane();
        cores.visit_through(Some(&flows)).await;
        cores.owner.close();
        cores.receiver.close();
        assert_eq!(cores.tickets(), 0);
        let (owner, receiver) = (Rc::downgrade(&cores.owner), Rc::downgrade(&cores.receiver));
        drop((cores, flows));
        let gone = |socket: &Weak<TrafficSocket>| socket.strong_count() == 0;
        until("they are gone", || gone(&owner) && gone(&receiver)).await;
    });
}
