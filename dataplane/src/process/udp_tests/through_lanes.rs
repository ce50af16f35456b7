//! Visitor to service and back: payloads, and the lives of flows.

use std::rc::Rc;

use qmux_proto::FlowError;
use qmux_proto::datagram::Header;

use super::world::{LONG, SHORT, World, settings};
use crate::flow::udp::tests::support::{adopt, assert_payloads, payload, run, socket, until};

#[test]
fn payloads_of_all_sizes_pass_both_ways() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let sizes = [0, 1, 1_130, 1_150, 1_151, 9_000, 65_507, 0, 40_000, 2];
        let sent: Vec<_> = (0..)
            .zip(sizes)
            .map(|(n, bytes)| payload(n, bytes))
            .collect();
        for payload in &sent {
            world.visit(&visitor, payload);
        }
        let received = lane.receive(&service, sent.len()).await;
        assert_payloads(&received, &sent);
        let flow = received[0].1;
        assert!(received.iter().all(|(_, from)| *from == flow));
        for payload in sent.iter().rev() {
            service
                .try_send(payload, payload.len(), flow, None)
                .expect("loopback");
        }
        let back: Vec<_> = sent.iter().rev().cloned().collect();
        let received = lane.receive(&visitor, sent.len()).await;
        assert_payloads(&received, &back);
        assert!(received.iter().all(|(_, from)| *from == world.addr));

        assert_eq!(world.counters.udp_flows_opened.get(), 1);
        assert_eq!(lane.counters.udp_flows_opened.get(), 1);
        for counters in [&world.counters, &lane.counters] {
            let bytes: usize = sizes.iter().sum();
            assert_eq!(counters.udp_datagrams_in.get(), 10);
            assert_eq!(counters.udp_datagrams_out.get(), 10);
            assert_eq!(counters.udp_bytes_in.get(), bytes as u64);
            assert_eq!(counters.udp_bytes_out.get(), bytes as u64);
            assert_eq!(
                counters.udp_datagrams_reassembled.get(),
                counters.udp_datagrams_fragmented.get()
            );
            assert!(counters.udp_datagrams_fragmented.get() >= 4);
            counters.for_each(|name, _, value| {
                assert!(!name.contains("dropped") || value == 0, "{name} is {value}");
            });
        }
    });
}

#[test]
fn each_visitor_has_a_flow_of_its_own() {
    run(async {
        let service = socket();
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let visitors: Vec<_> = (0..20).map(|_| socket()).collect();
        let mut peers = Vec::new();
        for visitor in &visitors {
            peers.push(lane.echo(&world, visitor, &service).await);
        }
        for (visitor, peer) in visitors.iter().zip(&peers) {
            assert_eq!(lane.echo(&world, visitor, &service).await, *peer);
        }
        peers.sort();
        peers.dedup();
        assert_eq!(peers.len(), 20);
        assert_eq!(
            (world.traffic.flow_count(), lane.client.flow_count()),
            (20, 20)
        );
        assert_eq!(world.tickets(), 20);
    });
}

#[test]
fn a_flow_is_introduced_until_the_peer_has_shown_that_it_knows_it() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        let kind = async |world: &World| {
            world.visit(&visitor, b"?");
            until("a datagram in the lane", || {
                !lane.server_end.datagrams.borrow().is_empty()
            })
            .await;
            let datagrams = lane.server_end.datagrams.borrow();
            let (header, _) = Header::decode(&datagrams[0]).expect("our own");
            header.introduction().map(|(visitor, _)| visitor)
        };
        for _ in 0..3 {
            assert_eq!(kind(&world).await, Some(visitor.local_addr()));
            lane.receive(&service, 1).await;
        }
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(kind(&world).await, None);
        lane.receive(&service, 1).await;
    });
}

