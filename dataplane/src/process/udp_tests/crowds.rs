//! More visitors than there is room for, and services that cannot be reached.

use std::net::SocketAddr;
use std::time::Duration;

use qmux_proto::FlowError;
use qmux_proto::control::Message;
use qmux_proto::datagram::Header;

use super::world::{Joined, LONG, SHORT, World, settings};
use crate::flow::udp::UdpSettings;
use crate::flow::udp::tests::support::{run, socket, until};

/// An address of loopback where nobody listens, and of which no other test gets the port.
fn nobody(ip: &str) -> SocketAddr {
    let place = std::net::UdpSocket::bind((ip, 0)).expect("a free port");
    place.local_addr().expect("bound")
}

/// Introduces a flow of a visitor at `ip` to a client.
fn introduce(lane: &Joined, flow_id: u64, ip: [u8; 4]) {
    let mut datagram = Vec::new();
    let header = Header::First {
        flow_id,
        visitor: (ip, 4_000).into(),
        traffic: None,
        service: "",
    };
    header.encode(&mut datagram);
    datagram.extend_from_slice(b"hello");
    lane.client.datagram(&datagram);
}

#[test]
fn strangers_make_room_for_each_other_and_never_cost_an_exchange_that_goes_on() {
    run(async {
        const FLOWS_MAX: usize = 40;
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let address = service.local_addr();
        let lane = world.join_with(&[address], settings(LONG), FLOWS_MAX);
        let peer = lane.echo(&world, &visitor, &service).await;
        assert_eq!(lane.echo(&world, &visitor, &service).await, peer);
        for stranger in 0..1_000_u16 {
            let [high, low] = stranger.to_be_bytes();
            introduce(&lane, 1_000 + u64::from(stranger), [10, 0, high, low]);
            if stranger % 8 == 0 {
                lane.client.datagrams_done();
                crate::core::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(lane.client.flow_count() <= FLOWS_MAX);
        }
        until("each stranger has been dealt with", || {
            let counters = &lane.counters;
            counters.udp_flows_opened.get() + counters.udp_dropped_opening.get() == 1_001
        })
        .await;
        assert_eq!(lane.client.flow_count(), FLOWS_MAX);
        let opened = lane.counters.udp_flows_opened.get();
        assert_eq!(
            lane.counters.udp_flows_evicted.get(),
            opened - FLOWS_MAX as u64
        );
        assert_eq!(lane.counters.udp_dropped_flow_limit.get(), 0);
        // The server hears of some of them, not of all.
        let told = lane.client_end.take_closed();
        assert!((1..=1_024).contains(&told.len()), "told {}", told.len());
        assert!(told.iter().all(|(_, reason)| *reason == FlowError::Expired));
        // What the strangers sent is in the service's socket; the exchange goes on.
        world.visit(&visitor, b"still here");
        let received = lane.receive(&service, opened as usize).await;
        assert!(received.contains(&(b"still here".to_vec(), peer)));
        assert_eq!(lane.counters.udp_flows_unanswered.get(), 0);
    });
}

#[test]
fn a_burst_of_new_flows_waits_for_its_sockets_and_one_beyond_the_queue_is_counted() {
    run(async {
        let service = socket();
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        for flow in 0..3_000_u16 {
            let [high, low] = flow.to_be_bytes();
            introduce(&lane, u64::from(flow), [10, 0, high, low]);
        }
        lane.client.datagrams_done();
        let at_once = lane.client.flow_count();
        assert!((1..=100).contains(&at_once), "{at_once} opened in one turn");
        assert!(lane.counters.udp_dropped_opening.get() > 0);
        until("the others are opened one by one", || {
            let counters = &lane.counters;
            counters.udp_flows_opened.get() + counters.udp_dropped_opening.get() == 3_000
        })
        .await;
        assert!(lane.client.flow_count() >= 1_000);
    });
}

#[test]
fn a_client_with_only_exchanges_that_go_on_refuses_more() {
    run(async {
        const FLOWS_MAX: usize = 2;
        let service = socket();
        let visitors = [socket(), socket()];
        let newcomer = socket();
        let world = World::new(LONG);
        let address = service.local_addr();
        let lane = world.join_with(&[address], settings(LONG), FLOWS_MAX);
        for visitor in visitors.iter().chain(&visitors) {
            lane.echo(&world, visitor, &service).await;
        }
        world.visit(&newcomer, b"me too");
        lane.carry_until("it is refused", || {
            lane.counters.udp_dropped_flow_limit.get() == 1
        })
        .await;
        lane.carry();
        assert_eq!(
            (world.traffic.flow_count(), lane.client.flow_count()),
            (2, 2)
        );
        assert_eq!(world.tickets(), 2);
        for visitor in &visitors {
            lane.echo(&world, visitor, &service).await;
        }
    });
}

#[test]
fn a_flow_without_an_answer_ends_sooner_than_one_with() {
    run(async {
        let timeouts = UdpSettings {
            unanswered_timeout: SHORT,
            ..settings(LONG)
        };
        let (visitor, stranger, service) = (socket(), socket(), socket());
        let world = World::with(socket(), timeouts);
        let lane = world.join_with(&[service.local_addr()], timeouts, 10);
        lane.echo(&world, &visitor, &service).await;
        world.visit(&stranger, b"no answer");
        lane.receive(&service, 1).await;
        lane.carry_until("the stranger's flow ends on both sides", || {
            world.traffic.flow_count() == 1 && lane.client.flow_count() == 1
        })
        .await;
        let ended =
            |counters: &crate::core::counters::CoreCounters| counters.udp_flows_unanswered.get();
        assert!(ended(&world.counters) + ended(&lane.counters) >= 1);
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(
            world.counters.udp_flows_opened.get(),
            2,
            "the other one goes on"
        );
    });
}

#[test]
fn a_service_that_refuses_is_told_and_the_next_client_gets_the_very_datagram() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let bad = world.join(nobody("127.0.0.78"), LONG);
        let good = world.join(service.local_addr(), LONG);
        world.visit(&visitor, b"once");
        bad.carry_until("the first client refuses", || {
            world.counters.udp_flows_failed_over.get() == 1
        })
        .await;
        let (request, peer) = good.receive(&service, 1).await.remove(0);
        assert_eq!(request, b"once");
        service.try_send(b"yes", 3, peer, None).expect("loopback");
        assert_eq!(good.receive(&visitor, 1).await[0].0, b"yes");
        assert_eq!(bad.counters.udp_flows_refused.get(), 1);
        assert_eq!((bad.client.flow_count(), good.client.flow_count()), (0, 1));
        assert_eq!((world.traffic.flow_count(), world.tickets()), (1, 1));
        assert_eq!(
            world.traffic.kept_bytes.get(),
            0,
            "nothing is kept once answered"
        );
        // And that is where it stays.
        good.echo(&world, &visitor, &service).await;
        assert_eq!(world.counters.udp_flows_failed_over.get(), 1);
    });
}

