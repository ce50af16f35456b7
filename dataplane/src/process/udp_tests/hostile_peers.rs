//! Peers that break the rules, and lanes that lose things.

use qmux_proto::FlowError;
use qmux_proto::control::Message;
use qmux_proto::datagram::Header;

use super::world::{LONG, World};
use crate::flow::udp::tests::support::{assert_payloads, payload, receive, run, socket, until};
use crate::sys::udp::{Purpose, ReceiveBatch};

#[test]
fn a_lane_cannot_use_the_flows_of_another() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let theirs = world.join(service.local_addr(), LONG);
        theirs.echo(&world, &visitor, &service).await;
        let intruder = world.join(service.local_addr(), LONG);
        let mut datagram = Vec::new();
        Header::Whole { flow_id: 0 }.encode(&mut datagram);
        intruder.server.datagram(&datagram);
        intruder.server.datagram(&datagram);
        intruder.server.flow_closed(0, FlowError::NoError);
        intruder.server.flow_closed(0, FlowError::UnknownFlow);
        intruder.server.datagrams_done();
        assert_eq!(world.counters.udp_dropped_unknown_flow.get(), 2);
        assert_eq!(
            intruder.server_end.take_closed(),
            [(0, FlowError::UnknownFlow)],
            "told once in a turn"
        );
        assert_eq!(world.traffic.flow_count(), 1);
        assert!(
            visitor
                .try_receive(&mut ReceiveBatch::new(Purpose::Traffic))
                .is_err()
        );
    });
}

#[test]
fn datagrams_that_make_no_sense_are_dropped_and_counted() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        lane.echo(&world, &visitor, &service).await;
        let mut introduction = Vec::new();
        let first = Header::First {
            flow_id: 0,
            visitor: visitor.local_addr(),
            traffic: None,
            service: "",
        };
        first.encode(&mut introduction);
        // A client does not introduce flows.
        lane.server.datagram(&introduction);
        for broken in [&[][..], &[0xc0][..], &[0x02, 0x00, 0x05, 0x03][..]] {
            lane.server.datagram(broken);
            lane.client.datagram(broken);
        }
        // Two fragments of one packet that contradict each other.
        for count in [3, 4] {
            let mut datagram = Vec::new();
            let header = Header::Fragment {
                flow_id: 0,
                packet_id: 9,
                index: count - 3,
                count,
            };
            header.encode(&mut datagram);
            datagram.extend_from_slice(b"part");
            lane.server.datagram(&datagram);
        }
        lane.server.datagrams_done();
        lane.client.datagrams_done();
        assert_eq!(world.counters.udp_dropped_malformed.get(), 5);
        assert_eq!(lane.counters.udp_dropped_malformed.get(), 3);
        assert_eq!(world.counters.udp_dropped_incomplete.get(), 1);
        lane.echo(&world, &visitor, &service).await;
    });
}

#[test]
fn a_fragment_that_is_lost_costs_its_packet_alone() {
    run(async {
        let (visitor, service) = (socket(), socket());
        let world = World::new(LONG);
        let lane = world.join(service.local_addr(), LONG);
        for (number, bytes) in [3_000, 5_000, 4_000].into_iter().enumerate() {
            world.visit(&visitor, &payload(number, bytes));
        }
        until("all are in the lane", || {
            lane.server_end.datagrams.borrow().len() >= 12
        })
        .await;
        // The second packet loses a part; the rest arrives backwards.
        let mut datagrams = lane.server_end.take();
        datagrams.remove(4);
        for datagram in datagrams.iter().rev() {
            lane.client.datagram(datagram);
        }
        lane.client.datagrams_done();
        let received = receive(&service, 2).await;
        assert_payloads(&received, &[payload(2, 4_000), payload(0, 3_000)]);
        lane.client.flow_closed(0, FlowError::NoError);
        lane.client.datagrams_done();
        assert_eq!(lane.counters.udp_dropped_incomplete.get(), 1);
        assert_eq!(lane.counters.udp_datagrams_reassembled.get(), 2);
    });
}

#[test]
fn notices_beyond_their_bound_are_left_out() {
    run(async {
        let world = World::new(LONG);
        let lane = world.join(world.addr, LONG);
        for flow_id in 0..5_000 {
            let mut datagram = Vec::new();
            Header::Whole { flow_id }.encode(&mut datagram);
            lane.client.datagram(&datagram);
            lane.client.datagrams_done();
        }
        let told = lane.client_end.control.borrow().len();
        assert!((1..=1_024).contains(&told), "told {told} times");
        assert_eq!(lane.counters.udp_dropped_unknown_flow.get(), 5_000);
        let all_closed = lane
            .client_end
            .control
            .borrow()
            .iter()
            .all(|message| matches!(message, Message::FlowClosed(_)));
        assert!(all_closed);
    });
}