#[test]
fn a_client_that_knows_names_is_told_which_address_the_visitor_sends_to() {
    run(async {
        for knows_names in [false, true] {
            let (visitor, service) = (socket(), socket());
            let world = World::new(LONG);
            let lane = world.join(service.local_addr(), LONG);
            if knows_names {
                lane.server.peer_reads_traffic_addresses();
            }
            world.visit(&visitor, b"?");
            until("a datagram in the lane", || {
                !lane.server_end.datagrams.borrow().is_empty()
            })
            .await;
            let datagrams = lane.server_end.datagrams.borrow();
            let (header, _) = Header::decode(&datagrams[0]).expect("our own");
            assert_eq!(header.traffic(), knows_names.then_some(world.addr));
        }
    });
}

#[test]
fn a_flow_that_the_client_has_lost_is_introduced_again() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        // The client's side of it ends without the server hearing of it.
        lane.client.flow_closed(0, FlowError::NoError);
        assert_eq!(lane.client.flow_count(), 0);
        world.visit(&visitor, b"lost");
        lane.carry_until("the client says so", || {
            lane.counters.udp_dropped_unknown_flow.get() == 1
        })
        .await;
        lane.carry();
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.counters.udp_flows_opened.get(), 1, "the same flow");
        assert_eq!(world.counters.udp_flows_ended.get(), 0);
        assert_eq!(lane.counters.udp_flows_opened.get(), 2);
    });
}

#[test]
fn idle_flows_expire_on_both_sides() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(SHORT);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.tickets(), 1);
        lane.carry_until("the server's timeout ends both", || {
            world.traffic.flow_count() == 0 && lane.client.flow_count() == 0
        })
        .await;
        assert_eq!(world.tickets(), 0);
        assert_eq!(world.counters.udp_flows_expired.get(), 1);
        assert_eq!(lane.counters.udp_flows_expired.get(), 0);

        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), SHORT);
        lane.echo(&world, &visitor, &service).await;
        lane.carry_until("the client's timeout ends both", || {
            world.traffic.flow_count() == 0 && lane.client.flow_count() == 0
        })
        .await;
        assert_eq!(world.counters.udp_flows_expired.get(), 0);
        assert_eq!(lane.counters.udp_flows_expired.get(), 1);
        for counters in [&world.counters, &lane.counters] {
            assert_eq!(
                counters.udp_flows_opened.get(),
                counters.udp_flows_ended.get()
            );
        }
        lane.echo(&world, &visitor, &service).await;
    });
}

#[test]
fn a_visitor_whose_lane_ended_is_routed_anew() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let first = world.join(service.local_addr(), LONG);
        first.echo(&world, &visitor, &service).await;
        let second = world.join(service.local_addr(), LONG);
        first.echo(&world, &visitor, &service).await;
        assert_eq!(second.server.flow_count(), 0, "the flow stays where it is");
        first.lane_ends();
        first.client.lane_ended();
        assert_eq!(first.client.flow_count(), 0);
        assert_eq!((world.traffic.flow_count(), world.tickets()), (0, 0));
        assert!(first.client_end.take_closed().is_empty());
        second.echo(&world, &visitor, &service).await;
        assert_eq!((world.traffic.flow_count(), world.tickets()), (1, 1));
    });
}

#[test]
fn visitors_without_a_client_are_dropped_and_counted() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        world.visit(&visitor, b"nobody");
        until("it is counted", || {
            world.counters.udp_dropped_no_client.get() == 1
        })
        .await;
        let lane = world.join(service.local_addr(), LONG);
        lane.server.lane_ended();
        world.visit(&visitor, b"a route to a lane that has ended");
        until("it is counted", || {
            world.counters.udp_dropped_no_client.get() == 2
        })
        .await;
        assert_eq!((world.traffic.flow_count(), world.tickets()), (0, 0));
    });
}