#[test]
fn a_name_that_does_not_resolve_is_a_reason_to_go_to_another_client() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let bad = world.join_with(&[], settings(LONG), 10);
        let good = world.join(service.local_addr(), LONG);
        world.visit(&visitor, b"once");
        bad.carry_until("the first client refuses", || {
            world.counters.udp_flows_failed_over.get() == 1
        })
        .await;
        assert_eq!(good.receive(&service, 1).await[0].0, b"once");
    });
}

#[test]
fn a_visitor_whom_no_client_can_serve_is_given_up_and_its_next_datagram_tries_again() {
    run(async {
        let visitor = socket();
        let world = World::new(LONG);
        let other = world.join(nobody("127.0.0.79"), LONG);
        let first = world.join(nobody("127.0.0.79"), LONG);
        for round in 1..=3 {
            world.visit(&visitor, b"anybody?");
            first
                .carry_until("both refuse", || {
                    other.carry();
                    world.counters.udp_flows_failed_over.get() == round
                        && world.traffic.flow_count() == 0
                })
                .await;
        }
        assert_eq!(world.tickets(), 0);
        assert_eq!(world.traffic.kept_bytes.get(), 0);
    });
}

#[test]
fn an_address_where_nobody_listens_is_passed_over_and_the_one_that_answers_remembered() {
    run(async {
        let (visitor, second, service) = (socket(), socket(), socket());
        let world = World::new(LONG);
        let addresses = [nobody("127.0.0.80"), service.local_addr()];
        let lane = world.join_with(&addresses, settings(LONG), 10);
        world.visit(&visitor, b"ping");
        let (request, peer) = lane.receive(&service, 1).await.remove(0);
        assert_eq!(request, b"ping", "the very datagram that was refused first");
        service.try_send(b"pong", 4, peer, None).expect("loopback");
        lane.receive(&visitor, 1).await;
        assert_eq!(lane.counters.udp_flows_redialled.get(), 1);
        lane.echo(&world, &second, &service).await;
        assert_eq!(
            lane.counters.udp_flows_redialled.get(),
            1,
            "it is remembered"
        );
        assert_eq!(world.counters.udp_flows_opened.get(), 2);
    });
}

#[test]
fn a_service_that_moves_is_followed_by_its_flows() {
    run(async {
        let (visitor, second, old, new) = (socket(), socket(), socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(old.local_addr(), LONG);
        lane.echo(&world, &visitor, &old).await;
        // Both are there: who has an answer stays.
        lane.service.set(&[new.local_addr(), old.local_addr()]);
        lane.echo(&world, &visitor, &old).await;
        // The old address is gone.
        lane.service.set(&[new.local_addr()]);
        lane.carry_until("the flow is dialled anew", || {
            world.visit(&visitor, b"where?");
            lane.counters.udp_flows_redialled.get() == 1
        })
        .await;
        let received = lane.receive(&new, 1).await;
        assert!(received.iter().all(|(payload, _)| payload == b"where?"));
        new.try_send(b"here", 4, received[0].1, None)
            .expect("loopback");
        assert_eq!(lane.receive(&visitor, 1).await[0].0, b"here");
        world.visit(&second, b"where?");
        lane.carry_until("a new flow begins there", || lane.client.flow_count() == 2)
            .await;
        assert_eq!(world.counters.udp_flows_opened.get(), 2);
    });
}

#[test]
fn a_flow_goes_on_elsewhere_when_its_lane_has_been_silent_for_a_while() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let dead = world.join(service.local_addr(), LONG);
        dead.echo(&world, &visitor, &service).await;
        assert!(dead.server_end.asked.get() > 0, "datagrams are questions");
        dead.falls_silent();
        until("several datagrams go nowhere", || {
            world.visit(&visitor, b"hello?");
            dead.server_end.datagrams.borrow().len() > 3
        })
        .await;
        assert_eq!(world.counters.udp_flows_moved.get(), 0, "not for a hiccup");
        until("nobody else is found", || {
            world.visit(&visitor, b"hello?");
            world.routes.asked() > 2
        })
        .await;
        assert_eq!(world.traffic.flow_count(), 1, "it stays where it is");
        let other = world.join(service.local_addr(), LONG);
        until("the flow moves", || {
            world.visit(&visitor, b"hello?");
            world.counters.udp_flows_moved.get() == 1
        })
        .await;
        let first = other.server_end.datagrams.borrow()[0].clone();
        let (header, _) = Header::decode(&first).expect("our own");
        let introduced = header.introduction().map(|(visitor, _)| visitor);
        assert_eq!(introduced, Some(visitor.local_addr()));
        let received = other.receive(&service, 1).await;
        service
            .try_send(b"yes", 3, received[0].1, None)
            .expect("loopback");
        assert_eq!(other.receive(&visitor, 1).await[0].0, b"yes");
        assert_eq!((world.traffic.flow_count(), world.tickets()), (1, 1));
        let told = dead.server_end.control.borrow().clone();
        assert!(matches!(
            told.iter().next(),
            Some(Message::FlowClosed(closed)) if closed.flow_id == 0
        ));
    });
}