#[test]
fn a_stopped_socket_serves_everybody_while_there_is_a_client() {
    run(async {
        let (visitor, newcomer, service) = (socket(), socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        world.traffic.stop();
        lane.echo(&world, &visitor, &service).await;
        lane.echo(&world, &newcomer, &service).await;
        assert_eq!(world.traffic.flow_count(), 2);

        drop(lane.membership.take());
        until("the last flows end", || world.traffic.flow_count() == 0).await;
        assert_eq!(world.tickets(), 0);
        let mut closed = lane.server_end.take_closed();
        closed.sort_by_key(|(flow, _)| *flow);
        let reason = FlowError::Draining;
        assert_eq!(closed, [(0, reason), (1, reason)]);
        until("the tasks let go", || Rc::strong_count(&world.routes) == 1).await;
    });
}

#[test]
fn a_service_that_comes_back_finds_its_flows() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let addr = service.local_addr();
        let world = World::new(LONG);
        let lane = world.join(addr, LONG);
        lane.echo(&world, &visitor, &service).await;
        drop(service);
        for round in 0..3 {
            world.visit(&visitor, b"is anybody there?");
            lane.carry_until("it bounced", || {
                lane.counters.udp_dropped_socket_error.get() > round
            })
            .await;
        }
        assert_eq!(
            (world.traffic.flow_count(), lane.client.flow_count()),
            (1, 1)
        );
        let service = adopt(std::net::UdpSocket::bind(addr).expect("the port is free again"));
        lane.echo(&world, &visitor, &service).await;
        assert_eq!(world.counters.udp_flows_opened.get(), 1);
    });
}

#[test]
fn a_service_without_an_address_refuses_the_flow() {
    run(async {
        let visitor = socket();
        let world = World::new(LONG);
        let lane = world.join_with(&[], settings(LONG), 10);
        world.visit(&visitor, b"hello");
        lane.carry_until("it is refused", || {
            lane.counters.udp_dropped_socket_error.get() == 1
        })
        .await;
        lane.carry();
        assert_eq!((world.traffic.flow_count(), world.tickets()), (0, 0));
    });
}

#[test]
fn ipv4_visitors_of_a_socket_of_both_families_are_served() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let both = std::net::UdpSocket::bind("[::]:0").expect("IPv6 is there");
        let mut world = World::on(adopt(both), LONG);
        world.addr.set_ip(visitor.local_addr().ip());
        let lane = world.join(service.local_addr(), LONG);
        world.visit(&visitor, b"first");
        until("a datagram in the lane", || {
            !lane.server_end.datagrams.borrow().is_empty()
        })
        .await;
        let introduced = {
            let datagrams = lane.server_end.datagrams.borrow();
            let (header, _) = Header::decode(&datagrams[0]).expect("our own");
            header.introduction().map(|(visitor, _)| visitor)
        };
        assert_eq!(introduced, Some(visitor.local_addr()));
        let peer = lane.receive(&service, 1).await[0].1;
        let replies: Vec<_> = (0..100).map(|number| payload(number, 1_000)).collect();
        for reply in &replies {
            service
                .try_send(reply, reply.len(), peer, None)
                .expect("loopback");
        }
        let received = lane.receive(&visitor, 100).await;
        assert_payloads(&received, &replies);
        assert!(received.iter().all(|(_, from)| *from == world.addr));
    });
}

#[test]
fn sockets_that_share_a_lane_share_no_flow_and_end_only_their_own() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let beside = world.beside();
        let lane = world.join(service.local_addr(), LONG);
        let peer = lane.echo(&world, &visitor, &service).await;
        // The same visitor at the other socket is somebody else.
        assert_ne!(lane.echo(&beside, &visitor, &service).await, peer);
        assert_eq!((lane.server.flow_count(), world.tickets()), (2, 2));
        assert_eq!(
            (world.traffic.flow_count(), beside.traffic.flow_count()),
            (1, 1)
        );
        world.traffic.close();
        assert_eq!(
            lane.server_end.take_closed(),
            [(0, FlowError::Draining)],
            "one lane, two ids"
        );
        assert_eq!((lane.server.flow_count(), world.tickets()), (1, 1));
        lane.echo(&beside, &visitor, &service).await;
        lane.lane_ends();
        assert_eq!((beside.traffic.flow_count(), beside.tickets()), (0, 0));
    });
}
